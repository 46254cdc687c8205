//! How long the steps of an incremental take. Figures, not promises: `cargo test ... speed -- --ignored --nocapture`.

use crate::tools::*;
use futures::{StreamExt, TryStreamExt, stream};
use mover::{Outcome, ParentDisk, Source, TrackingWish};
use std::time::Instant;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures"]
async fn an_incremental_of_145_mib() {
    let place = Place::new();
    let image = place.qcow2("a.qcow2", 8 << 30);
    qemu_io(&image, "qcow2", &["write -P 1 0 1500M"]);
    let mut store = Store::default();
    let session = open(text(&image), TrackingWish::Auto, &store.committed).await.unwrap();
    let changed = session.changed(0, None, TrackingWish::Auto).await.unwrap();
    let record = record(&session, &changed);
    session.finish(Outcome::Committed).await.unwrap();
    store.committed.extend(record.tracking.checkpoint);
    for at in 0..145 {
        qemu_io(&image, "qcow2", &[&format!("write -P 2 {}M 1M", at * 10)]);
    }
    let begin = Instant::now();
    let session = open(text(&image), TrackingWish::Auto, &store.committed).await.unwrap();
    let opened = begin.elapsed();
    let parent = ParentDisk { repository: repository(), record: &record };
    let changed = session.changed(0, Some(parent), TrackingWish::Auto).await.unwrap();
    let known = begin.elapsed();
    for in_flight in [1, 4, 8, 16] {
        let begin = Instant::now();
        let extents: Vec<_> = changed.dirty.split(MIB).collect();
        let session = &session;
        let bytes: u64 = stream::iter(extents)
            .map(|extent| async move { session.read(0, extent).await.map(|bytes| bytes.len() as u64) })
            .buffered(in_flight)
            .try_fold(0, |sum, bytes| async move { Ok(sum + bytes) })
            .await
            .unwrap();
        let took = begin.elapsed();
        println!(
            "read {} MiB, {in_flight} in flight: {took:?}, {:.0} MiB/s",
            bytes / MIB,
            (bytes / MIB) as f64 / took.as_secs_f64()
        );
    }
    let before_check = Instant::now();
    session.check().await.unwrap();
    let before_finish = Instant::now();
    session.finish(Outcome::Committed).await.unwrap();
    println!(
        "open {opened:?}, changed {:?}, check {:?}, finish {:?}",
        known - opened,
        before_finish - before_check,
        before_finish.elapsed()
    );
}
