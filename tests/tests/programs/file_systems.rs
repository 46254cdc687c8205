//! Repositories where the file system or the limits of the process are not what one wishes: real ones, through the program.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Output};
use windlass_tests::fake::noise;
use windlass_tests::place::Place;
use windlass_tests::program::{LoopDevice, SmallFileSystem, beside};

/// Points of two machines, the first of which has two.
fn filled(place: &Place, at: &str) {
    place.done(&["init", "-r", at]);
    for (machine, seed) in [("web", 1), ("old", 2), ("web", 3)] {
        fs::write(place.path("disk.raw"), noise(seed, 4 << 20)).unwrap();
        place.done(&["backup", "--machine", machine, "-r", at, "DISK"]);
    }
}

/// Forgetting and sweeping give room, and nothing else is lost.
fn gives_room(place: &Place, at: &str) {
    place.done(&["forget", "old@latest", "-r", at]);
    place.done(&["sweep", "-r", at]);
    place.done(&["verify", "--decode", "-r", at]);
    place.assert_restores(at);
}

/// What tells an index from one that was made anew: RocksDB gives each database an identity of its own.
fn index(repository: &Path) -> (u64, Vec<u8>) {
    let folder = repository.join("index");
    (fs::metadata(&folder).unwrap().ino(), fs::read(folder.join("IDENTITY")).unwrap())
}

#[test]
fn a_file_system_without_links_modes_and_case_holds_a_repository() {
    let place = Place::new(4);
    let (image, folder) = (place.path("exfat"), place.path("usb"));
    File::create(&image).unwrap().set_len(128 << 20).unwrap();
    fs::create_dir(&folder).unwrap();
    let tool = |program: &str, arguments: &[&Path]| {
        Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
    };
    let device = LoopDevice::new(&image).filter(|_| tool("mkfs.exfat", &[&image]));
    let Some(device) = device.filter(|device| tool("mount.exfat-fuse", &[Path::new(&device.path), &folder])) else {
        println!("SKIPPED: exfat-fuse and exfatprogs are not here, or loop devices and FUSE are not");
        return;
    };
    // Unmounted like the others when the test ends.
    let small = SmallFileSystem { path: folder };
    assert!(fs::hard_link(place.path("exfat"), small.path.join("link")).is_err());
    let at = "HERE/usb/repo";
    filled(&place, at);
    gives_room(&place, at);
    place.done(&["init", "-r", "HERE/second", "--like", at]);
    place.done(&["copy", "--all", "-r", at, "--to", "HERE/second"]);
    place.assert_restores("HERE/second");
    drop((small, device));
}

/// Not a byte is left, and then not an inode: nothing that is committed is lost, nor the index, and what is there to give
/// room works.
#[test]
fn a_file_system_that_is_full_is_freed() {
    let place = Place::new(4);
    for kind in ["bytes", "inodes"] {
        let small = SmallFileSystem::at(place.path(kind), 96);
        let (at, repository) = (format!("HERE/{kind}/repo"), small.path.join("repo"));
        filled(&place, &at);
        let before = index(&repository);
        let mut fillers = Vec::new();
        match kind {
            "bytes" => {
                let mut filler = File::create(small.path.join("filler")).unwrap();
                for size in [1 << 20, 1 << 12] {
                    while filler.write_all(&vec![1; size]).is_ok() {}
                }
                fillers.push(small.path.join("filler"));
            }
            _ => {
                let limit = Command::new("mount").args(["-o", "remount,nr_inodes=400"]).arg(&small.path).status();
                assert!(limit.unwrap().success());
                let file = |number: u32| small.path.join(number.to_string());
                fillers.extend((0..).map(file).take_while(|path| File::create(path).is_ok()));
            }
        }
        for _ in 0..2 {
            fs::write(place.path("other.raw"), noise(9, 4 << 20)).unwrap();
            let refused = place.fails(&["backup", "--machine", "new", "-r", &at, "HERE/other.raw"]);
            assert!(refused.0 == 15 && refused.1.contains("sweep"), "{kind}: {refused:?}");
            place.done(&["points", "-r", &at]);
        }
        gives_room(&place, &at);
        assert_eq!(index(&repository), before, "{kind}: the index is the one that it was");
        fillers.iter().for_each(|path| fs::remove_file(path).unwrap());
        place.done(&["backup", "--machine", "new", "-r", &at, "HERE/other.raw"]);
    }
}

/// A process that may open few files, or write only short ones: an error that says so, no death, and all is as before.
#[test]
fn limits_of_the_process_are_told_and_cost_nothing() {
    let place = Place::new(4);
    filled(&place, "HERE/few");
    let before = index(&place.path("few"));
    let limited = |limit: &str, arguments: &[&str]| -> Output {
        let command = place.windlass(arguments);
        let mut prlimit = Command::new("prlimit");
        prlimit.arg(limit).arg(beside("windlass")).args(command.get_args());
        prlimit.output().unwrap()
    };
    fs::write(place.path("other.raw"), noise(9, 4 << 20)).unwrap();
    let backup = ["backup", "--machine", "new", "-r", "HERE/few", "HERE/other.raw"];
    for (limit, says) in [("--nofile=20", "Too many open files"), ("--fsize=1000000", "File too large")] {
        let refused = limited(limit, &backup);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code().is_some_and(|code| code > 0), "{limit}: {:?} {said}", refused.status);
        assert!(said.contains(says) && !said.contains("panicked"), "{limit}: {said}");
        assert_eq!(index(&place.path("few")), before, "{limit}");
        place.done(&["verify", "--decode", "-r", "HERE/few"]);
    }
    place.done(&backup);
    gives_room(&place, "HERE/few");
}
