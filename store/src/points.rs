//! Forgetting points, pinning them, taking that back; handing machines over.

use crate::format::event::Event;
use crate::repository::Inner;
use crate::state::{State, given_up_setting, owner_setting};
use mover::{Error, MachineId, Name, PointChange, PointId, RecoveryPoint, RepositoryId, Result, labels};
use std::collections::{BTreeMap, BTreeSet};

impl Inner {
    /// See [`mover::Repository::change_points`]. Blocking.
    pub fn change_points(&self, points: &[PointId], change: PointChange) -> Result<()> {
        self.packs.packer()?;
        self.append(|state| {
            let mut by_commit: Vec<(u64, PointId)> = state.points().iter().map(|(id, it)| (it.since, *id)).collect();
            by_commit.sort_unstable();
            let all = by_commit.into_iter().filter_map(|(_, id)| state.recovery_point(id));
            let all: Vec<RecoveryPoint> = all.collect();
            let commits = all.iter().filter(|point| !point.forgotten).map(|point| point.commit_time);
            let newest = commits.chain(state.sessions().values().map(|session| session.time)).max();
            let due = change.due(&all, points, newest, self.world.now())?;
            let event = match change {
                _ if due.is_empty() => return Ok(Vec::new()),
                PointChange::Forget | PointChange::ForgetByRules => Event::Forgotten(due),
                PointChange::Unforget => Event::Unforgotten(due),
                PointChange::Pin => Event::Pinned(due),
                PointChange::Unpin => Event::Unpinned(due),
            };
            Ok(vec![event])
        })
        .map(drop)
    }

    /// See [`mover::Repository::annotate`]. Blocking.
    pub fn annotate(&self, point: PointId, new: &[(String, String)]) -> Result<()> {
        self.packs.packer()?;
        self.append(|state| {
            let gone = || Error::not_found(format!("there is no point {point}")).hint("`windlass points` lists them");
            let before = &state.points().get(&point).ok_or_else(gone)?.labels;
            labels::with(before, new)?;
            let is_new = |(key, value): &&(String, String)| before.get(key).map_or("", String::as_str) != value;
            let event = |(key, value): &(String, String)| Event::Annotated(point, key.clone(), value.clone());
            Ok(new.iter().filter(is_new).map(event).collect())
        })
        .map(drop)
    }

    /// See [`mover::Repository::move_machine`]. Blocking.
    pub fn move_machine(&self, (machine, origin): (MachineId, RepositoryId), owner: Option<&Name>) -> Result<()> {
        self.packs.packer()?;
        self.append(|state| {
            let mut points = state.points().keys().filter_map(|id| state.recovery_point(*id));
            if !points.any(|point| (point.machine, point.origin.0) == (machine, origin)) {
                return Err(Error::not_found(format!("machine {machine} has no points here")));
            }
            let owner = owner.map_or(SITE, Name::as_str).to_owned();
            Ok(vec![Event::Configuration(owner_setting(machine, origin), owner)])
        })
        .map(drop)
    }
}

/// Events for points that are about to be made final. They note for each machine the time of its newest such point.
pub fn giving_up(state: &State, points: &BTreeSet<PointId>) -> Vec<Event> {
    let mut newest = BTreeMap::new();
    for point in points.iter().filter_map(|id| state.recovery_point(*id)) {
        let time = newest.entry((point.machine, point.origin.0)).or_insert(point.origin.1);
        *time = point.origin.1.max(*time);
    }
    let known: BTreeMap<_, _> = state.given_up().map(|it| ((it.machine, it.origin), it.newest)).collect();
    newest.retain(|of, time| known.get(of).is_none_or(|known| known < time));
    let event = |((machine, origin), time): ((MachineId, RepositoryId), mover::Timestamp)| {
        Event::Configuration(given_up_setting(machine, origin), time.0.to_string())
    };
    newest.into_iter().map(event).collect()
}

/// Written in place of an owner's name for points of the site itself. It cannot be a name.
const SITE: &str = "-";
