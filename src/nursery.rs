//! Floor 3: the nursery, the one process that forks.
//!
//! It is forked first, while the host is small and has a single thread, and stays so itself. It owns every worker as
//! its child: forks it, kills its group, reaps it, reports how it ended. As a subreaper it also adopts what workers
//! leave behind, and kills it when a worker has ended. It reads nothing but fixed-size commands from its host, and
//! never touches a slot. When the host is gone it ends everything that it has, then itself.
//!
//! Or it is this program, executed again, for hosts that have threads or have grown: [`exec`].
//!
//! Host side: [`Nursery`]. Commands and reports are plain records over an inherited socket pair; the descriptors that
//! a worker needs come with the command that asks for it, so that the host's shortage is the host's error.

pub(crate) mod exec;

use crate::limits::{NURSERY_START_TIMEOUT, NURSERY_TIMEOUT, SHUTDOWN_TIMEOUT};
use crate::prints::PrintFile;
use crate::slot::SlotFile;
use crate::sys::{
    self, Exit, ExitReport, Forked, Interest, OsError, OsResult, Passed, Pid, PollFd, Received, Sent, SignalFd,
    SignalSet, Sys, Usage, Wait,
};
use crate::worker::{self, EXIT_ORPHAN, EXIT_OS, Handlers, OomWatch, WorkerInfo};
use exec::Refusal;
use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// Bytes of a command and of a report.
const RECORD_SIZE: usize = 64;
const SIGKILL: i32 = 9;
const SIGCHLD: i32 = 17;
/// The greatest number of a signal on any Linux that Rust knows.
const SIGNAL_MAX: u64 = 127;
const SIGCONT: i32 = 18;
const SIGSTOP: i32 = 19;

/// What the host asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Fork a worker; its socket, slot file and lifeline come along, and the file that it prints into, if there is one.
    Spawn { slot: u32, generation: u32 },
    /// Send this worker and its group a signal, if it is still the one in its slot.
    Signal { slot: u32, generation: u32, signal: i32 },
    /// Give back the memory of what this worker has printed, but for the end.
    FreePrints { slot: u32, generation: u32 },
}

/// What the nursery reports. Each command is answered by [`Report::Obeyed`], or by what went wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// The worker runs. Its own first word, so that no job runs in a worker that the host does not know.
    Spawned { slot: u32, generation: u32, pid: Pid },
    /// It could not be forked.
    SpawnFailed { slot: u32, generation: u32, errno: i32 },
    /// The command has been carried out.
    Obeyed,
    /// It has ended, its group is killed, and it is reaped; `oom` as in [`OomWatch::verdict`].
    Exited { slot: u32, generation: u32, report: ExitReport, oom: Option<bool> },
    /// An executed nursery has built its handlers and serves.
    Ready,
    /// It does not serve, and ends.
    Refused(Refusal),
}

impl Report {
    /// Whether it answers a command, or the opening.
    fn is_answer(&self) -> bool {
        !matches!(self, Report::Spawned { .. } | Report::Exited { .. })
    }
}

/// A record is eight little-endian u64 words: kind, slot, generation, then what the kind needs; the rest is zero.
type Words = [u64; RECORD_SIZE / 8];

fn to_bytes(words: Words) -> [u8; RECORD_SIZE] {
    let mut out = [0; RECORD_SIZE];
    for (room, word) in out.chunks_exact_mut(8).zip(words) {
        room.copy_from_slice(&word.to_le_bytes());
    }
    out
}

fn to_words(bytes: &[u8]) -> Option<Words> {
    let bytes: &[u8; RECORD_SIZE] = bytes.try_into().ok()?;
    let mut words = [0; RECORD_SIZE / 8];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = bytes.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b));
    }
    Some(words)
}

impl Command {
    pub(crate) fn encode(self) -> [u8; RECORD_SIZE] {
        to_bytes(match self {
            Command::Spawn { slot, generation } => [1, slot.into(), generation.into(), 0, 0, 0, 0, 0],
            Command::Signal { slot, generation, signal } => {
                [2, slot.into(), generation.into(), signal as u64, 0, 0, 0, 0]
            }
            Command::FreePrints { slot, generation } => [3, slot.into(), generation.into(), 0, 0, 0, 0, 0],
        })
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let [kind, slot, generation, value, 0, 0, 0, 0] = to_words(bytes)? else { return None };
        let slot = u32::try_from(slot).ok()?;
        let generation = u32::try_from(generation).ok()?;
        match (kind, value) {
            (1, 0) => Some(Command::Spawn { slot, generation }),
            (2, 1..=SIGNAL_MAX) => Some(Command::Signal { slot, generation, signal: value as i32 }),
            (3, 0) => Some(Command::FreePrints { slot, generation }),
            _ => None,
        }
    }
}

impl Report {
    pub(crate) fn encode(self) -> [u8; RECORD_SIZE] {
        to_bytes(match self {
            Report::Spawned { slot, generation, pid } => [1, slot.into(), generation.into(), pid as u64, 0, 0, 0, 0],
            Report::SpawnFailed { slot, generation, errno } => {
                [2, slot.into(), generation.into(), errno as u64, 0, 0, 0, 0]
            }
            Report::Exited { slot, generation, report, oom } => {
                let (kind, value) = match report.exit {
                    Exit::Code(n) => (3, n),
                    Exit::Signal(n) => (4, n),
                };
                let kind = kind | oom.map_or(0, |oom| 1 + u64::from(oom)) << 8;
                let Usage { user_us, system_us, resident_max_kib } = report.usage;
                [kind, slot.into(), generation.into(), value as u64, user_us, system_us, resident_max_kib, 0]
            }
            Report::Obeyed => [5, 0, 0, 0, 0, 0, 0, 0],
            Report::Ready => [6, 0, 0, 0, 0, 0, 0, 0],
            Report::Refused(refusal) => {
                let [code, a, b] = refusal.to_words();
                [7, code, a, b, 0, 0, 0, 0]
            }
        })
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let [kind, slot, generation, value, user_us, system_us, resident_max_kib, 0] = to_words(bytes)? else {
            return None;
        };
        match [kind, slot, generation, value, user_us, system_us, resident_max_kib] {
            [5, 0, 0, 0, 0, 0, 0] => return Some(Report::Obeyed),
            [6, 0, 0, 0, 0, 0, 0] => return Some(Report::Ready),
            [7, code, a, b, 0, 0, 0] => return Refusal::from_words([code, a, b]).map(Report::Refused),
            _ => {}
        }
        let slot = u32::try_from(slot).ok()?;
        let generation = u32::try_from(generation).ok()?;
        let value = i32::try_from(value).ok()?;
        let usage = Usage { user_us, system_us, resident_max_kib };
        let oom = match kind >> 8 {
            0 => None,
            1 => Some(false),
            2 => Some(true),
            _ => return None,
        };
        let is_bare = oom.is_none() && usage == Usage::default();
        let exited = |exit| Report::Exited { slot, generation, report: ExitReport { exit, usage }, oom };
        Some(match kind & 0xff {
            1 if is_bare => Report::Spawned { slot, generation, pid: value },
            2 if is_bare => Report::SpawnFailed { slot, generation, errno: value },
            3 => exited(Exit::Code(value)),
            4 => exited(Exit::Signal(value)),
            _ => return None,
        })
    }
}

/// What the nursery and its workers need to know; inherited by the fork.
pub(crate) struct Setup {
    pub(crate) handlers: Handlers,
    pub(crate) nice: i32,
    /// Descriptors that workers keep besides their own.
    pub(crate) keep_fds: Vec<RawFd>,
}

/// The host's handle.
pub(crate) struct Nursery<S: Sys> {
    sys: S,
    socket: OwnedFd,
    pid: Pid,
    pidfd: OwnedFd,
    /// Commands that the socket had no room for, oldest first; at most four a slot: a stopped host sends no more.
    waiting: VecDeque<(Command, Option<Parcel>)>,
    /// Answers that it owes, and since when it has given none. Units: nanoseconds.
    due: usize,
    due_since_ns: u64,
    started_ns: u64,
    /// Executed, and has not said yet that it serves.
    starting: bool,
}

/// What travels with a spawn command.
pub(crate) struct Parcel {
    pub(crate) socket: OwnedFd,
    pub(crate) file: OwnedFd,
    pub(crate) lifeline: OwnedFd,
    pub(crate) print_file: Option<OwnedFd>,
}

impl<S: Sys> Nursery<S> {
    /// Forks the nursery. The caller has made sure that this process has one thread.
    pub(crate) fn start(sys: &S, setup: Setup) -> OsResult<Self> {
        let (socket, theirs) = sys.socketpair()?;
        let host = sys.pidfd_open(sys::own_pid())?;
        sys::flush_stdio();
        match sys.fork()? {
            Forked::Child => {
                let n = Process::run(sys.clone(), theirs, host, setup, VecDeque::new());
                sys::exit_now(if n.is_ok() { 0 } else { EXIT_OS })
            }
            Forked::Parent(pid) => {
                // Also done by the nursery itself; whoever is first, a Ctrl-C right now must not reach it.
                match sys::set_group(pid).and_then(|()| sys.pidfd_open(pid)) {
                    Ok(pidfd) => Ok(Self::new(sys.clone(), socket, pid, pidfd)),
                    Err(error) => {
                        discard(sys, pid);
                        Err(error)
                    }
                }
            }
        }
    }

    fn new(sys: S, socket: OwnedFd, pid: Pid, pidfd: OwnedFd) -> Self {
        let started_ns = sys.now_ns();
        let waiting = VecDeque::new();
        Self { sys, socket, pid, pidfd, waiting, due: 0, due_since_ns: 0, started_ns, starting: false }
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends a command, or keeps it until there is room. `false`: the nursery is gone.
    pub(crate) fn command(&mut self, command: Command, parcel: Option<Parcel>) -> OsResult<bool> {
        self.waiting.push_back((command, parcel));
        self.expect_answer();
        self.flush()
    }

    fn expect_answer(&mut self) {
        if self.due == 0 {
            self.due_since_ns = self.sys.now_ns();
        }
        self.due += 1;
    }

    /// Until when it has to give an answer, if it owes any. Units: nanoseconds.
    pub(crate) fn answer_due_ns(&self) -> Option<u64> {
        let limit = if self.starting { NURSERY_START_TIMEOUT } else { NURSERY_TIMEOUT };
        (self.due > 0).then(|| self.due_since_ns.saturating_add(limit.as_nanos() as u64))
    }

    /// Whoever should have looked stood still: the nursery may have, too, and has its time again.
    pub(crate) fn grant_time(&mut self) {
        self.due_since_ns = self.sys.now_ns();
    }

    /// Whether it serves already.
    pub(crate) fn is_ready(&self) -> bool {
        !self.starting
    }

    /// How long ago it was started. Units: nanoseconds.
    pub(crate) fn age_ns(&self) -> u64 {
        self.sys.now_ns().saturating_sub(self.started_ns)
    }

    /// Kills the nursery alone: its workers live on.
    pub(crate) fn kill(&self) {
        let _ = self.sys.kill(self.pid, SIGKILL);
    }

    /// Kills and reaps one that has not been asked for anything yet.
    pub(crate) fn discard(self) {
        discard(&self.sys, self.pid);
    }

    /// Reaps it if it has ended. `false`: it has not.
    pub(crate) fn is_reaped(&self) -> bool {
        // An error: reaped already, by a host that ignores SIGCHLD.
        !matches!(self.sys.reap(self.pid), Ok(None))
    }

    /// Sends what is kept. `false`: the nursery is gone.
    pub(crate) fn flush(&mut self) -> OsResult<bool> {
        while let Some((command, parcel)) = self.waiting.front() {
            let bytes = command.encode();
            let sent = match parcel {
                Some(p) => {
                    let mut fds = vec![p.socket.as_fd(), p.file.as_fd(), p.lifeline.as_fd()];
                    fds.extend(p.print_file.as_ref().map(OwnedFd::as_fd));
                    self.sys.send_fds(self.socket.as_fd(), &bytes, &fds, Wait::Never)?
                }
                None => self.sys.send(self.socket.as_fd(), &[IoSlice::new(&bytes)], Wait::Never)?,
            };
            match sent {
                Sent::All => drop(self.waiting.pop_front()),
                Sent::WouldBlock | Sent::NoMemory => return Ok(true),
                Sent::Closed => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Whether commands wait for room, or for it to serve.
    pub(crate) fn is_behind(&self) -> bool {
        self.starting || !self.waiting.is_empty()
    }

    /// The next report. `Err` holds what ended the conversation.
    pub(crate) fn next_report(&mut self) -> OsResult<Heard> {
        let mut bytes = [0; RECORD_SIZE];
        let received = self.sys.recv(self.socket.as_fd(), &mut [IoSliceMut::new(&mut bytes)], Wait::Never)?;
        Ok(match received {
            Received::Packet(n) => match Report::decode(&bytes[..n]) {
                Some(report) => {
                    if report.is_answer() {
                        self.due = self.due.saturating_sub(1);
                        self.due_since_ns = self.sys.now_ns();
                    }
                    self.starting &= report != Report::Ready;
                    Heard::Report(report)
                }
                None => Heard::Gone,
            },
            Received::WouldBlock => Heard::Nothing,
            Received::Reset => Heard::Again,
            Received::Closed | Received::Truncated => Heard::Gone,
        })
    }

    /// Ends the nursery and with it everything that it has; kills it if it does not answer in time.
    pub(crate) fn shut_down(self) {
        let Self { sys, socket, pid, pidfd, waiting, .. } = self;
        drop(waiting);
        // End of file is the order to end, also when a forked child of the host holds a copy of this end.
        let _ = sys.shutdown(socket.as_fd());
        drop(socket);
        let wait_for_end = || {
            let deadline = sys.now_ns() + SHUTDOWN_TIMEOUT.as_nanos() as u64;
            loop {
                let left = deadline.saturating_sub(sys.now_ns());
                let mut poll = [PollFd::new(pidfd.as_fd(), Interest::READ)];
                let ended = sys.poll(&mut poll, Some(left)).is_err() || poll[0].readiness().is_readable();
                if ended || left == 0 {
                    break;
                }
            }
        };
        wait_for_end();
        match sys.reap(pid) {
            Ok(None) => {}
            // Reaped, or by a host that ignores SIGCHLD.
            _ => return,
        }
        let _ = sys.kill(pid, SIGKILL);
        // A wait that a signal cut short would leave it unreaped.
        wait_for_end();
        let _ = sys.reap(pid);
    }
}

/// Ends a nursery that has not been asked for anything yet.
fn discard<S: Sys>(sys: &S, pid: Pid) {
    let _ = sys.kill(pid, SIGKILL);
    while let Ok(None) = sys.reap(pid) {
        sys.yield_now();
    }
}

/// What a look at the nursery's socket brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// A report.
    Report(Report),
    /// Nothing now.
    Nothing,
    /// Look again.
    Again,
    /// The nursery is gone, or speaks nonsense.
    Gone,
}

/// One worker, as its parent knows it.
struct Child {
    pid: Pid,
    slot: u32,
    generation: u32,
    /// What it prints into, and who is giving back memory of that.
    prints: Option<PrintFile>,
    freeing: Option<Pid>,
}

/// The nursery itself.
struct Process<S: Sys> {
    sys: S,
    socket: OwnedFd,
    host: OwnedFd,
    signals: SignalFd,
    /// Never dropped here: what handlers captured has been dropped by the host already.
    setup: ManuallyDrop<Setup>,
    children: Vec<Child>,
    /// Reports that the host has not taken yet; at most three a slot.
    reports: VecDeque<Report>,
    /// Scratch for the list of children.
    pids: Vec<Pid>,
    oom: OomWatch,
}

/// Makes this process a nursery, which keeps nothing but these descriptors. Returns where it hears of deaths.
fn become_nursery(socket: &OwnedFd, host: &OwnedFd, keep_fds: &[RawFd]) -> OsResult<SignalFd> {
    sys::become_group_leader()?;
    sys::reset_signals();
    sys::set_name(c"seqpool-nursery");
    sys::become_subreaper()?;
    let signals = SignalFd::block_and_open(&SignalSet::of(&[SIGCHLD]))?;
    let mut keep = vec![socket.as_raw_fd(), host.as_raw_fd(), signals.as_fd().as_raw_fd()];
    keep.extend_from_slice(keep_fds);
    sys::close_all_except(&keep)?;
    sys::detach_stdio()?;
    Ok(signals)
}

/// Tells the host why this process does not serve.
fn refuse<S: Sys>(sys: &S, socket: &OwnedFd, refusal: Refusal) {
    let bytes = Report::Refused(refusal).encode();
    // Nobody is left to be told otherwise.
    let _ = sys.send(socket.as_fd(), &[IoSlice::new(&bytes)], Wait::UntilReady);
}

impl<S: Sys> Process<S> {
    /// The nursery's whole life. `reports` are what the host is told first.
    fn run(sys: S, socket: OwnedFd, host: OwnedFd, setup: Setup, reports: VecDeque<Report>) -> OsResult<()> {
        let setup = ManuallyDrop::new(setup);
        let signals = match become_nursery(&socket, &host, &setup.keep_fds) {
            Ok(signals) => signals,
            Err(error) => {
                refuse(&sys, &socket, Refusal::Os { errno: error.errno });
                return Err(error);
            }
        };
        let (children, pids) = (Vec::new(), Vec::new());
        let oom = OomWatch::new(&setup.handlers.limits);
        let mut process = Self { sys, socket, host, signals, setup, children, reports, pids, oom };
        let result = process.serve();
        process.end_everything();
        process.oom.remove_groups();
        result
    }

    fn serve(&mut self) -> OsResult<()> {
        loop {
            let mut interest = Interest::READ;
            if !self.reports.is_empty() {
                interest = interest.and(Interest::WRITE);
            }
            let mut poll = [
                PollFd::new(self.socket.as_fd(), interest),
                PollFd::new(self.host.as_fd(), Interest::READ),
                PollFd::new(self.signals.as_fd(), Interest::READ),
            ];
            self.sys.poll(&mut poll, None)?;
            let [socket, host, signals] = poll.map(|p| p.readiness());
            if host.is_readable() {
                return Ok(());
            }
            if signals.is_readable() {
                while self.signals.next_signal()?.is_some() {}
                self.reap_all()?;
            }
            if !self.send_reports()? || (socket.is_readable() && !self.obey()?) {
                return Ok(());
            }
        }
    }

    /// Takes all commands that are there. `false`: the host is gone.
    fn obey(&mut self) -> OsResult<bool> {
        loop {
            let mut bytes = [0; RECORD_SIZE];
            let mut passed = Passed::default();
            match self.sys.recv_fds(self.socket.as_fd(), &mut bytes, &mut passed, Wait::Never)? {
                Received::Packet(n) => match Command::decode(&bytes[..n]) {
                    Some(Command::Spawn { slot, generation }) => self.spawn(slot, generation, passed)?,
                    Some(Command::Signal { slot, generation, signal }) => {
                        self.signal(slot, generation, signal);
                        self.report(Report::Obeyed)?;
                    }
                    Some(Command::FreePrints { slot, generation }) => {
                        self.free_prints(slot, generation);
                        self.report(Report::Obeyed)?;
                    }
                    // Nobody but the host has the other end: nonsense means that it is broken.
                    None => return Ok(false),
                },
                Received::WouldBlock => return Ok(true),
                Received::Reset => {}
                // This process is at its limit of descriptors; the command itself is whole.
                Received::Truncated => match Command::decode(&bytes) {
                    Some(Command::Spawn { slot, generation }) => {
                        self.report(Report::SpawnFailed { slot, generation, errno: EMFILE })?;
                    }
                    _ => return Ok(false),
                },
                Received::Closed => return Ok(false),
            }
        }
    }

    /// Sends a signal to a worker and its group, if it is still the one in its slot.
    fn signal(&self, slot: u32, generation: u32, signal: i32) {
        if let Some(c) = self.children.iter().find(|c| c.slot == slot && c.generation == generation) {
            let _ = self.sys.kill(-c.pid, signal);
            // It may have left its group. Of these it does not matter if it gets two.
            if matches!(signal, SIGKILL | SIGSTOP | SIGCONT) {
                let _ = self.sys.kill(c.pid, signal);
            }
        }
    }

    fn spawn(&mut self, slot: u32, generation: u32, mut passed: Passed) -> OsResult<()> {
        let (Some(socket), Some(file), Some(lifeline)) = (passed.take(0), passed.take(1), passed.take(2)) else {
            return self.report(Report::SpawnFailed { slot, generation, errno: EBADF });
        };
        let print_file = passed.take(3);
        match self.sys.fork() {
            Ok(Forked::Child) => self.become_worker(slot, generation, Parcel { socket, file, lifeline, print_file }),
            Ok(Forked::Parent(pid)) => {
                // Also done by the worker itself: a kill of its group must find the group.
                sys::set_group(pid)?;
                let prints = print_file.map(PrintFile::from_fd);
                self.children.push(Child { pid, slot, generation, prints, freeing: None });
                self.report(Report::Obeyed)
            }
            Err(OsError { errno, .. }) => self.report(Report::SpawnFailed { slot, generation, errno }),
        }
    }

    fn become_worker(&mut self, slot: u32, generation: u32, parcel: Parcel) -> ! {
        let pid = sys::own_pid();
        let ready = self
            .announce(Report::Spawned { slot, generation, pid })
            .and_then(|heard| Ok(heard && self.prepare_worker(slot, &parcel)?));
        match ready {
            Ok(true) => {}
            Ok(false) => sys::exit_now(EXIT_ORPHAN),
            Err(_) => sys::exit_now(EXIT_OS),
        }
        let Parcel { socket, file, lifeline, print_file } = parcel;
        let file = SlotFile::from_fd(file);
        let Ok(memory) = file.map(&self.sys) else { sys::exit_now(EXIT_OS) };
        drop(file);
        let info = WorkerInfo { slot: slot as usize, generation };
        worker::run(self.sys.clone(), socket, lifeline, memory, print_file, &mut self.setup.handlers, info)
    }

    /// Tells the host of a fresh fork, however long it does not listen. `false`: it is gone.
    fn announce(&self, report: Report) -> OsResult<bool> {
        loop {
            match self.sys.send(self.socket.as_fd(), &[IoSlice::new(&report.encode())], Wait::UntilReady)? {
                Sent::All => return Ok(true),
                Sent::Closed => return Ok(false),
                Sent::WouldBlock | Sent::NoMemory => self.sys.yield_now(),
            }
        }
    }

    /// Makes a fresh fork a worker. `false`: the host died meanwhile.
    fn prepare_worker(&self, slot: u32, parcel: &Parcel) -> OsResult<bool> {
        let Parcel { socket, file, lifeline, print_file } = parcel;
        sys::become_group_leader()?;
        // Dispositions are the default ones since the nursery's own start.
        sys::unblock_signals();
        if !sys::arm_lifeline(lifeline.as_fd())? {
            return Ok(false);
        }
        let mut keep = vec![socket.as_raw_fd(), file.as_raw_fd(), lifeline.as_raw_fd()];
        keep.extend(print_file.as_ref().map(OwnedFd::as_raw_fd));
        keep.extend_from_slice(&self.setup.keep_fds);
        sys::close_all_except(&keep)?;
        sys::forbid_core_files()?;
        if let Ok(name) = std::ffi::CString::new(format!("seqpool-w{slot}")) {
            sys::set_name(&name);
        }
        if self.setup.nice != 0 {
            sys::set_nice(self.setup.nice)?;
        }
        Ok(true)
    }

    /// Has the memory of what a worker has printed given back. In a process of its own: it waits while somebody is in the
    /// midst of printing, which may be for ever, and nobody may wait for that.
    fn free_prints(&mut self, slot: u32, generation: u32) {
        let keep = self.setup.handlers.prints.size_max();
        let child = self.children.iter_mut().find(|c| c.slot == slot && c.generation == generation);
        let Some(Child { prints: Some(prints), freeing: freeing @ None, .. }) = child else { return };
        match self.sys.fork() {
            Ok(Forked::Child) => {
                // Its end must not seem to be this process's.
                let _ = sys::close_all_except(&[prints.as_fd().as_raw_fd()]);
                prints.free_in_flood(keep);
                sys::exit_now(0)
            }
            Ok(Forked::Parent(pid)) => *freeing = Some(pid),
            // The host asks again.
            Err(_) => {}
        }
    }

    /// Whether a process that has ended was giving back memory.
    fn has_freed(&mut self, pid: Pid) -> bool {
        let found = self.children.iter_mut().find(|c| c.freeing == Some(pid));
        found.is_some_and(|c| c.freeing.take().is_some())
    }

    fn report(&mut self, report: Report) -> OsResult<()> {
        self.reports.push_back(report);
        self.send_reports().map(drop)
    }

    /// Sends what the host has room for. `false`: the host is gone.
    fn send_reports(&mut self) -> OsResult<bool> {
        while let Some(report) = self.reports.front() {
            let bytes = report.encode();
            match self.sys.send(self.socket.as_fd(), &[IoSlice::new(&bytes)], Wait::Never)? {
                Sent::All => drop(self.reports.pop_front()),
                Sent::WouldBlock | Sent::NoMemory => return Ok(true),
                Sent::Closed => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Reaps everybody who has ended: many deaths may have come as one signal.
    fn reap_all(&mut self) -> OsResult<()> {
        let mut leftovers = false;
        while let Some(pid) = self.sys.peek_exited_child()? {
            let has_freed = self.has_freed(pid);
            leftovers |= !has_freed;
            let child = self.children.iter().position(|c| c.pid == pid);
            if child.is_some() {
                // Before it is reaped, so that its id still names its group and nobody else's. What has become another
                // user's may not be ours to kill; that ends no pool.
                let _ = self.sys.kill(-pid, SIGKILL);
            }
            let Some(report) = self.sys.reap(pid)? else { continue };
            if let Some(c) = child.map(|i| self.children.swap_remove(i)) {
                let oom = self.oom.verdict(c.slot, report.exit);
                self.report(Report::Exited { slot: c.slot, generation: c.generation, report, oom })?;
            }
        }
        if leftovers {
            self.kill_adopted()?;
        }
        Ok(())
    }

    /// Kills every child that is not a worker: what dead workers left behind, in whatever group or session.
    /// Their own children arrive here when they have died, and then it is their turn.
    fn kill_adopted(&mut self) -> OsResult<()> {
        sys::children(&mut self.pids);
        for &pid in &self.pids {
            if !self.children.iter().any(|c| c.pid == pid) {
                // One that has become another user's may not be ours to kill; that ends no pool.
                let _ = self.sys.kill(pid, SIGKILL);
            }
        }
        Ok(())
    }

    /// Kills workers and all that is left of others, until nobody remains.
    fn end_everything(&mut self) {
        let deadline = self.sys.now_ns() + SHUTDOWN_TIMEOUT.as_nanos() as u64;
        for c in &self.children {
            let _ = self.sys.kill(-c.pid, SIGKILL);
        }
        loop {
            while let Ok(Some(pid)) = self.sys.peek_exited_child() {
                if let Some(i) = self.children.iter().position(|c| c.pid == pid) {
                    self.children.swap_remove(i);
                    let _ = self.sys.kill(-pid, SIGKILL);
                }
                let _ = self.sys.reap(pid);
            }
            sys::children(&mut self.pids);
            if self.pids.is_empty() || self.sys.now_ns() >= deadline {
                return;
            }
            for &pid in &self.pids {
                let _ = self.sys.kill(pid, SIGKILL);
            }
            let mut poll = [PollFd::new(self.signals.as_fd(), Interest::READ)];
            // A signal may have been read already: look again soon in any case.
            let _ = self.sys.poll(&mut poll, Some(2_000_000));
            while let Ok(Some(_)) = self.signals.next_signal() {}
        }
    }
}

const EBADF: i32 = 9;
const EMFILE: i32 = 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_the_trip_and_nonsense_is_refused() {
        let usage = Usage { user_us: 1, system_us: u64::MAX, resident_max_kib: 3 };
        for report in [
            Report::Spawned { slot: 0, generation: u32::MAX, pid: i32::MAX },
            Report::SpawnFailed { slot: 7, generation: 1, errno: 11 },
            Report::Exited { slot: 1, generation: 2, report: ExitReport { exit: Exit::Code(255), usage }, oom: None },
            Report::Exited {
                slot: 1,
                generation: 2,
                report: ExitReport { exit: Exit::Signal(9), usage },
                oom: Some(true),
            },
            Report::Exited {
                slot: 1,
                generation: 2,
                report: ExitReport { exit: Exit::Signal(9), usage },
                oom: Some(false),
            },
            Report::Obeyed,
            Report::Ready,
            Report::Refused(Refusal::Handlers { handlers: u32::MAX, on_start: 0 }),
            Report::Refused(Refusal::KeptFd { number: 1023, errno: 9 }),
            Report::Refused(Refusal::Threads { count: 2 }),
            Report::Refused(Refusal::Os { errno: 24 }),
        ] {
            assert_eq!(Report::decode(&report.encode()), Some(report));
        }
        for command in [
            Command::Spawn { slot: 3, generation: 4 },
            Command::Signal { slot: u32::MAX, generation: 0, signal: 1 },
            Command::FreePrints { slot: 0, generation: u32::MAX },
        ] {
            assert_eq!(Command::decode(&command.encode()), Some(command));
        }
        let good = Command::Signal { slot: 1, generation: 1, signal: 9 }.encode();
        assert_eq!(Command::decode(&good[..63]), None);
        for byte in [0, 12, 20, 24, 63] {
            let mut bad = good;
            bad[byte] ^= 0x80;
            assert_eq!(Command::decode(&bad), None, "byte {byte}");
        }
    }
}
