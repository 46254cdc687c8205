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
    pub events: Vec<(Duration, Event)>,
    /// How many of a thousand jobs that write are struck in their middle.
    pub ambushes: u32,
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
        let latency = Duration::from_millis(dice.one_of(&[4, 20, 50, 120]));
        let mut events = Vec::new();
        for _ in 0..dice.within(0..4) {
            let (from, to) = dice.one_of(&[("proxy", "a"), ("admin", "a"), ("admin", "b")]);
            let (begins, ends) = span(&mut dice, 40_000);
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
        Self { rates, latency, events, ambushes: dice.one_of(&[0, 0, 400]) }
    }

    /// What strikes a job that began to write to `node` at `now`: soon, while it is at work or waits for its answer.
    pub fn ambush(&self, dice: &mut Dice, node: &'static str, now: Duration) -> Vec<(Duration, Event)> {
        let client = if node == "a" { "proxy" } else { "admin" };
        let most = 10 * u64::try_from(self.latency.as_millis()).expect("not long");
        let (begins, lasts) = (now + dice.pause(0..most), dice.pause(50..2_000));
        let ends = (begins + lasts).min(FAULTS_END);
        if begins >= FAULTS_END {
            return Vec::new();
        }
        match dice.within(0..3) {
            0 => vec![(begins, Event::Crash(node)), (ends, Event::Start(node))],
            1 => vec![(begins, Event::Cut(node, client)), (ends, Event::Mend(node, client))],
            _ => vec![(begins, Event::Cut(client, node)), (ends, Event::Mend(client, node))],
        }
    }
}

/// Short ones are as likely as long ones.
fn span(dice: &mut Dice, longest_ms: u64) -> (Duration, Duration) {
    let begins = dice.pause(0..FAULTS_END.as_secs() * 1000);
    let longest = dice.one_of(&[300, 3_000, longest_ms]).min(longest_ms);
    (begins, (begins + dice.pause(50..longest)).min(FAULTS_END))
}
