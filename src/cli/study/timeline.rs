//! What happened in a run, or was predicted to: spans of time, and the figures that follow from them.
//!
//! The model makes timelines, and the servers do from what they recorded; all pictures and tables are drawn from them, so
//! that prediction and measurement are treated alike.

/// Whose time a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Lane {
    /// Workers count from 0.
    Worker(u16),
    Server,
}

/// What the time went to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Activity {
    /// Worker: a part of its message is read by the server.
    Read,
    /// Worker: a part of a job is written to it by the server.
    Write,
    /// Worker: it has a message for the server, or is owed a job, and no part of it is on its way.
    Wait,
    /// Worker: it computes.
    Compute,
    /// Server: it works on parts, or on what goes with them.
    Busy,
    /// Server: nothing to do, and asleep in a call that it cannot leave: nobody can use the time.
    Blocked,
    /// Server: nothing to do, and free for other work.
    Free,
}

impl Activity {
    /// Its name in every picture and trace.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Activity::Read => "read",
            Activity::Write => "write",
            Activity::Wait => "wait",
            Activity::Compute => "compute",
            Activity::Busy => "busy",
            Activity::Blocked => "blocked",
            Activity::Free => "free",
        }
    }
}

/// From `start_ns` to `end_ns`, since the run began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) lane: Lane,
    pub(crate) activity: Activity,
    pub(crate) start_ns: u64,
    pub(crate) end_ns: u64,
}

impl Span {
    pub(crate) fn duration_ns(&self) -> u64 {
        self.end_ns - self.start_ns
    }
}

/// The spans of one run. Those of one lane do not overlap and come in the order of time; the server's cover the whole run.
/// A worker's begin when it has something to say; after its last result has been read it has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Timeline {
    pub(crate) workers: usize,
    pub(crate) spans: Vec<Span>,
    /// When the last result had been read. Units: nanoseconds since the run began.
    pub(crate) makespan_ns: u64,
}

impl Timeline {
    /// The spans of one lane.
    pub(crate) fn lane(&self, lane: Lane) -> impl Iterator<Item = &Span> {
        self.spans.iter().filter(move |s| s.lane == lane)
    }

    /// The time that a lane spent with something. Units: nanoseconds.
    pub(crate) fn total_ns(&self, lane: Lane, activity: Activity) -> u64 {
        self.lane(lane).filter(|s| s.activity == activity).map(Span::duration_ns).sum()
    }

    /// The share of the run that the server spent with something, from 0 to 1.
    pub(crate) fn server_share(&self, activity: Activity) -> f64 {
        self.total_ns(Lane::Server, activity) as f64 / self.makespan_ns.max(1) as f64
    }
}
