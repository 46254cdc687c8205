//! Addresses of disks: where they are read from and restored to. NBD URIs are in `nbd/uri`.

use crate::nbd::{Escaped, NbdUri, decode};
use mover::{Error, Name, Result};
use serde::Deserialize;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A disk to back up and the name it has in its machine: `NAME=SOURCE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedSource {
    /// Name of the disk within its machine.
    pub name: Name,
    /// Where the disk is read from.
    pub address: SourceAddress,
}

/// Where a disk is read from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum SourceAddress {
    /// A file or block device: `PATH`, with `?bitmap=NAME` or `?format=raw|qcow2` after it.
    File {
        /// Path of the file or device.
        path: PathBuf,
        /// The persistent bitmap to use instead of the one Windlass would choose.
        bitmap: Option<String>,
        /// Format of the image, if the address names it. Then the file's name and the parent point do not decide.
        format: Option<ImageFormat>,
    },
    /// An NBD export.
    Nbd(NbdUri),
}

/// A machine that runs in a QEMU, with all its disks: `qmp+unix:///PATH`, with `?agent=PATH` after it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct QmpAddress {
    /// QEMU's QMP socket.
    pub socket: PathBuf,
    /// The socket of the guest agent; QEMU is asked for it when none is given.
    pub agent: Option<PathBuf>,
}

/// What is backed up as one recovery point, where that is one argument: a disk, or a machine that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupAddress {
    /// One disk.
    Disk(SourceAddress),
    /// All disks of a machine that runs.
    Machine(QmpAddress),
}

/// Formats of disk images that can be read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    /// The bytes of the disk.
    Raw,
    /// QEMU's format, by QEMU's own tools.
    Qcow2,
}

/// Where a disk is restored to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetAddress {
    /// A file to be made, of this format.
    File {
        /// Path of the file or device.
        path: PathBuf,
        /// Format that the file gets.
        format: ImageFormat,
        /// How surely that is said.
        named: Named,
    },
    /// A block device at this path.
    Device(PathBuf),
    /// An NBD export that can be written.
    Nbd(NbdUri),
}

/// How surely an address says what format a file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// By `?format=`, or by a name that is used for nothing else.
    Surely,
    /// By a name that is used for images of other formats too (`.img`).
    Loosely,
}

impl NamedSource {
    /// A source that came without a name, as the only disk of its machine.
    pub fn only(address: SourceAddress) -> Self {
        Self { name: ONLY_DISK.parse().expect("a valid name"), address }
    }
}

impl FromStr for NamedSource {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, address) = text.split_once('=').ok_or_else(|| {
            Error::usage(format!("{text:?} is not NAME=SOURCE")).hint("write for example vda=/images/web.qcow2")
        })?;
        Ok(Self { name: name.parse()?, address: address.parse()? })
    }
}

impl FromStr for SourceAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if NbdUri::is_meant_by(text) {
            return text.parse().map(Self::Nbd);
        }
        if text.is_empty() {
            return Err(Error::usage("the disk source has no path"));
        }
        if QmpAddress::is_meant_by(text) {
            return Err(Error::usage(format!("{text:?} is a machine, not a disk"))
                .hint("give it as the only source, without --disk: all its disks are backed up together"));
        }
        if let Some((scheme, _)) = text.split_once("://").filter(|(scheme, _)| !scheme.contains('/')) {
            return Err(Error::usage(format!("{scheme}:// is not supported as a disk source"))
                .hint("use a file, a block device, nbd://host/export or nbd+unix:///export?socket=PATH"));
        }
        let (mut bitmap, mut format) = (None, None);
        let path = match text.rsplit_once('?') {
            // A '?' may also belong to a file's name: only what reads as parameters is taken for them.
            Some((path, query)) if query.split('&').all(|pair| pair.contains('=')) && !path.is_empty() => {
                for pair in query.split('&') {
                    match pair.split_once('=') {
                        Some(("bitmap", name)) if !name.is_empty() => bitmap = Some(name.to_owned()),
                        Some(("format", "raw")) => format = Some(ImageFormat::Raw),
                        Some(("format", "qcow2")) => format = Some(ImageFormat::Qcow2),
                        _ => {
                            return Err(Error::usage(format!("{text:?}: unknown parameter {pair:?}"))
                                .hint("the parameters are ?bitmap=NAME and ?format=raw|qcow2"));
                        }
                    }
                }
                path
            }
            _ => text,
        };
        Ok(Self::File { path: path.into(), bitmap, format })
    }
}

impl QmpAddress {
    /// True when `text` says that it is the address of a QEMU.
    pub fn is_meant_by(text: &str) -> bool {
        text.starts_with("qmp+unix:")
    }
}

impl FromStr for QmpAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |what: &str| {
            Error::usage(format!("{text:?} is not the address of a QEMU: {what}"))
                .hint("write qmp+unix:///run/web.qmp, perhaps with ?agent=/run/web.agent behind it")
        };
        let rest = text.strip_prefix("qmp+unix://").ok_or_else(|| wrong("it does not begin with qmp+unix://"))?;
        let (socket, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = |path: &str| {
            let path = decode(path).ok_or_else(|| wrong("bad % escape"))?;
            if path.starts_with('/') && path.len() > 1 {
                Ok(PathBuf::from(path))
            } else {
                Err(wrong("no absolute path"))
            }
        };
        let mut agent = None;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("agent", value)) if agent.is_none() => agent = Some(path(value)?),
                _ => return Err(wrong(&format!("unknown parameter {pair:?}"))),
            }
        }
        Ok(Self { socket: path(socket)?, agent })
    }
}

impl TryFrom<String> for QmpAddress {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl fmt::Display for QmpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "qmp+unix://{}", Escaped(&self.socket.to_string_lossy()))?;
        self.agent.as_ref().map_or(Ok(()), |agent| write!(f, "?agent={}", Escaped(&agent.to_string_lossy())))
    }
}

impl FromStr for BackupAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if QmpAddress::is_meant_by(text) {
            return text.parse().map(Self::Machine);
        }
        text.parse().map(Self::Disk)
    }
}

impl TryFrom<String> for SourceAddress {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl FromStr for TargetAddress {
    type Err = Error;

    /// Looks at what exists at a path. A block device is recognised by its file type, the format of a file by its name.
    fn from_str(text: &str) -> Result<Self> {
        if NbdUri::is_meant_by(text) {
            let uri: NbdUri = text.parse()?;
            if uri.bitmap.is_some() {
                return Err(Error::usage(format!("{text:?}: a target cannot have a bitmap")));
            }
            return Ok(Self::Nbd(uri));
        }
        let (path, word) = match text.rsplit_once("?format=") {
            Some((path, "raw")) => (path, Some(ImageFormat::Raw)),
            Some((path, "qcow2")) => (path, Some(ImageFormat::Qcow2)),
            Some((_, other)) => {
                return Err(Error::usage(format!("{text:?}: images of format {other:?} cannot be written"))
                    .hint("use ?format=raw or ?format=qcow2"));
            }
            None => (text, None),
        };
        let path = PathBuf::from(path);
        if is_block_device(&path) && word != Some(ImageFormat::Qcow2) {
            return Ok(Self::Device(path));
        }
        let (format, named) = match (word, path.extension().and_then(|it| it.to_str())) {
            (Some(format), _) => (format, Named::Surely),
            (None, Some("raw")) => (ImageFormat::Raw, Named::Surely),
            (None, Some("img")) => (ImageFormat::Raw, Named::Loosely),
            (None, Some("qcow2")) => (ImageFormat::Qcow2, Named::Surely),
            (None, _) => {
                return Err(Error::usage(format!("{text:?} does not say which format the target has"))
                    .hint("use PATH.raw, PATH.qcow2, PATH?format=raw|qcow2, a block device, or an NBD URI"));
            }
        };
        Ok(Self::File { path, format, named })
    }
}

impl fmt::Display for SourceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, .. } => path.display().fmt(f),
            Self::Nbd(uri) => uri.fmt(f),
        }
    }
}

impl fmt::Display for TargetAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, .. } | Self::Device(path) => path.display().fmt(f),
            Self::Nbd(uri) => uri.fmt(f),
        }
    }
}

impl ImageFormat {
    /// The name QEMU and manifests have for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    /// The format that a file's name tells.
    pub fn of_name(path: &Path) -> Option<Self> {
        let ending = path.extension()?.to_str()?.to_ascii_lowercase();
        match ending.as_str() {
            "raw" => Some(Self::Raw),
            "qcow2" | "qcow" => Some(Self::Qcow2),
            _ => None,
        }
    }

    /// The format that QEMU and manifests call so.
    pub fn called(name: &str) -> Option<Self> {
        [Self::Raw, Self::Qcow2].into_iter().find(|it| it.as_str() == name)
    }
}

fn is_block_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|it| it.file_type().is_block_device())
}

const ONLY_DISK: &str = "disk0";

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, bitmap: Option<&str>, format: Option<ImageFormat>) -> SourceAddress {
        SourceAddress::File { path: path.into(), bitmap: bitmap.map(str::to_owned), format }
    }

    #[test]
    fn sources() {
        for (text, want) in [
            ("/a/b.qcow2", file("/a/b.qcow2", None, None)),
            ("b=c.img", file("b=c.img", None, None)),
            ("/a?bitmap=cp0", file("/a", Some("cp0"), None)),
            ("/a?format=raw&bitmap=x", file("/a", Some("x"), Some(ImageFormat::Raw))),
            ("/what?.img", file("/what?.img", None, None)),
            ("/what?.img?format=qcow2", file("/what?.img", None, Some(ImageFormat::Qcow2))),
        ] {
            assert_eq!(text.parse::<SourceAddress>().unwrap(), want, "{text}");
        }
        let nbd: SourceAddress = "nbd://h/x?bitmap=b".parse().unwrap();
        assert!(matches!(nbd, SourceAddress::Nbd(NbdUri { bitmap: Some(_), .. })));
        for text in ["", "/a?size=1", "/a?format=vmdk", "/a?bitmap=", "http://h/x", "nbds://h/x", "qmp+unix:///m"] {
            assert!(text.parse::<SourceAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn machines_that_run() {
        let plain = QmpAddress { socket: "/run/a b".into(), agent: None };
        let both = QmpAddress { agent: Some("/x/agent?".into()), ..plain.clone() };
        assert_eq!("qmp+unix:///run/a%20b".parse::<QmpAddress>().unwrap(), plain);
        for address in [plain, both] {
            assert_eq!(address.to_string().parse::<QmpAddress>().unwrap(), address);
            assert_eq!(address.to_string().parse::<BackupAddress>().unwrap(), BackupAddress::Machine(address));
        }
        for text in
            ["qmp+unix:/run/a", "qmp+unix://", "qmp+unix:///", "qmp+unix://host/a", "qmp+unix:///a?b=c", "qmp:///a"]
        {
            assert!(text.parse::<QmpAddress>().is_err(), "{text}");
        }
        assert!(matches!("/a/b.qcow2".parse(), Ok(BackupAddress::Disk(_))));
    }

    #[test]
    fn names() {
        let named: NamedSource = "vda=/a=b".parse().unwrap();
        assert_eq!((named.name.as_str(), named.address), ("vda", file("/a=b", None, None)));
        for text in ["/a", "=/a", "../x=/a", "vda="] {
            assert!(text.parse::<NamedSource>().is_err(), "{text}");
        }
    }

    #[test]
    fn targets() {
        let file = |path: &str, format, named| TargetAddress::File { path: path.into(), format, named };
        for (text, want) in [
            ("/a/x.raw", file("/a/x.raw", ImageFormat::Raw, Named::Surely)),
            ("/a/x.img", file("/a/x.img", ImageFormat::Raw, Named::Loosely)),
            ("x.qcow2", file("x.qcow2", ImageFormat::Qcow2, Named::Surely)),
            ("/a/x.img?format=qcow2", file("/a/x.img", ImageFormat::Qcow2, Named::Surely)),
            ("/a/x?format=raw", file("/a/x", ImageFormat::Raw, Named::Surely)),
        ] {
            assert_eq!(text.parse::<TargetAddress>().unwrap(), want, "{text}");
        }
        assert!(matches!("nbd://h/x".parse(), Ok(TargetAddress::Nbd(_))));
        for text in ["", "/a/x", "/a/x.vmdk", "/a/x?format=vmdk", "/dev/null", "nbd://h/x?bitmap=b"] {
            assert!(text.parse::<TargetAddress>().is_err(), "{text}");
        }
    }
}
