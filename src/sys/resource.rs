//! What a process may use: resource limits, CPUs, its place in the kernel's choice of whom to kill for memory; how much
//! memory it has.
//!
//! # Source
//! `setrlimit(2)`, `sched_setaffinity(2)`, `proc_pid_statm(5)`, `proc_pid_oom_score_adj(5)`.

use super::{OsError, OsResult, Pid, retry_io, retry_nix};
use nix::sched::CpuSet;
use nix::sys::resource as nr;

/// What [`Builder::rlimit`](crate::pool::Builder::rlimit) can limit, by the names of `setrlimit(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Resource {
    /// `RLIMIT_AS`: address space. Units: bytes.
    AddressSpace,
    /// `RLIMIT_CORE`: a core file; workers write none unless this says so. Units: bytes.
    CoreFile,
    /// `RLIMIT_CPU`: CPU time. Units: seconds.
    CpuTime,
    /// `RLIMIT_DATA`: initialised data, heap, and private writable mappings. Units: bytes.
    Data,
    /// `RLIMIT_FSIZE`: a file that is written. Units: bytes.
    FileSize,
    /// `RLIMIT_MEMLOCK`: locked memory. Units: bytes.
    LockedMemory,
    /// `RLIMIT_NOFILE`: one more than the highest number of a descriptor.
    OpenFiles,
    /// `RLIMIT_NPROC`: processes and threads of the user.
    Processes,
    /// `RLIMIT_STACK`: the stack of the first thread. Units: bytes.
    Stack,
}

impl Resource {
    /// Every resource, in the order of their numbers here.
    pub const ALL: [Resource; 9] = [
        Resource::AddressSpace,
        Resource::CoreFile,
        Resource::CpuTime,
        Resource::Data,
        Resource::FileSize,
        Resource::LockedMemory,
        Resource::OpenFiles,
        Resource::Processes,
        Resource::Stack,
    ];
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// As `setrlimit(2)` spells it.
    pub fn name(self) -> &'static str {
        self.facts().1
    }

    fn facts(self) -> (nr::Resource, &'static str) {
        match self {
            Resource::AddressSpace => (nr::Resource::RLIMIT_AS, "RLIMIT_AS"),
            Resource::CoreFile => (nr::Resource::RLIMIT_CORE, "RLIMIT_CORE"),
            Resource::CpuTime => (nr::Resource::RLIMIT_CPU, "RLIMIT_CPU"),
            Resource::Data => (nr::Resource::RLIMIT_DATA, "RLIMIT_DATA"),
            Resource::FileSize => (nr::Resource::RLIMIT_FSIZE, "RLIMIT_FSIZE"),
            Resource::LockedMemory => (nr::Resource::RLIMIT_MEMLOCK, "RLIMIT_MEMLOCK"),
            Resource::OpenFiles => (nr::Resource::RLIMIT_NOFILE, "RLIMIT_NOFILE"),
            Resource::Processes => (nr::Resource::RLIMIT_NPROC, "RLIMIT_NPROC"),
            Resource::Stack => (nr::Resource::RLIMIT_STACK, "RLIMIT_STACK"),
        }
    }
}

/// This process's soft and hard limit.
pub(crate) fn rlimit(resource: Resource) -> OsResult<(u64, u64)> {
    retry_nix("getrlimit", || nr::getrlimit(resource.facts().0))
}

/// Sets this process's soft and hard limit; what it forks inherits them.
pub(crate) fn set_rlimit(resource: Resource, soft: u64, hard: u64) -> OsResult<()> {
    retry_nix("setrlimit", || nr::setrlimit(resource.facts().0, soft, hard))
}

/// The CPUs that this process may run on.
pub(crate) fn affinity() -> OsResult<Vec<usize>> {
    let set = retry_nix("sched_getaffinity", || nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)))?;
    Ok((0..CpuSet::count()).filter(|&cpu| set.is_set(cpu) == Ok(true)).collect())
}

/// Confines this process and what it forks to these CPUs. The kernel passes over those that it does not grant, unless
/// it grants none.
pub(crate) fn set_affinity(cpus: &[usize]) -> OsResult<()> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        // A number that no set can hold.
        retry_nix("sched_setaffinity", || set.set(cpu))?;
    }
    retry_nix("sched_setaffinity", || nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set))
}

const OOM_SCORE_ADJ: &str = "/proc/self/oom_score_adj";

/// How much likelier than others this process is to be killed when the machine's memory is short, from -1000 to 1000.
pub(crate) fn oom_score_adj() -> OsResult<i32> {
    const CALL: &str = "read /proc/self/oom_score_adj";
    let text = retry_io(CALL, || std::fs::read_to_string(OOM_SCORE_ADJ))?;
    text.trim().parse().map_err(|_| OsError { call: CALL, errno: libc::EPROTO })
}

/// Sets it for this process and what it forks. Raising needs no privilege.
pub(crate) fn set_oom_score_adj(value: i32) -> OsResult<()> {
    retry_io("write /proc/self/oom_score_adj", || std::fs::write(OOM_SCORE_ADJ, value.to_string()))
}

/// What a process has of memory, as the kernel counts it: by pages, and, with many CPUs, not to the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryUse {
    /// Address space. Units: bytes.
    pub(crate) address_space: u64,
    /// Resident pages that are nobody else's file or shared memory. Units: bytes.
    pub(crate) anonymous: u64,
}

/// What this process has.
pub(crate) fn own_memory_use() -> OsResult<MemoryUse> {
    memory_use_in("/proc/self/statm")
}

/// What another process has; one that has ended has nothing.
pub(crate) fn memory_use(pid: Pid) -> OsResult<MemoryUse> {
    memory_use_in(&format!("/proc/{pid}/statm"))
}

fn memory_use_in(path: &str) -> OsResult<MemoryUse> {
    const CALL: &str = "read /proc/PID/statm";
    let text = retry_io(CALL, || std::fs::read_to_string(path))?;
    // SAFETY: sysconf(3) takes a number and touches no memory of ours.
    let page_size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as u64;
    parse_statm(&text, page_size).ok_or(OsError { call: CALL, errno: libc::EPROTO })
}

/// Units: pages in the text, bytes in the result.
fn parse_statm(text: &str, page_size: u64) -> Option<MemoryUse> {
    let mut fields = text.split_ascii_whitespace().map(|field| field.parse::<u64>().ok());
    let (size, resident, shared) = (fields.next()??, fields.next()??, fields.next()??);
    Some(MemoryUse { address_space: size * page_size, anonymous: resident.saturating_sub(shared) * page_size })
}

#[cfg(all(test, not(seqpool_loom)))]
mod tests {
    use super::*;

    #[test]
    fn resources_stand_at_their_numbers() {
        for (index, resource) in Resource::ALL.into_iter().enumerate() {
            assert_eq!(resource as usize, index);
            rlimit(resource).unwrap_or_else(|e| panic!("{}: {e}", resource.name()));
        }
    }

    #[test]
    fn statm_is_read_and_nonsense_is_not() {
        let parsed = parse_statm("1000 300 100 1 0 50 0\n", 4096);
        assert_eq!(parsed, Some(MemoryUse { address_space: 4_096_000, anonymous: 819_200 }));
        // A zombie, and counters that were read one after the other.
        assert_eq!(parse_statm("0 0 0 0 0 0 0\n", 4096), Some(MemoryUse { address_space: 0, anonymous: 0 }));
        assert_eq!(parse_statm("5 1 2", 4096).map(|m| m.anonymous), Some(0));
        for bad in ["", "1", "1 2", "1 x 3"] {
            assert_eq!(parse_statm(bad, 4096), None, "{bad:?}");
        }
    }

    #[test]
    fn memory_that_is_touched_counts() {
        let before = own_memory_use().expect("statm");
        let touched = vec![1u8; 32 << 20];
        let after = own_memory_use().expect("statm");
        assert!(after.anonymous >= before.anonymous + (24 << 20), "{before:?}, {after:?}, {}", touched[1]);
    }
}
