//! F33.

use crate::case::sweep;
use chunker::{ChunkKind, Compression, DomainKeys};
use mover::{
    Begin, Clock, ErrorKind, PointChange, PointId, Pool, Presence, Random, Repository, SystemRandom, Timestamp,
    Verification, World, WriteSession, with_compressor,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use store::{Access, Local};
use windlass_tests::fake::{Machine, noise};
use windlass_tests::kept::{Bench, folder, points};

const BLOCK: u64 = 64 << 10;

struct Jumping(AtomicI64);

impl Clock for Jumping {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.fetch_add(1_000_000, Relaxed))
    }
}

/// kopia, <https://github.com/kopia/kopia/issues/4769>, <https://github.com/kopia/kopia/issues/1949>: maintenance goes by
/// clocks; where they are wrong it deletes what a backup is just writing.
///
/// No clock decides what may be deleted: sessions are told apart by records of the log (`droppable`,
/// `Inner::may_be_doomed`), none is ended for its age but by an administrator who says so, or when its process has begun
/// another term (`Inner::begin_sweep`), and rules refuse to go by a clock in doubt (`clock_doubt`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f33_no_clock_decides_what_is_deleted() {
    for days in [-4_000, -1, 0, 1, 8, 4_000] {
        let clock = Arc::new(Jumping(AtomicI64::new(1_750_000_000_000_000_000)));
        let random: Arc<dyn Random> = Arc::new(SystemRandom);
        let bench = Bench { world: World::new(clock.clone(), random), pool: Pool::new(2).unwrap() };
        let kept = folder();
        Local::init(kept.path(), None, &bench.world).unwrap();
        let local = bench.open(kept.path(), Access::Write).await.unwrap();
        let machine = Machine::new(&bench.world, &[20 * BLOCK]);
        machine.write(0, 0, &noise(1, 10 * BLOCK));
        let old = bench.backup(&local, &machine).await.unwrap().point.id;
        let then = machine.images();
        // Another process reads the old point, and a backup has stored its first chunk.
        let reader = bench.open(kept.path(), Access::Read).await.unwrap();
        let reading = reader.read(&[old]).await.unwrap();
        let (point, verification) = (PointId::random(&bench.world), Verification::Decode);
        let begin = Begin { point, parents: Vec::new(), holder: None, verification };
        let (writing, _) = local.begin(begin).await.unwrap();
        let plain = noise(7, BLOCK);
        let id = DomainKeys::new(&local.config().domain).id(ChunkKind::Data, &plain);
        let blob = with_compressor(Compression::None, |compressor| compressor.compress(ChunkKind::Data, &plain));
        writing.put(vec![(id, blob)]).await.unwrap();
        writing.flush().await.unwrap();

        machine.write(0, 0, &noise(2, 10 * BLOCK));
        let new = bench.backup(&local, &machine).await.unwrap().point.id;
        clock.0.fetch_add(days * 86_400_000_000_000, Relaxed);
        let by_rules = local.change_points(&[old], PointChange::ForgetByRules).await;
        match days {
            0 => by_rules.unwrap(),
            _ => {
                assert_eq!(by_rules.unwrap_err().kind(), ErrorKind::Usage, "{days} days");
                local.change_points(&[old], PointChange::Forget).await.unwrap();
            }
        }
        for _ in 0..2 {
            let swept = sweep(&local).await;
            assert_eq!((swept.points_final, swept.packs_deleted), (0, 0), "{days} days: it is being read");
        }
        bench.restore_from(&reading, reader.config(), old, &then).await.unwrap();
        assert_eq!(writing.missing(ChunkKind::Data, &[id]).await.unwrap(), [Presence::Have], "{days} days");
        drop((reading, writing));
        let swept = sweep(&local).await;
        assert!(swept.points_final == 1 && swept.packs_deleted > 0, "{days} days: {swept:?}");
        assert_eq!(points(&local).await.iter().map(|point| point.id).collect::<Vec<_>>(), [new]);
        bench.restore(&local, new, &machine.images()).await.unwrap();
        local.close().await.unwrap();
    }
}
