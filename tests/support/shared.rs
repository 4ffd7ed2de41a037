//! What several test binaries need alike: memory that forked processes share, how often a thing is repeated, and seeded
//! random numbers.

use std::sync::atomic::AtomicU32;

/// So many zeroed words that every process forked from now on shares, for as long as the program lives.
pub fn shared_words(count: usize) -> &'static [AtomicU32] {
    let size = count * size_of::<AtomicU32>();
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping at an address of the kernel's choice.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), size, prot, flags, -1, 0) };
    assert_ne!(base, libc::MAP_FAILED);
    // SAFETY: the mapping is zeroed, aligned to a page, never unmapped, and accessed as atomics only.
    unsafe { std::slice::from_raw_parts(base.cast(), count) }
}

/// How often, how many or how long: a little with the other tests, `soaking` with the feature `soak`.
pub const fn rounds(usual: u64, soaking: u64) -> u64 {
    if cfg!(feature = "soak") { soaking } else { usual }
}

/// SplitMix64 (Steele, Lea and Flood, 2014): seeded, so that a failure can be run again.
pub struct Random(pub u64);

impl Random {
    /// Seeded by `SEQPOOL_SEED`, or always alike; prints the seed.
    pub fn from_environment() -> Self {
        let seed = std::env::var("SEQPOOL_SEED").ok().map_or(0x5eed, |s| s.parse().expect("a number"));
        println!("SEQPOOL_SEED={seed}");
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// As [`Random::below`], for indices and sizes.
    pub fn below_usize(&mut self, limit: usize) -> usize {
        self.below(limit as u64) as usize
    }
}
