//! What the header of a qcow2 image names: its backing file and its data file. QEMU opens every file that the header
//! names. So we read the names before any of QEMU's tools sees the image (T10). Nothing else of the format is read
//! here.
//!
//! Layout: QEMU's `docs/interop/qcow2.txt`, "Header" and "Header extensions". This reader is strict where the tools are
//! lenient.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The part of a qcow2 header that decides what else is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qcow2Header {
    /// Size of the disk in bytes.
    pub size: u64,
    /// True when the data needs a secret.
    pub encrypted: bool,
    /// The backing file as it is named; none when there is none.
    pub backing: Option<String>,
    /// What the header says of the backing file's format; none when it says nothing.
    pub backing_format: Option<String>,
    /// Where the data is, when it is not in the image.
    pub data_file: DataFile,
}

/// Where an image has its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataFile {
    /// In the image itself.
    Inside,
    /// In another file, of this name.
    Named(String),
    /// In another file that the header does not name.
    Unnamed,
}

/// Why bytes are no header that can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Something else begins here.
    #[error("it does not begin like a qcow2 image")]
    Foreign,
    /// A version that QEMU's tools would read in another way than this does.
    #[error("its qcow2 version is {0}, and not 2 or 3")]
    Version(u32),
    /// A field that cannot be.
    #[error("its qcow2 header is damaged: {0}")]
    Damaged(&'static str),
}

impl Qcow2Header {
    /// Reads the header of an open file. The outer error is one of reading.
    ///
    /// # Errors
    /// Those of reading; the inner one is about what was read.
    pub fn read(file: &File) -> io::Result<Result<Self, HeaderError>> {
        let mut head = vec![0; FIXED_BYTES];
        let have = read_up_to(file, &mut head)?;
        let cluster = match cluster_bytes(&head[..have]) {
            Ok(bytes) => bytes,
            Err(error) => return Ok(Err(error)),
        };
        // Everything the header names lies in the first cluster, which has 2 MiB at most.
        head.resize(cluster.max(FIXED_BYTES), 0);
        let have = read_up_to(file, &mut head)?;
        Ok(Self::decode(&head[..have]))
    }

    /// The header at the beginning of `head`, which holds the image's first cluster, or all of a shorter file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(head: &[u8]) -> Result<Self, HeaderError> {
        let cluster = cluster_bytes(head)?;
        let head = &head[..head.len().min(cluster)];
        let (incompatible, length) = if u32_at(head, 4)? == 2 { (0, V2_BYTES) } else { features(head)? };
        let (backing_at, backing_bytes) = (u64_at(head, 8)?, u32_at(head, 16)? as usize);
        let backing_at = usize::try_from(backing_at).ok().filter(|at| *at <= cluster);
        let backing_at = backing_at.ok_or(HeaderError::Damaged("its backing file's name lies outside"))?;
        let (backing, end) = match backing_at {
            0 => (None, cluster),
            at if at < length => return Err(HeaderError::Damaged("its backing file's name lies inside the header")),
            at if backing_bytes > BACKING_BYTES_MAX => {
                let _ = at;
                return Err(HeaderError::Damaged("its backing file's name is too long"));
            }
            at => (name(bytes_at(head, at, backing_bytes)?)?, at),
        };
        let named = Extensions::read(head, length, end)?;
        let data_file = match (incompatible & DATA_FILE_BIT != 0, named.data_file) {
            (false, _) => DataFile::Inside,
            (true, Some(name)) => DataFile::Named(name),
            (true, None) => DataFile::Unnamed,
        };
        Ok(Self {
            size: u64_at(head, 24)?,
            encrypted: u32_at(head, 32)? != 0,
            backing,
            backing_format: named.backing_format,
            data_file,
        })
    }

    /// True when the image is all there is: no backing file, no data file.
    pub fn stands_alone(&self) -> bool {
        self.backing.is_none() && self.data_file == DataFile::Inside
    }
}

/// True when `head` begins like a qcow2 image of any version.
pub fn begins_like_qcow2(head: &[u8]) -> bool {
    head.starts_with(&MAGIC)
}

/// What the extensions name.
#[derive(Default)]
struct Extensions {
    backing_format: Option<String>,
    data_file: Option<String>,
}

impl Extensions {
    fn read(head: &[u8], from: usize, end: usize) -> Result<Self, HeaderError> {
        let mut found = Self::default();
        let mut at = from;
        while at < end {
            let (kind, bytes) = (u32_at(head, at)?, u32_at(head, at + 4)? as usize);
            at += 8;
            if at > end || bytes > end - at {
                return Err(HeaderError::Damaged("an extension is too long"));
            }
            let place = match kind {
                EXTENSIONS_END => return Ok(found),
                BACKING_FORMAT if bytes > BACKING_FORMAT_BYTES_MAX => {
                    return Err(HeaderError::Damaged("the format of its backing file is too long"));
                }
                BACKING_FORMAT => Some(&mut found.backing_format),
                DATA_FILE if bytes > DATA_FILE_BYTES_MAX => {
                    return Err(HeaderError::Damaged("its data file's name is too long"));
                }
                DATA_FILE => Some(&mut found.data_file),
                _ => None,
            };
            if let Some(place) = place {
                // QEMU takes the last one. Two are no accident.
                if place.is_some() {
                    return Err(HeaderError::Damaged("an extension is there twice"));
                }
                *place = name(bytes_at(head, at, bytes)?)?;
            }
            at += bytes.next_multiple_of(8);
        }
        Ok(found)
    }
}

/// Checks what comes first, and gives the size of a cluster.
fn cluster_bytes(head: &[u8]) -> Result<usize, HeaderError> {
    if !begins_like_qcow2(head) {
        return Err(HeaderError::Foreign);
    }
    match u32_at(head, 4)? {
        2 | 3 => {}
        other => return Err(HeaderError::Version(other)),
    }
    match u32_at(head, 20)? {
        bits @ 9..=21 => Ok(1 << bits),
        _ => Err(HeaderError::Damaged("no such size of clusters")),
    }
}

/// Incompatible features and the header's length, of version 3.
fn features(head: &[u8]) -> Result<(u64, usize), HeaderError> {
    let (incompatible, length) = (u64_at(head, 72)?, u32_at(head, 100)? as usize);
    if length < V3_BYTES_MIN || length > head.len() {
        return Err(HeaderError::Damaged("no such length"));
    }
    Ok((incompatible, length))
}

/// A name as text; an empty one is none.
fn name(bytes: &[u8]) -> Result<Option<String>, HeaderError> {
    // The tools would read it up to the zero byte.
    if bytes.contains(&0) {
        return Err(HeaderError::Damaged("a name has zero bytes in it"));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| HeaderError::Damaged("a name is no text"))?;
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

fn bytes_at(head: &[u8], at: usize, length: usize) -> Result<&[u8], HeaderError> {
    let end = at.checked_add(length).ok_or(HeaderError::Damaged("it ends too early"))?;
    head.get(at..end).ok_or(HeaderError::Damaged("it ends too early"))
}

fn u32_at(head: &[u8], at: usize) -> Result<u32, HeaderError> {
    Ok(u32::from_be_bytes(bytes_at(head, at, 4)?.try_into().expect("four bytes")))
}

fn u64_at(head: &[u8], at: usize) -> Result<u64, HeaderError> {
    Ok(u64::from_be_bytes(bytes_at(head, at, 8)?.try_into().expect("eight bytes")))
}

/// Fills `head` from the file's beginning, as far as the file goes.
fn read_up_to(file: &File, head: &mut [u8]) -> io::Result<usize> {
    let mut have = 0;
    while have < head.len() {
        match file.read_at(&mut head[have..], have as u64) {
            Ok(0) => break,
            Ok(more) => have += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(have)
}

const MAGIC: [u8; 4] = *b"QFI\xfb";
const V2_BYTES: usize = 72;
const V3_BYTES_MIN: usize = 104;
/// Enough to tell the size of a cluster.
const FIXED_BYTES: usize = 512;
const DATA_FILE_BIT: u64 = 1 << 2;
const EXTENSIONS_END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const DATA_FILE: u32 = 0x4441_5441;
/// QEMU's own limits for the first two; for the third it has none, the system does.
const BACKING_BYTES_MAX: usize = 1023;
const BACKING_FORMAT_BYTES_MAX: usize = 15;
const DATA_FILE_BYTES_MAX: usize = 4095;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A header of version 3, with extensions and a backing file's name behind it.
    fn header(incompatible: u64, extensions: &[(u32, &[u8])], backing: &[u8]) -> Vec<u8> {
        let mut head = vec![0; 65_536];
        let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        put(4, &3_u32.to_be_bytes());
        put(20, &16_u32.to_be_bytes());
        put(24, &(8_u64 << 20).to_be_bytes());
        put(72, &incompatible.to_be_bytes());
        put(100, &112_u32.to_be_bytes());
        let mut at = 112;
        for (kind, bytes) in extensions {
            put(at, &kind.to_be_bytes());
            put(at + 4, &u32::try_from(bytes.len()).unwrap().to_be_bytes());
            put(at + 8, bytes);
            at += 8 + bytes.len().next_multiple_of(8);
        }
        if !backing.is_empty() {
            at += 8;
            put(8, &(at as u64).to_be_bytes());
            put(16, &u32::try_from(backing.len()).unwrap().to_be_bytes());
            put(at, backing);
        }
        head
    }

    #[test]
    fn what_it_names() {
        let plain = Qcow2Header::decode(&header(0, &[], b"")).unwrap();
        assert!(plain.stands_alone() && !plain.encrypted && plain.size == 8 << 20);
        let all = [(BACKING_FORMAT, &b"raw"[..]), (0x1234, &[0xff; 9]), (DATA_FILE, b"d.raw")];
        let all = Qcow2Header::decode(&header(DATA_FILE_BIT, &all, b"../base")).unwrap();
        assert_eq!(all.backing.as_deref(), Some("../base"));
        assert_eq!(all.backing_format.as_deref(), Some("raw"));
        assert_eq!(all.data_file, DataFile::Named("d.raw".into()));
        // Without its feature bit a data file is only a word; without a word it is somewhere.
        let word = Qcow2Header::decode(&header(0, &[(DATA_FILE, b"d")], b"")).unwrap();
        assert_eq!(word.data_file, DataFile::Inside);
        assert_eq!(Qcow2Header::decode(&header(DATA_FILE_BIT, &[], b"")).unwrap().data_file, DataFile::Unnamed);
        // Version 2 has neither features nor a length.
        let mut old = header(u64::MAX, &[], b"");
        old[7] = 2;
        old[72..112].fill(0);
        assert!(Qcow2Header::decode(&old).unwrap().stands_alone());
    }

    #[test]
    fn what_is_damaged() {
        let with = |at: usize, bytes: &[u8]| {
            let mut head = header(0, &[(BACKING_FORMAT, b"raw")], b"base");
            head[at..at + bytes.len()].copy_from_slice(bytes);
            Qcow2Header::decode(&head)
        };
        with(0, b"QFI\xfb").unwrap();
        assert_eq!(with(0, b"raw!"), Err(HeaderError::Foreign));
        assert_eq!(with(4, &[0, 0, 0, 1]), Err(HeaderError::Version(1)));
        let wrong: [(usize, &[u8]); 10] = [
            (20, &[0, 0, 0, 8]),
            (20, &[0, 0, 0, 22]),
            (8, &[0xff; 8]),
            (8, &[0, 0, 0, 0, 0, 0, 0, 90]),
            (16, &1024_u32.to_be_bytes()),
            (100, &[0; 4]),
            (100, &[0xff; 4]),
            (116, &16_u32.to_be_bytes()),
            (116, &[0xff; 4]),
            (120, b"r\0w"),
        ];
        for (at, bytes) in wrong {
            assert!(matches!(with(at, bytes), Err(HeaderError::Damaged(_))), "{at}: {bytes:?}");
        }
        let twice = header(0, &[(DATA_FILE, b"a"), (DATA_FILE, b"b")], b"");
        assert!(matches!(Qcow2Header::decode(&twice), Err(HeaderError::Damaged(_))));
        let whole = header(0, &[(DATA_FILE, b"a")], b"base");
        for short in 0..140 {
            assert!(Qcow2Header::decode(&whole[..short]).is_err(), "{short}");
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_only_refused(
            at in prop::collection::vec((0_usize..256, any::<u8>()), 0..12),
            length in 0_usize..2048,
        ) {
            let mut head = header(DATA_FILE_BIT, &[(BACKING_FORMAT, b"qcow2"), (DATA_FILE, b"d")], b"json:{}");
            at.iter().for_each(|(at, byte)| head[*at] = *byte);
            if let Ok(read) = Qcow2Header::decode(&head[..length]) {
                let names = [read.backing, read.backing_format];
                prop_assert!(names.iter().flatten().all(|name| !name.is_empty() && name.len() < 1024));
            }
        }
    }
}
