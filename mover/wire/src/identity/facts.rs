//! What a certificate says that webpki does not tell: when it is valid, and where its holder is reached.

use mover::{Error, Result, Timestamp};
use rustls::pki_types::CertificateDer;
use std::fmt;
use std::net::IpAddr;
use time::{Date, Month, OffsetDateTime};

/// What a certificate says beside its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// First moment at which the certificate is valid.
    pub not_before: Timestamp,
    /// Last moment at which the certificate is valid.
    pub not_after: Timestamp,
    /// Names and addresses under which a node is reached.
    pub hosts: Vec<String>,
}

impl Facts {
    /// Of a certificate (RFC 5280, 4.1).
    ///
    /// # Errors
    /// `Usage` when it is none.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self> {
        facts(certificate).ok_or_else(|| Error::usage("no certificate"))
    }

    /// Whether it may be used then. The last second it names counts whole, as it does in TLS.
    pub const fn are_valid_at(&self, now: Timestamp) -> bool {
        self.not_before.0 <= now.0 && now.0 < self.not_after.0.saturating_add(SECOND_NS)
    }

    /// Half of its life has passed: it should be renewed.
    pub const fn is_due(&self, now: Timestamp) -> bool {
        now.0 >= self.due().0
    }

    /// When half of its life has passed.
    pub const fn due(&self) -> Timestamp {
        Timestamp(self.not_before.0 + (self.not_after.0 - self.not_before.0) / 2)
    }
}

/// `valid from … to …`
impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "valid from {} to {}", utc(self.not_before), utc(self.not_after))
    }
}

/// `2026-11-28 14:30:27 UTC`
pub fn utc(time: Timestamp) -> String {
    match OffsetDateTime::from_unix_timestamp_nanos(time.0.into()) {
        Ok(it) => {
            let ((year, month, day), (hour, minute, second)) = (it.date().to_calendar_date(), it.to_hms());
            format!("{year:04}-{:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC", u8::from(month))
        }
        Err(_) => format!("{} ns", time.0),
    }
}

fn facts(certificate: &[u8]) -> Option<Facts> {
    let mut signed = Der(Der(certificate).take(SEQUENCE)?);
    let mut fields = Der(signed.take(SEQUENCE)?);
    fields.skip_if(VERSION);
    fields.take(INTEGER)?;
    // Algorithm, issuer.
    fields.take(SEQUENCE)?;
    fields.take(SEQUENCE)?;
    let mut validity = Der(fields.take(SEQUENCE)?);
    let (not_before, not_after) = (time(validity.next()?)?, time(validity.next()?)?);
    let mut hosts = Vec::new();
    while let Some((tag, content)) = fields.next() {
        if tag == EXTENSIONS {
            hosts = alternative_names(content)?;
        }
    }
    Some(Facts { not_before, not_after, hosts })
}

fn alternative_names(extensions: &[u8]) -> Option<Vec<String>> {
    let mut extensions = Der(Der(extensions).take(SEQUENCE)?);
    while let Some((SEQUENCE, extension)) = extensions.next() {
        let mut extension = Der(extension);
        if extension.take(OBJECT_ID)? != SUBJECT_ALTERNATIVE_NAME {
            continue;
        }
        extension.skip_if(BOOLEAN);
        let mut names = Der(Der(extension.take(OCTETS)?).take(SEQUENCE)?);
        let mut hosts = Vec::new();
        while let Some((tag, name)) = names.next() {
            match tag {
                DNS_NAME => hosts.push(std::str::from_utf8(name).ok()?.to_owned()),
                IP_ADDRESS => hosts.push(address(name)?.to_string()),
                _ => {}
            }
        }
        return Some(hosts);
    }
    Some(Vec::new())
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    }
}

/// `YYMMDDHHMMSSZ` up to 2049, then `YYYYMMDDHHMMSSZ` (RFC 5280, 4.1.2.5).
fn time((tag, text): (u8, &[u8])) -> Option<Timestamp> {
    let number = |digits: &[u8]| {
        let digits = std::str::from_utf8(digits).ok().filter(|it| it.bytes().all(|byte| byte.is_ascii_digit()));
        digits?.parse::<u16>().ok()
    };
    let (year, rest) = match tag {
        UTC_TIME => {
            let (year, rest) = text.split_at_checked(2)?;
            let year = number(year)?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = text.split_at_checked(4)?;
            (number(year)?, rest)
        }
        _ => return None,
    };
    let (rest, b"Z") = rest.split_at_checked(10)? else { return None };
    let part = |at: usize| number(&rest[at..at + 2]).and_then(|part| u8::try_from(part).ok());
    let date = Date::from_calendar_date(year.into(), Month::try_from(part(0)?).ok()?, part(2)?).ok()?;
    let moment = date.with_hms(part(4)?, part(6)?, part(8)?).ok()?.assume_utc();
    i64::try_from(moment.unix_timestamp_nanos()).ok().map(Timestamp)
}

/// Elements of DER one after another. Foreign bytes end it early.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (length, head) = match *self.0 {
            [_, length @ 0..=0x7f, ..] => (usize::from(length), 2),
            [_, 0x81, length, ..] => (usize::from(length), 3),
            [_, 0x82, high, low, ..] => (usize::from(u16::from_be_bytes([high, low])), 4),
            _ => return None,
        };
        let content = self.0.get(head..head + length)?;
        let tag = self.0[0];
        self.0 = &self.0[head + length..];
        Some((tag, content))
    }

    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|found| found.0 == tag).map(|found| found.1)
    }

    fn skip_if(&mut self, tag: u8) {
        if self.0.first() == Some(&tag) {
            self.next();
        }
    }
}

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const OBJECT_ID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const DNS_NAME: u8 = 0x82;
const IP_ADDRESS: u8 = 0x87;
/// 2.5.29.17
const SUBJECT_ALTERNATIVE_NAME: &[u8] = &[0x55, 0x1d, 0x11];

const SECOND_NS: i64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Authority;
    use mover::World;
    use mover::{Holder, Role};
    use proptest::prelude::*;

    fn certificate() -> CertificateDer<'static> {
        let world = World::system();
        let holder = Holder::new(Role::Node, "a".parse().unwrap());
        let hosts = ["store.example", "192.0.2.7", "2001:db8::7"].map(String::from);
        let authority = Authority::create(&"site".parse().unwrap(), &world).unwrap();
        let identity = authority.issue(&holder, &hosts, 10, &world).unwrap().identity().unwrap();
        identity.certificate().clone()
    }

    #[test]
    fn what_was_asked_for_stands_in_it() {
        let now = World::system().now().0;
        let facts = Facts::of(&certificate()).unwrap();
        assert_eq!(facts.hosts, ["store.example", "192.0.2.7", "2001:db8::7"]);
        let seconds = |ns: i64| ns / 1_000_000_000;
        assert!((-602..=-598).contains(&seconds(facts.not_before.0 - now)));
        assert!((863_998..=864_002).contains(&seconds(facts.not_after.0 - now)));
        assert!(!facts.is_due(facts.not_before) && facts.is_due(facts.due()) && facts.is_due(facts.not_after));
    }

    #[test]
    fn times() {
        let parsed = |tag, text: &str| time((tag, text.as_bytes())).map(|time| time.0 / 1_000_000_000);
        assert_eq!(parsed(UTC_TIME, "700101000001Z"), Some(1));
        assert_eq!(parsed(UTC_TIME, "260102030405Z"), Some(1_767_323_045));
        assert_eq!(parsed(GENERALIZED_TIME, "20500101000000Z"), Some(2_524_608_000));
        assert_eq!(utc(Timestamp(1_767_323_045_000_000_000)), "2026-01-02 03:04:05 UTC");
        for bad in ["", "Z", "260102030405", "261302030405Z", "260102030405ZZ", "+60102030405Z", "2601020304é"] {
            assert_eq!(parsed(UTC_TIME, bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn foreign_bytes_are_no_panic(at in any::<prop::sample::Index>(), to: u8, cut in any::<prop::sample::Index>()) {
            let mut bytes = certificate().to_vec();
            let at = at.index(bytes.len());
            bytes[at] = to;
            let _ = facts(&bytes);
            let _ = facts(&bytes[..cut.index(bytes.len())]);
        }
    }
}
