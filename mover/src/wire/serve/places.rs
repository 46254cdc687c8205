//! How many sessions somebody has: a place is taken before a session is opened, which leaves a record and takes time, and is
//! given back when it has ended.

use crate::identity::Holder;
use crate::{Error, Result};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Who has how many sessions in a repository, with those that are being opened.
#[derive(Debug, Clone, Default)]
pub struct Places(Arc<Mutex<HashMap<Holder, usize>>>);

/// One of them.
#[derive(Debug)]
pub struct Place {
    places: Places,
    holder: Holder,
}

impl Places {
    /// Takes another.
    ///
    /// # Errors
    /// `Busy`.
    pub fn take(&self, holder: &Holder) -> Result<Place> {
        let mut taken = self.0.lock().expect("no holder panics");
        let of_it = taken.entry(holder.clone()).or_default();
        if *of_it >= SESSIONS_MAX {
            return Err(
                Error::busy(format!("{holder} has {SESSIONS_MAX} sessions open")).hint("wait until some jobs end")
            );
        }
        *of_it += 1;
        Ok(Place { places: self.clone(), holder: holder.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock().expect("no holder panics");
        if let Some(of_it) = taken.get_mut(&self.holder) {
            *of_it -= 1;
            if *of_it == 0 {
                taken.remove(&self.holder);
            }
        }
    }
}

/// Sessions of one holder.
const SESSIONS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Role;

    #[test]
    fn places_are_counted_before_they_are_used() {
        let (places, holder) = (Places::default(), Holder::new(Role::Proxy, "a".parse().unwrap()));
        let mut taken: Vec<Place> = (0..SESSIONS_MAX).map(|_| places.take(&holder).unwrap()).collect();
        assert!(places.take(&holder).is_err());
        taken.pop();
        taken.push(places.take(&holder).unwrap());
        drop(taken);
        assert!(places.0.lock().unwrap().is_empty());
    }
}
