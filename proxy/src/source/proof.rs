//! Whether a bitmap may be believed: the one place that decides it, for images of machines that run and that do not.
//!
//! It sees facts only, so a table of cases tests it. Those who have the image open collect the facts: the names, the
//! states and the marks of all bitmaps at one moment, and what the image is made of. What it answers is checked once
//! more against the bytes of the disk (`mover`, `job/backup/contradiction` and `job/backup/audit`).

use super::evidence::Evidence;
use super::untracked;
use crate::nbd::Extents;
use crate::qemu::{TrackingName, WitnessName};
use chunker::{ExtentSet, GRID_BYTES};
use mover::{ChangeTracking, Changed, DiskRecord, LayerIdentity, ParentDisk, TrackingWish};
use std::collections::BTreeMap;

/// A bitmap at the moment that the disk shows.
#[derive(Debug, Clone, Copy)]
pub struct SeenBitmap<'a> {
    /// Bytes of the disk for one bit.
    pub granularity: u64,
    /// True when writes were recorded in it until that moment.
    pub recording: bool,
    /// False when it was not saved by a clean close, and says nothing.
    pub consistent: bool,
    /// What it marks; none when that was not asked.
    pub marks: Option<&'a ExtentSet>,
}

/// An image and its bitmaps at the moment that the disk shows.
#[derive(Debug)]
pub struct Seen<'a> {
    /// Size of the disk in bytes.
    pub size: u64,
    /// All files of the image, top first.
    pub chain: &'a [LayerIdentity],
    /// What else tells that it is the same image.
    pub evidence: &'a Evidence,
    /// Why none of its bitmaps counts, where that is known already.
    pub unusable: Option<&'a str>,
    /// Its bitmaps by name.
    pub bitmaps: BTreeMap<&'a str, SeenBitmap<'a>>,
}

/// A disk behind somebody else's NBD server, which tells nothing of the image but what its bitmaps mark.
#[derive(Debug)]
pub struct Served<'a> {
    /// The bitmap that the address names.
    pub bitmap: Option<&'a str>,
    /// Size of the disk in bytes.
    pub size: u64,
    /// What the server told.
    pub extents: &'a Extents,
}

/// Why a bitmap does not count.
#[derive(Debug)]
pub enum Doubt {
    /// There is no bitmap that could count.
    Absent(String),
    /// There is a bitmap, and it says something that is not true.
    Lie(String),
}

impl Seen<'_> {
    /// The bitmap among `candidates` that proves what changed since `parent`, and what it marks.
    ///
    /// # Errors
    /// Why there is none.
    pub fn proven(
        &self,
        candidates: &[TrackingName],
        parent: Option<ParentDisk<'_>>,
        wish: TrackingWish,
    ) -> Result<(TrackingName, &ExtentSet), Doubt> {
        let (name, granularity, witness) = self.named(candidates, parent, wish)?;
        let marked = self.witness_marks(&witness)?;
        self.sound(&name.twin().to_string(), granularity)?;
        let (dirty, twin) = (self.marks(&name.to_string())?, self.marks(&name.twin().to_string())?);
        believable(&name, dirty, twin, &witness, marked)?;
        Ok((name, dirty))
    }

    /// As [`Self::proven`], where nobody has looked at the marks: the bitmap that will prove the changes unless these
    /// contradict it.
    ///
    /// # Errors
    /// Why there is none.
    pub fn foreseen(
        &self,
        candidates: &[TrackingName],
        parent: Option<ParentDisk<'_>>,
        wish: TrackingWish,
    ) -> Result<TrackingName, Doubt> {
        let (name, granularity, witness) = self.named(candidates, parent, wish)?;
        self.sound(&name.twin().to_string(), granularity)?;
        match self.bitmaps.get(witness.to_string().as_str()) {
            None => Err(format!("witness {witness} is gone").into()),
            Some(bitmap) if bitmap.is_still() => Ok(name),
            Some(_) => Err(format!("witness {witness} is not sound").into()),
        }
    }

    /// The bitmap that was begun at the parent's checkpoint, if the image is what it was; with its granularity and the
    /// witness that the parent recorded.
    fn named(
        &self,
        candidates: &[TrackingName],
        parent: Option<ParentDisk<'_>>,
        wish: TrackingWish,
    ) -> Result<(TrackingName, u32, WitnessName), Doubt> {
        let parent = asked(parent, wish)?;
        if let Some(why_not) = self.unusable {
            return Err(why_not.into());
        }
        let checkpoint = parent.tracking.checkpoint.ok_or("the parent began no checkpoint")?;
        let name = candidates.iter().find(|name| name.checkpoint == checkpoint);
        let name = *name.ok_or_else(|| format!("there is no sound bitmap of the parent's checkpoint {checkpoint}"))?;
        let granularity = parent.tracking.granularity;
        self.sound(&name.to_string(), granularity)?;
        self.same_disk(parent)?;
        let then = Evidence::read(&parent.format_options)?;
        self.evidence.continues(&then)?;
        Ok((name, granularity, then.witness.ok_or(NO_WITNESS)?))
    }

    /// Whether the next backup can use the bitmap `next`, which was begun under the witness `witness`.
    ///
    /// # Errors
    /// Why not.
    pub fn will_prove(&self, next: &TrackingName, witness: Option<&WitnessName>) -> Result<(), String> {
        self.witness_holds(witness.ok_or("there is no witness")?)?;
        self.sound(&next.twin().to_string(), GRID_BYTES)?;
        self.sound(&next.to_string(), GRID_BYTES)
    }

    /// Whether a witness shows its mark and no other.
    ///
    /// # Errors
    /// Why not.
    pub fn witness_holds(&self, witness: &WitnessName) -> Result<(), String> {
        if *self.witness_marks(witness)? == witness.mark(GRID_BYTES) { Ok(()) } else { Err(RESIZED.into()) }
    }

    fn sound(&self, name: &str, granularity: u32) -> Result<(), String> {
        let bitmap = self.bitmaps.get(name).ok_or_else(|| format!("bitmap {name} disappeared"))?;
        if !bitmap.consistent {
            return Err(format!("bitmap {name} was not saved cleanly"));
        }
        if !bitmap.recording {
            return Err(format!("bitmap {name} is not recording"));
        }
        if bitmap.granularity != u64::from(granularity) {
            return Err(format!("bitmap {name} has granularity {}, not {granularity}", bitmap.granularity));
        }
        Ok(())
    }

    fn marks(&self, name: &str) -> Result<&ExtentSet, String> {
        let marks = self.bitmaps.get(name).and_then(|bitmap| bitmap.marks);
        marks.ok_or_else(|| format!("bitmap {name} is not exported"))
    }

    fn witness_marks(&self, witness: &WitnessName) -> Result<&ExtentSet, String> {
        let name = witness.to_string();
        let bitmap = self.bitmaps.get(name.as_str()).ok_or_else(|| format!("witness {name} is gone"))?;
        let marks = bitmap.marks.filter(|_| bitmap.is_still());
        marks.ok_or_else(|| format!("witness {name} is not sound"))
    }

    /// Size, backing files and data files must be what the parent recorded. Of the image itself the evidence tells.
    fn same_disk(&self, parent: &DiskRecord) -> Result<(), String> {
        same_size(parent, self.size)?;
        let (now, then) = (self.chain.get(1..).unwrap_or(&[]), parent.chain.get(1..).unwrap_or(&[]));
        if now.len() != then.len() {
            return Err(format!("the image has {} files below it and had {} in the parent", now.len(), then.len()));
        }
        for (now, then) in now.iter().zip(then) {
            if now.inode == 0 {
                return Err(format!("it is not known whether {} below the image changed", now.path));
            }
            if now != then {
                return Err(format!("{} below the image is not what it was", then.path));
            }
        }
        Ok(())
    }
}

impl Served<'_> {
    /// The bitmap of the address and what it marks, when its name proves that it was begun at the parent's checkpoint.
    ///
    /// # Errors
    /// Why it does not count.
    pub fn proven(
        &self,
        parent: Option<ParentDisk<'_>>,
        wish: TrackingWish,
    ) -> Result<(TrackingName, &ExtentSet), Doubt> {
        let parent = asked(parent, wish)?;
        let bitmap = self.bitmap.ok_or("the address names no bitmap")?;
        if let Some(error) = &self.extents.failed {
            return Err(format!("the server cannot tell what bitmap {bitmap} marks: {error}").into());
        }
        let name: TrackingName =
            bitmap.parse().map_err(|_| format!("bitmap {bitmap} does not have a name that Windlass gives"))?;
        let dirty = self.extents.bitmap(bitmap).ok_or_else(|| format!("the server does not export bitmap {bitmap}"))?;
        if parent.tracking.checkpoint != Some(name.checkpoint) {
            return Err(format!("bitmap {bitmap} was not begun at the parent's checkpoint").into());
        }
        same_size(parent, self.size)?;
        let marks = |what: &str, name: String| {
            let marks = self.extents.bitmap(&name);
            marks.ok_or_else(|| format!("the server does not export bitmap {name}, {what}"))
        };
        let twin = marks("the twin", name.twin().to_string())?;
        let witness = Evidence::read(&parent.format_options)?.witness.ok_or(NO_WITNESS)?;
        believable(&name, dirty, twin, &witness, marks("the witness", witness.to_string())?)?;
        Ok((name, dirty))
    }
}

/// The parent's record of the disk, where a bitmap may be used at all.
fn asked(parent: Option<ParentDisk<'_>>, wish: TrackingWish) -> Result<&DiskRecord, Doubt> {
    if !wish.asks_for_bitmap() {
        return Err("requested".into());
    }
    Ok(parent.ok_or("the first backup of this disk")?.record)
}

fn same_size(parent: &DiskRecord, size: u64) -> Result<(), String> {
    if parent.size == size {
        return Ok(());
    }
    Err(format!("the disk has {size} bytes and had {} in the parent", parent.size))
}

/// Adds to the reason why the next backup will have no bitmap, where one was wanted.
pub fn note_no_checkpoint(changed: &mut Changed, wish: TrackingWish, why_not: &str) {
    if wish != TrackingWish::Fingerprint && changed.reason != why_not {
        changed.reason.push_str("; no checkpoint was begun: ");
        changed.reason.push_str(why_not);
    }
}

/// What may have changed, according to a bitmap that is proven.
pub fn proven_change(name: &TrackingName, dirty: &ExtentSet) -> Changed {
    Changed {
        mode: ChangeTracking::Bitmap,
        reason: format!("bitmap {name} was begun at the parent's checkpoint"),
        dirty: dirty.clone(),
        zeroes: ExtentSet::new(),
        checkpoint: None,
        lie: None,
    }
}

impl SeenBitmap<'_> {
    /// A witness records nothing, and is whole.
    pub fn is_still(&self) -> bool {
        !self.recording && self.consistent && self.granularity == u64::from(GRID_BYTES)
    }
}

/// The marks of a bitmap are not believed when something was done to the bitmap or to the disk that made the bitmap
/// miss a change.
fn believable(
    name: &TrackingName,
    dirty: &ExtentSet,
    twin: &ExtentSet,
    witness: &WitnessName,
    marked: &ExtentSet,
) -> Result<(), Doubt> {
    let mark = witness.mark(GRID_BYTES);
    if *marked != mark {
        return Err(Doubt::Lie(RESIZED.into()));
    }
    if !mark.subtract(dirty).is_empty() {
        let lie = format!("bitmap {name} lacks the mark that it was made with: it was cleared or made anew");
        return Err(Doubt::Lie(lie));
    }
    if dirty != twin {
        let lie = format!("bitmap {name} and its twin differ: one of them did not record all the time");
        return Err(Doubt::Lie(lie));
    }
    Ok(())
}

impl Doubt {
    /// How changes can be found without the bitmap.
    ///
    /// # Errors
    /// `Tracking` when a bitmap was demanded.
    pub fn changed(self, parent: Option<ParentDisk<'_>>, wish: TrackingWish) -> mover::Result<Changed> {
        match self {
            Self::Absent(why_not) => untracked(parent, wish, &why_not),
            Self::Lie(lie) => Ok(Changed { lie: Some(lie.clone()), ..untracked(parent, wish, &lie)? }),
        }
    }
}

impl From<String> for Doubt {
    fn from(why_not: String) -> Self {
        Self::Absent(why_not)
    }
}

impl From<&str> for Doubt {
    fn from(why_not: &str) -> Self {
        Self::Absent(why_not.into())
    }
}

/// The finding when a witness has lost its mark.
const RESIZED: &str = "the image was made smaller and larger again, as its witness shows";
/// The reason when the parent point recorded no witness.
const NO_WITNESS: &str = "the parent recorded no witness of the image's size";

#[cfg(test)]
mod tests;
