//! Log and digests.

use crate::format::record::{LogRecord, RECORD_BYTES_MAX};
use crate::objects::ObjectName;
use crate::repository::Inner;
use crate::state::{DIGEST_BYTES_MAX, Digest, State};
use mover::{Error, LogHead, Result, VerifyError};

/// Every record chains, every digest is what the log gives.
pub fn check_history(inner: &Inner) -> Vec<VerifyError> {
    let damage = |what: String| VerifyError { what, ..VerifyError::default() };
    let at =
        |name: ObjectName, error: &Error| VerifyError { what: format!("{name}: {error}"), ..VerifyError::of(error) };
    let mut wrong = Vec::new();
    let config = inner.config.bytes.clone();
    let end = inner.state().end().sequence;
    let digests = match inner.objects.digests() {
        Ok(digests) => digests,
        Err(error) => return vec![VerifyError::of(&error)],
    };
    let read_digest = |sequence: u64| -> Result<Digest> {
        let bytes = inner.objects.read_hashed(ObjectName::Digest(sequence), DIGEST_BYTES_MAX)?;
        let bytes = bytes.ok_or_else(|| Error::integrity("a state digest is missing"))?;
        Ok(Digest::decode(&bytes)?)
    };
    let read_record = |sequence: u64| -> Result<Option<(LogRecord, LogHead)>> {
        let bytes = inner.objects.read(ObjectName::Record(sequence), RECORD_BYTES_MAX as u64)?;
        Ok(bytes.map(|bytes| LogRecord::decode(&bytes)).transpose()?)
    };
    let mut state = State::new(inner.config.config.id, &config);
    let first = match read_record(1) {
        Ok(first) => first,
        Err(error) => return vec![at(ObjectName::Record(1), &error)],
    };
    if first.is_none() && end > 0 {
        // A pruned log begins with a digest. What lies below was written by somebody who did not know, and counts for
        // nothing.
        match digests.first().map(|sequence| read_digest(*sequence)) {
            Some(Ok(digest)) if digest.config == config => state = digest.state,
            Some(Ok(_)) => return vec![damage("the oldest state digest belongs to another repository".into())],
            Some(Err(error)) => {
                let what = format!("the oldest state digest: {error}");
                return vec![VerifyError { what, ..VerifyError::of(&error) }];
            }
            None => return vec![damage(format!("{} is missing", ObjectName::Record(1)))],
        }
    }
    if let Some(beyond) = digests.iter().find(|sequence| **sequence > end) {
        wrong.push(damage(format!("{} belongs to a record that does not exist", ObjectName::Digest(*beyond))));
    }
    for sequence in state.end().sequence + 1..=end {
        let name = ObjectName::Record(sequence);
        let applied = read_record(sequence).and_then(|read| {
            let (record, end) = read.ok_or_else(|| Error::integrity("it is missing"))?;
            Ok(state.apply(&record, end.hash)?)
        });
        if let Err(error) = applied {
            wrong.push(at(name, &error));
            return wrong;
        }
        if digests.contains(&sequence) {
            match read_digest(sequence) {
                Ok(digest) if digest.config == config && digest.state == state => {}
                Ok(_) => wrong.push(damage(format!("{} is not what the log gives", ObjectName::Digest(sequence)))),
                Err(error) => wrong.push(at(ObjectName::Digest(sequence), &error)),
            }
        }
    }
    wrong
}
