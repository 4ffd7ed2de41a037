//! Progress on standard error: a bar on a terminal, else a line at the start.

use crate::cli::report::{measuring_bar, print_lines};
use indicatif::ProgressBar;

/// Drawn only when told to: a ticking thread would forbid the forks.
pub(super) struct Progress(Option<ProgressBar>);

impl Progress {
    /// `line` says what begins, where there is no bar.
    pub(super) fn new(steps: u64, line: &str) -> Self {
        let bar = measuring_bar(steps);
        if bar.is_none() {
            print_lines(line);
        }
        Self(bar)
    }

    /// What goes on.
    pub(super) fn say(&self, message: impl FnOnce() -> String) {
        if let Some(bar) = &self.0 {
            bar.set_message(message());
            bar.tick();
        }
    }

    pub(super) fn step(&self) {
        if let Some(bar) = &self.0 {
            bar.inc(1);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
