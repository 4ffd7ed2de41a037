//! What the figures were measured on.

use crate::limits::WORKERS_MAX;
use serde::Serialize;

/// The machine as the kernel describes it. What cannot be read is empty or 0.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    /// The processor's name.
    pub(crate) cpu: String,
    /// CPUs that are online.
    pub(crate) cores: usize,
    /// CPUs that this process may use, by affinity and cgroup quota.
    pub(crate) usable: usize,
    /// The CPUs of `--pin`.
    pub(crate) pinned: Option<Vec<usize>>,
    pub(crate) kernel: String,
    pub(crate) arch: &'static str,
    pub(crate) memory_mib: u64,
    /// Processes that ran or wanted to, on the average of the minute before the measurements.
    pub(crate) load: f64,
    /// Version of this program.
    pub(crate) seqpool: &'static str,
    /// Whether the compiler optimized this program. Figures of one that is not say little.
    pub(crate) optimized: bool,
}

impl Machine {
    pub(crate) fn of_this_process(pinned: Option<Vec<usize>>) -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let load = read("/proc/loadavg").split_ascii_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0.0);
        let usable = std::thread::available_parallelism().map_or(0, usize::from).min(WORKERS_MAX);
        Self {
            cpu: field(&cpuinfo, "model name").unwrap_or_default().to_owned(),
            cores: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            usable,
            pinned,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            arch: std::env::consts::ARCH,
            memory_mib: kib(&read("/proc/meminfo"), "MemTotal") / 1024,
            load,
            seqpool: env!("CARGO_PKG_VERSION"),
            optimized: !cfg!(debug_assertions),
        }
    }
}

/// One line for people.
impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}, {} of {} cores, {} MiB, Linux {}, load {:.1}, seqpool {}{}",
            if self.cpu.is_empty() { self.arch } else { &self.cpu },
            self.usable,
            self.cores,
            self.memory_mib,
            self.kernel,
            self.load,
            self.seqpool,
            if self.optimized { "" } else { ", NOT OPTIMIZED" },
        )
    }
}

/// The value of the first line `name: value`, as in many files of `proc(5)`.
fn field<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    text.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        (found.trim() == name).then(|| value.trim())
    })
}

/// A value in kB, which `proc(5)` means as KiB; 0 when there is none.
pub(crate) fn kib(text: &str, name: &str) -> u64 {
    field(text, name).and_then(|value| value.strip_suffix("kB")?.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found() {
        let text = "VmPeak:\t  10 kB\nVmHWM:\t    1234 kB\nmodel name\t: A: B\n";
        assert_eq!((kib(text, "VmHWM"), kib(text, "Vm"), kib(text, "model name")), (1234, 0, 0));
        assert_eq!(field(text, "model name"), Some("A: B"));
    }

    #[test]
    fn this_machine_is_known() {
        let machine = Machine::of_this_process(None);
        assert!(machine.usable > 0 && machine.memory_mib > 0 && !machine.kernel.is_empty(), "{machine:?}");
    }
}
