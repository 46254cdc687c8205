//! Network block device: a client without I/O ([`Handshake`], [`Session`]), the task that gives it a socket
//! ([`Connection`]), and a disk over several connections ([`NbdDisk`]).
//!
//! A server is not trusted: whatever it sends is either what the protocol allows for the requests under way or ends
//! the connection with an error; nothing it says makes memory or time unbounded (limits in [`wire`]).

mod connection;
mod disk;
mod error;
mod handshake;
mod patience;
mod reading;
mod session;
mod uri;
pub mod wire;

pub use connection::Connection;
pub use disk::{CONNECTIONS_MAX, Extents, NbdDisk, READ_ATTEMPTS};
pub use error::{NbdError, Refusal};
pub use handshake::{Context, Export, ExportFlags, Framing, Handshake, Hello};
pub use patience::{LONG_SILENCE, Patience, SETUP, SILENCE};
pub use reading::Landing;
pub use session::{Completed, Reply, Request, Run, Session};
pub(crate) use uri::{Escaped, decode};
pub use uri::{NbdServer, NbdUri};

#[cfg(test)]
mod tests;
