//! Step two of deleting. A doomed pack is deleted when all sessions from before the doom have ended, and after a second
//! look at everything to which points refer.

use super::choice::for_each_batch;
use super::marking::Wanted;
use crate::contents::header;
use crate::format::event::{Dropped, Event, Orphan};
use crate::format::pack::PackName;
use crate::objects::{Object, ObjectName};
use crate::repository::Inner;
use crate::state::State;
use chunker::ChunkId;
use mover::{Error, PointId, Result, SweepReport};
use std::collections::{BTreeMap, BTreeSet, HashSet};

impl Inner {
    /// Deletes the doomed packs that may be deleted. Gives the packs that turned out to be needed, with the chunks that
    /// must be packed again.
    pub(super) fn drop_doomed(&self, token: [u8; 16], report: &mut SweepReport) -> Result<BTreeMap<u32, Vec<ChunkId>>> {
        let state = self.catch_up()?;
        let packs: BTreeSet<u32> = droppable(&state).collect();
        if packs.is_empty() {
            return Ok(BTreeMap::new());
        }
        let marked = state.end().sequence;
        let (needed, mut seen) = self.second_look(&state, &packs)?;
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
            let marked_too = state.roots_since(marked);
            let new: BTreeSet<PointId> = marked_too.difference(&seen.points).copied().collect();
            if let Some((_, ids)) = self.needed(&state, seen, new)?.into_iter().next() {
                return Err(Error::internal(format!("chunk {} was doomed before it was committed", ids[0])));
            }
            let event = Event::Dropped(Dropped {
                token,
                marked,
                marked_too: marked_too.iter().copied().collect(),
                packs: packs.to_vec(),
                orphans: orphans.clone(),
            });
            let mut appended = false;
            self.append(|state| {
                appended = state.roots_since(marked).is_subset(&marked_too);
                Ok(if appended { vec![event.clone()] } else { Vec::new() })
            })?;
            if appended {
                return Ok(());
            }
        }
    }

    /// Reads all that points refer to, whatever the counts say, and gives the packs without which something would be lost.
    fn second_look(&self, state: &State, packs: &BTreeSet<u32>) -> Result<(BTreeMap<u32, Vec<ChunkId>>, Second)> {
        let (mut wanted, mut needed) = (Wanted::default(), BTreeMap::new());
        for number in packs {
            // What has another place may go.
            let looked = self.only_there(state, packs, *number, |ids| wanted.add(&ids));
            if let Err(error) = looked {
                let pack = &state.packs()[number].added.name;
                tracing::warn!(%pack, %error, "a doomed pack stays, because its content cannot be read");
                needed.insert(*number, Vec::new());
            }
        }
        wanted.sort();
        let points: BTreeSet<PointId> = state.points().keys().copied().collect();
        let mut second = Second { wanted, packs: packs.clone(), pages: HashSet::new(), points: BTreeSet::new() };
        for (number, ids) in self.needed(state, &mut second, points)? {
            let pack = &state.packs()[&number].added.name;
            tracing::error!(%pack, chunks = ids.len(), "a doomed pack is needed after all");
            needed.insert(number, ids);
        }
        Ok((needed, second))
    }

    /// Chunks to which `points` refer and that only the packs of the second look have, by pack.
    fn needed(
        &self,
        state: &State,
        second: &mut Second,
        points: BTreeSet<PointId>,
    ) -> Result<BTreeMap<u32, Vec<ChunkId>>> {
        let mut needed: BTreeMap<u32, Vec<ChunkId>> = BTreeMap::new();
        if !second.wanted.is_empty() {
            let found = self.referred_to(state, &points, &second.wanted, &mut second.pages)?;
            for number in second.packs.iter().filter(|_| !found.is_empty()) {
                self.only_there(state, &second.packs, *number, |ids| {
                    let ids = ids.into_iter().filter(|id| found.contains(id));
                    ids.for_each(|id| needed.entry(*number).or_default().push(id));
                })?;
            }
        }
        second.points.extend(points);
        Ok(needed)
    }

    /// Gives chunks of pack `number` that cannot be read without `packs`, many at a time.
    fn only_there(
        &self,
        state: &State,
        packs: &BTreeSet<u32>,
        number: u32,
        mut each: impl FnMut(Vec<ChunkId>),
    ) -> Result<()> {
        if !state.packs().contains_key(&number) {
            return Ok(());
        }
        for_each_batch(
            &self.records_of(state, number)?,
            |_| true,
            |_, ids| {
                each(self.only_in(state, &ids, packs)?);
                Ok(())
            },
        )
    }

    /// Takes a dropped pack out of index and directory. One that is left behind by a crash is removed by the next sweep.
    fn remove_pack(&self, state: &State, number: u32, name: &PackName) -> Result<()> {
        if let Ok(entries) = self.records_of(state, number) {
            // Few at a time, because commits wait for it.
            let forget =
                |ids: Vec<ChunkId>| ids.chunks(PLACES_TOGETHER).try_for_each(|ids| self.forget_places(number, ids));
            for_each_batch(&entries, |_| true, |_, ids| forget(ids))?;
        }
        self.packs.let_go(name);
        self.objects.remove(ObjectName::Pack(*name))
    }

    /// Takes places out of the index. Only the holder of the log may write there, and commits wait for the log. So the
    /// rows are read before the log is taken.
    fn forget_places(&self, number: u32, ids: &[ChunkId]) -> Result<()> {
        let made = || self.index.forgetting(number, ids);
        let forget = |made| self.index.forget_places(made);
        let Some(early) = made()? else { return Ok(()) };
        let _one = self.log.hold();
        let mut next = Some(early);
        while let Some(made_now) = next {
            // What owners have had is noted meanwhile.
            next = if forget(made_now)? { None } else { made()? };
        }
        Ok(())
    }

    /// Removes files of packs that an earlier sweep dropped and did not delete, and of packs that a writer left in a
    /// term that is over (R5). Gives the number of files and their bytes.
    pub(super) fn remove_orphans(&self, token: [u8; 16], dry_run: bool) -> Result<(u64, u64)> {
        let (mut files, mut bytes) = (0, 0);
        for first in 0..=255 {
            for name in self.objects.packs(first)? {
                let state = self.state();
                if state.pack_number(&name).is_some() {
                    continue;
                }
                let Ok(opened) = self.objects.open_pack(&name) else { continue };
                let length = opened.length().unwrap_or(0);
                if !state.was_dropped(&name) {
                    let Some(orphan) = orphan(&state, &*opened, name) else { continue };
                    if !dry_run {
                        let marked = state.end().sequence;
                        self.append_dropped(token, marked, &[], vec![orphan], &mut Second::default())?;
                    }
                }
                if !dry_run {
                    self.objects.remove(ObjectName::Pack(name))?;
                }
                files += 1;
                bytes += length;
            }
        }
        Ok((files, bytes))
    }
}

/// A pack of a term that is over: nobody can bring it into the log any more.
fn orphan(state: &State, pack: &dyn Object, name: PackName) -> Option<Orphan> {
    let header = header(pack, &name).ok()?;
    let over = header.repository == state.repository() && state.term(header.writer) > header.term;
    over.then_some(Orphan { name, writer: header.writer, term: header.term })
}

/// What the second look has seen.
#[derive(Default)]
struct Second {
    wanted: Wanted,
    packs: BTreeSet<u32>,
    pages: HashSet<u128>,
    points: BTreeSet<PointId>,
}

/// Doomed packs that no session from before needs any more.
pub(super) fn droppable(state: &State) -> impl Iterator<Item = u32> + '_ {
    let may = |(_, pack): &(&u32, &crate::state::Pack)| pack.doomed.is_some_and(|at| state.has_outlived(at));
    state.packs().iter().filter(may).map(|(number, _)| *number)
}

/// Chunks that are taken out of the index together.
const PLACES_TOGETHER: usize = 256;
/// Packs in one record.
const PACKS_TOGETHER: usize = 8192;
