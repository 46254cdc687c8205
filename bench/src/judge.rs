//! Promises about figures, and whether they hold.

/// The promise about a figure.
#[derive(Debug, Clone, Copy)]
pub enum Bound {
    /// The figure must be at least this.
    AtLeast(f64),
    /// The figure must be at most this.
    AtMost(f64),
    /// The figure must be less than this.
    Below(f64),
}

/// How near a job comes to what its machine can do.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    /// The least time that the job can take on this machine, divided by the time that it took.
    pub of_limit: f64,
    /// If `of_limit` is at least this, the job is good enough, even if other tools are faster.
    pub at_least: f64,
    /// The step that takes most of this least time.
    pub bound_by: &'static str,
}

/// A figure, and the two ways in which it may pass: by its bound, or by its share of the limit.
#[derive(Debug, Clone, Copy)]
pub struct Check {
    pub what: &'static str,
    pub value: f64,
    pub bound: Bound,
    /// None for bytes and memory, because a slow machine is no excuse for these.
    pub share: Option<Share>,
}

/// Whether a figure is good enough, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    ByRatio,
    ByLimit,
    Missed,
}

impl Bound {
    /// True for a value that is as promised; never for one that is not a number.
    pub fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(limit) => value >= limit,
            Self::AtMost(limit) => value <= limit,
            Self::Below(limit) => value < limit,
        }
    }

    /// The bound as it is printed.
    pub fn text(self) -> String {
        match self {
            Self::AtLeast(limit) => format!(">= {limit:.3}"),
            Self::AtMost(limit) => format!("<= {limit:.3}"),
            Self::Below(limit) => format!("< {limit:.3}"),
        }
    }
}

impl Check {
    /// The bound counts first. A job that misses it may still pass, if it is about as fast as its machine allows.
    pub fn verdict(&self) -> Verdict {
        let near = |share: Share| (share.at_least..=SHARE_MAX).contains(&share.of_limit);
        match self.share {
            _ if self.bound.holds(self.value) => Verdict::ByRatio,
            Some(share) if near(share) => Verdict::ByLimit,
            _ => Verdict::Missed,
        }
    }

    fn print(&self) {
        let verdict = self.verdict();
        let word = if verdict == Verdict::Missed { "FAIL" } else { "pass" };
        let line = format!("{word} {:<50} {:>9.3} {:>10}", self.what, self.value, self.bound.text());
        let Some(Share { of_limit, at_least, bound_by }) = self.share else { return println!("{line}") };
        let why = match verdict {
            Verdict::ByRatio => "by the ratio".to_owned(),
            Verdict::ByLimit => format!("by the limit: {bound_by}"),
            Verdict::Missed => format!("by neither; bound by: {bound_by}"),
        };
        println!("{line}   or {of_limit:.2} of the limit >= {at_least:.2}   {why}");
    }
}

/// Prints each check; true when all pass.
pub fn all_pass(checks: &[Check]) -> bool {
    checks.iter().for_each(Check::print);
    checks.iter().all(|check| check.verdict() != Verdict::Missed)
}

/// Prints each figure with what is promised of it; true when all hold.
pub fn judged(figures: &[(&'static str, f64, Bound)]) -> bool {
    let checks: Vec<Check> =
        figures.iter().map(|&(what, value, bound)| Check { what, value, bound, share: None }).collect();
    all_pass(&checks)
}

/// Largest share of the limit that counts. No job can be faster than its limit. If one seems much faster, the machine
/// was busy with something else while its speed was measured, and the share means nothing.
const SHARE_MAX: f64 = 1.1;

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(value: f64, of_limit: Option<f64>) -> Verdict {
        let share = of_limit.map(|of_limit| Share { of_limit, at_least: 0.6, bound_by: "durable write" });
        Check { what: "restore, times", value, bound: Bound::AtLeast(2.0), share }.verdict()
    }

    #[test]
    fn a_job_passes_by_the_ratio_or_by_the_limit() {
        assert_eq!(verdict(2.0, Some(0.1)), Verdict::ByRatio);
        assert_eq!(verdict(2.5, Some(0.9)), Verdict::ByRatio);
        assert_eq!(verdict(1.5, Some(0.6)), Verdict::ByLimit);
        assert_eq!(verdict(1.5, Some(0.59)), Verdict::Missed);
    }

    #[test]
    fn a_limit_that_is_none_excuses_nothing() {
        assert_eq!(verdict(1.5, Some(1.05)), Verdict::ByLimit);
        assert_eq!(verdict(1.5, Some(1.5)), Verdict::Missed);
        assert_eq!(verdict(2.5, Some(1.5)), Verdict::ByRatio);
    }

    #[test]
    fn what_no_machine_excuses_passes_by_the_ratio_alone() {
        assert_eq!(verdict(2.0, None), Verdict::ByRatio);
        assert_eq!(verdict(1.9, None), Verdict::Missed);
    }

    #[test]
    fn what_was_not_measured_does_not_pass() {
        assert_eq!(verdict(f64::NAN, None), Verdict::Missed);
        assert_eq!(verdict(f64::NAN, Some(f64::NAN)), Verdict::Missed);
        assert!(!Bound::AtMost(1.0).holds(f64::NAN) && !Bound::Below(1.0).holds(f64::NAN));
    }

    #[test]
    fn bounds_are_what_they_say() {
        assert!(Bound::AtMost(1.0).holds(1.0) && !Bound::AtMost(1.0).holds(1.001));
        assert!(Bound::Below(1.0).holds(0.999) && !Bound::Below(1.0).holds(1.0));
    }
}
