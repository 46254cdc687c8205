//! What a node does when it is asked: one arm for each request, and a method where that takes more than a line.

use super::reply::{blobs, points, say, send, spread};
use super::served::{Lease, Served};
use super::{Answer, Done, Node, Refused, arrival};
use crate::bulk;
use crate::maintenance::{rebuild_index, sweep, verify};
use crate::message::{
    BeginIn, CommitIn, Committed, DRAFTS_MAX, Failed, Hello, LACKING_MAX, ManifestOf, MissingIn, MoveIn, NO_SESSION,
    Open, Opened, PullIn, Put, ReadIn, Reply, Request, SUSPECTS_MAX, SessionRef, SweepIn, WantedOf, Welcome,
    presence_code,
};
use bytes::Bytes;
use chunker::{ChunkId, ChunkKind};
use futures::StreamExt;
use mover::{
    Begin, Commit, Either, Error, ErrorKind, Holder, LogHead, Manifest, PointDraft, PointFilter, ReadSession,
    Repository, RepositoryId, Result, SessionId, Verification, WriteSession, labels,
};
use std::sync::Arc;
use tokio::sync::{SemaphorePermit, mpsc};
use tokio::time::Instant;

/// A session, and the repository it is of.
type Leased<R> = (Arc<Served<R>>, Arc<Lease<R>>);

impl<R: Repository + 'static> Node<R> {
    /// Does what `request` asks for and answers. The caller has checked before that `holder` may make this request.
    #[expect(clippy::too_many_lines, reason = "one arm for each request")]
    pub(super) async fn request(&self, holder: &Holder, request: Request, beside: Bytes, to: &mut Answer) -> Done {
        match request {
            Request::Hello(hello) => say(to, welcome(&hello)?).await,
            Request::Token(it) => say(to, self.expect(holder, it).await?).await,
            Request::Join(it) => say(to, self.join(it).await?).await,
            Request::Renew(it) => say(to, self.renew(holder, &to.caller, it)?).await,
            Request::Open(it) => self.open(holder, it, to).await,
            Request::List(list) => {
                let filter = PointFilter { machine: list.machine, forgotten: list.forgotten };
                points(to, self.of(list.repository)?.list(holder, &filter).await?).await
            }
            Request::Stats(it) => self.stats(holder, it.repository, to).await,
            Request::LogHead(it) => {
                let ends: LogHead = self.of(it.repository)?.repository.log_head().await?;
                say(to, Reply::LogHead(ends)).await
            }
            Request::HasBeen(it) => {
                say(to, Reply::Answer(self.of(it.repository)?.repository.has_been(it.seen).await?)).await
            }
            Request::Peer(it) => say(to, Reply::Seen(self.of(it.repository)?.repository.peer(it.peer).await?)).await,
            Request::WantedChunks(WantedOf { repository, after }) => {
                let ids = self.of(repository)?.repository.wanted(after.map(ChunkId)).await?;
                Ok(send(to, &Reply::WantedIds(()), vec![bulk::of_ids(ids.into_iter())], false).await?)
            }
            Request::Log(it) => say(to, Reply::Records(self.of(it.repository)?.repository.log(it.after).await?)).await,
            Request::Begin(it) => self.begin(holder, it, to).await,
            Request::Read(it) => self.read(holder, it, to).await,
            Request::Missing(it) => self.missing(holder, it, &beside, to).await,
            Request::Put(put) => self.put(holder, &put, beside, to).await,
            Request::Flush(SessionRef { session }) => {
                let stored = self.lease(session, holder)?.write()?.flush().await?;
                say(to, Reply::Stored(stored)).await
            }
            Request::Commit(commit) => self.commit(holder, commit, beside, to).await,
            Request::Abandon(SessionRef { session }) | Request::Close(SessionRef { session }) => {
                self.let_go(self.served(session, holder)?.0.end(session));
                say(to, Reply::Done(())).await
            }
            Request::Manifest(it) => self.manifest(holder, it, to).await,
            Request::Pull(it) => self.pull(it, to).await,
            Request::Verify(it) => {
                let _turn = self.maintenance()?;
                verify(&self.of(it.repository)?.repository, it.options()?, to).await
            }
            Request::ChangePoints(it) => {
                self.of(it.repository)?.repository.change_points(&it.points, it.change).await?;
                tracing::info!(%holder, change = ?it.change, points = it.points.len(), "points changed");
                say(to, Reply::Done(())).await
            }
            Request::Annotate(it) => {
                self.of(it.repository)?.repository.annotate(it.point, &it.labels).await?;
                tracing::info!(%holder, point = %it.point, "labels set");
                say(to, Reply::Done(())).await
            }
            Request::MoveMachine(MoveIn { repository, machine, origin, owner }) => {
                tracing::info!(%holder, %machine, ?owner, "machine handed over");
                self.of(repository)?.repository.move_machine(machine, origin, owner).await?;
                say(to, Reply::Done(())).await
            }
            Request::GivenUp(it) => {
                say(to, Reply::GivenUpAre(self.of(it.repository)?.repository.given_up().await?)).await
            }
            Request::Sweep(it) => self.sweep(holder, it, to).await,
            Request::RebuildIndex(it) => {
                let _turn = self.maintenance()?;
                rebuild_index(&self.of(it.repository)?.repository, to).await
            }
            Request::Get(it) => self.get(holder, it, &beside, to).await,
            Request::GetVerified(it) => self.get_verified(holder, it, &beside, to).await,
            Request::Attend(_)
            | Request::Run(_)
            | Request::Cancel(_)
            | Request::Report(_)
            | Request::Proxies(())
            | Request::Jobs(())
            | Request::Follow(_) => self.broker.request(holder, request, to, || self.not_denied(holder)).await,
        }
    }

    async fn open(&self, holder: &Holder, Open { name, machine }: Open, to: &mut Answer) -> Done {
        let served = self.repositories.named(&name)?;
        let config = served.repository.config();
        let (repository, domain, created) = (config.id, config.domain.0, config.created);
        let opened = Reply::Opened(Opened { repository, domain, created, owner: holder.owner_id() });
        send(to, &opened, Vec::new(), machine.is_some()).await?;
        match machine {
            Some(_) => points(to, served.list(holder, &PointFilter { machine, forgotten: false }).await?).await,
            None => Ok(()),
        }
    }

    async fn stats(&self, holder: &Holder, repository: RepositoryId, to: &mut Answer) -> Done {
        let served = self.of(repository)?;
        if served.sight(holder).is_some() {
            // They grow with what nobody had before.
            let what = "where owners are kept apart (dedup = \"owner\"), only administrators may see totals";
            return Err(Error::new(ErrorKind::NotAuthorised, what).into());
        }
        say(to, Reply::Totals(served.repository.stats().await?)).await
    }

    async fn begin(&self, holder: &Holder, it: BeginIn, to: &mut Answer) -> Done {
        let served = self.of(it.repository)?;
        let place = served.places.take(holder, served.quotas.of(holder).sessions)?;
        let share = served.quotas.begin(holder, &served.of_owner(holder).await?)?;
        // Nobody far away is believed: what is wrong here would be wrong in every point that shares it.
        let (verification, by) = (Verification::Decode, Some(holder.clone()));
        let begin = Begin { verification, holder: by, ..it.begin };
        let parents = begin.parents.clone();
        let (session, begun) = served.repository.begin(begin).await?;
        let session =
            served.lend(SessionId::random(&self.world), holder, place, Either::Left(session), parents, Some(share));
        let mut pages = begun.suspects.chunks(SUSPECTS_MAX).peekable();
        send(to, &Reply::Session(SessionRef { session }), Vec::new(), pages.peek().is_some()).await?;
        while let Some(page) = pages.next() {
            send(to, &Reply::Suspects(page.to_vec()), Vec::new(), pages.peek().is_some()).await?;
        }
        Ok(())
    }

    async fn read(&self, holder: &Holder, it: ReadIn, to: &mut Answer) -> Done {
        let served = self.of(it.repository)?;
        let place = served.places.take(holder, served.quotas.of(holder).sessions)?;
        served.shows(holder, &it.points).await?;
        let reader = served.repository.read(&it.points).await?;
        let session =
            served.lend(SessionId::random(&self.world), holder, place, Either::Right(reader), it.points, None);
        say(to, Reply::Session(SessionRef { session })).await
    }

    async fn missing(
        &self,
        holder: &Holder,
        MissingIn { session, kind }: MissingIn,
        beside: &Bytes,
        to: &mut Answer,
    ) -> Done {
        let lease = self.lease(session, holder)?;
        let kind = ChunkKind::from_code(kind).ok_or_else(|| Error::transport("unknown kind of chunk"))?;
        let found = lease.write()?.missing(kind, &bulk::ids(beside)?).await?;
        let codes: Vec<u8> = found.into_iter().map(presence_code).collect();
        Ok(send(to, &Reply::Presences(()), vec![codes.into()], false).await?)
    }

    async fn put(&self, holder: &Holder, put: &Put, beside: Bytes, to: &mut Answer) -> Done {
        let (served, lease) = self.served(put.session, holder)?;
        let (session, share) = (lease.write()?, lease.share()?);
        served.quotas.check(share, holder)?;
        match arrival::take(&to.caller.allowance, session, &put.lengths, beside).await {
            // Who gives something else than it says, by a lie or by bad memory, gets no further with it.
            Err(error) if error.kind() == ErrorKind::Integrity => {
                tracing::warn!(%holder, session = %put.session, %error, "session ended");
                served.end(put.session);
                Err(error.into())
            }
            Ok(false) => Err(Refused::no_room()),
            taken => {
                taken?;
                let stored = session.stored().await?;
                served.quotas.count(share, stored.bytes_stored);
                say(to, Reply::Stored(stored)).await
            }
        }
    }

    async fn manifest(&self, holder: &Holder, it: ManifestOf, to: &mut Answer) -> Done {
        let (served, lease) = self.served(it.session, holder)?;
        if !lease.pins.contains(&it.point) {
            return Err(Error::not_found(format!("the session does not pin point {}", it.point)).into());
        }
        let manifest = lease.session.manifest(it.point).await?;
        if let Some(sight) = served.sight(holder) {
            sight.showing(&manifest).await?;
        }
        Ok(send(to, &Reply::ManifestBytes(()), vec![manifest.encode().into()], false).await?)
    }

    async fn sweep(&self, holder: &Holder, it: SweepIn, to: &mut Answer) -> Done {
        let _turn = self.maintenance()?;
        tracing::info!(%holder, dry_run = it.options.dry_run, "sweep");
        let served = self.of(it.repository)?;
        sweep(&served.repository, it.options, to).await?;
        served.swept(it.options.dry_run);
        Ok(())
    }

    async fn get(&self, holder: &Holder, SessionRef { session }: SessionRef, beside: &Bytes, to: &mut Answer) -> Done {
        let (served, lease) = self.served(session, holder)?;
        let ids = bulk::ids(beside)?;
        let Some(sight) = served.sight(holder) else { return spread(to, lease.session.get(ids)).await };
        let (seen, missing) = sight.seen(ids).await?;
        let batches = lease.session.get(seen.keys().copied().collect());
        spread(to, sight.shown(&seen, missing, batches)).await
    }

    async fn get_verified(
        &self,
        holder: &Holder,
        SessionRef { session }: SessionRef,
        beside: &Bytes,
        to: &mut Answer,
    ) -> Done {
        let (served, lease) = self.served(session, holder)?;
        let ids = bulk::ids(beside)?;
        // Few at a time: a chunk may be long, and nobody has taken the ones before yet.
        let verified = |ids: Vec<ChunkId>| {
            let few: Vec<Vec<ChunkId>> = ids.chunks(VERIFIED_TOGETHER).map(<[_]>::to_vec).collect();
            futures::stream::iter(few).then(|ids| lease.session.get_verified(&served.keys, ids))
        };
        let Some(sight) = served.sight(holder) else { return blobs(to, verified(ids)).await };
        let (seen, missing) = sight.seen(ids).await?;
        blobs(to, sight.shown(&seen, missing, verified(seen.keys().copied().collect()))).await
    }

    fn maintenance(&self) -> Result<SemaphorePermit<'_>> {
        let busy = || {
            Error::busy("the node already verifies or sweeps a repository, or rebuilds an index").hint(MAINTAIN_LATER)
        };
        self.maintenance.try_acquire().map_err(|_| busy())
    }

    async fn pull(&self, it: PullIn, to: &mut Answer) -> Done {
        let served = self.of(it.repository)?;
        let none = || Error::usage("this node does not copy from other nodes");
        let puller = self.puller.clone().ok_or_else(none)?;
        let (tell, mut told) = mpsc::channel(1);
        let receive = self.budgets.paces.receive.clone();
        // A thread of its own: a copy goes on for long, and the compiler cannot see that it may change threads.
        let runtime = tokio::runtime::Handle::current();
        let pulling = mover::blocking(move || runtime.block_on(puller.pull(&served.repository, it, receive, tell)));
        let pulling = tokio::spawn(pulling);
        while let Some(reply) = told.recv().await {
            send(to, &reply, Vec::new(), true).await?;
        }
        pulling.await.map_err(|error| Error::internal("a copy ended early").because(error))??;
        say(to, Reply::Done(())).await
    }

    async fn commit(&self, holder: &Holder, commit: CommitIn, mut beside: Bytes, to: &mut Answer) -> Done {
        let (served, lease) = self.served(commit.session, holder)?;
        if commit.drafts.len() > DRAFTS_MAX {
            return Err(
                Error::usage(format!("{} points in one commit, more than {DRAFTS_MAX}", commit.drafts.len())).into()
            );
        }
        let mut drafts = Vec::new();
        for draft in commit.drafts {
            let length = draft.manifest_bytes as usize;
            if length > beside.len() {
                return Err(Error::transport("a message with lengths that do not match").into());
            }
            let manifest = Manifest::decode(&beside.split_to(length)).map_err(Error::from)?;
            // Tags are what the manifest says; of what else is known of a copy whoever copies is believed.
            let labels = match draft.origin {
                Some(_) => draft.labels,
                None => labels::of_tags(&manifest.tags),
            };
            drafts.push(PointDraft { manifest, origin: draft.origin, labels });
        }
        if !beside.is_empty() {
            return Err(Error::transport("a message with lengths that do not match").into());
        }
        let (session, share) = (lease.write()?, lease.share()?);
        let there = served.of_owner(holder).await?;
        let is_new = |draft: &&PointDraft| there.iter().all(|point| point.id != draft.manifest.point);
        served.quotas.check_points(holder, &there, drafts.iter().filter(is_new).count() as u64)?;
        match session.commit(&drafts).await? {
            Commit::Committed(points) => {
                let stored = session.stored().await?;
                served.quotas.committed(share);
                self.let_go(served.end(commit.session));
                say(to, Reply::Committed(Committed { points, stored })).await
            }
            Commit::Missing(mut missing) => {
                missing.truncate(LACKING_MAX);
                Ok(send(to, &Reply::Lacking(()), vec![bulk::of_ids(missing.into_iter())], false).await?)
            }
        }
    }

    fn of(&self, repository: RepositoryId) -> Result<Arc<Served<R>>> {
        self.repositories.of(repository)
    }

    fn lease(&self, session: SessionId, holder: &Holder) -> Result<Arc<Lease<R>>, Refused> {
        self.served(session, holder).map(|(_, lease)| lease)
    }

    /// A session of this holder; one of somebody else is as if it were not there.
    fn served(&self, session: SessionId, holder: &Holder) -> Result<Leased<R>, Refused> {
        let found = self.repositories.find(|served| {
            let leases = served.leases.lock().expect("no holder panics");
            let lease = leases.get(&session).filter(|lease| lease.holder == *holder)?;
            *lease.used.lock().expect("no holder panics") = Instant::now();
            Some((served.clone(), lease.clone()))
        });
        let (message, hint) = (format!("session {session} is not known"), String::new());
        found.ok_or(Refused::Told(Failed { code: NO_SESSION, message, hint, subject: Box::default() }))
    }
}

/// How a node greets a client of a version that both speak.
///
/// # Errors
/// `Version` when there is none.
pub(super) fn welcome(hello: &Hello) -> Result<Reply> {
    let (lowest, highest) = hello.versions;
    if lowest > crate::VERSION || highest < crate::VERSION {
        let what =
            format!("the node speaks version {} of the protocol, and the client {lowest} to {highest}", crate::VERSION);
        return Err(Error::version(what).hint("use the same version of Windlass on both sides"));
    }
    let program = concat!("windlass-store ", env!("CARGO_PKG_VERSION")).to_owned();
    let features = hello.features & crate::FEATURES;
    Ok(Reply::Welcome(Welcome { version: crate::VERSION, features, program }))
}

const MAINTAIN_LATER: &str = "run the command again when that has ended (sweep can wait for it: --wait)";
/// Chunks decoded and compared before the first is sent.
const VERIFIED_TOGETHER: usize = 4;
