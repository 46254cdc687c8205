//! The table of messages. A new request is one row here, and one arm in `serve/requests.rs`.

use super::rules::Lasts::{Long, LongFrom, Short};
use super::rules::Work::{Asking, Beginning, Putting, Reading, ReadingAhead, ReadingVerified, Small, Waiting};
use super::rules::{ADMINS, COPIERS, EVERYBODY, PROXIES, STRANGERS, WRITERS};
use super::*;

requests! {
    /// What a client asks; one on each stream. A row has the type code, the body, the longest body and bulk in bytes, who may
    /// ask it, the memory that it takes, and how long it lasts.
    Request {
        /// First on every connection.
        0x0001 Hello(Hello), 1 << 10, 0 => EVERYBODY.and(STRANGERS), Small, Short;
        /// Which repository a name means.
        0x0002 Open(Open), 1 << 10, 0 => EVERYBODY, Small, Short;
        /// Expects somebody who joins.
        0x0003 Token(TokenIn), 8 << 10, 0 => ADMINS, Small, Short;
        /// Joins with a token: all that may be asked without a certificate.
        0x0004 Join(JoinIn), 512, 0 => STRANGERS, Small, Short;
        /// Another certificate for the client that asks.
        0x0005 Renew(RenewIn), 512, 0 => EVERYBODY, Small, Short;
        /// The points of a repository.
        0x0010 List(List), 1 << 10, 0 => EVERYBODY, Reading, Long;
        /// Totals of a repository.
        0x0011 Stats(RepositoryRef), 64, 0 => EVERYBODY, Small, Short;
        /// The end of a repository's log.
        0x0012 LogHead(RepositoryRef), 64, 0 => EVERYBODY, Small, Short;
        /// Whether the log of a repository once had this end.
        0x0013 HasBeen(HasBeen), 128, 0 => EVERYBODY, Small, Short;
        /// What a repository remembers of another repository.
        0x0014 Peer(PeerOf), 64, 0 => EVERYBODY, Small, Short;
        /// Forgets points, pins them, or takes that back.
        0x0015 ChangePoints(ChangeIn), 64 << 10, 0 => ADMINS, Small, Short;
        /// Chunks that are wanted.
        0x0016 WantedChunks(WantedOf), 128, 0 => ADMINS, Small, Short;
        /// What the commit log says.
        0x0017 Log(LogAfter), 64, 0 => ADMINS, Reading, Short;
        /// Hands a machine over to another owner.
        0x0018 MoveMachine(MoveIn), 256, 0 => ADMINS, Small, Short;
        /// How far points were made final.
        0x0019 GivenUp(RepositoryRef), 64, 0 => COPIERS, Reading, Short;
        /// Sets labels of a point.
        0x001a Annotate(AnnotateIn), 64 << 10, 0 => ADMINS, Small, Short;
        /// Opens a write session.
        0x0020 Begin(BeginIn), 4 << 10, 0 => WRITERS, Beginning, Short;
        /// Which chunks must be put. Bulk: the ids.
        0x0021 Missing(MissingIn), 64, IDS_MAX * 32 => WRITERS, Asking, Short;
        /// Takes chunks. Bulk: the ids, then the blobs.
        0x0022 Put(Put), 8 * IDS_MAX, PUT_BYTES_MAX => WRITERS, Putting, Short;
        /// Asks for everything that was put to be made durable.
        0x0023 Flush(SessionRef), 64, 0 => WRITERS, Small, Short;
        /// Commits points. Bulk: the manifests.
        0x0024 Commit(CommitIn), 64 << 10, COMMIT_BYTES_MAX => WRITERS, Beginning, LongFrom(SHORT_COMMIT_BYTES_MAX);
        /// Ends a session without a point.
        0x0025 Abandon(SessionRef), 64, 0 => WRITERS, Small, Short;
        /// Opens a read session.
        0x0030 Read(ReadIn), 64 << 10, 0 => EVERYBODY, Small, Short;
        /// The manifest of a point.
        0x0031 Manifest(ManifestOf), 64, 0 => EVERYBODY, Reading, Short;
        /// Blobs. Bulk: the ids.
        0x0032 Get(SessionRef), 64, GET_IDS_MAX * 32 => EVERYBODY, ReadingAhead, LongFrom(SHORT_GET_BYTES_MAX);
        /// Blobs, each decoded and compared by the node. Bulk: the ids.
        0x0033 GetVerified(SessionRef), 64, IDS_MAX * 32 => EVERYBODY, ReadingVerified, Long;
        /// Ends a read session.
        0x0034 Close(SessionRef), 64, 0 => EVERYBODY, Small, Short;
        /// A proxy asks for its jobs.
        0x0040 Attend(Attend), ATTEND_BYTES_MAX, 0 => PROXIES, Waiting, Long;
        /// Has a proxy carry a job out.
        0x0041 Run(Run), JOB_BYTES_MAX, 0 => ADMINS, Waiting, Long;
        /// Has a job end.
        0x0042 Cancel(JobOf), 64, 0 => ADMINS, Small, Short;
        /// A proxy tells of a job.
        0x0043 Report(Report), EVENT_BYTES_MAX, 0 => PROXIES, Small, Short;
        /// Which proxies there are, and what they offer.
        0x0044 Proxies(()), 8, 0 => ADMINS, Waiting, Short;
        /// Which jobs there are.
        0x0045 Jobs(()), 8, 0 => ADMINS, Waiting, Short;
        /// What happens to a job from now on.
        0x0046 Follow(JobOf), 64, 0 => ADMINS, Waiting, Long;
        /// Copies points from another node.
        0x0050 Pull(PullIn), 64 << 10, 0 => ADMINS, Waiting, Long;
        /// Looks whether everything is there and sound.
        0x0051 Verify(VerifyIn), 64 << 10, 0 => ADMINS, Waiting, Long;
        /// Makes the index again.
        0x0052 RebuildIndex(RepositoryRef), 64, 0 => ADMINS, Waiting, Long;
        /// Reclaims what no point needs.
        0x0053 Sweep(SweepIn), 128, 0 => ADMINS, Waiting, Long;
    }
}

messages! {
    /// What the node answers: one, or several of which all but the last say that more follows.
    Reply {
        /// The request was done; there is nothing to tell.
        0x8000 Done(()), 0, 0;
        /// The request failed.
        0x8001 Failed(Failed), 16 << 10, 0;
        /// Answer to `Hello`.
        0x8002 Welcome(Welcome), 1 << 10, 0;
        /// Answer to `Open`.
        0x8003 Opened(Opened), 128, 0;
        /// Answer to `Token`.
        0x8004 Expected(Expected), 64, 0;
        /// Answer to `Join` and `Renew`.
        0x8005 Certified(Certified), 16 << 10, 0;
        /// Answer to any request, before its real answer: the node is at work on it.
        0x8006 Waiting(()), 0, 0;
        /// Answer to `List`, in several.
        0x8010 Points(Vec<RecoveryPoint>), POINTS_BYTES_MAX, 0;
        /// Answer to `Stats`.
        0x8011 Totals(Stats), 256, 0;
        /// Answer to `LogHead`.
        0x8012 LogHead(LogHead), 64, 0;
        /// Answer to `HasBeen`.
        0x8013 Answer(bool), 8, 0;
        /// Answer to `Peer`.
        0x8014 Seen(Option<LogHead>), 64, 0;
        /// Answer to `WantedChunks`. Bulk: the ids.
        0x8016 WantedIds(()), 0, IDS_MAX * 32;
        /// Answer to `Log`.
        0x8017 Records(Vec<LogEntry>), LogEntry::TOGETHER_BYTES_MAX, 0;
        /// Answer to `GivenUp`.
        0x8019 GivenUpAre(Vec<GivenUp>), 8 + GivenUp::MAX * 40, 0;
        /// Answer to `Begin` and `Read`: the session. More may follow.
        0x8020 Session(SessionRef), 64, 0;
        /// Answer to `Begin`, after `Session`: suspect chunks.
        0x8021 Suspects(Vec<Suspect>), 8 + SUSPECTS_MAX * 56, 0;
        /// Answer to `Missing`. Bulk: a byte for each id.
        0x8022 Presences(()), 0, IDS_MAX;
        /// Answer to `Put` and `Flush`: what the session has stored so far.
        0x8023 Stored(StoredTotals), 64, 0;
        /// Answer to `Commit`.
        0x8024 Committed(Committed), POINTS_BYTES_MAX, 0;
        /// Answer to `Commit`: put these first. Bulk: the ids.
        0x8025 Lacking(()), 0, LACKING_MAX * 32;
        /// Answer to `Manifest`. Bulk: its bytes.
        0x8031 ManifestBytes(()), 0, COMMIT_BYTES_MAX;
        /// Answer to `Get` and `GetVerified`, in several. Bulk: the ids, then the blobs.
        0x8032 Chunks(Chunks), CHUNKS_BODY_MAX, PUT_BYTES_MAX;
        /// The end of an answer to `Get`: so many `Chunks` came on streams of their own.
        0x8033 Parts(u32), 8, 0;
        /// Answer to `Attend`: taken. More follows.
        0x8040 Taken(()), 0, 0;
        /// Answer to `Attend`: a job.
        0x8041 Assigned(Job), JOB_BYTES_MAX, 0;
        /// Answer to `Attend`: a job is to end.
        0x8042 CalledOff(JobOf), 64, 0;
        /// Answer to `Run` and `Follow`: what happens to it. The last one is its end.
        0x8043 Event(Event), EVENT_BYTES_MAX, 0;
        /// Answer to `Run`: who has the job. Events follow.
        0x8044 Given(Given), 256, 0;
        /// Answer to `Proxies`: one of them. `Done` follows the last.
        0x8045 Proxy(ProxyStatus), ATTEND_BYTES_MAX + (2 << 10), 0;
        /// Answer to `Jobs`: one of them; `Done` follows the last. Answer to `Follow`: the job; events follow.
        0x8046 Job(JobStatus), 18 << 10, 0;
        /// Answer to `Pull`, now and then: plain bytes that came for it so far.
        0x8050 Pulling(u64), 8, 0;
        /// Answer to `Pull`, for each point; `Done` follows the last.
        0x8051 Pulled(Pulled), 17 << 10, 0;
        /// Answer to `Verify`, `RebuildIndex` and `Sweep`, now and then: how far it is.
        0x8052 Working(Counters), 64, 0;
        /// Answer to `Verify`: what is wrong, in several.
        0x8053 Damages(Vec<Damage>), DAMAGES_BYTES_MAX, 0;
        /// Answer to `Verify`: the end.
        0x8054 Verified(Verified), 64, 0;
        /// Answer to `RebuildIndex`: the end.
        0x8055 Rebuilt(IndexTotals), 64, 0;
        /// Answer to `Sweep`: the end.
        0x8056 Swept(SweepReport), 128, 0;
    }
}
