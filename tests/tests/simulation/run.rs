//! One run: everything that a seed decides, from its beginning to its end.

use crate::chance::Dice;
use crate::faults::{Event, FAULTS_END, Plan};
use crate::jobs;
use crate::journal::Jobs;
use crate::lab::{Lab, Storage};
use crate::network::{Packets, Rates};
use crate::observe;
use std::time::Duration;
use turmoil::Sim;

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub violations: Vec<String>,
    /// The same for the same seed.
    pub trace: blake3::Hash,
    pub packets: Packets,
    pub jobs: Jobs,
    pub cuts: u64,
    pub crashes: u64,
    pub stops: u64,
    /// Sessions that were begun again because a node had forgotten them.
    pub resumed: u64,
    /// Requests that were made again on another connection.
    pub reconnected: u64,
    pub took: Duration,
}

pub fn run(seed: u64) -> Outcome {
    let plan = Plan::new(seed);
    tracing::info!(seed, ?plan, "run");
    let seen = observe::seen();
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .tick_duration(TICK)
        .simulation_duration(Duration::from_secs(100_000))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(plan.latency)
        .udp_capacity(4096)
        .enable_random_order()
        .build();
    let lab = Lab::new(seed, sim.lookup("a"), sim.lookup("b"));
    for node in ["a", "b"] {
        let lab = lab.clone();
        sim.host(node, move || {
            let lab = lab.clone();
            async move { lab.serve(lab.storage(node).expect("a node")).await }
        });
    }
    for (name, work) in [("proxy", Work::Proxy), ("admin", Work::Admin)] {
        let lab = lab.clone();
        sim.host(name, move || {
            let lab = lab.clone();
            async move {
                match work {
                    Work::Proxy => jobs::proxy(lab).await,
                    Work::Admin => jobs::admin(lab).await,
                }
            }
        });
    }
    lab.air.set(plan.rates);
    let mut outcome = drive(seed, &mut sim, &lab, &plan);
    drop(sim);
    let now = observe::seen();
    outcome.resumed = now.resumed - seen.resumed;
    outcome.reconnected = now.reconnected - seen.reconnected;
    outcome.violations.extend((seen.panics..now.panics).map(|_| "something panicked".to_owned()));
    outcome
}

#[derive(Clone, Copy)]
enum Work {
    Proxy,
    Admin,
}

fn drive(seed: u64, sim: &mut Sim<'_>, lab: &Lab, plan: &Plan) -> Outcome {
    let (mut dice, mut begun) = (Dice::new(seed, "ambushes"), [0; 2]);
    let mut driver = Driver { sim, lab, cuts: 0, crashes: 0, stops: 0 };
    let mut events = plan.events.clone();
    while driver.sim.elapsed() < FAULTS_END {
        let now = driver.sim.elapsed();
        let mut due: Vec<_> = events.extract_if(.., |(when, _)| *when <= now).collect();
        due.sort_by_key(|(when, _)| *when);
        due.into_iter().for_each(|(_, event)| driver.strike(event, plan.rates));
        driver.step();
        for (storage, begun) in [&lab.a, &lab.b].into_iter().zip(&mut begun) {
            let before = std::mem::replace(begun, storage.begun());
            for _ in before..*begun {
                if dice.permille(plan.ambushes) {
                    events.extend(plan.ambush(&mut dice, storage.host.name, now));
                }
            }
        }
    }
    events.sort_by_key(|(when, _)| *when);
    events.into_iter().for_each(|(_, event)| driver.strike(event, plan.rates));
    lab.air.set(Rates::default());
    lab.calm.set(true);
    if !driver.until(FAULTS_END + CALM_MAX, || lab.journal().verified) {
        lab.journal().blame("the last jobs did not end");
    }
    // Whoever went away without a word keeps a session for so long, and no longer.
    let sessions = |storage: &Storage| storage.mem.sessions();
    let ends = driver.sim.elapsed() + LEASES_MAX;
    if !driver.until(ends, || sessions(&lab.a) + sessions(&lab.b) == 0) {
        lab.journal().blame(format!("sessions are left: {} on a, {} on b", sessions(&lab.a), sessions(&lab.b)));
    }
    let Driver { cuts, crashes, stops, .. } = driver;
    let journal = lab.journal();
    Outcome {
        violations: journal.violations.clone(),
        trace: lab.air.trace(),
        packets: lab.air.packets(),
        jobs: journal.jobs,
        cuts,
        crashes,
        stops,
        resumed: 0,
        reconnected: 0,
        took: sim.elapsed(),
    }
}

struct Driver<'a, 'b> {
    sim: &'a mut Sim<'b>,
    lab: &'a Lab,
    cuts: u64,
    crashes: u64,
    stops: u64,
}

impl Driver<'_, '_> {
    /// Lets time go by; true when `done` came before.
    fn until(&mut self, when: Duration, done: impl Fn() -> bool) -> bool {
        while self.sim.elapsed() < when {
            if done() {
                return true;
            }
            self.step();
        }
        done()
    }

    fn step(&mut self) {
        if let Err(error) = self.sim.step() {
            self.lab.journal().blame(format!("a host failed: {error}"));
        }
    }

    fn strike(&mut self, event: Event, rates: Rates) {
        tracing::info!(at = ?self.sim.elapsed(), ?event, "fault");
        match event {
            Event::Cut(from, to) => {
                self.cuts += 1;
                self.sim.partition_oneway(from, to);
            }
            Event::Mend(from, to) => self.sim.repair_oneway(from, to),
            Event::Crash(host) => {
                self.crashes += 1;
                self.sim.crash(host);
                self.lose(host);
            }
            Event::Stop(host) => {
                self.stops += 1;
                self.lab.storage(host).expect("a node").stop();
            }
            Event::Start(host) => {
                // One that did not stop in time is killed.
                self.sim.crash(host);
                self.lose(host);
                self.sim.bounce(host);
            }
            Event::Storm => self.lab.air.set(Rates { lost: 700, ..rates }),
            Event::Lull => self.lab.air.set(rates),
        }
    }

    /// What was not durable goes with the host.
    fn lose(&self, host: &str) {
        if let Some(storage) = self.lab.storage(host) {
            storage.mem.crash();
        }
    }
}

const TICK: Duration = Duration::from_millis(5);
/// For the jobs under way when faults stop, and the last ones.
const CALM_MAX: Duration = Duration::from_secs(2_000);
/// As long as a session lives whose holder is gone, and until that is noticed.
const LEASES_MAX: Duration = Duration::from_secs(650);
