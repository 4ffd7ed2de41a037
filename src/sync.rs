//! Atomics: the machine's, or loom's in a model-checking build.

#[cfg(not(all(test, seqpool_loom)))]
pub(crate) use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
#[cfg(all(test, seqpool_loom))]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
