//! What goes wrong, and when: decided by the seed alone, before anything runs.

use crate::chance::Dice;
use crate::network::Rates;
use std::time::Duration;

/// Everything that goes wrong in one run.
#[derive(Debug)]
pub struct Plan {
    pub rates: Rates,
    /// The longest that a packet is under way; each takes its own time, so they overtake each other.
    pub latency: Duration,
    /// In the order of their times.
    pub events: Vec<(Duration, Event)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Nothing comes from the one to the other.
    Cut(&'static str, &'static str),
    Mend(&'static str, &'static str),
    /// A host loses power.
    Crash(&'static str),
    /// A node is told to stop, and finishes what it has.
    Stop(&'static str),
    Start(&'static str),
    /// Most packets are lost.
    Storm,
    Lull,
}

/// From then on everything goes well.
pub const FAULTS_END: Duration = Duration::from_secs(60);

impl Plan {
    /// Each run has some kinds of faults, many or few of them: one that has all of everything gets nothing done.
    pub fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed, "plan");
        let rates = Rates {
            lost: dice.one_of(&[0, 5, 20, 80]),
            doubled: dice.one_of(&[0, 5, 50]),
            damaged: dice.one_of(&[0, 5, 30]),
        };
        let latency = Duration::from_millis(dice.one_of(&[4, 20, 60, 200]));
        let mut events = Vec::new();
        for _ in 0..dice.within(0..4) {
            let (from, to) = dice.one_of(&[("proxy", "a"), ("admin", "a"), ("admin", "b")]);
            let (begins, ends) = span(&mut dice, 25_000);
            let ways: &[_] = dice.one_of(&[&[(0, 1)][..], &[(1, 0)], &[(0, 1), (1, 0)]]);
            for (one, other) in ways.iter().map(|(one, other)| ([from, to][*one], [from, to][*other])) {
                events.push((begins, Event::Cut(one, other)));
                events.push((ends, Event::Mend(one, other)));
            }
        }
        for host in ["a", "b", "proxy"] {
            let mut free = Duration::ZERO;
            for _ in 0..dice.within(0..4) {
                let (begins, ends) = span(&mut dice, 20_000);
                if begins <= free {
                    continue;
                }
                free = ends;
                let ending = if host != "proxy" && dice.permille(300) { Event::Stop(host) } else { Event::Crash(host) };
                events.push((begins, ending));
                events.push((ends, Event::Start(host)));
            }
        }
        if dice.permille(300) {
            let (begins, ends) = span(&mut dice, 5_000);
            events.push((begins, Event::Storm));
            events.push((ends, Event::Lull));
        }
        events.sort_by_key(|(when, _)| *when);
        Self { rates, latency, events }
    }
}

/// Short ones are as likely as long ones.
fn span(dice: &mut Dice, longest_ms: u64) -> (Duration, Duration) {
    let begins = dice.pause(0..FAULTS_END.as_secs() * 1000);
    let longest = dice.one_of(&[300, 3_000, longest_ms]).min(longest_ms);
    (begins, (begins + dice.pause(50..longest)).min(FAULTS_END))
}
