//! Memory control groups: where a pool may make some of its own, one for each slot, and what they say.
//!
//! A pool's group lies below the host's own one, so that whatever limits the host limits its workers too. On version 2 a
//! group with processes cannot pass the memory controller on: there it lies beside the host's own group, if the memory
//! controller is there already and the host's own group limits nothing that the workers would escape.
//!
//! # Source
//! `cgroups(7)`; the kernel's `Documentation/admin-guide/cgroup-v2.rst` and `cgroup-v1/memory.rst`.

use super::{OsError, OsResult, Pid, clock, own_pid, retry_io};
use crate::limits::{GROUP_NAME_TRIES, GROUP_REMOVE_TIMEOUT};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Which interface the memory controller has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    V1,
    V2,
}

/// The files of one version.
struct Files {
    usage: &'static str,
    limit: &'static str,
    no_limit: &'static str,
    /// Of memory and swap together (version 1), or of swap alone.
    swap_limit: &'static str,
    /// Holds a line `oom_kill N`.
    events: &'static str,
}

impl Version {
    fn files(self) -> Files {
        match self {
            Version::V1 => Files {
                usage: "memory.usage_in_bytes",
                limit: "memory.limit_in_bytes",
                no_limit: "-1",
                swap_limit: "memory.memsw.limit_in_bytes",
                events: "memory.oom_control",
            },
            Version::V2 => Files {
                usage: "memory.current",
                limit: "memory.max",
                no_limit: "max",
                swap_limit: "memory.swap.max",
                events: "memory.events",
            },
        }
    }
}

/// Names of pools' groups begin so; then come the host's process id and a number.
const PREFIX: &str = "seqpool-";

/// A pool's own group, in which each slot has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) version: Version,
    /// Its folder.
    pub(crate) path: PathBuf,
}

impl Group {
    /// Makes a group for this process's pool, where it may; says why it may not. What hosts that were killed together
    /// with their nurseries have left is removed on the way.
    /// Of this version, if one is named.
    pub(crate) fn create(wanted: Option<Version>) -> Result<OwnedGroup, String> {
        let read = |path: &str| fs::read_to_string(path).map_err(|e| format!("{path}: {e}"));
        let mut places = places(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?);
        places.retain(|(version, _)| wanted.is_none_or(|wanted| wanted == *version));
        if places.is_empty() {
            return Err("its file system is not mounted".to_owned());
        }
        let mut why = Vec::new();
        for (version, base) in places {
            match Self::create_in(version, &base) {
                Ok(group) => return Ok(OwnedGroup { group, owner: own_pid() }),
                Err(reason) => why.push(format!("{}: {reason}", base.display())),
            }
        }
        Err(why.join("; "))
    }

    fn create_in(version: Version, base: &Path) -> Result<Self, String> {
        match version {
            // Without the hierarchy a group below would escape the limits of the one above.
            Version::V1 => match fs::read_to_string(base.join("memory.use_hierarchy")) {
                Ok(text) if text.trim() != "1" => return Err("memory.use_hierarchy is off".to_owned()),
                _ => {}
            },
            Version::V2 => {
                let passed_on = fs::read_to_string(base.join("cgroup.subtree_control")).map_err(|e| e.to_string())?;
                if !passed_on.split_ascii_whitespace().any(|controller| controller == "memory") {
                    return Err("memory is not in its cgroup.subtree_control".to_owned());
                }
            }
        }
        remove_stale(base);
        let group = Self { version, path: make_folder(base).map_err(|e| e.to_string())? };
        // What cannot be done now could not be done for a worker later.
        let probed = group.probe();
        if probed.is_err() {
            group.remove();
        }
        probed.map(|()| group).map_err(|e| e.to_string())
    }

    fn probe(&self) -> OsResult<()> {
        if self.version == Version::V2 {
            write(&self.path, "cgroup.subtree_control", "+memory", "write cgroup.subtree_control")?;
        }
        let slot = self.slot(0);
        slot.make()?;
        slot.lift_limit()?;
        slot.usage()?;
        slot.oom_kills().map(drop)
    }

    /// The group of a slot.
    pub(crate) fn slot(&self, slot: u32) -> SlotGroup {
        SlotGroup { version: self.version, path: self.path.join(format!("w{slot}")) }
    }

    /// Removes it with all in it. The processes in it have ended, or are about to: they are waited for a bounded time.
    pub(crate) fn remove(&self) {
        let deadline_ns = clock::now_ns() + GROUP_REMOVE_TIMEOUT.as_nanos() as u64;
        while !remove_tree(&self.path) && clock::now_ns() < deadline_ns {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

/// A pool's group, removed with it: by the process that made it, not by those that it has forked.
#[derive(Debug)]
pub(crate) struct OwnedGroup {
    group: Group,
    owner: Pid,
}

impl std::ops::Deref for OwnedGroup {
    type Target = Group;
    fn deref(&self) -> &Group {
        &self.group
    }
}

impl Drop for OwnedGroup {
    fn drop(&mut self) {
        if own_pid() == self.owner {
            self.group.remove();
        }
    }
}

/// One slot's group; its workers are in it, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlotGroup {
    version: Version,
    path: PathBuf,
}

impl SlotGroup {
    /// Makes it, if it is not there.
    pub(crate) fn make(&self) -> OsResult<()> {
        match retry_io("mkdir", || fs::create_dir(&self.path)) {
            Err(error) if error.errno == libc::EEXIST => Ok(()),
            other => other,
        }
    }

    /// Moves this process into it, without any limit yet: what the last worker left may still count.
    pub(crate) fn enter(&self) -> OsResult<()> {
        self.make()?;
        self.lift_limit()?;
        write(&self.path, "cgroup.procs", "0", "write cgroup.procs")
    }

    fn lift_limit(&self) -> OsResult<()> {
        let Files { limit, no_limit, swap_limit, .. } = self.version.files();
        // Where swap is not counted there is no such file. On version 1 it must never be below the other.
        let _ = write(&self.path, swap_limit, no_limit, "write memory swap limit");
        write(&self.path, limit, no_limit, "write memory limit")
    }

    /// From now on all in it may have `growth` bytes more than they have now.
    pub(crate) fn limit_growth(&self, growth: u64) -> OsResult<()> {
        let limit = self.usage()?.saturating_add(growth).to_string();
        write(&self.path, self.version.files().limit, &limit, "write memory limit")?;
        let swap = if self.version == Version::V1 { &limit } else { "0" };
        let _ = write(&self.path, self.version.files().swap_limit, swap, "write memory swap limit");
        Ok(())
    }

    fn usage(&self) -> OsResult<u64> {
        const CALL: &str = "read memory usage";
        let text = retry_io(CALL, || fs::read_to_string(self.path.join(self.version.files().usage)))?;
        text.trim().parse().map_err(|_| OsError { call: CALL, errno: libc::EPROTO })
    }

    /// How many processes in it the kernel has killed for want of memory.
    pub(crate) fn oom_kills(&self) -> OsResult<u64> {
        const CALL: &str = "read memory events";
        let text = retry_io(CALL, || fs::read_to_string(self.path.join(self.version.files().events)))?;
        oom_kills_in(&text).ok_or(OsError { call: CALL, errno: libc::EPROTO })
    }
}

fn oom_kills_in(events: &str) -> Option<u64> {
    events.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

fn write(folder: &Path, file: &str, text: &str, call: &'static str) -> OsResult<()> {
    // Not created: in a folder that is no control group there is no such file.
    retry_io(call, || {
        let mut file = fs::OpenOptions::new().write(true).open(folder.join(file))?;
        io::Write::write_all(&mut file, text.as_bytes())
    })
}

/// A new folder whose name no other pool has.
fn make_folder(base: &Path) -> OsResult<PathBuf> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut made = Err(OsError { call: "mkdir", errno: libc::EEXIST });
    for _ in 0..GROUP_NAME_TRIES {
        // Relaxed: the numbers only have to differ.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = base.join(format!("{PREFIX}{}-{number}", own_pid()));
        made = retry_io("mkdir", || fs::create_dir(&path)).map(|()| path);
        if !matches!(made, Err(OsError { errno: libc::EEXIST, .. })) {
            break;
        }
    }
    made
}

/// Removes a group and those in it. `false`: something is still in one.
fn remove_tree(path: &Path) -> bool {
    if let Ok(entries) = fs::read_dir(path) {
        for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
            let _ = retry_io("rmdir", || fs::remove_dir(entry.path()));
        }
    }
    match retry_io("rmdir", || fs::remove_dir(path)) {
        Ok(()) => true,
        Err(error) => error.errno == libc::ENOENT,
    }
}

/// Removes the groups of hosts that are gone. One with a process in it cannot be removed; a slot's that is taken from a
/// living pool, by a host that does not see its process, is made again for its next worker.
fn remove_stale(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let host = name.to_str().and_then(|n| n.strip_prefix(PREFIX)?.split_once('-')?.0.parse::<Pid>().ok());
        if host.is_some_and(|pid| pid > 0 && !Path::new(&format!("/proc/{pid}")).exists()) {
            remove_tree(&entry.path());
        }
    }
}

/// Where a pool's group may lie, best first, by `/proc/self/mountinfo` and `/proc/self/cgroup`.
fn places(mountinfo: &str, own: &str) -> Vec<(Version, PathBuf)> {
    let mut found = Vec::new();
    let own_path = |is_it: &dyn Fn(&str, &str) -> bool| {
        own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            is_it(id, controllers).then_some(path)
        })
    };
    for line in mountinfo.lines() {
        // ID PARENT DEVICE ROOT MOUNTPOINT OPTIONS [OPTIONAL...] - TYPE SOURCE SUPER-OPTIONS
        let Some((mount, kind)) = line.split_once(" - ") else { continue };
        let mount: Vec<&str> = mount.split(' ').collect();
        let kind: Vec<&str> = kind.split(' ').collect();
        let (&[_, _, _, root, point, ..], &[kind, _, options, ..]) = (&mount[..], &kind[..]) else { continue };
        let has_memory = |list: &str| list.split(',').any(|name| name == "memory");
        let (version, path) = match kind {
            "cgroup" if has_memory(options) => (Version::V1, own_path(&|_, controllers| has_memory(controllers))),
            "cgroup2" => (Version::V2, own_path(&|id, controllers| id == "0" && controllers.is_empty())),
            _ => continue,
        };
        let Some(path) = path else { continue };
        // What is mounted may be a part of the hierarchy; a group outside it has no folder here.
        let below = if root == "/" { Some(path) } else { path.strip_prefix(root) };
        let Some(below) = below.map(|p| p.trim_start_matches('/')).filter(|p| !p.starts_with("..")) else { continue };
        let folder = Path::new(point).join(below);
        if version == Version::V2 && !below.is_empty() && limits_nothing(&folder) {
            found.extend(folder.parent().map(|parent| (version, parent.to_owned())));
        }
        found.push((version, folder));
    }
    found
}

/// Whether a group of version 2 sets no limit of its own that a process would escape by leaving it.
fn limits_nothing(folder: &Path) -> bool {
    ["memory.max", "memory.high", "memory.swap.max", "pids.max", "cpu.max", "io.max"].iter().all(|file| {
        match fs::read_to_string(folder.join(file)) {
            Ok(text) => text.trim().is_empty() || text.starts_with("max"),
            // No such controller, no such limit.
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    })
}

#[cfg(all(test, not(seqpool_loom)))]
mod tests {
    use super::*;

    fn v1(path: &str) -> Vec<(Version, PathBuf)> {
        vec![(Version::V1, path.into())]
    }

    #[test]
    fn places_are_found() {
        let mounts = "31 23 0:28 / /c rw - tmpfs tmpfs rw\n\
                      35 31 0:32 / /c/memory rw,relatime shared:3 - cgroup cgroup rw,memory\n\
                      36 31 0:33 / /c/cpu rw - cgroup cgroup rw,cpu\n";
        assert_eq!(places(mounts, "4:memory:/a/b\n3:cpu:/x\n0::/\n"), v1("/c/memory/a/b"));
        assert_eq!(places(mounts, "4:cpu,memory:/\n"), v1("/c/memory/"));
        assert_eq!(places(mounts, "4:cpu:/\n"), []);
        // A container's mount shows only what is below its own group.
        let part = "35 31 0:32 /box/1 /c/memory rw - cgroup cgroup rw,memory\n";
        assert_eq!(places(part, "4:memory:/box/1\n"), v1("/c/memory/"));
        assert_eq!(places(part, "4:memory:/box/1/x\n"), v1("/c/memory/x"));
        assert_eq!(places(part, "4:memory:/else\n"), []);
        assert_eq!(places(part, "4:memory:/../x\n"), []);
        assert_eq!(places("nonsense\n", "nonsense\n"), []);
    }

    #[test]
    fn a_place_beside_the_own_group_only_if_nothing_is_escaped() {
        let root = tempfile::tempdir().expect("a folder");
        let own = root.path().join("slice/app");
        fs::create_dir_all(&own).expect("mkdir");
        let mounts = format!("35 31 0:32 / {} rw - cgroup2 cgroup2 rw\n", root.path().display());
        let found = || places(&mounts, "0::/slice/app\n").into_iter().map(|(_, path)| path).collect::<Vec<_>>();
        assert_eq!(found(), [root.path().join("slice"), own.clone()]);
        fs::write(own.join("memory.max"), "max\n").expect("write");
        fs::write(own.join("cpu.max"), "max 100000\n").expect("write");
        assert_eq!(found().len(), 2);
        fs::write(own.join("memory.max"), "1073741824\n").expect("write");
        assert_eq!(found(), [own]);
        assert_eq!(places(&mounts, "0::/\n").len(), 1, "nothing is beside the root");
    }

    #[test]
    fn a_folder_that_is_no_control_group_is_refused_and_left_as_it_was() {
        let base = tempfile::tempdir().expect("a folder");
        for version in [Version::V1, Version::V2] {
            assert!(Group::create_in(version, base.path()).is_err(), "{version:?}");
            fs::write(base.path().join("cgroup.subtree_control"), "cpu memory\n").expect("write");
            assert!(Group::create_in(version, base.path()).is_err(), "{version:?}");
        }
        fs::write(base.path().join("memory.use_hierarchy"), "0\n").expect("write");
        assert!(Group::create_in(Version::V1, base.path()).is_err_and(|why| why.contains("use_hierarchy")));
        let left = fs::read_dir(base.path()).expect("a folder").flatten().filter(|e| e.path().is_dir()).count();
        assert_eq!(left, 0);
    }

    #[test]
    fn groups_of_hosts_that_are_gone_are_removed() {
        let base = tempfile::tempdir().expect("a folder");
        let dead = Pid::MAX;
        let own = own_pid();
        for name in
            [format!("seqpool-{dead}-0/w3"), format!("seqpool-{own}-0/w0"), "other-1-0".into(), "seqpool-x".into()]
        {
            fs::create_dir_all(base.path().join(name)).expect("mkdir");
        }
        remove_stale(base.path());
        let mut left: Vec<_> = fs::read_dir(base.path()).expect("a folder").flatten().map(|e| e.file_name()).collect();
        left.sort();
        assert_eq!(left, ["other-1-0", &format!("seqpool-{own}-0"), "seqpool-x"]);
    }

    #[test]
    fn events_are_read() {
        assert_eq!(oom_kills_in("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), Some(3));
        assert_eq!(oom_kills_in("low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\noom_group_kill 0\n"), Some(1));
        assert_eq!(oom_kills_in("oom_kill_disable 0\n"), None);
    }
}
