//! Serialisation of disposable values: index entries and control messages, never anything durable.
//!
//! This is the only user of `bincode`, which its authors no longer maintain. So the version is exact, integers are
//! little-endian and of fixed width, each class of value has a size limit, and trailing bytes are refused. The caller
//! keeps type code and version outside the encoded value.

use crate::{Error, Result};
use serde::{Serialize, de::DeserializeOwned};

/// Encodes a value.
///
/// # Errors
/// When it takes more than `LIMIT` bytes.
pub fn encode<T: Serialize, const LIMIT: usize>(value: &T) -> Result<Vec<u8>> {
    let bytes = bincode::serde::encode_to_vec(value, bincode::config::legacy())
        .map_err(|error| Error::internal("cannot encode").because(error))?;
    if bytes.len() > LIMIT {
        return Err(Error::internal(format!("a value of {} bytes is over its limit of {LIMIT}", bytes.len())));
    }
    Ok(bytes)
}

/// Decodes a value that takes all of `bytes`.
///
/// # Errors
/// `Integrity` when it does not, or when there are more than `LIMIT` bytes.
pub fn decode<T: DeserializeOwned, const LIMIT: usize>(bytes: &[u8]) -> Result<T> {
    let bad = |what: String| Error::integrity(format!("cannot decode: {what}"));
    if bytes.len() > LIMIT {
        return Err(bad(format!("{} bytes are over the limit of {LIMIT}", bytes.len())));
    }
    let config = bincode::config::legacy().with_limit::<LIMIT>();
    let (value, taken) = bincode::serde::decode_from_slice(bytes, config).map_err(|error| bad(error.to_string()))?;
    if taken != bytes.len() {
        return Err(bad(format!("{} bytes are left over", bytes.len() - taken)));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_and_refusals() {
        let bytes = encode::<_, 64>(&(7u32, vec![1u8, 2])).unwrap();
        assert_eq!(bytes, [7, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(decode::<(u32, Vec<u8>), 64>(&bytes).unwrap(), (7, vec![1, 2]));
        assert!(decode::<(u32, Vec<u8>), 64>(&[&bytes[..], &[0]].concat()).is_err());
        assert!(decode::<(u32, Vec<u8>), 64>(&bytes[..13]).is_err());
        assert!(decode::<(u32, Vec<u8>), 8>(&bytes).is_err());
        assert!(encode::<_, 8>(&(7u32, vec![1u8, 2])).is_err());
        assert!(decode::<Vec<u8>, 64>(&[255; 16]).is_err());
    }
}
