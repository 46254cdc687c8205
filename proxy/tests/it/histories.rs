//! Random histories of an image between increments: whatever QEMU's tools do to it, a backup is what the disk holds (T11).
//!
//! Each history is made from its number alone. `WINDLASS_HISTORIES` says how many of them each test goes through.

use crate::tools::*;
use mover::{ChangeTracking, TrackingWish};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut it = self.0;
        it = (it ^ (it >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        it = (it ^ (it >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        it ^ (it >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }
}

struct History {
    place: Place,
    image: PathBuf,
    dice: Dice,
    /// What was done, for whoever looks at a failure.
    told: Vec<String>,
}

impl History {
    fn new(number: u64) -> Self {
        let (place, mut dice) = (Place::new(), Dice(number));
        let image = place.path("disk.qcow2");
        for base in ["base.raw", "other.raw"] {
            let base = place.raw(base, SIZE);
            qemu_io(&base, "raw", &["write -P 101 0 2M"]);
        }
        let mid = place.path("mid.qcow2");
        run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base.raw", text(&mid)]);
        let size = SIZE.to_string();
        let backing = *dice.one(&[&[][..], &["-F", "raw", "-b", "base.raw"], &["-F", "qcow2", "-b", "mid.qcow2"]]);
        let layout = *dice.one(&["cluster_size=65536", "cluster_size=4096", "cluster_size=65536,extended_l2=on"]);
        let create = [&["create", "-q", "-f", "qcow2", "-o", layout], backing, &[text(&image), &size]].concat();
        run("qemu-img", &create);
        qemu_io(&image, "qcow2", &["write -P 1 0 1M"]);
        let told = vec![create.join(" ")];
        Self { place, image, dice, told }
    }

    /// A tool that may refuse: what it leaves is what counts.
    fn tool(&mut self, program: &str, arguments: &[&str]) {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.image.parent().unwrap());
        let done = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        self.told.push(format!("{program} {} -> {done}", arguments.join(" ")));
    }

    fn size(&self) -> u64 {
        let info = run("qemu-img", &["info", "--output=json", text(&self.image)]);
        serde_json::from_str::<serde_json::Value>(&info).unwrap()["virtual-size"].as_u64().unwrap()
    }

    fn replace_by(&mut self, other: &Path) {
        if other.exists() {
            std::fs::rename(other, &self.image).unwrap();
            self.told.push(format!("mv {} here", other.display()));
        }
    }

    /// One operation.
    fn step(&mut self) {
        let image = self.image.clone();
        let image = text(&image);
        match self.dice.below(20) {
            0..=5 => {
                let size = self.size();
                let length = (512 << self.dice.below(9)).min(size);
                let offset = self.dice.below((size - length) / 512 + 1) * 512;
                let what = *self.dice.one(&["write -P", "write -P", "write -z", "write -z -u", "discard"]);
                let value = if what.ends_with("-P") { self.dice.below(255).to_string() } else { String::new() };
                self.tool("qemu-io", &["-f", "qcow2", "-c", &format!("{what} {value} {offset} {length}"), image]);
            }
            6..=8 => self.resize(),
            9 => {
                let (action, name) = (*self.dice.one(&["-c", "-c", "-a", "-d"]), *self.dice.one(&["s", "t"]));
                self.tool("qemu-img", &["snapshot", action, name, image]);
            }
            10 => self.tool("qemu-img", &["commit", "-q", "-f", "qcow2", image]),
            11 => {
                let (mode, backing) = (
                    *self.dice.one(&[&["-u"][..], &[]]),
                    *self.dice.one(&[
                        &["-b", ""][..],
                        &["-F", "raw", "-b", "other.raw"],
                        &["-F", "raw", "-b", "base.raw"],
                    ]),
                );
                self.tool("qemu-img", &[&["rebase", "-f", "qcow2"], mode, backing, &[image]].concat());
            }
            12 | 13 => self.convert(),
            14 => {
                let option = *self.dice.one(&["lazy_refcounts=on", "lazy_refcounts=off", "compat=1.1", "compat=0.10"]);
                self.tool("qemu-img", &["amend", "-f", "qcow2", "-o", option, image]);
            }
            15 | 16 => self.bitmap(),
            17 => {
                let aside = self.place.path("aside.qcow2");
                if self.dice.below(2) == 0 || !aside.exists() {
                    std::fs::copy(&self.image, &aside).unwrap();
                    self.told.push("cp here aside".into());
                } else {
                    self.replace_by(&aside);
                }
            }
            18 => {
                let base = *self.dice.one(&["base.raw", "other.raw"]);
                let at = self.dice.below(SIZE / 65_536) * 65_536;
                self.tool("qemu-io", &["-f", "raw", "-c", &format!("write -P 77 {at} 4096"), base]);
            }
            _ => self.tool("qemu-img", &["check", "-q", "-r", "all", image]),
        }
    }

    fn resize(&mut self) {
        let image = self.image.clone();
        let sizes = [SIZE / 2, SIZE, SIZE - 512, SIZE + 65_536, SIZE + 131_584, 65_536];
        let to = self.dice.one(&sizes).to_string();
        let mode = *self.dice.one(&["off", "off", "metadata", "full"]);
        if to.parse::<u64>().unwrap() < self.size() {
            self.tool("qemu-img", &["resize", "-q", "--shrink", text(&image), &to]);
            // Mostly it is large again when the next backup comes.
            if self.dice.below(4) > 0 {
                let again = SIZE.to_string();
                self.tool("qemu-img", &["resize", "-q", &format!("--preallocation={mode}"), text(&image), &again]);
            }
        } else {
            self.tool("qemu-img", &["resize", "-q", &format!("--preallocation={mode}"), text(&image), &to]);
        }
    }

    fn convert(&mut self) {
        let (image, made) = (self.image.clone(), self.place.path("made.qcow2"));
        let of = *self.dice.one(&[&[][..], &["--bitmaps"], &["--bitmaps"], &["-l", "s", "--bitmaps"], &["-l", "s"]]);
        let arguments = [&["convert", "-f", "qcow2", "-O", "qcow2"], of, &[text(&image), text(&made)]].concat();
        self.tool("qemu-img", &arguments);
        self.replace_by(&made);
    }

    /// What somebody may do who takes our bitmaps for his own.
    fn bitmap(&mut self) {
        let image = self.image.clone();
        let all = bitmaps(&image);
        if all.is_empty() {
            return;
        }
        let one = self.dice.one(&all).clone();
        let named = if self.dice.below(3) == 0 { all.clone() } else { vec![one.clone()] };
        let pairs =
            [["--disable", "--enable"], ["--clear", ""], ["--remove", "--add"], ["--merge", ""], ["--remove", ""]];
        let [first, second] = *self.dice.one(&pairs);
        for action in [first, "write", second] {
            match action {
                "" => {}
                "write" => {
                    let at = self.dice.below(8) * 65_536;
                    self.tool("qemu-io", &["-f", "qcow2", "-c", &format!("write -P 88 {at} 4096"), text(&image)]);
                }
                "--merge" => self.tool("qemu-img", &["bitmap", "--merge", &all[0], text(&image), &one]),
                _ => named.iter().for_each(|name| self.tool("qemu-img", &["bitmap", action, text(&image), name])),
            }
        }
    }
}

async fn go_through(numbers: std::ops::Range<u64>) {
    let (mut by_bitmap, mut all) = (0, 0);
    for number in numbers {
        let mut history = History::new(number);
        let mut store = Store::default();
        for _ in 0..BACKUPS {
            let made = store.backup(text(&history.image), TrackingWish::Auto).await;
            let told = |history: &History| format!("history {number}:\n{}", history.told.join("\n"));
            let made = made.unwrap_or_else(|error| panic!("{error}\n{}", told(&history)));
            history.told.push(format!("backup: {:?}, {}", made.changed.mode, made.changed.reason));
            assert!(store.bytes == content(&history.image, "qcow2"), "{}", told(&history));
            by_bitmap += u64::from(made.changed.mode == ChangeTracking::Bitmap);
            all += 1;
            for _ in 0..history.dice.below(4) {
                history.step();
            }
        }
    }
    // A test of nothing but fingerprints would prove nothing.
    assert!(by_bitmap * 10 > all, "{by_bitmap} of {all} by bitmap");
}

/// How many histories a test goes through.
fn count() -> u64 {
    std::env::var("WINDLASS_HISTORIES").ok().and_then(|it| it.parse().ok()).unwrap_or(25)
}

macro_rules! parts {
    ($($name:ident $part:literal)*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            go_through($part * 1_000_000..$part * 1_000_000 + count()).await;
        }
    )*};
}

parts! {
    part_1 1 part_2 2 part_3 3 part_4 4 part_5 5 part_6 6 part_7 7 part_8 8
}

const SIZE: u64 = 2 << 20;
/// Of each history.
const BACKUPS: usize = 6;
