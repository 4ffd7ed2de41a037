//! The processes of a run: forked here, watched, ended and reaped.
//!
//! None outlives the process that measures. That one kills and reaps them when it is done with them, whatever happened;
//! and should it be killed itself, a lifeline ends each of them, whatever it blocks.

use super::message::Broken;
use crate::sys::{self, ContextSwitches, Exit, Forked, Linux, OsResult, Pid, Received, Sent, Sys, Wait};
use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A child's words are cut at this size. Units: bytes.
const WORDS_SIZE_MAX: usize = 512;
const SIGKILL: i32 = 9;

/// What a process of a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    Server,
    /// Workers count from 0.
    Worker(u16),
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Who::Server => f.write_str("the server"),
            // As in the pictures.
            Who::Worker(worker) => write!(f, "worker {}", worker + 1),
        }
    }
}

/// How a child ended that has been reaped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) exit: Exit,
    pub(super) switches: ContextSwitches,
    /// What it said was wrong, if it said so.
    pub(super) words: Option<String>,
}

/// A forked process.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) who: Who,
    pid: Pid,
    pidfd: OwnedFd,
    /// What it has to say: that it is ready, or what is wrong.
    report: OwnedFd,
    _lifeline: OwnedFd,
    ended: Option<Ended>,
}

/// A child's side of its report.
pub(super) struct Report(OwnedFd);

impl Report {
    /// Says something to the process that measures.
    pub(super) fn say(&self, words: &str) -> Result<(), Broken> {
        let words = &words.as_bytes()[..words.len().min(WORDS_SIZE_MAX)];
        match Linux.send(self.0.as_fd(), &[IoSlice::new(words)], Wait::UntilReady)? {
            Sent::All => Ok(()),
            _ => Err(Broken::Rule("the process that measures does not listen")),
        }
    }
}

impl Child {
    /// Forks a process that does `work` and ends. It keeps no descriptors but the standard ones and `keep`.
    pub(super) fn fork(who: Who, keep: &[RawFd], work: impl FnOnce(&Report) -> Result<(), Broken>) -> OsResult<Self> {
        let (report, theirs) = Linux.socketpair()?;
        let (lifeline, their_lifeline) = Linux.socketpair()?;
        match Linux.fork()? {
            Forked::Parent(pid) => match Linux.pidfd_open(pid) {
                Ok(pidfd) => Ok(Self { who, pid, pidfd, report, _lifeline: lifeline, ended: None }),
                Err(error) => {
                    Linux.kill(pid, SIGKILL)?;
                    sys::wait_for_child(pid)?;
                    Err(error)
                }
            },
            Forked::Child => {
                let report = Report(theirs);
                // Whatever happens, never back into the parent's code.
                let worked = catch_unwind(AssertUnwindSafe(|| {
                    prepare(who, keep, &report, &their_lifeline)?;
                    work(&report)
                }));
                let code = match worked {
                    Ok(Ok(())) => 0,
                    Ok(Err(error)) => {
                        let _ = report.say(&error.to_string());
                        1
                    }
                    Err(_) => 1,
                };
                sys::exit_now(code)
            }
        }
    }

    /// Readable once the child has ended.
    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Readable once the child has something to say, or has closed its end.
    pub(super) fn report(&self) -> BorrowedFd<'_> {
        self.report.as_fd()
    }

    /// What the child has said, if anything.
    pub(super) fn words(&self) -> OsResult<Option<String>> {
        let mut bytes = [0; WORDS_SIZE_MAX];
        match Linux.recv(self.report.as_fd(), &mut [IoSliceMut::new(&mut bytes)], Wait::Never)? {
            Received::Packet(size) => Ok(Some(String::from_utf8_lossy(&bytes[..size]).into_owned())),
            _ => Ok(None),
        }
    }

    /// Whether it has been reaped.
    pub(super) fn ended(&self) -> Option<&Ended> {
        self.ended.as_ref()
    }

    /// Reaps the child, which has ended or is about to.
    pub(super) fn reap(&mut self) -> OsResult<&Ended> {
        let ended = match self.ended.take() {
            Some(ended) => ended,
            None => {
                let (exit, switches) = sys::reap_child(self.pid)?;
                // What it said is still there. Nothing may fail any more: its number is no longer its own.
                Ended { exit, switches, words: self.words().ok().flatten() }
            }
        };
        Ok(self.ended.insert(ended))
    }
}

fn prepare(who: Who, keep: &[RawFd], report: &Report, lifeline: &OwnedFd) -> Result<(), Broken> {
    sys::reset_signals();
    if !sys::arm_lifeline(lifeline.as_fd())? {
        return Err(Broken::Rule("the process that measures has ended"));
    }
    // The ends of others' lifelines above all: a copy held here would keep those processes alive.
    let own = [report.0.as_raw_fd(), lifeline.as_raw_fd()];
    sys::close_all_except(&[&own, keep].concat())?;
    sys::set_name(match who {
        Who::Server => c"study-server",
        Who::Worker(_) => c"study-worker",
    });
    Ok(())
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.ended.is_none() {
            // Not reaped, so the number is still this child's.
            let _ = Linux.kill(self.pid, SIGKILL);
            let _ = sys::wait_for_child(self.pid);
        }
    }
}
