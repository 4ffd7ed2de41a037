//! A reply under construction: written in place into the out-ring, or, once it outgrows a packet, beside it.

use std::io;
use std::ops::{Range, RangeBounds};

/// Where a handler writes its result.
///
/// Bytes go straight into the worker's out-ring. A reply larger than a packet is moved into memory of the worker's own
/// and sent in fragments; one that is [forwarded](Reply::forward) is sent from where it lies.
#[derive(Debug)]
pub struct Reply<'a> {
    room: &'a mut [u8],
    len: usize,
    spill: &'a mut Vec<u8>,
    /// The job's body.
    body: &'a [u8],
    /// The part of it that is the whole reply so far, larger than the room.
    forwarded: Option<Range<usize>>,
}

/// Where a finished reply lies. Units: bytes.
#[derive(Clone, Debug)]
pub(super) enum Spilled {
    InPlace(usize),
    Outside(usize),
    /// In the job's body.
    Forwarded(Range<usize>),
}

impl Spilled {
    pub(super) fn size(&self) -> usize {
        match self {
            Spilled::InPlace(n) | Spilled::Outside(n) => *n,
            Spilled::Forwarded(range) => range.len(),
        }
    }
}

impl<'a> Reply<'a> {
    #[inline]
    pub(super) fn new(room: &'a mut [u8], spill: &'a mut Vec<u8>, body: &'a [u8]) -> Self {
        debug_assert!(spill.is_empty());
        Self { room, len: 0, spill, body, forwarded: None }
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
        self.move_out(start);
        self.spill.resize(end, 0);
        &mut self.spill[start..]
    }

    /// Appends a part of the job's body. A reply that is nothing else and fits no packet is never copied: it is sent from
    /// where the job lies.
    ///
    /// # Panics
    /// When the range reaches beyond the body.
    ///
    /// ```
    /// # fn main() -> Result<(), seqpool::Error> {
    /// let mut pool = seqpool::Pool::builder()
    ///     .handler("without_first_byte", |_request, reply| {
    ///         reply.forward(1..);
    ///         Ok(())
    ///     })
    ///     .spawn()?;
    /// let outcome = pool.map("without_first_byte", [vec![b'x'; 1 << 20]]).next();
    /// assert_eq!(outcome.and_then(|outcome| outcome.done()).map(|body| body.len()), Some((1 << 20) - 1));
    /// # Ok(())
    /// # }
    /// ```
    #[inline]
    pub fn forward(&mut self, range: impl RangeBounds<usize>) {
        let range = (range.start_bound().cloned(), range.end_bound().cloned());
        let part = &self.body[range];
        if self.len == 0 && part.len() > self.room.len() {
            let start = part.as_ptr().addr() - self.body.as_ptr().addr();
            self.forwarded = Some(start..start + part.len());
            self.len = part.len();
        } else {
            self.extend_from_slice(part);
        }
    }

    #[cold]
    fn spill_over(&mut self, bytes: &[u8]) {
        self.move_out(self.len);
        self.spill.extend_from_slice(bytes);
    }

    /// Moves what is there, `len` bytes, to memory of its own, if it is not there yet.
    fn move_out(&mut self, len: usize) {
        if let Some(range) = self.forwarded.take() {
            self.spill.extend_from_slice(&self.body[range]);
        } else if self.spill.is_empty() {
            self.spill.extend_from_slice(&self.room[..len]);
        }
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
        self.forwarded = None;
    }

    #[inline]
    pub(super) fn finish(self) -> Spilled {
        match self.forwarded {
            Some(range) => Spilled::Forwarded(range),
            None if self.spill.is_empty() => Spilled::InPlace(self.len),
            None => Spilled::Outside(self.len),
        }
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

#[cfg(all(test, not(seqpool_loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Extend(Vec<u8>),
        By(usize, u8),
        Forward(usize, usize),
        Clear,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..40).prop_map(Step::Extend),
            (0usize..40, any::<u8>()).prop_map(|(n, byte)| Step::By(n, byte)),
            (0usize..=60, 0usize..=60).prop_map(|(a, b)| Step::Forward(a.min(b), a.max(b))),
            Just(Step::Clear),
        ]
    }

    proptest! {
        /// However a reply is put together, it is what a plain vector would be.
        #[test]
        fn a_reply_is_what_was_appended(steps in proptest::collection::vec(step(), 0..8), room in 0usize..64) {
            let body: Vec<u8> = (0..60).map(|i| 100 + i).collect();
            let (mut room, mut spill, mut expected) = (vec![0; room], Vec::new(), Vec::new());
            let mut reply = Reply::new(&mut room, &mut spill, &body);
            for step in steps {
                match step {
                    Step::Extend(bytes) => {
                        reply.extend_from_slice(&bytes);
                        expected.extend_from_slice(&bytes);
                    }
                    Step::By(n, byte) => {
                        reply.extend_by(n).fill(byte);
                        expected.resize(expected.len() + n, byte);
                    }
                    Step::Forward(start, end) => {
                        reply.forward(start..end);
                        expected.extend_from_slice(&body[start..end]);
                    }
                    Step::Clear => {
                        reply.clear();
                        expected.clear();
                    }
                }
                prop_assert_eq!(reply.len(), expected.len());
            }
            let spilled = reply.finish();
            prop_assert_eq!(spilled.size(), expected.len());
            let got = match spilled {
                Spilled::InPlace(n) => &room[..n],
                Spilled::Outside(_) => &spill[..],
                Spilled::Forwarded(range) => &body[range],
            };
            prop_assert_eq!(got, &expected[..]);
        }
    }

    #[test]
    fn only_what_is_too_large_is_sent_from_where_it_lies() {
        let body = [7; 64];
        let (mut room, mut spill) = ([0; 32], Vec::new());
        let mut reply = Reply::new(&mut room, &mut spill, &body);
        reply.forward(..32);
        assert!(matches!(reply.finish(), Spilled::InPlace(32)));
        let mut reply = Reply::new(&mut room, &mut spill, &body);
        reply.forward(4..=60);
        assert!(matches!(reply.finish(), Spilled::Forwarded(range) if range == (4..61)));
    }
}
