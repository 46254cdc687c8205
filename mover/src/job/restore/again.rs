//! Asks again for a blob whose checksum is right but whose content is wrong, because another place or copy may have the
//! right one.

use super::{Arrived, Job};
use crate::{ChunkError, ReadSession, Target, with_decoder};
use chunker::ChunkId;
use std::collections::HashMap;

impl<R: ReadSession, T: Target> Job<'_, R, T> {
    /// The batch, in which each blob with the wrong content is replaced by the right one, or by the reason why there is
    /// none. A chunk that came as an error stays one, because every copy that could be asked was asked already.
    pub(super) async fn replace_wrong(&self, arrived: Vec<Arrived>) -> Vec<Arrived> {
        let keys = self.keys.clone();
        let sort = move || {
            let mut plain = Vec::new();
            arrived.into_iter().partition(|(id, _, blob): &Arrived| {
                let Ok(blob) = blob else { return true };
                plain.clear();
                with_decoder(|decoder| decoder.decode_verified(&keys, id, blob, &mut plain)).is_ok()
            })
        };
        let (mut sound, wrong): (Vec<Arrived>, Vec<Arrived>) = self.pool.run(sort).await;
        let ids: Vec<ChunkId> = wrong.iter().map(|(id, _, _)| *id).collect();
        if ids.is_empty() {
            return sound;
        }
        let found = self.reader.session().get_verified(self.keys, ids).await;
        let mut found: HashMap<ChunkId, _> = found.into_iter().collect();
        sound.extend(wrong.into_iter().map(|(chunk, places, _)| {
            let blob = found.remove(&chunk).unwrap_or(Err(ChunkError::Missing { chunk }));
            (chunk, places, blob)
        }));
        sound
    }
}
