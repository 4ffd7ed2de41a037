//! The frame: one layout for jobs, results and control. A codec without I/O.
//!
//! # Shape
//! Little-endian, a multiple of 8 bytes:
//!
//! | bytes | field |
//! |---|---|
//! | 0..4 | payload size: header block and body, without padding |
//! | 4..6 | size of the header block |
//! | 6 | kind |
//! | 7 | flags |
//! | 8..16 | id; on a slot's socket `epoch << 32 \| seq` |
//! | 16..20 | code: a job's handler, a result's status |
//! | 20..24 | extra: a result's run time in nanoseconds, saturating; a job's order to come to grief, else 0 |
//! | 24.. | header block (`key:value\n` lines), then body, then padding to a multiple of 8 |
//!
//! A packet holds whole frames, back to back, and nothing else. Decoding borrows: no byte is copied.
//!
//! A body too large for one packet travels as *fragments*: frames of one id with [`FLAG_FRAGMENT`], whose body begins
//! with the total size (u64) and this part's offset (u64). The header block travels in the first.

use crate::limits::{FRAGMENT_PREFIX_SIZE, FRAME_ALIGN, FRAME_HEADER_SIZE};
use memchr::memchr;
use std::fmt;

/// The frame is one part of a larger body.
pub const FLAG_FRAGMENT: u8 = 1;
/// On a job: the worker is to say when it started and ended. On a result: the body begins with both times.
pub const FLAG_TIMED: u8 = 2;
/// On a job, with [`FLAG_TIMED`]: the worker is to say also what it used. On a result: the body begins with all of
/// [`Metering`].
pub const FLAG_METERED: u8 = 4;
/// On the result of a job that is not done: the body begins, after the times and the rest, with the end of what the job has
/// printed.
pub const FLAG_PRINTED: u8 = 8;
const FLAGS_KNOWN: u8 = FLAG_FRAGMENT | FLAG_TIMED | FLAG_METERED | FLAG_PRINTED;

/// Bytes before the body of a result with these flags.
#[inline]
pub const fn result_prefix_size(flags: u8) -> usize {
    match flags & (FLAG_TIMED | FLAG_METERED) {
        0 => 0,
        FLAG_TIMED => RESULT_TIMES_SIZE,
        _ => RESULT_PREFIX_SIZE_MAX,
    }
}

/// Start and end, u64 nanoseconds each.
pub const RESULT_TIMES_SIZE: usize = 16;
/// The most that stands before a result's body: nine u64.
pub const RESULT_PREFIX_SIZE_MAX: usize = 72;

/// What a result says of its job, before its body: u64 words in this order, the first two with [`FLAG_TIMED`], all with
/// [`FLAG_METERED`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metering {
    /// When the handler started. Units: nanoseconds of the monotonic clock.
    pub start_ns: u64,
    /// When it returned.
    pub end_ns: u64,
    /// CPU time in user mode.
    pub user_us: u64,
    /// CPU time in the kernel.
    pub system_us: u64,
    /// The worker's largest resident size so far.
    pub resident_max_kib: u64,
    /// Page faults served without reading.
    pub minor_faults: u64,
    /// Page faults that had to read.
    pub major_faults: u64,
    /// Times that the worker waited.
    pub voluntary_switches: u64,
    /// Times that it lost the core.
    pub involuntary_switches: u64,
}

impl Metering {
    /// As bytes; a result carries as many as its flags say.
    pub fn encode(&self) -> [u8; RESULT_PREFIX_SIZE_MAX] {
        let words = [
            self.start_ns,
            self.end_ns,
            self.user_us,
            self.system_us,
            self.resident_max_kib,
            self.minor_faults,
            self.major_faults,
            self.voluntary_switches,
            self.involuntary_switches,
        ];
        let mut bytes = [0; RESULT_PREFIX_SIZE_MAX];
        for (room, word) in bytes.chunks_exact_mut(8).zip(words) {
            room.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Reads what stands before a result's body; what is not there is 0.
    pub fn decode(prefix: &[u8]) -> Self {
        let word = |i: usize| {
            prefix.get(i * 8..i * 8 + 8).map_or(0, |b| b.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)))
        };
        Self {
            start_ns: word(0),
            end_ns: word(1),
            user_us: word(2),
            system_us: word(3),
            resident_max_kib: word(4),
            minor_faults: word(5),
            major_faults: word(6),
            voluntary_switches: word(7),
            involuntary_switches: word(8),
        }
    }
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Work for a worker.
    Job = 1,
    /// What became of it.
    Result = 2,
    /// A worker is ready; its body is empty.
    Hello = 3,
}

/// A result's status, as its frame's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// The body is the handler's reply.
    Done = 0,
    /// The handler returned an error; the body is its message.
    Failed = 1,
    /// The handler panicked; the body is the panic's message.
    Panicked = 2,
    /// The worker has no such handler.
    UnknownHandler = 3,
    /// The reply was larger than the limit; the body is its size (u64).
    ReplyTooLarge = 4,
}

impl Status {
    /// The status with this code.
    pub fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => Status::Done,
            1 => Status::Failed,
            2 => Status::Panicked,
            3 => Status::UnknownHandler,
            4 => Status::ReplyTooLarge,
            _ => return None,
        })
    }
}

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// Fewer bytes than a header.
    ShortHeader,
    /// The payload, padded, goes beyond the packet.
    PayloadBeyondPacket,
    /// The header block is larger than the payload, or not made of `key:value\n` lines.
    BadHeaderBlock,
    /// No such kind.
    UnknownKind(u8),
    /// A flag that is not known.
    UnknownFlags(u8),
    /// The padding is not zero.
    DirtyPadding,
    /// A fragment without its prefix, or whose part lies outside its total.
    BadFragment,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameError::ShortHeader => f.write_str("fewer bytes than a frame header"),
            FrameError::PayloadBeyondPacket => f.write_str("payload goes beyond the packet"),
            FrameError::BadHeaderBlock => f.write_str("malformed header block"),
            FrameError::UnknownKind(k) => write!(f, "unknown frame kind {k}"),
            FrameError::UnknownFlags(k) => write!(f, "unknown frame flags {k:#04x}"),
            FrameError::DirtyPadding => f.write_str("padding is not zero"),
            FrameError::BadFragment => f.write_str("malformed fragment"),
        }
    }
}

impl std::error::Error for FrameError {}

/// A frame's fixed part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Header block and body. Units: bytes.
    pub payload_size: u32,
    /// Header block alone. Units: bytes.
    pub header_block_size: u16,
    /// What the frame is.
    pub kind: Kind,
    /// [`FLAG_FRAGMENT`], [`FLAG_TIMED`], [`FLAG_METERED`], [`FLAG_PRINTED`].
    pub flags: u8,
    /// Which job.
    pub id: u64,
    /// A job's handler, a result's [`Status`].
    pub code: u32,
    /// A result's run time in nanoseconds, saturating; a job's [`Fate`](crate::Fate) as a number, else 0.
    pub extra: u32,
}

impl Header {
    /// The header as bytes.
    #[inline]
    pub fn encode(&self) -> [u8; FRAME_HEADER_SIZE] {
        // Three whole words, put together in registers: byte by byte, each field would wait for the store before it.
        let first = u64::from(self.payload_size)
            | u64::from(self.header_block_size) << 32
            | (self.kind as u64) << 48
            | u64::from(self.flags) << 56;
        let last = u64::from(self.code) | u64::from(self.extra) << 32;
        let mut out = [0; FRAME_HEADER_SIZE];
        out[0..8].copy_from_slice(&first.to_le_bytes());
        out[8..16].copy_from_slice(&self.id.to_le_bytes());
        out[16..24].copy_from_slice(&last.to_le_bytes());
        out
    }

    /// Reads a header; checks all of it that can be checked without the packet around it.
    ///
    /// # Errors
    /// [`FrameError`] says what is wrong.
    #[inline]
    pub fn decode(bytes: &[u8; FRAME_HEADER_SIZE]) -> Result<Self, FrameError> {
        let [a0, a1, a2, a3, a4, a5, a6, a7, i0, i1, i2, i3, i4, i5, i6, i7, c0, c1, c2, c3, c4, c5, c6, c7] = *bytes;
        let first = u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]);
        let id = u64::from_le_bytes([i0, i1, i2, i3, i4, i5, i6, i7]);
        let last = u64::from_le_bytes([c0, c1, c2, c3, c4, c5, c6, c7]);
        let kind = match (first >> 48) as u8 {
            1 => Kind::Job,
            2 => Kind::Result,
            3 => Kind::Hello,
            other => return Err(FrameError::UnknownKind(other)),
        };
        let flags = (first >> 56) as u8;
        if flags & !FLAGS_KNOWN != 0 {
            return Err(FrameError::UnknownFlags(flags));
        }
        let (payload_size, header_block_size) = (first as u32, (first >> 32) as u16);
        if u32::from(header_block_size) > payload_size {
            return Err(FrameError::BadHeaderBlock);
        }
        let (code, extra) = (last as u32, (last >> 32) as u32);
        Ok(Self { payload_size, header_block_size, kind, flags, id, code, extra })
    }
}

/// Bytes of a frame with this payload, padding included.
#[inline]
pub const fn frame_size(payload_size: usize) -> usize {
    (FRAME_HEADER_SIZE + payload_size).next_multiple_of(FRAME_ALIGN)
}

/// Writes a frame into `out`, which is exactly [`frame_size`] bytes. Sizes are taken from the parts.
///
/// # Panics
/// When `out` has another size.
// Always: its header is then put together from what the caller has in registers.
#[inline(always)]
pub fn encode(out: &mut [u8], mut header: Header, header_block: &[u8], body: &[u8]) {
    let payload_size = header_block.len() + body.len();
    assert_eq!(out.len(), frame_size(payload_size), "room for exactly this frame");
    header.payload_size = payload_size as u32;
    header.header_block_size = header_block.len() as u16;
    let (head, rest) = out.split_at_mut(FRAME_HEADER_SIZE);
    head.copy_from_slice(&header.encode());
    if !header_block.is_empty() {
        rest[..header_block.len()].copy_from_slice(header_block);
    }
    let (body_room, padding) = rest[header_block.len()..].split_at_mut(body.len());
    body_room.copy_from_slice(body);
    if !padding.is_empty() {
        padding.fill(0);
    }
}

/// Writes another id into an encoded frame.
///
/// # Panics
/// When `frame` is shorter than a header.
#[inline]
pub fn set_id(frame: &mut [u8], id: u64) {
    frame[8..16].copy_from_slice(&id.to_le_bytes());
}

/// One decoded frame; borrows the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The fixed part.
    pub header: Header,
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The body, after the header block. A fragment's begins with its prefix.
    #[inline]
    pub fn body(&self) -> &'a [u8] {
        &self.payload[usize::from(self.header.header_block_size)..]
    }

    /// The header block.
    #[inline]
    pub fn headers(&self) -> Headers<'a> {
        Headers { block: &self.payload[..usize::from(self.header.header_block_size)] }
    }

    /// The fragment's total size, offset and bytes.
    ///
    /// # Errors
    /// [`FrameError::BadFragment`] when the prefix is missing or the part lies outside the total.
    pub fn fragment(&self) -> Result<Fragment<'a>, FrameError> {
        let (prefix, part) = self.body().split_first_chunk::<FRAGMENT_PREFIX_SIZE>().ok_or(FrameError::BadFragment)?;
        let [t0, t1, t2, t3, t4, t5, t6, t7, o0, o1, o2, o3, o4, o5, o6, o7] = *prefix;
        let total = u64::from_le_bytes([t0, t1, t2, t3, t4, t5, t6, t7]);
        let offset = u64::from_le_bytes([o0, o1, o2, o3, o4, o5, o6, o7]);
        match offset.checked_add(part.len() as u64) {
            Some(end) if end <= total && !part.is_empty() => Ok(Fragment { total, offset, part }),
            _ => Err(FrameError::BadFragment),
        }
    }
}

/// One part of a large body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment<'a> {
    /// Size of the whole body.
    pub total: u64,
    /// Where this part begins.
    pub offset: u64,
    /// The part.
    pub part: &'a [u8],
}

/// The prefix of a fragment's body.
pub fn fragment_prefix(total: u64, offset: u64) -> [u8; FRAGMENT_PREFIX_SIZE] {
    let mut out = [0; FRAGMENT_PREFIX_SIZE];
    out[..8].copy_from_slice(&total.to_le_bytes());
    out[8..].copy_from_slice(&offset.to_le_bytes());
    out
}

/// Appends what a job has printed, as it stands in a body: the number of bytes that were cut and of those that follow, u64
/// each, then these.
pub fn push_printed(into: &mut Vec<u8>, cut: u64, bytes: &[u8]) {
    into.extend_from_slice(&cut.to_le_bytes());
    into.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    into.extend_from_slice(bytes);
}

/// Takes from a body what [`push_printed`] has put there: the number of bytes cut, the bytes, and the rest of the body.
/// `None`: they are not all there.
pub fn split_printed(body: &[u8]) -> Option<(u64, &[u8], &[u8])> {
    let number = |bytes: &[u8; 8]| u64::from_le_bytes(*bytes);
    let (cut, body) = body.split_first_chunk()?;
    let (size, body) = body.split_first_chunk()?;
    let (bytes, rest) = body.split_at_checked(usize::try_from(number(size)).ok()?)?;
    Some((number(cut), bytes, rest))
}

/// The frames of one packet. After an error it ends.
#[derive(Clone, Debug)]
pub struct Frames<'a> {
    rest: &'a [u8],
    failed: bool,
}

impl<'a> Frames<'a> {
    /// The frames of `packet`.
    #[inline]
    pub fn new(packet: &'a [u8]) -> Self {
        Self { rest: packet, failed: false }
    }

    /// Bytes not decoded yet.
    #[inline]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    #[inline]
    fn decode_next(&mut self) -> Result<Frame<'a>, FrameError> {
        let (head, rest) = self.rest.split_first_chunk::<FRAME_HEADER_SIZE>().ok_or(FrameError::ShortHeader)?;
        let header = Header::decode(head)?;
        let size = header.payload_size as usize;
        // In u64, so that no size overflows on any target.
        let padded = frame_size_u64(header.payload_size) - FRAME_HEADER_SIZE as u64;
        if padded > rest.len() as u64 {
            return Err(FrameError::PayloadBeyondPacket);
        }
        let (payload, after) = rest.split_at(padded as usize);
        let (payload, padding) = payload.split_at(size);
        if padding.iter().any(|&b| b != 0) {
            return Err(FrameError::DirtyPadding);
        }
        self.rest = after;
        Ok(Frame { header, payload })
    }
}

const fn frame_size_u64(payload_size: u32) -> u64 {
    (FRAME_HEADER_SIZE as u64 + payload_size as u64).next_multiple_of(FRAME_ALIGN as u64)
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, FrameError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.rest.is_empty() {
            return None;
        }
        let frame = self.decode_next();
        self.failed = frame.is_err();
        Some(frame)
    }
}

/// A header block: `key:value\n` lines, scanned only when asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers<'a> {
    block: &'a [u8],
}

impl<'a> Headers<'a> {
    /// A block as it stands in a frame.
    pub fn from_block(block: &'a [u8]) -> Self {
        Self { block }
    }

    /// The block as it stands in a frame.
    pub fn as_block(&self) -> &'a [u8] {
        self.block
    }

    /// The first value of `key`.
    pub fn get(&self, key: &str) -> Option<&'a [u8]> {
        self.iter().find(|(k, _)| *k == key.as_bytes()).map(|(_, v)| v)
    }

    /// All lines in order. A line without a colon is a key with an empty value.
    pub fn iter(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let mut rest = self.block;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let end = memchr(b'\n', rest).unwrap_or(rest.len());
            let line = &rest[..end];
            rest = rest.get(end + 1..).unwrap_or_default();
            Some(match memchr(b':', line) {
                Some(colon) => (&line[..colon], &line[colon + 1..]),
                None => (line, &[][..]),
            })
        })
    }
}

/// Appends one line to a header block under construction.
///
/// # Errors
/// [`FrameError::BadHeaderBlock`] when the key is empty, or the line could not be read back.
pub fn push_header(block: &mut Vec<u8>, key: &[u8], value: &[u8]) -> Result<(), FrameError> {
    if key.is_empty() || key.iter().any(|b| matches!(b, b':' | b'\n')) || memchr(b'\n', value).is_some() {
        return Err(FrameError::BadHeaderBlock);
    }
    block.extend_from_slice(key);
    block.push(b':');
    block.extend_from_slice(value);
    block.push(b'\n');
    Ok(())
}

#[cfg(all(test, not(seqpool_loom)))]
mod tests;
