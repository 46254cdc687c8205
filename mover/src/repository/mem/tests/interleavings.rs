//! Two backups, a reader and a sweep at the same time, in orders that shuttle chooses: anew at each lock, and by few changes
//! of priority (PCT). `WINDLASS_SHUTTLE_SCHEDULES` says how many orders are tried; one that fails is printed, and
//! `shuttle::replay` takes it.

use super::*;
use shuttle::future::{block_on, spawn};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::sync::atomic::{AtomicBool, Ordering};
use shuttle::{Config, Runner};
use std::cell::Cell;

thread_local! {
    /// The other tests are not shuttle's.
    static CHOOSES: Cell<bool> = const { Cell::new(false) };
}

/// Called before the state is locked. Jobs take turns in one thread, so the lock itself is always free.
pub fn others_may_come_first() {
    if CHOOSES.get() {
        AtomicBool::new(true).load(Ordering::SeqCst);
    }
}

impl Lab {
    /// Backs up as a client does: asks, puts what is missing, and what a refused commit lists.
    async fn backup(&self, point: u8, blocks: [u8; 2]) {
        let session = self.session(&[]).await;
        let ids = blocks.map(|byte| self.data(byte).0);
        let told = session.missing(ChunkKind::Data, &ids).await.unwrap();
        let missing = blocks.into_iter().zip(told).filter(|(_, told)| *told == Presence::Missing);
        session.put(missing.map(|(byte, _)| self.data(byte)).collect()).await.unwrap();
        let mut draft = self.draft(&session, point, &blocks).await;
        while let Commit::Missing(ids) = session.commit(std::slice::from_ref(&draft)).await.unwrap() {
            let listed = blocks.map(|byte| self.data(byte)).into_iter().filter(|(id, _)| ids.contains(id));
            session.put(listed.collect()).await.unwrap();
            draft = self.draft(&session, point, &blocks).await;
        }
    }

    async fn assert_reads(&self, reader: &MemReader, blocks: [u8; 2]) {
        let ids = blocks.map(|byte| self.data(byte).0).to_vec();
        let read = reader.get(ids.clone()).concat().await;
        assert!(read.len() == 2 && read.iter().all(|(_, blob)| blob.is_ok()), "{read:?}");
        let state = self.mem.state();
        assert!(ids.iter().all(|id| state.shape(id).is_some()), "what is pinned is not doomed");
    }
}

fn at_the_same_time() {
    block_on(async {
        let lab = Arc::new(Lab::new());
        let old = lab.commit(1, &[1, 2]).await.id;
        let backups = [(2, [1, 3]), (3, [2, 3])].map(|(point, blocks)| {
            let lab = lab.clone();
            spawn(async move { lab.backup(point, blocks).await })
        });
        let reads = lab.clone();
        let reads = spawn(async move {
            // The point may be final already.
            if let Ok(reader) = reads.mem.read(&[old]).await {
                reads.assert_reads(&reader, [1, 2]).await;
            }
        });
        let sweeps = lab.clone();
        let sweeps = spawn(async move {
            sweeps.mem.change_points(&[old], PointChange::Forget).await.unwrap();
            for _ in 0..2 {
                sweeps.mem.sweep(SweepOptions::default(), Arc::default()).await.unwrap();
            }
        });
        for job in backups.into_iter().chain([reads, sweeps]) {
            job.await.unwrap();
        }
        for _ in 0..2 {
            lab.mem.sweep(SweepOptions::default(), Arc::default()).await.unwrap();
        }
        for (point, blocks) in [(2, [1, 3]), (3, [2, 3])] {
            let reader = lab.mem.read(&[PointId([point; 16])]).await.unwrap();
            lab.assert_reads(&reader, blocks).await;
        }
        assert_eq!(lab.mem.chunks().len(), 3 + 2 + 2, "blocks, pages, manifests");
    });
}

#[test]
fn whatever_the_order_nothing_is_lost() {
    let schedules = std::env::var("WINDLASS_SHUTTLE_SCHEDULES").ok().and_then(|text| text.parse().ok());
    let schedules: usize = schedules.unwrap_or(3_000);
    let config = || {
        let mut config = Config::new();
        // zstd and BLAKE3 take more than the usual.
        config.stack_size = 1 << 20;
        config
    };
    CHOOSES.set(true);
    Runner::new(RandomScheduler::new(schedules), config()).run(at_the_same_time);
    Runner::new(PctScheduler::new(3, schedules), config()).run(at_the_same_time);
    CHOOSES.set(false);
    println!("total: {} orders", 2 * schedules);
}
