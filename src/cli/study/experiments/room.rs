//! How much memory this process may take without harm to anybody.

use crate::cli::machine::kib;
use std::path::{Path, PathBuf};

/// Where the kernel shows control groups.
const CGROUPS: &str = "/sys/fs/cgroup";
/// Where it shows those of memory, if they are of the first version.
const CGROUPS_V1: &str = "/sys/fs/cgroup/memory";

/// Memory that is available to this process. Units: MiB.
///
/// # Source
/// `proc_meminfo(5)`: `MemAvailable`; `cgroups(7)`: `memory.max` and `memory.current`, in version 1
/// `memory.limit_in_bytes` and `memory.usage_in_bytes`, of this process's groups and those around them.
pub(super) fn available_mib() -> u64 {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let meminfo = read(Path::new("/proc/meminfo")).unwrap_or_default();
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    (kib(&meminfo, "MemAvailable") / 1024).min(left_in_groups(&groups, &read) >> 20)
}

/// The least that a group's limit leaves; without limits, more than there is. Units: bytes.
fn left_in_groups(groups: &str, read: &dyn Fn(&Path) -> Option<String>) -> u64 {
    let mut left = u64::MAX;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else { continue };
        let (root, limit, usage) = match controllers {
            "" => (CGROUPS, "memory.max", "memory.current"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                (CGROUPS_V1, "memory.limit_in_bytes", "memory.usage_in_bytes")
            }
            _ => continue,
        };
        let own: PathBuf = Path::new(root).join(group.trim_start_matches('/'));
        for folder in own.ancestors().take_while(|folder| folder.starts_with(root)) {
            let number = |name| read(&folder.join(name))?.trim().parse::<u64>().ok();
            // A group without a limit says `max`, or a number that no machine reaches.
            if let (Some(limit), Some(usage)) = (number(limit), number(usage)) {
                left = left.min(limit.saturating_sub(usage));
            }
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_group_counts() {
        let files = |path: &Path| {
            let text = match path.to_str()? {
                "/sys/fs/cgroup/a/b/memory.max" => "max",
                "/sys/fs/cgroup/a/b/memory.current" => "5",
                "/sys/fs/cgroup/a/memory.max" => "1000",
                "/sys/fs/cgroup/a/memory.current" => "400\n",
                "/sys/fs/cgroup/memory/c/memory.limit_in_bytes" => "500",
                "/sys/fs/cgroup/memory/c/memory.usage_in_bytes" => "600",
                _ => return None,
            };
            Some(text.to_owned())
        };
        assert_eq!(left_in_groups("0::/a/b\n", &files), 600);
        assert_eq!(left_in_groups("9:cpu:/c\n4:memory:/c\n0::/a/b\n", &files), 0);
        assert_eq!(left_in_groups("3:cpu,memory:/c\n", &files), 0);
        assert_eq!(left_in_groups("9:cpu:/c\n0::/z\nnonsense\n", &files), u64::MAX);
    }

    #[test]
    fn there_is_some() {
        assert!(available_mib() > 0);
    }
}
