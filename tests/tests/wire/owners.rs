//! Who may do what with whose machines: each request, over the wire, with real certificates.

use chunker::{ChunkKind, Compression, DomainKeys};
use mover::{
    BackupOptions, BackupReport, Begin, Error, ErrorKind, Holder, Keep, Name, OwnerId, PointChange, PointFilter,
    PointId, Pool, Progress, ReadSession, RecoveryPoint, Repository, Role, SweepOptions, Verification, World,
    WriteSession, backup, retain, with_compressor,
};
use store::Local;
use windlass_bench::attacker::Raw;
use windlass_tests::conformance::{Fixture, InDirectory, options};
use windlass_tests::fake::{Machine, noise};
use windlass_tests::node::{Running, Site};
use wire::identity::Identity;
use wire::message::*;
use wire::{Congestion, Node, Quota, Quotas, Remote, client_config};

/// A node, and machines of a cluster, of another host, and of the site itself.
pub struct Field {
    pub world: World,
    site: Site,
    pub pool: Pool,
    _folder: InDirectory,
    pub repository: Local,
    running: Running,
}

impl Field {
    async fn new() -> Self {
        Self::with(Quotas::default(), false).await
    }

    /// With these quotas, and with owners kept apart.
    pub async fn with(quotas: Quotas, apart: bool) -> Self {
        let folder = InDirectory::fresh().await;
        let (world, repository) = (folder.world(), folder.open().await.unwrap());
        let site = Site::new(&world);
        let node = Node::new(world.clone());
        node.host("repo", repository.clone(), quotas, apart.then(|| repository.keep_owners_apart()));
        let running = Running::serve(&site, node, &world);
        Self { world, site, pool: Pool::new(1).unwrap(), _folder: folder, repository, running }
    }

    fn identity(&self, who: Who) -> Identity {
        let (role, name, owner) = who;
        let owner = owner.map(|owner| owner.parse::<Name>().unwrap());
        let holder = Holder { role, name: name.parse().unwrap(), owner };
        let hosts = if role == Role::Node { vec!["localhost".to_owned()] } else { Vec::new() };
        self.site.authority.issue(&holder, &hosts, 1, &self.world).unwrap().identity().unwrap()
    }

    pub async fn remote(&self, who: Who) -> Remote {
        self.running.connect_as(&self.identity(who), &self.site.trust(), "repo").await.unwrap()
    }

    async fn raw(&self, who: Who) -> Raw {
        let config = client_config(&self.identity(who), &self.site.trust(), Congestion::default()).unwrap();
        Raw::greeted(self.running.port, config).await.unwrap()
    }

    pub fn machine(&self, seed: u64) -> Machine {
        let machine = Machine::new(&self.world, &[1 << 20]);
        machine.write(0, 0, &noise(seed, 1 << 20));
        machine
    }

    pub async fn backup(&self, who: Who, options: &BackupOptions, machine: &Machine) -> Result<BackupReport, Error> {
        let remote = self.remote(who).await;
        let made = backup(&remote, machine.snapshot(), options, &self.pool, &self.world, &Progress::default()).await;
        remote.close().await;
        made
    }

    async fn points(&self) -> Vec<RecoveryPoint> {
        self.repository.list(&PointFilter::default()).await.unwrap()
    }
}

pub type Who = (Role, &'static str, Option<&'static str>);

pub const HOST_1: Who = (Role::Proxy, "host1", Some("cluster1"));
pub const HOST_2: Who = (Role::Proxy, "host2", Some("cluster1"));
pub const THIEF: Who = (Role::Proxy, "thief", None);
pub const ADMIN: Who = (Role::Admin, "admin", None);
const NODE: Who = (Role::Node, "second", None);

const NOT_FOUND: u16 = 2;
const NOT_AUTHORISED: u16 = 4;

fn code((reply, _): (Reply, Vec<u8>)) -> Option<u16> {
    match reply {
        Reply::Failed(failed) => Some(failed.code),
        _ => None,
    }
}

/// Every request that names a point or a machine, of everybody, about the cluster's, another's, the administrators' own and
/// nobody's.
#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one line for each request")]
async fn every_request_about_every_machine() {
    let field = Field::new().await;
    let own = field.backup(HOST_1, &options("web"), &field.machine(1)).await.unwrap().point;
    let others = field.backup(THIEF, &options("db"), &field.machine(2)).await.unwrap().point;
    let sites = field.backup(ADMIN, &options("dc01"), &field.machine(3)).await.unwrap().point;
    let nobodys = PointId([9; 16]);
    let (repository, here) = (field.repository.config().id, field.points().await);
    assert_eq!(own.holder.as_ref().map(ToString::to_string).as_deref(), Some("proxy host1"));
    assert_eq!(own.owner_name.as_ref().map(Name::as_str), Some("cluster1"));
    assert_eq!((sites.owner, others.owner_name.as_ref().map(Name::as_str)), (OwnerId::default(), Some("thief")));
    for (who, sees) in [
        (HOST_1, vec![own.id]),
        (HOST_2, vec![own.id]),
        (THIEF, vec![others.id]),
        (ADMIN, vec![own.id, others.id, sites.id]),
        (NODE, vec![own.id, others.id, sites.id]),
    ] {
        let (remote, raw) = (field.remote(who).await, field.raw(who).await);
        let listed = remote.list(&PointFilter::default()).await.unwrap();
        assert_eq!(listed.iter().map(|point| point.id).collect::<Vec<_>>(), sees, "{who:?}");
        for point in &here {
            let named = Some(point.machine_name.clone());
            let request = Request::Open(Open { name: "repo".into(), machine: named.clone() });
            assert!(!matches!(raw.ask(&request, &[]).await.unwrap().0, Reply::Failed(_)));
            let listed = remote.list(&PointFilter { machine: named, forgotten: false }).await.unwrap();
            assert_eq!(listed.is_empty(), !sees.contains(&point.id), "{who:?} {}", point.machine_name);
        }
        for id in [own.id, others.id, sites.id, nobodys] {
            let (mine, is_admin) = (sees.contains(&id), who.0 == Role::Admin);
            let read = remote.read(&[id]).await;
            assert_eq!(read.is_ok(), mine, "{who:?} reads");
            if let Ok(reader) = read {
                assert_eq!(reader.manifest(id).await.unwrap().point, id);
                let hidden = here.iter().find(|point| point.id != id).unwrap().id;
                assert_eq!(reader.manifest(hidden).await.unwrap_err().kind(), ErrorKind::NotFound, "not pinned");
            }
            let begin = mover::Begin {
                point: PointId::random(&field.world),
                parents: vec![id],
                holder: None,
                verification: mover::Verification::Decode,
            };
            let told = code(raw.ask(&Request::Begin(BeginIn { repository, begin }), &[]).await.unwrap());
            let want = if who.0 == Role::Node { Some(NOT_AUTHORISED) } else { (!mine).then_some(NOT_FOUND) };
            assert_eq!(told, want, "{who:?} continues {id}");
            for change in [PointChange::Forget, PointChange::Unforget] {
                let changed = remote.change_points(&[id], change).await;
                assert_eq!(changed.is_ok(), is_admin && mine, "{who:?} {change:?}");
            }
            let machine = here.iter().find(|point| point.id == id).map_or(mover::MachineId([7; 16]), |it| it.machine);
            if who.0 != Role::Admin {
                let moved = remote.move_machine(machine, repository, Some("thief".parse().unwrap())).await;
                assert_eq!(moved.unwrap_err().kind(), ErrorKind::NotAuthorised, "{who:?}");
            }
        }
        remote.close().await;
    }
    // Adding: to a machine, told by the hypervisor's UUID as it would be forged.
    for (who, point, works) in [
        (HOST_2, &own, true),
        (THIEF, &own, false),
        (THIEF, &sites, false),
        (HOST_1, &others, false),
        (THIEF, &others, true),
        (ADMIN, &own, true),
    ] {
        let named = BackupOptions { machine: Some(point.machine), ..options(point.machine_name.as_str()) };
        let made = field.backup(who, &named, &field.machine(5)).await;
        match made {
            Ok(made) => assert!(works && made.point.owner == field.remote(who).await.owner(), "{who:?}"),
            Err(error) => assert!(!works && error.kind() == ErrorKind::NotAuthorised, "{who:?}: {error}"),
        }
    }
    field.backup(THIEF, &options("new"), &field.machine(6)).await.expect("nobody's machine");
}

/// Three points of a stolen proxy pushed the good ones out, and a forged one was built on.
#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_proxy_spoils_nothing_of_others() {
    let field = Field::new().await;
    let web = field.machine(1);
    let mut good = Vec::new();
    for round in 0..3 {
        web.write(0, round * 65_536, b"genuine");
        good.push(field.backup(HOST_1, &options("web"), &web).await.unwrap().point);
    }
    // The same name, and the same ids where it can.
    for seed in 10..13 {
        field.backup(THIEF, &options("web"), &field.machine(seed)).await.unwrap();
    }
    let forged = BackupOptions { machine: Some(good[2].machine), ..options("web") };
    let refused = field.backup(THIEF, &forged, &field.machine(20)).await.unwrap_err();
    assert!(refused.kind() == ErrorKind::NotAuthorised && refused.remedy().is_some(), "{refused}");
    // What an administrator's identity brings is not believed either, though it is not refused.
    let brought = field.backup(ADMIN, &forged, &field.machine(21)).await.unwrap().point;
    assert_eq!((brought.machine, brought.owner), (good[2].machine, OwnerId::default()));
    let points = field.points().await;
    let verdicts = retain(&points, &Keep { last: 3, ..Keep::default() }, field.world.now());
    for point in &good {
        let kept = verdicts.iter().any(|verdict| verdict.point.id == point.id && !verdict.reasons.is_empty());
        assert!(kept, "three points of somebody else push nothing out");
    }
    web.write(0, 0, b"the next increment");
    let next = field.backup(HOST_2, &options("web"), &web).await.unwrap();
    assert_eq!(next.parent, Some(good[2].id), "the newest that the cluster itself made");
    assert_eq!(next.disks[0].tracking.mode, mover::ChangeTracking::Bitmap);
    // An id that is taken is no way in, nor out of being forgotten.
    let taken = BackupOptions { point: Some(good[2].id), ..options("web") };
    assert_eq!(field.backup(THIEF, &taken, &field.machine(22)).await.unwrap_err().kind(), ErrorKind::NotAuthorised);
    field.repository.change_points(&[good[2].id], PointChange::Forget).await.unwrap();
    for who in [HOST_1, HOST_2, THIEF] {
        let refused = field.backup(who, &taken, &web).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NotAuthorised, "{who:?}: {refused}");
    }
    assert!(field.points().await.iter().all(|point| point.id != good[2].id), "it stays forgotten");
}

/// Bytes, points and sessions: for whoever has a quota, and for nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_has_no_more_than_its_quota() {
    let quota = |bytes| Quota { bytes, points: 2, sessions: 2 };
    let named = [("cluster1", quota(5 << 19))].map(|(name, quota)| (name.parse().unwrap(), quota));
    let field = Field::with(Quotas::new(named.into(), Quota::NONE), false).await;
    let fails = async |machine: &Machine, what: &str| {
        let refused = field.backup(HOST_2, &options("web"), machine).await.unwrap_err();
        assert!(refused.kind() == ErrorKind::StoreFull && refused.to_string().contains(what), "{refused}");
        assert!(refused.remedy().unwrap().contains("quota"), "{refused}");
    };
    let web = field.machine(1);
    field.backup(HOST_1, &options("web"), &web).await.unwrap();
    field.backup(HOST_1, &options("web"), &web).await.unwrap();
    fails(&web, "2 of 2").await;
    let oldest = field.points().await[0].id;
    field.repository.change_points(&[oldest], PointChange::Forget).await.unwrap();
    // Those of a cluster share its quota. What came to nothing counts too.
    let remote = field.remote(HOST_2).await;
    let begin = |point| Begin { point, parents: Vec::new(), holder: None, verification: Verification::Decode };
    let (session, _) = remote.begin(begin(PointId([1; 16]))).await.unwrap();
    let keys = DomainKeys::new(&field.repository.config().domain);
    let chunk = |seed| {
        let plain = noise(seed, 65_536);
        (
            keys.id(ChunkKind::Data, &plain),
            with_compressor(Compression::None, |it| it.compress(ChunkKind::Data, &plain)),
        )
    };
    let put = async |seeds: std::ops::Range<u64>| session.put(seeds.map(chunk).collect()).await;
    put(100..130).await.unwrap();
    session.flush().await.unwrap();
    let refused = match put(130..131).await {
        Err(refused) => refused,
        // What a put brings is told by the next call.
        Ok(()) => session.flush().await.unwrap_err(),
    };
    assert_eq!(refused.kind(), ErrorKind::StoreFull, "{refused}");
    drop(session);
    fails(&web, "bytes").await;
    let admin = field.remote(ADMIN).await;
    field.backup(ADMIN, &options("other"), &field.machine(3)).await.unwrap();
    field.backup(THIEF, &options("other"), &field.machine(4)).await.unwrap();
    admin.sweep(SweepOptions::default(), std::sync::Arc::default()).await.unwrap();
    field.backup(HOST_2, &options("web"), &web).await.unwrap();
    let _two = [remote.read(&[]).await.unwrap(), remote.read(&[]).await.unwrap()];
    let refused = field.backup(HOST_1, &options("web"), &web).await.unwrap_err();
    assert!(
        refused.kind() == ErrorKind::Busy && refused.to_string().contains("too many open sessions: 2"),
        "{refused}"
    );
}

/// An administrator hands a machine from one owner to another.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_moves_between_owners() {
    let field = Field::new().await;
    let web = field.machine(1);
    let first = field.backup(HOST_1, &options("web"), &web).await.unwrap().point;
    let admin = field.remote(ADMIN).await;
    admin.move_machine(first.machine, first.origin.0, Some("thief".parse().unwrap())).await.unwrap();
    assert!(field.remote(HOST_1).await.list(&PointFilter::default()).await.unwrap().is_empty());
    let theirs = field.remote(THIEF).await;
    theirs.read(&[first.id]).await.unwrap();
    let named = BackupOptions { machine: Some(first.machine), ..options("web") };
    assert_eq!(field.backup(HOST_1, &named, &web).await.unwrap_err().kind(), ErrorKind::NotAuthorised);
    let second = field.backup(THIEF, &options("web"), &web).await.unwrap();
    assert_eq!((second.point.machine, second.point.owner_name), (first.machine, Some("thief".parse().unwrap())));
    assert_eq!(second.parent, None, "what another made is seen, and not built on");
    assert_eq!(second.chunks_new, 0, "and shared all the same");
    web.write(0, 0, b"changed");
    let third = field.backup(THIEF, &options("web"), &web).await.unwrap();
    assert_eq!(third.parent, Some(second.point.id));
}
