//! What one run of the study does. Pure data: the model predicts it, the servers carry it out.

use std::num::NonZeroU32;

/// Shares of a transfer are whole thousandths.
pub(crate) const PERMILLE: u64 = 1000;

/// Of a transfer that the server works on: what goes with a part (calls, bookkeeping) is a share of its time unless it
/// takes longer than this, and a call that took no longer did not sleep. Units: nanoseconds.
pub(crate) const HANDLING_NS_MAX: u64 = 20_000;

/// Who serves the workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    /// One worker at a time, first come first served; every call blocks.
    Blocking,
    /// An edge-triggered reactor that handles at most so many parts of one worker before the next has its turn; `None`:
    /// as many as there are.
    Nonblocking { parts_per_turn: Option<NonZeroU32> },
}

/// What the time of a transfer goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transfer {
    /// The server works on each part.
    Cpu,
    /// The peer takes its time before each part, and the server works next to nothing.
    Wait,
    /// The peer takes so much of each part's time, and then the server works the rest. Units: thousandths, neither 0 nor
    /// all.
    Mixed { wait_permille: u16 },
}

impl Transfer {
    /// The transfer of which so much is waiting. Units: thousandths.
    pub(crate) fn waiting(permille: u16) -> Self {
        match u64::from(permille) {
            0 => Self::Cpu,
            PERMILLE.. => Self::Wait,
            _ => Self::Mixed { wait_permille: permille },
        }
    }

    /// How much of it is waiting. Units: thousandths.
    pub(crate) fn wait_permille(self) -> u64 {
        match self {
            Self::Cpu => 0,
            Self::Wait => PERMILLE,
            Self::Mixed { wait_permille } => wait_permille.into(),
        }
    }
}

/// Where jobs come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Supply {
    /// Each worker has as many as the others.
    Rounds,
    /// As many in all, and each goes to whoever asks next.
    Queue,
}

/// What a worker does with a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compute {
    Sleep,
    Spin,
}

/// One run.
///
/// Every worker first registers, which is a message as long as a result (as the original draws it), and is written a job.
/// From then on it computes, has its result read, and is written the next job, until there are none. So a worker that has
/// had `n` jobs has sent `n + 1` messages and received `n`. All register at once, in the order of their numbers, and the
/// run begins then; it ends when the last result has been read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) server: Server,
    pub(crate) transfer: Transfer,
    pub(crate) supply: Supply,
    pub(crate) compute: Compute,
    /// How long each worker computes for a job; its length is the number of workers. Units: nanoseconds.
    pub(crate) compute_ns: Vec<u64>,
    /// How long a message takes by itself, whatever the machine's speed. Units: nanoseconds.
    pub(crate) message_ns: u64,
    /// Parts of a message.
    pub(crate) parts: u32,
    /// Jobs a worker, or, from a shared queue, on the average.
    pub(crate) rounds: u32,
}

impl Plan {
    pub(crate) fn workers(&self) -> usize {
        self.compute_ns.len()
    }

    /// Jobs in all.
    pub(crate) fn jobs(&self) -> u64 {
        self.workers() as u64 * u64::from(self.rounds)
    }

    /// When part `part` of a message that began at 0 is over, if nothing comes between; part 0 is the first. Units:
    /// nanoseconds.
    pub(crate) fn part_end_ns(&self, part: u32) -> u64 {
        self.message_ns * u64::from(part + 1) / u64::from(self.parts)
    }

    /// What of part `part` is the peer's time, and what the server's. Units: nanoseconds.
    pub(crate) fn shares_ns(&self, part: u32) -> (u64, u64) {
        let before_ns = part.checked_sub(1).map_or(0, |before| self.part_end_ns(before));
        let part_ns = self.part_end_ns(part) - before_ns;
        let gap_ns = part_ns * self.transfer.wait_permille() / PERMILLE;
        (gap_ns, part_ns - gap_ns)
    }
}
