//! The configuration of a proxy. Unknown keys are refused, with line and column.

use glob::Pattern;
use mover::{Error, Name, Result};
use proxy::{Hooks, NamedSource, QmpAddress, SourceAddress};
use serde::Deserialize;
use std::num::{NonZeroU8, NonZeroU32};
use std::path::{Path, PathBuf};
use std::time::Duration;
use wire::NodeAddress;
use wire::control::{DISKS_MAX, LABELS_MAX, TAGS_MAX};
use wire::service::{configured, twice};

/// The configuration of a proxy.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Folder with certificate and key; a relative one begins at the configuration's folder.
    pub identity: PathBuf,
    /// Nodes to attend.
    pub nodes: Vec<NodeAddress>,
    /// Jobs that are carried out at once.
    #[serde(default = "jobs")]
    pub jobs: NonZeroU8,
    /// Folders whose images may be backing and data files of other images; relative ones begin at the configuration's
    /// folder. An image's own folder need not be named.
    #[serde(default)]
    pub image_roots: Vec<PathBuf>,
    /// Folder on a local disk for what running machines overwrite while they are read; a relative one begins at the
    /// configuration's folder. Without it, `TMPDIR` or /var/tmp.
    pub scratch: Option<PathBuf>,
    /// Words by which administrators choose among proxies.
    #[serde(default)]
    pub labels: Vec<Name>,
    /// What may be backed up.
    #[serde(default)]
    pub machine: Vec<Machine>,
    /// Where more machines are found.
    #[serde(default)]
    pub discover: Vec<Discover>,
    /// Seconds between two looks for machines.
    #[serde(default = "discover_seconds")]
    pub discover_seconds: NonZeroU32,
}

/// Machines that are found by sockets of their QEMUs, or by their images.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Discover {
    /// QMP sockets of machines that run: a pattern of paths.
    #[serde(default)]
    pub qmp: Option<Glob>,
    /// Images of machines that do not run: a pattern of paths.
    #[serde(default)]
    pub images: Option<Glob>,
    /// What the name of a machine is taken from.
    #[serde(default)]
    pub name_from: Option<NameFrom>,
    /// Machines whose name has one of these forms are left out.
    #[serde(default)]
    pub exclude: Vec<Glob>,
    /// Images whose name, without its ending, has one of these forms are left out.
    #[serde(default)]
    pub exclude_disks: Vec<Glob>,
    /// Words that each of these machines gets.
    #[serde(default)]
    pub tags: Vec<Name>,
}

/// What the name of a machine is taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NameFrom {
    /// The name that QEMU was started with; the file's name without its ending where that is none.
    Qemu,
    /// The file's name without its ending.
    File,
    /// The name of the folder that the image is in: all images of one folder are disks of one machine.
    Folder,
}

/// A pattern, as shells have them: `*`, `?`, `[...]`, and `**` for any number of folders.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Glob(Pattern);

impl Glob {
    /// Whether a name has this form.
    pub fn fits(&self, name: &str) -> bool {
        self.0.matches(name)
    }

    /// The pattern.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The same pattern, if it is not absolute already, below `folder`.
    fn below(&self, folder: &Path) -> Result<Self> {
        if Path::new(self.as_str()).is_absolute() {
            return Ok(self.clone());
        }
        let folder = Pattern::escape(&folder.to_string_lossy());
        format!("{folder}/{}", self.as_str()).try_into()
    }
}

impl TryFrom<String> for Glob {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        let pattern = Pattern::new(&text);
        pattern.map(Self).map_err(|error| Error::usage(format!("{text:?} is not a pattern: {error}")))
    }
}

/// A machine that may be backed up.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Name of the machine.
    pub name: Name,
    /// Words to find the machine by.
    #[serde(default)]
    pub tags: Vec<Name>,
    /// The QEMU that the machine runs in: `qmp+unix:///PATH`. All its disks are backed up then.
    pub source: Option<QmpAddress>,
    /// Disks of a machine that does not run.
    #[serde(default)]
    pub disk: Vec<Disk>,
    /// A command that is run before its disks are opened, with `sh -c`, on this host. When it fails nothing is backed up.
    #[serde(default)]
    pub pre_freeze: Option<String>,
    /// A command that is run when the disks are open. It is also run when the command before it or the opening failed.
    #[serde(default)]
    pub post_thaw: Option<String>,
    /// Seconds for each of these commands, and for the disks to be opened in between.
    #[serde(default)]
    pub hook_timeout: Option<NonZeroU32>,
}

impl Machine {
    /// The commands around the opening of its disks.
    pub fn hooks(&self) -> Option<Hooks> {
        let (before, after) = (self.pre_freeze.clone(), self.post_thaw.clone());
        let limit = self.hook_timeout.map_or(Hooks::LIMIT, |seconds| Duration::from_secs(seconds.get().into()));
        (before.is_some() || after.is_some()).then_some(Hooks { before, after, limit })
    }
}

/// A disk of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Name of the disk within its machine.
    pub name: Name,
    /// Where it is; a relative path begins at the configuration's folder.
    pub source: SourceAddress,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// `Usage`, with line and column of what is wrong.
    pub fn read(path: &Path) -> Result<Self> {
        let (mut config, folder) = configured(path, Self::parse)?;
        config.identity = folder.join(&config.identity);
        config.image_roots.iter_mut().for_each(|root| *root = folder.join(&root));
        config.scratch.iter_mut().for_each(|scratch| *scratch = folder.join(&scratch));
        for disk in config.machine.iter_mut().flat_map(|machine| &mut machine.disk) {
            if let SourceAddress::File { path, .. } = &mut disk.source {
                *path = folder.join(&path);
            }
        }
        for it in &mut config.discover {
            for pattern in [&mut it.qmp, &mut it.images].into_iter().flatten() {
                *pattern = pattern.below(&std::path::absolute(&folder).unwrap_or(folder.clone()))?;
            }
        }
        Ok(config)
    }

    fn parse(text: &str) -> Result<Self> {
        let config: Self = toml::from_str(text).map_err(|error| Error::usage(error.to_string().trim_end()))?;
        let wrong = |what: String| Err(Error::usage(what));
        if config.nodes.is_empty() {
            return wrong("`nodes` is empty".into());
        }
        if let Some(node) = twice(config.nodes.iter().map(ToString::to_string)) {
            return wrong(format!("node {node} is named twice"));
        }
        if let Some(name) = twice(config.machine.iter().map(|machine| &machine.name)) {
            return wrong(format!("two machines are called {name}"));
        }
        if config.labels.len() > LABELS_MAX {
            return wrong(format!("there are more than {LABELS_MAX} labels"));
        }
        config.discover.iter().try_for_each(Discover::check)?;
        for Machine { name, source, disk, tags, .. } in &config.machine {
            if tags.len() > TAGS_MAX {
                return wrong(format!("machine {name} has more than {TAGS_MAX} tags"));
            }
            if source.is_some() {
                if !disk.is_empty() {
                    return wrong(format!("machine {name} has both `source` and disks"));
                }
                continue;
            }
            if disk.is_empty() || disk.len() > DISKS_MAX {
                return wrong(format!("machine {name} has {} disks, not 1 to {DISKS_MAX}", disk.len()));
            }
            if let Some(disk) = twice(disk.iter().map(|disk| &disk.name)) {
                return wrong(format!("two disks of machine {name} are called {disk}"));
            }
        }
        Ok(config)
    }
}

impl Discover {
    fn check(&self) -> Result<()> {
        let wrong = |what: &str| Err(Error::usage(format!("[[discover]]: {what}")));
        match (&self.qmp, &self.images, self.name_from) {
            (Some(_), Some(_), _) | (None, None, _) => {
                wrong("give either `qmp` or `images`, and the other in a [[discover]] of its own")
            }
            (Some(_), None, Some(NameFrom::Folder)) => wrong("`qmp` takes names from \"qemu\" or \"file\""),
            (None, Some(_), Some(NameFrom::Qemu)) => wrong("`images` takes names from \"folder\" or \"file\""),
            (Some(_), None, _) if !self.exclude_disks.is_empty() => {
                wrong("`exclude_disks` is for `images`: of a machine that runs all disks are backed up")
            }
            _ if self.tags.len() > TAGS_MAX => wrong(&format!("there are more than {TAGS_MAX} tags")),
            _ => Ok(()),
        }
    }
}

impl From<Disk> for NamedSource {
    fn from(disk: Disk) -> Self {
        Self { name: disk.name, address: disk.source }
    }
}

fn discover_seconds() -> NonZeroU32 {
    NonZeroU32::new(60).expect("not zero")
}

fn jobs() -> NonZeroU8 {
    NonZeroU8::new(2).expect("not zero")
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "identity = \"host7\"\nnodes = [\"quic://store1\"]\n";
    const WEB: &str = "[[machine]]\nname = \"web\"\n[[machine.disk]]\nname = \"a\"\nsource = \"web.qcow2\"\n";

    #[test]
    fn all_of_it() {
        let config = Config::parse(&format!("{GOOD}jobs = 3\nimage_roots = [\"/images\"]\n{WEB}")).unwrap();
        assert_eq!((config.nodes[0].to_string().as_str(), config.jobs.get()), ("quic://store1:7440", 3));
        assert_eq!(config.image_roots, [PathBuf::from("/images")]);
        assert_eq!((config.discover_seconds.get(), config.labels.len()), (60, 0));
        let found = "labels = [\"ssd\"]\ndiscover_seconds = 5\n[[discover]]\nqmp = \"run/*.qmp\"\nexclude = [\"test-*\"]\n\
                     [[discover]]\nimages = \"/vms/*/*.qcow2\"\nname_from = \"file\"\nexclude_disks = [\"*-swap\"]\ntags = [\"x\"]\n";
        let more = Config::parse(&format!("{GOOD}{found}")).unwrap();
        let [running, images] = &more.discover[..] else { panic!("two") };
        assert!(running.exclude[0].fits("test-1") && !running.exclude[0].fits("web"));
        assert_eq!((images.name_from, images.tags.len()), (Some(NameFrom::File), 1));
        assert_eq!(running.qmp.as_ref().unwrap().below(Path::new("/a[b")).unwrap().as_str(), "/a[[]b/run/*.qmp");
        assert_eq!(config.machine[0].disk[0].source, "web.qcow2".parse().unwrap());
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let disk = "[[machine.disk]]\nname = \"a\"\nsource = \"/b\"\n";
        for (text, told) in [
            (format!("{GOOD}colour = 1\n"), "line 3, column 1"),
            (GOOD.replace("quic", "http"), "line 2, column 9"),
            (format!("{GOOD}jobs = 0\n"), "line 3, column 8"),
            (format!("{GOOD}{}", WEB.replace("web.qcow2", "http://x")), "line 7, column 10"),
            (format!("{GOOD}{}", WEB.replace("\"web\"", "\"../web\"")), "line 4, column 8"),
            (GOOD.replace("\"quic://store1\"", ""), "`nodes` is empty"),
            (GOOD.replace("\"quic://store1\"", "\"quic://a\", \"quic://a:7440\""), "named twice"),
            (format!("{GOOD}{WEB}{WEB}"), "two machines are called web"),
            (format!("{GOOD}[[discover]]\nqmp = \"/run/***\"\n"), "line 4, column 7"),
            (format!("{GOOD}[[discover]]\n"), "either `qmp` or `images`"),
            (format!("{GOOD}[[discover]]\nqmp = \"/a\"\nimages = \"/b\"\n"), "either `qmp` or `images`"),
            (format!("{GOOD}[[discover]]\nqmp = \"/a\"\nexclude_disks = [\"b\"]\n"), "`exclude_disks` is for `images`"),
            (format!("{GOOD}[[discover]]\nqmp = \"/a\"\nname_from = \"folder\"\n"), "names from \"qemu\""),
            (format!("{GOOD}{WEB}{disk}"), "two disks of machine web are called a"),
            (format!("{GOOD}[[machine]]\nname = \"web\"\ndisk = []\n"), "machine web has 0 disks"),
            (format!("{GOOD}[[machine]]\nname = \"web\"\nsource = \"/run/web.qmp\"\n"), "line 5, column 10"),
            (
                format!("{GOOD}[[machine]]\nname = \"web\"\nsource = \"qmp+unix:///q\"\n{disk}"),
                "both `source` and disks",
            ),
        ] {
            let error = Config::parse(&text).unwrap_err();
            assert!(error.to_string().contains(told), "{text}\n{error}");
        }
    }
}
