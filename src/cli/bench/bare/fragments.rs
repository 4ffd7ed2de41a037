//! Large messages in parts, as `seq` of the C probe `big`.

use super::{Peer, gone, next_packet, send};
use crate::sys::{Linux, OsResult, Sys, Wait};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Sends a message of `total` bytes in packets of at most `chunk`, takes its echo, and does so `rounds` times; how long
/// the rounds took, after others, `warm_up` of them, in which both sides touch their memory. Both sides sleep in `send` and `recv`, over send buffers of `send_buffer` bytes if the kernel grants
/// them.
///
/// The peer answers when it has the whole message.
///
/// # Errors
/// The kernel's, such as `EMSGSIZE` for a chunk that is larger than the send buffer.
///
/// # Panics
/// When the echo differs from what was sent.
pub fn fragments(total: usize, chunk: usize, send_buffer: usize, warm_up: u32, rounds: u32) -> OsResult<Duration> {
    assert!(chunk >= 8 && total >= 8, "every packet holds a round's number");
    let peer = Peer::fork(Some(send_buffer), |socket| echo(socket, total, chunk))?;
    let mut message: Vec<u8> = (0..total).map(|i| (i * 7 % 251) as u8).collect();
    let mut started_ns = Linux.now_ns();
    for round in 0..rounds + warm_up {
        if round == warm_up {
            started_ns = Linux.now_ns();
        }
        // Bytes of another round, or of another place, would not go unnoticed.
        message[..8].copy_from_slice(&u64::from(round).to_le_bytes());
        for part in message.chunks(chunk) {
            peer.send(part, Wait::UntilReady)?;
        }
        message[..8].fill(0xff);
        let mut size = 0;
        while size < total {
            size += peer.recv(&mut message[size..], Wait::UntilReady)?.ok_or_else(gone)?;
        }
        assert_eq!(message[..8], u64::from(round).to_le_bytes(), "the echo of round {round}");
    }
    let took = Duration::from_nanos(Linux.now_ns() - started_ns);
    assert!((8..total).all(|i| message[i] == (i * 7 % 251) as u8), "the last echo is what was sent");
    Ok(took)
}

fn echo(socket: &OwnedFd, total: usize, chunk: usize) -> OsResult<()> {
    let mut message = vec![0; total];
    loop {
        let mut size = 0;
        while size < total {
            let Some(part) = next_packet(socket, &mut message[size..])? else { return Ok(()) };
            size += part;
        }
        for part in message.chunks(chunk) {
            send(socket, part, Wait::UntilReady)?;
        }
    }
}
