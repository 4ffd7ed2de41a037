//! The record of instruction counts: its file, and how a measurement is compared with it.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What one unit (a frame, a job) of a path takes.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Path {
    pub instructions: f64,
    /// By how much a measurement may differ, in both directions, as a fraction.
    pub tolerance: f64,
}

/// Everything that was measured at one time.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// What the compiler says of itself.
    pub rustc: String,
    pub paths: BTreeMap<String, Path>,
}

impl Record {
    pub fn new(rustc: String, measured: &BTreeMap<String, f64>) -> Self {
        let path = |name: &str, instructions: f64| {
            // Two decimals are far finer than any tolerance.
            Path { instructions: (instructions * 100.0).round() / 100.0, tolerance: crate::drivers::tolerance(name) }
        };
        Self { rustc, paths: measured.iter().map(|(name, n)| (name.clone(), path(name, *n))).collect() }
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain data") + "\n"
    }

    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// A line for each path that is not as recorded.
    pub fn compare(&self, measured: &BTreeMap<String, f64>) -> Vec<String> {
        let mut problems = Vec::new();
        for (name, Path { instructions, tolerance }) in &self.paths {
            match measured.get(name) {
                None => {
                    problems.push(format!("{name}: recorded {instructions:.2} instructions, not measured any more"))
                }
                Some(now) => {
                    let change = now / instructions - 1.0;
                    if change.abs() > *tolerance {
                        problems.push(format!(
                            "{name}: recorded {instructions:.2} instructions, measured {now:.2} ({:+.1} %, the tolerance is ±{:.0} %)",
                            change * 100.0,
                            tolerance * 100.0
                        ));
                    }
                }
            }
        }
        for (name, now) in measured {
            if !self.paths.contains_key(name) {
                problems.push(format!("{name}: measured {now:.2} instructions, not recorded"));
            }
        }
        problems
    }
}
