//! Where in an image file the clusters of a disk are, as `qemu-img map` tells: what lies there as it is can be read
//! without a process in between.

use super::graph::Graph;
use super::tool::{Fate, ToolError, run};
use chunker::Extent;
use serde::Deserialize;
use std::ffi::OsStr;
use std::time::Duration;

/// Runs of the disk that lie in the image's own file as they are: not compressed, not encrypted, not in a backing file,
/// not zero by allocation.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ClusterMap {
    /// Ascending, disjoint.
    runs: Vec<Run>,
}

#[derive(Debug, PartialEq, Eq)]
struct Run {
    disk: Extent,
    file_offset: u64,
}

#[derive(Deserialize)]
struct Entry {
    start: u64,
    length: u64,
    depth: u64,
    zero: bool,
    data: bool,
    #[serde(default)]
    compressed: bool,
    /// Only where the bytes lie there as they are.
    offset: Option<u64>,
}

impl ClusterMap {
    /// Where in the file the bytes of `extent` lie, in order; none when some lie elsewhere.
    pub fn in_file(&self, extent: Extent) -> Option<Vec<Extent>> {
        let mut at = extent.offset;
        let mut found = Vec::new();
        let first = self.runs.partition_point(|run| run.disk.end() <= at);
        for run in &self.runs[first..] {
            if at >= extent.end() || run.disk.offset > at {
                break;
            }
            let end = run.disk.end().min(extent.end());
            found.push(Extent::new(run.file_offset + (at - run.disk.offset), end - at));
            at = end;
        }
        (at >= extent.end()).then_some(found)
    }

    fn parse(answer: &[u8]) -> Result<Self, ToolError> {
        let wrong = |what: String| ToolError::Answer { program: QEMU_IMG, what };
        let entries: Vec<Entry> = serde_json::from_slice(answer).map_err(|error| wrong(error.to_string()))?;
        let mut map = Self::default();
        let mut end = 0;
        for entry in entries {
            let next = entry.start.checked_add(entry.length).filter(|_| entry.start >= end);
            end = next.ok_or_else(|| wrong(format!("an extent at {} out of order", entry.start)))?;
            if !entry.data || entry.zero || entry.compressed || entry.depth > 0 {
                continue;
            }
            let Some(file_offset) = entry.offset else { continue };
            if file_offset.checked_add(entry.length).is_none() {
                return Err(wrong(format!("the extent at {} lies nowhere", entry.start)));
            }
            map.runs.push(Run { disk: Extent::new(entry.start, entry.length), file_offset });
        }
        Ok(map)
    }
}

/// The map of a qcow2 image, which has no data file apart. It is true as long as nobody writes to the image.
///
/// # Errors
/// Those of `qemu-img map`; also when the map is very long.
pub async fn cluster_map(image: &Graph) -> Result<ClusterMap, ToolError> {
    let arguments = ["map", "--output=json"].map(OsStr::new);
    let arguments = arguments.into_iter().chain([image.as_ref()]);
    let answer = run(QEMU_IMG, arguments, Fate::Shared(MAP_TIMEOUT)).await?;
    ClusterMap::parse(&answer)
}

const QEMU_IMG: &str = "qemu-img";
/// For `qemu-img map`, which reads all tables of an image. Where they are too many, it is done without.
const MAP_TIMEOUT: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_in_the_file_as_it_is() {
        let map = ClusterMap::parse(
            br#"[{ "start": 0, "length": 10, "depth": 0, "present": true, "zero": false, "data": true, "offset": 100},
{ "start": 10, "length": 10, "depth": 0, "present": true, "zero": false, "data": true, "compressed": false, "offset": 50},
{ "start": 20, "length": 10, "depth": 0, "present": true, "zero": false, "data": true, "compressed": true},
{ "start": 30, "length": 10, "depth": 1, "present": true, "zero": false, "data": true, "offset": 7},
{ "start": 40, "length": 10, "depth": 0, "present": true, "zero": true, "data": false, "offset": 9},
{ "start": 50, "length": 10, "depth": 0, "present": true, "zero": false, "data": true},
{ "start": 60, "length": 10, "depth": 0, "present": true, "zero": false, "data": true, "offset": 0}]"#,
        )
        .unwrap();
        let in_file = |from: u64, to: u64| {
            let found = map.in_file(Extent::from(from..to))?;
            Some(found.iter().map(|it| (it.offset, it.end())).collect::<Vec<_>>())
        };
        assert_eq!(in_file(2, 5), Some(vec![(102, 105)]));
        assert_eq!(in_file(2, 20), Some(vec![(102, 110), (50, 60)]));
        assert_eq!(in_file(60, 70), Some(vec![(0, 10)]));
        for (from, to) in [(2, 21), (20, 22), (30, 31), (40, 41), (50, 51), (59, 61), (60, 71), (70, 71), (5, 70)] {
            assert_eq!(in_file(from, to), None, "{from}..{to}");
        }
    }

    #[test]
    fn nonsense_is_an_error() {
        let entry = |start: u64, length: u64, offset: u64| {
            format!(r#"{{"start":{start},"length":{length},"depth":0,"zero":false,"data":true,"offset":{offset}}}"#)
        };
        let (a, b) = (entry(0, 10, 0), entry(9, 10, 0));
        let far = [entry(u64::MAX, 2, 0), entry(0, 2, u64::MAX)];
        for answer in ["".into(), "{}".into(), "[{}]".into(), format!("[{a},{b}]")]
            .into_iter()
            .chain(far.map(|it| format!("[{it}]")))
        {
            assert!(ClusterMap::parse(answer.as_bytes()).is_err(), "{answer}");
        }
    }
}
