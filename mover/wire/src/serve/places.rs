//! How many sessions each holder has. A place is taken before a session is opened, because opening leaves a record and
//! takes time. The place is given back when the session has ended.

use mover::{Error, Holder, OwnerId, Result};
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};

/// Who has how many sessions in a repository, with those that are being opened.
#[derive(Debug, Clone, Default)]
pub struct Places(Arc<Mutex<Taken>>);

#[derive(Debug, Default)]
struct Taken {
    by_holder: HashMap<Holder, usize>,
    by_owner: HashMap<OwnerId, usize>,
}

/// One session that is counted; given back when dropped.
#[derive(Debug)]
pub struct Place {
    places: Places,
    holder: Holder,
}

impl Places {
    /// Takes another place for `holder`. All holders with the same owner together may have `most` places.
    ///
    /// # Errors
    /// `Busy`.
    pub fn take(&self, holder: &Holder, most: usize) -> Result<Place> {
        let mut taken = self.0.lock().expect("no holder panics");
        let Taken { by_holder, by_owner } = &mut *taken;
        let (of_it, of_owner) = (by_holder.get(holder).copied(), by_owner.get(&holder.owner_id()).copied());
        let (of_it, of_owner) = (of_it.unwrap_or(0), of_owner.unwrap_or(0));
        if of_it >= SESSIONS_MAX || of_owner >= most {
            let count = of_it.max(of_owner);
            return Err(Error::busy(format!("{holder} has too many open sessions: {count}"))
                .hint("wait until one of its jobs has ended"));
        }
        by_holder.insert(holder.clone(), of_it + 1);
        by_owner.insert(holder.owner_id(), of_owner + 1);
        Ok(Place { places: self.clone(), holder: holder.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock().expect("no holder panics");
        give_back(&mut taken.by_holder, &self.holder);
        give_back(&mut taken.by_owner, &self.holder.owner_id());
    }
}

fn give_back<K: Eq + Hash>(taken: &mut HashMap<K, usize>, of: &K) {
    if let Some(count) = taken.get_mut(of) {
        *count -= 1;
        if *count == 0 {
            taken.remove(of);
        }
    }
}

/// Sessions of one holder.
const SESSIONS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use mover::Role;

    #[test]
    fn places_are_counted_before_they_are_used() {
        let (places, holder) = (Places::default(), Holder::new(Role::Proxy, "a".parse().unwrap()));
        let mut taken: Vec<Place> = (0..SESSIONS_MAX).map(|_| places.take(&holder, usize::MAX).unwrap()).collect();
        assert!(places.take(&holder, usize::MAX).is_err());
        taken.pop();
        taken.push(places.take(&holder, usize::MAX).unwrap());
        drop(taken);
        let cluster = ["a", "b"].map(|name| Holder {
            owner: Some("cluster".parse().unwrap()),
            ..Holder::new(Role::Proxy, name.parse().unwrap())
        });
        let taken = places.take(&cluster[0], 1).unwrap();
        assert!(places.take(&cluster[1], 1).is_err());
        drop(taken);
        let left = places.0.lock().unwrap();
        assert!(left.by_holder.is_empty() && left.by_owner.is_empty());
    }
}
