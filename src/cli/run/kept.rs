//! The records of jobs that are not over, for what needs them afterwards: tags and the joblog.

use crate::limits::{JOBLOG_RECORD_SIZE_MAX, KEPT_RECORDS_SIZE_MAX};
use std::collections::HashMap;

/// Records by their numbers, within a bound.
pub(super) struct Kept {
    records: HashMap<u64, Record>,
    /// Whether records are kept whole: a tag has to be.
    is_whole: bool,
    size: usize,
}

/// One record.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    /// The record, or its beginning.
    pub(super) bytes: Box<[u8]>,
    /// How long the whole record is. Units: bytes.
    pub(super) size: u64,
}

impl Kept {
    pub(super) fn new(is_whole: bool) -> Self {
        Self { records: HashMap::new(), is_whole, size: 0 }
    }

    /// Whether another record may be kept.
    pub(super) fn has_room(&self) -> bool {
        self.size < KEPT_RECORDS_SIZE_MAX
    }

    pub(super) fn keep(&mut self, number: u64, record: &[u8]) {
        let shown = if self.is_whole { record } else { shown(record) };
        self.size += shown.len();
        self.records.insert(number, Record { bytes: shown.into(), size: record.len() as u64 });
    }

    /// Keeps of a record that there was one.
    pub(super) fn keep_size(&mut self, number: u64, size: u64) {
        self.records.insert(number, Record { bytes: Box::default(), size });
    }

    /// Gives a record out. One that was never kept is empty.
    pub(super) fn take(&mut self, number: u64) -> Record {
        let record = self.records.remove(&number).unwrap_or_default();
        self.size -= record.bytes.len();
        record
    }
}

/// As much of a record as a joblog shows.
pub(super) fn shown(record: &[u8]) -> &[u8] {
    &record[..record.len().min(JOBLOG_RECORD_SIZE_MAX)]
}

/// Writes a result with its record and a tab in front of each line; as one line where lines end otherwise.
pub(super) fn tag(record: &[u8], body: &[u8], terminator: u8, into: &mut Vec<u8>) {
    into.clear();
    let lines = body.split_inclusive(|byte| *byte == terminator);
    // An empty result is a line too.
    for line in lines.chain(body.is_empty().then_some(&[][..])) {
        into.extend_from_slice(record);
        into.push(b'\t');
        into.extend_from_slice(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_tagged() {
        let mut tagged = Vec::new();
        for (body, terminator, want) in [
            (&b"x"[..], b'\n', &b"r\tx"[..]),
            (b"", b'\n', b"r\t"),
            (b"x\ny\n", b'\n', b"r\tx\nr\ty\n"),
            (b"x\ny", 0, b"r\tx\ny"),
        ] {
            tag(b"r", body, terminator, &mut tagged);
            assert_eq!(tagged, want);
        }
    }

    #[test]
    fn kept_records_are_bounded_and_given_out_once() {
        let mut kept = Kept::new(true);
        kept.keep(1, &vec![b'x'; KEPT_RECORDS_SIZE_MAX]);
        assert!(!kept.has_room());
        assert_eq!(kept.take(1).size, KEPT_RECORDS_SIZE_MAX as u64);
        assert!(kept.has_room());
        assert_eq!(kept.take(1), Record::default());
        let mut kept = Kept::new(false);
        kept.keep(7, &[b'x'; 10 * JOBLOG_RECORD_SIZE_MAX]);
        let record = kept.take(7);
        assert_eq!((record.bytes.len(), record.size as usize), (JOBLOG_RECORD_SIZE_MAX, 10 * JOBLOG_RECORD_SIZE_MAX));
    }
}
