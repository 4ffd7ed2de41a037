//! `--halt`: when a run with jobs that fail is ended before its input is.

use crate::cli::report::Tally;
use crate::limits::HALT_FAILED_MIN;
use std::fmt;
use std::str::FromStr;

/// When to halt, and what becomes of the jobs that run then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Halt {
    /// Whether they are killed.
    pub(super) is_now: bool,
    after: After,
}

/// How much failure is enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Jobs(u64),
    /// Of the jobs that are finished.
    Percent(u64),
}

impl Halt {
    /// Whether so much has failed. Jobs that were cancelled have neither failed nor finished.
    pub(super) fn is_reached(&self, tally: &Tally) -> bool {
        let failed = tally.unsuccessful() - tally.cancelled;
        match self.after {
            After::Jobs(count) => failed >= count,
            After::Percent(percent) => {
                failed >= HALT_FAILED_MIN && failed * 100 >= percent.saturating_mul(tally.done + failed)
            }
        }
    }
}

impl fmt::Display for Halt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let when = if self.is_now { "now" } else { "soon" };
        match self.after {
            After::Jobs(count) => write!(f, "{when},fail={count}"),
            After::Percent(percent) => write!(f, "{when},fail={percent}%"),
        }
    }
}

impl FromStr for Halt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let example = "such as now,fail=1 or soon,fail=30%";
        let (when, why) = text.split_once(',').unwrap_or((text, ""));
        let is_now = match when {
            "now" => true,
            "soon" => false,
            _ => return Err(format!("'{when}' is neither now (kill what runs) nor soon (let it finish): {example}")),
        };
        let Some(count) = why.strip_prefix("fail=") else {
            return Err(format!("'{text}' does not say after how many failed jobs: {example}"));
        };
        let (number, is_percent) = count.strip_suffix('%').map_or((count, false), |number| (number, true));
        let not_a_number = || format!("'{count}' is not a number of jobs or a percentage: {example}");
        let number: u64 = Some(number)
            .filter(|n| n.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|n| n.parse().ok())
            .ok_or_else(not_a_number)?;
        match (number, is_percent) {
            (0, _) => Err(format!("fail={count} would end the run before its first job: give 1 or more")),
            (101.., true) => Err(format!("fail={count}: no more than 100% of the jobs can fail")),
            (percent, true) => Ok(Self { is_now, after: After::Percent(percent) }),
            (jobs, false) => Ok(Self { is_now, after: After::Jobs(jobs) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_is_what_is_meant() {
        for text in ["now,fail=1", "soon,fail=30%", "soon,fail=18446744073709551615", "now,fail=100%"] {
            assert_eq!(text.parse::<Halt>().unwrap().to_string(), text);
        }
        for (text, why) in [
            ("later", "'later' is neither now"),
            ("", "'' is neither now"),
            ("now", "does not say after how many"),
            ("now,success=1", "does not say after how many"),
            ("now,fail=", "'' is not a number"),
            ("now,fail=-1", "'-1' is not a number"),
            ("soon,fail=1.5%", "'1.5%' is not a number"),
            ("soon,fail=0", "before its first job"),
            ("soon,fail=0%", "before its first job"),
            ("soon,fail=101%", "no more than 100%"),
        ] {
            let error = text.parse::<Halt>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_percentage_counts_finished_jobs_and_needs_a_few_that_failed() {
        let halt: Halt = "soon,fail=30%".parse().unwrap();
        let tally = |done, failed, cancelled| Tally { done, failed, cancelled, ..Tally::default() };
        assert!(!halt.is_reached(&tally(0, HALT_FAILED_MIN - 1, 0)));
        assert!(halt.is_reached(&tally(7, 3, 0)));
        assert!(!halt.is_reached(&tally(8, 3, 0)));
        assert!(halt.is_reached(&tally(7, 3, 100)), "what was cancelled does not count");
        let halt: Halt = "now,fail=2".parse().unwrap();
        assert!(!halt.is_reached(&tally(0, 1, 5)));
        assert!(halt.is_reached(&tally(0, 2, 0)));
    }
}
