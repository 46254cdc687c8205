//! The last columns of the table of requests (`table`): who may send the request, how much memory it uses on the node, and how
//! long it lasts.

use super::{IDS_MAX, Message as _, Request};
use crate::bulk::ID_BYTES;
use mover::Role;

/// Who may make a request, and what it takes of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Who may make it.
    pub who: Who,
    /// Memory that it uses.
    pub work: Work,
    /// How long it lasts.
    pub lasts: Lasts,
}

/// A set of roles. Clients without a certificate can be in it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Who(u8);

impl Who {
    /// The union of two sets.
    pub const fn and(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// Whether somebody of this role is among them.
    pub const fn has(self, role: Role) -> bool {
        self.0 & 1 << role.code() != 0
    }

    /// Whether somebody without a certificate is among them.
    pub const fn has_strangers(self) -> bool {
        self.0 & STRANGERS.0 != 0
    }
}

const NODES: Who = Who(1 << Role::Node.code());
pub(super) const PROXIES: Who = Who(1 << Role::Proxy.code());
pub(super) const ADMINS: Who = Who(1 << Role::Admin.code());
/// Whoever has a certificate.
pub(super) const EVERYBODY: Who = NODES.and(PROXIES).and(ADMINS);
/// Who makes points. Only an administrator may commit a point that names another repository as its origin: see `access`.
pub(super) const WRITERS: Who = PROXIES.and(ADMINS);
/// Whoever copies everything.
pub(super) const COPIERS: Who = NODES.and(ADMINS);
/// Whoever shows no certificate.
pub(super) const STRANGERS: Who = Who(1 << 7);

/// About the most memory that a node uses for a request, not counting the bytes of the request itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Little: 64 KiB.
    Small,
    /// A stream over which something is told now and then.
    Waiting,
    /// Something that is read and told.
    Reading,
    /// A list of ids, their sorted places, and chunks that are read before they can be sent.
    ReadingAhead,
    /// As [`Self::ReadingAhead`], but always with the full room for reading, however few ids are asked for.
    ReadingVerified,
    /// A session, or what commits look at.
    Beginning,
    /// Ids that are looked up.
    Asking,
    /// Chunks that are checked.
    Putting,
}

impl Work {
    /// The memory in bytes, for `request` with so many bulk bytes.
    pub fn bytes(self, request: &Request, beside_bytes: usize) -> usize {
        match (self, request) {
            (Self::Small, _) => SMALL_BYTES,
            (Self::Waiting, _) => WAITING_BYTES,
            (Self::Reading, _) => READING_BYTES,
            (Self::ReadingAhead, _) => READING_BYTES.min(READ_BYTES * beside_bytes / ID_BYTES) + 3 * beside_bytes,
            (Self::ReadingVerified, _) => READING_BYTES + 3 * beside_bytes,
            (Self::Beginning, _) => BEGINNING_BYTES + 3 * beside_bytes,
            (Self::Asking, _) => 4 * beside_bytes,
            (Self::Putting, Request::Put(put)) => PUT_CHUNK_BYTES * put.lengths.len(),
            (Self::Putting, other) => unreachable!("nothing is put by {:#06x}", other.code()),
        }
    }
}

/// How long a request lasts. Long requests are counted apart, so that short ones do not wait for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasts {
    /// Not long.
    Short,
    /// Long.
    Long,
    /// Long when it has more than so many bulk bytes.
    LongFrom(usize),
}

impl Lasts {
    /// Whether a request with so many bulk bytes is counted with the long ones.
    pub const fn is_long(self, beside_bytes: usize) -> bool {
        match self {
            Self::Short => false,
            Self::Long => true,
            Self::LongFrom(bytes) => beside_bytes > bytes,
        }
    }
}

/// Beyond this many bytes of ids an answer may take long.
pub(crate) const SHORT_GET_BYTES_MAX: usize = IDS_MAX * ID_BYTES;
/// Beyond this many bytes of manifests a commit counts with long answers.
pub(crate) const SHORT_COMMIT_BYTES_MAX: usize = 1 << 20;
/// One chunk being read; there are longer ones, but of those few.
const READ_BYTES: usize = 256 << 10;
/// A manifest being made, or chunks read ahead.
const READING_BYTES: usize = 5 << 20;
/// Pages of maps being walked.
const BEGINNING_BYTES: usize = 1 << 20;
/// What is known of a chunk that is being put.
const PUT_CHUNK_BYTES: usize = 256;
const SMALL_BYTES: usize = 64 << 10;
/// A stream over which something is told now and then.
const WAITING_BYTES: usize = 16 << 10;
