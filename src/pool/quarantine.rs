//! Jobs that crash their workers: what is needed to run them again is handed out before their outcome.

use super::engine::Engine;
use super::table::{Label, Place};
use crate::frame::{Frames, Headers};
use crate::outcome::{Crash, Outcome};
use crate::sys::{Sys, Usage};

/// A job that crashed its worker for the last time, and all that is needed to run it again.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Capsule<'a> {
    /// The job's tag.
    pub tag: u64,
    /// Its handler's name.
    pub handler: &'a str,
    /// Its header lines, `key:value\n` each.
    pub header_block: &'a [u8],
    /// Its body.
    pub body: &'a [u8],
    /// How often it was started.
    pub attempts: u32,
    /// How its worker died.
    pub crash: Crash,
    /// What that worker had used in all its life, if anybody could say.
    pub usage: Option<Usage>,
    /// The end of what it printed in its last attempt, if that is captured; see [`Prints`](crate::Prints).
    pub printed: Option<&'a [u8]>,
}

impl<'a> Capsule<'a> {
    /// Its headers in order.
    pub fn headers(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        Headers::from_block(self.header_block).iter()
    }
}

/// Takes capsules.
pub(super) type Quarantine = Box<dyn FnMut(&Capsule<'_>) + Send>;

impl<S: Sys> Engine<S> {
    /// A job whose bytes are still there is over with this outcome: if it has to be quarantined, its capsule is handed out.
    /// Returns whether it had to be. `started`: with what is known of its worker's usage.
    pub(super) fn quarantine(
        &mut self,
        label: Label,
        outcome: &Outcome<Vec<u8>>,
        started: Option<Option<Usage>>,
        printed: Option<&[u8]>,
    ) -> bool {
        let Outcome::Crashed(crash) = *outcome else { return false };
        let tried = if self.table.is_filled(label.job) { self.table.get(label.job).attempts } else { 0 };
        if tried == 0 && !self.config.quarantines_all || !self.is_wanted(label.batch) {
            return false;
        }
        self.stats.quarantined += 1;
        let Some(mut hook) = self.on_quarantine.take() else { return true };
        let handler = &self.handler_names[label.handler as usize];
        let (attempts, usage) = (tried + u32::from(started.is_some()), started.flatten());
        let hand_out = |header_block: &[u8], body: &[u8]| {
            hook(&Capsule { tag: label.tag, handler, header_block, body, attempts, crash, usage, printed });
        };
        self.with_bytes(label, hand_out);
        self.on_quarantine = Some(hook);
        true
    }

    /// A job's header block and body, wherever they are.
    fn with_bytes(&self, label: Label, f: impl FnOnce(&[u8], &[u8])) {
        if let Place::Slot(slot, position) | Place::FrontInSlot(slot, position) = self.table.place(label.job) {
            let journal = &self.slots[slot as usize].journal;
            if journal.entry(position).size != 0 {
                let Some(Ok(frame)) = Frames::new(journal.frame(position)).next() else {
                    unreachable!("a frame that this process encoded");
                };
                return f(frame.headers().as_block(), frame.body());
            }
        }
        let Some(owned) = &self.table.get(label.job).owned else {
            unreachable!("a job whose bytes are in no journal owns them");
        };
        let (header_block, body) = owned.payload.split_at(usize::from(owned.header.header_block_size));
        f(header_block, body);
    }
}
