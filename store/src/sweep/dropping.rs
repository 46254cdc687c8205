//! Step two of deleting: packs that were doomed, when no session from before that is left, after a second look at all
//! that points refer to.

use super::marking::Wanted;
use crate::directory::{PACKS, pack_object};
use crate::format::event::{Dropped, Event, Orphan};
use crate::format::pack::PackName;
use crate::index::Place;
use crate::local::Inner;
use crate::reader;
use crate::state::State;
use chunker::ChunkId;
use mover::{Error, PointId, Result, SweepReport};
use std::collections::{BTreeMap, BTreeSet, HashSet};

impl Inner {
    /// Deletes what may be deleted of what is doomed. Gives the packs that turned out to be needed, and their chunks: to be
    /// packed again.
    pub(super) fn drop_doomed(&self, token: [u8; 16], report: &mut SweepReport) -> Result<BTreeMap<u32, Vec<ChunkId>>> {
        let state = self.catch_up()?;
        let packs: BTreeSet<u32> = droppable(&state).collect();
        if packs.is_empty() {
            return Ok(BTreeMap::new());
        }
        let marked = state.end().sequence;
        let (needed, seen) = self.second_look(&state, &packs)?;
        let mut seen = seen;
        let packs: Vec<u32> = packs.into_iter().filter(|number| !needed.contains_key(number)).collect();
        for packs in packs.chunks(PACKS_TOGETHER) {
            let names: Vec<PackName> = packs.iter().map(|number| state.packs()[number].added.name).collect();
            self.append_dropped(token, marked, &names, Vec::new(), &mut seen)?;
            for (number, name) in packs.iter().zip(&names) {
                report.packs_deleted += 1;
                report.bytes_reclaimed += state.packs()[number].added.bytes;
                self.remove_pack(&state, *number, name)?;
            }
        }
        Ok(needed)
    }

    /// Appends the event; points that became roots meanwhile are looked at too (R6).
    fn append_dropped(
        &self,
        token: [u8; 16],
        marked: u64,
        packs: &[PackName],
        orphans: Vec<Orphan>,
        seen: &mut Second,
    ) -> Result<()> {
        loop {
            let state = self.catch_up()?;
            let marked_too = roots_since(&state, marked);
            let new: BTreeSet<PointId> = marked_too.difference(&seen.points).copied().collect();
            let found = self.referred_to(&state, &new, &seen.wanted, &mut seen.pages)?;
            if let Some(chunk) = found.into_iter().find(|id| seen.exact.contains(id)) {
                return Err(Error::internal(format!(
                    "a point refers to chunk {chunk}, which was doomed before it was committed"
                )));
            }
            seen.points.extend(new);
            let event = Event::Dropped(Dropped {
                token,
                marked,
                marked_too: marked_too.iter().copied().collect(),
                packs: packs.to_vec(),
                orphans: orphans.clone(),
            });
            let mut appended = false;
            self.append(|state| {
                appended = roots_since(state, marked).is_subset(&marked_too);
                Ok(if appended { vec![event.clone()] } else { Vec::new() })
            })?;
            if appended {
                return Ok(());
            }
        }
    }

    /// Reads all that points refer to, whatever the counts say, and gives the packs without which something would be lost.
    fn second_look(&self, state: &State, packs: &BTreeSet<u32>) -> Result<(BTreeMap<u32, Vec<ChunkId>>, Second)> {
        // What has another place may go.
        let mut only: BTreeMap<ChunkId, u32> = BTreeMap::new();
        let mut unread = BTreeSet::new();
        for number in packs {
            let pack = &state.packs()[number].added;
            let entries = match reader::footer(&self.directory, pack) {
                Ok(entries) => entries,
                Err(error) => {
                    tracing::warn!(pack = %pack.name, %error, "a doomed pack stays, because it cannot be told what is in it");
                    unread.insert(*number);
                    continue;
                }
            };
            let ids: Vec<ChunkId> = entries.iter().map(|entry| entry.id).collect();
            let places = self.index.read().expect("no holder panics").places(&ids)?;
            let elsewhere = |(id, places): &(&ChunkId, Vec<Place>)| {
                !places.iter().any(|place| self.is_usable(state, id, place.pack))
            };
            only.extend(ids.iter().zip(places).filter(elsewhere).map(|(id, _)| (*id, *number)));
        }
        let wanted = Wanted::new(only.keys().copied());
        let points: BTreeSet<PointId> = state.points().keys().copied().collect();
        let mut pages = HashSet::new();
        let found = match wanted.is_empty() {
            true => BTreeSet::new(),
            false => self.referred_to(state, &points, &wanted, &mut pages)?,
        };
        let mut needed: BTreeMap<u32, Vec<ChunkId>> = unread.into_iter().map(|number| (number, Vec::new())).collect();
        for (id, number) in found.iter().filter_map(|id| Some((*id, *only.get(id)?))) {
            tracing::error!(chunk = %id, pack = %state.packs()[&number].added.name, "a doomed pack is needed after all");
            needed.entry(number).or_default().push(id);
        }
        let exact = only.into_keys().collect();
        Ok((needed, Second { wanted, exact, pages, points }))
    }

    /// Takes a dropped pack out of index and directory. One that is left behind by a crash is removed by the next sweep.
    fn remove_pack(&self, state: &State, number: u32, name: &PackName) -> Result<()> {
        if let Ok(entries) = reader::footer(&self.directory, &state.packs()[&number].added) {
            let ids: Vec<ChunkId> = entries.iter().map(|entry| entry.id).collect();
            self.index.read().expect("no holder panics").forget_places(number, &ids)?;
        }
        self.files.lock().expect("no holder panics").remove(name);
        self.directory.remove(&pack_object(name))
    }

    /// Removes pack files that no sweep before came to delete, and those of writers that are gone (R5). Gives their bytes.
    pub(super) fn remove_orphans(&self, token: [u8; 16], dry_run: bool) -> Result<(u64, u64)> {
        let (mut files, mut bytes) = (0, 0);
        for byte in 0..=255u8 {
            // What cannot be listed is no empty folder.
            for file in self.directory.list(&format!("{PACKS}/{byte:02x}"))? {
                let Ok(name) = file.parse::<PackName>() else { continue };
                let state = self.state();
                if state.pack_number(&name).is_some() {
                    continue;
                }
                let path = self.directory.root().join(pack_object(&name));
                let Ok(opened) = self.directory.open(&path) else { continue };
                let length = self.directory.io().length(&opened).unwrap_or(0);
                if !state.was_dropped(&name) {
                    let Some(orphan) = self.orphan(&state, &opened, name) else { continue };
                    if !dry_run {
                        let marked = state.end().sequence;
                        self.append_dropped(token, marked, &[], vec![orphan], &mut Second::default())?;
                    }
                }
                if !dry_run {
                    self.directory.remove(&pack_object(&name))?;
                }
                files += 1;
                bytes += length;
            }
        }
        Ok((files, bytes))
    }

    /// A pack of a term that is over: nobody can bring it into the log any more.
    fn orphan(&self, state: &State, file: &std::fs::File, name: PackName) -> Option<Orphan> {
        let header = reader::read_header(&self.directory, file, &name).ok()?;
        let over = header.repository == state.repository() && state.term(header.writer) > header.term;
        over.then_some(Orphan { name, writer: header.writer, term: header.term })
    }
}

/// What the second look has seen.
#[derive(Default)]
struct Second {
    wanted: Wanted,
    exact: BTreeSet<ChunkId>,
    pages: HashSet<u128>,
    points: BTreeSet<PointId>,
}

fn droppable(state: &State) -> impl Iterator<Item = u32> + '_ {
    let oldest = state.sessions().values().map(|session| session.since).min().unwrap_or(u64::MAX);
    let may = move |(_, pack): &(&u32, &crate::state::Pack)| pack.doomed.is_some_and(|at| at <= oldest);
    state.packs().iter().filter(may).map(|(number, _)| *number)
}

/// Points that became roots after record `marked`, or that a session opened since then needs.
pub(super) fn roots_since(state: &State, marked: u64) -> BTreeSet<PointId> {
    let rooted = state.points().iter().filter(|(_, it)| it.rooted > marked).map(|(id, _)| *id);
    let pinned = state.sessions().values().filter(|it| it.since > marked).flat_map(|it| it.opened.pins.iter().copied());
    rooted.chain(pinned).collect()
}

/// Packs in one record.
const PACKS_TOGETHER: usize = 8192;
