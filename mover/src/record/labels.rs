//! Labels with a meaning: tags, and a time that an administrator has corrected. The log keeps them outside the manifest
//! of a point, so that they can change while the manifest stays the same.

use crate::{Error, Moment, RecoveryPoint, Result, Timestamp};
use jiff::tz::TimeZone;
use std::collections::BTreeMap;

/// The key of a tag; the value is [`TAGGED`] or [`UNTAGGED`].
pub fn tag_key(tag: &str) -> String {
    format!("{TAG}{tag}")
}

/// The labels that make points have `tags`.
pub fn of_tags(tags: &[String]) -> BTreeMap<String, String> {
    tags.iter().map(|tag| (tag_key(tag), TAGGED.to_owned())).collect()
}

/// The value of [`TIME_KEY`] that sets the time to `time`: RFC 3339, UTC, with nine digits.
///
/// # Panics
/// Never: 64 bits of nanoseconds are a time.
pub fn time_value(time: Timestamp) -> String {
    let time = jiff::Timestamp::from_nanosecond(time.0.into()).expect("64 bits of nanoseconds are a time");
    format!("{time:.9}")
}

/// Refuses labels that a point cannot have, once `new` are set: keys and values are text for people, not a store of data.
///
/// # Errors
/// `Usage`.
pub fn check(labels: &BTreeMap<String, String>) -> Result<()> {
    let bytes: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
    if labels.len() > LABELS_MAX || bytes > LABELS_BYTES_MAX {
        let what =
            format!("a point can have at most {LABELS_MAX} tags and labels, and {LABELS_BYTES_MAX} bytes of them");
        return Err(Error::usage(what).hint("remove some first: `windlass annotate POINT --remove-tag TAG`"));
    }
    if let Some(key) = labels.keys().find(|key| key.as_str() == TAG || key.is_empty()) {
        return Err(Error::usage(format!("{key:?} is not a label")).hint("a tag needs at least one letter"));
    }
    Ok(())
}

/// `labels` with `new` set in them; a label with an empty value is taken away.
///
/// # Errors
/// As [`check`].
pub fn with(labels: &BTreeMap<String, String>, new: &[(String, String)]) -> Result<BTreeMap<String, String>> {
    let mut made = labels.clone();
    for (key, value) in new {
        match value.is_empty() {
            true => made.remove(key),
            false => made.insert(key.clone(), value.clone()),
        };
    }
    check(&made)?;
    Ok(made)
}

impl RecoveryPoint {
    /// Its tags, in order.
    pub fn tags(&self) -> impl Iterator<Item = &str> {
        let tags = self.labels.iter().filter(|(_, value)| *value == TAGGED);
        tags.filter_map(|(key, _)| key.strip_prefix(TAG))
    }

    /// The instant that its disks show: what the source's clock said, unless an administrator has put it right.
    pub fn time(&self) -> Timestamp {
        self.set_time().unwrap_or(self.snapshot_time)
    }

    /// When it was committed here, unless an administrator has put its time right.
    pub fn stamped_time(&self) -> Timestamp {
        self.set_time().unwrap_or(self.commit_time)
    }

    /// The time that an administrator has set.
    pub fn set_time(&self) -> Option<Timestamp> {
        let typed = Moment::parse(self.labels.get(TIME_KEY)?, &TimeZone::UTC)?;
        Some(typed.first)
    }
}

/// Key of the label with the time that an administrator has set.
pub const TIME_KEY: &str = "time";
/// Value of a tag's label.
pub const TAGGED: &str = "1";
/// Value of a tag's label when the tag was taken away: the manifest may still name it.
pub const UNTAGGED: &str = "0";
/// Tags and labels of one point.
pub const LABELS_MAX: usize = 64;
/// Bytes of all keys and values of one point.
pub const LABELS_BYTES_MAX: usize = 16 << 10;
const TAG: &str = "tag/";
