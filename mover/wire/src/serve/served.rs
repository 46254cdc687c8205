//! A repository that a node serves, and the sessions of clients on it.

use super::owners::Sight;
use super::places::{Place, Places};
use super::quota::{Quota, Quotas, Share};
use crate::access;
use chunker::DomainKeys;
use mover::{
    Either, Error, Holder, OwnerId, PointFilter, PointId, Reach, RecoveryPoint, Repository, Result, SessionId,
};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use tokio::time::Instant;

/// A repository, and whatever is under way on it.
pub(super) struct Served<R: Repository> {
    pub repository: R,
    pub keys: DomainKeys,
    pub leases: Mutex<HashMap<SessionId, Arc<Lease<R>>>>,
    pub places: Places,
    pub quotas: Quotas,
    /// Where owners are kept apart.
    pub reach: Option<Arc<dyn Reach>>,
}

/// A session of a client. It ends when it is closed, or was not used for long.
pub(super) struct Lease<R: Repository> {
    pub holder: Holder,
    /// Given back when the session has ended.
    _place: Place,
    pub session: Either<R::Session, R::Reader>,
    /// Points whose manifests it may read.
    pub pins: Vec<PointId>,
    /// What it may write.
    pub share: Option<Share>,
    pub used: Mutex<Instant>,
}

impl<R: Repository + 'static> Served<R> {
    /// What `holder` may see of the chunks; none when it may see all.
    pub fn sight(&self, holder: &Holder) -> Option<Sight> {
        Some(Sight::new(self.reach.clone()?, OwnerId::of(holder.owner_name()?)))
    }

    /// Serves `repository`.
    pub fn new(repository: R, quotas: Quotas, reach: Option<Arc<dyn Reach>>) -> Self {
        let keys = DomainKeys::new(&repository.config().domain);
        Self { repository, keys, leases: Mutex::default(), places: Places::default(), quotas, reach }
    }

    /// The points that `holder` may see.
    pub async fn list(&self, holder: &Holder, filter: &PointFilter) -> Result<Vec<RecoveryPoint>> {
        let mut points = self.repository.list(filter).await?;
        points.retain(|point| access::sees(holder, point));
        Ok(points)
    }

    /// All points of the owner of `holder`, also forgotten ones; none when the owner has no quota.
    pub async fn of_owner(&self, holder: &Holder) -> Result<Vec<RecoveryPoint>> {
        if self.quotas.of(holder) == Quota::NONE {
            return Ok(Vec::new());
        }
        let (mut points, owner) = (Vec::new(), holder.owner_id());
        for forgotten in [false, true] {
            let listed = self.repository.list(&PointFilter { machine: None, forgotten }).await?;
            points.extend(listed.into_iter().filter(|point| point.owner == owner));
        }
        Ok(points)
    }

    /// Notes that a sweep has removed the bytes of sessions that came to nothing.
    pub fn swept(&self, dry_run: bool) {
        if !dry_run {
            let leases = self.leases.lock().expect("no holder panics");
            self.quotas.swept(leases.values().filter_map(|lease| lease.share.as_ref()));
        }
    }

    /// Refuses points that `holder` may not see, as if they were not there.
    pub async fn shows(&self, holder: &Holder, points: &[PointId]) -> Result<()> {
        if holder.owner_name().is_none() || points.is_empty() {
            return Ok(());
        }
        let mut seen = HashSet::new();
        for forgotten in [false, true] {
            let listed = self.list(holder, &PointFilter { machine: None, forgotten }).await?;
            seen.extend(listed.into_iter().map(|point| point.id));
        }
        match points.iter().find(|point| !seen.contains(point)) {
            Some(hidden) => Err(Error::not_found(format!("there is no point {hidden}"))),
            None => Ok(()),
        }
    }

    /// Keeps a session under `id`, its name on the wire, and gives the id back.
    pub fn lend(
        &self,
        id: SessionId,
        holder: &Holder,
        place: Place,
        session: Either<R::Session, R::Reader>,
        pins: Vec<PointId>,
        share: Option<Share>,
    ) -> SessionId {
        let used = Mutex::new(Instant::now());
        let lease = Lease { holder: holder.clone(), _place: place, session, pins, share, used };
        self.leases.lock().expect("no holder panics").insert(id, Arc::new(lease));
        id
    }

    /// Takes a session out, to be let go.
    pub fn end(&self, session: SessionId) -> Option<Arc<Lease<R>>> {
        self.leases.lock().expect("no holder panics").remove(&session)
    }
}

impl<R: Repository> Lease<R> {
    pub fn write(&self) -> Result<&R::Session> {
        match &self.session {
            Either::Left(session) => Ok(session),
            Either::Right(_) => Err(Error::usage("this session only reads")),
        }
    }

    pub fn share(&self) -> Result<&Share> {
        self.share.as_ref().ok_or_else(|| Error::usage("this session only reads"))
    }
}
