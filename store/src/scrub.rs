//! Reading a repository again and again, so that damage is found while the machine, or another copy, still has the
//! damaged data.

use crate::format::event::AddedPack;
use crate::local::Local;
use crate::repository::Inner;
use crate::verify::{check_pack, lost_with};
use mover::{Depth, RateLimiter, Result, ScrubTotals, Timestamp};
use std::collections::BTreeMap;
use std::time::Duration;

/// How a node scrubs its repositories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScrubOptions {
    /// Bytes of packs that are read in a second.
    pub rate: u64,
    /// Each pack is read again after so long.
    pub every: Duration,
}

impl Local {
    /// Decodes and fingerprints every chunk of every pack. It begins with the packs that were verified longest ago, and
    /// reads each pack again after [`ScrubOptions::every`]. It never ends. Damaged chunks are marked suspect, as by a
    /// verification.
    pub async fn scrub(&self, options: ScrubOptions) {
        let pacer = RateLimiter::new(Some(options.rate));
        self.inner.health.scrubbed(|totals| *totals = Some(ScrubTotals::default()));
        loop {
            // All that is due now comes to its turn before what is due meanwhile: who backs up faster than this reads does
            // not keep it from what is old.
            if let Err(error) = self.scrub_due(options, &pacer).await {
                tracing::warn!(%error, "the scrub cannot continue; it tries again");
            }
            tokio::time::sleep(LOOKED_EVERY.min(options.every)).await;
        }
    }

    async fn scrub_due(&self, options: ScrubOptions, pacer: &RateLimiter) -> Result<()> {
        let due = self.inner.with(move |inner| inner.due(options.every)).await?;
        for (at, (number, pack)) in due.iter().enumerate() {
            self.inner.health.scrubbed(|totals| totals.get_or_insert_default().packs_left = (due.len() - at) as u64);
            let began = self.inner.world.now();
            let checked = check_pack(&self.inner, pack, Depth::Decode, pacer).await;
            let state = self.inner.with(Inner::catch_up).await?;
            if state.packs().get(number).is_none_or(|pack| pack.doomed.is_some()) {
                // It went meanwhile, perhaps while it was read.
                continue;
            }
            if checked.unread {
                tracing::error!(pack = %pack.name, errors = ?checked.errors, "the scrub cannot read a pack");
                continue;
            }
            self.inner.mark(&state, pack.name, &checked, Depth::Decode).await;
            let mut damaged = checked.bad.len() as u64;
            let (is_sound, bytes_read, errors) = (checked.is_sound(), checked.bytes_read, checked.errors.clone());
            if checked.has_lost(pack) {
                let broken = BTreeMap::from([(*number, checked)]);
                let lost: Vec<_> = self.inner.with(move |inner| lost_with(inner, &broken)).await?.into_keys().collect();
                damaged += lost.len() as u64;
                self.inner.note(lost, Vec::new()).await;
            }
            if !is_sound {
                tracing::error!(
                    pack = %pack.name, chunks = damaged, errors = ?errors,
                    "the scrub found damage: `windlass verify` shows what needs it, `windlass verify --repair` replaces it"
                );
            }
            self.inner.health.verified().note(pack.name, Depth::Decode, is_sound, began);
            self.inner.health.scrubbed(|totals| {
                let totals = totals.get_or_insert_default();
                totals.packs += 1;
                totals.bytes += bytes_read;
                totals.chunks_damaged += damaged;
            });
            if at % SAVED_EVERY == 0 || at + 1 == due.len() {
                self.inner.with(Inner::save_verified).await;
            }
        }
        self.inner.health.scrubbed(|totals| totals.get_or_insert_default().packs_left = 0);
        Ok(())
    }
}

impl Inner {
    /// The packs that were last verified longer ago than `every`, or never, oldest first. Blocking.
    fn due(&self, every: Duration) -> Result<Vec<(u32, AddedPack)>> {
        let (state, now) = (self.catch_up()?, self.world.now());
        let every = i64::try_from(every.as_nanos()).unwrap_or(i64::MAX);
        let verified = self.health.verified();
        let live = state.packs().iter().filter(|(_, pack)| pack.doomed.is_none());
        let last = live.map(|(number, pack)| (verified.last(&pack.added.name, Depth::Decode, now), *number, pack));
        let is_due = |last: &Option<Timestamp>| last.is_none_or(|last| last.0.saturating_add(every) <= now.0);
        let mut due: Vec<_> = last.filter(|(last, ..)| is_due(last)).collect();
        due.sort_unstable_by_key(|(last, number, _)| (*last, *number));
        Ok(due.into_iter().map(|(_, number, pack)| (number, pack.added.clone())).collect())
    }
}

/// How often it looks whether something is due.
const LOOKED_EVERY: Duration = Duration::from_secs(600);
/// Packs after which what was found is written.
const SAVED_EVERY: usize = 16;
