//! Tells systemd how the service does: sd_notify(3), a datagram to a socket that the environment names.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Everything is open and answers.
pub fn ready() {
    tell("READY=1");
}

/// Nothing new is taken.
pub fn stopping() {
    tell("STOPPING=1");
}

/// Without systemd there is nobody to be told.
fn tell(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let told = (|| {
        let name = path.as_encoded_bytes();
        let address = match name.strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&path)?,
        };
        UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)
    })();
    if let Err(error) = told {
        tracing::warn!(%error, "systemd could not be told");
    }
}
