//! Which of a pool's processes one is, for those that count or fail calls.

/// What a process of a pool is, told by the forks between it and the one that counts or fails calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The pool's own process.
    Host,
    /// Its child, which forks the others.
    Nursery,
    /// Every child of that one, and their children.
    Worker,
}

impl Role {
    /// Every role.
    pub const ALL: [Role; 3] = [Role::Host, Role::Nursery, Role::Worker];

    /// The role of a process that is so many forks away.
    pub(super) fn from_depth(depth: usize) -> Self {
        Self::ALL[depth.min(Self::ALL.len() - 1)]
    }

    /// The role in words.
    pub fn name(self) -> &'static str {
        ["host", "nursery", "worker"][self as usize]
    }
}
