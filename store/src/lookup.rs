//! Where chunks are. The index gives the places. The log, and the damage that reads found
//! (`health`), decide which of them count.

use crate::index::Place;
use crate::repository::Inner;
use chunker::ChunkId;
use mover::{Had, OwnerId, Reach, Result};

impl Inner {
    /// The usable place of each chunk: the earliest pack that holds it, is not doomed, and where it is not suspect
    /// (R9). Blocking.
    ///
    /// # Errors
    /// When the index fails.
    pub fn locate(&self, ids: &[ChunkId]) -> Result<Vec<Option<Place>>> {
        let places = self.places(ids)?;
        let state = self.state();
        let all_sound = self.health.all_sound(&state);
        let usable = |id: &ChunkId, place: &Place| match all_sound {
            true => state.is_live(place.pack),
            false => self.health.is_usable(&state, id, place.pack),
        };
        Ok(ids.iter().zip(places).map(|(id, places)| places.into_iter().find(|place| usable(id, place))).collect())
    }

    /// A place of each chunk in a doomed pack that is not known to be damaged there. Nothing new may rely on it. Blocking.
    ///
    /// # Errors
    /// When the index fails.
    pub fn locate_doomed(&self, ids: &[ChunkId]) -> Result<Vec<Option<Place>>> {
        let places = self.places(ids)?;
        let state = self.state();
        let readable = |id: &ChunkId, place: &Place| self.health.is_left(&state, id, place.pack);
        Ok(ids.iter().zip(places).map(|(id, places)| places.into_iter().find(|place| readable(id, place))).collect())
    }

    /// The places of each chunk, earliest pack first; empty where there is none. Blocking.
    ///
    /// # Errors
    /// None when the index fails: then the footers of all packs are read. The chunks of packs that cannot be read count
    /// as missing.
    pub fn places(&self, ids: &[ChunkId]) -> Result<Vec<Vec<Place>>> {
        Ok(self.index.places(ids, || self.state()))
    }
}

impl Reach for Inner {
    fn had(&self, owner: OwnerId, ids: &[ChunkId]) -> Result<Vec<Option<Had>>> {
        self.index.had(owner, ids)
    }

    fn note(&self, owner: OwnerId, ids: &[ChunkId], had: Had) -> Result<()> {
        self.index.note_had(owner, ids, had)
    }
}

#[cfg(test)]
mod tests {
    use crate::local::{Access, Local};
    use chunker::{ChunkKind, Compression, DomainKeys};
    use mover::{Begin, PointId, Pool, Repository, Verification, World, WriteSession, with_compressor};

    /// RocksDB accepts no more writes, but can still be read. Chunks that came later are found all the same.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_an_index_that_failed_did_not_take_is_found() {
        let (folder, world) = (tempfile::tempdir().unwrap(), World::system());
        Local::init(folder.path(), None, &world).unwrap();
        let local = Local::open(folder.path(), Access::Write, Pool::new(1).unwrap(), world).await.unwrap();
        let keys = DomainKeys::new(&local.config().domain);
        let mut ids = Vec::new();
        for (number, fails) in [(1u8, false), (2, true)] {
            local.inner.index.set_failed(fails);
            let blob =
                with_compressor(Compression::None, |compressor| compressor.compress(ChunkKind::Data, &[number; 100]));
            ids.push(keys.id(ChunkKind::Data, &[number; 100]));
            let (point, verification) = (PointId([number; 16]), Verification::Checksum);
            let begin = Begin { point, parents: Vec::new(), holder: None, verification };
            let (session, _) = local.begin(begin).await.unwrap();
            session.put(vec![(*ids.last().unwrap(), blob)]).await.unwrap();
            session.flush().await.unwrap();
            session.abandon().await.unwrap();
        }
        let asked = ids.clone();
        let found = local.inner.with(move |inner| inner.locate(&asked)).await.unwrap();
        assert!(found.iter().all(Option::is_some), "{found:?}");
        local.close().await.unwrap();
    }
}
