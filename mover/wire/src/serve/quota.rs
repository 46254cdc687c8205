//! How much an owner may have in a repository: a stolen proxy fills no more than its share.
//!
//! The node counts the bytes that it measured itself: those that the owner's sessions added to the packs. It counts
//! them for all points that are there, also for forgotten ones until they are swept. For a session that came to nothing
//! it counts them until the next sweep.

use mover::Holder;
use mover::{Error, Name, OwnerId, RecoveryPoint, Result};
use std::collections::HashMap;
use std::sync::Mutex;

/// What an owner may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Bytes that its sessions may have added to the packs. The last put may go beyond.
    pub bytes: u64,
    /// Points, without forgotten ones.
    pub points: u64,
    /// Sessions at a time.
    pub sessions: usize,
}

impl Quota {
    /// No limit.
    pub const NONE: Self = Self { bytes: u64::MAX, points: u64::MAX, sessions: usize::MAX };
}

/// The quotas of a repository, and what is used of them.
#[derive(Debug)]
pub struct Quotas {
    named: HashMap<OwnerId, Quota>,
    others: Quota,
    /// Bytes of sessions that are under way, or came to nothing since the last sweep.
    loose: Mutex<HashMap<OwnerId, u64>>,
}

impl Default for Quotas {
    fn default() -> Self {
        Self::new(HashMap::new(), Quota::NONE)
    }
}

/// What a session has to keep to.
#[derive(Debug)]
pub struct Share {
    owner: OwnerId,
    quota: Quota,
    /// Bytes of the owner's points when the session began.
    used: u64,
    /// Bytes of the session that are counted as loose.
    counted: Mutex<u64>,
}

impl Quotas {
    /// The quotas of the `named` owners, and the quota of each other owner.
    pub fn new(named: HashMap<Name, Quota>, others: Quota) -> Self {
        let named = named.iter().map(|(name, quota)| (OwnerId::of(name), *quota)).collect();
        Self { named, others, loose: Mutex::default() }
    }

    /// The quota of the owner of `holder`. Administrators have no limit.
    pub fn of(&self, holder: &Holder) -> Quota {
        match holder.owner_name() {
            Some(name) => self.named.get(&OwnerId::of(name)).copied().unwrap_or(self.others),
            None => Quota::NONE,
        }
    }

    /// Begins to count for a session of `holder`. `points` are all of its owner.
    ///
    /// # Errors
    /// `StoreFull` when there is nothing left.
    pub fn begin(&self, holder: &Holder, points: &[RecoveryPoint]) -> Result<Share> {
        let used = points.iter().fold(0, |sum: u64, point| sum.saturating_add(point.bytes_stored));
        let share = Share { owner: holder.owner_id(), quota: self.of(holder), used, counted: Mutex::default() };
        self.check(&share, holder)?;
        points_left(&share.quota, holder, points, 1)?;
        Ok(share)
    }

    /// Whether a session may add more.
    ///
    /// # Errors
    /// `StoreFull`.
    pub fn check(&self, share: &Share, holder: &Holder) -> Result<()> {
        let loose = self.loose.lock().expect("no holder panics").get(&share.owner).copied().unwrap_or(0);
        let (used, bytes) = (share.used.saturating_add(loose), share.quota.bytes);
        if used < bytes {
            return Ok(());
        }
        let what =
            format!("the owner of {holder} has used {used} bytes of this repository, and its quota is {bytes} bytes");
        Err(Error::store_full(what)
            .hint("forget points of this owner and sweep, or raise the quota in windlass-store.toml"))
    }

    /// Whether `new` more points may be committed, in addition to `points`.
    ///
    /// # Errors
    /// `StoreFull`.
    pub fn check_points(&self, holder: &Holder, points: &[RecoveryPoint], new: u64) -> Result<()> {
        points_left(&self.of(holder), holder, points, new)
    }

    /// Counts what a session has stored so far.
    pub fn count(&self, share: &Share, stored: u64) {
        let mut counted = share.counted.lock().expect("no holder panics");
        let more = stored.saturating_sub(*counted);
        *counted += more;
        *self.loose.lock().expect("no holder panics").entry(share.owner).or_default() += more;
    }

    /// What a session stored belongs to a point now.
    pub fn committed(&self, share: &Share) {
        let counted = std::mem::take(&mut *share.counted.lock().expect("no holder panics"));
        if let Some(loose) = self.loose.lock().expect("no holder panics").get_mut(&share.owner) {
            *loose = loose.saturating_sub(counted);
        }
    }

    /// Forgets the bytes of sessions that came to nothing, because a sweep has removed them. Those of the sessions
    /// `under_way` still count.
    pub fn swept<'a>(&self, under_way: impl Iterator<Item = &'a Share>) {
        let mut left: HashMap<OwnerId, u64> = HashMap::new();
        for share in under_way {
            *left.entry(share.owner).or_default() += *share.counted.lock().expect("no holder panics");
        }
        *self.loose.lock().expect("no holder panics") = left;
    }
}

fn points_left(quota: &Quota, holder: &Holder, points: &[RecoveryPoint], new: u64) -> Result<()> {
    let there = points.iter().filter(|point| !point.forgotten).count() as u64;
    if there.saturating_add(new) <= quota.points {
        return Ok(());
    }
    let what =
        format!("the owner of {holder} has used its quota of points in this repository: {there} of {}", quota.points);
    Err(Error::store_full(what).hint("forget points of this owner, or raise the quota in windlass-store.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mover::{ErrorKind, Role};

    fn quota(bytes: u64) -> Quota {
        Quota { bytes, ..Quota::NONE }
    }

    #[test]
    fn what_came_to_nothing_counts_until_it_is_swept() {
        let (a, b): (Name, Name) = ("a".parse().unwrap(), "b".parse().unwrap());
        let quotas = Quotas::new(HashMap::from([(a.clone(), quota(100))]), quota(10));
        let (a, b) = (Holder::new(Role::Proxy, a), Holder::new(Role::Proxy, b));
        assert_eq!((quotas.of(&a), quotas.of(&b)), (quota(100), quota(10)));
        assert_eq!(quotas.of(&Holder::new(Role::Admin, "a".parse().unwrap())), Quota::NONE);
        let first = quotas.begin(&a, &[]).unwrap();
        quotas.count(&first, 60);
        quotas.count(&first, 60);
        let second = quotas.begin(&a, &[]).unwrap();
        quotas.count(&second, 50);
        assert_eq!(quotas.check(&first, &a).unwrap_err().kind(), ErrorKind::StoreFull);
        quotas.begin(&b, &[]).unwrap();
        // The first is a point now, and counts as such to whoever begins later.
        quotas.committed(&first);
        quotas.check(&second, &a).unwrap();
        let third = quotas.begin(&a, &[]).unwrap();
        quotas.count(&third, 60);
        quotas.check(&third, &a).unwrap_err();
        quotas.swept([&third].into_iter());
        quotas.check(&third, &a).unwrap();
    }
}
