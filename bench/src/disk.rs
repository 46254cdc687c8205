//! The two days of one disk, and how they lie where the tools look for them.

use crate::blocks::warmed;
use crate::measure::{compare, ran};
use crate::tools::Places;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A state of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Day {
    First,
    Second,
}

/// The disk, for one run in one folder.
#[derive(Debug, Clone)]
pub struct Disk {
    pub places: Places,
    /// Folder with `day1.raw`, `day2.raw` and `cbt-64k.json`.
    data: PathBuf,
    /// Bytes of the blocks that hold data, on each day.
    data_bytes: [u64; 2],
}

impl Disk {
    /// Brings both days into the page cache.
    pub fn new(places: Places, data: &Path) -> Result<Self> {
        let data_bytes = [warmed(&data.join(Day::First.file()))?, warmed(&data.join(Day::Second.file()))?];
        Ok(Self { places, data: data.to_owned(), data_bytes })
    }

    /// The raw disk as it was made.
    pub fn path(&self, day: Day) -> PathBuf {
        self.data.join(day.file())
    }

    /// Bytes of its blocks of 64 KiB that are not all zero.
    pub const fn data_bytes(&self, day: Day) -> u64 {
        match day {
            Day::First => self.data_bytes[0],
            Day::Second => self.data_bytes[1],
        }
    }

    /// Puts a day's disk where every tool looks for it.
    pub fn present(&self, day: Day) -> Result<()> {
        let image = self.places.image();
        fs::create_dir_all(image.parent().context("a folder")?)?;
        let _ = fs::remove_file(&image);
        Ok(fs::hard_link(self.path(day), image)?)
    }

    /// A new modification time, so that no tool may skip the file.
    pub fn touch(&self) -> Result<()> {
        let mut command = Command::new("touch");
        command.arg(self.places.image());
        ran(command).map(|_| ())
    }

    /// Makes [`IMAGE`] of the first day.
    pub fn make_qcow2(&self) -> Result<()> {
        let raw = text(self.path(Day::First))?;
        ran(self.places.qemu_img(&["convert", "-f", "raw", "-O", "qcow2", &raw, IMAGE])).map(drop)
    }

    /// The machine at work: what changed from the first day to the second is written into the qcow2 image by QEMU.
    pub fn change_qcow2(&self) -> Result<()> {
        let extents: Vec<(u64, u64)> = serde_json::from_slice(&fs::read(self.data.join("cbt-64k.json"))?)?;
        let day2 = File::open(self.path(Day::Second))?;
        let pieces = self.places.path("pieces");
        fs::create_dir(&pieces)?;
        for (number, batch) in extents.chunks(256).enumerate() {
            let mut command = Command::new("qemu-io");
            command.args(["-f", "qcow2"]);
            for (at, (offset, length)) in batch.iter().enumerate() {
                let mut bytes = vec![0; usize::try_from(*length)?];
                day2.read_exact_at(&mut bytes, *offset)?;
                let piece = pieces.join(format!("{number}.{at}"));
                fs::write(&piece, bytes)?;
                command.arg("-c").arg(format!("write -q -s {} {offset} {length}", text(piece)?));
            }
            command.arg(self.places.path(IMAGE));
            ran(command)?;
        }
        Ok(fs::remove_dir_all(pieces)?)
    }

    /// Compares a restored image with a day's disk and removes it.
    pub fn compare(&self, restored: &str, day: Day) -> Result<()> {
        let restored = self.places.path(restored);
        compare(&restored, &self.path(day))?;
        Ok(fs::remove_file(restored)?)
    }
}

impl Day {
    const fn file(self) -> &'static str {
        match self {
            Self::First => "day1.raw",
            Self::Second => "day2.raw",
        }
    }
}

/// A path as an argument.
pub fn text(path: impl AsRef<Path>) -> Result<String> {
    path.as_ref().to_str().map(str::to_owned).context("a path that is not text")
}

/// The qcow2 image in the run's folder.
pub const IMAGE: &str = "disk.qcow2";
