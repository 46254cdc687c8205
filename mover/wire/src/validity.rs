//! Certificates and time. A certificate that has ended ends the connections on which it was shown. Messages about
//! certificates name the clock, because it may be wrong. The clock is the system's, as it is for TLS.

use super::CLOSED_EXPIRED;
use crate::identity::{Credentials, Facts, utc};
use mover::{Error, ErrorKind, Timestamp, World};
use quinn::{Connection, VarInt};
use rustls::CertificateError::{BadSignature, Expired, ExpiredContext, NotValidYet, NotValidYetContext, UnknownIssuer};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// The certificate that the other side showed.
pub fn shown(connection: &Connection) -> Option<CertificateDer<'static>> {
    let shown = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    shown.into_iter().next()
}

/// Closes a connection when the certificate that was shown on it is not valid any more, or not yet. A client that has
/// another certificate by then connects again. Returns whether the certificate is valid.
pub fn close_unless_valid(connection: &Connection, facts: &Facts) -> bool {
    let valid = facts.are_valid_at(now());
    if !valid {
        connection.close(VarInt::from_u32(CLOSED_EXPIRED), format!("the certificate was {facts}").as_bytes());
    }
    valid
}

/// The client's half: closes the connection when the node's certificate ends. Runs as long as the connection lives.
pub async fn ends_with_its_certificate(connection: Connection) {
    let Some(facts) = shown(&connection).and_then(|it| Facts::of(&it).ok()) else { return };
    while connection.close_reason().is_none() && close_unless_valid(&connection, &facts) {
        let left = u64::try_from(facts.not_after.0.saturating_sub(now().0)).unwrap_or_default();
        // Clocks are put right: it may be earlier than it seems.
        let pause = Duration::from_nanos(left).clamp(LOOK_MIN, LOOK_AGAIN);
        tokio::select! {
            _ = connection.closed() => {}
            () = sleep(pause) => {}
        }
    }
}

fn now() -> Timestamp {
    World::system().now()
}

/// Verifies a node's certificate as webpki does. For a certificate that is not valid now, the error names the time of
/// our clock.
#[derive(Debug)]
pub struct InTime(pub Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for InTime {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.0.verify_server_cert(certificate, others, name, ocsp, now);
        verified.map_err(|error| in_words(error, certificate))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("QUIC has no TLS 1.2".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// The error in words: with the times that do not fit, or with the fact that the certificate is of another site.
pub fn in_words(error: rustls::Error, certificate: &CertificateDer<'_>) -> rustls::Error {
    let rustls::Error::InvalidCertificate(what) = &error else { return error };
    let what = match what {
        Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. } => {
            Facts::of(certificate).ok().map(|facts| out_of_time(&facts))
        }
        UnknownIssuer | BadSignature => Some("belongs to another site".to_owned()),
        _ => None,
    };
    what.map_or(error, |what| rustls::Error::General(format!("{OF_THE_NODE}{what}")))
}

fn out_of_time(facts: &Facts) -> String {
    format!("is {facts}, and this machine's clock says {}", utc(now()))
}

/// We do not take the node's certificate, for this reason of TLS.
pub fn of_the_node(node: &str, reason: &str) -> Error {
    match reason.find(OF_THE_NODE).map(|at| &reason[at..]) {
        Some(what) if what.ends_with("site") => not_authorised(node, what)
            .hint("set WINDLASS_IDENTITY to an identity of its site, or use the address of a node of your own site"),
        Some(what) => not_authorised(node, what).hint(format!(
            "{CLOCK}; if it is right, the node needs another certificate: its log says why it did not renew its own"
        )),
        None => refused(node, reason),
    }
}

/// The node does not take ours at this time.
pub fn ours_out_of_time(node: &str, own: &Credentials) -> Error {
    let (holder, what) = (own.identity.holder(), out_of_time(own.identity.facts()));
    not_authorised(node, &format!("the node does not accept the certificate of {holder} now: it {what}")).hint(format!(
        "{CLOCK}, and the node's clock; if both are right, join again: see `windlass token create --help`"
    ))
}

/// The node does not know who signed ours.
pub fn ours_of_another_site(node: &str, own: &Credentials) -> Error {
    not_authorised(
        node,
        &format!("the certificate of {} belongs to another site than this node", own.identity.holder()),
    )
    .hint("set WINDLASS_IDENTITY to an identity of its site, or use the address of a node of your own site")
}

/// Either does not take the other, for another reason.
pub fn refused(node: &str, reason: &str) -> Error {
    let hint = match reason {
        revoked if revoked.ends_with("was revoked") => {
            "the node's deny list names this identity, or the node cannot read the list: see the node's log"
        }
        full if full.starts_with("too many") => "try again when some connections have ended",
        _ => {
            "both sides need valid certificates of one site, and that of the node must name the host in the address; \
             see `windlass token create --help`"
        }
    };
    not_authorised(node, reason).hint(hint)
}

fn not_authorised(node: &str, what: &str) -> Error {
    Error::new(ErrorKind::NotAuthorised, format!("{node}: {what}"))
}

const OF_THE_NODE: &str = "the node's certificate ";
const CLOCK: &str = "check this machine's clock (`timedatectl` shows it)";
const LOOK_MIN: Duration = Duration::from_millis(200);
const LOOK_AGAIN: Duration = Duration::from_secs(60);
