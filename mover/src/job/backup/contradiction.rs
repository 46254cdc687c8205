//! Bytes that contradict a bitmap. Whether a bitmap may be believed is decided where the image is open; here, and in
//! the audit, the answer is held against the parent's map, which no source can change.

use super::check::is_reinterpreted;
use super::disk::{DiskPass, whole_blocks};
use crate::{
    ChangeTracking, Changed, Error, PAGE_ENTRIES, PageRef, Repository, Result, Source, TrackingWish, level_of,
};
use chunker::{Extent, GRID_BYTES, grid_blocks};
use futures::{StreamExt, stream};

impl<R: Repository, S: Source> DiskPass<'_, R, S> {
    /// Warns that change tracking cannot be trusted. It is not known since when this is so, and the warning is also
    /// about earlier points.
    pub(super) fn tell_lie(&self, lie: &str, warnings: &mut Vec<String>) {
        let name = &self.description.name;
        tracing::warn!(disk = %name, reason = lie, "change tracking cannot be trusted");
        warnings.push(format!(
            "disk {name}: {lie}; this point is right, but earlier points made by bitmap may lack that change"
        ));
    }

    /// Decides whether a bitmap is used. If it cannot be a bitmap of the changes since the parent, or if it contradicts
    /// the allocation, it is not used and everything is read. A contradiction also gives a warning, because its cause
    /// may make bitmaps wrong again. Both are errors with [`TrackingWish::Bitmap`].
    pub(super) async fn settle(&self, mut changed: Changed, warnings: &mut Vec<String>) -> Result<Changed> {
        if changed.mode != ChangeTracking::Bitmap {
            return Ok(changed);
        }
        let unfit = self.unfit();
        let told = self.job.given.lie_of(&self.description.name).map(str::to_owned);
        let lie = match (&unfit, told) {
            (Some(_), _) => None,
            (None, Some(told)) => Some(told),
            (None, None) => self.lie(&changed).await?,
        };
        let wanted = self.job.options.wish == TrackingWish::Bitmap;
        if let Some(lie) = lie.as_ref().filter(|_| !wanted) {
            self.tell_lie(lie, warnings);
        }
        if let Some(reason) = unfit.or(lie) {
            if wanted {
                return Err(Error::tracking(reason).hint("leave out --change-tracking bitmap to read everything once"));
            }
            changed.mode = ChangeTracking::Fingerprint;
            changed.reason = reason;
        }
        Ok(changed)
    }

    /// Why a bitmap cannot be one of the changes since the parent. This does not mean that the tracking is wrong: for
    /// example, the disk may have grown.
    fn unfit(&self) -> Option<String> {
        let Some(before) = self.before else { return Some("the bitmap has no parent".into()) };
        if is_reinterpreted(before, self.description) {
            return Some(format!("the disk was read as {} in the parent", before.format));
        }
        let size = self.description.size;
        let same = before.size == size && before.root.level == level_of(size);
        (!same).then(|| format!("the disk had {} bytes in the parent", before.size))
    }

    /// Looks for blocks that are zero by allocation and clean in the bitmap, but have a chunk in the parent. There the
    /// tracking is wrong (T3), because a discarded or cut-off range was not reported. Gives the reason, or none when
    /// all is well.
    async fn lie(&self, changed: &Changed) -> Result<Option<String>> {
        let (size, grid) = (self.description.size, u64::from(GRID_BYTES));
        let Some(before) = self.before else { return Ok(None) };
        let clean_zeroes = whole_blocks(&changed.zeroes, size).subtract(&changed.dirty.align(grid, size));
        let clean_zeroes = self.reader.with_data(before.root, &clean_zeroes).await?;
        let leaf_bytes = PAGE_ENTRIES * grid;
        let leaf = |piece: Extent| async move {
            let page = self.reader.leaf(before.root, piece.offset / leaf_bytes).await?;
            Ok::<_, Error>((piece, page))
        };
        let mut leaves = stream::iter(clean_zeroes.split(leaf_bytes).map(leaf)).buffered(LEAVES_AHEAD);
        while let Some((piece, page)) = leaves.next().await.transpose()? {
            let Some(page) = page else { continue };
            let mut blocks = grid_blocks(piece, size);
            let bad = blocks.find(|block| page.entry(block.offset / grid % PAGE_ENTRIES) != PageRef::Absent);
            if let Some(block) = bad {
                let at = block.offset;
                return Ok(Some(format!(
                    "the bitmap calls offset {at} unchanged, but it reads as zeros now and had data in the parent"
                )));
            }
        }
        Ok(None)
    }
}

/// Leaves of the parent's map on their way: a repository far away answers late.
const LEAVES_AHEAD: usize = 64;
