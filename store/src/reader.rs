//! Read sessions.

use crate::format::event::SessionOpened;
use crate::leases::gone;
use crate::reading;
use crate::repository::Inner;
use crate::state::State;
use chunker::{ChunkId, DomainKeys};
use futures::Stream;
use mover::{ChunkBatch, ErrorKind, Manifest, OwnerId, PointId, ReadSession, Result, SessionId};
use std::sync::Arc;

/// A read session; ends when it is dropped.
pub struct Reader {
    inner: Arc<Inner>,
    pinned: Option<SessionId>,
}

impl Reader {
    /// A session that pins nothing, and is not in the log.
    pub(crate) const fn unpinned(inner: Arc<Inner>) -> Self {
        Self { inner, pinned: None }
    }

    /// A session that pins `points`. Even if there are none, all packs that exist when it begins stay until it ends.
    pub(crate) async fn hold(inner: &Arc<Inner>, points: &[PointId]) -> Result<Self> {
        let (session, pins) = (SessionId::random(&inner.world), points.to_vec());
        let (owner, point) = (OwnerId::default(), PointId::default());
        let opened = SessionOpened { session, writes: false, owner, point, pins, extensions: Vec::new() };
        let pinned = inner.with(move |inner| {
            let unpinned = |state: &State| gone(state, &opened).map_or(Ok(false), Err);
            if inner.log.is_unwritable() {
                return unpinned(&*inner.catch_up()?);
            }
            match inner.open_session(&opened) {
                Ok(()) => Ok(true),
                // Full, failing, read-only, or written by a newer program: what is there can be read all the same.
                Err(error) if matches!(error.kind(), ErrorKind::StoreIo | ErrorKind::StoreFull | ErrorKind::Version) => {
                    tracing::warn!(%error, "the repository cannot be written: reading without a session, which would keep the points from a sweep");
                    unpinned(&inner.state())
                }
                Err(error) => Err(error),
            }
        });
        Ok(Self { pinned: pinned.await?.then_some(session), inner: inner.clone() })
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(session) = self.pinned {
            self.inner.close_session(session);
        }
    }
}

impl ReadSession for Reader {
    async fn manifest(&self, point: PointId) -> Result<Manifest> {
        reading::manifest(&self.inner, point).await
    }

    fn get(&self, ids: Vec<ChunkId>) -> impl Stream<Item = ChunkBatch> + Send {
        reading::get(self.inner.clone(), ids)
    }

    async fn get_verified(&self, keys: &DomainKeys, ids: Vec<ChunkId>) -> ChunkBatch {
        reading::get_verified(&self.inner, keys, ids).await
    }
}
