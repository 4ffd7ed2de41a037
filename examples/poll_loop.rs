//! A pool inside somebody else's `poll(2)` loop, next to another descriptor.
//!
//! ```text
//! cargo run --example poll_loop              # a timer is the other descriptor
//! seq 1 20 | cargo run --example poll_loop -- --stdin    # standard input is: each line is a job
//! ```
//!
//! Three rules make it work: poll the pool's descriptor for readability, call `Pool::poll` with a timeout of zero
//! whenever it is readable, and leave the rest to the pool: deadlines, deaths and unsent jobs make it readable too.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use seqpool::{Job, Outcome, Pool, TrySubmitError};
use std::collections::VecDeque;
use std::io::Read;
use std::os::fd::AsFd;
use std::time::Duration;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let mut pool = Pool::builder()
        .workers(2)
        .timeout(Duration::from_millis(300))
        .handler("collatz", |request, reply| {
            let mut n: u64 = std::str::from_utf8(request.body())?.trim().parse()?;
            if n == 7 {
                // Worth a demonstration: it never ends, and its deadline is kept all the same.
                loop {
                    std::thread::sleep(Duration::from_secs(1));
                }
            }
            let mut steps = 0u32;
            while n > 1 {
                n = if n.is_multiple_of(2) { n / 2 } else { 3 * n + 1 };
                steps += 1;
            }
            reply.extend_from_slice(steps.to_string().as_bytes());
            Ok(())
        })
        .spawn()?;
    if std::env::args().any(|a| a == "--stdin") { jobs_from_stdin(&mut pool) } else { jobs_from_a_timer(&mut pool) }
}

/// Prints what is over; never waits.
fn take_outcomes(pool: &mut Pool) -> Result<()> {
    pool.poll(Some(Duration::ZERO), |done, _| match done.outcome {
        Outcome::Done(body) => println!("{}: {} steps", done.tag, String::from_utf8_lossy(body)),
        other => println!("{}: {other}", done.tag),
    })?;
    Ok(())
}

/// Every 20 ms another job, ten in all.
fn jobs_from_a_timer(pool: &mut Pool) -> Result<()> {
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)?;
    timer.set(Expiration::Interval(Duration::from_millis(20).into()), TimerSetTimeFlags::empty())?;
    let mut next = 1;
    while next <= 10 || pool.outstanding() > 0 {
        let mut fds = [PollFd::new(pool.as_fd(), PollFlags::POLLIN), PollFd::new(timer.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds[..1 + usize::from(next <= 10)], PollTimeout::NONE)?;
        let [pool_ready, tick] = fds.map(|fd| fd.any().unwrap_or_default());
        if tick {
            timer.wait()?;
            pool.submit(Job::new("collatz", next.to_string().as_bytes()).tag(next))?;
            next += 1;
        }
        if pool_ready {
            take_outcomes(pool)?;
        }
    }
    println!("10 jobs, {} timed out", pool.stats().timed_out);
    Ok(())
}

/// Each line is a job. While the pool is full, standard input is not read: its writer waits.
fn jobs_from_stdin(pool: &mut Pool) -> Result<()> {
    // A descriptor of its own: what the standard library's buffer holds, `poll` does not know of.
    let mut stdin = std::fs::File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let (mut bytes, mut lines, mut open, mut count) = (Vec::new(), VecDeque::<Vec<u8>>::new(), true, 0);
    while open || !lines.is_empty() || pool.outstanding() > 0 {
        let mut fds = [PollFd::new(pool.as_fd(), PollFlags::POLLIN), PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds[..1 + usize::from(open && lines.is_empty())], PollTimeout::NONE)?;
        let [pool_ready, input] = fds.map(|fd| fd.any().unwrap_or_default());
        if input {
            let mut chunk = [0; 4096];
            let size = stdin.read(&mut chunk)?;
            open = size > 0;
            bytes.extend_from_slice(&chunk[..size]);
            while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
                lines.push_back(bytes.drain(..=end).collect());
            }
            if !open && !bytes.is_empty() {
                lines.push_back(std::mem::take(&mut bytes));
            }
        }
        if pool_ready {
            take_outcomes(pool)?;
        }
        while let Some(line) = lines.front() {
            match pool.try_submit(Job::new("collatz", line).tag(count + 1)) {
                Ok(_) => (count, _) = (count + 1, lines.pop_front()),
                // It becomes readable when there is an outcome to take, and then there is room.
                Err(TrySubmitError::Full(_)) => break,
                Err(error) => return Err(error.to_string().into()),
            }
        }
    }
    println!("{count} jobs");
    Ok(())
}
