//! `seqpool replay`: runs a quarantined job again, in this process, so that a debugger can look at it.

use super::args::ReplayArgs;
use super::capsule::ReadBack;
use super::handlers;
use super::report::{EXIT_DONE, EXIT_UNSUCCESSFUL, Fatal, plain_error, print_lines};
use crate::{Job, Outcome, Pool};
use std::io::Write;

/// Runs the command. Returns its exit code; a job that crashes crashes this process.
pub(crate) fn run(args: ReplayArgs) -> Result<u8, Fatal> {
    let capsule = ReadBack::open(&args.file)?;
    if !handlers::NAMES.contains(&capsule.handler()) {
        let (file, handler) = (args.file.display(), capsule.handler());
        return Err(Fatal(format!("{file}: unknown handler '{handler}'; known are {}", handlers::NAMES.join(", "))));
    }
    // Not as a line with `job N:`, which is an outcome's.
    print_lines(&format!("replaying {}", capsule.story()));
    let mut job = Job::new(capsule.handler(), &capsule.body).tag(capsule.job());
    for (key, value) in capsule.headers() {
        job = job.header(&String::from_utf8_lossy(key), value);
    }
    let outcome = handlers::register(Pool::builder()).run_here(&job).map_err(|e| Fatal(format!("replay: {e}")))?;
    match outcome {
        Outcome::Done(mut body) => {
            body.push(b'\n');
            let mut stdout = std::io::stdout();
            stdout
                .write_all(&body)
                .and_then(|()| stdout.flush())
                .map_err(|e| Fatal(format!("standard output: {}", plain_error(&e))))?;
            Ok(EXIT_DONE)
        }
        other => {
            print_lines(&format!("job {}: {other}", capsule.job()));
            Ok(EXIT_UNSUCCESSFUL)
        }
    }
}
