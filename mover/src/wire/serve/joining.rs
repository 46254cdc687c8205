//! Tokens, certificates, and connections of those who have none yet.

use super::super::message::{Certified, Expected, JoinIn, RenewIn, Reply, Request, TokenIn};
use super::super::{CLOSED_REFUSED, CLOSED_STOPPING, access};
use super::{Arrival, Caller, Counted, Done, Node, PATIENCE, not_greeted, receive, say, tell, welcome};
use crate::identity::{Facts, Registry};
use crate::{Error, Repository, Result, blocking};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};

impl<R: Repository + 'static> Node<R> {
    /// Holds the site's authority: gives certificates out.
    #[must_use]
    pub fn with_registry(mut self, registry: Arc<Registry>) -> Self {
        self.registry = Some(registry);
        self
    }

    pub(super) async fn expect(&self, by: &crate::identity::Holder, it: TokenIn) -> Result<Reply> {
        let registry = self.registry()?;
        self.not_denied(&it.wanted.holder)?;
        tracing::info!(%by, holder = %it.wanted.holder, valid_s = it.valid_s, "token made");
        let valid = Duration::from_secs(it.valid_s.into());
        let expires = blocking(move || registry.expect(&it.hash, &it.wanted, valid)).await?;
        Ok(Reply::Expected(Expected { expires }))
    }

    pub(super) async fn join(&self, it: JoinIn) -> Result<Reply> {
        let (registry, denied) = (self.registry()?, self.denied.clone());
        blocking(move || {
            let (holder, certificate) = registry.join(&it.secret, &it.claim, &*denied)?;
            tracing::info!(%holder, "joined");
            Ok(certified(&registry, certificate))
        })
        .await
    }

    pub(super) async fn renew(&self, caller: &Caller, it: RenewIn) -> Result<Reply> {
        let registry = self.registry()?;
        let hosts = Facts::of(&caller.certificate)?.hosts;
        let certificate = registry.renew(&caller.holder, &hosts, &it.claim)?;
        tracing::info!(holder = %caller.holder, "certificate renewed");
        Ok(certified(&registry, certificate))
    }

    fn registry(&self) -> Result<Arc<Registry>> {
        self.registry.clone().ok_or_else(|| {
            Error::not_found("this node does not hold the site's authority")
                .hint("ask the node whose configuration has `authority`")
        })
    }

    /// Somebody without a certificate has a few seconds, for a few small requests one after another.
    pub(super) async fn stranger(&self, connection: Connection, mut stop: watch::Receiver<bool>) {
        let refuse = |why: &str| connection.close(VarInt::from_u32(CLOSED_REFUSED), why.as_bytes());
        if self.registry.is_none() {
            return refuse("no certificate was shown, and this node gives none out");
        }
        self.strangers.fetch_add(1, Ordering::Relaxed);
        let counted = Counted(&self.strangers);
        if counted.0.load(Ordering::Relaxed) > STRANGERS_MAX {
            return refuse("too many join at once: try again");
        }
        // What it may send beside what it was granted before it was known.
        connection.set_receive_window(VarInt::from_u32(STRANGER_WINDOW_BYTES));
        connection.set_max_concurrent_bi_streams(VarInt::from_u32(STRANGER_STREAMS_MAX));
        // Nothing that a stranger may ask has anything beside it.
        let room = Arc::new(Semaphore::new(0));
        let asking = async {
            let mut greeted = false;
            while let Ok((to, from)) = connection.accept_bi().await {
                self.asked_by_stranger(&room, &mut greeted, to, from).await;
            }
        };
        tokio::select! {
            _ = tokio::time::timeout(STRANGER_TIMEOUT, asking) => refuse("no certificate was shown in time"),
            _ = stop.wait_for(|stop| *stop) => connection.close(VarInt::from_u32(CLOSED_STOPPING), b"stopping"),
        }
    }

    async fn asked_by_stranger(
        &self,
        room: &Arc<Semaphore>,
        greeted: &mut bool,
        mut to: SendStream,
        mut from: RecvStream,
    ) {
        let asked = receive::<Request>(&mut from, Some(Arrival { room, patience: PATIENCE })).await;
        let done: Done = async {
            let frame = asked?;
            access::check(None, &frame.message)?;
            *greeted |= matches!(frame.message, Request::Hello(_));
            if frame.more || !*greeted {
                return Err(not_greeted().into());
            }
            match frame.message {
                Request::Hello(hello) => say(&mut to, welcome(&hello)?).await,
                Request::Join(it) => say(&mut to, self.join(it).await?).await,
                _ => Err(Error::internal("the table of roles and this function differ").into()),
            }
        }
        .await;
        tell(done, &mut to).await;
    }
}

fn certified(registry: &Registry, certificate: String) -> Reply {
    Reply::Certified(Certified { certificate, authority: registry.certificate_pem().to_owned() })
}

/// Connections without a certificate: few, because each may send a window's worth before it is known that it has none.
const STRANGERS_MAX: usize = 8;
const STRANGER_WINDOW_BYTES: u32 = 64 << 10;
const STRANGER_STREAMS_MAX: u32 = 4;
const STRANGER_TIMEOUT: Duration = Duration::from_secs(10);
