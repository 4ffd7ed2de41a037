//! The command line as it is typed, and the notations of durations and sizes.

use super::run::Halt;
use crate::TransportKind;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  seq 1 1000000 | seqpool run -k upper
      each line is a job; results in input order
  find /usr/include -type f | seqpool run sha256
      what sha256sum prints, computed in parallel
  printf 'ok\\nsignal 9\\nok\\n' | seqpool run fault
      one job crashes, the others do not notice
  seqpool bench --quick
      what this machine does, beside what its kernel allows
  seqpool study
      a blocking server beside a non-blocking one, predicted and measured";

const HANDLERS: &str = "\
Handlers:
  echo    the body itself
  upper   the body with ASCII letters in upper case
  sha256  the body is a path: what sha256sum prints for it
  sleep   sleeps for a duration such as 2ms; the body itself
  spin    computes for a duration such as 2ms; the body itself
  fault   does what the body says; the result is `ok` if it survives that:
          ok, error MSG, panic, exit N, signal N, abort, stack-overflow, hang,
          ignore-term, sleep DUR, alloc SIZE, leak-child, print TEXT

Exit codes:
  0      every job was done
  1      some jobs were not: one line each on standard error says why
  2      wrong usage, or the pool could not start or go on
  3      ended by --halt
  5      jobs were quarantined: they crashed their workers in spite of --retries, or at all with --quarantine
  124    ended by --deadline
  128+n  ended by signal n: the first INT or TERM lets jobs in flight finish,
         the second ends them at once

Examples:
  seq 1 1000000 | seqpool run -k upper
  find . -type f -print0 | seqpool run -0 sha256
  seqpool run -j4 --timeout 200ms -a jobs.txt fault";

const BENCH: &str = "\
Tests, each at 2 workers and for each transport, beside a limit that bare system
calls reach in the same run, in turn with it:
  throughput  jobs a second, 64 bytes upper-cased; limit: packed echo, and, as a
              variant, one message a system call
  latency     one job at a time, median; limit: ping-pong that waits as the pool
              does, and, as variants, ones where both sides sleep: where the
              kernel puts them, and on two CPUs
  large       1 MiB there and back; limit: fragments
  uneven      400 jobs of 0.5 and 10 ms: how long all take, over the ideal of
              list scheduling for the run times that the workers measured
  spawn       from the start to a result of every worker; limit: as many times
              fork, exit and wait
  rss         the host's resident memory at its peak; limit: a bare process and
              the rings as they are mapped

Ratio is value / limit. A row is marked as default if its transport is the one
that a pool has unless told otherwise.

Exit codes:
  0      measured
  2      wrong usage, or something could not be measured or written
  128+n  ended by signal n

Examples:
  seqpool bench
  seqpool bench --quick --json bench.json
  seqpool bench --repeat 15 --pin 0-1";

const STUDY: &str = "\
Letters:
  r  the server reads a part of a result      w  it writes a part of a job
  .  waiting, or idle in a call that blocks   +  waiting, or idle and free for other work
  a worker's blanks: it computes              the server's blanks: it works

Exit codes:
  0      measured
  2      wrong usage, or something could not be measured or written
  128+n  ended by signal n

Examples:
  seqpool study
  seqpool study --transfer wait --workers 6
  seqpool study --supply queue --svg study.svg --html study.html
  seqpool study waits --json waits.json";

const REPLAY: &str = "\
Exit codes:
  0      the job is done; its result is on standard output
  1      it failed: one line on standard error says why
  2      wrong usage, or the file is no capsule
  128+n  it crashed: this process ended by signal n

Examples:
  seqpool replay quarantine/job-2.capsule
  gdb --args seqpool replay quarantine/job-2.capsule
  head -n 1 quarantine/job-2.capsule | jq";

/// A crash-proof process pool: runs each record of its input as a job in forked workers.
#[derive(Debug, Parser)]
#[command(
    name = "seqpool",
    version,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = false,
    args_override_self = true,
    after_help = EXAMPLES
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run each input record as a job
    ///
    /// Runs each record of standard input, or of FILE, as a job of HANDLER in worker processes, and writes each result
    /// followed by a terminator. A job that fails or crashes costs one line on standard error; the others do not
    /// notice.
    #[command(display_name = "seqpool", after_help = HANDLERS)]
    Run(RunArgs),

    /// Measure the pool beside what the kernel allows
    ///
    /// Measures the pool on this machine, each figure beside a limit that bare system calls reach in the same run. The
    /// two take turns (A B A B), and the median, least and greatest of all rounds are reported: a table on standard
    /// output and, if asked for, JSON in a file.
    #[command(display_name = "seqpool", after_help = BENCH)]
    Bench(BenchArgs),

    /// Compare a blocking with a non-blocking server: predicted, measured, drawn
    ///
    /// Runs a job server that blocks and one that does not on real processes and sockets, with workers that take the same
    /// time for each job and workers that do not, and with transfers that are the server's own work or that wait for the
    /// worker. Draws what a model predicts and what happened in the same letters, and says what follows.
    #[command(display_name = "seqpool", after_help = STUDY, args_conflicts_with_subcommands = true)]
    Study(StudyArgs),

    /// Run a quarantined job again, in one process, fit for a debugger
    ///
    /// Reads a capsule that `seqpool run --quarantine` has written and runs its job in this process, without workers:
    /// what crashed its worker crashes this process, and a debugger that runs it shows where.
    #[command(display_name = "seqpool", after_help = REPLAY)]
    Replay(ReplayArgs),
}

/// The options of `seqpool replay`.
#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// The capsule
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
}

/// The options of `seqpool study`.
#[derive(Debug, Args)]
pub(crate) struct StudyArgs {
    /// A short experiment instead.
    #[command(subcommand)]
    pub(crate) experiment: Option<Experiment>,

    /// Worker processes, from 1 to 64
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) workers: u16,

    /// Jobs of each worker, from 2 to 1000
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=1000))]
    pub(crate) rounds: u32,

    /// What the time of a transfer goes to: the server works on each part (cpu), or the worker takes its time (wait)
    /// [default: both, one after the other]
    #[arg(long, value_name = "KIND")]
    pub(crate) transfer: Option<TransferKind>,

    /// Where jobs come from: each worker has its own (rounds), or whoever asks next gets one (queue)
    #[arg(long, value_name = "KIND", default_value = "rounds")]
    pub(crate) supply: SupplyKind,

    /// How workers spend the time of a job
    #[arg(long, value_name = "HOW", default_value = "sleep")]
    pub(crate) compute: ComputeKind,

    /// Time of a job on synchronized workers; unsynchronized ones take half as much more, as much, and half as much
    #[arg(long, value_name = "DUR", default_value = "2ms", value_parser = parse_duration)]
    pub(crate) job: Duration,

    /// Time of a message by itself, that is of a result or a job on its way
    #[arg(long, value_name = "DUR", default_value = "500us", value_parser = parse_duration)]
    pub(crate) message: Duration,

    /// Parts of a message, from 1 to 64
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) parts: u32,

    /// Parts of one worker that the non-blocking server handles before the next has its turn
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) budget: u32,

    /// Times that everything is measured, in turn; the median is shown
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) repeat: u32,

    /// Draw predictions and measurements as SVG
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,

    /// Write everything as one self-contained page
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,

    /// Predict and measure 1 to 64 workers and transfers that wait for the worker for a part of their time, and draw as
    /// SVG where blocking stops being the better choice: two minutes at the most
    #[arg(long, value_name = "FILE")]
    pub(crate) sweep: Option<PathBuf>,

    /// Write the machine and the figures of all runs as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Write every span as a trace that ui.perfetto.dev opens
    #[arg(long, value_name = "FILE")]
    pub(crate) perfetto: Option<PathBuf>,
}

/// The short experiments: facts that the pool's design rests on.
#[derive(Debug, Subcommand)]
pub(crate) enum Experiment {
    /// How to wait for an answer: sleep, spin, spin with sched_yield; with and without pauses
    ///
    /// Sends a message of 64 bytes there and back between two processes, with bare system calls, in every way of waiting:
    /// median time of an exchange.
    #[command(display_name = "seqpool")]
    Waits(ExperimentArgs),

    /// How many frames to put in a packet: jobs a second and system calls a job
    ///
    /// Sends frames of 64 bytes, packed in packets of ever more, to two processes that parse and upper-case each of them, with
    /// bare system calls.
    #[command(display_name = "seqpool")]
    Packing(ExperimentArgs),

    /// What a fork costs from a process that has ever more memory
    ///
    /// Forks a process that exits at once, and waits for it, from one that has from 0 to 2048 MiB resident, or as much as
    /// half of what the machine has available.
    #[command(display_name = "seqpool")]
    Fork(ExperimentArgs),

    /// Whether spinning pays when there are more processes than CPUs
    ///
    /// Sends a message of 64 bytes to 1, 2 and 4 processes in turn, and back, with bare system calls, when all spin with
    /// sched_yield before they sleep, and when all sleep at once: median time of an exchange.
    #[command(display_name = "seqpool")]
    Oversubscribed(ExperimentArgs),
}

/// The options of each short experiment.
#[derive(Debug, Args)]
pub(crate) struct ExperimentArgs {
    /// Times that everything is measured, in turn; the median is shown [default: 5, fork: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) repeat: Option<u32>,

    /// Write the machine and all rows as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TransferKind {
    /// The server works on each part
    Cpu,
    /// The worker takes its time between parts
    Wait,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SupplyKind {
    /// Each worker has as many jobs as the others
    Rounds,
    /// Each job goes to whoever asks next
    Queue,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ComputeKind {
    Sleep,
    Spin,
}

/// The options of `seqpool bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Smaller sizes and fewer rounds: 40 seconds at most on two cores
    #[arg(long)]
    pub(crate) quick: bool,

    /// Rounds of each measurement, from 1 to 1000 [default: 7, quick: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) repeat: Option<u32>,

    /// Run on these CPUs only, workers included, such as 0,2 or 0-3
    #[arg(long, value_name = "CPUS", value_parser = parse_cpus)]
    pub(crate) pin: Option<CpuList>,

    /// Write the machine and all results as JSON to FILE when all is measured
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// CPUs by their numbers, ascending, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CpuList(pub(crate) Vec<usize>);

/// No Linux has as many CPUs; keeps a mistyped range from filling memory.
const CPU_NUMBER_MAX: usize = 1 << 16;

/// CPU numbers and ranges of them, separated by commas, as in `taskset -c`.
fn parse_cpus(text: &str) -> Result<CpuList, String> {
    let bad = || format!("'{text}' is not a list of CPUs such as 0,2 or 0-3");
    let number = |text: &str| text.trim().parse::<usize>().ok().filter(|n| *n < CPU_NUMBER_MAX).ok_or_else(bad);
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(bad());
        }
        cpus.extend(first..=last);
    }
    cpus.sort_unstable();
    cpus.dedup();
    Ok(CpuList(cpus))
}

/// The options of `seqpool run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// What to run: echo, fault, sha256, sleep, spin or upper
    #[arg(value_name = "HANDLER")]
    pub(crate) handler: String,

    /// Worker processes [default: the CPUs that this process may use]
    #[arg(short, long, value_name = "N", value_parser = parse_jobs)]
    pub(crate) jobs: Option<usize>,

    /// Write results in the order of the input, not of completion
    #[arg(short, long)]
    pub(crate) keep_order: bool,

    /// Records and results end at NUL instead of newline
    #[arg(short = '0', long)]
    pub(crate) null: bool,

    /// Read records from FILE instead of standard input
    #[arg(short, long, value_name = "FILE")]
    pub(crate) arg_file: Option<PathBuf>,

    /// Kill a job that runs longer, such as 200ms, 1.5 or 2m; a bare number is seconds
    #[arg(long, value_name = "DUR", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,

    /// Try a job that failed, crashed or timed out up to N more times
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=i64::from(crate::limits::RETRIES_MAX)))]
    pub(crate) retries: Option<u32>,

    /// Keep each job that crashes its worker for the last time in DIR, to be run again by `seqpool replay`
    #[arg(long, value_name = "DIR")]
    pub(crate) quarantine: Option<PathBuf>,

    /// Replace each worker after it has done N jobs, for handlers that leak
    #[arg(long, value_name = "N", value_parser = parse_jobs)]
    pub(crate) max_jobs_per_worker: Option<usize>,

    /// Kill a worker whose memory grows by more than this after its set-up, such as 64MiB; its job ends as out of memory
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) mem_limit: Option<usize>,

    /// End the run when jobs fail: `now` kills what runs, `soon` lets it finish; after N jobs, or N% of those finished (3 at
    /// least), such as now,fail=1 or soon,fail=30%
    #[arg(long, value_name = "WHEN,fail=N[%]", value_parser = parse_halt)]
    pub(crate) halt: Option<Halt>,

    /// End the run when it has taken so long, whatever is unfinished
    #[arg(long, value_name = "DUR", value_parser = parse_duration)]
    pub(crate) deadline: Option<Duration>,

    /// Write a line for each finished job to FILE, in GNU parallel's columns, or as JSON if its name ends in .jsonl
    #[arg(long, value_name = "FILE")]
    pub(crate) joblog: Option<PathBuf>,

    /// Skip the jobs that the joblog of an earlier run knows, and add to it
    #[arg(long)]
    pub(crate) resume: bool,

    /// As --resume, but run again those that were not done
    #[arg(long)]
    pub(crate) resume_failed: bool,

    /// Begin each line of a result with its record and a tab
    #[arg(long)]
    pub(crate) tag: bool,

    /// Print each job that would be run, and run none
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Tell the system's log, too, of jobs that failed, crashed or timed out
    #[arg(long)]
    pub(crate) syslog: bool,

    /// Let the workers of so many jobs kill themselves, hang or exit, such as kill=1%,stall=0.1%; to see that the others do
    /// not notice
    #[arg(long, value_name = "kill=P%,stall=P%,exit=P%", value_parser = super::chaos::parse)]
    pub(crate) chaos: Option<super::chaos::Shares>,

    /// Which jobs --chaos strikes is drawn by this and their numbers
    #[arg(long, value_name = "N", default_value_t = 0, requires = "chaos")]
    pub(crate) seed: u64,

    /// Nice value of the workers, from -20 to 19
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(-20..=19), allow_negative_numbers = true)]
    pub(crate) nice: Option<i32>,

    /// How jobs travel to the workers
    #[arg(long, value_name = "TRANSPORT", default_value = "seqpacket", value_parser = transport_parser())]
    pub(crate) transport: TransportKind,

    /// Write counts as JSON to FILE when all is done
    #[arg(long, value_name = "FILE")]
    pub(crate) stats: Option<PathBuf>,

    /// Record when each job was sent, ran and returned, and write it to FILE for ui.perfetto.dev when all is done
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,

    /// Show progress on standard error: a moving line on a terminal (when results go elsewhere), else a line a second
    #[arg(long)]
    pub(crate) bar: bool,
}

fn transport_parser() -> impl TypedValueParser<Value = TransportKind> {
    PossibleValuesParser::new(["blocking", "seqpacket"]).try_map(|name| name.parse::<TransportKind>())
}

fn parse_halt(text: &str) -> Result<Halt, String> {
    text.parse()
}

/// A number of workers or of jobs; 0 has a message of its own.
fn parse_jobs(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "not a whole number such as 4".to_owned())
}

/// A duration as people write it: `200ms`, `1m 30s`, or seconds as a bare number, `0.2`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let is_bare = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if is_bare {
        let seconds: f64 = text.parse().map_err(|_| not_a_duration(text))?;
        return Duration::try_from_secs_f64(seconds).map_err(|e| format!("{}: {e}", not_a_duration(text)));
    }
    humantime::parse_duration(text).map_err(|e| format!("{}: {e}", not_a_duration(text)))
}

fn not_a_duration(text: &str) -> String {
    format!("'{text}' is not a duration such as 200ms")
}

/// A size as people write it: `64MiB`, `1k`, or bytes as a bare number.
pub(crate) fn parse_size(text: &str) -> Result<usize, String> {
    let size: bytesize::ByteSize =
        text.trim().parse().map_err(|e| format!("'{text}' is not a size such as 64MiB: {e}"))?;
    usize::try_from(size.as_u64()).map_err(|_| format!("'{text}' is more than this machine can address"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations() {
        let ms = Duration::from_millis;
        for (text, want) in [("200ms", 200), ("0.2", 200), ("2", 2000), ("1m 30s", 90_000), ("0", 0), (" 5ms ", 5)] {
            assert_eq!(parse_duration(text), Ok(ms(want)), "{text}");
        }
        for text in ["", "x", "-1", "1.2.3", ".", "5 parsecs", "99999999999999999999999"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn lists_of_cpus() {
        for (text, want) in [("0", &[0][..]), ("0-2", &[0, 1, 2]), ("3,0-1,1", &[0, 1, 3]), ("5-5", &[5])] {
            assert_eq!(parse_cpus(text), Ok(CpuList(want.to_vec())), "{text}");
        }
        for text in ["", "x", "-1", "1-", "2-1", "0,,1", "0-99999999999", "70000"] {
            assert!(parse_cpus(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, want) in [("0", 0), ("64MiB", 64 << 20), ("1kB", 1000), ("1 KiB", 1024)] {
            assert_eq!(parse_size(text), Ok(want), "{text}");
        }
        for text in ["", "x", "-1", "1 parsec"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
