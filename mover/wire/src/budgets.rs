//! Budgets: amounts that holders share, so that nobody can use one up alone.

use mover::Holder;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;

/// An amount that holders share. A holder may not have more of it than stays free for others. So one holder alone may
/// have half, two a third each, and the next holder finds as much free as each of the others has. A holder that has
/// nothing may take less than a quarter of the whole amount, even when less than that stays free.
#[derive(Debug)]
pub struct Budget {
    total: usize,
    /// Most that one holder may have, however much is free.
    each_max: usize,
    shares: Mutex<Shares>,
    /// Something was given back.
    freed: Notify,
}

#[derive(Debug)]
struct Shares {
    free: usize,
    /// Those who have no certificate are one holder together.
    of: HashMap<Option<Holder>, usize>,
}

/// What somebody has of a budget; given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    holder: Option<Holder>,
    amount: usize,
}

impl Budget {
    /// A budget of this amount.
    pub fn new(total: usize) -> Arc<Self> {
        Self::with_each(total, total)
    }

    /// A budget of `total`, of which each holder may have at most `each_max`.
    pub fn with_each(total: usize, each_max: usize) -> Arc<Self> {
        let shares = Mutex::new(Shares { free: total, of: HashMap::new() });
        Arc::new(Self { total, each_max, shares, freed: Notify::new() })
    }

    /// A share of `holder`, or of those who have no certificate, empty yet.
    pub fn share(self: &Arc<Self>, holder: Option<&Holder>) -> Share {
        Share { budget: self.clone(), holder: holder.cloned(), amount: 0 }
    }

    /// Everybody who has something of it.
    pub fn holders(&self) -> Vec<Holder> {
        self.shares.lock().expect("no holder panics").of.keys().flatten().cloned().collect()
    }
}

impl Share {
    /// Amount that the share has now.
    pub const fn amount(&self) -> usize {
        self.amount
    }

    /// Takes `amount` more, if so much is free and the holder may have it. Returns whether it did.
    pub fn grow(&mut self, amount: usize) -> bool {
        let mut shares = self.budget.shares.lock().expect("no holder panics");
        let held = shares.of.get(&self.holder).copied().unwrap_or_default();
        let Some(left) = shares.free.checked_sub(amount) else { return false };
        let begins = held == 0 && amount * 4 < self.budget.total;
        if held + amount > self.budget.each_max || !begins && held + amount > left {
            return false;
        }
        shares.free = left;
        if amount > 0 {
            *shares.of.entry(self.holder.clone()).or_default() += amount;
        }
        self.amount += amount;
        true
    }

    /// Takes `amount` more as soon as that is possible; false when it was not possible for `patience`.
    pub async fn wait(&mut self, amount: usize, patience: Duration) -> bool {
        let budget = self.budget.clone();
        let taken = async {
            loop {
                let freed = budget.freed.notified();
                futures::pin_mut!(freed);
                // What is given back between the look and the wait counts.
                freed.as_mut().enable();
                if self.grow(amount) {
                    return;
                }
                freed.await;
            }
        };
        tokio::time::timeout(patience, taken).await.is_ok()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.amount == 0 {
            return;
        }
        let mut shares = self.budget.shares.lock().expect("no holder panics");
        shares.free += self.amount;
        if let Some(held) = shares.of.get_mut(&self.holder) {
            *held -= self.amount;
            if *held == 0 {
                shares.of.remove(&self.holder);
            }
        }
        drop(shares);
        self.budget.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mover::Role;

    fn holder(name: &str) -> Holder {
        Holder::new(Role::Proxy, name.parse().unwrap())
    }

    /// Takes as much as it gets, one by one.
    fn greedy(budget: &Arc<Budget>, name: &str) -> Share {
        let mut share = budget.share(Some(&holder(name)));
        while share.grow(1) {}
        share
    }

    #[test]
    fn nobody_has_more_than_is_left_for_others() {
        let budget = Budget::new(96);
        let shares: Vec<Share> = ["a", "b", "c"].map(|name| greedy(&budget, name)).into();
        assert_eq!(shares.iter().map(Share::amount).collect::<Vec<_>>(), [48, 24, 12]);
        assert!(!budget.share(Some(&holder("a"))).grow(1), "another connection of the same holder does not help");
        let mut late = budget.share(Some(&holder("d")));
        assert!(late.grow(12) && !late.grow(1), "who has nothing gets what is left");
        drop(shares);
        assert!(late.grow(36) && !late.grow(1));
        drop(late);
        assert!(budget.holders().is_empty() && budget.shares.lock().unwrap().free == 96, "all was given back");
    }

    #[test]
    fn a_holder_has_a_limit_of_its_own() {
        let budget = Budget::with_each(256, 48);
        assert_eq!((greedy(&budget, "a").amount(), greedy(&budget, "b").amount()), (48, 48));
        assert!(!budget.share(Some(&holder("c"))).grow(257), "more than there is");
        let room = Budget::new(80);
        assert!(!room.share(Some(&holder("a"))).grow(41), "more than a half");
    }

    #[tokio::test]
    async fn who_waits_gets_what_is_given_back() {
        let budget = Budget::new(8);
        let (first, mut second) = (greedy(&budget, "a"), budget.share(Some(&holder("b"))));
        assert!(!second.grow(4) && second.grow(1));
        let mut third = budget.share(Some(&holder("c")));
        assert!(!third.wait(2, Duration::from_millis(1)).await && third.amount() == 0);
        let waiting = tokio::spawn(async move { third.wait(2, Duration::from_secs(60)).await });
        tokio::task::yield_now().await;
        drop(first);
        assert!(waiting.await.unwrap());
    }
}
