//! Tokens, certificates, and connections of those who have none yet.

use super::super::message::{Certified, Expected, JoinIn, RenewIn, Reply, Request, TokenIn};
use super::super::{CLOSED_REFUSED, CLOSED_STOPPING};
use super::Node;
use super::caller::{Caller, Done};
use super::reply::{Answer, say};
use super::requests::welcome;
use crate::allowance::Allowance;
use crate::identity::Registry;
use mover::{Error, Holder, Repository, Result, blocking};
use quinn::{Connection, VarInt};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

impl<R: Repository + 'static> Node<R> {
    /// Holds the site's authority: gives certificates out.
    #[must_use]
    pub fn with_registry(mut self, registry: Arc<Registry>) -> Self {
        self.registry = Some(registry);
        self
    }

    pub(super) async fn expect(&self, by: &Holder, it: TokenIn) -> Result<Reply> {
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

    pub(super) fn renew(&self, holder: &Holder, caller: &Caller, it: RenewIn) -> Result<Reply> {
        let registry = self.registry()?;
        // One that has ended, or not begun, is not renewed: `serve` has looked before this request.
        let shown = caller.shown.as_ref().ok_or_else(|| Error::internal("a holder without a certificate"))?;
        let certificate = registry.renew(holder, &shown.hosts, &it.claim)?;
        tracing::info!(%holder, "certificate renewed");
        Ok(certified(&registry, certificate))
    }

    fn registry(&self) -> Result<Arc<Registry>> {
        self.registry.clone().ok_or_else(|| {
            Error::not_found("this node does not hold the site's authority")
                .hint("ask the node whose configuration has `authority`")
        })
    }

    /// Somebody without a certificate has a few seconds, for small requests one after another. Its windows stay as small
    /// as they begin.
    pub(super) async fn stranger(&self, connection: Connection, mut stop: watch::Receiver<bool>) {
        let refuse = |why: &str| connection.close(VarInt::from_u32(CLOSED_REFUSED), why.as_bytes());
        if self.registry.is_none() {
            return refuse("no certificate was shown, and this node does not give out certificates");
        }
        let mut present = self.budgets.connections.share(None);
        let Some(_place) = self.budgets.strangers.try_acquire().ok().filter(|_| present.grow(1)) else {
            return refuse("too many join at this moment: try again");
        };
        let allowance = Allowance::new(None, connection.clone(), &self.budgets);
        let caller = Arc::new(Caller { allowance, shown: None, greeted: watch::Sender::new(false) });
        let asking = async {
            while let Ok((to, from)) = connection.accept_bi().await {
                let _turn = caller.allowance.turn().await;
                Box::pin(self.stream(Answer::new(to, caller.clone()), from)).await;
            }
        };
        tokio::select! {
            _ = tokio::time::timeout(STRANGER_TIMEOUT, asking) => refuse("no certificate was shown in time"),
            _ = stop.wait_for(|stop| *stop) => connection.close(VarInt::from_u32(CLOSED_STOPPING), b"stopping"),
        }
    }

    /// All that `access` lets somebody without a certificate ask.
    pub(super) async fn asked_by_stranger(&self, request: Request, to: &mut Answer) -> Done {
        match request {
            Request::Hello(hello) => say(to, welcome(&hello)?).await,
            Request::Join(it) => say(to, self.join(it).await?).await,
            _ => Err(Error::internal("the table of roles and this function differ").into()),
        }
    }
}

fn certified(registry: &Registry, certificate: String) -> Reply {
    Reply::Certified(Certified { certificate, authority: registry.certificate_pem().to_owned() })
}

const STRANGER_TIMEOUT: Duration = Duration::from_secs(10);
