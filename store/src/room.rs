//! Room on the storage. New chunks are refused before the storage is full, so that commits and sweeps still have room.
//! Commits are refused later. If other programs have filled the storage completely, a reserve is given up, so that
//! points can be forgotten and swept.

use crate::objects::{Objects, Space};
use mover::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// Room on the storage of an open repository.
pub struct Room {
    objects: Arc<dyn Objects>,
    /// This process is the one that may keep a reserve, and give it up.
    is_writer: bool,
    /// The room that is kept for a full storage was given up, and is to be kept again.
    given_up: AtomicBool,
}

impl Room {
    /// Watches the room on this storage.
    pub fn new(objects: Arc<dyn Objects>, is_writer: bool) -> Self {
        Self { objects, is_writer, given_up: AtomicBool::new(false) }
    }

    /// Refuses new chunks while too little is left; when there is more again they are taken. Blocking, a microsecond.
    ///
    /// # Errors
    /// `StoreFull`.
    pub fn check_room(&self) -> Result<()> {
        let space = self.space()?;
        self.is_left(space, reserved(space))?;
        self.keep_reserve_again();
        Ok(())
    }

    /// Refuses commits while less is left than forgetting and sweeping may need. This limit is lower than the one for
    /// chunks, so that chunks that were taken can still be committed.
    ///
    /// # Errors
    /// `StoreFull`.
    pub fn check_room_to_commit(&self) -> Result<()> {
        let space = self.space()?;
        self.is_left(space, reserved(space) / 2)
    }

    /// Refuses a record that can be done without while there is not even room for it.
    ///
    /// # Errors
    /// `StoreFull`.
    pub fn check_room_for_record(&self) -> Result<()> {
        let space = self.space()?;
        if is_full(space) { self.is_left(space, for_record(space)) } else { Ok(()) }
    }

    fn is_left(&self, space: Space, kept: u64) -> Result<()> {
        if space.total == 0 || (space.free >= kept && space.files >= FILES_KEPT) {
            return Ok(());
        }
        let place = self.objects.place();
        let left = match space.free >= kept {
            true => format!("{} files left, and {FILES_KEPT}", space.files),
            false => format!("{} MiB left, and {}", space.free >> 20, MiB(kept)),
        };
        Err(Error::store_full(format!("{place} has {left} are kept for commits and sweeps"))
            .hint("forget points and run `windlass sweep`, or free space; nothing that was committed is affected"))
    }

    /// Bytes that a sweep may pack again before it deletes; the rest of the room is for the log and the index.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn room_for_sweeps(&self) -> Result<u64> {
        let space = self.space()?;
        let kept = match self.given_up.load(SeqCst) {
            // Most of the reserve is for just that.
            true => reserve_bytes(space) / 8,
            false => reserved(space) / 4,
        };
        Ok(if space.total == 0 { u64::MAX } else { space.free.saturating_sub(kept) })
    }

    /// True when there is room for something large that can be done later.
    pub fn has_room_to_spare(&self) -> bool {
        self.space().is_ok_and(|space| space.total == 0 || space.free >= reserved(space) / 2)
    }

    /// Gives up the reserve for a record that must be written, if the storage is full. There may still be too little
    /// room; then the write fails. Blocking.
    ///
    /// # Errors
    /// `StoreFull` before anything was written, so that work goes on when there is room again.
    pub fn make_room_for_record(&self) -> Result<()> {
        let space = self.space()?;
        if !is_full(space) {
            return Ok(());
        }
        self.give_up_reserve();
        let space = self.space()?;
        // The longest record is 1 MiB, and most have a few kilobytes.
        if space.free >= RECORD_BYTES_LEAST && space.files > 0 {
            Ok(())
        } else {
            self.is_left(space, for_record(space))
        }
    }

    /// Gives the reserve up when less than it is left.
    pub fn use_reserve(&self) {
        let Ok(space) = self.space() else { return };
        if space.total > 0 && (space.free < reserve_bytes(space) || space.files < FILES_KEPT) {
            self.give_up_reserve();
        }
    }

    fn give_up_reserve(&self) {
        // Only the holder of the lock.
        if !self.is_writer {
            return;
        }
        self.given_up.store(true, SeqCst);
        if self.objects.give_up_reserve() {
            tracing::info!("the storage is full: the reserve is used now");
        }
    }

    /// Completes the reserve when there is enough room. After the reserve was given up, it does so with any room that
    /// there is.
    pub fn keep_reserve(&self) {
        let Ok(space) = self.space() else { return };
        let bytes = reserve_bytes(space);
        let given_up = self.given_up.swap(false, SeqCst);
        if !self.is_writer || !(given_up || space.free >= reserved(space) + bytes) {
            return;
        }
        let whole = self.objects.keep_reserve(bytes);
        if given_up && !whole {
            // Later, when something was deleted.
            self.given_up.store(true, SeqCst);
        }
    }

    /// Keeps a reserve again, if it was given up.
    pub fn keep_reserve_again(&self) {
        if self.given_up.load(SeqCst) {
            self.keep_reserve();
        }
    }

    /// What is left.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn space(&self) -> Result<Space> {
        self.objects.space()
    }
}

/// So many bytes in words.
struct MiB(u64);

impl std::fmt::Display for MiB {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} MiB", self.0 >> 20)
    }
}

/// What new chunks may not take: packs that are on their way, the log, the index's compaction, and what a sweep packs again
/// before it deletes.
pub fn reserved(space: Space) -> u64 {
    (space.total / 20).min(RESERVED_BYTES_MAX)
}

/// What the reserve has: enough to pack one pack again, and for the log, the index and the counts meanwhile.
pub fn reserve_bytes(space: Space) -> u64 {
    (space.total / 40).min(RESERVE_BYTES_MAX)
}

/// Free bytes below which a record may not fit any more.
fn for_record(space: Space) -> u64 {
    (space.total / 64).min(RECORD_ROOM_BYTES)
}

fn is_full(space: Space) -> bool {
    space.total > 0 && (space.free < for_record(space) || space.files < RECORD_FILES)
}

const RESERVED_BYTES_MAX: u64 = 512 << 20;
const RESERVE_BYTES_MAX: u64 = 128 << 20;
/// Number of files below which no new chunks are taken: one job makes as many.
const FILES_KEPT: u64 = 32;
/// Room for the longest record and for the growth of its folder, and as much again for another process that may write
/// at the same moment.
const RECORD_ROOM_BYTES: u64 = 4 << 20;
const RECORD_FILES: u64 = 4;
const RECORD_BYTES_LEAST: u64 = 64 << 10;
