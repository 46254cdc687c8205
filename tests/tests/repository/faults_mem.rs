//! Every operation of a repository fails once, before or after it was done: afterwards exactly the acknowledged points
//! are there, each as it was.

use mover::{
    BackupOptions, BackupReport, Error, ErrorKind, Fault, FaultEffect, Mem, PointFilter, PointId, Pool, Progress,
    ReadSession, Repository, Result, Verification, World, backup, copy, restore,
};
use windlass_tests::conformance::options;
use windlass_tests::fake::{Image, Machine, Target, noise};

const EFFECTS: [FaultEffect; 2] = [FaultEffect::Fails(ErrorKind::StoreIo), FaultEffect::AnswerLost];

struct Lab {
    world: World,
    pool: Pool,
    options: BackupOptions,
}

impl Lab {
    fn new() -> Self {
        Self { world: World::system(), pool: Pool::new(2).unwrap(), options: options("web") }
    }

    async fn backup(&self, mem: &Mem, machine: &Machine) -> Result<BackupReport> {
        backup(mem, machine.snapshot(), &self.options, &self.pool, &self.world, &Progress::default()).await
    }

    async fn restore(&self, mem: &Mem, point: PointId, images: &[Image]) -> Result<()> {
        let reader = mem.read(&[point]).await?;
        let keys = chunker::DomainKeys::new(&mem.config().domain);
        for (disk, image) in reader.manifest(point).await?.disks.iter().zip(images) {
            let (target, screen) = Target::new(disk.size);
            let made = restore(&reader, &keys, disk, target, &self.pool, &Progress::default()).await;
            assert_eq!(made.is_ok(), screen.image().is_some(), "a target is finished by success and nothing else");
            made?;
            assert!(screen.image().as_ref() == Some(image), "point {point} is not what it was");
        }
        Ok(())
    }

    /// Exactly these points, each as it was; and nothing is held by anybody.
    async fn assert_holds(&self, mem: &Mem, history: &[(PointId, Vec<Image>)]) {
        assert_eq!(mem.sessions(), 0, "sessions end with their jobs");
        let points: Vec<_> = mem.list(&PointFilter::default()).await.unwrap().iter().map(|point| point.id).collect();
        assert_eq!(points, history.iter().map(|(id, _)| *id).collect::<Vec<_>>());
        for (point, images) in history {
            self.restore(mem, *point, images).await.unwrap();
        }
    }

    fn machine(&self) -> Machine {
        let machine = Machine::new(&self.world, &[3 << 20, (64 << 20) + 1]);
        machine.write(0, 0, &noise(1, 1 << 20));
        machine.write(1, 64 << 20, b"x");
        machine
    }
}

/// Calls `step` with faults later and later until one does not strike any more; gives how many struck.
async fn at_every_operation(mem: &Mem, mut step: impl AsyncFnMut(u64) -> Result<(), Error>) -> u64 {
    for after in 0.. {
        assert!(after < 500, "a job ends");
        for effect in EFFECTS {
            mem.plan(Fault { after, effect });
            let made = step(after).await;
            if mem.calm() {
                made.unwrap();
                return after;
            }
            if let Err(error) = made {
                assert!([ErrorKind::StoreIo, ErrorKind::Transport].contains(&error.kind()), "{error:?}");
            }
        }
    }
    unreachable!()
}

#[tokio::test]
async fn backups() {
    let (lab, mem) = (Lab::new(), Mem::new(&World::system()));
    let machine = lab.machine();
    let mut history = Vec::new();
    let mut seed = 10;
    let struck = at_every_operation(&mem, async |_| {
        seed += 1;
        machine.write(0, seed * 50_000, &noise(seed, 70_000));
        machine.write(1, 64 << 20, &noise(seed, 1));
        let made = lab.backup(&mem, &machine).await;
        let unspent = mem.calm();
        if let Ok(report) = &made {
            history.push((report.point.id, machine.images()));
        }
        lab.assert_holds(&mem, &history).await;
        if unspent {
            // For the caller to see that nothing struck.
            mem.plan(Fault { after: u64::MAX, effect: FaultEffect::AnswerLost });
        }
        made.map(|_| ())
    })
    .await;
    assert!(struck > 15, "{struck} operations");
    assert!(history.len() > 1);
}

#[tokio::test]
async fn restores() {
    let (lab, mem) = (Lab::new(), Mem::new(&World::system()));
    let machine = lab.machine();
    let point = lab.backup(&mem, &machine).await.unwrap().point.id;
    let images = machine.images();
    let struck = at_every_operation(&mem, async |_| lab.restore(&mem, point, &images).await).await;
    assert!(struck >= 5, "{struck} operations");
    lab.assert_holds(&mem, &[(point, images)]).await;
}

#[tokio::test]
async fn copies() {
    let lab = Lab::new();
    let from = Mem::new(&lab.world);
    let machine = lab.machine();
    let first = lab.backup(&from, &machine).await.unwrap().point;
    let mut history = vec![(first.id, machine.images())];
    machine.write(0, 70_000, &noise(5, 200_000));
    let second = lab.backup(&from, &machine).await.unwrap().point;
    history.push((second.id, machine.images()));
    for faulty_source in [false, true] {
        for after in 0.. {
            let mut struck = false;
            for effect in EFFECTS {
                let to = Mem::in_domain(&lab.world, from.config().domain.clone());
                let faulty = if faulty_source { &from } else { &to };
                let once = async |point| copy(&from, &to, point, Verification::Decode, &Progress::default()).await;
                once(&first).await.unwrap();
                faulty.plan(Fault { after, effect });
                let made = once(&second).await;
                let missed = faulty.calm();
                struck |= !missed;
                assert!(made.is_ok() || !missed, "{made:?}");
                // An answer that was lost after the commit leaves the point; nothing else does.
                let there = to.list(&PointFilter::default()).await.unwrap().len();
                assert!(there == 2 || made.is_err());
                lab.assert_holds(&to, &history[..there]).await;
                once(&second).await.unwrap();
                lab.assert_holds(&to, &history).await;
            }
            if !struck {
                assert!(after > if faulty_source { 5 } else { 10 }, "{after} operations");
                break;
            }
        }
    }
    lab.assert_holds(&from, &history).await;
}
