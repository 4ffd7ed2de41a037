//! What ends a run before its input is over, or holds it up: failures, its deadline, Ctrl-Z, readers that take their time.

use super::sink::Sink;
use super::syslog::Syslog;
use super::{LAST_LINES_WAIT, Run, SIGTSTP, fatal};
use crate::cli::report::{Fatal, Tally};
use crate::sys::{self, Interest, Linux, OsError, PollFd, SignalFd, Sys};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// When the whole run has to be over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    pub(super) at: Instant,
    /// As it was asked for.
    pub(super) after: Duration,
}

impl Run {
    /// Stops the workers and this process, as Ctrl-Z asks for, until somebody lets it go on. No deadline counts that time.
    pub(super) fn suspend(&mut self) -> Result<(), Fatal> {
        self.sink.flush();
        let since = Instant::now();
        self.pool.pause_while(|| sys::stop_by(SIGTSTP)).map_err(fatal)?;
        if let Some(deadline) = &mut self.deadline {
            deadline.at += since.elapsed();
        }
        Ok(())
    }

    /// Obeys `--halt`, and stops at records that are not what the joblog says. Returns whether it did either.
    pub(super) fn check_failures(&mut self) -> bool {
        if let Some(refusal) = self.sink.refusal.take() {
            self.is_input_wanted = false;
            self.has_trouble = true;
            self.sink.say(format_args!("{refusal}"));
            return true;
        }
        if let Some(halt) = self.sink.halt
            && std::mem::take(&mut self.sink.is_halt_due)
            && !std::mem::replace(&mut self.is_halted, true)
        {
            self.is_input_wanted = false;
            let Tally { done, cancelled, .. } = self.sink.tally;
            let failed = self.sink.tally.unsuccessful() - cancelled;
            let finished = done + failed;
            let running = if halt.is_now { "what runs is killed" } else { "what runs may finish" };
            self.sink
                .say(format_args!("--halt {halt}: {failed} of {finished} jobs were not done; no new jobs, {running}"));
            let why = format!("halted by --halt {halt}");
            if halt.is_now {
                self.pool.cancel_all(&why);
            } else {
                self.pool.cancel_unstarted(&why);
            }
            return true;
        }
        false
    }

    /// Obeys `--deadline`. Returns whether it has passed just now.
    pub(super) fn check_deadline(&mut self, now: Instant) -> bool {
        if let Some(Deadline { at, after }) = self.deadline
            && now >= at
        {
            self.deadline = None;
            self.is_late = true;
            self.is_input_wanted = false;
            self.sink.say(format_args!("--deadline {after:?}: it has passed; no new jobs, what runs is killed"));
            self.pool.cancel_all(&format!("the deadline of {after:?} for the whole run has passed"));
            return true;
        }
        false
    }
}

/// Sleeps until one of these descriptors, a signal, a writer of ours or the system's log has something.
pub(super) fn wait<'a>(
    mut fds: Vec<PollFd<'a>>,
    signals: &'a SignalFd,
    sink: &'a Sink,
    timeout: Option<Duration>,
) -> Result<(), OsError> {
    fds.push(PollFd::new(signals.as_fd(), Interest::READ));
    fds.extend(sink.streams.wake_fds().map(|fd| PollFd::new(fd, Interest::READ)));
    fds.extend(sink.syslog.as_ref().and_then(Syslog::awaited).map(|fd| PollFd::new(fd, Interest::WRITE)));
    Linux.poll(&mut fds, timeout.map(|t| t.as_nanos() as u64))?;
    // A write that ends after this wakes the next wait; one that ended before is seen by the flush before that wait.
    sink.streams.clear_wakes()
}

/// Waits until all that can be written is written. Returns the last signal.
///
/// A reader may take its time, but not against a second signal or a deadline. Lines for people do not hold up an end by
/// a closed pipe or a kill, and those for the system's log no end at all.
pub(super) fn settle(
    sink: &mut Sink,
    signals: &SignalFd,
    mut signal: Option<i32>,
    is_hurried: bool,
) -> Result<Option<i32>, Fatal> {
    let is_hurried = is_hurried || sink.streams.error().is_some();
    let log_until = Instant::now() + LAST_LINES_WAIT;
    let give_up = is_hurried.then_some(log_until);
    loop {
        let was_settled = sink.is_settled();
        // Also picks up the error of the last write, and may have something to say about that.
        sink.flush();
        if sink.syslog.is_some() && Instant::now() >= log_until {
            let problem = sink.syslog.as_mut().and_then(Syslog::give_up);
            sink.tell(problem);
        }
        let is_logging = sink.syslog.as_ref().is_some_and(|syslog| syslog.awaited().is_some());
        if sink.is_settled() && !is_logging {
            if was_settled {
                return Ok(signal);
            }
            // The last write ended just now, and its wake may have been taken before: nothing would end a wait.
            continue;
        }
        let until = if is_logging { Some(log_until) } else { give_up };
        let left = until.map(|at| at.saturating_duration_since(Instant::now()));
        if give_up.is_some_and(|at| Instant::now() >= at) {
            return Ok(signal);
        }
        wait(Vec::with_capacity(5), signals, sink, left).map_err(fatal)?;
        while let Some(next) = signals.next_signal().map_err(fatal)? {
            if next == SIGTSTP {
                sys::stop_by(SIGTSTP).map_err(fatal)?;
            } else if signal.replace(next).is_some() {
                return Ok(signal);
            }
        }
    }
}
