//! Making tokens, joining with them, renewing: the client's half.

use super::link::{Link, Peer, unexpected};
use super::message::{Certified, JoinIn, RenewIn, Reply, Request, TokenIn};
use super::quic::{client, client_config_of, join_config};
use super::{Congestion, Current};
use crate::identity::{Address, Credentials, Issued, NewKey, Token, Trust, Wanted};
use mover::{Error, Holder, Result, Timestamp, World};
use std::time::Duration;

/// Has the authority at `address` expect somebody for so long. Gives the token, and until when it can be used.
///
/// # Errors
/// `NotAuthorised` when the caller is no administrator; `NotFound` when the node does not hold the authority.
pub async fn create_token(
    us: &Credentials,
    address: Address,
    wanted: Wanted,
    valid: Duration,
    world: &World,
) -> Result<(Token, Timestamp)> {
    let token = Token::new(us.trust.fingerprint(), address, world);
    let valid_s = u32::try_from(valid.as_secs()).unwrap_or(u32::MAX);
    let request = Request::Token(TokenIn { hash: token.hash(), wanted, valid_s });
    match ask(known(us, &token.address)?, &request).await? {
        Reply::Expected(expected) => Ok((token, expected.expires)),
        _ => Err(unexpected()),
    }
}

/// Uses a token: an identity with its authority's certificate as PEM, for a folder. The key is made here and stays here.
///
/// # Errors
/// `NotAuthorised` when the node is not of the site that made the token, or does not take it.
pub async fn join(token: &Token, world: &World) -> Result<(Holder, Issued, String)> {
    let key = NewKey::generate()?;
    let request = Request::Join(JoinIn { secret: token.secret, claim: key.claim(&token.hash())? });
    let peer = peer(&token.address, join_config(token)?);
    let Certified { certificate, authority } = certified(ask(peer, &request).await?)?;
    let trust = Trust::from_pem(&authority)?;
    if trust.fingerprint() != token.authority {
        return Err(Error::integrity("the node sent the certificate of another authority"));
    }
    let issued = Issued { certificate_pem: certificate, key_pem: key.pem() };
    let identity = issued.identity()?;
    trust.verify(identity.certificate(), world)?;
    Ok((identity.holder().clone(), issued, authority))
}

/// Has the certificate of `us` renewed, for a new key.
pub(super) async fn renew(us: &Credentials, address: &Address, key: &NewKey, patience: Duration) -> Result<String> {
    let claim = key.claim(us.identity.holder().to_string().as_bytes())?;
    let peer = Peer { patience, ..known(us, address)? };
    Ok(certified(ask(peer, &Request::Renew(RenewIn { claim })).await?)?.certificate)
}

fn known(us: &Credentials, address: &Address) -> Result<Peer> {
    let current = Current::fixed(&us.identity, &us.trust);
    Ok(peer(address, client_config_of(&current, Congestion::default())?).known_as(current))
}

fn peer(address: &Address, config: quinn::ClientConfig) -> Peer {
    Peer::new(address.host.as_str(), address.port, config)
}

async fn ask(peer: Peer, request: &Request) -> Result<Reply> {
    let link = Link::new(client()?, peer);
    let asked = link.call(request, &[]).await;
    link.close().await;
    Ok(asked?.0)
}

fn certified(reply: Reply) -> Result<Certified> {
    match reply {
        Reply::Certified(certified) => Ok(certified),
        _ => Err(unexpected()),
    }
}
