//! Floor 5: the `seqpool` command.
//!
//! Arguments as typed (`args`) become a checked configuration (`config`), which `run` carries out: records come from
//! `input`, are jobs of `handlers` in the pool, and leave through `output` and `report`; `trace` records them. `bench`
//! measures the pool; `study` compares two kinds of server; `replay` runs again what `capsule` has kept.
//!
//! The contract is one of exit codes and lines: see `report` for what standard error looks like. No thread is
//! started before the pool has forked.

mod args;
pub mod bench;
mod capsule;
mod chaos;
mod config;
mod figures;
mod handlers;
mod input;
mod machine;
mod output;
mod replay;
mod report;
mod run;
pub mod study;
pub mod trace;

use clap::Parser;
use clap::error::{ContextKind, ErrorKind};
use std::io::Write;
use std::process::ExitCode;

/// Runs the command with the process's arguments.
pub fn main() -> ExitCode {
    let code = match args::Cli::try_parse() {
        Ok(args::Cli { command: args::Command::Run(args) }) => {
            exit_code(config::Config::build(args).and_then(run::run))
        }
        Ok(args::Cli { command: args::Command::Bench(args) }) => exit_code(bench::run(args)),
        Ok(args::Cli { command: args::Command::Study(args) }) => exit_code(study::run(args)),
        Ok(args::Cli { command: args::Command::Replay(args) }) => exit_code(replay::run(args)),
        Err(error) => usage_error(error),
    };
    ExitCode::from(code)
}

fn exit_code(ended: Result<u8, report::Fatal>) -> u8 {
    match ended {
        Ok(code) => code,
        Err(report::Fatal(message)) => {
            report::print_lines(&message);
            report::EXIT_USAGE
        }
    }
}

/// Help and version go to standard output as they are; complaints to standard error, as lines of ours.
fn usage_error(mut error: clap::Error) -> u8 {
    if error.use_stderr() {
        if error.kind() == ErrorKind::UnknownArgument {
            // That an unknown option may be passed as a value helps nobody: no handler's name begins with a dash.
            error.remove(ContextKind::Suggested);
        }
        let text = error.to_string();
        report::print_lines(text.strip_prefix("error: ").unwrap_or(&text));
        return report::EXIT_USAGE;
    }
    match error.print().and_then(|()| std::io::stdout().flush()) {
        // A reader who has seen enough of the help is no trouble.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            report::print_lines(&format!("standard output: {}", report::plain_error(&error)));
            report::EXIT_USAGE
        }
        _ => report::EXIT_DONE,
    }
}
