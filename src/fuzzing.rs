//! What fuzz targets reach beyond the public interface; built with `--cfg fuzzing` only.

use crate::nursery::{Command, Report};

/// A nursery's record either is refused, or says what it says in one way only: encoded again, it is the same bytes.
///
/// # Panics
/// When it is not.
pub fn nursery_records(bytes: &[u8]) {
    if let Some(command) = Command::decode(bytes) {
        assert_eq!(command.encode(), bytes, "{command:?}");
    }
    if let Some(report) = Report::decode(bytes) {
        assert_eq!(report.encode(), bytes, "{report:?}");
    }
}
