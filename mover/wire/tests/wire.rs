//! The wire's messages: golden bytes, limits, foreign bytes, and who may ask what.

use mover::{
    AuditReport, BackupReport, Begin, ChangeTracking, CheckpointId, Consistency, CopyReport, Counters, DiskReport,
    Error, ErrorKind, Holder, IndexTotals, LogEntry, LogHead, Origin, OwnerId, Phase, PointChange, PointId,
    RecoveryPoint, RepositoryId, Role, ScrubTotals, SessionId, Stats, StoredTotals, Suspect, SweepOptions, SweepReport,
    Timestamp, TrackingRecord, TrackingWish, Verification, WriterId,
};
use mover::{JobId, JobKind};
use proptest::prelude::*;
use std::fmt::Write;
use std::path::Path;
use wire::control::{BackupJob, DISKS_MAX, JobExtension, Made, Work};
use wire::identity::{KeyClaim, Wanted};
use wire::message::*;
use wire::{access, decode, encode};

/// One request of each type, with every optional field.
#[expect(clippy::too_many_lines, reason = "one of each request")]
fn requests() -> Vec<Request> {
    let (repository, session) = (RepositoryId([1; 16]), SessionId([2; 16]));
    let from = Place { host: "store1.example".into(), port: 7440, name: "main".into(), congestion: 1 };
    let begin = Begin {
        point: PointId([3; 16]),
        parents: vec![PointId([4; 16])],
        holder: None,
        verification: Verification::Checksum,
    };
    let origin = Origin { repository, commit_time: Timestamp(-6), number: 4, seen: Some((repository, ends())) };
    let drafts = vec![
        WireDraft { manifest_bytes: 7, origin: Some(origin), labels: [("tag/a".to_owned(), "1".to_owned())].into() },
        WireDraft { manifest_bytes: 8, origin: None, labels: Default::default() },
    ];
    vec![
        Request::Hello(Hello { versions: (1, 2), features: 3, program: "windlass".into() }),
        Request::Open(Open { name: "main".into(), machine: Some("web".parse().unwrap()) }),
        Request::Token(TokenIn { hash: [14; 32], wanted: wanted(), valid_s: 3600 }),
        Request::Join(JoinIn { secret: [15; 32], claim: claim() }),
        Request::Renew(RenewIn { claim: claim() }),
        Request::List(List { repository, machine: Some("web".parse().unwrap()), forgotten: true }),
        Request::Stats(RepositoryRef { repository }),
        Request::LogHead(RepositoryRef { repository }),
        Request::HasBeen(HasBeen { repository, seen: ends() }),
        Request::Peer(PeerOf { repository, peer: RepositoryId([9; 16]) }),
        Request::ChangePoints(ChangeIn { repository, change: PointChange::Unforget, points: vec![PointId([3; 16])] }),
        Request::WantedChunks(WantedOf { repository, after: Some([7; 32]) }),
        Request::Log(LogAfter { repository, after: 8 }),
        Request::MoveMachine(MoveIn {
            repository,
            machine: mover::MachineId([4; 16]),
            origin: RepositoryId([8; 16]),
            owner: Some("cluster1".parse().unwrap()),
        }),
        Request::GivenUp(RepositoryRef { repository }),
        Request::Annotate(AnnotateIn {
            repository,
            point: PointId([3; 16]),
            labels: vec![("tag/monthly".into(), "1".into()), ("time".into(), String::new())],
        }),
        Request::Begin(BeginIn { repository, begin }),
        Request::Missing(MissingIn { session, kind: 1 }),
        Request::Put(Put { session, lengths: vec![10, 11] }),
        Request::Flush(SessionRef { session }),
        Request::Commit(CommitIn { session, drafts }),
        Request::Abandon(SessionRef { session }),
        Request::Read(ReadIn { repository, points: vec![PointId([3; 16])] }),
        Request::Manifest(ManifestOf { session, point: PointId([3; 16]) }),
        Request::Get(SessionRef { session }),
        Request::GetVerified(SessionRef { session }),
        Request::Close(SessionRef { session }),
        Request::Attend(Attend {
            instance: [10; 16],
            jobs: vec![HeldJob::from(&job())],
            labels: vec!["ssd".parse().unwrap()],
            machines: vec![offered()],
        }),
        Request::Run(Run {
            proxy: Some("host7".parse().unwrap()),
            label: Some("ssd".parse().unwrap()),
            again: true,
            job: job(),
        }),
        Request::Cancel(JobOf { job: JobId([2; 16]) }),
        Request::Report(Report { job: JobId([2; 16]), event: Event::Progress(counters()) }),
        Request::Proxies(()),
        Request::Jobs(()),
        Request::Follow(JobOf { job: JobId([2; 16]) }),
        Request::Pull(PullIn { repository, from, points: vec![PointId([3; 16])], verification: Verification::Decode }),
        Request::Verify(VerifyIn {
            repository,
            depth: 1,
            percent: 10,
            points: vec![PointId([3; 16])],
            outdated_after_ms: Some(9),
            rate: Some(8),
        }),
        Request::RebuildIndex(RepositoryRef { repository }),
        Request::Sweep(SweepIn { repository, options: SweepOptions { rate: Some(5), ..SweepOptions::default() } }),
    ]
}

/// One reply of each type.
#[expect(clippy::too_many_lines, reason = "one of each reply")]
fn replies() -> Vec<Reply> {
    let session = SessionId([2; 16]);
    let stored = StoredTotals { chunks: 1, bytes_plain: 2, bytes_blobs: 3, bytes_stored: 4 };
    let stats = Stats {
        points: 1,
        chunks: 2,
        packs: 3,
        bytes_logical: 4,
        bytes_stored: 5,
        bytes_dead: Some(6),
        bytes_waiting: 7,
        bytes_free: Some(8),
        bytes_reserved: 9,
        suspects: 10,
        packs_unverified: 11,
        oldest_verified: Some(Timestamp(12)),
        scrub: Some(ScrubTotals { packs: 13, bytes: 14, chunks_damaged: 15, packs_left: 16 }),
    };
    let suspect = Suspect { chunk: chunker::ChunkId([7; 32]), disk: mover::DiskId([8; 16]), offset: 9 };
    let failed = FailedChunk { chunk: [7; 32], how: 3, code: 8, pack: "pack".into(), what: "what".into() };
    vec![
        Reply::Done(()),
        Reply::Failed(Failed { code: 2, message: "no".into(), hint: "try".into(), subject: Box::new(subject()) }),
        Reply::Welcome(Welcome { version: 1, features: 2, program: "windlass-store".into() }),
        Reply::Opened(Opened {
            repository: RepositoryId([1; 16]),
            domain: [2; 32],
            created: Timestamp(3),
            owner: OwnerId([4; 16]),
        }),
        Reply::Expected(Expected { expires: Timestamp(4) }),
        Reply::Certified(Certified { certificate: "cert".into(), authority: "ca".into() }),
        Reply::Waiting(()),
        Reply::Points(vec![point()]),
        Reply::Totals(stats),
        Reply::LogHead(ends()),
        Reply::Answer(true),
        Reply::Seen(Some(ends())),
        Reply::WantedIds(()),
        Reply::Records(vec![LogEntry {
            end: ends(),
            time: Timestamp(-5),
            writer: WriterId([6; 16]),
            term: 7,
            events: vec!["a sweep begins".into()],
        }]),
        Reply::GivenUpAre(vec![mover::GivenUp {
            machine: mover::MachineId([4; 16]),
            origin: RepositoryId([8; 16]),
            newest: Timestamp(9),
        }]),
        Reply::Session(SessionRef { session }),
        Reply::Suspects(vec![suspect]),
        Reply::Presences(()),
        Reply::Stored(stored),
        Reply::Committed(Committed { points: vec![point()], stored }),
        Reply::Lacking(()),
        Reply::ManifestBytes(()),
        Reply::Chunks(Chunks { lengths: vec![1, 2], failed: vec![failed] }),
        Reply::Parts(3),
        Reply::Taken(()),
        Reply::Assigned(job()),
        Reply::CalledOff(JobOf { job: JobId([2; 16]) }),
        Reply::Event(Event::of(Ok(Made::Backup(Box::new(report()))))),
        Reply::Given(Given { proxy: "host7".parse().unwrap() }),
        Reply::Proxy(ProxyStatus {
            name: "host7".parse().unwrap(),
            owner: "cluster1".parse().unwrap(),
            labels: vec!["ssd".parse().unwrap()],
            attends: true,
            since_ms: 1,
            jobs: 2,
            machines: vec![offered()],
        }),
        Reply::Job(status()),
        Reply::Pulling(4),
        Reply::Pulled(Pulled {
            point: PointId([1; 16]),
            outcome: Ok(CopyReport { points: 1, chunks_moved: 2, bytes_moved: 3 }),
        }),
        Reply::Working(Counters { phase: Phase::Move, bytes_done: 1, bytes_total: 2 }),
        Reply::Damages(vec![Damage {
            point: Some(PointId([3; 16])),
            disk: Some("vda".parse().unwrap()),
            offset: Some(65_536),
            chunk: Some([7; 32]),
            pack: Some("pack".into()),
            what: "what".into(),
            unread: true,
        }]),
        Reply::Verified(Verified { points: 1, chunks: 2, bytes_read: 3, packs_skipped: 4 }),
        Reply::Rebuilt(IndexTotals { packs: 1, chunks: 2 }),
        Reply::Swept(SweepReport { points_final: 1, packs_deleted: 2, ..SweepReport::default() }),
    ]
}

fn offered() -> OfferedMachine {
    OfferedMachine {
        name: "web".parse().unwrap(),
        id: Some(mover::MachineId([4; 16])),
        power: mover::Power::Paused,
        disks: vec![OfferedDisk { name: "vda".parse().unwrap(), size: Some(5) }],
        tags: vec!["prod".parse().unwrap()],
    }
}

fn status() -> JobStatus {
    let failed = Failed { code: 2, message: "no".into(), hint: "try".into(), subject: Box::new(subject()) };
    JobStatus {
        id: JobId([2; 16]),
        proxy: "host7".parse().unwrap(),
        machine: Some("web".parse().unwrap()),
        repository: Some("main".parse().unwrap()),
        kind: 1,
        by: Some("anna".parse().unwrap()),
        stage: JobStage::Failed(failed),
        counters: counters(),
        warnings: 3,
        asked_ms: 4,
        given_ms: Some(5),
        ended_ms: Some(6),
    }
}

fn found() -> mover::Examination {
    let disk = mover::ExaminedDisk {
        name: "vda".parse().unwrap(),
        size: Some(5),
        format: "qcow2".into(),
        incremental: true,
        reason: "proven".into(),
    };
    mover::Examination {
        name: "web".parse().unwrap(),
        id: Some(mover::MachineId([4; 16])),
        power: mover::Power::Running,
        agent_answers: true,
        agent: "answers".into(),
        disks: vec![disk],
        remarks: vec!["look".into()],
        last: Some(mover::LastPoint { point: PointId([1; 16]), time: Timestamp(6) }),
    }
}

fn subject() -> FailedSubject {
    let text = |text: &str| Some(text.to_owned());
    let (point, disk, chunk) = (text("point"), text("vda"), Some([7; 32]));
    FailedSubject { point, disk, offset: Some(65_536), chunk, pack: text("pack"), path: text("/srv/main") }
}

fn wanted() -> Wanted {
    let holder = Holder::new(Role::Node, "store2".parse().unwrap());
    Wanted { holder, hosts: vec!["store2.example".into(), "::1".into()] }
}

fn claim() -> KeyClaim {
    KeyClaim { point: vec![4; 65], signature: vec![16; 70] }
}

fn job() -> Job {
    job_of(&backup())
}

fn job_of(body: &BackupJob) -> Job {
    Job {
        id: JobId([2; 16]),
        machine: "web".parse().unwrap(),
        repository: "main".parse().unwrap(),
        kind: JobKind::Backup.code(),
        body: mover::codec::encode::<_, 1000>(body).unwrap(),
        extensions: vec![JobExtension { tag: 9, critical: false, bytes: vec![1, 2, 3] }],
    }
}

fn options_of(job: &Job) -> mover::Result<mover::BackupOptions> {
    match job.work()? {
        Work::Backup(options) => Ok(*options),
        Work::Examine => panic!("no backup"),
    }
}

fn backup() -> BackupJob {
    BackupJob {
        point: PointId([3; 16]),
        wish: TrackingWish::Bitmap,
        compression: Some(3),
        verification: Verification::Decode,
        tags: vec!["nightly".into()],
        rate: Some(4),
        audit: Some(5),
        allow: mover::Allow { shrink: true, format_change: false },
        quiesce: mover::Quiesce::Require,
    }
}

fn counters() -> Counters {
    Counters { phase: Phase::Move, bytes_done: 1, bytes_total: 2 }
}

fn report() -> BackupReport {
    let tracking = TrackingRecord {
        mode: ChangeTracking::Bitmap,
        reason: "proven".into(),
        checkpoint: Some(CheckpointId([6; 16])),
        granularity: 65_536,
        bytes_read: 7,
        bytes_changed: 8,
        bytes_audited: 9,
    };
    let audit = Some(AuditReport { position: 10, turn_completed: true, cut_short: false });
    BackupReport {
        point: point(),
        parent: Some(PointId([11; 16])),
        consistency: Consistency::Crash,
        freeze_ms: 17,
        pause_ms: 6,
        scratch_bytes_max: 65_536,
        disks: vec![DiskReport { name: "vda".parse().unwrap(), size: 12, tracking, audit }],
        chunks_new: 13,
        bytes_new: 14,
        bytes_sent: 15,
        bytes_stored: 16,
        warnings: vec!["slow".into()],
    }
}

fn ends() -> LogHead {
    LogHead { sequence: 12, hash: [13; 32] }
}

fn point() -> RecoveryPoint {
    RecoveryPoint {
        id: PointId([1; 16]),
        manifest: chunker::ChunkId([2; 32]),
        owner: OwnerId([3; 16]),
        owner_name: Some("cluster1".parse().unwrap()),
        stamped: OwnerId([13; 16]),
        holder: Some(Holder { role: Role::Proxy, name: "host7".parse().unwrap(), owner: None }),
        machine: mover::MachineId([4; 16]),
        machine_name: "web".parse().unwrap(),
        group: Some(mover::GroupId([5; 16])),
        snapshot_time: Timestamp(6),
        commit_time: Timestamp(7),
        origin: (RepositoryId([8; 16]), Timestamp(9)),
        protected_until: Timestamp(10),
        bytes_logical: 11,
        bytes_new: 12,
        bytes_stored: 0,
        pinned: true,
        forgotten: false,
        number: 13,
        labels: [("tag/monthly".to_owned(), "1".to_owned())].into(),
    }
}

/// A change here is a change of the protocol: it belongs into one commit with PROTOCOL.md and a version.
#[test]
fn golden_messages() {
    let mut text = String::new();
    let mut line = |name: String, bytes: &[u8]| {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(text, "{name} {hex}").unwrap();
    };
    let name = |message: &dyn std::fmt::Debug| {
        let text = format!("{message:?}");
        text[..text.find('(').unwrap()].to_owned()
    };
    for request in requests() {
        let bytes = encode(&request, 0, false).unwrap();
        assert_eq!(decode(&bytes).unwrap(), Some((request.clone(), 0, false)));
        line(name(&request), &bytes);
    }
    for reply in replies() {
        let bytes = encode(&reply, 0, true).unwrap();
        assert_eq!(decode(&bytes).unwrap(), Some((reply.clone(), 0, true)));
        line(name(&reply), &bytes);
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/wire.txt");
    if std::env::var_os("WINDLASS_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let kept = std::fs::read_to_string(path).expect("see `cargo dev golden`");
    for (kept, made) in kept.lines().zip(text.lines()) {
        assert_eq!(kept, made, "a message has changed");
    }
    assert_eq!(kept, text);
}

#[test]
fn samples_have_every_type_and_the_document_too() {
    let document = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../PROTOCOL.md")).unwrap();
    let requests: Vec<u16> = requests().iter().map(Message::code).collect();
    let replies: Vec<u16> = replies().iter().map(Message::code).collect();
    assert_eq!((requests.as_slice(), replies.as_slice()), (Request::CODES, Reply::CODES));
    for code in requests.into_iter().chain(replies) {
        assert!(document.contains(&format!("\n| {code:#06x} | ")), "PROTOCOL.md does not describe {code:#06x}");
    }
}

#[test]
fn errors_keep_their_kind() {
    let mut codes: Vec<u16> = ErrorKind::ALL.into_iter().map(error_code).collect();
    assert!(ErrorKind::ALL.into_iter().all(|kind| error_kind(error_code(kind)) == kind));
    codes.sort_unstable();
    assert_eq!(codes, (1..=21).collect::<Vec<u16>>());
    assert!(error_kind(NO_SESSION) == ErrorKind::Internal && error_kind(0) == ErrorKind::Internal);
}

#[test]
fn lengths_over_the_limits_are_refused_before_anything_is_read() {
    for code in 0..=u16::MAX {
        let header = |body: u32, bulk: u32, flags: u16| {
            let mut bytes = b"WLM1".to_vec();
            bytes.extend(code.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend(body.to_le_bytes());
            bytes.extend(bulk.to_le_bytes());
            decode::<Request>(&bytes).map(|decoded| decoded.is_some())
        };
        let Some(limits) = Request::limits(code) else {
            assert!(header(0, 0, 0).is_err(), "{code:#06x} is not known");
            continue;
        };
        let Limits { body_bytes_max: body, bulk_bytes_max: bulk } = limits;
        assert!(!header(body, bulk, 1).unwrap(), "the limits themselves are allowed, and waited for");
        for (body, bulk, flags) in [(body + 1, 0, 0), (1, bulk + 1, 0), (u32::MAX, u32::MAX, 0), (1, 0, 2)] {
            assert_eq!(header(body, bulk, flags).unwrap_err().kind(), ErrorKind::Transport, "{code:#06x}");
        }
    }
}

/// The table of PROTOCOL.md, row by row.
/// The answer to Open has the domain's key: whoever gets it could read the chunks with any other means too.
#[test]
fn who_is_given_the_domains_key_may_read() {
    let of = |is: fn(&Request) -> bool| requests().into_iter().find(is).unwrap();
    let open = of(|request| matches!(request, Request::Open(_)));
    let reading = [of(|request| matches!(request, Request::Read(_))), of(|request| matches!(request, Request::Get(_)))];
    for role in Role::ALL.into_iter().filter(|role| access::allows(*role, &open)) {
        assert!(reading.iter().all(|request| access::allows(role, request)), "{role:?}");
    }
    assert!(access::check(None, &open).is_err(), "who shows no certificate gets no key");
}

#[test]
fn roles() {
    for request in requests() {
        let writes = matches!(
            request,
            Request::Begin(_)
                | Request::Missing(_)
                | Request::Put(_)
                | Request::Flush(_)
                | Request::Commit(_)
                | Request::Abandon(_)
        );
        let carries_out = matches!(request, Request::Attend(_) | Request::Report(_));
        let wants = matches!(
            request,
            Request::Run(_)
                | Request::Cancel(_)
                | Request::Proxies(())
                | Request::Jobs(())
                | Request::Follow(_)
                | Request::Pull(_)
                | Request::Verify(_)
                | Request::RebuildIndex(_)
                | Request::ChangePoints(_)
                | Request::WantedChunks(_)
                | Request::Log(_)
                | Request::MoveMachine(_)
                | Request::Annotate(_)
                | Request::Sweep(_)
        );
        let copies = matches!(request, Request::GivenUp(_));
        for role in Role::ALL {
            let expected = match role {
                Role::Proxy if carries_out || wants => carries_out,
                Role::Node | Role::Admin if carries_out || wants => role == Role::Admin && wants,
                Role::Node => !writes && !matches!(request, Request::Token(_)),
                // The sample is of a copy.
                Role::Proxy => !copies && !matches!(request, Request::Commit(_) | Request::Token(_)),
                Role::Admin => true,
            };
            let expected = expected && !matches!(request, Request::Join(_));
            assert_eq!(access::allows(role, &request), expected, "{role:?} {request:?}");
        }
        let expected = matches!(request, Request::Hello(_) | Request::Join(_));
        assert_eq!(access::check(None, &request).is_ok(), expected, "nobody {request:?}");
    }
}

#[test]
fn every_event_of_a_job_and_the_longest() {
    let round = |event: Event| {
        let bytes = encode(&Reply::Event(event.clone()), 0, false).unwrap();
        assert_eq!(decode(&bytes).unwrap(), Some((Reply::Event(event), 0, false)));
    };
    round(Event::Progress(counters()));
    round(Event::Warning("slow".into()));
    round(Event::Failed(Failed { code: 2, message: "no".into(), hint: "try".into(), subject: Box::new(subject()) }));
    // What a proxy says fits, however much there was to say.
    let long = "\u{10ffff}".repeat(65_535 / 4);
    let mut report = report();
    report.disks[0].name = "d".repeat(128).parse().unwrap();
    report.disks[0].tracking.reason.clone_from(&long);
    report.disks = vec![report.disks[0].clone(); DISKS_MAX];
    report.warnings = vec![long; 1000];
    round(Event::of(Ok(Made::Backup(Box::new(report)))));
    let examined = Event::of(Ok(Made::Examination(Box::new(found()))));
    let Event::Ended(made) = &examined else { panic!("{examined:?}") };
    assert_eq!(made.examination().unwrap(), found());
    assert_eq!(made.backup().unwrap_err().kind(), ErrorKind::Transport);
    round(examined);
    let mut wordy = found();
    wordy.disks[0].reason = "\u{10ffff}".repeat(65_535 / 4);
    wordy.disks = vec![wordy.disks[0].clone(); 2 * DISKS_MAX];
    wordy.remarks = vec![wordy.disks[0].reason.clone(); 1000];
    round(Event::of(Ok(Made::Examination(Box::new(wordy)))));
    let Event::Failed(failed) = Event::of(Err(Error::source("no"))) else { panic!("not told as it is") };
    assert_eq!(Error::from(failed).kind(), ErrorKind::Source);
}

#[test]
fn a_job_says_what_its_options_say() {
    let options = options_of(&job()).unwrap();
    let made = Job::backup(job().id, backup().point, job().repository, &options).unwrap();
    assert_eq!(made, Job { extensions: Vec::new(), ..job() });
    for wrong in [
        BackupJob { compression: Some(0), ..backup() },
        BackupJob { compression: Some(23), ..backup() },
        BackupJob { rate: Some(0), ..backup() },
        BackupJob { audit: Some(101), ..backup() },
    ] {
        assert_eq!(options_of(&job_of(&wrong)).unwrap_err().kind(), ErrorKind::Usage);
    }
    let many = mover::BackupOptions { tags: vec!["t".repeat(40 << 10)], ..options };
    let made = Job::backup(job().id, backup().point, job().repository, &many);
    assert_eq!(made.unwrap_err().kind(), ErrorKind::Usage);
}

/// Whoever carries a job out knows all of it that must be known, or refuses it.
#[test]
fn what_later_versions_add_to_jobs_is_passed_over_or_refused_by_rule() {
    let with = |critical| {
        let extensions = vec![JobExtension { tag: 700, critical, bytes: vec![4] }];
        options_of(&Job { extensions, ..job() })
    };
    assert_eq!(with(false).unwrap().point, Some(backup().point));
    let refused = with(true).unwrap_err();
    assert!(refused.kind() == ErrorKind::Version && refused.message().contains("700"), "{refused}");
    let other = options_of(&Job { kind: 900, ..job() }).unwrap_err();
    assert!(other.kind() == ErrorKind::Version && other.message().contains("900"), "{other}");
    let extension = JobExtension { tag: 1, critical: false, bytes: Vec::new() };
    let many = |number| Job { extensions: vec![extension.clone(); number], ..job() }.check().is_ok();
    assert!(many(16) && !many(17));
    let longer = Job { body: [job().body, vec![0]].concat(), ..job() };
    assert_eq!(options_of(&longer).unwrap_err().kind(), ErrorKind::Usage);
}

#[test]
fn an_examination_has_no_body_and_what_a_proxy_offers_is_bounded() {
    let look = Job::examine(JobId([2; 16]), "web".parse().unwrap(), "main".parse().unwrap());
    assert!(matches!(look.work().unwrap(), Work::Examine));
    assert_eq!(Job { body: vec![0], ..look }.work().unwrap_err().kind(), ErrorKind::Usage);
    let good = Attend { instance: [1; 16], jobs: Vec::new(), labels: Vec::new(), machines: vec![offered()] };
    good.check().unwrap();
    let disks = OfferedMachine { disks: vec![offered().disks[0].clone(); DISKS_MAX + 1], ..offered() };
    let tags = OfferedMachine { tags: vec![offered().tags[0].clone(); 17], ..offered() };
    for machines in [vec![offered(); 513], vec![disks], vec![tags]] {
        assert_eq!(Attend { machines, ..good.clone() }.check().unwrap_err().kind(), ErrorKind::Usage);
    }
    let jobs = vec![HeldJob::from(&job()); 65];
    assert_eq!(Attend { jobs, ..good.clone() }.check().unwrap_err().kind(), ErrorKind::Usage);
    let labels = vec!["ssd".parse().unwrap(); 17];
    assert_eq!(Attend { labels, ..good }.check().unwrap_err().kind(), ErrorKind::Usage);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn foreign_bytes_are_refused_or_mean_one_message(
        code in prop::sample::select([Request::CODES, Reply::CODES].concat()),
        body in prop::collection::vec(prop_oneof![4 => Just(0u8), 1 => any::<u8>()], 0..200),
    ) {
        let mut bytes = b"WLM1".to_vec();
        bytes.extend(code.to_le_bytes());
        bytes.extend([0, 0]);
        bytes.extend((body.len() as u32).to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(&body);
        if let Ok(Some((message, _, _))) = decode::<Request>(&bytes) {
            prop_assert_eq!(encode(&message, 0, false).unwrap(), bytes.clone());
        }
        if let Ok(Some((message, _, _))) = decode::<Reply>(&bytes) {
            prop_assert_eq!(encode(&message, 0, false).unwrap(), bytes.clone());
        }
    }

    #[test]
    fn a_changed_byte_is_never_a_panic(at in any::<prop::sample::Index>(), of in any::<prop::sample::Index>(), to: u8) {
        let request = of.get(&requests()).clone();
        let mut bytes = encode(&request, 0, false).unwrap().to_vec();
        let at = at.index(bytes.len());
        bytes[at] = to;
        let _ = decode::<Request>(&bytes);
        let _ = decode::<Reply>(&bytes);
        let _ = decode::<Request>(&bytes[..at]);
    }
}
