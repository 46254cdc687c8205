//! What else a sweep meets, and the looks that make up for what should not have happened.

use crate::case::{Case, OF_A_SWEEP, OLD, at_every_operation, eager, sweep};
use chunker::{ChunkKind, DomainKeys};
use mover::{Depth, ErrorKind, PointChange, Repository, SweepOptions};
use std::cell::OnceCell;
use std::sync::Arc;
use store::format::event::{Doomed, Event};
use store::{Access, Local};
use windlass_tests::around::Around;
use windlass_tests::fake::{Machine, noise};
use windlass_tests::kept::{Bench, Frozen, append, damage, folder, footers, pack_path, replay, stored};

const BLOCK: u64 = 64 << 10;

/// R11: a point that comes back in the middle of a sweep is back with all that it needs, or it was too late
/// (`is_just_what_is_forgotten`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r11_a_point_comes_back_in_the_middle_of_a_sweep() {
    let forgotten = async || {
        let case = Case::new(&[]).await;
        case.forget(OLD).await;
        (case, ())
    };
    let sweeps = async |case: &Case, (): &()| _ = case.sweep().await;
    let back = async |case: &Case, (): &()| match case.lab.repository.change_points(&[OLD], PointChange::Unforget).await
    {
        Ok(()) => case.stays(OLD),
        Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error}"),
    };
    let operations = at_every_operation(("unforgotten", OF_A_SWEEP), forgotten, sweeps, back, async |_, _| {}).await;
    assert!(operations > 40, "{operations}");
}

/// R10: who begins to read a forgotten point in the middle of a sweep can read it to its end, or was too late
/// (`is_pinned`, `State::check_doomed`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r10_a_reader_comes_in_the_middle_of_a_sweep() {
    let forgotten = async || {
        let case = Case::new(&[]).await;
        case.forget(OLD).await;
        (case, OnceCell::new())
    };
    let sweeps = async |case: &Case, _: &OnceCell<store::Reader>| _ = case.sweep().await;
    let reads = async |case: &Case, reader: &OnceCell<store::Reader>| match case.lab.repository.read(&[OLD]).await {
        Ok(opened) => assert!(reader.set(opened).is_ok()),
        Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error}"),
    };
    let then = async |case: &Case, reader: &OnceCell<store::Reader>| {
        if let Some(reader) = reader.get() {
            case.sweep().await;
            case.lab.assert_reader_restores(reader, OLD, &[case.image(OLD)]).await;
        }
    };
    let operations = at_every_operation(("read", OF_A_SWEEP), forgotten, sweeps, reads, then).await;
    assert!(operations > 40, "{operations}");
}

/// A repository of one point, closed.
async fn one_point(bench: &Bench) -> (tempfile::TempDir, Machine, mover::PointId) {
    let kept = folder();
    Local::init(kept.path(), None, &bench.world).unwrap();
    let machine = Machine::new(&bench.world, &[20 * BLOCK]);
    machine.write(0, 0, &noise(1, 10 * BLOCK));
    let local = bench.open(kept.path(), Access::Write).await.unwrap();
    let point = bench.backup(&local, &machine).await.unwrap().point.id;
    local.close().await.unwrap();
    (kept, machine, point)
}

/// R19: whatever the counts said when packs were doomed, before they are deleted all that points need is looked at
/// (`Inner::second_look`). What they hold is packed again then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r19_what_was_doomed_by_mistake_is_packed_again() {
    let bench = Bench::new();
    let (kept, machine, point) = one_point(&bench).await;
    let state = replay(kept.path());
    let (token, marked) = ([9; 16], state.end().sequence);
    let packs: Vec<_> = state.packs().values().map(|pack| pack.added.name).collect();
    assert!(packs.len() > 1, "of data and of pages");
    let doomed = Doomed { token, marked, marked_too: Vec::new(), packs, finalised: Vec::new() };
    append(kept.path(), &bench.world, vec![Event::SweepBegun(token), Event::Doomed(doomed)]);
    assert!(replay(kept.path()).packs().values().all(|pack| pack.doomed.is_some()), "the log believes it");

    let local = bench.open(kept.path(), Access::Write).await.unwrap();
    bench.restore(&local, point, &machine.images()).await.unwrap();
    sweep(&local).await;
    bench.assert_holds(&local, &vec![(point, machine.images())]).await;
    let report = bench.verify(&local, Depth::Decode).await;
    assert!(report.errors.is_empty(), "{report:?}");
    local.close().await.unwrap();
    assert!(replay(kept.path()).packs().values().all(|pack| pack.doomed.is_none()));
    assert!(stored(kept.path()).values().all(|times| *times == 1));
}

/// R10: who reads without a session, because it cannot write, looks again where a pack was dropped: what was needed of it is
/// in another one by now (`was_dropped` in `reader`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r10_who_cannot_write_finds_what_a_sweep_has_packed_again() {
    let bench = Bench::new();
    let (kept, machine, first) = one_point(&bench).await;
    machine.write(0, 3 * BLOCK, &noise(2, 3 * BLOCK));
    let local = bench.open(kept.path(), Access::Write).await.unwrap();
    let point = bench.backup(&local, &machine).await.unwrap().point.id;
    let frozen = bench.open_with(kept.path(), Access::Read, Arc::new(Around(Frozen))).await.unwrap();
    let reader = frozen.read(&[point]).await.unwrap();
    local.change_points(&[first], PointChange::Forget).await.unwrap();
    let swept = sweep(&local).await;
    assert!(swept.packs_deleted > 0 && swept.bytes_repacked > 6 * BLOCK, "{swept:?}");
    bench.restore_from(&reader, frozen.config(), point, &machine.images()).await.unwrap();
    // What is gone is told to be missing, not to be damaged.
    let gone = frozen.read(&[first]).await.err().unwrap();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    assert_eq!(frozen.wanted(None).await.unwrap(), []);
    local.close().await.unwrap();
}

/// A pack of which something is needed that is damaged, and nowhere sound, is left as it is: what else is in it is not packed
/// again by each sweep, and nobody is told that it will go (`Looked::held`). When the chunk has been brought again it goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_needed_and_damaged_keeps_its_pack() {
    let bench = Bench::new();
    let (kept, machine, first) = one_point(&bench).await;
    let block = noise(1, BLOCK);
    machine.write(0, 5 * BLOCK, &noise(2, 5 * BLOCK));
    let local = bench.open(kept.path(), Access::Write).await.unwrap();
    let point = bench.backup(&local, &machine).await.unwrap().point.id;
    local.change_points(&[first], PointChange::Forget).await.unwrap();
    let id = DomainKeys::new(&local.config().domain).id(ChunkKind::Data, &block);
    damage(kept.path(), id);
    let found = bench.verify(&local, Depth::Decode).await.errors;
    assert!(found.iter().any(|error| error.chunk == Some(id)), "{found:?}");
    let pack = |id| footers(kept.path()).into_iter().find(|(_, entries)| entries.iter().any(|entry| entry.id == id));
    let (name, _) = pack(id).unwrap();
    let would = local.sweep(SweepOptions { dry_run: true, ..eager() }, Arc::default()).await.unwrap();
    for _ in 0..2 {
        let swept = sweep(&local).await;
        assert!(swept.bytes_repacked == 0 && pack_path(kept.path(), &name).exists(), "{swept:?}");
        assert!(would.packs_deleted >= swept.packs_deleted && would.bytes_repacked == 0, "{would:?} {swept:?}");
        assert!(stored(kept.path()).values().all(|times| *times == 1));
    }
    let again = bench.backup(&local, &machine).await.unwrap().point.id;
    let swept = sweep(&local).await;
    assert!(swept.bytes_repacked > 0 && !pack_path(kept.path(), &name).exists(), "{swept:?}");
    bench.assert_holds(&local, &vec![(point, machine.images()), (again, machine.images())]).await;
    assert!(stored(kept.path()).values().all(|times| *times == 1));
    local.close().await.unwrap();
}
