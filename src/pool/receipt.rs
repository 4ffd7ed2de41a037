//! What a job's outcome cost: where its time went, and what it used.

use super::engine::Engine;
use super::table::Label;
use crate::frame::Metering;
use crate::sys::Sys;
use std::time::Duration;

/// Where a job's time went and what it used, as far as is known; see [`Builder::receipts`](crate::Builder::receipts).
///
/// A job whose worker died brought no measurements of its own: then all but the waiting is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// From its submission until its packet left for the last time; until its end if it never left.
    pub queue_wait: Duration,
    /// On its way there, behind others at its worker, and back: from its packet's leaving to the arrival of its result,
    /// without [`Receipt::run_time`].
    pub transfer: Option<Duration>,
    /// How long its handler ran.
    pub run_time: Option<Duration>,
    /// When its handler started, on the monotonic clock. Units: nanoseconds.
    pub started_ns: Option<u64>,
    /// What it used.
    pub usage: Option<JobUsage>,
}

/// What a job's worker used while its handler ran, children that it waited for included.
///
/// # Source
/// `getrusage(2)` before and after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct JobUsage {
    /// CPU time in user mode.
    pub user: Duration,
    /// CPU time in the kernel.
    pub system: Duration,
    /// The largest resident size that its worker has had so far, whichever of its jobs needed it. Units: KiB.
    pub resident_max_kib: u64,
    /// Page faults served without reading.
    pub minor_faults: u64,
    /// Page faults that had to read.
    pub major_faults: u64,
    /// Times that it waited.
    pub voluntary_switches: u64,
    /// Times that the core was taken away.
    pub involuntary_switches: u64,
}

/// When what happened to a job, for its receipt. Units: nanoseconds; 0 is not yet.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stamps {
    pub(super) submitted_ns: u64,
    pub(super) sent_ns: u64,
}

impl<S: Sys> Engine<S> {
    /// The job with this label was submitted now.
    #[cold]
    pub(super) fn stamp_submitted(&mut self, label: Label) {
        let submitted_ns = self.sys.now_ns();
        self.table.get_mut(label.job).stamps.submitted_ns = submitted_ns;
    }

    /// The job with this label left at this time.
    pub(super) fn stamp_sent(&mut self, label: Label, sent_ns: u64) {
        if self.config.receipts {
            self.table.get_mut(label.job).stamps.sent_ns = sent_ns;
        }
    }

    /// The receipt of a job that is over now, and booked nowhere yet; `None` if nobody wants any.
    pub(super) fn receipt(&mut self, label: Label, metering: Option<&Metering>) -> Option<Box<Receipt>> {
        if !self.config.receipts || !self.table.is_filled(label.job) {
            return None;
        }
        let now_ns = self.sys.now_ns();
        let Stamps { submitted_ns, sent_ns } = self.table.get(label.job).stamps;
        let waited_until_ns = if sent_ns == 0 { now_ns } else { sent_ns };
        let mut receipt = Receipt {
            queue_wait: Duration::from_nanos(waited_until_ns.saturating_sub(submitted_ns)),
            ..Receipt::default()
        };
        if let Some(m) = metering {
            let run_ns = m.end_ns.saturating_sub(m.start_ns);
            receipt.started_ns = Some(m.start_ns);
            receipt.run_time = Some(Duration::from_nanos(run_ns));
            receipt.transfer = Some(Duration::from_nanos(now_ns.saturating_sub(sent_ns).saturating_sub(run_ns)));
            receipt.usage = Some(JobUsage {
                user: Duration::from_micros(m.user_us),
                system: Duration::from_micros(m.system_us),
                resident_max_kib: m.resident_max_kib,
                minor_faults: m.minor_faults,
                major_faults: m.major_faults,
                voluntary_switches: m.voluntary_switches,
                involuntary_switches: m.involuntary_switches,
            });
            self.stats.run_us += run_ns / 1000;
            self.stats.cpu_us += m.user_us.saturating_add(m.system_us);
        }
        Some(Box::new(receipt))
    }
}
