//! The configuration of a storage node. Unknown keys are refused, with line and column.

use mover::{Error, Name, Result};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use wire::control::ProxyChoice;
use wire::identity::LIFE;
use wire::service::{configured, twice};
use wire::{Congestion, Quota, Quotas};

/// The configuration of a storage node.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address and UDP port to listen on.
    pub listen: SocketAddr,
    /// Folder with certificate and key of the node; a relative one begins at the configuration's folder.
    pub identity: PathBuf,
    /// Folder of the site's authority, if this node holds it. Such a node makes tokens and issues certificates.
    #[serde(default)]
    pub authority: Option<PathBuf>,
    /// How long certificates are valid that this node issues for tokens or renews; 7 days by default.
    #[serde(default = "certificate_seconds")]
    pub certificate_seconds: u64,
    /// File that lists who is shut out, with a line `ROLE NAME` for each. It is read again when it changes. While it
    /// cannot be used, everybody is shut out.
    #[serde(default)]
    pub deny: Option<PathBuf>,
    /// How senders react to loss: `cubic` or `bbr`.
    #[serde(default)]
    pub congestion: Congestion,
    /// Most bytes of chunks that this node receives in a second, from all clients together: `20MiB`.
    #[serde(default)]
    pub receive_rate: Option<Rate>,
    /// Most bytes of chunks that this node sends in a second.
    #[serde(default)]
    pub send_rate: Option<Rate>,
    /// How to choose among proxies that offer the same machine: `round-robin` or `least-loaded`.
    #[serde(default)]
    pub proxy_choice: ProxyChoice,
    /// Seconds after which a verified pack is read again, chunk by chunk. 30 days by default; with 0 packs are never
    /// read again.
    #[serde(default = "scrub_seconds")]
    pub scrub_seconds: u64,
    /// Most bytes of each repository that are read for that in a second; `20MiB` by default.
    #[serde(default = "scrub_rate")]
    pub scrub_rate: Rate,
    /// Repositories that are served.
    #[serde(default)]
    pub repository: Vec<Repository>,
}

/// Bytes, or bytes a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Rate(pub u64);

impl TryFrom<String> for Rate {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        mover::parse_bytes(&text).map(Self)
    }
}

/// A repository that is served.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repository {
    /// Name of the repository in addresses.
    pub name: Name,
    /// Directory of the repository; a relative one begins at the configuration's folder.
    pub path: PathBuf,
    /// About which chunks a proxy may learn that they are there. `site`: all chunks. `owner`: only chunks that its own
    /// owner has had.
    #[serde(default)]
    pub dedup: Dedup,
    /// How much owners may have in it; no limit for owners that no quota names.
    #[serde(default)]
    pub quota: Vec<OwnerQuota>,
}

/// About which chunks a proxy may learn that they are there, and need not be sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dedup {
    /// About all chunks in the repository.
    #[default]
    Site,
    /// About chunks that its own owner has had.
    Owner,
}

/// How much an owner may have in a repository.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnerQuota {
    /// The owner. Without it, the quota is for each owner that has no quota of its own.
    pub owner: Option<Name>,
    /// Bytes that its sessions may have added: `500GiB`.
    pub bytes: Option<Rate>,
    /// Points that are not forgotten.
    pub points: Option<u64>,
    /// Sessions that are open at the same time.
    pub sessions: Option<usize>,
}

impl Repository {
    /// The quotas of its owners.
    pub fn quotas(&self) -> Quotas {
        let of = |it: &OwnerQuota| Quota {
            bytes: it.bytes.map_or(Quota::NONE.bytes, |bytes| bytes.0),
            points: it.points.unwrap_or(Quota::NONE.points),
            sessions: it.sessions.unwrap_or(Quota::NONE.sessions),
        };
        let named = self.quota.iter().filter_map(|it| Some((it.owner.clone()?, of(it))));
        let others = self.quota.iter().find(|it| it.owner.is_none()).map_or(Quota::NONE, of);
        Quotas::new(named.collect(), others)
    }
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// `Usage`, with line and column of what is wrong.
    pub fn read(path: &Path) -> Result<Self> {
        let (mut config, folder) = configured(path, Self::parse)?;
        config.identity = folder.join(&config.identity);
        config.authority = config.authority.map(|authority| folder.join(authority));
        config.deny = config.deny.map(|deny| folder.join(deny));
        config.repository.iter_mut().for_each(|it| it.path = folder.join(&it.path));
        Ok(config)
    }

    fn parse(text: &str) -> Result<Self> {
        let config: Self = toml::from_str(text).map_err(|error| Error::usage(error.to_string().trim_end()))?;
        if !CERTIFICATE_SECONDS.contains(&config.certificate_seconds) {
            let (least, most) = (CERTIFICATE_SECONDS.start(), CERTIFICATE_SECONDS.end());
            return Err(Error::usage(format!("certificate_seconds must be {least} to {most}")));
        }
        if let Some(name) = twice(config.repository.iter().map(|it| &it.name)) {
            return Err(Error::usage(format!("two repositories are called {name}")));
        }
        for repository in &config.repository {
            let mut seen = BTreeSet::new();
            if let Some(again) = repository.quota.iter().find(|it| !seen.insert(&it.owner)) {
                let whose = again.owner.as_ref().map_or("all others", |owner| owner.as_str());
                return Err(Error::usage(format!("two quotas of repository {} are for {whose}", repository.name)));
            }
        }
        Ok(config)
    }
}

const fn certificate_seconds() -> u64 {
    LIFE.as_secs()
}

const fn scrub_seconds() -> u64 {
    30 * 86_400
}

const fn scrub_rate() -> Rate {
    Rate(20 << 20)
}

/// Shorter ones could not be renewed in time, longer ones would live on where they were stolen.
const CERTIFICATE_SECONDS: RangeInclusive<u64> = 10..=365 * 86_400;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_it() {
        let text = "listen = \"[::]:7440\"\nidentity = \"node\"\ncongestion = \"bbr\"\n\
                    [[repository]]\nname = \"main\"\npath = \"/backup/main\"\n";
        let config = Config::parse(text).unwrap();
        assert_eq!(config.congestion, Congestion::Bbr);
        assert_eq!(config.repository[0].path, Path::new("/backup/main"));
        assert_eq!((config.scrub_seconds, config.scrub_rate), (2_592_000, Rate(20 << 20)));
        let quotas = "[[repository.quota]]\nbytes = \"1GiB\"\n[[repository.quota]]\nowner = \"host7\"\npoints = 9\n";
        let limited = Config::parse(&format!("{text}{quotas}")).unwrap();
        let holder = |name: &str| mover::Holder::new(mover::Role::Proxy, name.parse().unwrap());
        let of = limited.repository[0].quotas();
        assert_eq!(of.of(&holder("host7")), Quota { points: 9, ..Quota::NONE });
        assert_eq!(of.of(&holder("other")), Quota { bytes: 1 << 30, ..Quota::NONE });
        let other = Config::parse(&format!("scrub_seconds = 0\nscrub_rate = \"1MiB\"\n{text}")).unwrap();
        assert_eq!((other.scrub_seconds, other.scrub_rate), (0, Rate(1 << 20)));
        assert_eq!(other.proxy_choice, ProxyChoice::RoundRobin);
        let other = Config::parse(&format!("proxy_choice = \"least-loaded\"\n{text}")).unwrap();
        assert_eq!(other.proxy_choice, ProxyChoice::LeastLoaded);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let good = "listen = \"[::]:7440\"\nidentity = \"node\"\n";
        let one = "[[repository]]\nname = \"main\"\npath = \"/a\"\n";
        for (text, told) in [
            (format!("{good}colour = 1\n"), "line 3, column 1"),
            ("listen = \"nowhere\"\nidentity = \"node\"\n".into(), "line 1, column 10"),
            (format!("{good}[[repository]]\nname = \"../x\"\npath = \"/a\"\n"), "line 4, column 8"),
            (format!("{good}{one}{one}"), "two repositories are called main"),
            (
                format!("{good}{one}[[repository.quota]]\nowner = \"a\"\n[[repository.quota]]\nowner = \"a\"\n"),
                "two quotas of repository main are for a",
            ),
            (format!("{good}send_rate = \"fast\"\n"), "line 3, column 13"),
            (format!("{good}proxy_choice = \"best\"\n"), "line 3, column 16"),
            (good.replace("identity", "identify"), "identify"),
            (format!("{good}certificate_seconds = 9\n"), "certificate_seconds must be 10 to 31536000"),
        ] {
            let error = Config::parse(&text).unwrap_err();
            assert!(error.to_string().contains(told), "{text}\n{error}");
        }
    }
}
