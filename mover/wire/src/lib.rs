//! The wire: the same repository across QUIC. `PROTOCOL.md` is complete enough for another implementation.
//!
//! | file | half | what it is about |
//! |---|---|---|
//! | `message` | both | what is said: type codes, fields, limits |
//! | `bulk` | both | ids and blobs beside messages |
//! | `frame` | both | how a message stands on a stream |
//! | `quic` | both | certificates, windows, congestion |
//! | `answer` | client | answers, on one stream or many |
//! | `bounded` | client | how much of an answer is taken |
//! | `link` | client | connections that are made again when they are lost |
//! | `presence` | client | which chunks are there, asked together |
//! | `pull` | both | copies from node to node |
//! | `remote` | client | [`Remote`]: sessions that survive |
//! | `join` | client | making and using tokens, renewing certificates |
//! | `renewer` | both | [`IdentityRenewer`]: an identity that renews itself |
//! | `access` | node | who may ask what |
//! | `budgets`, `handshakes` | node | amounts that holders share; who is not known yet |
//! | `allowance` | node | how much of the node's memory and time one connection gets |
//! | `serve` | node | [`Node`]: takes requests, one on each stream |
//! | `control` | all | jobs of proxies |
//! | `address` | client | addresses of nodes |
//! | `waits` | client | how long a node is waited for, for what |
//! | `validity` | both | certificates and time |
//! | `identity` | all | certificates, keys, the authority of a site, its tokens |
//! | `maintenance` | client | sweeping, verifying, making the index again |
//! | `service` | node, proxy | what both programs do as services: configuration, notice of readiness |
//! | `socket` | both | UDP sockets and their buffers |

pub mod access;
mod address;
mod allowance;
mod answer;
mod bounded;
mod budgets;
mod bulk;
pub mod control;
mod frame;
mod handshakes;
pub mod identity;
mod join;
mod link;
mod maintenance;
pub mod message;
mod presence;
mod pull;
mod quic;
mod remote;
mod renewer;
mod serve;
pub mod service;
mod socket;
mod validity;
mod waits;

pub use address::NodeAddress;
pub use frame::{decode, encode};
pub use join::{create_token, join};
pub use link::Peer;
pub use quic::{
    ALPN, Congestion, Current, WINDOW_BYTES, client, client_config, client_config_of, endpoint_config, server,
    server_config, server_of,
};
pub use quinn::Endpoint;
pub use remote::{Remote, RemoteReader, RemoteSession};
pub use renewer::{IdentityRenewer, Signer, renewed_when_used};
pub use serve::{Node, Quota, Quotas};

/// Version of the protocol that this program speaks.
pub const VERSION: u16 = 2;
/// Why a node closes a connection: it does not accept the client.
const CLOSED_REFUSED: u32 = 1;
/// Why a node closes a connection: it stops.
const CLOSED_STOPPING: u32 = 2;
/// Why either side closes a connection: the certificate that was shown on it is not valid any more. A client that has
/// another certificate connects again.
const CLOSED_EXPIRED: u32 = 3;
/// Features that this program knows.
const FEATURES: u64 = 0;
