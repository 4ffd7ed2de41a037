//! `seqpool study`: a blocking server beside a non-blocking one, predicted, measured and drawn.
//!
//! A `plan` says what a run does. The `model` predicts its `timeline`, with the `costs` that the machine adds. `servers`
//! carries it out with real processes: one serves (`serve`), the others compute (`peer`), they exchange frames (`message`)
//! over real sockets, and what the server records becomes a timeline too (`record`). All that is shown (`diagram`,
//! `picture`, `report`, `sweep`) is drawn from timelines, so that prediction and measurement are treated alike. The short
//! `experiments` share nothing with all that but the command.
//!
//! This process has one thread throughout: it forks.

mod costs;
mod diagram;
mod experiments;
mod message;
mod model;
mod peer;
mod picture;
mod plan;
mod processes;
mod progress;
mod record;
mod report;
mod serve;
mod servers;
mod sweep;
mod timeline;
pub mod trial;

use super::args::{ComputeKind, StudyArgs, SupplyKind, TransferKind};
use super::machine::Machine;
use super::report::{Fatal, print_measured, with_file};
use costs::Calibration;
use plan::{Compute, Plan, Server, Supply, Transfer};
use progress::Progress;
use servers::Measured;
use std::io::Write;
use std::num::NonZeroU32;
use std::time::Duration;
use timeline::Timeline;

/// Longest time of a job or of a message: a run must end while somebody waits.
const DURATION_MAX: Duration = Duration::from_secs(1);
/// Shortest time of a part of a message: below this what is measured is the machine, not the servers.
const PART_MIN: Duration = Duration::from_micros(20);

/// How long workers compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scenario {
    /// All the same time.
    Synchronized,
    /// One and a half times, once, and half of it.
    Unsynchronized,
}

impl Scenario {
    const ALL: [Scenario; 2] = [Scenario::Synchronized, Scenario::Unsynchronized];

    fn name(self) -> &'static str {
        match self {
            Scenario::Synchronized => "synchronized",
            Scenario::Unsynchronized => "unsynchronized",
        }
    }

    fn compute_ns(self, workers: u16, job: Duration) -> Vec<u64> {
        let job_ns = job.as_nanos() as u64;
        let of = |worker: u16| match (self, worker % 3) {
            (Scenario::Unsynchronized, 0) => job_ns * 3 / 2,
            (Scenario::Unsynchronized, 2) => job_ns / 2,
            _ => job_ns,
        };
        (0..workers).map(of).collect()
    }
}

/// One run: predicted without and with costs, measured as often as asked.
struct Run {
    scenario: Scenario,
    plan: Plan,
    drawn: Timeline,
    predicted: Timeline,
    measured: Vec<Measured>,
}

impl Run {
    fn new(scenario: Scenario, plan: Plan) -> Self {
        let drawn = model::draw(&plan);
        Self { scenario, plan, predicted: drawn.clone(), drawn, measured: Vec::new() }
    }

    fn predict(&mut self, calibration: &Calibration) {
        let costs = calibration.of(self.plan.server, self.plan.transfer);
        self.predicted = model::predict(&self.plan, costs);
    }

    /// The measurement of the median makespan. The median of an even number is the upper one.
    fn median(&self) -> &Measured {
        let mut by_makespan: Vec<&Measured> = self.measured.iter().collect();
        by_makespan.sort_by_key(|m| m.timeline.makespan_ns);
        by_makespan[by_makespan.len() / 2]
    }
}

/// Every run that these arguments ask for, in the order in which they are shown. The original's drawings come first.
fn runs(args: &StudyArgs) -> Result<Vec<Run>, Fatal> {
    let within = |name: &str, value: Duration, min: Duration| match value {
        v if v < min => Err(Fatal(format!("--{name}: {v:?} is too short: at least {min:?}"))),
        v if v > DURATION_MAX => Err(Fatal(format!("--{name}: {v:?} is too long: at most {DURATION_MAX:?}"))),
        _ => Ok(()),
    };
    within("message", args.message, PART_MIN * args.parts)?;
    within("job", args.job, Duration::ZERO)?;
    let transfers = match args.transfer {
        None => vec![Transfer::Cpu, Transfer::Wait],
        Some(TransferKind::Cpu) => vec![Transfer::Cpu],
        Some(TransferKind::Wait) => vec![Transfer::Wait],
    };
    let budget = NonZeroU32::new(args.budget);
    let servers = [
        Server::Blocking,
        Server::Nonblocking { parts_per_turn: budget },
        // Reads each socket until it would block, as is usual.
        Server::Nonblocking { parts_per_turn: None },
    ];
    let mut runs = Vec::new();
    for transfer in transfers {
        for scenario in Scenario::ALL {
            for server in servers {
                let plan = Plan {
                    server,
                    transfer,
                    supply: match args.supply {
                        SupplyKind::Rounds => Supply::Rounds,
                        SupplyKind::Queue => Supply::Queue,
                    },
                    compute: match args.compute {
                        ComputeKind::Sleep => Compute::Sleep,
                        ComputeKind::Spin => Compute::Spin,
                    },
                    compute_ns: scenario.compute_ns(args.workers, args.job),
                    message_ns: args.message.as_nanos() as u64,
                    parts: args.parts,
                    rounds: args.rounds,
                };
                runs.push(Run::new(scenario, plan));
            }
        }
    }
    Ok(runs)
}

/// Runs the study. The exit code.
pub(super) fn run(args: StudyArgs) -> Result<u8, Fatal> {
    if let Some(experiment) = args.experiment {
        return experiments::run(experiment);
    }
    let mut runs = runs(&args)?;
    let files = [
        ("svg", &args.svg),
        ("html", &args.html),
        ("json", &args.json),
        ("perfetto", &args.perfetto),
        ("sweep", &args.sweep),
    ];
    for (option, path) in files {
        if let Some(path) = path {
            // So that a bad path is known before anything is measured.
            with_file(option, path, |file| {
                drop(file);
                Ok(())
            })?;
        }
    }
    let machine = Machine::of_this_process(None);
    let calibration = Calibration::measure(args.workers, args.job, args.message, args.parts)
        .map_err(|e| Fatal(format!("study: measuring what calls and wake-ups cost: {e}")))?;
    runs.iter_mut().for_each(|run| run.predict(&calibration));
    measure(&mut runs, args.repeat)?;
    let points = match (&args.sweep, runs.first()) {
        (Some(_), Some(run)) => {
            sweep::run(&run.plan, &calibration, args.job, NonZeroU32::new(args.budget), args.repeat)
                .map_err(|(place, e)| Fatal(format!("study: {place}: {e}")))?
        }
        _ => Vec::new(),
    };
    let mut text = report::text(&machine, &calibration, &runs, args.repeat);
    text.push_str(&sweep::text(&points, machine.usable));
    let chart = || report::chart(&machine, &runs, &points);
    // What was measured is shown even if a file cannot be written after all.
    let written = files.iter().try_for_each(|(option, path)| match path {
        None => Ok(()),
        Some(path) => with_file(option, path, |file| match *option {
            "json" => file.write(&report::json(&machine, &calibration, &runs, &points)),
            "svg" => file.write_with(|file| file.write_all(picture::svg(&chart()).as_bytes())),
            "sweep" => file.write_with(|file| file.write_all(picture::svg_sweep(&points).as_bytes())),
            "html" => file.write_with(|file| file.write_all(picture::html(&chart()).as_bytes())),
            _ => file.write_with(|file| picture::perfetto(&chart(), file)),
        }),
    });
    print_measured(&text, written)
}

/// Measures all runs in turn, as often as asked, so that a change of the machine's mood meets all alike.
fn measure(runs: &mut [Run], repeat: u32) -> Result<(), Fatal> {
    let steps = u64::from(repeat) * runs.len() as u64;
    let progress = Progress::new(steps, &format!("measuring {} runs {repeat} times", runs.len()));
    for round in 0..repeat {
        for run in &mut *runs {
            let name = report::name(run.scenario, &run.plan);
            progress.say(|| name.clone());
            let jobs = run.plan.jobs();
            let measured = servers::measure(&run.plan, &mut |done| {
                progress.say(|| format!("{name}: {done} of {jobs} jobs, round {} of {repeat}", round + 1));
            })
            .map_err(|e| Fatal(format!("study: {name}: {e}")))?;
            run.measured.push(measured);
            progress.step();
        }
    }
    Ok(())
}
