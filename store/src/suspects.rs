//! Blocks of parents that are known to be damaged. The backup that begins reads these from the source again (R16).

use crate::damage::unless_damaged;
use crate::repository::Inner;
use crate::session::Session;
use chunker::ChunkId;
use mover::{Begun, Demand, DiskRecord, MapReader, PointId, ReadSession, Result, Spot, Suspect, Visited};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Every place of a damaged chunk in the parents' disks, at most [`Begun::SUSPECTS_MAX`] of them.
///
/// # Errors
/// When the storage fails.
pub async fn suspects(inner: &Arc<Inner>, session: &Session, parents: &[PointId]) -> Result<Vec<Suspect>> {
    let suspects = inner.with(|inner| inner.unhealed(&inner.state())).await?;
    let mut walk =
        Walk { reader: MapReader::new(session, &inner.keys), suspects, clean: Visited::default(), found: Vec::new() };
    if walk.suspects.is_empty() {
        return Ok(Vec::new());
    }
    for parent in parents {
        // A manifest that does not read is the backup's to find out: it reads everything then.
        let Some(manifest) = unless_damaged(session.manifest(*parent).await)? else { continue };
        for disk in &manifest.disks {
            walk.disk(disk).await?;
        }
    }
    walk.found.truncate(Begun::SUSPECTS_MAX);
    Ok(walk.found)
}

struct Walk<'a> {
    reader: MapReader<'a, Session>,
    suspects: BTreeSet<ChunkId>,
    /// Pages below which nothing is damaged, so that each is looked at once (R23). Other pages may be looked at several
    /// times. Each of these looks finds damage, and the number of findings is bounded.
    clean: Visited,
    found: Vec<Suspect>,
}

/// A step of the walk through a map. Steps are taken from the end of a stack.
enum Step {
    /// A page, and where it begins in the disk.
    Look(ChunkId, Spot, u64),
    /// Everything below a page was looked at; the number is how many places were found before that.
    Walked(ChunkId, Spot, usize),
}

impl Walk<'_> {
    async fn disk(&mut self, disk: &DiskRecord) -> Result<()> {
        let root = Spot::of_disk(disk.size, disk.root.level);
        let mut stack: Vec<Step> = disk.root.id.map(|id| Step::Look(id, root, 0)).into_iter().collect();
        while let Some(step) = stack.pop() {
            let (id, spot, offset) = match step {
                Step::Walked(id, spot, before) => {
                    if self.found.len() == before {
                        self.clean.insert(&id, spot)?;
                    }
                    continue;
                }
                Step::Look(id, spot, _) if self.clean.contains(&id, spot) => continue,
                Step::Look(id, spot, offset) => (id, spot, offset),
            };
            if self.found.len() >= Begun::SUSPECTS_MAX {
                return Ok(());
            }
            let Some(page) = unless_damaged(self.reader.page(id, spot.level).await)? else {
                self.found.push(Suspect { chunk: id, disk: disk.id, offset });
                continue;
            };
            stack.push(Step::Walked(id, spot, self.found.len()));
            for (at, id, demand) in spot.demands(&page) {
                let offset = offset + spot.offset_of(&page, at);
                match demand {
                    Demand::Page(spot) => stack.push(Step::Look(id, spot, offset)),
                    Demand::Chunk(_) if self.suspects.contains(&id) => {
                        self.found.push(Suspect { chunk: id, disk: disk.id, offset });
                    }
                    Demand::Chunk(_) => {}
                }
            }
        }
        Ok(())
    }
}
