//! Who may ask what: the one table, looked at before every request.

use super::message::{Message, Request};
use crate::identity::{Holder, Role};
use crate::{Error, ErrorKind, Result};

/// Whether a role may make a request. Exhaustive: a request without a row does not compile.
pub fn allows(role: Role, request: &Request) -> bool {
    match request {
        Request::Hello(_)
        | Request::Open(_)
        | Request::List(_)
        | Request::Stats(_)
        | Request::Incarnation(_)
        | Request::HasBeen(_)
        | Request::Peer(_) => true,
        // Restoring and copying away.
        Request::Read(_) | Request::Manifest(_) | Request::Get(_) | Request::GetVerified(_) | Request::Close(_) => true,
        // Nodes pull: what they write is their own.
        // Where a point comes from, and how the log there ended, is believed: of whoever copies.
        Request::Commit(commit) if commit.drafts.iter().any(|draft| draft.origin.is_some()) => {
            matches!(role, Role::Admin)
        }
        // It has the node go wherever the request says.
        Request::Pull(_) => matches!(role, Role::Admin),
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

/// Refuses what `holder` may not ask.
///
/// # Errors
/// `NotAuthorised`.
pub fn check(holder: &Holder, request: &Request) -> Result<()> {
    if allows(holder.role, request) {
        return Ok(());
    }
    let what = format!("{holder} may not do this (request {:#06x})", request.code());
    Err(Error::new(ErrorKind::NotAuthorised, what).hint("use an identity with another role"))
}
