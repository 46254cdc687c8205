//! NBD URIs (the NBD project's `doc/uri.md`).

use super::patience::Patience;
use mover::{Error, Result};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Where an export is: `nbd://host[:port]/export` or `nbd+unix:///export?socket=PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdUri {
    /// How the server is reached.
    pub server: NbdServer,
    /// The export's name; empty for the default one.
    pub export: String,
    /// `bitmap=NAME`, our own addition: the dirty bitmap to read.
    pub bitmap: Option<String>,
    /// `timeout=SECONDS`, our own addition: how long the server may be silent, whatever it does.
    pub timeout: Option<Duration>,
}

/// How to reach a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NbdServer {
    /// Over TCP.
    Tcp {
        /// Name or address, an IPv6 one without brackets.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// Over the unix socket at this path.
    Unix(PathBuf),
}

impl NbdUri {
    /// True when `text` says that it is an NBD URI of any kind, also one that is refused.
    pub fn is_meant_by(text: &str) -> bool {
        ["nbd:", "nbd+unix:", "nbds:", "nbds+unix:", "nbd+vsock:", "nbds+vsock:"].iter().any(|it| text.starts_with(it))
    }
}

impl NbdUri {
    /// How long the server is waited for.
    pub fn patience(&self) -> Patience {
        self.timeout.map(Patience::of).unwrap_or_default()
    }
}

impl FromStr for NbdUri {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |what: &str| {
            Error::usage(format!("{text:?} is not an NBD URI: {what}"))
                .hint("write nbd://host[:port]/export or nbd+unix:///export?socket=PATH")
        };
        if text.len() > URI_BYTES_MAX {
            return Err(Error::usage(format!("an NBD URI of {} bytes is too long", text.len())));
        }
        let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("no '://'"))?;
        match scheme {
            "nbd" | "nbd+unix" => {}
            "nbds" | "nbds+unix" => {
                return Err(Error::usage(format!("{scheme}:// is NBD over TLS, which is not supported"))
                    .hint(
                        "serve the disk on a unix socket or through an SSH or WireGuard tunnel, and use nbd:// or nbd+unix://",
                    ));
            }
            _ => return Err(wrong("unknown scheme")),
        }
        if rest.contains('#') {
            return Err(wrong("a '#' must be written %23"));
        }
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, export) = place.split_once('/').unwrap_or((place, ""));
        let export = decode(export).ok_or_else(|| wrong("bad % escape in the export's name"))?;
        let (mut socket, mut bitmap, mut timeout) = (None, None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| wrong("a parameter without '='"))?;
            let value = decode(value).ok_or_else(|| wrong("bad % escape in a parameter"))?;
            let slot = match key {
                "socket" if scheme == "nbd+unix" => &mut socket,
                "bitmap" => &mut bitmap,
                "timeout" => &mut timeout,
                _ => return Err(wrong(&format!("unknown parameter {key:?}"))),
            };
            if value.is_empty() || slot.replace(value).is_some() {
                return Err(wrong(&format!("parameter {key:?} empty or given twice")));
            }
        }
        let server = match (scheme, socket) {
            ("nbd+unix", Some(socket)) if authority.is_empty() => NbdServer::Unix(socket.into()),
            ("nbd+unix", Some(_)) => return Err(wrong("a host together with a unix socket")),
            ("nbd+unix", None) => return Err(wrong("no socket=PATH")),
            _ => tcp(authority).ok_or_else(|| wrong("bad host or port"))?,
        };
        let in_range = |seconds: &u64| (1..=TIMEOUT_SECONDS_MAX).contains(seconds);
        let seconds = timeout.map(|text| {
            let seconds = text.parse().ok().filter(in_range);
            seconds.ok_or_else(|| wrong(&format!("timeout must be 1 to {TIMEOUT_SECONDS_MAX} seconds")))
        });
        let timeout = seconds.transpose()?.map(Duration::from_secs);
        Ok(Self { server, export, bitmap, timeout })
    }
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut mark = '?';
        match &self.server {
            NbdServer::Tcp { host, port } if host.contains(':') => write!(f, "nbd://[{host}]:{port}/")?,
            NbdServer::Tcp { host, port } => write!(f, "nbd://{}:{port}/", Escaped(host))?,
            NbdServer::Unix(_) => f.write_str("nbd+unix:///")?,
        }
        write!(f, "{}", Escaped(&self.export))?;
        if let NbdServer::Unix(socket) = &self.server {
            write!(f, "{mark}socket={}", Escaped(&socket.to_string_lossy()))?;
            mark = '&';
        }
        if let Some(bitmap) = &self.bitmap {
            write!(f, "{mark}bitmap={}", Escaped(bitmap))?;
            mark = '&';
        }
        self.timeout.map_or(Ok(()), |timeout| write!(f, "{mark}timeout={}", timeout.as_secs()))
    }
}

fn tcp(authority: &str) -> Option<NbdServer> {
    // A user name has no meaning for NBD.
    if authority.contains('@') {
        return None;
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            (host.to_owned(), if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (decode(host)?, Some(port)),
            None => (decode(authority)?, None),
        },
    };
    let port = match port {
        Some(port) => port.parse().ok().filter(|port| *port != 0)?,
        None => PORT,
    };
    (!host.is_empty()).then_some(NbdServer::Tcp { host, port })
}

/// The text that `text` means, in which % and two digits stand for one byte.
pub fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let (high, low) = (digit(rest.next())?, digit(rest.next())?);
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

/// Text with % escapes for what URIs may not contain.
pub struct Escaped<'a>(pub &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.bytes().try_for_each(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b':' => {
                write!(f, "{}", char::from(byte))
            }
            _ => write!(f, "%{byte:02X}"),
        })
    }
}

const PORT: u16 = 10_809;
const URI_BYTES_MAX: usize = 16 << 10;
/// Longest timeout that a URI may name: a day.
const TIMEOUT_SECONDS_MAX: u64 = 86_400;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tcp(host: &str, port: u16, export: &str) -> NbdUri {
        let server = NbdServer::Tcp { host: host.to_owned(), port };
        NbdUri { server, export: export.to_owned(), bitmap: None, timeout: None }
    }

    #[test]
    fn what_the_standard_allows() {
        let unix = |socket: &str, export: &str| {
            let server = NbdServer::Unix(socket.into());
            NbdUri { server, export: export.to_owned(), bitmap: None, timeout: None }
        };
        for (text, want) in [
            ("nbd://host", tcp("host", 10_809, "")),
            ("nbd://host/", tcp("host", 10_809, "")),
            ("nbd://host:99/a%20b", tcp("host", 99, "a b")),
            ("nbd://[::1]:99/a/b", tcp("::1", 99, "a/b")),
            ("nbd://[::1]", tcp("::1", 10_809, "")),
            ("nbd+unix:///?socket=/tmp/a", unix("/tmp/a", "")),
            ("nbd+unix:///d?socket=/tmp/a%3Fb", unix("/tmp/a?b", "d")),
            ("nbd+unix:///d?socket=s&bitmap=cp0", NbdUri { bitmap: Some("cp0".into()), ..unix("s", "d") }),
            ("nbd://h/d?timeout=5", NbdUri { timeout: Some(Duration::from_secs(5)), ..tcp("h", 10_809, "d") }),
            ("nbd://h/d?bitmap=cp0", NbdUri { bitmap: Some("cp0".into()), ..tcp("h", 10_809, "d") }),
        ] {
            assert_eq!(text.parse::<NbdUri>().unwrap(), want, "{text}");
            assert_eq!(want.to_string().parse::<NbdUri>().unwrap(), want, "{want}");
        }
    }

    #[test]
    fn what_is_refused_says_why() {
        for (text, why) in [
            ("nbd:unix:/tmp/a", "no '://'"),
            ("nbd://", "bad host"),
            ("nbd://h:0/", "bad host or port"),
            ("nbd://h:70000/", "bad host or port"),
            ("nbd://u@h/", "bad host"),
            ("nbd://[::1", "bad host"),
            ("nbd+unix:///d", "no socket"),
            ("nbd+unix://h/d?socket=/s", "a host together"),
            ("nbd://h/d?socket=/s", "unknown parameter"),
            ("nbd://h/%zz", "bad % escape"),
            ("nbd://h/%00", "bad % escape"),
            ("nbd://h/d?bitmap=", "empty or given twice"),
            ("nbd://h/d?bitmap=a&bitmap=b", "empty or given twice"),
            ("nbd://h/d?timeout=0", "1 to 86400"),
            ("nbd://h/d?timeout=1.5", "1 to 86400"),
            ("nbds://h/d", "TLS"),
            ("nbds+unix:///d?socket=/s", "TLS"),
            ("nbd+vsock://1/d", "unknown scheme"),
            ("nbd://h/a#b", "%23"),
        ] {
            assert!(NbdUri::is_meant_by(text), "{text}");
            let message = text.parse::<NbdUri>().unwrap_err().message();
            assert!(message.contains(why), "{text}: {message}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_an_uri_or_an_error(text in "(nbd|nbd\\+unix)://\\PC{0,60}") {
            if let Ok(uri) = text.parse::<NbdUri>() {
                prop_assert_eq!(uri.to_string().parse::<NbdUri>().unwrap(), uri);
            }
        }
    }
}
