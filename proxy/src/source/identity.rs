//! What a file is: its identity, its format by content, and whether it stayed the same.

use crate::address::ImageFormat;
use mover::{Error, LayerIdentity, Result, Timestamp};
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A regular file or block device that holds a disk image.
#[derive(Debug, Clone)]
pub struct ImageFile {
    /// Its absolute path; symbolic links are kept, because backing files are found relative to it.
    pub path: PathBuf,
    /// What kind of file it is.
    pub kind: FileKind,
    /// Its format.
    pub format: ImageFormat,
}

/// What holds an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A block device.
    Device,
}

impl ImageFile {
    /// Looks at `path`. `format` overrides what its content says.
    ///
    /// # Errors
    /// `Source` when it cannot be opened, `Usage` when it is nothing that can be backed up.
    pub fn look(path: &Path, format: Option<ImageFormat>) -> Result<Self> {
        let failed = |error: io::Error| Error::source("cannot be opened").because(error).context(path.display());
        let metadata = std::fs::metadata(path).map_err(failed)?;
        let kind = match metadata.file_type() {
            it if it.is_file() => FileKind::Regular,
            it if it.is_block_device() => FileKind::Device,
            _ => {
                return Err(Error::usage(format!("{} is neither a file nor a block device", path.display())));
            }
        };
        let path = std::path::absolute(path).map_err(failed)?;
        let found = sniff(&File::open(&path).map_err(failed)?).map_err(failed)?;
        let format = match (format, found) {
            (Some(format), _) => format,
            // Whoever owns the machine writes the first sector of a device; a header there could name any file of this
            // host as backing file.
            (None, Found::Qcow2) if kind == FileKind::Device => {
                return Err(Error::usage(format!("{} is a block device with a qcow2 header", path.display())).hint(
                    "say ?format=raw when the machine wrote it, ?format=qcow2 when the device really is an image",
                ));
            }
            (None, Found::Qcow2) => ImageFormat::Qcow2,
            (None, Found::Raw) => ImageFormat::Raw,
            (None, Found::Foreign(name)) => {
                return Err(Error::usage(format!("{} is a {name} image", path.display())).hint(
                    "convert it with `qemu-img convert -O qcow2`, or serve it with qemu-nbd and name it as NBD URI; \
                     say ?format=raw when these are the bytes of the disk itself",
                ));
            }
        };
        Ok(Self { path, kind, format })
    }
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

/// The identity of something that is not a file of this host.
pub fn remote_identity(name: String) -> LayerIdentity {
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

    /// Compares with the file as it is now.
    ///
    /// # Errors
    /// `Source` when it is not what it was.
    pub fn check(&self) -> Result<()> {
        let now = std::fs::metadata(&self.path)
            .map_err(|error| Error::source("vanished").because(error).context(self.path.display()))?;
        if Self::of(&self.path, &now) == *self {
            return Ok(());
        }
        Err(Error::source(format!("{} changed while it was read", self.path.display()))
            .hint("shut the machine down, or back it up through its monitor: qmp+unix:///PATH"))
    }
}

enum Found {
    Raw,
    Qcow2,
    Foreign(&'static str),
}

fn sniff(file: &File) -> io::Result<Found> {
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
    if head.starts_with(b"QFI\xfb") {
        return Ok(match head.get(4..8) {
            Some([0, 0, 0, 2 | 3]) => Found::Qcow2,
            _ => Found::Foreign("qcow (version 1)"),
        });
    }
    if head.get(64..68) == Some(&VDI_MAGIC.to_le_bytes()) {
        return Ok(Found::Foreign("vdi"));
    }
    let foreign = FOREIGN.iter().find(|(magic, _)| head.starts_with(magic));
    Ok(foreign.map_or(Found::Raw, |(_, name)| Found::Foreign(name)))
}

fn timestamp(seconds: i64, nanoseconds: i64) -> Timestamp {
    Timestamp(seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds))
}

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

    fn look(content: &[u8], format: Option<ImageFormat>) -> Result<ImageFile> {
        // The name says raw, whatever it is.
        let mut file = tempfile::Builder::new().suffix(".raw").tempfile().unwrap();
        file.write_all(content).unwrap();
        ImageFile::look(file.path(), format)
    }

    #[test]
    fn content_tells_the_format() {
        assert_eq!(look(b"", None).unwrap().format, ImageFormat::Raw);
        assert_eq!(look(&[0; 1024], None).unwrap().format, ImageFormat::Raw);
        assert_eq!(look(b"QFI\xfb\0\0\0\x03", None).unwrap().format, ImageFormat::Qcow2);
        assert_eq!(look(b"QFI\xfb\0\0\0\x02", None).unwrap().format, ImageFormat::Qcow2);
        assert_eq!(look(b"QFI\xfb\0\0\0\x03", Some(ImageFormat::Raw)).unwrap().format, ImageFormat::Raw);
    }

    #[test]
    fn other_formats_are_refused_with_a_remedy() {
        let vdi = [[0; 64].as_slice(), &VDI_MAGIC.to_le_bytes()].concat();
        let old = b"QFI\xfb\0\0\0\x01".to_vec();
        for content in FOREIGN.iter().map(|(magic, _)| magic.to_vec()).chain([vdi, old]) {
            let error = look(&content, None).unwrap_err();
            assert_eq!(error.kind(), mover::ErrorKind::Usage);
            assert!(error.remedy().is_some_and(|it| it.contains("qemu-img convert")));
        }
        assert_eq!(ImageFile::look(Path::new("/dev/null"), None).unwrap_err().kind(), mover::ErrorKind::Usage);
        assert_eq!(ImageFile::look(Path::new("/nowhere/x"), None).unwrap_err().kind(), mover::ErrorKind::Source);
    }
}
