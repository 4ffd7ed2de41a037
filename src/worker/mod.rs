//! Floor 3: what runs inside a forked worker.
//!
//! A worker owns its end of one socket, its own slot's memory and the handlers. It claims each frame, runs the handler
//! on the borrowed body, writes the result into the out-ring, publishes it, and sends what is packed. The socket
//! carries exactly the out-ring's bytes in order; only bytes already sent are freed. It never returns into the host's
//! code: every way out is `_exit` or a signal.
//!
//! The nursery calls [`run`] right after the fork.

mod capture;
mod limits;
mod meter;
mod out;
mod reply;

use crate::assembly::{Assembly, Taken};
use crate::chaos::Fate;
use crate::claim::{Claim, FrameId};
use crate::frame::{FLAG_FRAGMENT, Frame, Frames, Header, Headers, Kind, Status};
use crate::limits::{PACKET_SIZE_MAX, PRINTING_NS_MIN, RESULT_DELAY_NS, SEND_BUFFER_SIZE};
use crate::outcome::Outcome;
use crate::prints::Prints;
use crate::slot::{Phase, SlotMemory};
use crate::spin::Spin;
use crate::sys::{self, OsError, OsResult, Received, Sys, TickClock, Wait};
use capture::Capture;
pub(crate) use limits::{LIMIT_WORDS, MemoryLimit, OomScore, OomWatch, WorkerLimits};
pub use limits::{MemoryLimitKind, WorkerInfo};
use meter::Meter;
use out::Out;
pub use reply::Reply;
use reply::Spilled;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// What a handler may fail with; `?` turns any error into it, and `Err("text".into())` works.
pub type HandlerError = Box<dyn std::error::Error>;
/// A handler: reads the request, writes the reply.
pub(crate) type Handler = Box<dyn FnMut(&Request<'_>, &mut Reply<'_>) -> Result<(), HandlerError>>;
/// Set-up that runs in each worker before its first job.
pub(crate) type StartHook = Box<dyn FnMut(&WorkerInfo) -> Result<(), HandlerError>>;

/// A worker that breaks the protocol, or that sees it broken, leaves with this code.
pub(crate) const EXIT_PROTOCOL: i32 = 70;
/// Set-up failed.
pub(crate) const EXIT_START: i32 = 71;
/// A system call that must not fail did.
pub(crate) const EXIT_OS: i32 = 72;
const SIGKILL: i32 = 9;
/// `ENOMEM` on every Linux that Rust knows.
const ENOMEM: i32 = 12;
/// It was told to, by [`Chaos`](crate::Chaos).
pub(crate) const EXIT_CHAOS: i32 = 74;
/// The host is gone.
pub(crate) const EXIT_ORPHAN: i32 = 73;

/// What a handler sees of a job. Everything is borrowed from the packet that it came in.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    handler: &'a str,
    headers: Headers<'a>,
    body: &'a [u8],
}

impl<'a> Request<'a> {
    /// The job's body.
    #[inline]
    pub fn body(&self) -> &'a [u8] {
        self.body
    }

    /// The first header of this name.
    pub fn header(&self, key: &str) -> Option<&'a [u8]> {
        self.headers.get(key)
    }

    /// All headers in order.
    pub fn headers(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        self.headers.iter()
    }

    /// The name of the handler that this job asked for.
    pub fn handler(&self) -> &'a str {
        self.handler
    }
}

/// The handlers of a pool, in the order of their ids.
pub(crate) struct Handlers {
    pub(crate) by_id: Vec<(String, Handler)>,
    pub(crate) on_start: Vec<StartHook>,
    pub(crate) limits: WorkerLimits,
    /// Largest job body and reply. Units: bytes.
    pub(crate) job_size_max: usize,
    pub(crate) prints: Prints,
}

/// What a worker has of its own.
pub(crate) struct Worker<'h, S: Sys> {
    sys: S,
    socket: OwnedFd,
    /// Never read: it is armed, and the kernel kills this process when the host closes the other end.
    _lifeline: OwnedFd,
    out: Out<S>,
    /// The file to be printed into, until set-up is over.
    print_file: Option<OwnedFd>,
    capture: Option<Capture>,
    handlers: &'h mut Handlers,
    large: Option<LargeJob>,
    /// Memory of the last large job, to be used again.
    spare: Vec<u8>,
    /// When the job in hand started. Units: nanoseconds of the monotonic clock.
    now_ns: u64,
    clock: TickClock,
    /// The last packet was there without any waiting: the next one may be too.
    more_at_hand: bool,
    /// Not 0 where a job that aborts is judged by its `errno`. A word, so that one comparison a job serves for this and
    /// its order.
    minds_errno: u32,
}

/// A large job on its way in, with the header block of its first fragment.
struct LargeJob {
    header_block: Vec<u8>,
    assembly: Assembly,
}

/// Runs the worker; the process ends with it.
pub(crate) fn run<S: Sys>(
    sys: S,
    socket: OwnedFd,
    _lifeline: OwnedFd,
    memory: SlotMemory,
    print_file: Option<OwnedFd>,
    handlers: &mut Handlers,
    info: WorkerInfo,
) -> ! {
    // A panic is reported as the job's outcome; on standard error it would be noise among the host's own lines.
    std::panic::set_hook(Box::new(|_| {}));
    sys::guard_exit();
    let out = Out::new(sys.clone(), memory);
    let now_ns = sys.now_ns();
    let clock = TickClock::new(now_ns);
    let minds_errno = handlers.limits.marks_failed_allocations().into();
    let mut worker = Worker {
        sys,
        socket,
        _lifeline,
        out,
        print_file,
        capture: None,
        handlers,
        large: None,
        spare: Vec::new(),
        now_ns,
        clock,
        more_at_hand: false,
        minds_errno,
    };
    let code = match catch_unwind(AssertUnwindSafe(|| worker.start_and_serve(&info))) {
        Ok(Ok(Left::HostClosed)) => 0,
        Ok(Ok(Left::Protocol)) => EXIT_PROTOCOL,
        Ok(Ok(Left::StartFailed)) => EXIT_START,
        Ok(Err(_)) | Err(_) => EXIT_OS,
    };
    sys::flush_stdio();
    sys::exit_now(code)
}

/// Why the loop ended.
enum Left {
    HostClosed,
    Protocol,
    StartFailed,
}

impl<S: Sys> Worker<'_, S> {
    fn start_and_serve(&mut self, info: &WorkerInfo) -> OsResult<Left> {
        self.sys.set_send_buffer(self.socket.as_fd(), SEND_BUFFER_SIZE)?;
        self.out.set_packet_size_max(self.sys.packet_size_max(self.socket.as_fd())?);
        let result = self.set_up(info);
        sys::flush_stdio();
        if let Some(file) = self.print_file.take() {
            self.capture = Some(Capture::start(file, self.handlers.prints, self.out.attached_size_max())?);
        }
        let (status, body, left) = match result {
            Ok(memory) => (Status::Done, memory.map_or(Vec::new(), |bytes| bytes.to_le_bytes().to_vec()), None),
            Err(failure) => (Status::Failed, failure.into_bytes(), Some(Left::StartFailed)),
        };
        self.out.message(Kind::Hello, 0, status, &body, 0, 0);
        self.out.flush(self.socket.as_fd())?;
        match left {
            Some(left) => Ok(left),
            None => self.serve(),
        }
    }

    /// Sets limits and runs the start hooks. Returns how much memory there is then, if the host wants to know.
    fn set_up(&mut self, info: &WorkerInfo) -> Result<Option<u64>, String> {
        let Handlers { limits, on_start, .. } = &mut *self.handlers;
        limits.before_set_up(info)?;
        for hook in on_start {
            match catch_unwind(AssertUnwindSafe(|| hook(info))) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(error.to_string()),
                Err(panic) => return Err(format!("panicked: {}", panic_message(&*panic))),
            }
        }
        limits.after_set_up(info, self.out.memory())
    }

    fn serve(&mut self) -> OsResult<Left> {
        let mut packet = self.sys.map_pages(PACKET_SIZE_MAX)?;
        let mut spin = Spin::default();
        loop {
            let size = match self.receive(&mut packet, &mut spin)? {
                Received::Packet(size) => size,
                Received::WouldBlock | Received::Reset => continue,
                Received::Closed => return Ok(Left::HostClosed),
                Received::Truncated => return Ok(Left::Protocol),
            };
            self.now_ns = self.sys.now_ns();
            self.clock.set(self.now_ns);
            if let Some(capture) = &mut self.capture {
                capture.arrive(self.out.control());
            }
            if let Some(large) = &mut self.large
                && large.assembly.take(&mut packet, size) == Taken::Fragment
            {
                if let Some(left) = self.run_large()? {
                    return Ok(left);
                }
                continue;
            }
            for frame in Frames::new(&packet[..size]) {
                let Ok(frame) = frame else { return Ok(Left::Protocol) };
                if let Some(left) = self.take(frame)? {
                    return Ok(left);
                }
            }
        }
    }

    /// The next packet. Results leave before this process waits.
    fn receive(&mut self, packet: &mut [u8], spin: &mut Spin) -> OsResult<Received> {
        let Self { sys, socket, out, more_at_hand, large, .. } = self;
        let mut look = |wait| {
            let received = match large {
                Some(large) => sys.recv(socket.as_fd(), &mut large.assembly.parts(packet), wait),
                None => sys.recv(socket.as_fd(), &mut [IoSliceMut::new(packet)], wait),
            };
            match received {
                Ok(Received::WouldBlock) => None,
                other => Some(other),
            }
        };
        if !out.is_empty() {
            // Results wait for the next job only where the last one was there already: one at a time, a look first would
            // be one call too many.
            if *more_at_hand && let Some(found) = look(Wait::Never) {
                return found;
            }
            out.flush(socket.as_fd())?;
        }
        let mut looks = 0;
        let found = spin.spin(sys, u64::MAX, || {
            looks += 1;
            look(Wait::Never)
        });
        *more_at_hand = looks == 1 && found.is_some();
        if let Some(found) = found {
            return found;
        }
        look(Wait::UntilReady).unwrap_or(Ok(Received::WouldBlock))
    }

    /// Handles one frame; `Some` ends the worker.
    #[inline]
    fn take(&mut self, frame: Frame<'_>) -> OsResult<Option<Left>> {
        if frame.header.kind != Kind::Job {
            return Ok(Some(Left::Protocol));
        }
        if frame.header.flags & FLAG_FRAGMENT != 0 {
            return self.take_fragment(frame);
        }
        // A whole frame in the midst of a large one: the host has taken the large one back.
        self.large = None;
        let job = JobFrame {
            id: frame.header.id,
            code: frame.header.code,
            flags: frame.header.flags,
            order: frame.header.extra,
            headers: frame.headers(),
            body: frame.body(),
        };
        self.claim_and_run(job)
    }

    fn take_fragment(&mut self, frame: Frame<'_>) -> OsResult<Option<Left>> {
        let Ok(fragment) = frame.fragment() else { return Ok(Some(Left::Protocol)) };
        let id = frame.header.id;
        if fragment.offset == 0 {
            if fragment.total > self.handlers.job_size_max as u64 {
                return Ok(Some(Left::Protocol));
            }
            let header_block = frame.headers().as_block().to_vec();
            self.large = match Assembly::begin(frame.header, &fragment, std::mem::take(&mut self.spare)) {
                Ok(assembly) => Some(LargeJob { header_block, assembly }),
                Err(_) => return Err(OsError { call: "memory for a large job", errno: ENOMEM }),
            };
            return self.run_large();
        }
        if let Some(large) = &mut self.large
            && large.assembly.header().id == id
            && large.assembly.push(&fragment)
        {
            return self.run_large();
        }
        // A part of something whose beginning was taken back, or nonsense: the claim word tells which.
        self.large = None;
        let word = self.out.control().claim.load();
        let void = word.epoch != FrameId::from_bits(id).epoch;
        Ok(if void { None } else { Some(Left::Protocol) })
    }

    /// A fragment has been added to the large job: runs it if it is whole.
    fn run_large(&mut self) -> OsResult<Option<Left>> {
        let Some(LargeJob { header_block, assembly }) = self.large.take_if(|l| l.assembly.is_whole()) else {
            return Ok(None);
        };
        let &Header { id, code, flags, extra: order, .. } = assembly.header();
        let headers = Headers::from_block(&header_block);
        let left = self.claim_and_run(JobFrame { id, code, flags, order, headers, body: assembly.body() });
        self.spare = assembly.into_spare();
        left
    }

    /// The time now, as the end of the job in hand. Its own clock reading where the host compares it with its own.
    #[inline]
    fn end_of_job(&self, timed: bool) -> u64 {
        let by_ticks = if timed { None } else { self.clock.now_ns() };
        by_ticks.unwrap_or_else(|| self.sys.now_ns())
    }

    // Always: a job that is handed over through memory is stored word by word and loaded in larger pieces, which waits for
    // the stores.
    #[inline(always)]
    fn claim_and_run(&mut self, job: JobFrame<'_>) -> OsResult<Option<Left>> {
        if self.out.is_stale(self.now_ns, RESULT_DELAY_NS) {
            self.out.flush(self.socket.as_fd())?;
        }
        match self.out.control().claim.try_claim(FrameId::from_bits(job.id)) {
            Claim::Claimed => {}
            Claim::Void => return Ok(None),
            Claim::Broken => return Ok(Some(Left::Protocol)),
        }
        let Some((name, handler)) = self.handlers.by_id.get_mut(job.code as usize) else {
            self.out.message(Kind::Result, job.id, Status::UnknownHandler, b"", 0, self.now_ns);
            return Ok(None);
        };
        if job.order | self.minds_errno != 0 {
            before_job(job.order);
        }
        let meter = Meter::begin(job.flags);
        let request = Request { handler: name, headers: job.headers, body: job.body };
        let mut reply = self.out.begin(meter.prefix_size(), job.body);
        let result = catch_unwind(AssertUnwindSafe(|| handler(&request, &mut reply)));
        let spilled = reply.finish();
        let end_ns = self.end_of_job(meter.is_asked());
        let run_ns = end_ns.saturating_sub(self.now_ns);
        // The job's own output is written before its result can be: no line is lost when the next job crashes.
        sys::flush_c_stdio_if_any();
        if run_ns >= PRINTING_NS_MIN {
            sys::flush_rust_stdout();
        }
        let prefix = meter.end(self.now_ns, end_ns);
        self.now_ns = end_ns;
        let print_end = match &mut self.capture {
            None => None,
            Some(capture) => {
                let has_failed = !matches!(result, Ok(Ok(()))) || spilled.size() > self.handlers.job_size_max;
                let (attached, control) = self.out.attached_mut();
                let end = capture.collect(has_failed, attached, control);
                // What that took is not the next job's time.
                self.now_ns = self.sys.now_ns();
                self.clock.set(self.now_ns);
                end
            }
        };
        let extra = u32::try_from(run_ns).unwrap_or(u32::MAX);
        match result {
            Ok(Ok(())) => {
                let size = spilled.size();
                if size > self.handlers.job_size_max {
                    let size = (size as u64).to_le_bytes();
                    self.out.failure(job.id, Status::ReplyTooLarge, &size, extra, &prefix, end_ns);
                } else {
                    self.out.commit(self.socket.as_fd(), &job, extra, spilled, &prefix, end_ns)?;
                }
            }
            Ok(Err(error)) => {
                let text = error.to_string();
                self.out.failure(job.id, Status::Failed, text.as_bytes(), extra, &prefix, end_ns);
            }
            Err(panic) => {
                let text = panic_message(&*panic);
                self.out.failure(job.id, Status::Panicked, text.as_bytes(), extra, &prefix, end_ns);
            }
        }
        if let Some(capture) = &mut self.capture {
            capture.pass(print_end, self.out.control());
        }
        Ok(None)
    }
}

/// A job, whole.
struct JobFrame<'a> {
    id: u64,
    code: u32,
    flags: u8,
    /// A [`Fate`]; 0 is none.
    order: u32,
    headers: Headers<'a>,
    body: &'a [u8],
}

/// Runs one job in this process.
pub(crate) fn run_here(handlers: &mut Handlers, index: usize, header_block: &[u8], body: &[u8]) -> Outcome<Vec<u8>> {
    let (name, handler) = &mut handlers.by_id[index];
    let request = Request { handler: name, headers: Headers::from_block(header_block), body };
    let (mut room, mut spill) = ([0; 0], Vec::new());
    let mut reply = Reply::new(&mut room, &mut spill, body);
    let result = catch_unwind(AssertUnwindSafe(|| handler(&request, &mut reply)));
    let reply = reply.finish();
    sys::flush_stdio();
    match result {
        Ok(Ok(())) => Outcome::Done(match reply {
            Spilled::InPlace(_) => Vec::new(),
            Spilled::Outside(_) => spill,
            Spilled::Forwarded(range) => body[range].to_vec(),
        }),
        Ok(Err(error)) => Outcome::Failed { message: error.to_string(), panicked: false },
        Err(panic) => Outcome::Failed { message: panic_message(&*panic), panicked: true },
    }
}

/// Comes to grief as ordered. What an earlier job has left in `errno` is not this one's.
#[cold]
fn before_job(order: u32) {
    sys::clear_errno();
    match Fate::from_code(order) {
        Some(Fate::Kill) => sys::raise_default(SIGKILL),
        Some(Fate::Stall) => loop {
            std::thread::sleep(Duration::from_secs(1));
        },
        Some(Fate::Exit) => sys::exit_now(EXIT_CHAOS),
        None => {}
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    if let Some(s) = panic.downcast_ref::<&str>() {
        (*s).to_owned()
    } else if let Some(s) = panic.downcast_ref::<String>() {
        s.clone()
    } else {
        "a value that is no text".to_owned()
    }
}

impl<S: Sys> Drop for Worker<'_, S> {
    fn drop(&mut self) {
        self.out.control().set_phase(Phase::Working);
    }
}
