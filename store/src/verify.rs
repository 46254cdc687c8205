//! Verifying a repository: its structure, its stored bytes, or every chunk; and naming what each error costs.

mod history;
mod pack;
mod points;

use crate::format::event::Event;
use crate::format::pack::PackName;
use crate::health::SUSPECTS_TOGETHER;
use crate::index::Place;
use crate::reader::Reader;
use crate::repository::Inner;
use crate::state::{Pack, State};
use chunker::ChunkId;
use futures::{StreamExt, stream};
use history::check_history;
use mover::{Depth, Phase, Progress, RateLimiter, Result, Timestamp, VerifyError, VerifyOptions, VerifyReport};
pub use pack::{Checked, check_pack};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

impl Inner {
    /// See [`mover::Repository::verify`]. Damaged chunks are marked suspect in the log when the repository is open for
    /// writing.
    pub async fn look_through(
        self: &Arc<Self>,
        options: VerifyOptions,
        progress: Arc<Progress>,
    ) -> Result<VerifyReport> {
        // A sweep beside it deletes nothing that it will look at.
        let _held = Reader::hold(self, &options.points).await?;
        let state = self.with(Inner::catch_up).await?;
        progress.enter(Phase::Move);
        let mut report = VerifyReport::default();
        self.with(check_history).await.into_iter().for_each(|error| report.add(error));
        let packs = self.packs_to_check(&state, &options).await?;
        report.packs_skipped = packs.iter().filter(|it| it.skipped).count() as u64;
        progress.expect(packs.iter().map(ToCheck::bytes).sum());
        let pacer = Arc::new(RateLimiter::new(options.rate));
        let mut noting = Noting::new(self);
        let checks = packs.into_iter().map(|it| {
            let (inner, pacer) = (self.clone(), pacer.clone());
            async move {
                let began = inner.world.now();
                let checked = check_pack(&inner, &it.pack.added, it.depth, &pacer).await;
                (it, checked, began)
            }
        });
        let mut checks = stream::iter(checks).buffer_unordered((self.pool.threads() + 1).min(PACKS_AT_ONCE_MAX));
        let mut bad = Bad::new();
        let mut broken: BTreeMap<u32, Checked> = BTreeMap::new();
        while let Some((it, checked, began)) = checks.next().await {
            let name = it.pack.added.name;
            progress.advance(it.bytes());
            noting.note(name, it.depth, &checked, began).await;
            report.bytes_read += checked.bytes_read;
            report.chunks += checked.chunks;
            // At once: no backup beside this is to rely on them.
            self.mark(&state, name, &checked, it.depth).await;
            for what in &checked.errors {
                let (pack, what, unread) = (Some(name.to_string()), what.clone(), checked.unread);
                report.add(VerifyError { pack, what, unread, ..VerifyError::default() });
            }
            bad.extend(checked.bad.iter().map(|(id, what)| ((*id, name), what.clone())));
            if checked.has_lost(&it.pack.added) {
                broken.insert(it.number, checked);
            }
        }
        drop(checks);
        drop(noting);
        let lost = self.with(move |inner| lost_with(inner, &broken)).await?;
        self.note(lost.keys().copied().collect(), Vec::new()).await;
        bad.extend(lost);
        self.walk_points(&options.points, &bad, state.suspects(), &mut report).await?;
        progress.enter(Phase::Done);
        Ok(report)
    }

    /// The packs to look at, and how deep: pages always, data as the options say.
    async fn packs_to_check(self: &Arc<Self>, state: &State, options: &VerifyOptions) -> Result<Vec<ToCheck>> {
        let needed = if options.points.is_empty() { None } else { Some(self.packs_of(&options.points).await?) };
        let packs = state
            .packs()
            .iter()
            .filter(|(number, pack)| pack.doomed.is_none() && needed.as_ref().is_none_or(|them| them.contains(number)));
        let now = self.world.now();
        let nanoseconds = |age: Duration| i64::try_from(age.as_nanos()).unwrap_or(i64::MAX);
        let since = options.outdated_after.map(|age| Timestamp(now.0.saturating_sub(nanoseconds(age))));
        let verified = self.health.verified();
        let packs: Vec<(&u32, &Pack)> = packs.collect();
        let sample: Option<HashSet<u32>> = match options.depth {
            // Those that were read longest ago: whoever asks for a part again and again has read everything.
            Depth::ReadData { percent } => {
                let last =
                    |(number, pack): &(&u32, &Pack)| (verified.last(&pack.added.name, options.depth, now), **number);
                let mut oldest: Vec<_> = packs.iter().map(last).collect();
                oldest.sort_unstable();
                let share = (oldest.len() * usize::from(percent.min(100))).div_ceil(100);
                Some(oldest.into_iter().take(share).map(|(_, number)| number).collect())
            }
            Depth::Structure | Depth::Decode => None,
        };
        let to_check = |(&number, pack): (&u32, &Pack)| {
            let sampled = sample.as_ref().map_or(options.depth == Depth::Decode, |sample| sample.contains(&number));
            let last = verified.last(&pack.added.name, options.depth, now);
            let skipped = sampled && since.is_some_and(|since| last.is_some_and(|last| last >= since));
            let depth = if sampled && !skipped { options.depth } else { Depth::Structure };
            ToCheck { number, pack: pack.clone(), depth, skipped }
        };
        Ok(packs.into_iter().map(to_check).collect())
    }

    /// Notes the result of checking a pack. Chunks in it that are suspect in `state` and are sound after all count
    /// again, if the check decoded every chunk.
    pub async fn mark(self: &Arc<Self>, state: &State, pack: PackName, checked: &Checked, depth: Depth) {
        let bad: BTreeSet<ChunkId> = checked.bad.iter().map(|(chunk, _)| *chunk).collect();
        let is_proof = depth == Depth::Decode && !checked.unread && !checked.unreadable;
        let entries = checked.entries.iter().filter(|_| is_proof && !state.suspects().is_empty());
        // Once, also of a chunk that is there twice.
        let sound: BTreeSet<(ChunkId, PackName)> = entries
            .map(|entry| (entry.id, pack))
            .filter(|place| state.suspects().contains(place) && !bad.contains(&place.0))
            .collect();
        self.note(bad.into_iter().map(|chunk| (chunk, pack)).collect(), sound.into_iter().collect()).await;
    }

    /// From now on the places of the chunks in `bad` do not count, and those in `sound` do: for this process, and for
    /// every process if the log can be written. So the next backup that has a damaged chunk sends it again.
    pub async fn note(self: &Arc<Self>, bad: Vec<(ChunkId, PackName)>, sound: Vec<(ChunkId, PackName)>) {
        bad.iter().for_each(|(chunk, pack)| self.health.note_damaged(*chunk, *pack));
        self.health.note_sound(&sound);
        let events = bad.into_iter().map(|(chunk, pack)| Event::ChunkSuspect(chunk, pack));
        let events: Vec<Event> =
            events.chain(sound.into_iter().map(|(chunk, pack)| Event::ChunkHealed(chunk, pack))).collect();
        for events in events.chunks(SUSPECTS_TOGETHER).map(<[_]>::to_vec) {
            let note = move |inner: &Inner| {
                inner.append(|state| {
                    let is_news = |event: &&Event| match event {
                        Event::ChunkSuspect(chunk, pack) => {
                            state.pack_number(pack).is_some() && !state.suspects().contains(&(*chunk, *pack))
                        }
                        Event::ChunkHealed(chunk, pack) => state.suspects().contains(&(*chunk, *pack)),
                        _ => false,
                    };
                    Ok(events.iter().filter(is_news).cloned().collect())
                })
            };
            if let Err(error) = self.with(note).await {
                tracing::warn!(%error, "what was found cannot be written to the log: verify again when the repository can be written");
                return;
            }
        }
    }
}

/// A pack, and how deep to look at it.
struct ToCheck {
    number: u32,
    pack: Pack,
    depth: Depth,
    /// It is not read, because it was found sound a short time ago.
    skipped: bool,
}

impl ToCheck {
    /// What is read of it, footers left out.
    const fn bytes(&self) -> u64 {
        match self.depth {
            Depth::Structure => 0,
            Depth::ReadData { .. } | Depth::Decode => self.pack.added.bytes,
        }
    }
}

/// Stores which packs were found sound, also when the verification is interrupted.
struct Noting<'a> {
    inner: &'a Arc<Inner>,
    saved: Instant,
    any: bool,
}

impl<'a> Noting<'a> {
    fn new(inner: &'a Arc<Inner>) -> Self {
        Self { inner, saved: Instant::now(), any: false }
    }

    async fn note(&mut self, pack: PackName, depth: Depth, checked: &Checked, began: Timestamp) {
        if checked.unread {
            return;
        }
        self.inner.health.verified().note(pack, depth, checked.is_sound(), began);
        self.any = true;
        if self.saved.elapsed() >= SAVED_EVERY {
            self.inner.with(Inner::save_verified).await;
            (self.saved, self.any) = (Instant::now(), false);
        }
    }
}

impl Drop for Noting<'_> {
    fn drop(&mut self) {
        if self.any {
            self.inner.save_verified();
        }
    }
}

/// Damaged chunks, where they are, and what is wrong.
type Bad = BTreeMap<(ChunkId, PackName), String>;

/// The chunks that are lost with damaged packs, of which not all records could be found. The index knows which chunks
/// were in them.
pub fn lost_with(inner: &Inner, broken: &BTreeMap<u32, Checked>) -> Result<Bad> {
    let mut bad = Bad::new();
    if broken.is_empty() {
        return Ok(bad);
    }
    let left: HashSet<(u32, ChunkId)> = broken
        .iter()
        .filter(|(_, checked)| !checked.unreadable)
        .flat_map(|(number, checked)| checked.entries.iter().map(|entry| (*number, entry.id)))
        .collect();
    let (state, packs) = (inner.state(), broken.keys().copied().collect());
    for (chunk, Place { pack: number, .. }) in inner.index.chunks_of(&packs)? {
        if let Some(pack) = state.packs().get(&number).filter(|_| !left.contains(&(number, chunk))) {
            bad.insert((chunk, pack.added.name), broken[&number].errors.join("; "));
        }
    }
    Ok(bad)
}

/// Packs checked at once, a thread each: one for each processor and one that waits for the storage.
const PACKS_AT_ONCE_MAX: usize = 8;
/// How often what was found is written.
const SAVED_EVERY: Duration = Duration::from_secs(20);
