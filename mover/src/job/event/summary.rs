//! What a job did, as its last event tells it.

use super::milliseconds;
use crate::{
    Attachment, BackupReport, CopyTally, DiskRecord, DiskReport, Manifest, RepairReport, RestoreReport, SweepReport,
    VerifyError, VerifyReport,
};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// The summary of a job of any kind.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum JobSummary {
    /// Of a backup.
    Backup(BackupSummary),
    /// Of copies.
    Copy(CopySummary),
    /// Of the restore of a disk.
    Restore(RestoreSummary),
    /// Of the restore of a whole machine.
    Machine(MachineSummary),
    /// Of the restore of an attachment.
    Attachment(AttachmentSummary),
    /// Of a verification, and of the repair after it.
    Verify(VerifySummary),
    /// Of a sweep.
    Sweep(SweepSummary),
}

/// What a backup did. Bytes and counts are those of [`BackupReport`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the fields are those of the report")]
pub struct BackupSummary {
    pub point: String,
    pub machine: String,
    pub consistency: &'static str,
    pub disks: Vec<DiskSummary>,
    pub bytes_new: u64,
    pub bytes_sent: u64,
    pub bytes_stored: u64,
    pub chunks_new: u64,
    pub freeze_ms: u64,
    pub pause_ms: u64,
    pub scratch_bytes_max: u64,
    pub duration_ms: u64,
    pub parent: Option<String>,
}

/// What a backup did with one disk. Bytes are those of [`crate::TrackingRecord`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the fields are those of the records")]
pub struct DiskSummary {
    pub name: String,
    pub size: u64,
    pub change_tracking: &'static str,
    pub reason: String,
    pub bytes_read: u64,
    pub bytes_changed: u64,
    pub bytes_audited: u64,
    /// Offset at which the next audit goes on; null without audit.
    pub audit_position: Option<u64>,
    pub audit_turn_completed: bool,
    pub audit_cut_short: bool,
}

/// What copies did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the fields are those of the tally")]
pub struct CopySummary {
    pub points: u64,
    pub chunks_moved: u64,
    pub bytes_moved: u64,
    pub points_there_already: u64,
    pub points_failed: u64,
    pub duration_ms: u64,
}

/// What the restore of a disk did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the fields are those of the report")]
pub struct RestoreSummary {
    pub point: String,
    pub machine: String,
    pub disk: String,
    pub target: String,
    pub bytes_restored: u64,
    pub bytes_written: u64,
    /// Bytes of blobs that came from each copy, by address.
    pub bytes_from: BTreeMap<String, u64>,
    pub duration_ms: u64,
}

/// What the restore of a whole machine did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the fields are those of the restores")]
pub struct MachineSummary {
    pub point: String,
    pub machine: String,
    pub folder: String,
    pub disks: Vec<RestoreSummary>,
    pub attachments: Vec<AttachmentSummary>,
    /// The script that starts it; null when the point does not tell enough.
    pub start: Option<String>,
    pub bytes_restored: u64,
    pub bytes_written: u64,
    /// Bytes of blobs that came from each copy, by address.
    pub bytes_from: BTreeMap<String, u64>,
    pub duration_ms: u64,
}

/// What the restore of an attachment did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the fields are those of a restore")]
pub struct AttachmentSummary {
    pub point: String,
    pub machine: String,
    /// Its kind, a slash, its name.
    pub attachment: String,
    pub target: String,
    pub bytes_restored: u64,
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the fields are those of the report")]
pub struct VerifySummary {
    pub points: u64,
    pub chunks: u64,
    pub bytes_read: u64,
    pub packs_skipped: u64,
    /// What is wrong, after the repair where there was one.
    pub errors: Vec<FindingSummary>,
    /// Chunks that were brought from another copy.
    pub repaired: u64,
    pub duration_ms: u64,
}

/// One thing that is wrong. Fields are those of [`VerifyError`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the fields are those of the report")]
pub struct FindingSummary {
    pub point: Option<String>,
    pub disk: Option<String>,
    pub offset: Option<u64>,
    pub chunk: Option<String>,
    pub pack: Option<String>,
    pub what: String,
}

/// What a sweep did, or would do. Bytes and counts are those of [`SweepReport`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the fields are those of the report")]
pub struct SweepSummary {
    pub dry_run: bool,
    pub points_final: u64,
    pub bytes_live: u64,
    pub bytes_dead: u64,
    pub bytes_reclaimed: u64,
    pub bytes_repacked: u64,
    pub bytes_waiting: u64,
    pub sessions_waited_for: u64,
    pub packs_deleted: u64,
    pub counting_ms: u64,
    pub first_check_ms: u64,
    pub second_check_ms: u64,
    pub duration_ms: u64,
}

impl BackupSummary {
    /// The summary of a backup that took so long.
    pub fn of(report: &BackupReport, duration: Duration) -> Self {
        Self {
            point: report.point.id.to_string(),
            machine: report.point.machine_name.to_string(),
            consistency: report.consistency.as_str(),
            disks: report.disks.iter().map(DiskSummary::from).collect(),
            bytes_new: report.bytes_new,
            bytes_sent: report.bytes_sent,
            bytes_stored: report.bytes_stored,
            chunks_new: report.chunks_new,
            freeze_ms: report.freeze_ms,
            pause_ms: report.pause_ms,
            scratch_bytes_max: report.scratch_bytes_max,
            duration_ms: milliseconds(duration),
            parent: report.parent.map(|parent| parent.to_string()),
        }
    }
}

impl From<&DiskReport> for DiskSummary {
    fn from(disk: &DiskReport) -> Self {
        Self {
            name: disk.name.to_string(),
            size: disk.size,
            change_tracking: disk.tracking.mode.as_str(),
            reason: disk.tracking.reason.clone(),
            bytes_read: disk.tracking.bytes_read,
            bytes_changed: disk.tracking.bytes_changed,
            bytes_audited: disk.tracking.bytes_audited,
            audit_position: disk.audit.map(|audit| audit.position),
            audit_turn_completed: disk.audit.is_some_and(|audit| audit.turn_completed),
            audit_cut_short: disk.audit.is_some_and(|audit| audit.cut_short),
        }
    }
}

impl CopySummary {
    /// The summary of copies that took so long altogether.
    pub fn of(tally: &CopyTally, duration: Duration) -> Self {
        Self {
            points: tally.copied.points,
            chunks_moved: tally.copied.chunks_moved,
            bytes_moved: tally.copied.bytes_moved,
            points_there_already: tally.there,
            points_failed: tally.failed,
            duration_ms: milliseconds(duration),
        }
    }
}

impl RestoreSummary {
    /// The summary of a restore of `disk` to `target` that took so long.
    pub fn of(
        (manifest, disk): (&Manifest, &DiskRecord),
        target: String,
        report: &RestoreReport,
        bytes_from: BTreeMap<String, u64>,
        duration: Duration,
    ) -> Self {
        Self {
            point: manifest.point.to_string(),
            machine: manifest.machine_name.to_string(),
            disk: disk.name.to_string(),
            target,
            bytes_restored: report.bytes_restored,
            bytes_written: report.bytes_written,
            bytes_from,
            duration_ms: milliseconds(duration),
        }
    }
}

impl MachineSummary {
    /// The summary of a restore of the point to `folder` that has not done anything yet.
    pub fn of(manifest: &Manifest, folder: String) -> Self {
        Self {
            point: manifest.point.to_string(),
            machine: manifest.machine_name.to_string(),
            folder,
            disks: Vec::new(),
            attachments: Vec::new(),
            start: None,
            bytes_restored: 0,
            bytes_written: 0,
            bytes_from: BTreeMap::new(),
            duration_ms: 0,
        }
    }

    /// Adds a disk.
    pub fn add_disk(&mut self, disk: RestoreSummary) {
        self.bytes_restored += disk.bytes_restored;
        self.bytes_written += disk.bytes_written;
        self.disks.push(disk);
    }
}

impl AttachmentSummary {
    /// The summary of the restore of an attachment to `target`.
    pub fn of(manifest: &Manifest, attachment: &Attachment, target: String) -> Self {
        Self {
            point: manifest.point.to_string(),
            machine: manifest.machine_name.to_string(),
            attachment: format!("{}/{}", attachment.kind, attachment.name),
            target,
            bytes_restored: attachment.bytes,
        }
    }
}

impl VerifySummary {
    /// The summary of a verification, and of the repair after it, that together took so long.
    pub fn of(report: &VerifyReport, repaired: &RepairReport, duration: Duration) -> Self {
        Self {
            points: report.points,
            chunks: report.chunks,
            bytes_read: report.bytes_read,
            packs_skipped: report.packs_skipped,
            errors: report.errors.iter().map(FindingSummary::from).collect(),
            repaired: repaired.chunks,
            duration_ms: milliseconds(duration),
        }
    }
}

impl From<&VerifyError> for FindingSummary {
    fn from(error: &VerifyError) -> Self {
        Self {
            point: error.point.map(|point| point.to_string()),
            disk: error.disk.as_ref().map(ToString::to_string),
            offset: error.offset,
            chunk: error.chunk.map(|chunk| chunk.to_string()),
            pack: error.pack.clone(),
            what: error.what.clone(),
        }
    }
}

impl SweepSummary {
    /// The summary of a sweep that took so long.
    pub fn of(dry_run: bool, report: &SweepReport, duration: Duration) -> Self {
        Self {
            dry_run,
            points_final: report.points_final,
            bytes_live: report.bytes_live,
            bytes_dead: report.bytes_dead,
            bytes_reclaimed: report.bytes_reclaimed,
            bytes_repacked: report.bytes_repacked,
            bytes_waiting: report.bytes_waiting,
            sessions_waited_for: report.sessions_waited_for,
            packs_deleted: report.packs_deleted,
            counting_ms: report.milliseconds.counting,
            first_check_ms: report.milliseconds.first_check,
            second_check_ms: report.milliseconds.second_check,
            duration_ms: milliseconds(duration),
        }
    }
}
