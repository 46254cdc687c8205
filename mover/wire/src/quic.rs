//! QUIC end points: TLS 1.3 with certificates of both sides, no early data, and windows for long fast links.

use super::socket;
use super::validity::{InTime, in_words};
use crate::identity::{Credentials, Identity, Token, Trust, provider};
use mover::{Error, Result};
use quinn::congestion::{BbrConfig, CubicConfig};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::crypto::{CryptoError, HmacKey};
use quinn::{
    ClientConfig, Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, ServerConfig, TransportConfig, VarInt,
};
use quinn_proto::HashedConnectionIdGenerator;
use rustls::client::ResolvesClientCert;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ConfigBuilder, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde::Deserialize;
use std::fmt;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How fast a sender may become when packets are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Congestion {
    /// Takes each lost packet for a sign of congestion.
    #[default]
    Cubic,
    /// Loss means little: for links that lose packets at random. Quinn's is experimental.
    Bbr,
}

impl Congestion {
    /// Its code on the wire.
    pub const fn code(self) -> u8 {
        match self {
            Self::Cubic => 0,
            Self::Bbr => 1,
        }
    }

    /// The congestion control with this code; none for an unknown one.
    pub const fn of_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Cubic),
            1 => Some(Self::Bbr),
            _ => None,
        }
    }
}

/// Who we are at the moment: a renewed identity is shown on the next connection, in either direction.
#[derive(Clone)]
pub struct Current(watch::Receiver<Arc<Credentials>>);

impl Current {
    /// The credentials that come through `renewed`. The other end of this channel renews them.
    pub fn new(renewed: watch::Receiver<Arc<Credentials>>) -> Self {
        Self(renewed)
    }

    /// Credentials that are never renewed.
    pub fn fixed(identity: &Identity, trust: &Trust) -> Self {
        let credentials = Credentials { identity: identity.clone(), trust: trust.clone() };
        Self(watch::channel(Arc::new(credentials)).1)
    }

    /// The credentials that are in use at this moment.
    pub fn get(&self) -> Arc<Credentials> {
        self.0.borrow().clone()
    }
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Current({:?})", self.get().identity)
    }
}

impl ResolvesServerCert for Current {
    /// Shows our certificate together with the authority's, because a client that joins knows only the fingerprint of
    /// the authority's certificate.
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let now = self.get();
        let mut shown = (*now.identity.certified()).clone();
        shown.cert.push(now.trust.authority().clone());
        Some(Arc::new(shown))
    }
}

impl ResolvesClientCert for Current {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.get().identity.certified())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// An end point that answers, and asks other nodes.
///
/// # Errors
/// `Usage` when the address cannot be bound, `Internal` for unusable certificates.
pub fn server(address: SocketAddr, identity: &Identity, trust: &Trust, congestion: Congestion) -> Result<Endpoint> {
    server_of(address, &Current::fixed(identity, trust), congestion)
}

/// The same for an identity that is renewed.
///
/// # Errors
/// As [`server`].
pub fn server_of(address: SocketAddr, current: &Current, congestion: Congestion) -> Result<Endpoint> {
    let bound = socket::answering(address).and_then(|socket| {
        let runtime = quinn::default_runtime().ok_or_else(|| io::Error::other("no async runtime"))?;
        let endpoint = endpoint_config(&current.get().identity);
        Endpoint::new(endpoint, Some(server_config_of(current, congestion)?), socket, runtime)
    });
    bound.map_err(|error| {
        Error::usage(format!("cannot listen on {address}"))
            .because(error)
            .hint("set `listen` to an address and port of this host that are free")
    })
}

/// An end point that only asks.
///
/// # Errors
/// `Transport` when no socket can be had.
pub fn client() -> Result<Endpoint> {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let made =
        socket::asking(any).or_else(|_| socket::asking(SocketAddr::from(([0, 0, 0, 0], 0)))).and_then(|socket| {
            let runtime = quinn::default_runtime().ok_or_else(|| io::Error::other("no async runtime"))?;
            Endpoint::new(taking_jumbos(EndpointConfig::default()), None, socket, runtime)
        });
    made.map_err(|error| Error::transport("cannot open a UDP socket").because(error))
}

/// How to ask a node.
///
/// # Errors
/// `Internal` for unusable certificates.
pub fn client_config(identity: &Identity, trust: &Trust, congestion: Congestion) -> Result<ClientConfig> {
    client_config_of(&Current::fixed(identity, trust), congestion)
}

/// The same for an identity that is renewed.
///
/// # Errors
/// As [`client_config`].
pub fn client_config_of(current: &Current, congestion: Congestion) -> Result<ClientConfig> {
    let roots = current.get().trust.roots().map_err(unusable)?;
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build().map_err(unusable)?;
    let tls = client_tls()?.dangerous().with_custom_certificate_verifier(Arc::new(InTime(verifier)));
    let tls = tls.with_client_cert_resolver(Arc::new(current.clone()));
    client_quic(tls, congestion)
}

/// How to ask the node that a token names, by somebody who has no certificate yet.
///
/// # Errors
/// `Internal`.
pub(super) fn join_config(token: &Token) -> Result<ClientConfig> {
    let verifier = Arc::new(ByFingerprint(token.authority));
    let tls = client_tls()?.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    client_quic(tls, Congestion::default())
}

fn client_tls() -> Result<ConfigBuilder<rustls::ClientConfig, rustls::WantsVerifier>> {
    let tls = rustls::ClientConfig::builder_with_provider(provider());
    tls.with_protocol_versions(&[&rustls::version::TLS13]).map_err(unusable)
}

fn client_quic(mut tls: rustls::ClientConfig, congestion: Congestion) -> Result<ClientConfig> {
    tls.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would not show a certificate that was renewed or revoked since.
    tls.resumption = rustls::client::Resumption::disabled();
    let quic = QuicClientConfig::try_from(tls).map_err(unusable)?;
    let mut config = ClientConfig::new(Arc::new(quic));
    let mut transport = transport(congestion);
    transport.max_concurrent_uni_streams(VarInt::from_u32(PARTS_MAX));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// How a node answers, on whatever socket and in whatever time: a simulation has its own.
///
/// # Errors
/// For unusable certificates.
pub fn server_config(identity: &Identity, trust: &Trust, congestion: Congestion) -> io::Result<ServerConfig> {
    server_config_of(&Current::fixed(identity, trust), congestion)
}

/// Lets a client without a certificate in as a stranger. `serve` says what a stranger may do.
fn server_config_of(current: &Current, congestion: Congestion) -> io::Result<ServerConfig> {
    let roots = Arc::new(current.get().trust.roots().map_err(io::Error::other)?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).allow_unauthenticated();
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .with_client_cert_verifier(verifier.build().map_err(io::Error::other)?)
        .with_cert_resolver(Arc::new(current.clone()));
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.send_tls13_tickets = 0;
    let quic = QuicServerConfig::try_from(tls).map_err(io::Error::other)?;
    let mut config = ServerConfig::with_crypto(Arc::new(quic));
    // Nobody is known yet: windows grow when somebody is.
    let mut transport = transport(congestion);
    transport.receive_window(VarInt::from_u32(WINDOW_BYTES_MIN)).send_window(WINDOW_BYTES_MIN.into());
    config.transport_config(Arc::new(transport));
    // First packets that wait until they are looked at, and what follows them.
    config.max_incoming(INCOMING_MAX).incoming_buffer_size(INCOMING_BYTES).incoming_buffer_size_total(INCOMINGS_BYTES);
    Ok(config)
}

/// Believes the authority whose certificate has this hash, when the node shows it.
#[derive(Debug)]
struct ByFingerprint([u8; 32]);

impl ServerCertVerifier for ByFingerprint {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = others.iter().find(|other| mover::digest(other) == self.0);
        let authority = authority.ok_or_else(|| {
            rustls::Error::General("this node does not belong to the site that made the token".into())
        })?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
        let verifier = verifier.map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(certificate, &[], name, ocsp, now).map_err(|error| in_words(error, certificate))
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
        let known = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

fn transport(congestion: Congestion) -> TransportConfig {
    let mut config = TransportConfig::default();
    config.max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX));
    config.max_concurrent_uni_streams(VarInt::from_u32(0));
    config.datagram_receive_buffer_size(None);
    config.stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES));
    config.receive_window(VarInt::from_u32(WINDOW_BYTES));
    config.send_window(WINDOW_BYTES.into());
    config.keep_alive_interval(Some(KEEP_ALIVE));
    config.max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MS))));
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(JUMBO_BYTES);
    config.mtu_discovery_config(Some(mtu));
    match congestion {
        Congestion::Cubic => {
            let mut cubic = CubicConfig::default();
            cubic.initial_window(BEGIN_BYTES);
            config.congestion_controller_factory(Arc::new(cubic))
        }
        Congestion::Bbr => config.congestion_controller_factory(Arc::new(BbrConfig::default())),
    };
    config
}

/// After a restart, a node recognises the connection ids that it had given out, and signs resets as before. So a client
/// learns at once that its connection is gone, and does not wait until the node has been silent for too long (RFC 9000,
/// 10.3).
pub fn endpoint_config(identity: &Identity) -> EndpointConfig {
    let key = |about: &str| blake3::derive_key(about, identity.lasting());
    let reset = ResetKey(key("windlass 2026-11 QUIC stateless reset"));
    let [a, b, c, d, e, f, g, h, ..] = key("windlass 2026-11 QUIC connection ids");
    let ids = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    let mut config = taking_jumbos(EndpointConfig::new(Arc::new(reset)));
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
    config
}

/// Says that this end point takes long packets. If it did not, no peer would try them, and packets would stay at 1,472
/// bytes.
fn taking_jumbos(mut config: EndpointConfig) -> EndpointConfig {
    config.max_udp_payload_size(JUMBO_BYTES).expect("a length that QUIC allows");
    config
}

struct ResetKey([u8; 32]);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature: &mut [u8]) {
        blake3::Hasher::new_keyed(&self.0).update(data).finalize_xof().fill(signature);
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        // The comparison takes the same time whatever differs.
        let expected = blake3::keyed_hash(&self.0, data);
        if signature.try_into().is_ok_and(|signature: [u8; 32]| expected == signature) {
            Ok(())
        } else {
            Err(CryptoError)
        }
    }
}

fn unusable(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::internal("the certificates cannot be used").because(error)
}

/// Name of the protocol and its major version in the TLS handshake.
pub const ALPN: &[u8] = b"windlass/1";
/// Bytes on their way on one connection: 1 Gbit/s at 150 ms takes 19 MB.
pub const WINDOW_BYTES: u32 = 32 << 20;
/// Bytes on their way on one stream. Quinn gives a connection up when a stream has more than 1,024 gaps. With this
/// window, fewer than twice as many packets are on their way on a stream, so there are never so many gaps, whichever
/// packets are lost.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
/// Parts of answers on their way on one connection.
const PARTS_MAX: u32 = 64;
/// Window of a connection to a node before chunks pass.
pub(super) const WINDOW_BYTES_MIN: u32 = 64 << 10;
/// Requests on their way on one connection.
const STREAMS_MAX: u32 = 64;
const INCOMING_MAX: usize = 1024;
const INCOMING_BYTES: u64 = 16 << 10;
const INCOMINGS_BYTES: u64 = 4 << 20;
/// Longest packet, where the network carries it. Quinn hands ten packets at a time to the kernel, and together they
/// must not be longer than a UDP datagram may be.
const JUMBO_BYTES: u16 = 6500;
/// Bytes on their way before the first acknowledgement: three times what RFC 9002 recommends, spread over a round trip.
/// A smaller start would cost time, because each doubling takes a round trip, which is long when the peer is far away.
const BEGIN_BYTES: u64 = 48 << 10;
const KEEP_ALIVE: Duration = Duration::from_secs(4);
const IDLE_MS: u32 = 15_000;
