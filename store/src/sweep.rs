//! Reclaiming space. What forgotten points held alone is doomed: from then on no "have" refers to it. When every session
//! from before has ended, and a second look at all that points refer to agrees, it is dropped and deleted.
//!
//! Everything that decides stands in the log; a sweep that is killed at any step is gone on with by the next. Clocks, times
//! of files and what clients say decide nothing.

mod choice;
mod dropping;
mod marking;

use crate::directory::REFERENCES;
use crate::format::event::{Doomed, Event};
use crate::format::pack::{PackKind, PackName, blob_hash};
use crate::local::{Inner, Local};
use crate::packer::Arrival;
use crate::reader;
use crate::references::References;
use crate::state::State;
use choice::Choice;
use chunker::ChunkId;
use dropping::roots_since;
use mover::{Error, Pacer, Phase, PointId, Progress, Result, SessionId, SweepOptions, SweepReport, SweepTimes};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

impl Local {
    /// See [`mover::Repository::sweep`].
    pub(crate) async fn sweep_through(&self, options: SweepOptions, progress: Arc<Progress>) -> Result<SweepReport> {
        self.inner.packer()?;
        let busy = |_| Error::busy("the repository is being swept already").hint("say --wait");
        let _one = self.inner.sweeping.try_lock().map_err(busy)?;
        if !(1..=100).contains(&options.repack_percent) {
            return Err(Error::usage("a pack is packed again from 1 to 100 per cent on"));
        }
        let token = self.inner.world.random_bytes();
        progress.enter(Phase::Move);
        let mut report = if options.dry_run {
            self.with(move |inner| inner.look_only(options)).await?
        } else {
            self.with(move |inner| inner.begin_sweep(token, options)).await?;
            self.swept(token, options, &progress).await?
        };
        self.with(move |inner| inner.tell_what_is_left(&mut report).map(|()| report)).await.inspect(|_| {
            progress.enter(Phase::Done);
        })
    }

    async fn swept(&self, token: [u8; 16], options: SweepOptions, progress: &Progress) -> Result<SweepReport> {
        let mut report = SweepReport::default();
        // First what was doomed before: packing again needs room.
        let (files, bytes) = self.with(move |inner| inner.remove_orphans(token, false)).await?;
        report.packs_deleted += files;
        report.bytes_reclaimed += bytes;
        self.drop_all(token, &mut report).await?;
        for attempt in 0.. {
            let (references, found) = self.with(move |inner| inner.first_check(options)).await?;
            let Found { marked, finalised, choice, times } = found;
            report.milliseconds.counting += times.counting;
            report.milliseconds.first_check += times.first_check;
            progress.expect(choice.bytes_again);
            let broken = self.pack_again(&choice.again, options.rate, progress).await?;
            report.bytes_repacked += choice.bytes_again;
            let packs: BTreeSet<u32> = choice.packs.difference(&broken).copied().collect();
            let doomed = self
                .with(move |inner| {
                    let doomed = inner.doom(&references, token, marked, &finalised, packs)?;
                    match doomed {
                        Some(_) => references.settle()?,
                        None => references.give_up()?,
                    }
                    Ok::<_, Error>(doomed.map(|_| finalised.len() as u64))
                })
                .await?;
            match doomed {
                Some(finalised) => {
                    report.points_final += finalised;
                    break;
                }
                None if attempt < ATTEMPTS => {}
                None => {
                    return Err(Error::busy("points are unforgotten while the repository is swept").hint("sweep again"));
                }
            }
        }
        progress.enter(Phase::Commit);
        self.drop_all(token, &mut report).await?;
        self.with(move |inner| {
            inner.append(|state| {
                Ok(if state.sweep() == Some(token) { vec![Event::SweepEnded(token)] } else { Vec::new() })
            })
        })
        .await?;
        Ok(report)
    }

    /// Drops what may be dropped. What should not have been doomed is packed again, and its pack goes with the next sweep.
    async fn drop_all(&self, token: [u8; 16], report: &mut SweepReport) -> Result<()> {
        let began = Instant::now();
        let mut so_far = *report;
        let (needed, dropped) = self
            .with(move |inner| {
                let needed = inner.drop_doomed(token, &mut so_far)?;
                Ok::<_, Error>((needed, so_far))
            })
            .await?;
        *report = dropped;
        report.milliseconds.second_check += milliseconds(began.elapsed());
        if !needed.is_empty() {
            self.pack_again(&needed, None, &Progress::default()).await?;
        }
        Ok(())
    }

    /// Packs chunks again, each decoded and compared first: what is damaged must not get a new checksum. Gives the packs
    /// of which something could not be read; they stay.
    async fn pack_again(
        &self,
        packs: &BTreeMap<u32, Vec<ChunkId>>,
        rate: Option<u64>,
        progress: &Progress,
    ) -> Result<BTreeSet<u32>> {
        let (packer, pacer) = (self.inner.packer()?, Pacer::new(rate));
        let mut broken = BTreeSet::new();
        for (number, ids) in packs {
            for ids in ids.chunks(CHUNKS_TOGETHER) {
                let mut arrivals: BTreeMap<PackKind, Vec<Arrival>> = BTreeMap::new();
                for (id, blob) in reader::get_to_pack(self, ids.to_vec()).await {
                    match blob {
                        Ok(blob) => {
                            let hash = blob_hash(blob.bytes());
                            let kind = PackKind::of(blob.header().kind);
                            let missing_at = Some(u64::MAX);
                            arrivals.entry(kind).or_default().push(Arrival { id, blob, hash, missing_at });
                        }
                        Err(error) => {
                            tracing::warn!(%error, "a pack stays, because not all that is needed of it can be read");
                            broken.insert(*number);
                        }
                    }
                }
                for (kind, arrivals) in arrivals {
                    let bytes = arrivals.iter().map(|it| it.blob.bytes().len() as u64).sum();
                    pacer.wait(bytes).await;
                    packer.append(SessionId::default(), kind, arrivals).await?;
                    progress.advance(bytes);
                }
            }
        }
        if !packs.is_empty() {
            packer.flush().await?;
            self.with(|inner| inner.append(|_| Ok(Vec::new()))).await?;
        }
        Ok(broken)
    }
}

/// What the first check found.
struct Found {
    /// The record up to which everything is marked.
    marked: u64,
    /// Forgotten points that nobody needs.
    finalised: BTreeSet<PointId>,
    choice: Choice,
    times: SweepTimes,
}

enum Checked {
    Found(Found),
    /// A forgotten point.
    Unreadable(PointId, Error),
}

impl Inner {
    /// Begins a sweep in the log, which ends any other, and ends sessions that are too old.
    fn begin_sweep(&self, token: [u8; 16], options: SweepOptions) -> Result<()> {
        let now = self.world.now().0;
        self.append(|state| {
            let own = self.author.writer;
            let old = |session: &&crate::state::Session| {
                let age = Duration::from_nanos(u64::try_from(now.saturating_sub(session.time.0)).unwrap_or(0));
                session.writer != own && options.fence_older_s.is_some_and(|limit| age.as_secs() > limit)
            };
            let fenced = state.sessions().values().filter(old).map(|it| Event::SessionFenced(it.opened.session));
            Ok(fenced.chain([Event::SweepBegun(token)]).collect())
        })
        .map(drop)
    }

    /// A sweep that changes nothing.
    fn look_only(&self, options: SweepOptions) -> Result<SweepReport> {
        let (references, Found { finalised, choice, times, .. }) = self.first_check(options)?;
        references.give_up()?;
        let state = self.state();
        let bytes: u64 = choice.packs.iter().map(|number| state.packs()[number].added.bytes).sum();
        let waiting: u64 = state.packs().values().filter(|it| it.doomed.is_some()).map(|it| it.added.bytes).sum();
        let (files, orphans) = self.remove_orphans([0; 16], true)?;
        Ok(SweepReport {
            points_final: finalised.len() as u64,
            bytes_reclaimed: bytes + waiting + orphans,
            bytes_repacked: choice.bytes_again,
            packs_deleted: choice.packs.len() as u64 + files,
            milliseconds: times,
            ..SweepReport::default()
        })
    }

    /// Brings the counts up to the log, takes away what is forgotten, and chooses packs.
    fn first_check(&self, options: SweepOptions) -> Result<(References, Found)> {
        let mut unreadable = BTreeSet::new();
        let mut references = None;
        loop {
            let state = self.catch_up()?;
            let open = match references.take() {
                Some(references) => references,
                None => self.references(&state)?,
            };
            match self.check_without(&unreadable, &open, &state, options)? {
                Checked::Found(found) => return Ok((open, found)),
                // Its chunks cannot be told, and nobody needs them: all others are counted again, without it.
                Checked::Unreadable(point, error) => {
                    tracing::warn!(%point, %error, "a forgotten point cannot be read");
                    unreadable.insert(point);
                    references = Some(open.begun_again()?);
                }
            }
        }
    }

    fn check_without(
        &self,
        unreadable: &BTreeSet<PointId>,
        references: &References,
        state: &State,
        options: SweepOptions,
    ) -> Result<Checked> {
        let began = Instant::now();
        let marked = state.end().sequence;
        let pinned: BTreeSet<PointId> =
            state.sessions().values().flat_map(|session| session.opened.pins.iter().copied()).collect();
        let forgotten = state.points().iter().filter(|(id, point)| point.forgotten.is_some() && !pinned.contains(id));
        let finalised: BTreeSet<PointId> = forgotten.map(|(id, _)| *id).collect();
        let mut counted = references.points()?;
        // What is forgotten and was never counted is nobody's; but when all is counted anew, what was there must be found.
        let to_count = state.points().iter().filter(|(id, _)| !counted.contains_key(id) && !unreadable.contains(id));
        let mut to_count: Vec<(u64, PointId)> = to_count
            .filter(|(id, _)| references.is_new || !finalised.contains(id))
            .map(|(id, point)| (point.since, *id))
            .collect();
        to_count.sort_unstable();
        for (_, point) in to_count {
            match self.count(references, state, point) {
                Err(error) if finalised.contains(&point) => return Ok(Checked::Unreadable(point, error)),
                made => made?,
            }
            counted.insert(point, true);
        }
        references.flush()?;
        if unreadable.is_empty() {
            explained(references, state)?;
        }
        let counting = milliseconds(began.elapsed());
        let began = Instant::now();
        let taken: BTreeSet<PointId> = finalised.iter().filter(|id| counted.contains_key(id)).copied().collect();
        references.begin_taking(&taken)?;
        for point in &taken {
            if let Err(error) = self.take_away(references, state, *point) {
                return Ok(Checked::Unreadable(*point, error));
            }
        }
        let choice = self.choose(references, state, marked, options.repack_percent)?;
        let times = SweepTimes { counting, first_check: milliseconds(began.elapsed()), second_check: 0 };
        Ok(Checked::Found(Found { marked, finalised, choice, times }))
    }

    /// The counts, as far as they go; begun again when they do not fit the log.
    fn references(&self, state: &State) -> Result<References> {
        let folder = self.directory.root().join(REFERENCES);
        let mut references = References::open(&folder, self.config.config.id)?;
        if let Some(taking) = references.taking()? {
            // A sweep was killed: what it took away is final if the log says so.
            let there = taking.iter().filter(|id| state.points().contains_key(id)).count();
            match there {
                0 => references.settle()?,
                _ if there == taking.len() => references.give_up()?,
                _ => references = references.begun_again()?,
            }
        }
        let strange = references.points()?.keys().any(|id| !state.points().contains_key(id));
        if strange { references.begun_again() } else { Ok(references) }
    }

    /// Step one of deleting. None when what was found does not hold any more: a forgotten point is back.
    fn doom(
        &self,
        references: &References,
        token: [u8; 16],
        marked: u64,
        finalised: &BTreeSet<PointId>,
        packs: BTreeSet<u32>,
    ) -> Result<Option<()>> {
        let mut first = true;
        let mut leaving = BTreeSet::new();
        loop {
            let state = self.catch_up()?;
            if !all_forgotten(&state, finalised) {
                return Ok(None);
            }
            let marked_too = roots_since(&state, marked);
            let counted = references.points()?;
            let new: Vec<PointId> = marked_too.iter().filter(|id| !counted.contains_key(id)).copied().collect();
            for point in &new {
                self.count(references, &state, *point)?;
            }
            if first || !new.is_empty() {
                leaving = self.expendable(references, &state, &packs)?;
            }
            first = false;
            let names: Vec<PackName> = leaving.iter().map(|number| state.packs()[number].added.name).collect();
            let pages = references.pages_left()?.to_string();
            let parts = doom_events(token, marked, &marked_too, finalised, &names);
            if parts.is_empty() {
                return Ok(Some(()));
            }
            let mut written = 0;
            for (at, event) in parts.iter().enumerate() {
                let mut fits = false;
                self.append(|state| {
                    // What earlier parts made final is gone.
                    fits = roots_since(state, marked).is_subset(&marked_too)
                        && finalised.iter().all(|id| {
                            state
                                .points()
                                .get(id)
                                .is_none_or(|point| point.forgotten.is_some() && !is_pinned(state, id))
                        })
                        && leaving.iter().all(|number| {
                            Self::may_be_doomed(state, marked, *number)
                                || state.packs().get(number).is_some_and(|pack| pack.doomed.is_some())
                        });
                    let last = at + 1 == parts.len();
                    let live = last.then(|| Event::Configuration(LIVE_PAGES.into(), pages.clone()));
                    Ok(if fits { [event.clone()].into_iter().chain(live).collect() } else { Vec::new() })
                })?;
                if !fits {
                    break;
                }
                written += 1;
            }
            if written == parts.len() {
                return Ok(Some(()));
            }
            if written > 0 {
                // Some points are final: what is left is for another sweep, which counts again what is in doubt.
                return Err(Error::busy("the repository changed while points were made final").hint("sweep again"));
            }
        }
    }

    /// Fills in what a report says of the repository as it is now.
    fn tell_what_is_left(&self, report: &mut SweepReport) -> Result<()> {
        let state = self.catch_up()?;
        let references = References::open(&self.directory.root().join(REFERENCES), self.config.config.id)?;
        let dead = references.dead_bytes()?;
        let oldest_doom = state.packs().values().filter_map(|pack| pack.doomed).max();
        for (number, pack) in state.packs() {
            match pack.doomed {
                Some(_) => report.bytes_waiting += pack.added.bytes,
                None => {
                    let dead = dead.get(number).copied().unwrap_or(0).min(pack.added.bytes);
                    report.bytes_dead += dead;
                    report.bytes_live += pack.added.bytes - dead;
                }
            }
        }
        let waited_for = state.sessions().values().filter(|it| oldest_doom.is_some_and(|doom| it.since < doom));
        report.sessions_waited_for = waited_for.count() as u64;
        report.bytes_reclaimed = report.bytes_reclaimed.saturating_sub(report.bytes_repacked);
        Ok(())
    }
}

/// Refuses when pages are not found any more and no forgotten point explains it: then something else than forgetting has
/// taken points away, and what they held must not go.
fn explained(references: &References, state: &State) -> Result<()> {
    let live = references.live_pages()?;
    let before: i64 = state.setting(LIVE_PAGES).and_then(|text| text.parse().ok()).unwrap_or(0);
    if live >= before {
        return Ok(());
    }
    Err(Error::integrity(format!("{before} pages were needed after the last sweep, and only {live} are found now"))
        .hint("nothing was deleted; run `windlass verify`, and look whether files of the log are missing"))
}

fn is_pinned(state: &State, id: &PointId) -> bool {
    state.sessions().values().any(|session| session.opened.pins.contains(id))
}

fn all_forgotten(state: &State, points: &BTreeSet<PointId>) -> bool {
    let forgotten = |id: &PointId| state.points().get(id).is_some_and(|point| point.forgotten.is_some());
    points.iter().all(|id| forgotten(id) && !is_pinned(state, id))
}

/// The statement, in events that fit a record: points first, because no pack is doomed before they are final (R11).
fn doom_events(
    token: [u8; 16],
    marked: u64,
    marked_too: &BTreeSet<PointId>,
    finalised: &BTreeSet<PointId>,
    packs: &[PackName],
) -> Vec<Event> {
    let event = |packs: &[PackName], finalised: &[PointId]| {
        let (packs, finalised) = (packs.to_vec(), finalised.to_vec());
        let marked_too = if packs.is_empty() { Vec::new() } else { marked_too.iter().copied().collect() };
        Event::Doomed(Doomed { token, marked, marked_too, packs, finalised })
    };
    let finalised: Vec<PointId> = finalised.iter().copied().collect();
    // Small ones in one step.
    if finalised.len() <= POINTS_TOGETHER && packs.len() <= PACKS_TOGETHER && !packs.is_empty() {
        return vec![event(packs, &finalised)];
    }
    let points = finalised.chunks(POINTS_TOGETHER).map(|points| event(&[], points));
    points.chain(packs.chunks(PACKS_TOGETHER).map(|packs| event(packs, &[]))).collect()
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// How often a sweep begins again because a point was unforgotten.
const ATTEMPTS: usize = 5;
/// Chunks that are packed again together: 4 MiB of blocks.
const CHUNKS_TOGETHER: usize = 64;
const POINTS_TOGETHER: usize = 8192;
const PACKS_TOGETHER: usize = 8192;
/// The setting that says how many pages were needed after the last sweep.
const LIVE_PAGES: &str = "sweep.live-pages";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::Access;
    use mover::{ErrorKind, Pool, World};

    #[tokio::test(flavor = "multi_thread")]
    async fn points_that_vanish_without_being_forgotten_stop_a_sweep() {
        let (folder, world) = (tempfile::tempdir().unwrap(), World::system());
        Local::init(folder.path(), None, &world).unwrap();
        let local = Local::open(folder.path(), Access::Write, Pool::new(1).unwrap(), world).await.unwrap();
        let sweep = async || local.sweep_through(SweepOptions::default(), Arc::default()).await;
        assert_eq!(sweep().await.unwrap().packs_deleted, 0);
        let claim = Event::Configuration(LIVE_PAGES.into(), "7".into());
        local.with(move |inner| inner.append(|_| Ok(vec![claim.clone()]))).await.unwrap();
        let refused = sweep().await.unwrap_err();
        assert!(refused.kind() == ErrorKind::Integrity && refused.to_string().contains("7 pages"), "{refused}");
        local.close().await.unwrap();
    }

    #[test]
    fn a_long_list_of_points_is_final_before_any_pack_is_doomed() {
        let points: BTreeSet<PointId> = (0..20_000u32)
            .map(|number| {
                let mut id = [0; 16];
                id[..4].copy_from_slice(&number.to_le_bytes());
                PointId(id)
            })
            .collect();
        let packs: Vec<PackName> = (0..9_000u32).map(|_| PackName([7; 32])).collect();
        let events = doom_events([1; 16], 5, &BTreeSet::from([PointId([9; 16])]), &points, &packs);
        let parts: Vec<(usize, usize, usize)> = events
            .iter()
            .map(|event| match event {
                Event::Doomed(doomed) => (doomed.finalised.len(), doomed.packs.len(), doomed.marked_too.len()),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(parts, [(8192, 0, 0), (8192, 0, 0), (3616, 0, 0), (0, 8192, 1), (0, 808, 1)]);
        let few = doom_events([1; 16], 5, &BTreeSet::new(), &BTreeSet::from([PointId([9; 16])]), &packs[..2]);
        assert_eq!(few.len(), 1, "one step");
        assert!(doom_events([1; 16], 5, &BTreeSet::new(), &BTreeSet::new(), &[]).is_empty());
    }
}
