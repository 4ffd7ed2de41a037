//! One worker's place in the pool, as the host sees it. It outlives its workers: each new one is an incarnation with a
//! generation of its own.
//!
//! Everything here is private to the host; the memory that the worker can write is behind [`SlotMemory`].

use super::journal::{Journal, Position};
use super::recycle::Wear;
use crate::assembly::Assembly;
use crate::claim::{self, FrameId};
use crate::limits::{RING_SIZE, WINDOW_JOBS_MAX};
use crate::prints::PrintFile;
use crate::reactor::TimerId;
use crate::slot::{SlotFile, SlotMemory};
use crate::sys::{OsResult, Pid, Sys, Usage};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Where a slot stands between two workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// No worker; one is asked for when the slot's timer fires.
    Empty,
    /// The nursery has been asked for a worker; jobs may be sent ahead.
    Starting,
    /// The worker has said hello.
    Running,
    /// The worker is to be replaced, holds nothing and is told to leave; its exit report is awaited.
    Leaving,
    /// The worker is to be killed; its exit report is awaited.
    Dying,
    /// No worker and none will be asked for.
    GivenUp,
}

/// Why the host kills a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Doom {
    /// The job in hand broke its deadline.
    TimedOut { after: Duration },
    /// The job in hand was cancelled.
    Cancelled { why: String },
    /// It has unstarted jobs and starts none, or never got ready.
    Stalled,
    /// It broke the protocol, or scribbled over its slot: nothing that it left is believed.
    Hostile,
}

pub(super) struct Slot {
    pub(super) life: Life,
    pub(super) generation: u32,
    pub(super) pid: Option<Pid>,
    /// Its nursery is gone: nobody reports its end, and only the host can kill it.
    pub(super) is_orphan: bool,
    pub(super) doom: Option<Doom>,
    /// What its worker had used when it ended.
    pub(super) exit_usage: Option<Usage>,
    /// It has been told to end and is not killed yet.
    pub(super) has_grace: bool,
    /// Closed with the incarnation; the worker dies if this process does first.
    pub(super) lifeline: Option<OwnedFd>,
    pub(super) file: SlotFile,
    pub(super) memory: SlotMemory,
    /// What the worker prints, if that is captured.
    pub(super) prints: Option<PrintFile>,
    pub(super) journal: Journal,
    pub(super) epoch: u32,
    /// Number of the next frame to be appended.
    pub(super) next_seq: u32,
    /// Number of the first frame without a result.
    pub(super) due_seq: u32,
    /// Number of the first frame not sent.
    pub(super) sent_seq: u32,
    /// No live entry before this one lacks a result.
    pub(super) due: Position,
    /// Everything before this one is sent.
    pub(super) sent: Position,
    /// Bytes of the large job at `sent` that have left.
    pub(super) fragment_offset: usize,
    /// Bytes of the out-ring that the socket has brought. A large result's fragments travel beside the ring.
    pub(super) received: u64,
    /// Bytes of the out-ring that have been read; ahead of `received` when they were read from the ring itself.
    pub(super) read: u64,
    /// A large result on its way.
    pub(super) assembly: Option<Assembly>,
    /// Stands on the list of slots with something to send.
    pub(super) dirty: bool,
    /// A send was refused; the next event or result is awaited.
    pub(super) blocked: bool,
    /// Claim word's number when it was last seen to move, and when. Units: nanoseconds.
    pub(super) sampled_seq: u32,
    pub(super) sampled_ns: u64,
    /// When the last result came, or the first job of an idle slot left. Units: nanoseconds.
    pub(super) progress_ns: u64,
    /// This incarnation has said hello.
    pub(super) ready: bool,
    /// This incarnation has finished a job, or has been blamed for one.
    pub(super) proved: bool,
    /// The next result is worth a look: the incarnation's first, or each one when workers are recycled.
    pub(super) watched: bool,
    /// Results that may still come before this incarnation leaves.
    pub(super) jobs_left: usize,
    /// Deaths in a row before a first finished job.
    pub(super) early_deaths: u32,
    pub(super) spawn_failures: u32,
    /// A worker that could not be killed still has its memory.
    pub(super) needs_memory: bool,
    /// Deaths in a row before hello.
    pub(super) failed_starts: u32,
    /// Respawn, spawn deadline or kill deadline, by `life`; and when it fires. Units: nanoseconds.
    pub(super) timer: Option<TimerId>,
    pub(super) timer_at_ns: u64,
    pub(super) wear: Wear,
    /// Why the last worker did not last, until one finishes a job.
    pub(super) trouble: Option<String>,
    /// That is this incarnation's own word, or says how the host judged it.
    pub(super) has_told: bool,
    /// The nursery's word on whether the last worker was killed for want of memory.
    pub(super) oom: Option<bool>,
}

impl Slot {
    pub(super) fn create<S: Sys>(sys: &S, first_seq: u32) -> OsResult<Self> {
        let file = SlotFile::create(sys)?;
        let memory = file.map(sys)?;
        let journal = Journal::create(sys, RING_SIZE, WINDOW_JOBS_MAX)?;
        Ok(Self {
            life: Life::Empty,
            generation: 0,
            pid: None,
            is_orphan: false,
            doom: None,
            exit_usage: None,
            has_grace: false,
            lifeline: None,
            file,
            memory,
            prints: None,
            journal,
            epoch: first_seq,
            next_seq: first_seq,
            due_seq: first_seq,
            sent_seq: first_seq,
            due: 0,
            sent: 0,
            fragment_offset: 0,
            received: 0,
            read: 0,
            assembly: None,
            dirty: false,
            blocked: false,
            sampled_seq: first_seq,
            sampled_ns: 0,
            progress_ns: 0,
            ready: false,
            proved: false,
            watched: false,
            jobs_left: 0,
            early_deaths: 0,
            spawn_failures: 0,
            needs_memory: false,
            failed_starts: 0,
            timer: None,
            timer_at_ns: 0,
            wear: Wear::default(),
            trouble: None,
            has_told: false,
            oom: None,
        })
    }

    /// Gives up the shared memory and takes new. The journal is the host's own and stays: jobs may still lie in it.
    pub(super) fn renew_memory<S: Sys>(&mut self, sys: &S) -> OsResult<()> {
        let file = SlotFile::create(sys)?;
        self.memory = file.map(sys)?;
        self.file = file;
        self.needs_memory = false;
        Ok(())
    }

    /// The id of the next frame.
    #[inline]
    pub(super) fn next_id(&mut self) -> u64 {
        let id = FrameId { epoch: self.epoch, seq: self.next_seq };
        self.next_seq = self.next_seq.wrapping_add(1);
        id.to_bits()
    }

    /// Remembers why this incarnation does not last.
    pub(super) fn tell(&mut self, why: &str) {
        self.trouble = Some(why.to_owned());
        self.has_told = true;
    }

    /// Whether a worker may be there.
    pub(super) fn is_occupied(&self) -> bool {
        matches!(self.life, Life::Starting | Life::Running | Life::Leaving | Life::Dying)
    }

    /// Whether some frame is sent and has no result.
    #[inline]
    pub(super) fn in_flight(&self) -> bool {
        self.due_seq != self.sent_seq
    }

    /// Whether the worker owes nothing: every frame sent has its result, and the socket has brought all that was read.
    #[inline]
    pub(super) fn is_answered(&self) -> bool {
        !self.in_flight() && self.read == self.received && self.life == Life::Running
    }

    /// How many of the jobs without a result have started. A word that no honest worker leaves counts for none: taking
    /// back what has not started finds it out.
    pub(super) fn started(&self) -> usize {
        let word = self.memory.control().claim.load();
        claim::started(word, self.epoch, self.due_seq, self.sent_seq).map_or(0, |count| count as usize)
    }

    /// Makes everything ready for a new incarnation of at most `jobs` jobs, while no worker has the memory.
    pub(super) fn begin_incarnation(&mut self, now_ns: u64, jobs: usize) {
        debug_assert!(self.due_seq == self.next_seq, "nothing is left from the last one");
        self.generation = self.generation.wrapping_add(1);
        self.epoch = self.epoch.wrapping_add(1);
        self.memory.control().reset(FrameId { epoch: self.epoch, seq: self.next_seq });
        self.received = 0;
        self.read = 0;
        self.assembly = None;
        self.fragment_offset = 0;
        self.doom = None;
        self.exit_usage = None;
        self.has_grace = false;
        self.pid = None;
        self.is_orphan = false;
        self.ready = false;
        self.wear = Wear { timer: self.wear.timer.take(), ..Wear::default() };
        self.proved = false;
        self.has_told = false;
        self.watched = true;
        self.jobs_left = jobs;
        self.blocked = false;
        self.sampled_seq = self.next_seq;
        self.sampled_ns = now_ns;
        self.progress_ns = now_ns;
        self.life = Life::Starting;
    }
}
