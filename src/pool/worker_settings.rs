//! The builder's settings that bound what a worker may use and how long it lives.

use super::Builder;
use crate::error::{Error, ErrorKind};
use crate::limits::{MEMORY_LIMIT_MIN, OOM_SCORE_MAX, OOM_SCORE_MIN, OOM_SCORE_RAISE, WORKER_AGE_MIN};
use crate::sys::cgroup::{Group, OwnedGroup, Version};
use crate::sys::{self, Resource};
use crate::worker::{HandlerError, MemoryLimit, MemoryLimitKind, OomScore, WorkerInfo, WorkerLimits};
use std::time::Duration;

#[derive(Default)]
pub(super) struct WorkerSettings {
    pub(super) age_max: Option<Duration>,
    pub(super) growth_max: Option<u64>,
    memory_limit: Option<u64>,
    memory_limit_kind: Option<MemoryLimitKind>,
    rlimits: [Option<(u64, u64)>; Resource::COUNT],
    affinity: Option<CpusOf>,
    oom_score_adj: Option<i32>,
}

/// The CPUs of a slot; the second argument is those of the host.
type CpusOf = Box<dyn FnMut(usize, &[usize]) -> Vec<usize>>;

/// What [`WorkerSettings::resolve`] has found.
pub(super) struct Resolved {
    pub(super) limits: WorkerLimits,
    pub(super) kind: Option<MemoryLimitKind>,
    /// Removed with the pool.
    pub(super) group: Option<OwnedGroup>,
}

impl Builder {
    /// As [`Builder::on_start`], for set-up that depends on which worker it is: to seed a random number generator, above
    /// all (see [`WorkerInfo`]).
    pub fn on_start_with<F>(mut self, hook: F) -> Self
    where
        F: FnMut(&WorkerInfo) -> Result<(), HandlerError> + 'static,
    {
        self.on_start.push(Box::new(hook));
        self
    }

    /// Replaces each worker when it is so old, counted from the end of its set-up. It finishes the job in hand first; nobody
    /// is blamed, and what it has not started runs elsewhere. Workers that started together leave one after the other, up
    /// to an eighth of that time early. Default: no worker is replaced while it lives.
    pub fn max_worker_age(mut self, age: Duration) -> Self {
        self.worker_settings.age_max = Some(age);
        self
    }

    /// Replaces each worker when its memory has grown by more than so much since the end of its set-up, for handlers that
    /// leak; as [`Builder::max_worker_age`] does. Units: bytes.
    ///
    /// What counts is its anonymous resident memory, looked at while it has jobs and after the last one, at most every 100 ms
    /// and only while the pool is driven: a worker may have more for so long. [`Builder::memory_limit`] bounds it in any
    /// case. Default: no bound.
    pub fn max_worker_growth(mut self, bytes: u64) -> Self {
        self.worker_settings.growth_max = Some(bytes);
        self
    }

    /// The most memory that a worker may take beyond what it has after its set-up, at least 8 MiB. A job that wants more is
    /// [`Crashed`](crate::Outcome::Crashed), with `oom: Some(true)` where that can be known; the others do not notice. Units:
    /// bytes. Default: no limit.
    ///
    /// The kernel keeps it, by a control group where this process may make one, else by `RLIMIT_AS`; that is found out once,
    /// by [`Builder::spawn`], and [`Pool::memory_limit_kind`](crate::Pool::memory_limit_kind) tells. See
    /// [`MemoryLimitKind`] for the difference.
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.worker_settings.memory_limit = Some(bytes);
        self
    }

    /// Has the memory limit kept in this way and no other; where it is not to be had, [`Builder::spawn`] fails and says why.
    pub fn memory_limit_kind(mut self, kind: MemoryLimitKind) -> Self {
        self.worker_settings.memory_limit_kind = Some(kind);
        self
    }

    /// Sets a resource limit of each worker, before its set-up, as `setrlimit(2)` does. Units: the resource's; `u64::MAX` is
    /// no limit. A limit that the kernel refuses fails the workers' start, and the error names it.
    pub fn rlimit(mut self, resource: Resource, soft: u64, hard: u64) -> Self {
        self.worker_settings.rlimits[resource as usize] = Some((soft, hard));
        self
    }

    /// Confines the worker of each slot to these CPUs, before its set-up. `cpus_of` is asked once for every slot, by
    /// [`Builder::spawn`]. Default: the host's own.
    pub fn affinity(mut self, mut cpus_of: impl FnMut(usize) -> Vec<usize> + 'static) -> Self {
        self.worker_settings.affinity = Some(Box::new(move |slot, _| cpus_of(slot)));
        self
    }

    /// Confines each worker to one CPU: the slots in turn to those that the host may use.
    pub fn pin_workers(mut self) -> Self {
        self.worker_settings.affinity = Some(Box::new(|slot, cpus| vec![cpus[slot % cpus.len()]]));
        self
    }

    /// The workers' `oom_score_adj`, from -1000 to 1000: the higher, the likelier they are killed when the machine's memory
    /// is short. A value below the host's own needs a privilege. Default: the host's own and 300, so that the kernel prefers
    /// workers to their host; where that cannot be set, the host's own.
    pub fn oom_score_adj(mut self, value: i32) -> Self {
        self.worker_settings.oom_score_adj = Some(value);
        self
    }
}

impl WorkerSettings {
    /// Whether they can work at all.
    pub(super) fn check(&self) -> Result<(), Error> {
        let config = |what: String| Err(Error::new(ErrorKind::Config(what)));
        if let Some(age) = self.age_max.filter(|&age| age < WORKER_AGE_MIN) {
            return config(format!("max_worker_age of {age:?}: the least is {WORKER_AGE_MIN:?}"));
        }
        if let Some(bytes) = self.memory_limit.filter(|&bytes| bytes < MEMORY_LIMIT_MIN) {
            return config(format!("memory_limit of {bytes} bytes: the least is {MEMORY_LIMIT_MIN}"));
        }
        if self.memory_limit_kind.is_some() && self.memory_limit.is_none() {
            return config("memory_limit_kind without memory_limit: set how much too".to_owned());
        }
        for (resource, limit) in Resource::ALL.into_iter().zip(self.rlimits) {
            if let Some((soft, hard)) = limit.filter(|(soft, hard)| soft > hard) {
                return config(format!(
                    "{}: the soft limit of {soft} is above the hard limit of {hard}",
                    resource.name()
                ));
            }
        }
        match self.oom_score_adj.filter(|value| !(OOM_SCORE_MIN..=OOM_SCORE_MAX).contains(value)) {
            Some(value) => {
                config(format!("oom_score_adj of {value}: it must be from {OOM_SCORE_MIN} to {OOM_SCORE_MAX}"))
            }
            None => Ok(()),
        }
    }

    /// Asks the machine what the settings depend on, and makes the control groups.
    pub(super) fn resolve(&mut self, workers: usize, is_exec: bool) -> Result<Resolved, Error> {
        if is_exec {
            self.fit_exec_mode()?;
        }
        let affinity = self.cpus(workers)?;
        let oom_score = match self.oom_score_adj {
            Some(value) => OomScore::Exactly(value),
            None => sys::oom_score_adj().map_or(OomScore::Inherited, |own| {
                OomScore::Preferred(own.saturating_add(OOM_SCORE_RAISE).min(OOM_SCORE_MAX))
            }),
        };
        let group = self.make_group()?;
        let kind = self.memory_limit.map(|_| match &group {
            Some(group) => kind_of(group.version),
            None => MemoryLimitKind::AddressSpace,
        });
        let memory = self.memory_limit.map(|growth| MemoryLimit { growth, group: group.as_deref().cloned() });
        let (rlimits, tells_memory) = (self.rlimits, self.growth_max.is_some());
        let limits = WorkerLimits { memory, rlimits, affinity, oom_score, tells_memory };
        Ok(Resolved { limits, kind, group })
    }

    /// What an executed nursery cannot be told: CPUs by slot, and control groups.
    fn fit_exec_mode(&mut self) -> Result<(), Error> {
        let config = |what: &str| Err(Error::new(ErrorKind::Config(what.to_owned())));
        if self.affinity.is_some() {
            return config("affinity in exec mode: set it in on_start_with, which is told the worker's slot");
        }
        match self.memory_limit_kind {
            Some(MemoryLimitKind::CgroupV1 | MemoryLimitKind::CgroupV2) => {
                config("memory_limit_kind in exec mode: only AddressSpace; control groups need a forked nursery")
            }
            _ => {
                self.memory_limit_kind = self.memory_limit.map(|_| MemoryLimitKind::AddressSpace);
                Ok(())
            }
        }
    }

    fn cpus(&mut self, workers: usize) -> Result<Vec<Vec<usize>>, Error> {
        let Some(cpus_of) = &mut self.affinity else { return Ok(Vec::new()) };
        let own = sys::affinity().map_err(Error::os("asking for the CPUs of this process"))?;
        let mut all = Vec::with_capacity(workers);
        for slot in 0..workers {
            let cpus = cpus_of(slot, &own);
            if cpus.is_empty() {
                let what = format!("affinity of worker {slot}: no CPU at all; name at least one");
                return Err(Error::new(ErrorKind::Config(what)));
            }
            all.push(cpus);
        }
        Ok(all)
    }

    /// The pool's control group, where it is wanted and can be had.
    fn make_group(&self) -> Result<Option<OwnedGroup>, Error> {
        let wanted = self.memory_limit_kind;
        if self.memory_limit.is_none() || wanted == Some(MemoryLimitKind::AddressSpace) {
            return Ok(None);
        }
        let version = wanted.map(|kind| if kind == MemoryLimitKind::CgroupV1 { Version::V1 } else { Version::V2 });
        match (Group::create(version), wanted) {
            (Ok(group), _) => Ok(Some(group)),
            (Err(_), None) => Ok(None),
            (Err(why), Some(kind)) => {
                let what = format!("memory_limit_kind {kind:?}: no control group can be made here: {why}");
                Err(Error::new(ErrorKind::Config(what)))
            }
        }
    }
}

fn kind_of(version: Version) -> MemoryLimitKind {
    match version {
        Version::V1 => MemoryLimitKind::CgroupV1,
        Version::V2 => MemoryLimitKind::CgroupV2,
    }
}
