//! Chaos on purpose: some jobs' workers kill themselves, hang or exit, drawn from a seed.
//!
//! Which jobs is a pure function of the seed and the job's tag, so that whoever knows both knows what was drawn. The host
//! draws and writes an order into the job's frame; the worker obeys after its claim and before it runs the handler.

use std::fmt;

/// What a drawn job's worker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Fate {
    /// It kills itself: `SIGKILL`.
    Kill = 1,
    /// It hangs.
    Stall = 2,
    /// It exits, with code 74.
    Exit = 3,
}

impl Fate {
    pub(crate) fn from_code(code: u32) -> Option<Self> {
        [Fate::Kill, Fate::Stall, Fate::Exit].into_iter().find(|fate| *fate as u32 == code)
    }
}

/// The shares of jobs whose workers come to grief.
///
/// ```
/// use seqpool::{Chaos, Fate};
///
/// let chaos = Chaos::new(7).kill(0.01);
/// let killed = (0..100_000).filter(|&tag| chaos.draw(tag, 0) == Some(Fate::Kill)).count();
/// assert!((900..1100).contains(&killed));
/// ```
#[derive(Clone, Copy, PartialEq)]
pub struct Chaos {
    seed: u64,
    kill: f64,
    stall: f64,
    exit: f64,
}

impl Chaos {
    /// No grief yet.
    pub fn new(seed: u64) -> Self {
        Self { seed, kill: 0.0, stall: 0.0, exit: 0.0 }
    }

    /// The share of jobs, from 0 to 1, whose worker kills itself.
    pub fn kill(mut self, share: f64) -> Self {
        self.kill = share;
        self
    }

    /// The share of jobs whose worker hangs. Only a timeout ends those.
    pub fn stall(mut self, share: f64) -> Self {
        self.stall = share;
        self
    }

    /// The share of jobs whose worker exits.
    pub fn exit(mut self, share: f64) -> Self {
        self.exit = share;
        self
    }

    /// Whether any job hangs.
    pub(crate) fn stalls(&self) -> bool {
        self.stall > 0.0
    }

    /// What is wrong with the shares, if anything.
    pub(crate) fn check(&self) -> Result<(), String> {
        for (name, share) in [("kill", self.kill), ("stall", self.stall), ("exit", self.exit)] {
            if !(0.0..=1.0).contains(&share) {
                return Err(format!("chaos: {name}={}%: a share is from 0 to 100 %", share * 100.0));
            }
        }
        let sum = self.kill + self.stall + self.exit;
        if sum > 1.0 {
            return Err(format!("chaos: kill, stall and exit add up to {} %: at most 100 %", sum * 100.0));
        }
        Ok(())
    }

    /// What the job with this tag comes to in its attempt number `tried`, 0 for the first.
    pub fn draw(&self, tag: u64, tried: u32) -> Option<Fate> {
        let word = mix(mix(self.seed ^ mix(tag)) ^ u64::from(tried));
        // The 53 bits that a float holds.
        let at = (word >> 11) as f64 / (1u64 << 53) as f64;
        match at {
            at if at < self.kill => Some(Fate::Kill),
            at if at < self.kill + self.stall => Some(Fate::Stall),
            at if at < self.kill + self.stall + self.exit => Some(Fate::Exit),
            _ => None,
        }
    }

    /// As [`Chaos::draw`], as an order in a frame; 0 is none.
    pub(crate) fn order(&self, tag: u64, tried: u32) -> u32 {
        self.draw(tag, tried).map_or(0, |fate| fate as u32)
    }
}

impl fmt::Debug for Chaos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, kill, stall, exit } = self;
        write!(f, "Chaos(kill={}%,stall={}%,exit={}%, seed {seed})", kill * 100.0, stall * 100.0, exit * 100.0)
    }
}

/// SplitMix64's step (Steele, Lea and Flood, 2014).
fn mix(word: u64) -> u64 {
    let mut z = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(all(test, not(seqpool_loom)))]
mod tests {
    use super::*;

    #[test]
    fn shares_are_met_and_attempts_are_drawn_anew() {
        let chaos = Chaos::new(3).kill(0.1).stall(0.2).exit(0.3);
        let count = |fate| (0..100_000).filter(|&tag| chaos.draw(tag, 0) == fate).count();
        for (fate, share) in [(Some(Fate::Kill), 0.1), (Some(Fate::Stall), 0.2), (Some(Fate::Exit), 0.3), (None, 0.4)] {
            let (got, want) = (count(fate) as f64, share * 100_000.0);
            assert!((got - want).abs() < 600.0, "{fate:?}: {got}");
        }
        let again = (0..100_000).filter(|&tag| chaos.draw(tag, 0) == Some(Fate::Kill) && chaos.draw(tag, 1).is_none());
        assert!((3_500..4_500).contains(&again.count()));
        assert_ne!((0..64).map(|tag| chaos.draw(tag, 0)).collect::<Vec<_>>(), {
            let other = Chaos { seed: 4, ..chaos };
            (0..64).map(|tag| other.draw(tag, 0)).collect::<Vec<_>>()
        });
    }

    #[test]
    fn nonsense_is_named() {
        assert_eq!(Chaos::new(0).kill(1.0).check(), Ok(()));
        assert!(Chaos::new(0).kill(1.5).check().unwrap_err().contains("kill=150%"));
        assert!(Chaos::new(0).stall(f64::NAN).check().is_err());
        assert!(Chaos::new(0).kill(0.6).exit(0.6).check().unwrap_err().contains("add up"));
    }

    #[test]
    fn orders_are_read_back() {
        for fate in [Fate::Kill, Fate::Stall, Fate::Exit] {
            assert_eq!(Fate::from_code(fate as u32), Some(fate));
        }
        assert_eq!((Fate::from_code(0), Fate::from_code(4)), (None, None));
    }
}
