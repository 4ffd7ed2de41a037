//! A reply under construction: written in place into the out-ring, or, once it outgrows a packet, beside it.

use std::io;

/// Where a handler writes its result.
///
/// Bytes go straight into the worker's out-ring. A reply larger than a packet is moved into memory of the worker's own
/// and sent in fragments.
#[derive(Debug)]
pub struct Reply<'a> {
    room: &'a mut [u8],
    len: usize,
    spill: &'a mut Vec<u8>,
}

/// Where a finished reply lies. Units: bytes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Spilled {
    InPlace(usize),
    Outside(usize),
}

impl Spilled {
    pub(super) fn size(self) -> usize {
        match self {
            Spilled::InPlace(n) | Spilled::Outside(n) => n,
        }
    }
}

impl<'a> Reply<'a> {
    #[inline]
    pub(super) fn new(room: &'a mut [u8], spill: &'a mut Vec<u8>) -> Self {
        debug_assert!(spill.is_empty());
        Self { room, len: 0, spill }
    }

    /// Appends bytes.
    #[inline]
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        if self.spill.is_empty() && end <= self.room.len() {
            self.room[self.len..end].copy_from_slice(bytes);
        } else {
            self.spill_over(bytes);
        }
        self.len = end;
    }

    /// Appends `len` bytes for the caller to fill; they hold anything at first.
    #[inline]
    pub fn extend_by(&mut self, len: usize) -> &mut [u8] {
        let start = self.len;
        let end = start + len;
        self.len = end;
        if self.spill.is_empty() && end <= self.room.len() {
            return &mut self.room[start..end];
        }
        if self.spill.is_empty() {
            self.spill.extend_from_slice(&self.room[..start]);
        }
        self.spill.resize(end, 0);
        &mut self.spill[start..]
    }

    #[cold]
    fn spill_over(&mut self, bytes: &[u8]) {
        if self.spill.is_empty() {
            self.spill.extend_from_slice(&self.room[..self.len]);
        }
        self.spill.extend_from_slice(bytes);
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing has been written.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes everything back.
    pub fn clear(&mut self) {
        self.len = 0;
        self.spill.clear();
    }

    #[inline]
    pub(super) fn finish(self) -> Spilled {
        if self.spill.is_empty() { Spilled::InPlace(self.len) } else { Spilled::Outside(self.len) }
    }
}

impl io::Write for Reply<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
