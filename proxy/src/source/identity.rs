//! What a file is: its format by what the administrator says, its identity, and whether it stayed the same.

use crate::address::ImageFormat;
use crate::qemu::{FileKind, begins_like_qcow2};
use mover::{Error, LayerIdentity, Result, Timestamp};
use rustix::fs::OFlags;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A regular file or block device that holds a disk image.
#[derive(Debug, Clone)]
pub struct ImageFile {
    /// Its absolute path; symbolic links are kept, because backing files are found relative to it.
    pub path: PathBuf,
    /// What kind of file it is.
    pub kind: FileKind,
    /// Format of the image.
    pub format: ImageFormat,
    /// What is odd about it.
    pub warning: Option<String>,
}

/// A file that was looked at.
#[derive(Debug)]
pub enum Looked {
    /// Its format is said.
    Known(ImageFile),
    /// Neither the address nor the name says the format, and the file begins like an image. The machine that writes the
    /// disk may have written this beginning.
    Silent(SilentImage),
}

/// A file whose format nobody said so far.
#[derive(Debug)]
pub struct SilentImage {
    path: PathBuf,
    kind: FileKind,
    found: &'static str,
}

/// A file that is open for looking at it.
#[derive(Debug)]
pub struct Seen {
    /// The file, open for reading.
    pub file: File,
    /// Regular file or block device.
    pub kind: FileKind,
    /// Device and inode number of the file.
    pub identity: (u64, u64),
}

impl ImageFile {
    /// Looks at `path`. Its format is `said`, or what its name tells. The content decides nothing, because the machine
    /// that writes the disk also writes the content (T10).
    ///
    /// # Errors
    /// `Source` when it cannot be opened, `Usage` when it is nothing that can be backed up.
    pub fn look(path: &Path, said: Option<ImageFormat>) -> Result<Looked> {
        let failed = |error: io::Error| Error::source("cannot be opened").because(error).context(path.display());
        let Seen { file, kind, .. } = see(path, OFlags::empty())?;
        let path = std::path::absolute(path).map_err(failed)?;
        let found = sniff(&file).map_err(failed)?;
        let known = |format, warning| Ok(Looked::Known(Self { path: path.clone(), kind, format, warning }));
        if let Some(format) = said {
            return known(format, None);
        }
        match (ImageFormat::of_name(&path), found) {
            (Some(ImageFormat::Raw), Some(found)) => known(ImageFormat::Raw, Some(read_as_raw(found, "its name says"))),
            (Some(format), _) => known(format, None),
            (None, _) if foreign_name(&path) => Err(other_format(&path, "an image of another format by its name")),
            (None, None) => known(ImageFormat::Raw, None),
            (None, Some(found)) => Ok(Looked::Silent(SilentImage { path, kind, found })),
        }
    }
}

impl SilentImage {
    /// The image, when the parent point says its format.
    ///
    /// # Errors
    /// `Usage` when it does not, or says something else than what is there.
    pub fn resolve(self, parent: Option<ImageFormat>) -> Result<ImageFile> {
        let Self { path, kind, found } = self;
        match parent {
            Some(format @ ImageFormat::Raw) => {
                let warning = Some(read_as_raw(found, "the parent point says"));
                Ok(ImageFile { path, kind, format, warning })
            }
            Some(format) if found == QCOW2 => Ok(ImageFile { path, kind, format, warning: None }),
            None if found == QCOW2 => {
                let what = format!(
                    "{} begins like a qcow2 image, but neither its name nor its address says that it is one",
                    path.display()
                );
                Err(Error::usage(what).hint(
                    "write ?format=qcow2 behind it if it is an image, or ?format=raw if it is a raw disk on which the machine \
                     itself wrote these bytes",
                ))
            }
            _ => Err(other_format(&path, &format!("a {found} image"))),
        }
    }
}

/// Opens a file for looking at it, without waiting for anybody; a device or file, nothing else.
///
/// # Errors
/// `Source` when it cannot be opened, `Usage` when it is something else.
pub fn see(path: &Path, more: OFlags) -> Result<Seen> {
    let failed = |error: io::Error| Error::source("cannot be opened").because(error).context(path.display());
    let kind = |metadata: &Metadata| match metadata.file_type() {
        it if it.is_file() => Ok(FileKind::Regular),
        it if it.is_block_device() => Ok(FileKind::Device),
        _ => Err(Error::usage(format!("{} is neither a file nor a block device", path.display()))),
    };
    // First, because opening some devices does something; then again, because it may be another file by now.
    kind(&std::fs::metadata(path).map_err(failed)?)?;
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY | more).bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    Ok(Seen { kind: kind(&metadata)?, identity: (metadata.dev(), metadata.ino()), file })
}

fn read_as_raw(found: &str, by: &str) -> String {
    format!("it begins like a {found} image, but is read as a raw disk, because {by} so")
}

fn other_format(path: &Path, what: &str) -> Error {
    Error::usage(format!("{} is {what}", path.display())).hint(
        "convert it with `qemu-img convert -O qcow2`, or serve it with qemu-nbd and give its NBD URI; write ?format=raw \
         behind it if it is a raw disk",
    )
}

fn foreign_name(path: &Path) -> bool {
    let ending = path.extension().and_then(|it| it.to_str()).map(str::to_ascii_lowercase);
    ending.is_some_and(|ending| FOREIGN_NAMES.contains(&ending.as_str()))
}

/// The identity of the file at `path` as it is now.
///
/// # Errors
/// Those of `stat`.
pub fn identity(path: &Path) -> io::Result<LayerIdentity> {
    let path = std::path::absolute(path)?;
    let metadata = std::fs::metadata(&path)?;
    Ok(LayerIdentity {
        path: path.to_string_lossy().into_owned(),
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        mtime: timestamp(metadata.mtime(), metadata.mtime_nsec()),
        ctime: timestamp(metadata.ctime(), metadata.ctime_nsec()),
    })
}

/// The identity of something whose changes cannot be told: a device below an image.
pub fn untold_identity(name: String) -> LayerIdentity {
    LayerIdentity { path: name, device: 0, inode: 0, size: 0, mtime: Timestamp(0), ctime: Timestamp(0) }
}

/// What must not change while an image is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    path: PathBuf,
    size: u64,
    mtime: Timestamp,
    ctime: Timestamp,
}

impl Stamp {
    /// The stamp of a file.
    pub fn of(path: &Path, metadata: &Metadata) -> Self {
        // Opening a device node changes nothing about the node; only its size would tell, and it has none here.
        let still = metadata.file_type().is_block_device();
        let time = |secs, nanos| if still { Timestamp(0) } else { timestamp(secs, nanos) };
        Self {
            path: path.to_owned(),
            size: metadata.size(),
            mtime: time(metadata.mtime(), metadata.mtime_nsec()),
            ctime: time(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Compares with the files as they are now. Waits until the files' clock has gone on since they were last written,
    /// because a file that is written twice within one tick of this clock shows the same time.
    ///
    /// # Errors
    /// `Source` when one is not what it was.
    pub fn check(stamps: &[Self]) -> Result<()> {
        let wait = stamps.iter().filter_map(Self::tick).max().unwrap_or_default();
        std::thread::sleep(wait);
        stamps.iter().try_for_each(Self::check_one)
    }

    /// What is left of the tick of the file's clock in which it was written.
    #[expect(clippy::disallowed_methods, reason = "it is compared with the times that the kernel gives to files")]
    fn tick(&self) -> Option<Duration> {
        let tick = if self.ctime.0 % 1_000_000_000 == 0 { COARSE_TICK } else { TICK };
        let written = UNIX_EPOCH + Duration::from_nanos(u64::try_from(self.ctime.0).ok()?);
        (written + tick).duration_since(SystemTime::now()).ok().filter(|left| *left <= tick)
    }

    fn check_one(&self) -> Result<()> {
        let now = std::fs::metadata(&self.path)
            .map_err(|error| Error::source("vanished").because(error).context(self.path.display()))?;
        if Self::of(&self.path, &now) == *self {
            return Ok(());
        }
        Err(Error::source(format!("{} changed while it was read", self.path.display()))
            .hint("shut the machine down, or back up a snapshot of the disk"))
    }
}

/// What image the file begins like.
fn sniff(file: &File) -> io::Result<Option<&'static str>> {
    let mut head = [0; 512];
    let mut have = 0;
    while have < head.len() {
        match file.read_at(&mut head[have..], have as u64) {
            Ok(0) => break,
            Ok(more) => have += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let head = &head[..have];
    if begins_like_qcow2(head) {
        return Ok(Some(QCOW2));
    }
    if head.get(64..68) == Some(&VDI_MAGIC.to_le_bytes()) {
        return Ok(Some("vdi"));
    }
    Ok(FOREIGN.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, name)| *name))
}

fn timestamp(seconds: i64, nanoseconds: i64) -> Timestamp {
    Timestamp(seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds))
}

/// The clock of a file system that keeps fractions of a second goes with the kernel's, 100 times a second or more.
const TICK: Duration = Duration::from_millis(20);
/// FAT keeps even seconds.
const COARSE_TICK: Duration = Duration::from_secs(2);
const QCOW2: &str = "qcow2";
/// Endings of images that cannot be read here.
const FOREIGN_NAMES: [&str; 9] = ["vmdk", "vhdx", "vhd", "vpc", "vdi", "qed", "hdd", "parallels", "ova"];
const VDI_MAGIC: u32 = 0xbeda_107f;
const FOREIGN: [(&[u8], &str); 10] = [
    (b"KDMV", "vmdk"),
    (b"COWD", "vmdk"),
    (b"# Disk DescriptorFile", "vmdk"),
    (b"vhdxfile", "vhdx"),
    (b"conectix", "vhd (vpc)"),
    (b"QED\0", "qed"),
    (b"LUKS\xba\xbe", "LUKS"),
    (b"WithoutFreeSpace", "parallels"),
    (b"WithouFreSpacExt", "parallels"),
    (b"OOOM\0", "cow"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn look(content: &[u8], ending: &str, said: Option<ImageFormat>) -> Result<Looked> {
        let mut file = tempfile::Builder::new().suffix(ending).tempfile().unwrap();
        file.write_all(content).unwrap();
        ImageFile::look(file.path(), said)
    }

    fn known(content: &[u8], ending: &str, said: Option<ImageFormat>) -> ImageFile {
        match look(content, ending, said).unwrap() {
            Looked::Known(image) => image,
            Looked::Silent(silent) => panic!("{silent:?}"),
        }
    }

    fn silent(content: &[u8], ending: &str) -> SilentImage {
        match look(content, ending, None).unwrap() {
            Looked::Silent(silent) => silent,
            Looked::Known(image) => panic!("{image:?}"),
        }
    }

    const V3: &[u8] = b"QFI\xfb\0\0\0\x03";

    #[test]
    fn address_and_name_tell_the_format() {
        use ImageFormat::{Qcow2, Raw};
        for (content, ending, said, format, warned) in [
            (&b""[..], "", None, Raw, false),
            (&[0; 1024], ".img", None, Raw, false),
            (V3, ".raw", None, Raw, true),
            (b"KDMV", ".RAW", None, Raw, true),
            (V3, ".qcow2", None, Qcow2, false),
            (&[0; 1024], ".qcow2", None, Qcow2, false),
            (V3, "", Some(Raw), Raw, false),
            (V3, ".raw", Some(Qcow2), Qcow2, false),
            (V3, ".qcow2", Some(Raw), Raw, false),
            (b"vhdxfile", ".vhdx", Some(Raw), Raw, false),
        ] {
            let image = known(content, ending, said);
            assert_eq!((image.format, image.warning.is_some()), (format, warned), "{content:?} {ending} {said:?}");
        }
    }

    #[test]
    fn where_they_are_silent_content_does_not_decide() {
        for ending in ["", ".img", ".disk"] {
            let refused = silent(V3, ending).resolve(None).unwrap_err();
            assert_eq!(refused.kind(), mover::ErrorKind::Usage);
            let remedy = refused.remedy().unwrap();
            assert!(remedy.contains("?format=qcow2") && remedy.contains("?format=raw"), "{remedy}");
            let raw = silent(V3, ending).resolve(Some(ImageFormat::Raw)).unwrap();
            assert!(raw.format == ImageFormat::Raw && raw.warning.is_some());
            assert_eq!(silent(V3, ending).resolve(Some(ImageFormat::Qcow2)).unwrap().format, ImageFormat::Qcow2);
        }
        silent(b"KDMV", ".img").resolve(Some(ImageFormat::Qcow2)).unwrap_err();
    }

    #[test]
    fn other_formats_are_refused_with_a_remedy() {
        let vdi = [[0; 64].as_slice(), &VDI_MAGIC.to_le_bytes()].concat();
        let told = |error: Error| {
            assert_eq!(error.kind(), mover::ErrorKind::Usage);
            assert!(error.remedy().is_some_and(|it| it.contains("qemu-img convert")));
        };
        for content in FOREIGN.iter().map(|(magic, _)| magic.to_vec()).chain([vdi]) {
            told(silent(&content, ".img").resolve(None).unwrap_err());
            assert_eq!(silent(&content, "").resolve(Some(ImageFormat::Raw)).unwrap().format, ImageFormat::Raw);
        }
        for ending in FOREIGN_NAMES {
            told(look(b"", &format!(".{ending}"), None).unwrap_err());
        }
    }

    #[test]
    fn pipes_and_terminals_are_no_disks_and_nobody_waits_for_them() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe.raw");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        for path in [&pipe, Path::new("/dev/null"), folder.path()] {
            assert_eq!(ImageFile::look(path, None).unwrap_err().kind(), mover::ErrorKind::Usage);
        }
        assert_eq!(ImageFile::look(Path::new("/nowhere/x"), None).unwrap_err().kind(), mover::ErrorKind::Source);
    }
}
