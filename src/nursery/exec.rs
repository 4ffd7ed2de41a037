//! The nursery in a program of its own: this program, executed again.
//!
//! A fork of a process that has threads, or has grown, is unsafe or slow. So the host starts its own program once more,
//! with the nursery's socket as standard input and a mark in the environment. The new process is small and has one
//! thread; it builds the handlers anew and goes on as a forked nursery would.
//!
//! What a fork would have inherited comes first on the socket: one [`Opening`] with the host's pidfd, then a record for
//! every few kept descriptors. The nursery answers with [`Report::Ready`], or with [`Report::Refused`] and ends.

use super::{Nursery, Process, RECORD_SIZE, Report, Setup, Words, refuse, to_bytes, to_words};
use crate::limits::{KEPT_FDS_MAX, NURSERY_START_TIMEOUT};
use crate::nursery::Heard;
use crate::prints::Prints;
use crate::sys::{self, Exit, FDS_MAX, Interest, Linux, OsError, OsResult, Passed, PollFd, Received, Sent, Sys, Wait};
use crate::worker::{EXIT_ORPHAN, EXIT_OS, Handlers, LIMIT_WORDS, WorkerLimits};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

/// The variable that makes a process a nursery. It is removed before any code of the program's own runs.
const MARK: &str = "SEQPOOL_NURSERY";
/// Such a process leaves with this code when nobody, or nobody sensible, is at the other end.
const EXIT_USAGE: i32 = 2;
/// What the nursery is called, after what the host is called.
const TITLE: &str = ": seqpool nursery";

/// Bytes of the first packet.
const OPENING_SIZE: usize = 256;
const _: () = assert!(RECORD_SIZE + 8 * LIMIT_WORDS <= OPENING_SIZE);
/// `seqpool` and the version of what follows.
const OPENING_KIND: u64 = u64::from_le_bytes(*b"seqpool\x01");
const KEPT_KIND: u64 = u64::from_le_bytes(*b"keptfds\x01");
/// Beside a kept descriptor's number: it is closed on exec.
const CLOSE_ON_EXEC: u64 = 1 << 31;
/// Two to a word, after the kind and the count.
const _: () = assert!(2 + FDS_MAX / 2 <= RECORD_SIZE / 8 && FDS_MAX.is_multiple_of(2));

const EMFILE: i32 = 24;
const ENOBUFS: i32 = 105;

/// What handlers there are, so that two lists can be compared without being sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Roll {
    handlers: u32,
    on_start: u32,
    /// FNV-1a (Fowler, Noll and Vo) of the names in order, each after its size.
    names: u64,
}

impl Roll {
    fn of(handlers: &Handlers) -> Self {
        let mut names = 0xcbf2_9ce4_8422_2325_u64;
        let mut add = |bytes: &[u8]| {
            for &byte in bytes {
                names = (names ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
            }
        };
        for (name, _) in &handlers.by_id {
            add(&(name.len() as u64).to_le_bytes());
            add(name.as_bytes());
        }
        Self { handlers: handlers.by_id.len() as u32, on_start: handlers.on_start.len() as u32, names }
    }
}

/// What the host tells the nursery first; its handlers come from the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Opening {
    roll: Roll,
    job_size_max: u64,
    nice: i32,
    kept: u32,
    prints: Prints,
    /// [`WorkerLimits`].
    limits: [u64; LIMIT_WORDS],
}

impl Opening {
    fn encode(&self) -> [u8; OPENING_SIZE] {
        let Self { roll: Roll { handlers, on_start, names }, job_size_max, nice, kept, prints, limits } = *self;
        let counts = [handlers, on_start].map(u64::from);
        let nice = u64::from(nice as u32);
        let words = [OPENING_KIND, counts[0], counts[1], names, job_size_max, nice, kept.into(), prints.to_word()];
        let mut out = [0; OPENING_SIZE];
        for (room, word) in out.chunks_exact_mut(8).zip(words.into_iter().chain(limits)) {
            room.copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; OPENING_SIZE] = bytes.try_into().ok()?;
        let (words, rest) = bytes.split_first_chunk::<RECORD_SIZE>()?;
        let [OPENING_KIND, handlers, on_start, names, job_size_max, nice, kept, prints] = to_words(words)? else {
            return None;
        };
        let small = |word: u64| u32::try_from(word).ok();
        let roll = Roll { handlers: small(handlers)?, on_start: small(on_start)?, names };
        let nice = small(nice)? as i32;
        let kept = small(kept)?;
        let (limit_bytes, rest) = rest.split_at(8 * LIMIT_WORDS);
        let mut limits = [0; LIMIT_WORDS];
        for (word, bytes) in limits.iter_mut().zip(limit_bytes.chunks_exact(8)) {
            *word = bytes.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b));
        }
        WorkerLimits::from_words(limits)?;
        let is_sane = rest.iter().all(|&b| b == 0) && kept as usize <= KEPT_FDS_MAX && (-20..=19).contains(&nice);
        let prints = Prints::from_word(prints)?;
        is_sane.then_some(Self { roll, job_size_max, nice, kept, prints, limits })
    }
}

/// A descriptor that workers keep: its number, and whether it is closed on exec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kept {
    number: RawFd,
    close_on_exec: bool,
}

fn encode_kept(kept: &[Kept]) -> [u8; RECORD_SIZE] {
    let mut words: Words = [0; RECORD_SIZE / 8];
    (words[0], words[1]) = (KEPT_KIND, kept.len() as u64);
    for (i, k) in kept.iter().enumerate() {
        let half = u64::from(k.number as u32) | if k.close_on_exec { CLOSE_ON_EXEC } else { 0 };
        words[2 + i / 2] |= half << (32 * (i % 2));
    }
    to_bytes(words)
}

fn decode_kept(bytes: &[u8]) -> Option<Vec<Kept>> {
    let words = to_words(bytes)?;
    let count = usize::try_from(words[1]).ok().filter(|count| (1..=FDS_MAX).contains(count))?;
    if words[0] != KEPT_KIND {
        return None;
    }
    let half = |i: usize| words[2 + i / 2] >> (32 * (i % 2)) & 0xffff_ffff;
    let kept = (0..count).map(|i| Kept {
        number: (half(i) & (CLOSE_ON_EXEC - 1)) as RawFd,
        close_on_exec: half(i) & CLOSE_ON_EXEC != 0,
    });
    let kept: Vec<_> = kept.collect();
    kept.iter().all(|k| k.number > 2).then_some(kept)
}

/// Why a nursery that was started properly does not serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It has other handlers: so many of them, and so many set-up functions.
    Handlers { handlers: u32, on_start: u32 },
    /// A kept descriptor cannot have its number here.
    KeptFd { number: RawFd, errno: i32 },
    /// It has threads already.
    Threads { count: u32 },
    /// Something is short.
    Os { errno: i32 },
}

impl Refusal {
    /// Code and two numbers.
    pub(super) fn to_words(self) -> [u64; 3] {
        match self {
            Refusal::Handlers { handlers, on_start } => [1, handlers.into(), on_start.into()],
            Refusal::KeptFd { number, errno } => [2, number as u64, errno as u64],
            Refusal::Threads { count } => [3, count.into(), 0],
            Refusal::Os { errno } => [4, errno as u64, 0],
        }
    }

    pub(super) fn from_words([code, a, b]: [u64; 3]) -> Option<Self> {
        let (a, b) = (u32::try_from(a).ok()?, u32::try_from(b).ok()?);
        let signed = |word| i32::try_from(word).ok();
        Some(match (code, b) {
            (1, _) => Refusal::Handlers { handlers: a, on_start: b },
            (2, _) => Refusal::KeptFd { number: signed(a)?, errno: signed(b)? },
            (3, 0) => Refusal::Threads { count: a },
            (4, 0) => Refusal::Os { errno: signed(a)? },
            _ => return None,
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = std::io::Error::from_raw_os_error;
        match *self {
            Refusal::Handlers { handlers, on_start } => write!(
                f,
                "the handlers differ: executed again, this program has {handlers} and {on_start} set-up functions, or \
                 other names; what is given to seqpool::init must add the same ones each time"
            ),
            Refusal::KeptFd { number, errno } => {
                write!(f, "the kept descriptor {number} cannot have that number there: {}", reason(errno))
            }
            Refusal::Threads { count } => write!(
                f,
                "executed again, this program has {count} threads before it calls seqpool::init; let it stand first in \
                 main"
            ),
            Refusal::Os { errno } => write!(f, "{}", reason(errno)),
        }
    }
}

/// Why a nursery that was executed does not serve, as its host sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StartError {
    Os(OsError),
    Refused(Refusal),
    /// `None`: nobody knows how.
    Ended(Option<Exit>),
    TimedOut,
}

impl From<OsError> for StartError {
    fn from(error: OsError) -> Self {
        StartError::Os(error)
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hint = "does seqpool::init stand first in main?";
        match self {
            StartError::Os(error) => write!(f, "{error}"),
            StartError::Refused(refusal) => write!(f, "{refusal}"),
            StartError::Ended(Some(Exit::Code(code))) => {
                write!(f, "it ended with exit code {code} before it was ready; {hint}")
            }
            StartError::Ended(Some(Exit::Signal(signal))) => {
                write!(f, "it ended by signal {signal} before it was ready")
            }
            StartError::Ended(None) => write!(f, "it ended before it was ready; {hint}"),
            StartError::TimedOut => {
                write!(f, "it was not ready within {} s; {hint}", NURSERY_START_TIMEOUT.as_secs())
            }
        }
    }
}

// ---- the host's side

/// All that it takes to execute a nursery, again and again.
pub(crate) struct Plan {
    opening: Opening,
    kept: Vec<(Kept, OwnedFd)>,
    title: OsString,
}

impl Plan {
    /// What a fork would have inherited. Handlers are only counted, and dropped.
    ///
    /// # Errors
    /// The number of a kept descriptor that is not open, and why; also when descriptors are short.
    pub(crate) fn new(setup: Setup) -> Result<Self, (RawFd, OsError)> {
        let Setup { handlers, nice, keep_fds } = setup;
        // Standard streams are the workers' own, here as in a fork.
        let mut numbers: Vec<RawFd> = keep_fds.into_iter().filter(|&fd| fd > 2).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let kept = numbers.into_iter().map(|number| match sys::duplicate_number(number) {
            Ok((fd, close_on_exec)) => Ok((Kept { number, close_on_exec }, fd)),
            Err(error) => Err((number, error)),
        });
        let kept = kept.collect::<Result<Vec<_>, _>>()?;
        let job_size_max = handlers.job_size_max as u64;
        let (roll, prints) = (Roll::of(&handlers), handlers.prints);
        let limits = handlers.limits.to_words();
        let opening = Opening { roll, job_size_max, nice, kept: kept.len() as u32, prints, limits };
        let mut title = sys::own_title();
        title.push(TITLE);
        Ok(Self { opening, kept, title })
    }
}

impl<S: Sys> Nursery<S> {
    /// Executes this program again as a nursery. It may be given commands at once, and says [`Report::Ready`] when it
    /// has built its handlers.
    pub(crate) fn exec(sys: &S, plan: &Plan) -> OsResult<Self> {
        let (socket, theirs) = sys.socketpair()?;
        let host = sys.pidfd_open(sys::own_pid())?;
        // What is sent first always fits the buffer, unless the machine allows only a tiny one.
        sys.set_socket_timeouts(socket.as_fd(), NURSERY_START_TIMEOUT.as_nanos() as u64)?;
        let pid = sys::start_self(&plan.title, MARK, theirs.as_fd())?;
        drop(theirs);
        let opened = sys.pidfd_open(pid).and_then(|pidfd| {
            let sent = sys.send_fds(socket.as_fd(), &plan.opening.encode(), &[host.as_fd()], Wait::UntilReady)?;
            let mut all = vec![sent];
            for kept in plan.kept.chunks(FDS_MAX) {
                let (numbers, fds): (Vec<Kept>, Vec<BorrowedFd<'_>>) =
                    kept.iter().map(|(k, fd)| (*k, fd.as_fd())).unzip();
                all.push(sys.send_fds(socket.as_fd(), &encode_kept(&numbers), &fds, Wait::UntilReady)?);
            }
            // One that is gone already tells that by its socket.
            match all.iter().all(|sent| matches!(sent, Sent::All | Sent::Closed)) {
                true => Ok(pidfd),
                false => Err(OsError { call: "sendmsg", errno: ENOBUFS }),
            }
        });
        match opened {
            Ok(pidfd) => {
                let mut nursery = Self::new(sys.clone(), socket, pid, pidfd);
                nursery.starting = true;
                nursery.expect_answer();
                Ok(nursery)
            }
            Err(error) => {
                super::discard(sys, pid);
                Err(error)
            }
        }
    }

    /// Waits until an executed nursery serves. One that does not is ended.
    pub(crate) fn await_ready(mut self) -> Result<Self, StartError> {
        match self.wait_for_ready() {
            Ok(()) => Ok(self),
            Err(error) => {
                let Self { sys, pid, .. } = &self;
                // Its exit code says most about one that ended by itself.
                let error = match (error, sys.reap(*pid)) {
                    (StartError::Ended(None), Ok(Some(report))) => return Err(StartError::Ended(Some(report.exit))),
                    (error, _) => error,
                };
                super::discard(sys, *pid);
                Err(error)
            }
        }
    }

    fn wait_for_ready(&mut self) -> Result<(), StartError> {
        let deadline_ns = self.sys.now_ns() + NURSERY_START_TIMEOUT.as_nanos() as u64;
        let mut is_silent = false;
        loop {
            match self.next_report()? {
                Heard::Report(Report::Ready) => return Ok(()),
                Heard::Report(Report::Refused(refusal)) => return Err(StartError::Refused(refusal)),
                Heard::Again => continue,
                Heard::Nothing => {}
                // Its socket closes before it can be reaped: its end is awaited.
                Heard::Report(_) | Heard::Gone => is_silent = true,
            }
            let left_ns = deadline_ns.saturating_sub(self.sys.now_ns());
            if left_ns == 0 {
                return Err(StartError::TimedOut);
            }
            let end = PollFd::new(self.pidfd.as_fd(), Interest::READ);
            let mut poll = [end, PollFd::new(self.socket.as_fd(), Interest::READ)];
            let poll = &mut poll[..if is_silent { 1 } else { 2 }];
            self.sys.poll(poll, Some(left_ns))?;
            if is_silent && poll[0].readiness().is_readable() {
                return Err(StartError::Ended(None));
            }
        }
    }
}

// ---- the nursery's side

/// Whether this process was started to be a nursery.
pub(crate) fn is_marked() -> bool {
    sys::has_variable(MARK)
}

/// Why a marked process is none.
enum Trouble {
    /// There is no host at the other end, or it speaks nonsense.
    NoHost(String),
    /// The host is gone.
    HostGone,
    Refusal(Refusal),
}

impl From<Refusal> for Trouble {
    fn from(refusal: Refusal) -> Self {
        Trouble::Refusal(refusal)
    }
}

impl From<OsError> for Trouble {
    fn from(error: OsError) -> Self {
        Trouble::Refusal(Refusal::Os { errno: error.errno })
    }
}

/// Serves a host, with the handlers that `build` makes. The process ends with it.
pub(crate) fn serve(build: impl FnOnce() -> Handlers) -> ! {
    let sys = Linux;
    let mut socket = match take_socket(&sys) {
        Ok(socket) => socket,
        Err(error) => leave_without_host(&format!("standard input is no nursery's socket ({error})")),
    };
    let refusal = match prepare(&sys, &mut socket, build) {
        Ok((host, setup)) => {
            let served = Process::run(sys, socket, host, setup, VecDeque::from([Report::Ready]));
            sys::exit_now(if served.is_ok() { 0 } else { EXIT_OS })
        }
        Err(Trouble::Refusal(refusal)) => refusal,
        Err(Trouble::HostGone) => sys::exit_now(EXIT_ORPHAN),
        Err(Trouble::NoHost(what)) => leave_without_host(&what),
    };
    refuse(&sys, &socket, refusal);
    sys::exit_now(EXIT_USAGE)
}

fn leave_without_host(what: &str) -> ! {
    eprintln!(
        "seqpool: this process was started as a nursery ({MARK} is set), but {what}; unset {MARK} to run the program \
         itself"
    );
    sys::exit_now(EXIT_USAGE)
}

fn take_socket(sys: &Linux) -> OsResult<OwnedFd> {
    let socket = sys::copy_of_stdin()?;
    // Also what tells a socket from anything else.
    sys.set_socket_timeouts(socket.as_fd(), NURSERY_START_TIMEOUT.as_nanos() as u64)?;
    Ok(socket)
}

/// Takes over what a fork would have inherited.
fn prepare(sys: &Linux, socket: &mut OwnedFd, build: impl FnOnce() -> Handlers) -> Result<(OwnedFd, Setup), Trouble> {
    let count = sys::thread_count()?;
    if count != 1 {
        return Err(Refusal::Threads { count: u32::try_from(count).unwrap_or(u32::MAX) }.into());
    }
    sys::remove_variable(MARK);
    sys::set_name(c"seqpool-nursery");
    let mut bytes = [0; OPENING_SIZE];
    let (size, mut passed) = receive(sys, socket, &mut bytes)?;
    let (Some(opening), 1, Some(mut host)) = (Opening::decode(&bytes[..size]), passed.len(), passed.take(0)) else {
        return Err(Trouble::NoHost("what comes first on its socket is no opening of this version".to_owned()));
    };
    // Neither what `build` reads nor what it prints is the host's.
    sys::detach_stdio()?;
    let mut kept = Vec::new();
    while kept.len() < opening.kept as usize {
        let mut bytes = [0; RECORD_SIZE];
        let (size, mut passed) = receive(sys, socket, &mut bytes)?;
        let numbers = decode_kept(&bytes[..size]).filter(|numbers| numbers.len() == passed.len());
        let Some(numbers) = numbers else {
            return Err(Trouble::NoHost("its host announced kept descriptors and sent something else".to_owned()));
        };
        kept.extend(numbers.into_iter().enumerate().filter_map(|(i, k)| Some((k, passed.take(i)?))));
    }
    let numbers: Vec<RawFd> = kept.iter().map(|(k, _)| k.number).collect();
    // Nothing of ours may lie where a kept descriptor goes. Whatever else lies there would be closed anyway.
    let ours = [&mut *socket, &mut host].into_iter().chain(kept.iter_mut().map(|(_, fd)| fd));
    for fd in ours {
        if let Some(copy) = sys::copy_beside(fd.as_fd(), &numbers)? {
            *fd = copy;
        }
    }
    for (Kept { number, close_on_exec }, fd) in kept {
        sys::place_fd(fd, number, close_on_exec).map_err(|e| Refusal::KeptFd { number, errno: e.errno })?;
    }
    let mut handlers = build();
    let roll = Roll::of(&handlers);
    if roll != opening.roll {
        return Err(Refusal::Handlers { handlers: roll.handlers, on_start: roll.on_start }.into());
    }
    handlers.job_size_max = usize::try_from(opening.job_size_max).unwrap_or(usize::MAX);
    handlers.prints = opening.prints;
    handlers.limits = WorkerLimits::from_words(opening.limits).unwrap_or_default();
    Ok((host, Setup { handlers, nice: opening.nice, keep_fds: numbers }))
}

fn receive(sys: &Linux, socket: &OwnedFd, buffer: &mut [u8]) -> Result<(usize, Passed), Trouble> {
    let mut passed = Passed::default();
    match sys.recv_fds(socket.as_fd(), buffer, &mut passed, Wait::UntilReady) {
        Ok(Received::Packet(size)) => Ok((size, passed)),
        Ok(Received::WouldBlock) => {
            let within = NURSERY_START_TIMEOUT.as_secs();
            Err(Trouble::NoHost(format!("nothing comes on its socket within {within} s")))
        }
        Ok(Received::Closed | Received::Reset) => Err(Trouble::HostGone),
        Ok(Received::Truncated) => Err(Refusal::Os { errno: EMFILE }.into()),
        Err(error) => Err(Trouble::NoHost(format!("its socket fails ({error})"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::{MemoryLimit, OomScore};

    fn limits() -> WorkerLimits {
        let mut limits = WorkerLimits { tells_memory: true, ..WorkerLimits::default() };
        limits.memory = Some(MemoryLimit { growth: 1 << 40, group: None });
        limits.oom_score = OomScore::Exactly(-1000);
        (limits.rlimits[0], limits.rlimits[8]) = (Some((0, u64::MAX)), Some((7, 8)));
        limits
    }

    fn opening() -> Opening {
        let roll = Roll { handlers: 3, on_start: 1, names: u64::MAX };
        Opening {
            roll,
            job_size_max: 1 << 40,
            nice: -20,
            kept: KEPT_FDS_MAX as u32,
            prints: Prints::Both { size_max: 65_536 },
            limits: limits().to_words(),
        }
    }

    #[test]
    fn openings_survive_the_trip_and_nonsense_is_refused() {
        let good = opening().encode();
        assert_eq!(Opening::decode(&good), Some(opening()));
        assert_eq!(Opening::decode(&good[..OPENING_SIZE - 1]), None);
        // Kind, counts, nice, number of kept descriptors, prints and limits out of range, and every word that must be zero.
        let unused = (RECORD_SIZE + 8 * LIMIT_WORDS..OPENING_SIZE).step_by(8);
        for byte in [0, 7, 12, 20, 43, 44, 49, 53, 60, 65].into_iter().chain(unused) {
            let mut bad = good;
            bad[byte] ^= 0x80;
            assert_eq!(Opening::decode(&bad), None, "byte {byte}");
        }
    }

    #[test]
    fn kept_descriptors_survive_the_trip_and_nonsense_is_refused() {
        let all: Vec<_> = (0..FDS_MAX as i32)
            .map(|i| Kept { number: 3 + i * 1_000_000, close_on_exec: i % 3 == 0 })
            .chain([Kept { number: i32::MAX, close_on_exec: true }])
            .collect();
        for kept in all.windows(FDS_MAX).chain(all.windows(3)).chain(all.windows(1)) {
            assert_eq!(decode_kept(&encode_kept(kept)).as_deref(), Some(kept));
        }
        let good = encode_kept(&all[..2]);
        for (byte, value) in [(0, 0), (8, 0), (8, FDS_MAX as u8 + 1), (15, 1), (16, 2)] {
            let mut bad = good;
            bad[byte] = value;
            assert_eq!(decode_kept(&bad), None, "byte {byte} is {value}");
        }
        assert_eq!(decode_kept(&good[..63]), None);
    }

    #[test]
    fn rolls_differ_as_their_names_do() {
        let roll = |names: &[&str]| {
            let by_id = names.iter().map(|name| {
                let handler: crate::worker::Handler = Box::new(|_, _| Ok(()));
                ((*name).to_owned(), handler)
            });
            Roll::of(&Handlers {
                by_id: by_id.collect(),
                on_start: Vec::new(),
                job_size_max: 0,
                limits: WorkerLimits::default(),
                prints: Prints::default(),
            })
        };
        assert_eq!(roll(&["ab", "c"]), roll(&["ab", "c"]));
        for other in [&["a", "bc"][..], &["c", "ab"], &["ab"], &["ab", "c", ""], &["ab", "d"]] {
            assert_ne!(roll(&["ab", "c"]), roll(other), "{other:?}");
        }
    }
}
