//! Refuses options and disks that no manifest can hold, before anything is read.

use super::{Allow, BackupOptions};
use crate::{DISK_BYTES_MAX, DiskDescription, DiskRecord, Error, Manifest, NewAttachment, Result, check_text, labels};
use std::collections::BTreeSet;

/// Checks the options, and the disks and attachments that the source describes.
///
/// # Errors
/// `Usage`.
pub(super) fn check_request(options: &BackupOptions, disks: &[DiskDescription], found: &[NewAttachment]) -> Result<()> {
    options.tags.iter().try_for_each(|tag| check_text("a tag", tag))?;
    labels::check(&labels::of_tags(&options.tags)).map_err(|error| error.context("tags"))?;
    let mut files = BTreeSet::new();
    for it in options.attachments.iter().chain(found) {
        check_text("the name of an attachment", &it.name)?;
        if !files.insert((&it.kind, &it.name)) {
            return Err(Error::usage(format!("two attachments of kind {} have the name {:?}", it.kind, it.name))
                .hint("give one of them another kind or file name"));
        }
    }
    let mut names = BTreeSet::new();
    for disk in disks {
        if !names.insert(&disk.name) {
            return Err(Error::usage(format!("two disks have the name {}", disk.name)));
        }
        check_disk(disk).map_err(|error| error.on_disk(&disk.name))?;
    }
    Ok(())
}

fn check_disk(disk: &DiskDescription) -> Result<()> {
    if disk.size > DISK_BYTES_MAX {
        return Err(Error::usage(format!("it has {} bytes, more than the limit of {DISK_BYTES_MAX}", disk.size)));
    }
    check_text("its bus", &disk.bus)?;
    check_text("its serial number", &disk.serial)?;
    check_text("its format", &disk.format)?;
    check_text("the options of its format", &disk.format_options)?;
    disk.chain.iter().try_for_each(|layer| check_text("the path of an image", &layer.path))
}

/// Compares the disks with those of the parent: a wrong file, or a file that is read in the wrong format, is noticed
/// before its points push out good ones.
///
/// # Errors
/// `Usage` for a disk that shrank or changed its format, unless that is allowed.
pub(super) fn check_changes(parent: &Manifest, disks: &[DiskDescription], allow: Allow) -> Result<()> {
    for disk in disks {
        if let Some(before) = parent.disk(&disk.name) {
            check_change(before, disk, allow).map_err(|error| error.on_disk(&disk.name))?;
        }
    }
    Ok(())
}

fn check_change(before: &DiskRecord, now: &DiskDescription, allow: Allow) -> Result<()> {
    if is_reinterpreted(before, now) && !allow.format_change {
        return Err(Error::usage(format!("its format is {} and was {} in the parent", now.format, before.format))
            .hint(
                "if that is wrong, write ?format=raw or ?format=qcow2 behind its address; if the image was converted, use \
                 --allow-format-change once",
            ));
    }
    if now.size < before.size && !allow.shrink {
        return Err(Error::usage(format!("it has {} bytes and had {} in the parent", now.size, before.size))
            .hint("check that this is the right disk; if it was made smaller, use --allow-shrink once"));
    }
    Ok(())
}

/// Whether the bytes of the disk's file mean something else than in the parent. A disk that a server serves (NBD)
/// always has the bytes of the disk itself.
pub(super) fn is_reinterpreted(before: &DiskRecord, now: &DiskDescription) -> bool {
    before.format != now.format && before.format != NBD && now.format != NBD
}

/// The format that sources name for a disk that a server serves.
const NBD: &str = "nbd";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorKind, TEXT_BYTES_MAX, Timestamp, TrackingWish, Verification};
    use chunker::Compression;

    fn options() -> BackupOptions {
        BackupOptions {
            machine_name: "web".parse().unwrap(),
            machine: None,
            point: None,
            wish: TrackingWish::Auto,
            compression: Compression::default(),
            verification: Verification::Decode,
            tags: vec!["nightly".into()],
            attachments: vec![file("nvram", "vars"), file("nvram", "other"), file("tpm", "vars")],
            rate: None,
            audit: crate::Audit::default(),
            allow: Allow::default(),
            quiesce: crate::Quiesce::Auto,
        }
    }

    fn file(kind: &str, name: &str) -> NewAttachment {
        NewAttachment { kind: kind.parse().unwrap(), name: name.into(), bytes: bytes::Bytes::new() }
    }

    fn disk(name: &str) -> DiskDescription {
        let layer = crate::LayerIdentity {
            path: "/a".into(),
            device: 0,
            inode: 0,
            size: 0,
            mtime: Timestamp(0),
            ctime: Timestamp(0),
        };
        DiskDescription {
            name: name.parse().unwrap(),
            size: DISK_BYTES_MAX,
            logical_sector_bytes: 0,
            physical_sector_bytes: 0,
            discard_bytes: 0,
            boot_order: 0,
            bus: String::new(),
            serial: String::new(),
            format: "raw".into(),
            format_options: String::new(),
            chain: vec![layer],
            warning: None,
        }
    }

    #[test]
    fn what_no_manifest_can_hold_is_refused() {
        let disks = || vec![disk("sda"), disk("sdb")];
        check_request(&options(), &disks(), &[]).unwrap();
        let long = || "x".repeat(TEXT_BYTES_MAX + 1);
        let in_options: [fn(&mut BackupOptions, String); 3] = [
            |it, long| it.tags.push(long),
            |it, long| it.attachments[0].name = long,
            |it, _| it.attachments.push(file("tpm", "vars")),
        ];
        for change in in_options {
            let mut bad = options();
            change(&mut bad, long());
            assert_eq!(check_request(&bad, &disks(), &[]).unwrap_err().kind(), ErrorKind::Usage);
        }
        let twice = [file("tpm", "vars")];
        assert_eq!(check_request(&options(), &disks(), &twice).unwrap_err().kind(), ErrorKind::Usage);
        let in_disks: [fn(&mut Vec<DiskDescription>, String); 7] = [
            |it, long| it[1].bus = long,
            |it, long| it[1].serial = long,
            |it, long| it[1].format = long,
            |it, long| it[1].format_options = long,
            |it, long| it[1].chain[0].path = long,
            |it, _| it[1].size += 1,
            |it, _| it[1].name = it[0].name.clone(),
        ];
        for change in in_disks {
            let mut bad = disks();
            change(&mut bad, long());
            let refused = check_request(&options(), &bad, &[]).unwrap_err();
            assert!(refused.kind() == ErrorKind::Usage && refused.message().len() < 200, "{refused}");
        }
    }
}
