//! Several at once.

use super::kit::{BLOCK, Fixture, LEAF, Lab, committed};
use crate::fake::{Machine, noise};
use chunker::ChunkKind;
use futures::future::join_all;
use mover::{Commit, PointId, Presence, Repository, WriteSession};

pub async fn a_chunk_of_another_session_is_waited_for<F: Fixture>(lab: Lab<F>) {
    // R18: one session puts, the other relies on it.
    let (putter, point) = (lab.session().await, PointId::random(&lab.world));
    let asker = lab.session_of(point, &[]).await;
    let (id, blob) = lab.block(1);
    putter.put(vec![(id, blob.clone())]).await.unwrap();
    let told = asker.missing(ChunkKind::Data, &[id]).await.unwrap();
    // Where the put is still on its way it is not seen; then the duplicate is dropped.
    if told == [Presence::Missing] {
        asker.put(vec![(id, blob)]).await.unwrap();
    }
    let (root, pages) = lab.map(&[(0, id)]).await;
    asker.put(pages).await.unwrap();
    tokio::try_join!(asker.flush(), putter.flush()).unwrap();
    committed(asker.commit(&[lab.draft(point, root)]).await.unwrap());
    drop((asker, putter));
    let lab = lab.reopened().await;
    lab.assert_restores(point, &[lab.image(&[(0, 1)])]).await;
    assert_eq!(lab.repository.stats().await.unwrap().chunks, 4, "the block, two pages, the manifest");
}

pub async fn what_another_session_stored_meanwhile_is_stored_once<F: Fixture>(lab: Lab<F>) {
    let (first, second) = (PointId::random(&lab.world), PointId::random(&lab.world));
    let (slow, quick) = (lab.session_of(first, &[]).await, lab.session_of(second, &[]).await);
    let (id, blob) = lab.block(1);
    assert_eq!(slow.missing(ChunkKind::Data, &[id]).await.unwrap(), [Presence::Missing]);
    let (root, pages) = lab.map(&[(0, id)]).await;
    for (session, point) in [(&quick, second), (&slow, first)] {
        session.put(vec![(id, blob.clone())]).await.unwrap();
        session.put(pages.clone()).await.unwrap();
        session.flush().await.unwrap();
        committed(session.commit(&[lab.draft(point, root)]).await.unwrap());
    }
    assert_eq!(lab.repository.stats().await.unwrap().chunks, 5, "the block, two pages, two manifests");
}

pub async fn a_putter_that_goes_away_takes_nobody_along<F: Fixture>(lab: Lab<F>) {
    let point = PointId::random(&lab.world);
    let asker = lab.session_of(point, &[]).await;
    let (id, blob) = lab.block(1);
    let putter = lab.session().await;
    putter.put(vec![(id, blob.clone())]).await.unwrap();
    let told = asker.missing(ChunkKind::Data, &[id]).await.unwrap();
    if told == [Presence::Missing] {
        asker.put(vec![(id, blob.clone())]).await.unwrap();
    }
    drop(putter);
    let (root, pages) = lab.map(&[(0, id)]).await;
    let outcome = async {
        asker.put(pages).await?;
        asker.flush().await?;
        if let Commit::Missing(ids) = asker.commit(&[lab.draft(point, root)]).await? {
            assert_eq!(ids, [id]);
            asker.put(vec![(id, blob)]).await?;
            asker.flush().await?;
            committed(asker.commit(&[lab.draft(point, root)]).await?);
        }
        Ok::<_, mover::Error>(())
    };
    let outcome = outcome.await;
    drop(asker);
    let lab = lab.reopened().await;
    match outcome {
        Ok(()) => lab.assert_restores(point, &[lab.image(&[(0, 1)])]).await,
        Err(error) => {
            println!("failed with the putter: {error}");
            assert!(lab.points().await.is_empty());
        }
    }
}

pub async fn machines_at_the_same_time<F: Fixture>(lab: Lab<F>) {
    let template = Machine::new(&lab.world, &[LEAF]);
    template.write(0, 0, &noise(1, 80 * BLOCK));
    let machines: Vec<Machine> = (0..6).map(|_| template.cloned()).collect();
    for round in 0..2 {
        for (number, machine) in (0..).zip(&machines) {
            machine.write(0, (round * 10 + number) * BLOCK, &noise(100 * round + number + 2, BLOCK));
        }
        let names: Vec<String> = (0..machines.len()).map(|number| format!("vm{number}")).collect();
        let jobs = machines.iter().zip(&names).map(|(machine, name)| lab.backup(name, machine));
        let reports = join_all(jobs).await;
        for (report, machine) in reports.iter().zip(&machines) {
            lab.assert_restores(report.point.id, &machine.images()).await;
        }
    }
    assert_eq!(lab.points().await.len(), 12);
    let stats = lab.repository.stats().await.unwrap();
    let (data, structure) = (80 + 12, 12 + 12);
    assert_eq!(stats.chunks, data + structure, "each block once, a page and a manifest of each point");
}

pub async fn reads_go_on_during_backups<F: Fixture>(lab: Lab<F>) {
    let machine = Machine::new(&lab.world, &[LEAF]);
    machine.write(0, 0, &noise(1, 100 * BLOCK));
    let first = lab.backup("busy", &machine).await;
    let images = machine.images();
    let reader = lab.repository.read(&[first.point.id]).await.unwrap();
    machine.write(0, 0, &noise(2, 100 * BLOCK));
    let (second, ()) =
        tokio::join!(lab.backup("busy", &machine), lab.assert_reader_restores(&reader, first.point.id, &images));
    lab.assert_reader_restores(&reader, first.point.id, &images).await;
    lab.assert_restores(second.point.id, &machine.images()).await;
}
