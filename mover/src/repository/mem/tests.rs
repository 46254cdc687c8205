use super::*;
use crate::ErrorKind;
use crate::testing::world;
use crate::{MapBuilder, MapRoot, PageRef};
use chunker::GRID_BYTES;
use futures::StreamExt;

pub mod interleavings;

struct Lab {
    mem: Mem,
    keys: DomainKeys,
}

impl Lab {
    fn new() -> Self {
        let mem = Mem::new(&world());
        let keys = DomainKeys::new(&mem.config().domain);
        Self { mem, keys }
    }

    fn data(&self, byte: u8) -> (ChunkId, Blob) {
        self.chunk(ChunkKind::Data, &[byte; GRID_BYTES as usize])
    }

    fn chunk(&self, kind: ChunkKind, plain: &[u8]) -> (ChunkId, Blob) {
        let blob = with_compressor(Compression::Zstd(1), |compressor| compressor.compress(kind, plain));
        (self.keys.id(kind, plain), blob)
    }

    async fn session(&self, parents: &[PointId]) -> MemSession {
        let begin = Begin {
            point: PointId::default(),
            parents: parents.to_vec(),
            holder: None,
            verification: Verification::Decode,
        };
        self.mem.begin(begin).await.unwrap().0
    }

    /// A draft of a disk of one block per byte; its page is put.
    async fn draft(&self, session: &MemSession, point: u8, blocks: &[u8]) -> PointDraft {
        let mut builder = MapBuilder::<MemSession>::new(1 << 20, None, &self.keys);
        for (block, byte) in (0..).zip(blocks) {
            builder.set(block, PageRef::Chunk(self.data(*byte).0)).await.unwrap();
        }
        let (root, pages) = builder.finish();
        let pages = pages.into_iter().map(|page| self.chunk(ChunkKind::Page, &page.plain)).collect();
        session.put(pages).await.unwrap();
        let mut manifest = crate::record::manifest::tests::sample();
        manifest.attachments.clear();
        manifest.point = PointId([point; 16]);
        // The clock here begins in 1970.
        manifest.snapshot_time = crate::Timestamp(1);
        manifest.disks[0].size = 1 << 20;
        manifest.disks[0].root = MapRoot { level: 0, ..root };
        PointDraft { manifest, origin: None, labels: Default::default() }
    }

    async fn commit(&self, point: u8, blocks: &[u8]) -> RecoveryPoint {
        let session = self.session(&[]).await;
        session.put(blocks.iter().map(|byte| self.data(*byte)).collect()).await.unwrap();
        let draft = self.draft(&session, point, blocks).await;
        let Commit::Committed(points) = session.commit(&[draft]).await.unwrap() else { panic!("missing") };
        points[0].clone()
    }
}

#[tokio::test]
async fn pending_is_shared_and_fails_together() {
    let lab = Lab::new();
    let (one, two) = (lab.session(&[]).await, lab.session(&[]).await);
    let (id, blob) = lab.data(1);
    one.put(vec![(id, blob)]).await.unwrap();
    assert_eq!(two.missing(ChunkKind::Data, &[id]).await.unwrap(), [Presence::Pending]);
    lab.mem.plan(Fault { after: 0, effect: FaultEffect::Fails(ErrorKind::StoreFull) });
    assert_eq!(one.flush().await.unwrap_err().kind(), ErrorKind::StoreFull);
    assert_eq!(two.flush().await.unwrap_err().kind(), ErrorKind::StoreFull);
    let three = lab.session(&[]).await;
    assert_eq!(three.missing(ChunkKind::Data, &[id]).await.unwrap(), [Presence::Missing]);
}

#[tokio::test]
async fn a_sweep_respects_sessions_and_a_commit_notices_it() {
    let lab = Lab::new();
    let old = lab.commit(1, &[1, 2]).await;
    let (reader, writer) = (lab.mem.read(&[old.id]).await.unwrap(), lab.session(&[]).await);
    assert_eq!(writer.missing(ChunkKind::Data, &[lab.data(1).0]).await.unwrap(), [Presence::Have]);
    lab.mem.change_points(&[old.id], PointChange::Forget).await.unwrap();
    lab.mem.sweep(SweepOptions::default(), Arc::default()).await.unwrap();
    assert!(reader.manifest(old.id).await.is_ok(), "a reader pins");
    drop(reader);
    lab.mem.sweep(SweepOptions::default(), Arc::default()).await.unwrap();
    assert!(lab.mem.chunks().contains_key(&lab.data(1).0), "doomed, and kept for the session that was told have");
    let draft = [lab.draft(&writer, 2, &[1, 3]).await];
    let Commit::Missing(ids) = writer.commit(&draft).await.unwrap() else { panic!("committed on a doomed chunk") };
    assert_eq!(BTreeSet::from_iter(ids), BTreeSet::from([lab.data(1).0, lab.data(3).0]));
    writer.put(vec![lab.data(1), lab.data(3)]).await.unwrap();
    assert!(matches!(writer.commit(&draft).await.unwrap(), Commit::Committed(_)));
    drop(writer);
    lab.mem.sweep(SweepOptions::default(), Arc::default()).await.unwrap();
    assert!(!lab.mem.chunks().contains_key(&lab.data(2).0));
    assert_eq!(lab.mem.chunks().len(), 4, "two blocks, a page, a manifest");
    assert_eq!(lab.mem.read(&[old.id]).await.err().unwrap().kind(), ErrorKind::NotFound);
}

/// A sweep comes at every moment of a commit, and dooms the page that the commit relies on; what is below it is needed
/// elsewhere. What the commit found before counts only as long as nothing was taken away since (R1).
#[tokio::test]
async fn a_commit_relies_on_nothing_that_a_sweep_has_doomed_meanwhile() {
    let (mut refused, mut committed) = (0, 0);
    for moment in 0..60 {
        let lab = Lab::new();
        let old = lab.commit(1, &[1, 2]).await;
        lab.commit(2, &[2, 1]).await;
        let writer = lab.session(&[]).await;
        let draft = [lab.draft(&writer, 3, &[1, 2]).await];
        let page = draft[0].manifest.disks[0].root.id.unwrap();
        lab.mem.change_points(&[old.id], PointChange::Forget).await.unwrap();
        let sweep = async {
            for _ in 0..moment {
                yield_now().await;
            }
            lab.mem.sweep(SweepOptions::default(), Arc::default()).await.unwrap();
        };
        let (made, ()) = tokio::join!(writer.commit(&draft), sweep);
        match made.unwrap() {
            Commit::Committed(_) => committed += 1,
            Commit::Missing(ids) => {
                refused += 1;
                assert_eq!(ids, [page]);
                let draft = [lab.draft(&writer, 3, &[1, 2]).await];
                assert!(matches!(writer.commit(&draft).await.unwrap(), Commit::Committed(_)));
            }
        }
        let told = lab.session(&[]).await.missing(ChunkKind::Page, &[page]).await.unwrap();
        assert_eq!(told, [Presence::Have], "after {moment} steps");
    }
    assert!(refused > 1 && committed > 1, "{refused} refused, {committed} committed");
}

#[tokio::test]
async fn damage_is_noticed_when_read_and_healed_by_putting_again() {
    let lab = Lab::new();
    let point = lab.commit(1, &[1, 2]).await;
    let id = lab.data(2).0;
    lab.mem.damage(id);
    let session = lab.session(&[point.id]).await;
    assert_eq!(session.missing(ChunkKind::Data, &[id]).await.unwrap(), [Presence::Have]);
    let read = session.get(vec![id]).concat().await;
    assert!(matches!(read[..], [(_, Err(crate::ChunkError::Damaged { .. }))]));
    assert_eq!(session.missing(ChunkKind::Data, &[id]).await.unwrap(), [Presence::Missing]);
    let begin =
        Begin { point: PointId::default(), parents: vec![point.id], holder: None, verification: Verification::Decode };
    let begun = lab.mem.begin(begin).await.unwrap().1;
    let disk = session.manifest(point.id).await.unwrap().disks[0].id;
    assert_eq!(begun.suspects, [crate::Suspect { chunk: id, disk, offset: u64::from(GRID_BYTES) }]);
    session.put(vec![lab.data(2)]).await.unwrap();
    session.flush().await.unwrap();
    assert!(session.get(vec![id]).concat().await[0].1.is_ok());
    assert_eq!(lab.mem.stats().await.unwrap().suspects, 0);
}

#[tokio::test]
async fn a_lost_answer_is_not_a_lost_point() {
    let lab = Lab::new();
    let session = lab.session(&[]).await;
    session.put(vec![lab.data(1)]).await.unwrap();
    let draft = [lab.draft(&session, 1, &[1]).await];
    lab.mem.plan(Fault { after: 0, effect: FaultEffect::AnswerLost });
    assert_eq!(session.commit(&draft).await.unwrap_err().kind(), ErrorKind::Transport);
    let Commit::Committed(again) = session.commit(&draft).await.unwrap() else { panic!("missing") };
    assert_eq!(lab.mem.list(&PointFilter::default()).await.unwrap(), again);
}

#[tokio::test]
async fn a_crash_keeps_what_is_durable_and_fences_the_rest() {
    let lab = Lab::new();
    let point = lab.commit(1, &[1]).await;
    let session = lab.session(&[point.id]).await;
    session.put(vec![lab.data(2)]).await.unwrap();
    lab.mem.crash();
    assert_eq!(session.flush().await.unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(lab.mem.list(&PointFilter::default()).await.unwrap(), [point]);
    assert!(!lab.mem.chunks().contains_key(&lab.data(2).0));
}
