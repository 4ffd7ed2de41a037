//! Jobs that sleep, one at a time for each peer, the next to whoever is free: list scheduling without a pool.

use super::{Peer, next_packet, send};
use crate::sys::{self, EventBuffer, Interest, Linux, OsResult, Sys, Wait};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// What [`sleeps`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slept {
    /// From the first job's sending to the last one's answer.
    pub makespan: Duration,
    /// How long each job ran, as its peer measured it, in the order of the jobs.
    pub run_times: Vec<Duration>,
}

/// Lets `workers` peers sleep for these durations, with the least timer slack.
///
/// # Errors
/// The kernel's.
///
/// # Panics
/// When an answer belongs to no job.
pub fn sleeps(workers: usize, durations: &[Duration]) -> OsResult<Slept> {
    let epoll = Linux.epoll_create()?;
    let peers = (0..workers)
        .map(|index| {
            let peer = Peer::fork(None, serve)?;
            Linux.epoll_add(epoll.as_fd(), peer.socket.as_fd(), Interest::READ, index as u64)?;
            Ok(peer)
        })
        .collect::<OsResult<Vec<Peer>>>()?;
    let mut events = EventBuffer::new(workers);
    let mut run_times = vec![None; durations.len()];
    let started_ns = Linux.now_ns();
    let mut left = durations.iter().enumerate();
    for peer in &peers {
        give(peer, left.next())?;
    }
    let mut done = 0;
    while done < durations.len() {
        Linux.epoll_wait(epoll.as_fd(), &mut events, None)?;
        for (index, _) in events.iter() {
            let peer = &peers[index as usize];
            let mut answer = [0; MESSAGE_SIZE];
            while let Some(size) = peer.recv(&mut answer, Wait::Never)? {
                give(peer, left.next())?;
                assert_eq!(size, MESSAGE_SIZE, "a number and a duration");
                let (job, run_time) = unpack(&answer);
                assert_eq!(run_times[job].replace(run_time), None, "job {job} is answered once");
                done += 1;
            }
        }
    }
    let makespan = Duration::from_nanos(Linux.now_ns() - started_ns);
    Ok(Slept { makespan, run_times: run_times.into_iter().flatten().collect() })
}

/// A job's number and a duration in nanoseconds.
const MESSAGE_SIZE: usize = 16;

fn pack(job: usize, duration: Duration) -> [u8; MESSAGE_SIZE] {
    (((job as u128) << 64) | duration.as_nanos()).to_le_bytes()
}

fn unpack(message: &[u8; MESSAGE_SIZE]) -> (usize, Duration) {
    let both = u128::from_le_bytes(*message);
    ((both >> 64) as usize, Duration::from_nanos(both as u64))
}

fn give(peer: &Peer, job: Option<(usize, &Duration)>) -> OsResult<()> {
    match job {
        Some((index, &duration)) => peer.send(&pack(index, duration), Wait::Never),
        None => Ok(()),
    }
}

fn serve(socket: &OwnedFd) -> OsResult<()> {
    sys::set_timer_slack(1)?;
    let mut message = [0; MESSAGE_SIZE];
    while next_packet(socket, &mut message)?.is_some() {
        let (job, duration) = unpack(&message);
        let started_ns = Linux.now_ns();
        std::thread::sleep(duration);
        send(socket, &pack(job, Duration::from_nanos(Linux.now_ns() - started_ns)), Wait::UntilReady)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back_as_it_was() {
        let job = (399, Duration::from_nanos(u64::MAX));
        assert_eq!(unpack(&pack(job.0, job.1)), job);
    }
}
