//! From settings to a running pool.

use super::Pool;
use super::engine::{Config, Engine, Parts};
use super::exec::{self, Origin};
use super::hook::{Event, Hook};
use super::job::Job;
use super::journal::Journal;
use super::quarantine::{Capsule, Quarantine};
use super::retry::RetryOn;
use super::slot::Slot;
use super::terms::{JobLimits, Terms};
use super::worker_settings::{Resolved, WorkerSettings};
use crate::chaos::Chaos;
use crate::error::{Error, ErrorKind};
use crate::limits::{
    GRACE, HANDLERS_MAX, HEADER_BLOCK_SIZE_MAX, JOB_SIZE_CEILING, JOB_SIZE_MAX, KEPT_FDS_MAX, OUTSTANDING_JOBS_MAX,
    OUTSTANDING_JOBS_PER_WORKER, PACKET_SIZE_MAX, PRINTED_SIZE_MAX, QUEUE_JOBS_MAX, QUEUE_SIZE, RECEIVE_TIMEOUT,
    RETRIES_MAX, RETRY_BACKOFF, SEND_BUFFER_SIZE, SPAWN_TIMEOUT, STALL_TIMEOUT, WORKERS_MAX,
};
use crate::nursery::{Nursery, Setup};
use crate::outcome::Outcome;
use crate::prints::Prints;
use crate::reactor::Reactor;
use crate::sys::{self, Interest, Linux, OsResult, Sys};
use crate::transport::TransportKind;
use crate::worker::{Handler, HandlerError, Handlers, Reply, Request, StartHook};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

/// Settings of a pool; [`Builder::spawn`] starts it.
pub struct Builder {
    workers: Option<usize>,
    pub(super) handlers: Vec<(String, Handler)>,
    pub(super) on_start: Vec<StartHook>,
    /// Exec mode, and where its handlers come from. `None`: the nursery is forked.
    pub(super) origin: Option<Origin>,
    limits: JobLimits,
    handler_limits: Vec<(String, JobLimits)>,
    retry_backoff: Duration,
    retry_on: Option<RetryOn>,
    chaos: Option<Chaos>,
    receipts: bool,
    quarantines_all: bool,
    on_quarantine: Option<Quarantine>,
    stall_timeout: Duration,
    grace: Duration,
    spawn_timeout: Duration,
    receive_timeout: Duration,
    jobs_per_worker: usize,
    prints: Prints,
    pub(super) worker_settings: WorkerSettings,
    nice: i32,
    transport: TransportKind,
    pub(super) job_size_max: usize,
    outstanding_max: Option<usize>,
    keep_fds: Vec<RawFd>,
    hook: Option<Hook>,
    first_seq: u32,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            workers: None,
            handlers: Vec::new(),
            on_start: Vec::new(),
            origin: None,
            limits: JobLimits::new(),
            handler_limits: Vec::new(),
            retry_backoff: RETRY_BACKOFF,
            retry_on: None,
            chaos: None,
            receipts: false,
            quarantines_all: false,
            on_quarantine: None,
            stall_timeout: STALL_TIMEOUT,
            grace: GRACE,
            spawn_timeout: SPAWN_TIMEOUT,
            receive_timeout: RECEIVE_TIMEOUT,
            jobs_per_worker: usize::MAX,
            prints: Prints::default(),
            worker_settings: WorkerSettings::default(),
            nice: 0,
            transport: TransportKind::default(),
            job_size_max: JOB_SIZE_MAX,
            outstanding_max: None,
            keep_fds: Vec::new(),
            hook: None,
            first_seq: 0,
        }
    }
}

/// How many workers a pool has when nobody says: the CPUs that this process may use, by affinity and cgroup quota.
pub fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX)
}

/// Header lines travel in one packet, with room for a part of the body: where sockets take small packets only, they are
/// bounded by that.
fn header_block_size_max<S: Sys>(sys: &S) -> OsResult<usize> {
    let (socket, _) = sys.socketpair()?;
    sys.set_send_buffer(socket.as_fd(), SEND_BUFFER_SIZE)?;
    Ok(HEADER_BLOCK_SIZE_MAX.min(sys.packet_size_max(socket.as_fd())? / 2))
}

impl Builder {
    /// How many workers. Default: [`default_workers`].
    pub fn workers(mut self, count: usize) -> Self {
        self.workers = Some(count);
        self
    }

    /// Adds a handler under a name. It runs in the workers, which are forked from this process as it is at
    /// [`Builder::spawn`]: whatever it captures, each worker has a copy of; the host's own is dropped there. It must not
    /// rely on a lock that may be held across `spawn`.
    pub fn handler<F>(mut self, name: &str, handler: F) -> Self
    where
        F: FnMut(&Request<'_>, &mut Reply<'_>) -> Result<(), HandlerError> + 'static,
    {
        self.handlers.push((name.to_owned(), Box::new(handler)));
        self
    }

    /// Adds set-up that runs in each worker before its first job, in the order of the calls.
    pub fn on_start<F>(self, mut hook: F) -> Self
    where
        F: FnMut() -> Result<(), HandlerError> + 'static,
    {
        self.on_start_with(move |_| hook())
    }

    /// How long a job may run before its worker is killed. Default: for ever.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.limits.timeout = Some(timeout);
        self
    }

    /// How long a job may wait until it starts for the first time; then it is rejected. Default: for ever.
    pub fn queue_timeout(mut self, timeout: Duration) -> Self {
        self.limits.queue_timeout = Some(timeout);
        self
    }

    /// How often a job that has started and not succeeded is tried again: extra attempts, at most 1,000. Default: 0. A job
    /// that never started runs elsewhere in any case, and that is no attempt.
    pub fn retries(mut self, extra: u32) -> Self {
        self.limits.retries = Some(extra);
        self
    }

    /// How long a job waits before its second attempt; twice as long before each further one, up to 2 s. Default: 10 ms.
    pub fn retry_backoff(mut self, backoff: Duration) -> Self {
        self.retry_backoff = backoff;
        self
    }

    /// Which of the outcomes that are [`retryable`](Outcome::retryable) are worth another attempt. Default: all.
    pub fn retry_on(mut self, retry_on: impl FnMut(&Outcome<&[u8]>) -> bool + Send + 'static) -> Self {
        self.retry_on = Some(Box::new(retry_on));
        self
    }

    /// Lets the workers of some jobs come to grief, to see that the others do not notice. Jobs are drawn by their tags.
    pub fn chaos(mut self, chaos: Chaos) -> Self {
        self.chaos = Some(chaos);
        self
    }

    /// Gives each outcome a [`Receipt`](crate::Receipt): where its time went, and what it used. Costs four system calls and
    /// some 2 µs a job. Default: off.
    pub fn receipts(mut self, wanted: bool) -> Self {
        self.receipts = wanted;
        self
    }

    /// Is handed a [`Capsule`] of each job that is quarantined, with all that is needed to run it again: one whose retries
    /// were used up and that crashed its worker at last; see also [`Builder::quarantine_all`].
    pub fn on_quarantine(mut self, hook: impl FnMut(&Capsule<'_>) + Send + 'static) -> Self {
        self.on_quarantine = Some(Box::new(hook));
        self
    }

    /// Quarantines every job that crashes its worker, also one that was not to be tried again. Default: no.
    pub fn quarantine_all(mut self, wanted: bool) -> Self {
        self.quarantines_all = wanted;
        self
    }

    /// Runs one job in this process, without any pool, as a worker would: for a debugger. Set-up runs first. A crash of the
    /// handler is this process's own.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when set-up fails.
    pub fn run_here(mut self, job: &Job<'_>) -> Result<Outcome<Vec<u8>>, Error> {
        let info = crate::worker::WorkerInfo { slot: 0, generation: 1 };
        for hook in &mut self.on_start {
            hook(&info).map_err(|e| Error::new(ErrorKind::Config(format!("set-up: {e}"))))?;
        }
        let handlers = Handlers {
            by_id: self.handlers,
            on_start: Vec::new(),
            job_size_max: self.job_size_max,
            prints: Prints::PassThrough,
            limits: Default::default(),
        };
        Ok(job.run_here(handlers))
    }

    /// Bounds for the jobs of one handler, instead of the pool's.
    pub fn handler_limits(mut self, name: &str, limits: JobLimits) -> Self {
        self.handler_limits.push((name.to_owned(), limits));
        self
    }

    /// How long a worker whose job is timed out or cancelled has between `SIGTERM`, which its whole group gets, and
    /// `SIGKILL`. What it is doing may end properly, or start a clean-up of its own; a result that it still brings counts.
    /// Zero: it is killed at once. Default: 100 ms.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// How long a worker may sit on unstarted jobs before it is killed and they run elsewhere. Default: 10 s.
    pub fn stall_timeout(mut self, timeout: Duration) -> Self {
        self.stall_timeout = timeout;
        self
    }

    /// How long a worker's set-up may take. Default: 60 s.
    pub fn spawn_timeout(mut self, timeout: Duration) -> Self {
        self.spawn_timeout = timeout;
        self
    }

    /// How long a worker may take none of a large job's parts before it is killed and the job goes elsewhere.
    /// Default: 10 s.
    pub fn receive_timeout(mut self, timeout: Duration) -> Self {
        self.receive_timeout = timeout;
        self
    }

    /// Replaces each worker after so many jobs, for handlers that leak. It leaves by itself once it has done them; that is
    /// no crash: nobody is blamed, and the next worker is started at once. Default: no worker is replaced while it lives.
    pub fn max_jobs_per_worker(mut self, jobs: usize) -> Self {
        self.jobs_per_worker = jobs;
        self
    }

    /// What becomes of that which handlers print. Default: it goes to this process's standard error.
    pub fn prints(mut self, prints: Prints) -> Self {
        self.prints = prints;
        self
    }

    /// The workers' nice value, from -20 to 19. Default: the host's.
    pub fn nice(mut self, nice: i32) -> Self {
        self.nice = nice;
        self
    }

    /// The way that jobs and results travel. Default: [`TransportKind::Seqpacket`].
    pub fn transport(mut self, transport: TransportKind) -> Self {
        self.transport = transport;
        self
    }

    /// Largest body of a job, and of a reply. Units: bytes. Default: 64 MiB.
    pub fn job_size_max(mut self, bytes: usize) -> Self {
        self.job_size_max = bytes;
        self
    }

    /// Most jobs that may be submitted and not yet delivered. Default: 65,536, or 1,024 for each worker if that is more.
    pub fn queue_jobs_max(mut self, jobs: usize) -> Self {
        self.outstanding_max = Some(jobs);
        self
    }

    /// Keeps a descriptor open in the workers, under the same number. All others are closed there. It must still be
    /// open at [`Builder::spawn`].
    pub fn keep_fd(mut self, fd: BorrowedFd<'_>) -> Self {
        self.keep_fds.push(fd.as_raw_fd());
        self
    }

    /// Is told of every step of every job's life, with the time. Costs nothing when it is not set.
    pub fn on_event(mut self, mut hook: impl FnMut(&Event) + Send + 'static) -> Self {
        self.hook = Some(Box::new(move |event: &Event| hook(event)));
        self
    }

    /// Number of the first frame of each slot, so that a test can cross the counters' wrap.
    #[doc(hidden)]
    pub fn first_seq(mut self, seq: u32) -> Self {
        self.first_seq = seq;
        self
    }

    /// Forks the nursery and the workers.
    ///
    /// Call it while the process is small and before any other thread starts; threads may be started afterwards. In exec
    /// mode ([`Pool::exec_builder`]) neither matters.
    ///
    /// # Errors
    /// [`ErrorKind::OtherThreads`], [`ErrorKind::Config`] naming the setting, [`ErrorKind::Nursery`] in exec mode, or the
    /// kernel's, such as `EMFILE`.
    pub fn spawn(self) -> Result<Pool, Error> {
        self.spawn_with(Linux)
    }

    /// As [`Builder::spawn`], over another [`Sys`]: to see a program under a failing kernel.
    ///
    /// # Errors
    /// As [`Builder::spawn`].
    pub fn spawn_with<S: Sys>(mut self, sys: S) -> Result<Pool<S>, Error> {
        let workers = self.workers.unwrap_or_else(default_workers);
        self.check(workers)?;
        if self.origin.is_none() {
            let count = sys::thread_count().map_err(Error::os("counting threads"))?;
            if count != 1 {
                return Err(Error::new(ErrorKind::OtherThreads { count }));
            }
        }
        let terms = self.terms()?;
        let handler_names: Box<[String]> = self.handlers.iter().map(|(name, _)| name.clone()).collect();
        let Resolved { limits, kind: memory_limit, group } =
            self.worker_settings.resolve(workers, self.origin.is_some())?;
        let (by_id, on_start, job_size_max, prints) = (self.handlers, self.on_start, self.job_size_max, self.prints);
        let handlers = Handlers { by_id, on_start, limits, job_size_max, prints };
        let setup = Setup { handlers, nice: self.nice, keep_fds: self.keep_fds };
        // Asked before the fork, so that the nursery and the workers know the kernel's limit without asking again.
        let header_block_size_max = header_block_size_max(&sys).map_err(Error::os("asking for socket buffers"))?;
        // Before anything that takes memory: the smaller this process is, the cheaper each worker.
        let (nursery, renewal) = match self.origin {
            None => (Nursery::start(&sys, setup).map_err(Error::os("starting the nursery"))?, None),
            Some(_) => exec::start(&sys, setup).map(|(nursery, renewal)| (nursery, Some(renewal)))?,
        };
        let nanos = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        let config = Config {
            job_size_max: self.job_size_max,
            header_block_size_max,
            outstanding_max: self
                .outstanding_max
                .unwrap_or_else(|| OUTSTANDING_JOBS_MAX.max(workers * OUTSTANDING_JOBS_PER_WORKER)),
            terms,
            retry_backoff: self.retry_backoff,
            chaos: self.chaos,
            receipts: self.receipts,
            quarantines_all: self.quarantines_all,
            stall_ns: nanos(self.stall_timeout),
            grace_ns: nanos(self.grace),
            spawn_ns: nanos(self.spawn_timeout),
            receive_ns: nanos(self.receive_timeout),
            jobs_per_worker: self.jobs_per_worker,
            prints,
            worker_age_max: self.worker_settings.age_max,
            growth_max: self.worker_settings.growth_max,
            memory_limit,
        };
        // From here on the nursery must be shut down when something fails.
        let assemble = |nursery: Nursery<S>| -> Result<Engine<S>, (Error, Nursery<S>)> {
            let parts = (|| {
                let mut reactor = Reactor::with_sys(sys.clone(), workers + 1)?;
                reactor.make_exposable()?;
                let token = reactor.register(nursery.socket(), Interest::READ.and(Interest::WRITE))?;
                let queue = Journal::create(&sys, QUEUE_SIZE, QUEUE_JOBS_MAX)?;
                let slots =
                    (0..workers).map(|_| Slot::create(&sys, self.first_seq)).collect::<Result<Box<[Slot]>, _>>()?;
                let rx = sys.map_pages(PACKET_SIZE_MAX)?;
                Ok((reactor, token, queue, slots, rx))
            })();
            match parts {
                Ok((reactor, nursery_token, queue, slots, rx)) => {
                    let transport = self.transport.build(sys.clone(), workers);
                    let (sys, hook, retry_on, on_quarantine) =
                        (sys.clone(), self.hook, self.retry_on, self.on_quarantine);
                    Ok(Engine::new(Parts {
                        sys,
                        config,
                        reactor,
                        transport,
                        nursery,
                        nursery_token,
                        renewal,
                        handler_names,
                        slots,
                        queue,
                        rx,
                        hook,
                        retry_on,
                        on_quarantine,
                    }))
                }
                Err(error) => Err((Error::os("making the slots")(error), nursery)),
            }
        };
        let engine = match assemble(nursery) {
            Ok(engine) => engine,
            Err((error, nursery)) => {
                nursery.shut_down();
                return Err(error);
            }
        };
        let mut pool = Pool::from_engine(engine, group);
        for slot in 0..workers {
            pool.engine_mut().start_worker(slot).map_err(Error::os("starting a worker"))?;
        }
        Ok(pool)
    }

    /// What the jobs of each handler may take.
    fn terms(&self) -> Result<Box<[Terms]>, Error> {
        let pool = self.limits.or(Terms::default());
        let mut terms = vec![pool; self.handlers.len()].into_boxed_slice();
        for (name, limits) in &self.handler_limits {
            let Some(index) = self.handlers.iter().position(|(n, _)| n == name) else {
                let what = format!("limits for a handler '{name}': there is none of that name");
                return Err(Error::new(ErrorKind::Config(what)));
            };
            terms[index] = limits.or(terms[index]);
        }
        if let Some(chaos) = &self.chaos {
            chaos.check().map_err(|what| Error::new(ErrorKind::Config(what)))?;
            if chaos.stalls() && terms.iter().any(|t| t.timeout_ns == 0) {
                let what = "chaos: a job that hangs needs a timeout".to_owned();
                return Err(Error::new(ErrorKind::Config(what)));
            }
        }
        match terms.iter().find(|t| t.retries > RETRIES_MAX) {
            Some(t) => Err(Error::new(ErrorKind::Config(format!("{} retries: at most {RETRIES_MAX}", t.retries)))),
            None => Ok(terms),
        }
    }

    fn check(&self, workers: usize) -> Result<(), Error> {
        exec::check(self)?;
        let config = |what: String| Err(Error::new(ErrorKind::Config(what)));
        if workers == 0 || workers > WORKERS_MAX {
            return config(format!("{workers} workers: a pool has from 1 to {WORKERS_MAX}"));
        }
        if self.handlers.is_empty() {
            return config("no handler: add one with Builder::handler".to_owned());
        }
        if self.handlers.len() > HANDLERS_MAX {
            return config(format!("{} handlers: a pool has at most {HANDLERS_MAX}", self.handlers.len()));
        }
        let mut names: Vec<_> = self.handlers.iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return config(format!("two handlers have the name '{}'", pair[0]));
        }
        if self.job_size_max > JOB_SIZE_CEILING {
            return config(format!("job_size_max of {} bytes: the most is {JOB_SIZE_CEILING}", self.job_size_max));
        }
        if let Some(jobs) = self.outstanding_max.filter(|jobs| !(1..=u32::MAX as usize).contains(jobs)) {
            return config(format!("queue_jobs_max of {jobs}: it must be from 1 to {}", u32::MAX));
        }
        if self.jobs_per_worker == 0 {
            return config("max_jobs_per_worker of 0: no job could run".to_owned());
        }
        self.worker_settings.check()?;
        if self.keep_fds.len() > KEPT_FDS_MAX {
            return config(format!("{} kept descriptors: the most is {KEPT_FDS_MAX}", self.keep_fds.len()));
        }
        if self.prints.is_captured() && !(1..=PRINTED_SIZE_MAX).contains(&self.prints.size_max()) {
            let size_max = self.prints.size_max();
            return config(format!("prints of {size_max} bytes: from 1 to {PRINTED_SIZE_MAX} can be kept of a job's"));
        }
        if !(-20..=19).contains(&self.nice) {
            return config(format!("nice of {}: it must be from -20 to 19", self.nice));
        }
        for (name, timeout) in [
            ("timeout", self.limits.timeout.unwrap_or(Duration::MAX)),
            ("stall_timeout", self.stall_timeout),
            ("spawn_timeout", self.spawn_timeout),
            ("receive_timeout", self.receive_timeout),
        ] {
            if timeout.is_zero() {
                return config(format!("a {name} of zero: nothing could ever finish"));
            }
        }
        Ok(())
    }
}
