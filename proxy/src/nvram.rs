//! The variables of a machine's firmware: without them a UEFI machine may not find its boot loader.

use crate::lines::printable;
use mover::NewAttachment;
use rustix::fs::OFlags;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The file at `path` as an attachment.
///
/// # Errors
/// Of the file system; `InvalidData` for what is no small file.
pub fn nvram_file(path: &Path) -> io::Result<NewAttachment> {
    // Its folder belongs to QEMU's user: what was put in the file's place is not followed, and not waited for.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let wrong = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    if !file.metadata()?.is_file() {
        return Err(wrong("it is no file"));
    }
    let mut bytes = Vec::new();
    file.take(NVRAM_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > NVRAM_BYTES_MAX {
        return Err(wrong("it is larger than firmware can be"));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(NewAttachment {
        kind: NVRAM_KIND.parse().expect("a valid name"),
        name: printable(&name, NAME_CHARS_MAX),
        bytes: bytes.into(),
    })
}

/// Kind of the attachment.
pub const NVRAM_KIND: &str = "nvram";
const NAME_CHARS_MAX: usize = 128;
/// Flash of a PC has some MiB.
const NVRAM_BYTES_MAX: u64 = 64 << 20;
