//! The least time that a job can take on a machine, and what it waits for.

use crate::machine::Machine;
use serde_json::{Value, json};

/// What a job must do, however well it is written. Bytes are plain ones where blobs are made or read.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Bytes out of the page cache: of a disk, or of packs.
    pub read: u64,
    /// Bytes of blocks that are fingerprinted, and then turn out to be there.
    pub fingerprinted: u64,
    /// Bytes of new blocks: fingerprinted and compressed.
    pub compressed: u64,
    /// Bytes that are decoded and fingerprinted.
    pub decoded: u64,
    /// Bytes that are durable at its end.
    pub written: u64,
    /// Steps that each wait for the one before, in addition to the bytes.
    pub fixed: Fixed,
}

/// Steps that a job must do one after the other, even if it has next to no data.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Fixed {
    /// Starts of QEMU's tools.
    pub tools: u32,
    /// Bitmaps that `qemu-img bitmap` adds to an image or removes.
    pub bitmaps: u32,
    /// Syncs of small files and their names.
    pub syncs: u32,
}

/// The least time of a job.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limit {
    pub seconds: f64,
    /// What takes the most of it.
    pub bound_by: &'static str,
}

impl Work {
    /// The limit of this work on a machine. Processors and disk work at the same time, so the slower of them counts.
    /// The times of all work of the processors are added up, and so are the times of all steps that must wait for each
    /// other. The cost of a network between two processes is not included.
    pub fn limit(&self, machine: &Machine) -> Limit {
        let of = |bytes: u64, rate: f64| if bytes == 0 { 0.0 } else { bytes as f64 / rate };
        let processors = [
            ("read", of(self.read, machine.read)),
            ("fingerprint", of(self.fingerprinted, machine.fingerprint)),
            ("compress", of(self.compressed, machine.compress)),
            ("decode", of(self.decoded, machine.decode)),
        ];
        let in_all: f64 = processors.iter().map(|it| it.1).sum();
        let written = of(self.written, machine.write);
        let moved = if written > in_all { ("durable write", written) } else { (longest(&processors).0, in_all) };
        let parts = [
            moved,
            ("starts of QEMU's tools", f64::from(self.fixed.tools) * machine.tool_s),
            ("changes of bitmaps", f64::from(self.fixed.bitmaps) * machine.bitmap_s),
            ("small syncs", f64::from(self.fixed.syncs) * machine.sync_s),
            ("start of windlass", machine.start_s),
        ];
        Limit { seconds: parts.iter().map(|it| it.1).sum(), bound_by: longest(&parts).0 }
    }

    /// For comparisons of runs.
    pub fn json(&self) -> Value {
        json!({
            "read_bytes": self.read,
            "fingerprinted_bytes": self.fingerprinted,
            "compressed_bytes": self.compressed,
            "decoded_bytes": self.decoded,
            "written_bytes": self.written,
            "tools": self.fixed.tools,
            "bitmaps": self.fixed.bitmaps,
            "syncs": self.fixed.syncs,
        })
    }
}

fn longest(parts: &[(&'static str, f64)]) -> (&'static str, f64) {
    parts.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1)).expect("there are parts")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Machine = Machine {
        write: 100.0,
        read: 2000.0,
        fingerprint: 1000.0,
        compress: 400.0,
        decode: 500.0,
        tool_s: 0.5,
        bitmap_s: 0.75,
        sync_s: 0.25,
        start_s: 0.125,
        left: 1.0,
    };

    fn is(work: Work, seconds: f64, bound_by: &str) {
        let limit = work.limit(&MACHINE);
        assert!((limit.seconds - seconds).abs() < 1e-9, "{limit:?}");
        assert_eq!(limit.bound_by, bound_by);
    }

    #[test]
    fn what_the_processors_do_adds_up() {
        let work = Work { read: 2000, fingerprinted: 1000, compressed: 800, decoded: 500, ..Work::default() };
        is(work, 1.0 + 1.0 + 2.0 + 1.0 + 0.125, "compress");
        // Less than the processors need: the disk works meanwhile.
        is(Work { written: 400, ..work }, 5.125, "compress");
    }

    #[test]
    fn the_slower_of_processors_and_disk_counts() {
        is(Work { decoded: 500, written: 600, ..Work::default() }, 6.125, "durable write");
    }

    #[test]
    fn what_is_in_a_row_comes_on_top() {
        let fixed = Fixed { tools: 4, bitmaps: 2, syncs: 4 };
        is(Work { written: 50, fixed, ..Work::default() }, 0.5 + 2.0 + 1.5 + 1.0 + 0.125, "starts of QEMU's tools");
        let fixed = Fixed { bitmaps: 3, ..fixed };
        is(Work { fixed, ..Work::default() }, 2.0 + 2.25 + 1.0 + 0.125, "changes of bitmaps");
        is(Work { fixed: Fixed { syncs: 4, ..Fixed::default() }, ..Work::default() }, 1.125, "small syncs");
        is(Work::default(), 0.125, "start of windlass");
    }

    #[test]
    fn what_a_machine_cannot_do_does_not_matter_where_it_is_not_needed() {
        let limit = Work { read: 2000, ..Work::default() }.limit(&Machine { write: 0.0, ..MACHINE });
        assert_eq!(limit.bound_by, "read");
    }
}
