//! Capsules in files: a job that crashed its worker for the last time, with all that is needed to run it again.
//!
//! # Shape
//! One line of JSON that says what happened (`head -n 1 FILE | jq`), then the job's header block and its body as they
//! are. A file appears whole or not at all.

use super::report::{Fatal, plain_error};
use crate::{Capsule, CrashCause};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

/// The format's number.
const VERSION: u32 = 1;
/// Longest first line of a capsule that is read. Units: bytes.
const HEAD_SIZE_MAX: u64 = 1 << 20;

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    /// The format's number.
    seqpool_capsule: u32,
    /// The program's version.
    version: String,
    /// The job's number in its input.
    job: u64,
    handler: String,
    attempts: u32,
    outcome: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    /// What its last worker had used in all its life.
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<WorkerUsage>,
    /// The end of what it printed in its last attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    printed: Option<String>,
    /// Names of the environment's variables; values may be secrets.
    environment: Vec<String>,
    header_size: u64,
    body_size: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct WorkerUsage {
    user_us: u64,
    system_us: u64,
    resident_max_kib: u64,
}

/// A directory that capsules are written to.
#[derive(Clone, Debug)]
pub(crate) struct Quarantine {
    folder: PathBuf,
}

impl Quarantine {
    /// Makes the directory if it is not there.
    ///
    /// # Errors
    /// When it cannot be made or written to.
    pub(crate) fn open(folder: PathBuf) -> Result<Self, Fatal> {
        let trouble = |e: &io::Error| Fatal(format!("--quarantine: {}: {}", folder.display(), plain_error(e)));
        fs::create_dir_all(&folder).map_err(|e| trouble(&e))?;
        // Whether it can be written to is known before any job runs.
        tempfile::Builder::new().prefix(".seqpool-").tempfile_in(&folder).map_err(|e| trouble(&e))?;
        Ok(Self { folder })
    }

    /// The directory, to be shown.
    pub(crate) fn folder(&self) -> std::path::Display<'_> {
        self.folder.display()
    }

    /// Writes a capsule, in place of an earlier one of that job.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn write(&self, capsule: &Capsule<'_>) -> io::Result<()> {
        let path = self.folder.join(format!("job-{}.capsule", capsule.tag));
        let mut file = tempfile::Builder::new().prefix(".seqpool-").tempfile_in(&self.folder)?;
        serde_json::to_writer(file.as_file_mut(), &Head::of(capsule))?;
        for part in [b"\n", capsule.header_block, capsule.body] {
            file.as_file_mut().write_all(part)?;
        }
        file.persist(&path).map(drop).map_err(|e| e.error)
    }
}

impl Head {
    fn of(capsule: &Capsule<'_>) -> Self {
        let (signal, exit_code) = match capsule.crash.cause {
            CrashCause::Signal(n) => (Some(n), None),
            CrashCause::Code(n) => (None, Some(n)),
            _ => (None, None),
        };
        Self {
            seqpool_capsule: VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            job: capsule.tag,
            handler: capsule.handler.to_owned(),
            attempts: capsule.attempts,
            outcome: format!("crashed: {}", capsule.crash),
            signal,
            exit_code,
            worker: capsule.usage.map(|u| WorkerUsage {
                user_us: u.user_us,
                system_us: u.system_us,
                resident_max_kib: u.resident_max_kib,
            }),
            printed: capsule.printed.map(|bytes| String::from_utf8_lossy(bytes).into_owned()),
            environment: std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned()).collect(),
            header_size: capsule.header_block.len() as u64,
            body_size: capsule.body.len() as u64,
        }
    }
}

/// A capsule that was read back.
#[derive(Debug)]
pub(crate) struct ReadBack {
    head: Head,
    header_block: Vec<u8>,
    pub(crate) body: Vec<u8>,
}

impl ReadBack {
    /// Reads a file; all of it is checked.
    ///
    /// # Errors
    /// When there is no such file, or it is no capsule, or not all of it.
    pub(crate) fn open(path: &Path) -> Result<Self, Fatal> {
        let name = path.display();
        let trouble = |e: io::Error| Fatal(format!("{name}: {}", plain_error(&e)));
        let mut file = BufReader::new(File::open(path).map_err(trouble)?);
        let mut line = Vec::new();
        file.by_ref().take(HEAD_SIZE_MAX).read_until(b'\n', &mut line).map_err(trouble)?;
        let head: Head = serde_json::from_slice(&line)
            .map_err(|e| Fatal(format!("{name}: not a capsule, which begins with a line of JSON: {e}")))?;
        if head.seqpool_capsule != VERSION {
            let found = head.seqpool_capsule;
            return Err(Fatal(format!("{name}: a capsule of format {found}; this program reads format {VERSION}")));
        }
        let mut rest = Vec::new();
        file.read_to_end(&mut rest).map_err(trouble)?;
        let expected = head.header_size.saturating_add(head.body_size);
        if rest.len() as u64 != expected {
            let found = rest.len();
            return Err(Fatal(format!("{name}: {found} bytes follow the first line, which speaks of {expected}")));
        }
        let body = rest.split_off(head.header_size as usize);
        Ok(Self { head, header_block: rest, body })
    }

    pub(crate) fn job(&self) -> u64 {
        self.head.job
    }

    pub(crate) fn handler(&self) -> &str {
        &self.head.handler
    }

    /// Its headers in order.
    pub(crate) fn headers(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        crate::frame::Headers::from_block(&self.header_block).iter()
    }

    /// What it says happened, in words.
    pub(crate) fn story(&self) -> String {
        let Head { job, handler, attempts, outcome, .. } = &self.head;
        let how_often = if *attempts == 1 { "once".to_owned() } else { format!("{attempts} times") };
        format!("job {job} of '{handler}', started {how_often}, {outcome}")
    }
}
