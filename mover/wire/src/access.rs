//! Who may ask what: the one table, looked at before every request.

use super::message::{Message, Request};
use mover::{Error, ErrorKind, Holder, RecoveryPoint, Result, Role};

/// Whether a role may make a request. Exhaustive: a request without a row does not compile.
pub fn allows(role: Role, request: &Request) -> bool {
    match request {
        Request::Hello(_)
        | Request::Open(_)
        | Request::List(_)
        | Request::Stats(_)
        | Request::LogHead(_)
        | Request::HasBeen(_)
        | Request::Peer(_) => true,
        // Who is of the site is decided by administrators; each renews what it has, and nothing else.
        Request::Token(_) => matches!(role, Role::Admin),
        Request::Renew(_) => true,
        // For whoever has no certificate.
        Request::Join(_) => false,
        // Restoring and copying away.
        Request::Read(_) | Request::Manifest(_) | Request::Get(_) | Request::GetVerified(_) | Request::Close(_) => true,
        // Nodes pull: what they write is their own.
        // Where a point comes from, and how the log there ended, is believed: of whoever copies.
        Request::Commit(commit) if commit.drafts.iter().any(|draft| draft.origin.is_some()) => {
            matches!(role, Role::Admin)
        }
        // It has the node go wherever the request says.
        Request::Pull(_) => matches!(role, Role::Admin),
        // Whose a machine is, and what was given up of all of them.
        Request::MoveMachine(_) => matches!(role, Role::Admin),
        Request::GivenUp(_) => matches!(role, Role::Node | Role::Admin),
        // What is damaged is nobody else's business: its ids are what the chunks are asked for with. So is what all others do.
        Request::WantedChunks(_) | Request::Log(_) => matches!(role, Role::Admin),
        // It takes much of what the node has.
        Request::Verify(_) | Request::RebuildIndex(_) => matches!(role, Role::Admin),
        // Whoever may back machines up must not be able to take the past away.
        Request::ChangePoints(_) | Request::Annotate(_) | Request::Sweep(_) => matches!(role, Role::Admin),
        Request::Begin(_)
        | Request::Missing(_)
        | Request::Put(_)
        | Request::Flush(_)
        | Request::Commit(_)
        | Request::Abandon(_) => matches!(role, Role::Proxy | Role::Admin),
        // Jobs: whoever carries them out, and whoever may want them.
        Request::Attend(_) | Request::Report(_) => matches!(role, Role::Proxy),
        Request::Run(_) | Request::Cancel(_) => matches!(role, Role::Admin),
    }
}

/// Whether a point is any business of `holder`: of others' points a proxy is told nothing, as if they were not there.
pub fn sees(holder: &Holder, point: &RecoveryPoint) -> bool {
    match holder.role {
        Role::Node | Role::Admin => true,
        Role::Proxy => point.owner == holder.owner_id(),
    }
}

/// Whether somebody without a certificate may make a request.
pub const fn allows_strangers(request: &Request) -> bool {
    matches!(request, Request::Hello(_) | Request::Join(_))
}

/// Refuses what `holder`, or somebody without a certificate, may not ask.
///
/// # Errors
/// `NotAuthorised`.
pub fn check(holder: Option<&Holder>, request: &Request) -> Result<()> {
    let (allowed, refusal) = match holder {
        Some(holder) => (allows(holder.role, request), format!("{holder} may not do this")),
        None => (allows_strangers(request), "only holders of a certificate may do this".to_owned()),
    };
    if allowed {
        return Ok(());
    }
    let what = format!("{refusal} (request {:#06x})", request.code());
    Err(Error::new(ErrorKind::NotAuthorised, what).hint("use an identity with another role"))
}
