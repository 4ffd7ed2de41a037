//! Many small frames in each packet, parsed and upper-cased by the peers, as in the C probe `packed`.
//!
//! # Shape
//! A frame is 24 bytes of header (body size u32, kind u16, spare u16, id u64, spare u64; little-endian) and the body.
//! It is the pool's frame in size only, and has a parser of its own.

use super::{Peer, next_packet, send};
use crate::cli::handlers::upper;
use crate::limits::SEND_BUFFER_SIZE;
use crate::sys::{EventBuffer, Interest, Linux, OsResult, Sys, Wait};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// Bytes of a frame's header.
const HEADER_SIZE: usize = 24;
/// Bytes of a job's body.
const BODY_SIZE: usize = 64;
/// Bytes of a frame.
pub const FRAME_SIZE: usize = HEADER_SIZE + BODY_SIZE;

const KIND_JOB: u16 = 1;
const KIND_RESULT: u16 = 2;

/// An echo over packets of many frames: this process fills and checks them, the peers work on them.
#[derive(Debug)]
pub struct Packed {
    peers: Vec<Peer>,
    epoll: OwnedFd,
    sent: Box<[u8]>,
    received: Box<[u8]>,
    calls: u64,
}

impl Packed {
    /// Forks `workers` peers for packets of at most `frames` frames.
    ///
    /// # Errors
    /// The kernel's.
    pub fn start(workers: usize, frames: usize) -> OsResult<Self> {
        let size = frames * FRAME_SIZE;
        let epoll = Linux.epoll_create()?;
        let peers = (0..workers)
            .map(|index| {
                let peer = Peer::fork(Some(SEND_BUFFER_SIZE), |socket| work(socket, size))?;
                Linux.epoll_add(epoll.as_fd(), peer.socket.as_fd(), Interest::READ, index as u64)?;
                Ok(peer)
            })
            .collect::<OsResult<Vec<Peer>>>()?;
        let buffer = || vec![0; size].into_boxed_slice();
        Ok(Self { peers, epoll, sent: buffer(), received: buffer(), calls: 0 })
    }

    /// Runs `jobs` jobs of 64 bytes, with at most `window` packets on their way to and from each peer; how long it took.
    ///
    /// # Errors
    /// The kernel's; `EAGAIN` from `sendto` when the window is more than a socket holds.
    ///
    /// # Panics
    /// When an answer is wrong.
    pub fn run(&mut self, window: usize, jobs: u64) -> OsResult<Duration> {
        // Not known to the compiler, as a caller's bodies are not.
        let body = std::hint::black_box([b'a'; BODY_SIZE]);
        let mut events = EventBuffer::new(self.peers.len());
        let (mut next, mut done, mut wrong) = (0, 0, 0);
        let started_ns = Linux.now_ns();
        for _ in 0..window {
            for peer in &self.peers {
                if next < jobs {
                    let size = fill(&mut self.sent, &body, &mut next, jobs);
                    peer.send(&self.sent[..size], Wait::Never)?;
                    self.calls += 1;
                }
            }
        }
        while done < jobs {
            Linux.epoll_wait(self.epoll.as_fd(), &mut events, None)?;
            self.calls += 1;
            for (index, _) in events.iter() {
                let peer = &self.peers[index as usize];
                loop {
                    self.calls += 1;
                    let Some(size) = peer.recv(&mut self.received, Wait::Never)? else { break };
                    let (frames, wrong_here) = check(&self.received[..size]);
                    done += frames;
                    wrong += wrong_here;
                    if next < jobs {
                        let size = fill(&mut self.sent, &body, &mut next, jobs);
                        peer.send(&self.sent[..size], Wait::Never)?;
                        self.calls += 1;
                    }
                }
            }
        }
        let took = Duration::from_nanos(Linux.now_ns() - started_ns);
        assert_eq!((done, wrong), (jobs, 0), "jobs answered, and answered wrongly");
        Ok(took)
    }

    /// System calls that this process has made in all runs so far; each peer makes two for a packet.
    pub fn calls(&self) -> u64 {
        self.calls
    }
}

/// [`Packed::start`] and one [`Packed::run`], after a tenth as many jobs to warm up.
///
/// With one frame a packet it is the classical exchange: one message a system call.
///
/// # Errors
/// As those.
///
/// # Panics
/// As [`Packed::run`].
pub fn packed(workers: usize, frames: usize, window: usize, jobs: u64) -> OsResult<Duration> {
    let mut echo = Packed::start(workers, frames)?;
    echo.run(window, jobs / 10)?;
    echo.run(window, jobs)
}

/// Fills a packet with the jobs from `next` on; its size.
#[inline]
fn fill(packet: &mut [u8], body: &[u8; BODY_SIZE], next: &mut u64, jobs: u64) -> usize {
    let left = usize::try_from(jobs - *next).unwrap_or(usize::MAX);
    let (frames, _) = packet.as_chunks_mut::<FRAME_SIZE>();
    let count = frames.len().min(left);
    for frame in &mut frames[..count] {
        frame[..4].copy_from_slice(&(BODY_SIZE as u32).to_le_bytes());
        frame[4..6].copy_from_slice(&KIND_JOB.to_le_bytes());
        frame[8..16].copy_from_slice(&next.to_le_bytes());
        frame[HEADER_SIZE..].copy_from_slice(body);
        *next += 1;
    }
    count * FRAME_SIZE
}

/// The header and the body of the first frame, and what follows it; `None`: the packet is cut short.
#[inline]
fn first_frame(packet: &[u8]) -> Option<(&[u8; HEADER_SIZE], &[u8], &[u8])> {
    let (header, rest) = packet.split_first_chunk::<HEADER_SIZE>()?;
    let size = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    let (body, rest) = rest.split_at_checked(size as usize)?;
    Some((header, body, rest))
}

/// How many results a packet holds, and how many of them are wrong, judged by their kind and first byte.
#[inline]
fn check(mut packet: &[u8]) -> (u64, u64) {
    let (mut frames, mut wrong) = (0, 0);
    while let Some((header, body, rest)) = first_frame(packet) {
        let kind = u16::from_le_bytes([header[4], header[5]]);
        frames += 1;
        wrong += u64::from(kind != KIND_RESULT || body.first() != Some(&b'A'));
        packet = rest;
    }
    (frames, wrong + u64::from(!packet.is_empty()))
}

/// A peer: parses each packet's frames, answers with their bodies in upper case.
fn work(socket: &OwnedFd, size: usize) -> OsResult<()> {
    let mut jobs = vec![0; size];
    let mut results = vec![0; size];
    while let Some(size) = next_packet(socket, &mut jobs)? {
        answer(&jobs[..size], &mut results[..size]);
        send(socket, &results[..size], Wait::UntilReady)?;
    }
    Ok(())
}

#[inline]
fn answer(mut jobs: &[u8], mut results: &mut [u8]) {
    while let Some((header, body, rest)) = first_frame(jobs) {
        let (result, room) = results.split_at_mut(HEADER_SIZE + body.len());
        let (result_header, result_body) = result.split_at_mut(HEADER_SIZE);
        result_header.copy_from_slice(header);
        result_header[4..6].copy_from_slice(&KIND_RESULT.to_le_bytes());
        upper(body, result_body);
        (jobs, results) = (rest, room);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_answer_is_seen() {
        let mut packet = [0; 3 * FRAME_SIZE + 5];
        let mut next = 7;
        let size = fill(&mut packet, &[b'z'; BODY_SIZE], &mut next, 9);
        assert_eq!((size, next), (2 * FRAME_SIZE, 9), "no more than there are");
        let mut results = vec![0; size];
        answer(&packet[..size], &mut results);
        assert_eq!(check(&results), (2, 2), "Z is not A");
        let size = fill(&mut packet, &[b'a'; BODY_SIZE], &mut next, 100);
        assert_eq!((size, next), (3 * FRAME_SIZE, 12));
        let mut results = vec![0; size];
        answer(&packet[..size], &mut results);
        assert_eq!(check(&results), (3, 0));
        assert_eq!(results[FRAME_SIZE + 8..][..8], 10u64.to_le_bytes(), "the ids come back");
        assert_eq!(results[size - BODY_SIZE..], [b'A'; BODY_SIZE]);
        assert_eq!(check(&packet[..size]), (3, 3), "jobs are not results");
        assert_eq!(check(&results[..size - 1]), (2, 1), "a packet that is cut short");
    }
}
