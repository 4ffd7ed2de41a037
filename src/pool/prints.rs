//! What workers print, as the host deals with it: bounded while they live, read when they are dead.

use super::engine::{Alarm, Engine};
use crate::limits::{PRINT_SAMPLE, SLEEP_MAX};
use crate::nursery::Command;
use crate::prints::{PrintFile, Printed};
use crate::sys::{self, OsResult, Sys};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

impl<S: Sys> Engine<S> {
    /// The file that a slot's new worker is to print into, if what it prints is captured: ours, and the worker's.
    ///
    /// A new one each time: what an earlier worker left behind may still be printing.
    pub(super) fn new_print_file(&self) -> OsResult<Option<(PrintFile, OwnedFd)>> {
        if !self.config.prints.is_captured() {
            return Ok(None);
        }
        let file = PrintFile::create()?;
        let theirs = sys::duplicate(file.as_fd())?;
        Ok(Some((file, theirs)))
    }

    /// What the job in hand of a worker that has ended has printed, if `is_wanted`. Shows what is to be shown and was not.
    /// The slot's claim has been taken back.
    pub(super) fn take_printed(&mut self, slot: usize, is_wanted: bool) -> Option<Printed<Vec<u8>>> {
        let s = &mut self.slots[slot];
        let file = s.prints.take()?;
        let (began, shown) = s.memory.control().printing();
        let (end, prints) = (file.size()?, self.config.prints);
        if prints.is_shown()
            && let Some(printed) = file.tail(shown, end, prints.size_max())
        {
            // What cannot be taken at once is left out: this process waits for nobody.
            printed.show(sys::standard_error(), Some(0));
        }
        if is_wanted { file.tail(began, end, prints.size_max()) } else { None }
    }

    /// Jobs are about to run: what they print is looked at soon.
    #[cold]
    pub(super) fn watch_prints(&mut self, now_ns: u64) {
        if self.config.prints.is_captured() {
            self.set_print_alarm(now_ns, PRINT_SAMPLE);
        }
    }

    fn set_print_alarm(&mut self, now_ns: u64, delay: Duration) {
        if let Some(timer) = self.print_timer.take() {
            self.reactor.cancel_timer(timer);
        }
        let at_ns = now_ns + delay.as_nanos() as u64;
        self.print_timer = Some(self.reactor.set_timer(at_ns, Alarm::Prints.to_bits()));
    }

    /// Has memory given back where a worker prints much. By the nursery: see [`PrintFile::free`].
    pub(super) fn on_print_alarm(&mut self, now_ns: u64) {
        self.print_timer = None;
        let keep = self.config.prints.size_max();
        let Some(nursery) = &mut self.nursery else { return };
        for (slot, s) in self.slots.iter().enumerate() {
            if s.prints.as_ref().is_some_and(|file| file.is_too_large(keep)) && !nursery.is_behind() {
                // An error here is the nursery's end, which its socket will tell.
                let _ = nursery.command(Command::FreePrints { slot: slot as u32, generation: s.generation }, None);
            }
        }
        if self.slots.iter().any(|s| s.prints.is_some()) {
            // The tick goes on while jobs are in flight. What a job has left behind may print without any.
            let delay = if self.tick.is_some() { PRINT_SAMPLE } else { SLEEP_MAX };
            self.set_print_alarm(now_ns, delay);
        }
    }
}
