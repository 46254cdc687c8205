//! An index that fails while it is used: work goes on, and another one is made.

use mover::{Depth, Repository};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;
use store::{Access, Local};
use windlass_tests::fake::{Machine, noise};
use windlass_tests::kept::{Bench, History, files, folder};

const BLOCK: u64 = 64 << 10;

/// A repository with two points of a machine, closed: all of its index is in files.
async fn two_points(bench: &Bench, folder: &Path) -> (Machine, History) {
    Local::init(folder, None, &bench.world).unwrap();
    let machine = Machine::new(&bench.world, &[600 * BLOCK]);
    let mut history = History::new();
    for round in 0..2 {
        machine.write(0, 200 * round * BLOCK, &noise(round, 300 * BLOCK));
        let local = bench.open(folder, Access::Write).await.unwrap();
        history.push((bench.backup(&local, &machine).await.unwrap().point.id, machine.images()));
        local.close().await.unwrap();
    }
    (machine, history)
}

/// Turns over a bit in every few bytes of the tables, in place: who has them open reads that.
fn rot(folder: &Path) {
    let index = folder.join("index");
    let tables: Vec<_> = files(&index).into_iter().filter(|it| it.extension().is_some_and(|it| it == "sst")).collect();
    assert!(!tables.is_empty());
    for table in tables {
        let path = index.join(table);
        let bytes: Vec<u8> =
            fs::read(&path).unwrap().iter().enumerate().map(|(at, it)| it ^ u8::from(at % 16 == 7)).collect();
        fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&bytes, 0).unwrap();
    }
}

/// Waits until there is another index than `old`.
async fn made_again(folder: &Path, old: u64) {
    for _ in 0..2000 {
        if fs::metadata(folder.join("index")).is_ok_and(|now| now.ino() != old) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no index was made");
}

fn inode(folder: &Path) -> u64 {
    fs::metadata(folder.join("index")).unwrap().ino()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restores_go_on_and_backups_store_nothing_twice() {
    let (bench, folder) = (Bench::new(), folder());
    let (machine, mut history) = two_points(&bench, folder.path()).await;
    let old = inode(folder.path());
    let local = bench.open(folder.path(), Access::Write).await.unwrap();
    let reader = bench.open(folder.path(), Access::Read).await.unwrap();
    rot(folder.path());
    bench.assert_holds(&local, &history).await;
    bench.assert_holds(&reader, &history).await;
    let again = bench.backup(&local, &machine).await.unwrap();
    assert_eq!(again.chunks_new, 0);
    history.push((again.point.id, machine.images()));
    made_again(folder.path(), old).await;
    machine.write(0, 0, &noise(9, 5 * BLOCK));
    let more = bench.backup(&local, &machine).await.unwrap();
    assert_eq!(more.chunks_new, 5);
    history.push((more.point.id, machine.images()));
    bench.assert_holds(&local, &history).await;
    bench.assert_holds(&reader, &history).await;
    let report = bench.verify(&local, Depth::Decode).await;
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    reader.close().await.unwrap();
    local.close().await.unwrap();
    // What was made is whole: nothing is added to it when it is opened.
    let local = bench.reopen(folder.path()).await.unwrap();
    assert_eq!(bench.backup(&local, &machine).await.unwrap().chunks_new, 0);
    local.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_cannot_be_written_costs_no_commit() {
    let (bench, folder) = (Bench::new(), folder());
    let (machine, mut history) = two_points(&bench, folder.path()).await;
    let old = inode(folder.path());
    let local = bench.open(folder.path(), Access::Write).await.unwrap();
    fs::remove_dir_all(folder.path().join("index")).unwrap();
    for round in 0..3 {
        machine.write(0, round * BLOCK, &noise(20 + round, 3 * BLOCK));
        history.push((bench.backup(&local, &machine).await.unwrap().point.id, machine.images()));
    }
    // Closing has it made last, which fails: nobody's loss.
    local.close().await.unwrap();
    let local = bench.reopen(folder.path()).await.unwrap();
    bench.assert_holds(&local, &history).await;
    assert!(inode(folder.path()) != old);
    assert_eq!(bench.backup(&local, &machine).await.unwrap().chunks_new, 0);
    let stats = local.stats().await.unwrap();
    assert_eq!(stats.points, 6);
    local.close().await.unwrap();
}
