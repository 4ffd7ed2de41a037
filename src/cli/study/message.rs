//! What server and workers say to each other: frames of the pool's layout, one a packet.
//!
//! # Shape
//! A message is [`crate::frame`]'s fragments of one body, [`PART_SIZE`] bytes each: a registration ([`Kind::Hello`]), a
//! result or a job. The body of what a worker sends begins with its [`Stamps`]. Three frames are no messages and take no
//! time: the server's go-ahead (a hello without a body, whose id is the time), a worker's for a part of its job (the same,
//! without a time), and that there is no job (a job without a body).

use crate::frame::{self, FLAG_FRAGMENT, FrameError, Frames, Header, Kind, frame_size};
use crate::limits::{FRAGMENT_PREFIX_SIZE, FRAME_HEADER_SIZE};
use crate::sys::OsError;
use std::fmt;

/// Bytes of a message's part. One such packet fills a send buffer of [`SEND_BUFFER_SIZE`], so that the next waits until
/// the peer has taken it; and the kernel's least send buffer (4,608 bytes) is enough for it.
pub(super) const PART_SIZE: usize = 4096;
/// What is asked for, to be given the least that there is. Units: bytes.
pub(super) const SEND_BUFFER_SIZE: usize = 1;
const BODY_SIZE: usize = FRAGMENT_PREFIX_SIZE + PART_SIZE;
/// Bytes of the largest packet.
pub(super) const PACKET_SIZE: usize = frame_size(BODY_SIZE);
/// Bytes of a frame without a body.
pub(super) const BARE_SIZE: usize = FRAME_HEADER_SIZE;

/// What a worker says with its message. Units: nanoseconds of the monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stamps {
    pub(super) worker: u16,
    /// When it began and ended computing; 0 in a registration.
    pub(super) started_ns: u64,
    pub(super) ended_ns: u64,
}

impl Stamps {
    const SIZE: usize = 24;

    fn encode(&self, out: &mut [u8]) {
        let words = [u64::from(self.worker), self.started_ns, self.ended_ns];
        for (room, word) in out.chunks_exact_mut(8).zip(words) {
            room.copy_from_slice(&word.to_le_bytes());
        }
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (words, _) = bytes.get(..Self::SIZE)?.as_chunks::<8>();
        let [worker, started_ns, ended_ns] = [words[0], words[1], words[2]].map(u64::from_le_bytes);
        Some(Self { worker: u16::try_from(worker).ok()?, started_ns, ended_ns })
    }
}

/// Why an exchange cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    Os(OsError),
    Frame(FrameError),
    /// Against the rules; what it was.
    Rule(&'static str),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::Os(error) => error.fmt(f),
            Broken::Frame(error) => error.fmt(f),
            Broken::Rule(what) => f.write_str(what),
        }
    }
}

impl From<OsError> for Broken {
    fn from(error: OsError) -> Self {
        Broken::Os(error)
    }
}

impl From<FrameError> for Broken {
    fn from(error: FrameError) -> Self {
        Broken::Frame(error)
    }
}

/// One packet, understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// Part `part` of a message; with a worker's first come its stamps.
    Part {
        kind: Kind,
        id: u64,
        part: u32,
        stamps: Option<Stamps>,
    },
    /// The server has begun to serve this connection, or awaits its next part, since then. A worker's: it is ready for the
    /// next part of its job.
    Go {
        at_ns: u64,
    },
    NoJob,
}

/// Understands a packet, whose message would have `parts` parts.
pub(super) fn parse(packet: &[u8], parts: u32) -> Result<Said, Broken> {
    let mut frames = Frames::new(packet);
    let frame = frames.next().ok_or(Broken::Rule("an empty packet"))??;
    if frames.next().is_some() {
        return Err(Broken::Rule("more than one frame in a packet"));
    }
    let Header { kind, flags, id, .. } = frame.header;
    if flags & FLAG_FRAGMENT == 0 {
        return match kind {
            Kind::Hello => Ok(Said::Go { at_ns: id }),
            Kind::Job => Ok(Said::NoJob),
            Kind::Result => Err(Broken::Rule("a result that is no fragment")),
        };
    }
    let fragment = frame.fragment()?;
    if fragment.total != total(parts) || fragment.part.len() != PART_SIZE || fragment.offset % PART_SIZE as u64 != 0 {
        return Err(Broken::Rule("a part of another message"));
    }
    let part = (fragment.offset / PART_SIZE as u64) as u32;
    let stamps = if part == 0 && kind != Kind::Job { Stamps::decode(fragment.part) } else { None };
    Ok(Said::Part { kind, id, part, stamps })
}

fn total(parts: u32) -> u64 {
    u64::from(parts) * PART_SIZE as u64
}

/// Writes packets, in memory of its own.
pub(super) struct Composer {
    parts: u32,
    body: Box<[u8]>,
    packet: Box<[u8]>,
}

impl Composer {
    pub(super) fn new(parts: u32) -> Self {
        Self { parts, body: vec![0; BODY_SIZE].into(), packet: vec![0; PACKET_SIZE].into() }
    }

    /// A part of a message; `stamps` is a worker's.
    pub(super) fn part(&mut self, kind: Kind, id: u64, part: u32, stamps: Option<&Stamps>) -> &[u8] {
        let offset = u64::from(part) * PART_SIZE as u64;
        let (prefix, content) = self.body.split_at_mut(FRAGMENT_PREFIX_SIZE);
        prefix.copy_from_slice(&frame::fragment_prefix(total(self.parts), offset));
        match stamps {
            Some(stamps) => stamps.encode(&mut content[..Stamps::SIZE]),
            None => content[..Stamps::SIZE].fill(0),
        }
        frame::encode(&mut self.packet, header(kind, FLAG_FRAGMENT, id), &[], &self.body);
        &self.packet
    }
}

/// The go-ahead.
pub(super) fn go(at_ns: u64) -> [u8; BARE_SIZE] {
    header(Kind::Hello, 0, at_ns).encode()
}

/// A worker's go-ahead.
pub(super) fn ask() -> [u8; BARE_SIZE] {
    go(0)
}

/// That there is no job.
pub(super) fn no_job() -> [u8; BARE_SIZE] {
    header(Kind::Job, 0, 0).encode()
}

fn header(kind: Kind, flags: u8, id: u64) -> Header {
    Header { payload_size: 0, header_block_size: 0, kind, flags, id, code: 0, extra: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{Linux, Received, Sent, Sys, Wait};
    use std::io::{IoSlice, IoSliceMut};
    use std::os::fd::AsFd;

    #[test]
    fn what_is_said_is_understood() {
        let mut composer = Composer::new(3);
        let stamps = Stamps { worker: 64, started_ns: 5, ended_ns: u64::MAX };
        let said = parse(composer.part(Kind::Result, 7, 0, Some(&stamps)), 3);
        assert_eq!(said, Ok(Said::Part { kind: Kind::Result, id: 7, part: 0, stamps: Some(stamps) }));
        let said = parse(composer.part(Kind::Job, 8, 2, None), 3);
        assert_eq!(said, Ok(Said::Part { kind: Kind::Job, id: 8, part: 2, stamps: None }));
        assert_eq!(parse(&go(123), 3), Ok(Said::Go { at_ns: 123 }));
        assert_eq!(parse(&no_job(), 3), Ok(Said::NoJob));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let mut composer = Composer::new(3);
        let packet = composer.part(Kind::Job, 8, 2, None).to_vec();
        assert_eq!(parse(&packet, 2), Err(Broken::Rule("a part of another message")));
        assert_eq!(parse(&packet[..100], 3), Err(Broken::Frame(FrameError::PayloadBeyondPacket)));
        let two = [no_job(), no_job()].concat();
        assert_eq!(parse(&two, 3), Err(Broken::Rule("more than one frame in a packet")));
        assert_eq!(parse(&[], 3), Err(Broken::Rule("an empty packet")));
    }

    /// What a slow peer rests on.
    #[test]
    fn one_part_fills_the_least_send_buffer() {
        let (ours, theirs) = Linux.socketpair().unwrap();
        Linux.set_send_buffer(ours.as_fd(), SEND_BUFFER_SIZE).unwrap();
        let mut composer = Composer::new(3);
        let mut room = vec![0; PACKET_SIZE];
        for part in 0..3 {
            let packet = composer.part(Kind::Job, 0, part, None);
            let send = || Linux.send(ours.as_fd(), &[IoSlice::new(packet)], Wait::Never).unwrap();
            assert_eq!((send(), send()), (Sent::All, Sent::WouldBlock), "part {part}");
            let received = Linux.recv(theirs.as_fd(), &mut [IoSliceMut::new(&mut room)], Wait::Never).unwrap();
            assert_eq!(received, Received::Packet(PACKET_SIZE));
        }
    }
}
