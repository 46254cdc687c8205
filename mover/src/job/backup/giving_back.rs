//! What was read of a running machine is given back to it, so that it need not be kept any longer.
//!
//! While a snapshot is open, whatever the guest overwrites takes scratch space. A range that nobody will read any more
//! is given back at once, one that was read when it is stored. A range that was given back cannot be read again. Some
//! rare findings (tracking that lies, a damaged map, chunks that the repository lost) need it all the same: then the
//! snapshot is taken once more, and nothing is given back from that one.

use super::disk::{DiskPass, whole_blocks};
use crate::{ChangeTracking, Changed, Error, Name, Repository, Result, Source};
use chunker::Extent;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Whether ranges are given back, and whether one of them turned out to be needed.
#[derive(Debug)]
pub(super) struct GivenBack {
    may: bool,
    any: AtomicBool,
    again: Mutex<Option<Again>>,
    /// What the first snapshot showed; only for the second.
    told: Option<Again>,
}

/// Why a second snapshot is needed.
#[derive(Debug, Clone)]
pub(super) struct Again {
    /// For people.
    pub why: String,
    /// A disk whose tracking is wrong, and what shows that.
    pub lie: Option<(Name, String)>,
}

impl GivenBack {
    /// For a source that is read once. `told`: this is the second snapshot, for that reason; it keeps everything.
    pub fn from(source: &impl Source, told: Option<Again>) -> Self {
        let may = told.is_none() && source.keeps_for_reader();
        Self { may, any: AtomicBool::new(false), again: Mutex::new(None), told }
    }

    /// Fails, and notes why, when bytes are needed again of which some were given back.
    pub fn needs_again(&self, why: &str, lie: Option<(&Name, &str)>) -> Result<()> {
        if !self.any.load(Relaxed) {
            return Ok(());
        }
        let lie = lie.map(|(disk, lie)| (disk.clone(), lie.to_owned()));
        *self.again.lock().expect("no panic while held") = Some(Again { why: why.to_owned(), lie });
        Err(Error::source(format!("the snapshot is needed again, and parts of it were given back: {why}"))
            .hint("run the backup again"))
    }

    /// Why the snapshot is to be taken once more, if it is.
    pub fn again(&self) -> Option<Again> {
        self.again.lock().expect("no panic while held").clone()
    }

    /// What the first snapshot showed of this disk's tracking.
    pub fn lie_of(&self, disk: &Name) -> Option<&str> {
        let (of, lie) = self.told.as_ref()?.lie.as_ref()?;
        (of == disk).then_some(lie)
    }
}

impl<R: Repository, S: Source> DiskPass<'_, R, S> {
    /// Gives back what this pass will not read, of the whole disk at once.
    pub(super) async fn give_back_unread(&self, changed: &Changed) {
        if !self.job.given.may {
            return;
        }
        let size = self.description.size;
        let mut wanted = self.candidates(changed).subtract(&whole_blocks(&changed.zeroes, size));
        if changed.mode == ChangeTracking::Bitmap
            && let Some(sample) = self.sample(changed)
        {
            wanted = wanted.union(&sample.extents());
        }
        // Small gaps cost a request each, and save little.
        for extent in wanted.complement(size).iter().filter(|it| it.length >= GAP_BYTES_MIN) {
            self.give_back(extent).await;
        }
    }

    /// Gives one range back. A source that cannot take it keeps it, which costs room and nothing else.
    pub(super) async fn give_back(&self, extent: Extent) {
        if !self.job.given.may {
            return;
        }
        self.job.given.any.store(true, Relaxed);
        self.job.source.release(self.index, extent).await;
    }
}

/// Smallest range that is given back unread.
const GAP_BYTES_MIN: u64 = 1 << 20;
