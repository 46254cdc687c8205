//! The repository protocol, checked as a model: with all rules it keeps every property, and without any one of them
//! it does not.

use std::collections::BTreeSet;
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model, UniformChooser};
use windlass_tests::protocol::{self, Clause, Config, Rule, Rules};

/// More than any scenario has, so that one that grew out of hand is noticed before it has used up the memory.
const TRANSITIONS_MAX: usize = 8_000_000;

/// Steps up to which everyone at once is searched through; one more takes five times as long.
const EVERYONE_DEPTH_MAX: usize = 8;

/// States seen on random paths of everyone at once, until nobody can do anything any more.
const RANDOM_STATES: usize = 600_000;

macro_rules! all_rules_hold {
    ($($scenario:ident),* $(,)?) => {
        mod all_rules_hold {
            $(#[test]
            fn $scenario() {
                super::holds(super::Config::$scenario());
            })*
        }
    };
}

all_rules_hold!(
    commits,
    fences,
    unclear_answers,
    careless,
    increments,
    sweeps,
    repacks,
    repairs,
    readers,
    readers_without_session,
    orphans,
    names,
    pruning,
    pruning_under_readers,
);

#[test]
fn all_rules_hold_for_everyone_to_a_depth() {
    let began = Instant::now();
    let checker = Config::everyone()
        .checker()
        .target_max_depth(EVERYONE_DEPTH_MAX)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let (states, transitions) = (checker.unique_state_count(), checker.state_count());
    println!("everyone: {states} states, {transitions} transitions, {EVERYONE_DEPTH_MAX} steps, {:?}", began.elapsed());
    for property in checker.model().properties() {
        if property.expectation.discovery_is_failure() {
            checker.assert_no_discovery(property.name);
        }
    }
}

#[test]
fn all_rules_hold_for_everyone_at_random() {
    random(Config::everyone());
}

#[test]
fn all_rules_hold_for_everyone_over_a_pruned_log_at_random() {
    random(Config::everyone_pruning());
}

#[test]
fn no_rule_can_be_taken_out() {
    for rule in Rule::ALL {
        let (config, property) = without_rule(rule);
        fails(config.under(Rules::all().without(rule)), property);
    }
}

#[test]
fn no_clause_can_be_taken_out() {
    for clause in Clause::ALL {
        let rules = Rules::all().without_clause(clause);
        match without_clause(clause) {
            Without::Fails(config, property) => fails(config.under(rules), property),
            Without::Holds(config) => holds(config.under(rules)),
        }
    }
}

/// What readers are to places, writers are to what they were told: the same wait keeps it.
#[test]
fn no_writer_is_told_in_vain_because_drops_wait() {
    let rules = Rules::all().without_clause(Clause::DropWaits);
    fails(Config::repacks().under(rules), protocol::PROMISES_STAY);
}

/// What is lost without a rule, and where it shows.
fn without_rule(rule: Rule) -> (Config, &'static str) {
    match rule {
        Rule::R1 => (Config::commits(), protocol::POINTS_WHOLE),
        Rule::R2 => (Config::unclear_answers(), protocol::FAILED_STAY_AWAY),
        Rule::R3 => (Config::pruning(), protocol::ACKNOWLEDGED_STAY),
        Rule::R4 => (Config::names(), protocol::PACKS_EXIST),
        Rule::R5 => (Config::orphans(), protocol::PACKS_EXIST),
        Rule::R6 => (Config::increments(), protocol::POINTS_WHOLE),
        Rule::R7 => (Config::commits(), protocol::POINTS_WHOLE),
        Rule::R8 => (Config::orphans(), protocol::COMMITTED_ONCE),
        Rule::R9 => (Config::sweeps(), protocol::POINTS_WHOLE),
        Rule::R10 => (Config::readers(), protocol::READERS_READ),
        Rule::R11 => (Config::increments(), protocol::UNFORGOTTEN_WHOLE),
        Rule::R19 => (Config::repairs(), protocol::POINTS_WHOLE),
    }
}

enum Without {
    /// The property is lost in this scenario.
    Fails(Config, &'static str),
    /// Another clause makes up for it.
    Holds(Config),
}

fn without_clause(clause: Clause) -> Without {
    let (config, property) = match clause {
        Clause::Revalidate => (Config::commits(), protocol::ACKNOWLEDGED_STAY),
        Clause::ReplayVoids => (Config::careless(), protocol::POINTS_WHOLE),
        Clause::UntilDefinite => (Config::unclear_answers(), protocol::FAILED_STAY_AWAY),
        Clause::CompareOnExists => (Config::unclear_answers(), protocol::ACKNOWLEDGED_STAY),
        Clause::LookBeforeFailing => (Config::pruning(), protocol::FAILED_STAY_AWAY),
        Clause::TwoDigests => (Config::pruning(), protocol::LOG_SURVIVES_A_DIGEST),
        Clause::ListAfterCreate => (Config::pruning(), protocol::ACKNOWLEDGED_STAY),
        Clause::ListAfterOwnFound => (Config::pruning(), protocol::ACKNOWLEDGED_STAY),
        Clause::ListAfterRead => (Config::pruning(), protocol::REPLAYERS_AGREE),
        Clause::FreshName => (Config::names(), protocol::SWEEPS_FAIL_NOBODY),
        Clause::NeverAgain => (Config::orphans(), protocol::NAMES_UNIQUE),
        Clause::OrphanTermEnded => (Config::orphans(), protocol::SWEEPS_FAIL_NOBODY),
        Clause::OrphanDroppedInLog => (Config::orphans(), protocol::PACKS_EXIST),
        Clause::ParentsPinned => (Config::increments(), protocol::POINTS_WHOLE),
        Clause::YoungPacksSpared => (Config::fences(), protocol::SESSIONS_UNDISTURBED),
        Clause::MarkCoversRoots => (Config::commits(), protocol::POINTS_WHOLE),
        Clause::DropWaits => (Config::readers(), protocol::PLACES_STAY),
        // The walk at commit holds the line; a writer that does not descend only asks too little at first.
        Clause::DescendUnpinned => return Without::Holds(Config::commits()),
        Clause::CommitWalks => (Config::commits(), protocol::POINTS_WHOLE),
        Clause::RefusedRepairs => (Config::commits(), protocol::SWEEPS_FAIL_NOBODY),
        Clause::PointIdIsKey => (Config::orphans(), protocol::COMMITTED_ONCE),
        Clause::PlaceFromLog => (Config::sweeps(), protocol::POINTS_WHOLE),
        Clause::PlaceOutsideDoomed => (Config::sweeps(), protocol::POINTS_WHOLE),
        Clause::PlaceIsSound => (Config::repairs(), protocol::POINTS_WHOLE),
        Clause::OneSweep => (Config::sweeps(), protocol::ONE_SWEEP),
        Clause::ReaderPins => (Config::readers(), protocol::READERS_READ),
        Clause::LookAgain => (Config::readers_without_session(), protocol::READERS_READ),
        Clause::FinalStaysForgotten => (Config::increments(), protocol::UNFORGOTTEN_WHOLE),
        Clause::FinalsStillForgotten => (Config::increments(), protocol::UNFORGOTTEN_WHOLE),
        Clause::FinalNotNamed => (Config::readers(), protocol::READERS_READ),
        Clause::SecondLook => (Config::repairs(), protocol::POINTS_WHOLE),
    };
    Without::Fails(config, property)
}

fn holds(config: Config) {
    let (name, rules, began) = (config.name, config.rules, Instant::now());
    // Depth first needs the least memory, and nobody asks for the shortest path to what does not happen.
    let checker = config
        .checker()
        .target_state_count(TRANSITIONS_MAX)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_dfs()
        .join();
    let (states, transitions) = (checker.unique_state_count(), checker.state_count());
    println!("{name} with {rules:?}: {states} states, {transitions} transitions, all, {:?}", began.elapsed());
    checker.assert_properties();
    assert!(transitions < TRANSITIONS_MAX, "{name} was not searched to its end");
}

fn random(config: Config) {
    let (name, began) = (config.name, Instant::now());
    let checker = config
        .checker()
        .target_state_count(RANDOM_STATES)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_simulation(1, UniformChooser)
        .join();
    let (states, depth) = (checker.state_count(), checker.max_depth());
    println!("{name} at random: {states} states, up to {depth} steps, {:?}", began.elapsed());
    checker.assert_properties();
}

/// Breadth first, so that the steps printed are about the fewest that do the harm.
fn fails(config: Config, property: &'static str) {
    let (name, rules, began) = (config.name, config.rules, Instant::now());
    let checker = config
        .checker()
        .target_state_count(TRANSITIONS_MAX)
        .finish_when(HasDiscoveries::AnyOf(BTreeSet::from([property])))
        .spawn_bfs()
        .join();
    let states = checker.unique_state_count();
    let Some(path) = checker.discovery(property) else {
        panic!("{name} with {rules:?}: \"{property}\" holds in {states} states");
    };
    let steps = path.into_actions();
    let count = steps.len();
    println!("{name} with {rules:?}: not \"{property}\" after {count} steps, {states} states, {:?}", began.elapsed());
    for step in steps {
        println!("    {step:?}");
    }
}
