//! Which requests each role may make. This is checked before every request. The table is `message/table.rs`: each
//! request has one row with its type code and the roles that may make it.

use super::message::{Message, Request};
use mover::{Error, ErrorKind, Holder, RecoveryPoint, Result, Role};

/// Whether a role may make a request, as the request's row in the table says. In addition, only an administrator may
/// commit a point that has an origin, because the node trusts nobody else about where a point comes from and how the
/// log there ended.
pub fn allows(role: Role, request: &Request) -> bool {
    let brings = matches!(request, Request::Commit(commit) if commit.drafts.iter().any(|draft| draft.origin.is_some()));
    request.rules().who.has(role) && (!brings || role == Role::Admin)
}

/// Whether `holder` may see a point. A proxy sees only the points of its own owner. All other points are hidden from
/// it, as if they were not there.
pub fn sees(holder: &Holder, point: &RecoveryPoint) -> bool {
    match holder.role {
        Role::Node | Role::Admin => true,
        Role::Proxy => point.owner == holder.owner_id(),
    }
}

/// Whether somebody without a certificate may make a request.
pub const fn allows_strangers(request: &Request) -> bool {
    request.rules().who.has_strangers()
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
