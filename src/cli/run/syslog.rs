//! `--syslog`: what goes wrong in handlers and workers, told to the system's log too.
//!
//! Never holds up a job: its socket is non-blocking, and lines for which there is no room wait, up to a limit. The first
//! loss is said on standard error, once. A log that is gone is looked for again, every now and then.

use crate::Outcome;
use crate::cli::report::{escaped, plain_error};
use crate::limits::SYSLOG_LINES_MAX;
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};
use syslog::{Facility, Formatter3164, Logger, LoggerBackend};

/// How often a log that is gone is looked for.
const CONNECT_PERIOD: Duration = Duration::from_secs(1);

/// A connection to the system's log.
pub(super) struct Syslog {
    logger: Option<Logger<LoggerBackend, Formatter3164>>,
    /// Lines for which there was no room.
    waiting: VecDeque<String>,
    next_connect: Instant,
    is_loss_told: bool,
}

/// Why a line is not in the log.
enum Loss {
    /// There is no room for it now.
    Full,
    /// Nobody is there to take it.
    Gone(String),
}

impl Syslog {
    /// Connects. Also returns what to tell the user, if anything.
    pub(super) fn open() -> (Self, Option<String>) {
        let (waiting, next_connect) = (VecDeque::new(), Instant::now());
        let mut syslog = Self { logger: None, waiting, next_connect, is_loss_told: false };
        let problem = syslog.connect().err().and_then(|loss| syslog.lost(loss));
        (syslog, problem)
    }

    /// Logs how a job ended, if that is a handler's or a worker's fault. Returns what to tell the user, if anything.
    pub(super) fn log<B>(&mut self, number: u64, outcome: &Outcome<B>) -> Option<String> {
        if !matches!(outcome, Outcome::Failed { .. } | Outcome::Crashed(_) | Outcome::TimedOut { .. }) {
            return None;
        }
        if self.waiting.len() == SYSLOG_LINES_MAX {
            return self.lost(Loss::Full);
        }
        self.waiting.push_back(escaped(format_args!("job {number}: {outcome}")));
        self.flush()
    }

    /// Sends what waits, as far as there is room. Returns what to tell the user, if anything.
    pub(super) fn flush(&mut self) -> Option<String> {
        while let Some(line) = self.waiting.pop_front() {
            // A log that was started again has another socket.
            let sent = match self.send(&line) {
                Err(Loss::Gone(_)) => self.connect().and_then(|()| self.send(&line)),
                other => other,
            };
            match sent {
                Ok(()) => {}
                Err(Loss::Full) => {
                    self.waiting.push_front(line);
                    return None;
                }
                Err(loss) => {
                    self.waiting.clear();
                    return self.lost(loss);
                }
            }
        }
        None
    }

    /// What becomes writable when there is room for lines that wait. `None`: none does.
    pub(super) fn awaited(&self) -> Option<BorrowedFd<'_>> {
        match &self.logger.as_ref().filter(|_| !self.waiting.is_empty())?.backend {
            LoggerBackend::Unix(socket) => Some(socket.as_fd()),
            LoggerBackend::UnixStream(socket) => Some(socket.get_ref().as_fd()),
            LoggerBackend::Udp(..) | LoggerBackend::Tcp(_) => None,
        }
    }

    /// Gives up what waits. Returns what to tell the user, if anything.
    pub(super) fn give_up(&mut self) -> Option<String> {
        if self.waiting.is_empty() {
            return None;
        }
        self.waiting.clear();
        self.lost(Loss::Full)
    }

    fn connect(&mut self) -> Result<(), Loss> {
        let now = Instant::now();
        if now < self.next_connect {
            return Err(Loss::Gone("no system log listens".to_owned()));
        }
        self.next_connect = now + CONNECT_PERIOD;
        let process = "seqpool".to_owned();
        // Its own machine's log knows the host's name.
        let formatter =
            Formatter3164 { facility: Facility::LOG_USER, hostname: None, process, pid: std::process::id() };
        let logger =
            syslog::unix(formatter).map_err(|e| Loss::Gone(format!("no system log listens: {}", reason(&e))))?;
        match &logger.backend {
            LoggerBackend::Unix(socket) => socket.set_nonblocking(true),
            LoggerBackend::UnixStream(socket) => socket.get_ref().set_nonblocking(true),
            // Not what was asked for.
            LoggerBackend::Udp(..) | LoggerBackend::Tcp(_) => Err(ErrorKind::Unsupported.into()),
        }
        .map_err(|e| Loss::Gone(plain_error(&e)))?;
        self.logger = Some(logger);
        Ok(())
    }

    fn send(&mut self, line: &str) -> Result<(), Loss> {
        let Some(logger) = &mut self.logger else { return Err(Loss::Gone(String::new())) };
        logger.err(line).map_err(|error| match &error {
            syslog::Error::Write(e) | syslog::Error::Io(e) if e.kind() == ErrorKind::WouldBlock => Loss::Full,
            _ => {
                self.logger = None;
                Loss::Gone(reason(&error))
            }
        })
    }

    fn lost(&mut self, loss: Loss) -> Option<String> {
        let is_first = !std::mem::replace(&mut self.is_loss_told, true);
        let why = match loss {
            Loss::Full => "it does not take lines as fast as they come".to_owned(),
            Loss::Gone(why) => why,
        };
        is_first.then(|| format!("--syslog: {why}: lines are lost there, jobs go on"))
    }
}

fn reason(error: &syslog::Error) -> String {
    match error {
        syslog::Error::Write(e) | syslog::Error::Io(e) => plain_error(e),
        syslog::Error::Initialization(e) => e.downcast_ref().map_or_else(|| e.to_string(), reason),
    }
}
