//! Reclaiming space. A sweep dooms packs that only forgotten points needed; chunks in them that are still needed are packed again
//! first. From then on no session is told that a chunk is there because of a doomed pack. When all sessions that are older than
//! the doom have ended, the sweep checks once more what all points refer to. If that agrees, the pack is dropped and its file
//! deleted.
//!
//! Every decision is in the log. If a sweep is killed at any step, the next one continues it. Clocks, times of files and what
//! clients say decide nothing, except which sessions are ended when an administrator asks for that by age.

mod choice;
mod died;
mod dropping;
mod marking;

use crate::error::came_from_passing;
use crate::format::event::{Doomed, Event};
use crate::format::pack::{PackEntry, PackKind, PackName, blob_hash};
use crate::packer::Arrival;
use crate::points::giving_up;
use crate::reading::get_verified;
use crate::references::References;
use crate::repository::Inner;
use crate::state::State;
use choice::Choice;
use chunker::ChunkId;
use dropping::droppable;
use mover::{
    Error, ErrorKind, Phase, PointId, Progress, RateLimiter, Result, SessionId, SweepOptions, SweepReport, SweepTimes,
    private_folder,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

impl Inner {
    /// See [`mover::Repository::sweep`].
    pub async fn sweep_through(
        self: &Arc<Self>,
        options: SweepOptions,
        progress: Arc<Progress>,
    ) -> Result<SweepReport> {
        // Looking only, beside somebody who writes or where nobody may: then the counts are made elsewhere.
        let is_guest = match self.packs.packer() {
            Err(error) if !options.dry_run => return Err(error),
            packer => packer.is_err(),
        };
        let _one = self.sweep_turn.take()?;
        if !(1..=100).contains(&options.repack_percent) {
            return Err(Error::usage("packs can be repacked from 1 to 100 per cent of dead bytes"));
        }
        let token = self.world.random_bytes();
        progress.enter(Phase::Move);
        if is_guest {
            let folder = private_folder(&format!("windlass-references-{}", std::process::id()));
            let folder = folder
                .map_err(|error| Error::store_io("cannot make a folder for the counts of references").because(error))?;
            self.sweep_turn.count_in(folder);
            let looked = self.quietly(move |inner| {
                let mut report = inner.look_only(options)?;
                inner.tell_what_is_left(&mut report).map(|()| report)
            });
            let looked = looked.await;
            self.sweep_turn.give_back();
            return looked.inspect(|_| progress.enter(Phase::Done));
        }
        self.quietly(Self::use_reserve).await;
        let swept = if options.dry_run {
            self.quietly(move |inner| inner.look_only(options)).await
        } else {
            self.swept(token, options, &progress).await
        };
        let stopped = self.packs.stopped().is_some();
        let is_damage = |error: &Error| error.kind() == ErrorKind::StoreIo && !came_from_passing(error);
        if !stopped && swept.as_ref().is_err_and(is_damage) {
            // Perhaps it was the counts.
            let _ = self.quietly(|inner| inner.sweep_turn.remove_counts()).await;
        }
        let told = match swept {
            Ok(mut report) => self.quietly(move |inner| inner.tell_what_is_left(&mut report).map(|()| report)).await,
            Err(error) => Err(error),
        };
        self.quietly(|inner| inner.room.keep_reserve()).await;
        told.inspect(|_| progress.enter(Phase::Done))
    }

    async fn swept(
        self: &Arc<Self>,
        token: [u8; 16],
        options: SweepOptions,
        progress: &Progress,
    ) -> Result<SweepReport> {
        self.quietly(move |inner| inner.begin_sweep(token, options)).await?;
        let mut report = SweepReport::default();
        // First what was doomed before: packing again needs room.
        let (files, bytes) = self.quietly(move |inner| inner.remove_orphans(token, false)).await?;
        report.packs_deleted += files;
        report.bytes_reclaimed += bytes;
        match self.drop_all(token, &mut report).await {
            // Perhaps of a point that is about to be final.
            Err(error) if error.kind() == ErrorKind::Integrity => {
                tracing::warn!(%error, "what was doomed before cannot be looked at again yet");
            }
            dropped => dropped?,
        }
        // What there is no room for comes in the next round, when what this one has doomed is deleted.
        let short = loop {
            let deleted = report.packs_deleted;
            let short = self.round(token, options, progress, &mut report).await?;
            progress.enter(Phase::Commit);
            self.drop_all(token, &mut report).await?;
            if short.is_none() || report.packs_deleted == deleted {
                break short;
            }
            progress.enter(Phase::Move);
        };
        self.quietly(move |inner| inner.end_sweep(token)).await?;
        let waits = self.state().packs().values().any(|pack| pack.doomed.is_some());
        if let Some(short) = short
            && !waits
        {
            return Err(Error::store_full(format!(
                "packs that are partly dead stay: to repack one of them takes {} MiB of free space",
                short.div_ceil(1 << 20)
            ))
            .hint(
                "free space on the repository's file system, and sweep again; nothing that was committed is affected",
            ));
        }
        Ok(report)
    }

    /// Chooses packs, packs again what is needed of them as far as there is room, and dooms them. If there was no room
    /// for some, gives the bytes that the smallest of these would take.
    async fn round(
        self: &Arc<Self>,
        token: [u8; 16],
        options: SweepOptions,
        progress: &Progress,
        report: &mut SweepReport,
    ) -> Result<Option<u64>> {
        for attempt in 0.. {
            let look = move |inner: &Self| inner.first_check(options, inner.room.room_for_sweeps()?);
            let (references, found) = self.quietly(look).await?;
            let short = found.choice.short_bytes;
            report.milliseconds.counting += found.times.counting;
            report.milliseconds.first_check += found.times.first_check;
            progress.expect(found.choice.bytes_again);
            let broken = self.pack_again(&found.choice.again, options.rate, progress).await?;
            report.bytes_repacked += found.choice.bytes_again;
            let (is_final, points) = self
                .quietly(move |inner| {
                    let packs = found.choice.packs.difference(&broken).copied().collect();
                    let is_final = inner.doom(&references, token, &found, &packs, &broken)?;
                    if is_final {
                        references.settle()?
                    } else {
                        references.give_up()?
                    }
                    Ok::<_, Error>((is_final, found.finalised.len() as u64))
                })
                .await?;
            if is_final {
                report.points_final += points;
                return Ok(short);
            }
            if attempt == ATTEMPTS {
                break;
            }
        }
        Err(Error::busy("points were brought back during the sweep").hint("sweep again"))
    }

    /// Runs blocking work on a thread of its own that gives way to backups and restores.
    async fn quietly<T: Send + 'static>(self: &Arc<Self>, work: impl FnOnce(&Self) -> T + Send + 'static) -> T {
        let (inner, (done, made)) = (self.clone(), tokio::sync::oneshot::channel());
        let run = move || {
            // Not allowed to everybody everywhere; it is as right without.
            let thread = Some(rustix::thread::gettid());
            if let Err(error) = rustix::process::setpriority_process(thread, NICE) {
                tracing::debug!(%error, "the sweep has the priority of everything else");
            }
            let made = work(&inner);
            // Whoever waits for it may want to open the repository again.
            drop(inner);
            let _ = done.send(made);
        };
        let started = std::thread::Builder::new().name("sweep".into()).spawn(run);
        started.expect("a thread can be started");
        made.await.expect("the thread sends what it made")
    }

    /// Drops what may be dropped. What should not have been doomed is packed again, and its pack goes with the next sweep.
    async fn drop_all(self: &Arc<Self>, token: [u8; 16], report: &mut SweepReport) -> Result<()> {
        let began = Instant::now();
        let mut so_far = *report;
        let (needed, dropped) = self
            .quietly(move |inner| {
                let needed = inner.drop_doomed(token, &mut so_far)?;
                Ok::<_, Error>((needed, so_far))
            })
            .await?;
        *report = dropped;
        report.milliseconds.second_check += milliseconds(began.elapsed());
        if needed.is_empty() {
            return Ok(());
        }
        // The counts were wrong.
        self.quietly(|inner| inner.sweep_turn.remove_counts()).await?;
        for ids in needed.values() {
            let batches = ids.chunks(FEW_TOGETHER).map(<[_]>::to_vec).collect();
            self.pack_chunks_again(batches, &RateLimiter::new(None), &Progress::default()).await?;
        }
        self.log_packs().await?;
        Ok(())
    }

    /// Packs again the chunks of these packs that are needed. Gives the packs of which some chunk could not be read:
    /// they are not doomed.
    async fn pack_again(
        self: &Arc<Self>,
        packs: &BTreeMap<u32, Vec<bool>>,
        rate: Option<u64>,
        progress: &Progress,
    ) -> Result<BTreeSet<u32>> {
        let (mut broken, pacer, state) = (BTreeSet::new(), RateLimiter::new(rate), self.state());
        for (&number, is_live) in packs {
            let there = state.clone();
            let entries = self.with(move |inner| inner.records_of(&there, number)).await?;
            let live = entries.iter().zip(is_live).filter(|(_, live)| **live).map(|(entry, _)| entry);
            if !self.pack_chunks_again(batches(live), &pacer, progress).await? {
                broken.insert(number);
            }
            // What waits for the log takes memory.
            let due = |inner: &Self| {
                if inner.packs.pending().is_due() { inner.append(|_| Ok(Vec::new())).map(drop) } else { Ok(()) }
            };
            self.quietly(due).await?;
        }
        if !packs.is_empty() {
            self.log_packs().await?;
        }
        Ok(broken)
    }

    /// Packs chunks again, after decoding each and comparing it with its id: a damaged chunk must not get a new
    /// checksum (F19). False when one is damaged.
    async fn pack_chunks_again(
        self: &Arc<Self>,
        batches: Vec<Vec<ChunkId>>,
        pacer: &RateLimiter,
        progress: &Progress,
    ) -> Result<bool> {
        let (packer, mut all) = (self.packs.packer()?, true);
        for ids in batches {
            let mut arrivals: BTreeMap<PackKind, Vec<Arrival>> = BTreeMap::new();
            for (id, blob) in get_verified(self, &self.keys, ids).await {
                match blob {
                    Ok(blob) => {
                        let (hash, kind) = (blob_hash(blob.bytes()), PackKind::of(blob.header().kind));
                        let missing_at = Some(u64::MAX);
                        arrivals.entry(kind).or_default().push(Arrival { id, blob, hash, missing_at });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a pack stays, because some of its chunks that are needed cannot be read");
                        all = false;
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
        Ok(all)
    }

    /// Makes what was packed again durable.
    async fn log_packs(self: &Arc<Self>) -> Result<()> {
        self.packs.packer()?.flush().await?;
        self.quietly(|inner| inner.append(|_| Ok(Vec::new()))).await.map(drop)
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
    /// Everything must be counted again, in this way.
    Again(Count),
}

/// How references are counted.
#[derive(Clone, Copy, Default)]
struct Count {
    /// Forgotten points are not counted, because one of them cannot be read. So its chunks are not known, but nobody
    /// needs them either: all chunks that no other point needs are dead.
    without_forgotten: bool,
}

impl Count {
    /// Decides how to go on after this error about a forgotten point.
    fn without_forgotten(self, error: Error) -> Result<Checked> {
        if self.without_forgotten || error.kind() != ErrorKind::Integrity {
            return Err(error);
        }
        tracing::warn!(%error, "a forgotten point cannot be read: everything is counted again, without forgotten points");
        Ok(Checked::Again(Self { without_forgotten: true }))
    }
}

impl Inner {
    /// Begins a sweep in the log, which ends any other, and ends sessions that are too old.
    fn begin_sweep(&self, token: [u8; 16], options: SweepOptions) -> Result<()> {
        self.append(|state| {
            let fenced = |session: &&crate::state::Session| self.is_fenced_by(options, session);
            let fenced = state.sessions().values().filter(fenced).map(|it| Event::SessionFenced(it.opened.session));
            Ok(fenced.chain([Event::SweepBegun(token)]).collect())
        })
        .map(drop)
    }

    /// True for a session of another process that is as old as the options say.
    fn is_fenced_by(&self, options: SweepOptions, session: &crate::state::Session) -> bool {
        let age = self.world.now().0.saturating_sub(session.time.0);
        let age = Duration::from_nanos(u64::try_from(age).unwrap_or(0));
        session.writer != self.log.author().writer && options.fence_older_s.is_some_and(|limit| age.as_secs() > limit)
    }

    /// Writes to the log how many bytes are dead, and that the sweep has ended.
    fn end_sweep(&self, token: [u8; 16]) -> Result<()> {
        let state = self.catch_up()?;
        let dead = References::open(&self.sweep_turn.counts(), self.config.config.id)?.dead_bytes()?;
        let dead = dead.iter().filter_map(|(number, dead)| Some(dead_in(state.packs().get(number)?, *dead)));
        let dead = Event::Configuration(DEAD_BYTES.into(), dead.sum::<u64>().to_string());
        self.append(|state| {
            let ours = state.sweep() == Some(token);
            Ok(if ours { vec![dead.clone(), Event::SweepEnded(token)] } else { Vec::new() })
        })
        .map(drop)
    }

    /// A sweep that changes nothing.
    fn look_only(&self, options: SweepOptions) -> Result<SweepReport> {
        let (references, Found { finalised, choice, times, .. }) = self.first_check(options, u64::MAX)?;
        references.give_up()?;
        let state = self.state();
        let bytes = |packs: &BTreeSet<u32>| packs.iter().map(|number| state.packs()[number].added.bytes).sum::<u64>();
        // What is doomed now waits for every session that is open.
        let fenced = |session: &crate::state::Session| self.is_fenced_by(options, session);
        let waits = !state.sessions().values().all(fenced);
        let old: BTreeSet<u32> = droppable(&state).collect();
        let (now, later) = if waits { (BTreeSet::new(), choice.packs) } else { (choice.packs, BTreeSet::new()) };
        let going: BTreeSet<u32> = old.union(&now).copied().collect();
        let (files, orphans) = self.remove_orphans([0; 16], true)?;
        Ok(SweepReport {
            points_final: finalised.len() as u64,
            bytes_reclaimed: bytes(&going) + orphans,
            bytes_repacked: choice.bytes_again,
            // Those that are doomed already are added to it.
            bytes_waiting: bytes(&later),
            packs_deleted: going.len() as u64 + files,
            milliseconds: times,
            ..SweepReport::default()
        })
    }

    /// Brings the counts up to the log, takes away what is forgotten, and chooses packs.
    fn first_check(&self, options: SweepOptions, room: u64) -> Result<(References, Found)> {
        let mut how = Count::default();
        let mut references = None;
        loop {
            let state = self.catch_up()?;
            let open = match references.take() {
                Some(references) => references,
                None => self.references(&state)?,
            };
            match self.check_counted(how, &open, &state, options, room)? {
                Checked::Found(found) => return Ok((open, found)),
                Checked::Again(again) => {
                    how = again;
                    references = Some(open.begun_again()?);
                }
            }
        }
    }

    fn check_counted(
        &self,
        how: Count,
        references: &References,
        state: &State,
        options: SweepOptions,
        room: u64,
    ) -> Result<Checked> {
        let began = Instant::now();
        let marked = state.end().sequence;
        let pinned: BTreeSet<PointId> =
            state.sessions().values().flat_map(|session| session.opened.pins.iter().copied()).collect();
        let forgotten = state.points().iter().filter(|(id, point)| point.forgotten.is_some() && !pinned.contains(id));
        let finalised: BTreeSet<PointId> = forgotten.map(|(id, _)| *id).collect();
        let mut counted = references.points()?;
        // What is forgotten and was never counted is nobody's; but when all is counted anew, what was there must be found.
        let with_forgotten = references.is_new && !how.without_forgotten;
        let to_count = state.points().iter().filter(|(id, _)| !counted.contains_key(id));
        let mut to_count: Vec<(u64, PointId)> = to_count
            .filter(|(id, _)| with_forgotten || !finalised.contains(id))
            .map(|(id, point)| (point.since, *id))
            .collect();
        to_count.sort_unstable();
        for (_, point) in to_count {
            match self.count(references, state, point) {
                Err(error) if finalised.contains(&point) => return how.without_forgotten(error),
                made => made?,
            }
            counted.insert(point, true);
        }
        references.flush()?;
        if !how.without_forgotten
            && let Err(error) = explained(references, state)
        {
            // Counts are no proof: only when all is counted anew is it said.
            return if references.is_new { Err(error) } else { Ok(Checked::Again(how)) };
        }
        self.look_at_new(references, state, marked)?;
        let counting = milliseconds(began.elapsed());
        let began = Instant::now();
        let taken: BTreeSet<PointId> = finalised.iter().filter(|id| counted.contains_key(id)).copied().collect();
        references.begin_taking(&taken)?;
        for point in &taken {
            if let Err(error) = self.take_away(references, state, *point) {
                return how.without_forgotten(error);
            }
        }
        let choice = self.choose(references, state, marked, options.repack_percent, room)?;
        let times = SweepTimes { counting, first_check: milliseconds(began.elapsed()), second_check: 0 };
        Ok(Checked::Found(Found { marked, finalised, choice, times }))
    }

    /// Gives the reserve up if it is needed. Then opens the index again, if there was no room to do that before.
    fn use_reserve(&self) {
        self.room.use_reserve();
        self.reopen_index();
    }

    /// Opens the counts. They begin empty when they do not fit the log.
    fn references(&self, state: &State) -> Result<References> {
        let folder = self.sweep_turn.counts();
        let mut references = References::open(&folder, self.config.config.id)?;
        if let Some(taking) = references.taking()? {
            // A sweep was killed: what it took away is final if the log says so.
            let gone = taking.iter().filter(|id| !state.points().contains_key(id)).count();
            if !references.recover(gone)? {
                references = references.begun_again()?;
            }
        }
        let strange = references.points()?.keys().any(|id| !state.points().contains_key(id));
        if strange { references.begun_again() } else { Ok(references) }
    }

    /// Step one of deleting. False when `found` is not right any more, because a forgotten point is back, or another
    /// forgotten point could be final. A place in one of the packs `distrusted` does not count as a copy of a chunk.
    fn doom(
        &self,
        references: &References,
        token: [u8; 16],
        found: &Found,
        packs: &BTreeSet<u32>,
        distrusted: &BTreeSet<u32>,
    ) -> Result<bool> {
        let Found { marked, finalised, .. } = found;
        let mut leaving = None;
        for _ in 0..DOOM_ATTEMPTS {
            let state = self.catch_up()?;
            if !is_just_what_is_forgotten(&state, *marked, finalised) {
                return Ok(false);
            }
            let marked_too = state.roots_since(*marked);
            let counted = references.points()?;
            for point in marked_too.iter().filter(|id| !counted.contains_key(id)) {
                self.count(references, &state, *point)?;
                leaving = None;
            }
            let leaving = match &leaving {
                Some(leaving) => leaving,
                None => leaving.insert(self.expendable(references, &state, packs, distrusted)?),
            };
            let names: Vec<PackName> = leaving.iter().map(|number| state.packs()[number].added.name).collect();
            let live = Event::Configuration(LIVE_PAGES.into(), references.pages_left()?.to_string());
            let parts = doom_events(token, *marked, &marked_too, finalised, &names);
            references.note_packs(&found.choice.dead_bytes)?;
            references.has_taken()?;
            // Before: what is final is not known any more. Should the sweep end here, it is forgotten all the same.
            for some in giving_up(&state, finalised).chunks(SETTINGS_TOGETHER) {
                self.append(|_| Ok(some.to_vec()))?;
            }
            let mut written = 0;
            for event in &parts {
                let mut fits = false;
                self.append(|state| {
                    fits = state.roots_since(*marked).is_subset(&marked_too)
                        && is_just_what_is_forgotten(state, *marked, finalised)
                        && leaving
                            .iter()
                            .all(|number| Self::may_be_doomed(state, *marked, *number) || is_doomed(state, *number));
                    // From the first on: what later ones make final must not be missed, should they not come.
                    let live = (written == 0).then(|| live.clone());
                    Ok(if fits { live.into_iter().chain([event.clone()]).collect() } else { Vec::new() })
                })?;
                if !fits {
                    break;
                }
                written += 1;
            }
            if written == parts.len() {
                return Ok(true);
            }
            if written > 0 {
                return Err(Error::busy("the repository changed during the sweep").hint("sweep again"));
            }
        }
        Err(Error::busy("points were committed during the sweep, faster than it could choose packs")
            .hint("sweep again"))
    }

    /// Fills in what a report says of the repository as it is now.
    fn tell_what_is_left(&self, report: &mut SweepReport) -> Result<()> {
        let state = self.catch_up()?;
        let references = References::open(&self.sweep_turn.counts(), self.config.config.id)?;
        let dead = references.dead_bytes()?;
        let newest_doom = state.packs().values().filter_map(|pack| pack.doomed).max();
        for (number, pack) in state.packs() {
            match pack.doomed {
                Some(_) => report.bytes_waiting += pack.added.bytes,
                None => {
                    let dead = dead.get(number).map_or(0, |dead| dead_in(pack, *dead));
                    report.bytes_dead += dead;
                    report.bytes_live += pack.added.bytes - dead;
                }
            }
        }
        let waited_for = state.sessions().values().filter(|it| newest_doom.is_some_and(|doom| it.since < doom));
        report.sessions_waited_for = waited_for.count() as u64;
        report.bytes_reclaimed = report.bytes_reclaimed.saturating_sub(report.bytes_repacked);
        Ok(())
    }
}

/// Dead bytes of a pack; 0 if it is doomed anyway.
fn dead_in(pack: &crate::state::Pack, noted: u64) -> u64 {
    if pack.doomed.is_some() { 0 } else { noted.min(pack.added.bytes) }
}

/// Fails when there are fewer pages than after the last sweep, and no forgotten point explains this. Then points may
/// have been lost in another way, and their chunks must not be deleted.
fn explained(references: &References, state: &State) -> Result<()> {
    let live = references.live_pages()?;
    let before: i64 = state.setting(LIVE_PAGES).and_then(|text| text.parse().ok()).unwrap_or(0);
    if live >= before {
        return Ok(());
    }
    Err(Error::integrity(format!("{before} pages were needed after the last sweep, and only {live} are found now"))
        .hint("nothing was deleted; run `windlass verify`, and check whether files of the log are missing"))
}

/// Whether `points` are exactly the points that may be made final: forgotten up to record `marked`, and pinned by no
/// session (R11). Points that an earlier event of the same doom made final are not in the state any more; they count as
/// right.
fn is_just_what_is_forgotten(state: &State, marked: u64, points: &BTreeSet<PointId>) -> bool {
    let may_go = |id: &PointId| !state.is_pinned(id);
    let of_them = |id: &PointId| state.points().get(id).is_none_or(|point| point.forgotten.is_some() && may_go(id));
    let others = |(id, point): (&PointId, &crate::state::Point)| {
        point.forgotten.is_some_and(|at| at <= marked) && may_go(id) && !points.contains(id)
    };
    points.iter().all(of_them) && !state.points().iter().any(others)
}

/// The chunks of `entries`, so many together that they are read and decoded well and take little memory.
fn batches<'a>(entries: impl Iterator<Item = &'a PackEntry>) -> Vec<Vec<ChunkId>> {
    let (mut batches, mut bytes) = (Vec::<Vec<ChunkId>>::new(), 0);
    for entry in entries {
        match batches.last_mut() {
            Some(batch) if bytes < BYTES_TOGETHER && batch.len() < MANY_TOGETHER => batch.push(entry.id),
            _ => {
                batches.push(vec![entry.id]);
                bytes = 0;
            }
        }
        bytes += entry.plain_bytes;
    }
    batches
}

fn is_doomed(state: &State, number: u32) -> bool {
    state.packs().get(&number).is_some_and(|pack| pack.doomed.is_some())
}

/// A doom as several events, each of which fits into a record. Points come first, because no pack may be doomed before
/// they are final (R11).
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
/// How often packs are chosen again because a point was committed meanwhile.
const DOOM_ATTEMPTS: usize = 50;
/// Chunks that are packed again together: up to this many bytes when their lengths are known, otherwise only a few
/// chunks.
const BYTES_TOGETHER: u32 = 4 << 20;
const MANY_TOGETHER: usize = 4096;
const FEW_TOGETHER: usize = 64;
/// The nice value of a sweep: it gets a tenth of a processor that other threads want too. With less it would hold locks
/// for too long.
const NICE: i32 = 10;
const POINTS_TOGETHER: usize = 8192;
const PACKS_TOGETHER: usize = 8192;
/// Settings in one record: two thirds of the longest.
const SETTINGS_TOGETHER: usize = 4096;
/// The setting that says how many pages were needed after the last sweep.
const LIVE_PAGES: &str = "sweep.live-pages";

/// The setting that says how many bytes were dead after the last sweep.
pub(crate) const DEAD_BYTES: &str = "sweep.dead-bytes";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::{Access, Local};
    use mover::{Pool, World};

    #[tokio::test(flavor = "multi_thread")]
    async fn points_that_vanish_without_being_forgotten_stop_a_sweep() {
        let (folder, world) = (tempfile::tempdir().unwrap(), World::system());
        Local::init(folder.path(), None, &world).unwrap();
        let local = Local::open(folder.path(), Access::Write, Pool::new(1).unwrap(), world).await.unwrap();
        let sweep = async || local.inner.sweep_through(SweepOptions::default(), Arc::default()).await;
        assert_eq!(sweep().await.unwrap().packs_deleted, 0);
        let claim = Event::Configuration(LIVE_PAGES.into(), "7".into());
        local.inner.with(move |inner| inner.append(|_| Ok(vec![claim.clone()]))).await.unwrap();
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
