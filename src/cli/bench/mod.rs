//! `seqpool bench`: the pool beside what the kernel allows, in one run.

pub mod bare;
