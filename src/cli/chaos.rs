//! `--chaos kill=P%,stall=P%,exit=P%`.

use crate::Chaos;

/// Shares of jobs, from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Shares {
    kill: Option<f64>,
    stall: Option<f64>,
    exit: Option<f64>,
}

impl Shares {
    pub(crate) fn with_seed(self, seed: u64) -> Chaos {
        let share = |share: Option<f64>| share.unwrap_or(0.0);
        Chaos::new(seed).kill(share(self.kill)).stall(share(self.stall)).exit(share(self.exit))
    }

    /// Whether any job hangs, so that only a timeout ends it.
    pub(crate) fn stalls(self) -> bool {
        self.stall.is_some_and(|share| share > 0.0)
    }
}

/// Reads the option's value.
pub(crate) fn parse(text: &str) -> Result<Shares, String> {
    let mut shares = Shares::default();
    for part in text.split(',') {
        let bad = || format!("'{part}' is not a share such as kill=1%, stall=0.5% or exit=1%");
        let (name, percent) = part.split_once('=').ok_or_else(bad)?;
        let room = match name {
            "kill" => &mut shares.kill,
            "stall" => &mut shares.stall,
            "exit" => &mut shares.exit,
            _ => return Err(bad()),
        };
        let number: f64 = percent.strip_suffix('%').ok_or_else(bad)?.parse().map_err(|_| bad())?;
        if !(0.0..=100.0).contains(&number) {
            return Err(format!("'{part}': a share is from 0% to 100%"));
        }
        if room.replace(number / 100.0).is_some() {
            return Err(format!("{name} is given twice"));
        }
    }
    shares.with_seed(0).check().map(|()| shares)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares() {
        let shares = parse("kill=1%,stall=0.05%").unwrap();
        assert_eq!(shares, Shares { kill: Some(0.01), stall: Some(0.0005), exit: None });
        assert!(shares.stalls() && !parse("exit=100%,stall=0%").unwrap().stalls());
        for text in
            ["", "kill", "kill=1", "kill=x%", "kill=-1%", "kill=101%", "kill=NaN%", "maim=1%", "kill=1%,kill=1%"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse("kill=60%,exit=60%").unwrap_err().contains("add up"));
    }
}
