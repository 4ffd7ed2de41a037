//! What a worker may use: set by itself, a part before its set-up and a part after it.
//!
//! [`WorkerLimits`] is plain data, made by the host and carried to each worker by the fork. A limit that the kernel refuses
//! fails the worker's start with a message that names it.

use crate::limits::WORKERS_MAX;
use crate::slot::SlotMemory;
use crate::sys::cgroup::{Group, SlotGroup};
use crate::sys::{self, Resource};

/// Which worker this is, for set-up.
///
/// Every worker is forked from the same process, and begins with a copy of all that it had: also of the state of every
/// random number generator. What must differ between workers is made to by [`Builder::on_start_with`]:
///
/// ```standalone_crate
/// use std::cell::Cell;
/// use std::rc::Rc;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let state = Rc::new(Cell::new(1u64));
/// let seeded = state.clone();
/// let mut pool = seqpool::Pool::builder()
///     .workers(2)
///     .on_start_with(move |worker| {
///         // Another one for each worker, the same in each run. Or take one from the kernel.
///         seeded.set(1 + worker.number());
///         Ok(())
///     })
///     .handler("random", move |_, reply| {
///         state.set(state.get().wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407));
///         reply.extend_from_slice(&state.get().to_le_bytes());
///         Ok(())
///     })
///     .spawn()?;
/// assert!(pool.map("random", ["", ""]).all(|outcome| outcome.is_done()));
/// # Ok(())
/// # }
/// ```
///
/// [`Builder::on_start_with`]: crate::pool::Builder::on_start_with
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerInfo {
    /// Its place in the pool, from 0.
    pub slot: usize,
    /// How many workers this slot has had, this one counted: the first has 1.
    pub generation: u32,
}

impl WorkerInfo {
    /// A number that no other worker of this pool has, until a slot has had 2³² of them.
    pub fn number(&self) -> u64 {
        (self.slot as u64) << 32 | u64::from(self.generation)
    }
}

/// How a pool's [`memory_limit`](crate::pool::Builder::memory_limit) is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemoryLimitKind {
    /// A control group (version 2) for each slot: counts what the worker and all that it starts use. Whoever goes beyond
    /// is killed by the kernel, and the outcome says so.
    CgroupV2,
    /// The same, version 1.
    CgroupV1,
    /// `RLIMIT_AS`: counts address space, used or not, of each process by itself: each thread takes some. An allocation beyond
    /// it fails, which a handler may survive. One that aborts over it, as Rust does, is said to be out of memory; of any other
    /// end nobody knows, nor where `RUST_BACKTRACE` has it print a backtrace first, which covers the traces.
    AddressSpace,
}

/// The most that a worker's memory may grow after its set-up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemoryLimit {
    /// Units: bytes.
    pub(crate) growth: u64,
    /// Kept by this group; else by `RLIMIT_AS`.
    pub(crate) group: Option<Group>,
}

/// How likely the kernel is to kill a worker when the machine's memory is short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum OomScore {
    /// As the host.
    #[default]
    Inherited,
    /// This, if that can be had.
    Preferred(i32),
    /// This.
    Exactly(i32),
}

/// Settings of all workers of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct WorkerLimits {
    pub(crate) memory: Option<MemoryLimit>,
    /// Soft and hard, by [`Resource`].
    pub(crate) rlimits: [Option<(u64, u64)>; Resource::COUNT],
    /// CPUs by slot; none: the host's.
    pub(crate) affinity: Vec<Vec<usize>>,
    pub(crate) oom_score: OomScore,
    /// The host wants to know how much memory there is after set-up.
    pub(crate) tells_memory: bool,
}

/// Words of [`WorkerLimits`] on their way to an executed nursery: flags and score, growth, then soft and hard limits.
pub(crate) const LIMIT_WORDS: usize = 3 + 2 * Resource::COUNT;

impl WorkerLimits {
    /// As words, for an executed nursery; there is no group and no affinity then.
    pub(crate) fn to_words(&self) -> [u64; LIMIT_WORDS] {
        let mut words = [0; LIMIT_WORDS];
        let (kind, score) = match self.oom_score {
            OomScore::Inherited => (0, 0),
            OomScore::Preferred(value) => (1, value),
            OomScore::Exactly(value) => (2, value),
        };
        words[0] = u64::from(self.tells_memory) | kind << 8 | u64::from(score as u32) << 32;
        words[1] = self.memory.as_ref().map_or(0, |memory| memory.growth);
        for (i, (soft, hard)) in self.rlimits.iter().enumerate().filter_map(|(i, limit)| Some((i, (*limit)?))) {
            words[2] |= 1 << i;
            (words[3 + 2 * i], words[4 + 2 * i]) = (soft, hard);
        }
        words
    }

    /// What such words say.
    pub(crate) fn from_words(words: [u64; LIMIT_WORDS]) -> Option<Self> {
        let score = (words[0] >> 32) as u32 as i32;
        let oom_score = match words[0] >> 8 & 0xff {
            0 => OomScore::Inherited,
            1 => OomScore::Preferred(score),
            2 => OomScore::Exactly(score),
            _ => return None,
        };
        let rlimits = std::array::from_fn(|i| (words[2] >> i & 1 != 0).then_some((words[3 + 2 * i], words[4 + 2 * i])));
        Some(Self {
            memory: (words[1] != 0).then_some(MemoryLimit { growth: words[1], group: None }),
            rlimits,
            affinity: Vec::new(),
            oom_score,
            tells_memory: words[0] & 1 != 0,
        })
    }

    fn group(&self, slot: u32) -> Option<SlotGroup> {
        self.memory.as_ref()?.group.as_ref().map(|group| group.slot(slot))
    }

    /// Whether a worker leaves word when it ends because it could not have more memory.
    pub(super) fn marks_failed_allocations(&self) -> bool {
        self.memory.as_ref().is_some_and(|memory| memory.group.is_none())
    }

    /// Before set-up: all that does not depend on it.
    pub(super) fn before_set_up(&self, worker: &WorkerInfo) -> Result<(), String> {
        match self.oom_score {
            OomScore::Inherited => {}
            OomScore::Preferred(value) => drop(sys::set_oom_score_adj(value)),
            OomScore::Exactly(value) => {
                sys::set_oom_score_adj(value).map_err(|e| format!("oom_score_adj of {value}: {e}"))?;
            }
        }
        if let Some(cpus) = self.affinity.get(worker.slot) {
            sys::set_affinity(cpus).map_err(|e| format!("affinity of worker {} to CPUs {cpus:?}: {e}", worker.slot))?;
        }
        for (resource, limit) in Resource::ALL.into_iter().zip(self.rlimits) {
            if let Some((soft, hard)) = limit {
                sys::set_rlimit(resource, soft, hard)
                    .map_err(|e| format!("{} of {soft}, at most {hard}: {e}", resource.name()))?;
            }
        }
        match self.group(worker.slot as u32) {
            Some(group) => group.enter().map_err(|e| format!("memory limit by control group: {e}")),
            None => Ok(()),
        }
    }

    /// After set-up: what counts from here. Returns how much memory there is, if the host wants to know. Units: bytes.
    pub(super) fn after_set_up(&self, worker: &WorkerInfo, memory: &mut SlotMemory) -> Result<Option<u64>, String> {
        if let Some(limit) = &self.memory {
            let result = match self.group(worker.slot as u32) {
                Some(group) => group.limit_growth(limit.growth),
                None => limit_address_space(limit.growth).and_then(|()| memory.mark_failed_allocations()),
            };
            result.map_err(|e| format!("memory limit of {} bytes: {e}", limit.growth))?;
        }
        if !self.tells_memory {
            return Ok(None);
        }
        sys::own_memory_use().map(|has| Some(has.anonymous)).map_err(|e| e.to_string())
    }
}

/// So many bytes more than now, and no more than may be had already.
fn limit_address_space(growth: u64) -> sys::OsResult<()> {
    let (soft, hard) = sys::rlimit(Resource::AddressSpace)?;
    let limit = sys::own_memory_use()?.address_space.saturating_add(growth).min(soft).min(hard);
    sys::set_rlimit(Resource::AddressSpace, limit, limit)
}

/// The nursery's part: what the kernel says about the ends of workers, and removing the groups when all are gone.
#[derive(Debug, Default)]
pub(crate) struct OomWatch {
    group: Option<Group>,
    /// Kills in each slot's group that have been seen.
    seen: Vec<u64>,
}

impl OomWatch {
    /// What a pool with these limits needs.
    pub(crate) fn new(limits: &WorkerLimits) -> Self {
        let group = limits.memory.as_ref().and_then(|memory| memory.group.clone());
        let seen = if group.is_some() { vec![0; WORKERS_MAX] } else { Vec::new() };
        Self { group, seen }
    }

    /// Whether the worker of this slot, which has just ended so, was killed for want of memory; `None`: nobody knows.
    pub(crate) fn verdict(&mut self, slot: u32, exit: sys::Exit) -> Option<bool> {
        const SIGKILL: i32 = 9;
        let kills = self.group.as_ref()?.slot(slot).oom_kills().ok()?;
        let seen = self.seen.get_mut(slot as usize)?;
        let before = std::mem::replace(seen, kills);
        // Fewer: another host took the group for one left behind, and it was made anew.
        let rose = kills > if kills < before { 0 } else { before };
        // The victim may have been a process that the worker started.
        Some(rose && exit == sys::Exit::Signal(SIGKILL))
    }

    /// Everybody is gone.
    pub(crate) fn remove_groups(&self) {
        if let Some(group) = &self.group {
            group.remove();
        }
    }
}
