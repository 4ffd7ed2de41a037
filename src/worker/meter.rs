//! What a result is asked to say of its job: when it ran, and what it used.

use crate::frame::{FLAG_METERED, FLAG_TIMED, Metering, RESULT_PREFIX_SIZE_MAX, result_prefix_size};
use crate::sys::{self, UsageNow};

/// Begun before a handler runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meter {
    flags: u8,
    before: Option<UsageNow>,
}

/// Ended: what stands before the result's body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prefix {
    bytes: [u8; RESULT_PREFIX_SIZE_MAX],
    /// [`FLAG_TIMED`], [`FLAG_METERED`] or neither.
    pub(super) flags: u8,
}

impl Meter {
    /// Begins for a job with these flags.
    #[inline]
    pub(super) fn begin(flags: u8) -> Self {
        let before = if flags & FLAG_METERED != 0 { Some(sys::usage_now()) } else { None };
        Self { flags: flags & (FLAG_TIMED | FLAG_METERED), before }
    }

    /// Whether anything is asked for.
    #[inline]
    pub(super) fn is_asked(&self) -> bool {
        self.flags != 0
    }

    /// Bytes before the result's body.
    #[inline]
    pub(super) fn prefix_size(&self) -> usize {
        result_prefix_size(self.flags)
    }

    /// Ends when the handler has returned. `None`: nothing is asked for.
    #[inline]
    pub(super) fn end(self, start_ns: u64, end_ns: u64) -> Option<Prefix> {
        if self.is_asked() { Some(self.measure(start_ns, end_ns)) } else { None }
    }

    #[cold]
    fn measure(self, start_ns: u64, end_ns: u64) -> Prefix {
        let mut metering = Metering { start_ns, end_ns, ..Metering::default() };
        if let Some(before) = self.before {
            let now = sys::usage_now();
            metering.user_us = now.user_us.saturating_sub(before.user_us);
            metering.system_us = now.system_us.saturating_sub(before.system_us);
            metering.resident_max_kib = now.resident_max_kib;
            metering.minor_faults = now.minor_faults.saturating_sub(before.minor_faults);
            metering.major_faults = now.major_faults.saturating_sub(before.major_faults);
            metering.voluntary_switches = now.voluntary_switches.saturating_sub(before.voluntary_switches);
            metering.involuntary_switches = now.involuntary_switches.saturating_sub(before.involuntary_switches);
        }
        Prefix { bytes: metering.encode(), flags: self.flags }
    }
}

impl Prefix {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..result_prefix_size(self.flags)]
    }
}

/// The prefix's bytes and flags, where there may be none.
pub(super) fn parts(prefix: &Option<Prefix>) -> (&[u8], u8) {
    prefix.as_ref().map_or((&[], 0), |p| (p.bytes(), p.flags))
}
