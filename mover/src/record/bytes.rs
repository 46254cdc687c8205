//! Reading and writing of hand-specified records: little-endian, lengths before contents, nothing trusted.

use crate::Error;
use std::fmt;

/// Longest text of a record in bytes.
pub const TEXT_BYTES_MAX: usize = u16::MAX as usize;

/// Whether a text fits into a record. To be asked where the text enters the program, because no text is cut to fit.
///
/// # Errors
/// `Usage`, naming `what` it is.
pub fn check_text(what: impl fmt::Display, text: &str) -> crate::Result<()> {
    if text.len() <= TEXT_BYTES_MAX {
        return Ok(());
    }
    Err(Error::usage(format!("{what} has {} bytes, more than {TEXT_BYTES_MAX}", text.len())).hint("make it shorter"))
}

/// Why bytes are not the record they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The bytes end inside a field.
    #[error("{field} ends early")]
    Short {
        /// Field in which the bytes end.
        field: &'static str,
    },
    /// A field has a value it may not have.
    #[error("{field} has the invalid value {value}")]
    Value {
        /// Name of the field.
        field: &'static str,
        /// Value that the field has.
        value: u64,
    },
    /// Text that is not UTF-8 or not a name.
    #[error("{field} is not valid text")]
    Text {
        /// Name of the field.
        field: &'static str,
    },
    /// The items of a set are not in ascending order, or one of them is there twice.
    #[error("{field} are not in ascending order")]
    Order {
        /// Name of the field.
        field: &'static str,
    },
    /// Bytes are left over.
    #[error("{bytes} bytes are left over")]
    Trailing {
        /// Number of bytes behind the record.
        bytes: u64,
    },
    /// A newer format, or something that must be understood and is not.
    #[error("{field} {value} is newer than this program")]
    Newer {
        /// What is newer: the name of a version, feature or flag.
        field: &'static str,
        /// Value that this program does not know.
        value: u64,
    },
    /// The checksum or hash does not match.
    #[error("{field} does not match")]
    Hash {
        /// Name of the field.
        field: &'static str,
    },
}

impl From<RecordError> for Error {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::Newer { .. } => Self::version(error.to_string()).hint("use a newer version of Windlass"),
            _ => Self::integrity(error.to_string()),
        }
    }
}

/// Takes fields off the front of a record.
pub struct RecordReader<'a> {
    rest: &'a [u8],
}

impl<'a> RecordReader<'a> {
    /// Reads `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Bytes not yet taken.
    pub const fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// The next `length` bytes.
    ///
    /// # Errors
    /// [`RecordError::Short`].
    pub fn bytes(&mut self, field: &'static str, length: usize) -> Result<&'a [u8], RecordError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(RecordError::Short { field })?;
        self.rest = rest;
        Ok(taken)
    }

    /// The next `N` bytes.
    ///
    /// # Errors
    /// [`RecordError::Short`].
    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], RecordError> {
        Ok(self.bytes(field, N)?.try_into().expect("as long as asked for"))
    }

    /// A byte.
    ///
    /// # Errors
    /// [`RecordError::Short`].
    pub fn u8(&mut self, field: &'static str) -> Result<u8, RecordError> {
        Ok(u8::from_le_bytes(self.array(field)?))
    }

    /// 16 bits.
    ///
    /// # Errors
    /// [`RecordError::Short`].
    pub fn u16(&mut self, field: &'static str) -> Result<u16, RecordError> {
        Ok(u16::from_le_bytes(self.array(field)?))
    }

    /// 32 bits.
    ///
    /// # Errors
    /// [`RecordError::Short`].
    pub fn u32(&mut self, field: &'static str) -> Result<u32, RecordError> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    /// 64 bits.
    ///
    /// # Errors
    /// [`RecordError::Short`].
    pub fn u64(&mut self, field: &'static str) -> Result<u64, RecordError> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    /// 64 bits, signed.
    ///
    /// # Errors
    /// [`RecordError::Short`].
    pub fn i64(&mut self, field: &'static str) -> Result<i64, RecordError> {
        Ok(i64::from_le_bytes(self.array(field)?))
    }

    /// A presence byte (0 or 1), then the value if there is one.
    ///
    /// # Errors
    /// As `read`, or another presence byte.
    pub fn option<T>(
        &mut self,
        field: &'static str,
        read: impl FnOnce(&mut Self) -> Result<T, RecordError>,
    ) -> Result<Option<T>, RecordError> {
        match self.u8(field)? {
            0 => Ok(None),
            1 => read(self).map(Some),
            value => Err(RecordError::Value { field, value: value.into() }),
        }
    }

    /// A u32 count, then that many items. Nothing is allocated that the remaining bytes could not hold.
    ///
    /// # Errors
    /// As `read`, or a count over what can follow when each item has at least `item_bytes_min` (≥ 1) bytes.
    pub fn list<T>(
        &mut self,
        field: &'static str,
        item_bytes_min: usize,
        mut read: impl FnMut(&mut Self) -> Result<T, RecordError>,
    ) -> Result<Vec<T>, RecordError> {
        let count = self.u32(field)?;
        if u64::from(count) > (self.remaining() / item_bytes_min) as u64 {
            return Err(RecordError::Value { field, value: count.into() });
        }
        (0..count).map(|_| read(self)).collect()
    }

    /// As [`Self::list`], for items in ascending order, so that a set has only one encoding. `before` tells whether an
    /// item belongs before another one; it must be false for equal items.
    ///
    /// # Errors
    /// As [`Self::list`], or [`RecordError::Order`].
    pub fn set<T>(
        &mut self,
        field: &'static str,
        item_bytes_min: usize,
        read: impl FnMut(&mut Self) -> Result<T, RecordError>,
        before: impl Fn(&T, &T) -> bool,
    ) -> Result<Vec<T>, RecordError> {
        let items = self.list(field, item_bytes_min, read)?;
        if items.is_sorted_by(before) { Ok(items) } else { Err(RecordError::Order { field }) }
    }

    /// A u16 length and that many bytes of UTF-8.
    ///
    /// # Errors
    /// [`RecordError::Short`] or [`RecordError::Text`].
    pub fn text(&mut self, field: &'static str) -> Result<String, RecordError> {
        let length = self.u16(field)?;
        let bytes = self.bytes(field, length.into())?;
        String::from_utf8(bytes.to_vec()).map_err(|_| RecordError::Text { field })
    }

    /// Extensions: u32 total length, then {u16 tag, u16 flags, u32 length, bytes}. None is known to this version, so a
    /// critical one (bit 0 of flags) is refused. The bytes of the others are given unchanged, for callers that must
    /// keep them.
    ///
    /// # Errors
    /// [`RecordError::Newer`] for a critical one, [`RecordError::Short`].
    pub fn extensions(&mut self) -> Result<&'a [u8], RecordError> {
        let length = self.u32("extensions")?;
        let length = usize::try_from(length).map_err(|_| RecordError::Short { field: "extensions" })?;
        let all = self.bytes("extensions", length)?;
        let mut inner = Self::new(all);
        while inner.remaining() > 0 {
            let (tag, flags, length) = (inner.u16("tag")?, inner.u16("tag flags")?, inner.u32("tag length")?);
            if flags & 1 != 0 {
                return Err(RecordError::Newer { field: "extension", value: tag.into() });
            }
            inner.bytes("tag", usize::try_from(length).map_err(|_| RecordError::Short { field: "tag" })?)?;
        }
        Ok(all)
    }

    /// Ends the record.
    ///
    /// # Errors
    /// [`RecordError::Trailing`].
    pub fn end(self) -> Result<(), RecordError> {
        if self.rest.is_empty() { Ok(()) } else { Err(RecordError::Trailing { bytes: self.rest.len() as u64 }) }
    }
}

/// Appends fields to a record.
#[derive(Default)]
pub struct RecordWriter {
    bytes: Vec<u8>,
}

impl RecordWriter {
    /// An empty record.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends these bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Appends one byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Appends two bytes, little-endian.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Appends four bytes, little-endian.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Appends eight bytes, little-endian.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Appends eight bytes, little-endian, in two's complement.
    pub fn i64(&mut self, value: i64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// A presence byte and the value.
    pub fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) -> &mut Self {
        self.u8(value.is_some().into());
        if let Some(value) = value {
            write(self, value);
        }
        self
    }

    /// A u32 count and the items.
    ///
    /// # Panics
    /// With 2^32 items.
    pub fn list<T>(&mut self, items: &[T], mut write: impl FnMut(&mut Self, &T)) -> &mut Self {
        self.u32(u32::try_from(items.len()).expect("fewer than 2^32 items"));
        items.iter().for_each(|item| write(self, item));
        self
    }

    /// A u16 length and UTF-8.
    ///
    /// # Panics
    /// When it is longer than [`TEXT_BYTES_MAX`]: [`check_text`] comes first.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.u16(u16::try_from(text.len()).expect("checked where it entered")).bytes(text.as_bytes())
    }

    /// Extensions as they were read.
    ///
    /// # Panics
    /// With 2^32 bytes.
    pub fn extensions(&mut self, raw: &[u8]) -> &mut Self {
        self.u32(u32::try_from(raw.len()).expect("bounded where it was read")).bytes(raw)
    }

    /// Appends extensions that are empty.
    pub fn no_extensions(&mut self) -> &mut Self {
        self.u32(0)
    }

    /// Number of bytes that were appended so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True before the first field.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The record so far.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// The finished record.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn texts_are_whole_or_refused() {
        let longest = "ü".repeat(TEXT_BYTES_MAX / 2) + "x";
        check_text("it", &longest).unwrap();
        let mut to = RecordWriter::new();
        to.text(&longest);
        assert_eq!(RecordReader::new(to.as_slice()).text("it"), Ok(longest.clone()));
        let refused = check_text("it", &(longest + "x")).unwrap_err();
        assert!(refused.kind() == ErrorKind::Usage && refused.message().starts_with("it has 65536 bytes"), "{refused}");
    }

    #[test]
    #[should_panic(expected = "checked where it entered")]
    fn nothing_is_cut() {
        RecordWriter::new().text(&"x".repeat(TEXT_BYTES_MAX + 1));
    }

    #[test]
    fn sets_ascend() {
        for (items, good) in [(&[][..], true), (&[1], true), (&[1, 2, 9], true), (&[1, 1], false), (&[2, 1], false)] {
            let mut to = RecordWriter::new();
            to.list(items, |to, item| {
                to.u8(*item);
            });
            let read = RecordReader::new(to.as_slice()).set("items", 1, |from| from.u8("item"), |a, b| a < b);
            let want = if good { Ok(items.to_vec()) } else { Err(RecordError::Order { field: "items" }) };
            assert_eq!(read, want);
        }
    }
}
