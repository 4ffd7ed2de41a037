//! The worker's side of captured output: where each job's begins, what travels with a failure, what is shown.

use crate::frame;
use crate::limits::PRINT_FILE_SIZE_MAX;
use crate::prints::{PrintFile, Prints, UNKNOWN};
use crate::slot::Control;
use crate::sys::{self, OsResult};
use std::os::fd::{AsFd, OwnedFd};

pub(super) struct Capture {
    file: PrintFile,
    size_max: usize,
    /// Standard error as it was during set-up, if what is captured is shown there too.
    screen: Option<OwnedFd>,
    /// Where the output of the job in hand begins.
    began: u64,
    /// Everything before this has been shown.
    shown: u64,
    /// The end when memory was last given back.
    freed: u64,
}

impl Capture {
    /// From now on everything that this process prints, and what it starts, is captured. At most `room` bytes can travel
    /// with a result.
    pub(super) fn start(file: OwnedFd, prints: Prints, room: usize) -> OsResult<Self> {
        sys::flush_stdio();
        let screen =
            if prints.is_shown() && sys::has_stderr() { Some(sys::duplicate(sys::standard_error())?) } else { None };
        for number in [1, 2] {
            sys::replace_fd(file.as_fd(), number)?;
        }
        // What a program at a terminal has printed when it crashes is there, and here too.
        sys::line_buffer_c_stdout();
        let size_max = prints.size_max().min(room);
        Ok(Self { file: PrintFile::reopen(file), size_max, screen, began: 0, shown: 0, freed: 0 })
    }

    /// Jobs have come: what was printed since the last one is nobody's.
    pub(super) fn arrive(&mut self, control: &Control) {
        self.begin(self.file.end(), control);
    }

    fn begin(&mut self, offset: Option<u64>, control: &Control) {
        let offset = offset.unwrap_or(UNKNOWN);
        if offset != self.began {
            self.began = offset;
            control.set_print_began(offset);
        }
    }

    /// A job is over, its result not published. Shows what it has printed, and puts it into `attached` if it has failed.
    /// Returns where the next one's output begins, if the kernel says.
    pub(super) fn collect(&mut self, has_failed: bool, attached: &mut Vec<u8>, control: &Control) -> Option<u64> {
        sys::flush_rust_stdout();
        let end = self.file.end()?;
        if end == self.began && end == self.shown {
            return Some(end);
        }
        if let Some(screen) = &self.screen {
            if let Some(printed) = self.file.tail(self.shown, end, self.size_max) {
                printed.show(screen.as_fd(), None);
            }
            control.set_print_shown(end);
        }
        self.shown = end;
        if has_failed && let Some(printed) = self.file.tail(self.began, end, self.size_max) {
            frame::push_printed(attached, printed.cut, &printed.bytes);
        }
        if end < self.freed || end - self.freed > PRINT_FILE_SIZE_MAX as u64 {
            self.file.free(0);
            self.freed = end;
        }
        Some(end)
    }

    /// The result is published: the next job's output begins here.
    pub(super) fn pass(&mut self, end: Option<u64>, control: &Control) {
        self.begin(end.or_else(|| self.file.end()), control);
    }
}
