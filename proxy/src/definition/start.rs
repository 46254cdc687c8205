//! The script that starts a machine from its restored disks.
//!
//! The command line of the machine is kept as it was, but for: its disks, which are now files beside the script; its
//! sockets, logs and the file of its process number, which must not be those of a machine that still runs; and, unless it
//! is to take the place of the old one, what a machine must not share with another.

use super::options::{Argument, Setting, read, write};
use super::{DefinedDisk, Definition};
use mover::{Error, Name, Result, World};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

/// Names of restored files, in the folder of the script.
#[derive(Debug, Clone, Default)]
pub struct RestoredFiles {
    /// Raw images of disks.
    pub disks: BTreeMap<Name, String>,
    /// The firmware's variables.
    pub nvram: Option<String>,
}

/// Who the restored machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// A new one, which can run beside the old: other network addresses, another UUID.
    New,
    /// The same, which must not.
    Same,
}

/// The script; `about` names the machine and the point.
///
/// # Errors
/// `Usage` when the program in the definition is no QEMU.
pub fn start_script(
    definition: &Definition,
    about: &str,
    files: &RestoredFiles,
    identity: Identity,
    world: &World,
) -> Result<String> {
    let program = program(definition)?;
    let mut line = Line { arguments: read(&definition.arguments[1..]), notes: definition.left_out.clone() };
    line.notes.iter_mut().for_each(|it| it.insert_str(0, "left out when it was backed up: "));
    for disk in &definition.disks {
        match files.disks.get(&disk.name) {
            Some(file) => line.put_disk(disk, file, definition),
            None => line.notes.push(format!("disk {} is not in the point", disk.name)),
        }
    }
    line.put_nvram(definition, files.nvram.as_deref());
    line.move_in();
    line.make_absolute(&definition.folder);
    if identity == Identity::New {
        line.be_another(world);
    }
    Ok(text(program, about, &definition.qemu, &line))
}

/// A command line that is being changed.
struct Line {
    arguments: Vec<Argument>,
    notes: Vec<String>,
}

impl Line {
    /// Puts the file in the place of what the disk was.
    fn put_disk(&mut self, disk: &DefinedDisk, file: &str, definition: &Definition) {
        let names = self.names_of(disk);
        let is_node = |it: &Argument| it.is("blockdev") && it.get("node-name").is_some_and(|node| names.contains(node));
        let is_drive = |it: &Argument| it.is("drive") && it.get("id").is_some_and(|id| names.contains(id));
        let is_file = |it: &Argument| match it.get("file").or_else(|| it.get("file.filename")).or_else(|| it.word()) {
            Some(path) => same_path(path, &disk.file, &definition.folder),
            None => false,
        };
        let has_file = |it: &Argument| (it.is("drive") || image_option(it).is_some()) && is_file(it);
        let found = self.arguments.iter().position(is_node);
        let found = found.or_else(|| self.arguments.iter().position(is_drive));
        let Some(at) = found.or_else(|| self.arguments.iter().position(has_file)) else {
            self.plug_in(disk, file);
            return;
        };
        let old = self.arguments[at].clone();
        self.arguments[at] = if old.is("blockdev") {
            let node = old.get("node-name").expect("found by it");
            let pairs = [
                ("driver", "raw"),
                ("node-name", node),
                ("discard", "unmap"),
                ("file.driver", "file"),
                ("file.filename", file),
            ];
            Argument::of("blockdev", &pairs)
        } else {
            let mut pairs = vec![("file", file), ("format", "raw")];
            match image_option(&old) {
                Some(index) => pairs.extend([("index", index), ("media", "disk")]),
                None => pairs.extend(DRIVE_KEYS.iter().filter_map(|key| Some((*key, old.get(key)?)))),
            }
            Argument::of("drive", &pairs)
        };
        if old.is("blockdev") {
            self.drop_below(&old);
        }
    }

    /// What the command line may call the disk: what its device names as its drive comes first, because a snapshot
    /// that was taken outside of the image since then changed the node.
    fn names_of(&self, disk: &DefinedDisk) -> BTreeSet<String> {
        let id = disk.device.strip_prefix("/machine/peripheral/").and_then(|rest| rest.split('/').next());
        let device = self.arguments.iter().find(|it| it.is("device") && id.is_some() && it.get("id") == id);
        let named = device.and_then(|it| it.get("drive"));
        let names = match named {
            Some(name) => vec![name],
            None => vec![disk.node.as_str(), disk.drive.as_str()],
        };
        names.into_iter().filter(|it| !it.is_empty()).map(str::to_owned).collect()
    }

    /// Drops the nodes that only `top` used.
    fn drop_below(&mut self, top: &Argument) {
        let mut below: Vec<String> = NODE_KEYS.iter().filter_map(|key| top.get(key)).map(str::to_owned).collect();
        while let Some(name) = below.pop() {
            let uses = |it: &Argument| {
                NODE_KEYS.iter().chain(&["drive"]).any(|key| it.get(key) == Some(name.as_str()))
                    || (it.is("machine") && it.value.as_ref().is_some_and(|value| names_node(value, &name)))
            };
            let defines = |it: &Argument| it.is("blockdev") && it.get("node-name") == Some(name.as_str());
            if self.arguments.iter().any(uses) {
                continue;
            }
            let Some(at) = self.arguments.iter().position(defines) else { continue };
            let gone = self.arguments.remove(at);
            below.extend(NODE_KEYS.iter().filter_map(|key| gone.get(key)).map(str::to_owned));
        }
    }

    /// A disk that the command line does not name was plugged in later.
    fn plug_in(&mut self, disk: &DefinedDisk, file: &str) {
        let id = format!("restored-{}", disk.name);
        self.arguments.push(Argument::of("drive", &[("file", file), ("format", "raw"), ("if", "none"), ("id", &id)]));
        let device = Setting::List(vec![(None, "virtio-blk-pci".to_owned()), (Some("drive".to_owned()), id)]);
        self.arguments.push(Argument { name: Some("device".to_owned()), value: Some(device) });
        let bus = if disk.bus.is_empty() { "another kind of device" } else { &disk.bus };
        self.notes.push(format!(
            "disk {} was plugged in after the start ({bus}); it is a virtio disk here: change that if the guest needs it",
            disk.name
        ));
    }

    fn put_nvram(&mut self, definition: &Definition, file: Option<&str>) {
        let Some(old) = &definition.nvram else { return };
        let Some(file) = file else {
            self.notes.push(format!("the firmware's variables, {old}, are not in the point: the old file is used"));
            return;
        };
        for argument in &mut self.arguments {
            argument.change(&mut |key, value| {
                let is = matches!(key, "file" | "filename" | "") && same_path(value, old, &definition.folder);
                is.then(|| file.to_owned())
            });
        }
    }

    /// Sockets, logs and the file of the process number come into the folder of the script, and what belonged to the start
    /// of the old process is dropped.
    fn move_in(&mut self) {
        self.arguments.retain(|it| !OF_THE_START.iter().any(|name| it.is(name)));
        let mut foreign = false;
        for argument in &mut self.arguments {
            let name = argument.name.clone().unwrap_or_default();
            let whole = matches!(name.as_str(), "pidfile" | "D");
            argument.change(&mut |key, value| {
                foreign |= matches!(key, "fd" | "fds" | "vhostfd" | "vhostfds") || value.starts_with("/dev/fdset/");
                if let Some(path) = value.strip_prefix("unix:") {
                    return Some(format!("unix:{}", moved(path)));
                }
                let is_path = match name.as_str() {
                    "chardev" => matches!(key, "path" | "logfile"),
                    "netdev" => key == "path",
                    "spice" => key == "addr" && value.starts_with('/'),
                    "object" => key == "mem-path" && !value.starts_with("/dev/"),
                    _ => false,
                };
                let is_device = value.starts_with("/dev/");
                ((whole && key.is_empty()) || (is_path && !is_device)).then(|| moved(value))
            });
        }
        if foreign {
            self.notes.push(
                "the old process was handed open files (fd=, /dev/fdset): replace them by what this host has"
                    .to_owned(),
            );
        }
    }

    /// Other files stay where they are, whatever folder the script is started in.
    fn make_absolute(&mut self, folder: &str) {
        for argument in &mut self.arguments {
            let option = argument.name.as_deref().unwrap_or_default();
            if FILE_OPTIONS.contains(&option)
                && let Some(word) = argument.word()
                && !word.starts_with('/')
            {
                argument.value = Some(Setting::plain(&Path::new(folder).join(word).to_string_lossy()));
            }
        }
    }

    /// What two machines must not share.
    fn be_another(&mut self, world: &World) {
        let uuid = uuid(world);
        for argument in &mut self.arguments {
            let name = argument.name.clone().unwrap_or_default();
            let is_generation = argument.value.as_ref().is_some_and(|value| names_node(value, "vmgenid"));
            argument.change(&mut |key, value| match (name.as_str(), key) {
                ("uuid", "") | ("smbios", "uuid") => Some(uuid.clone()),
                ("device" | "nic" | "net", "mac" | "macaddr") => Some(network_address(world)),
                ("device", "guid") if is_generation && value != "auto" => Some("auto".to_owned()),
                _ => None,
            });
        }
    }
}

/// Whether a value has the word, as a value or alone.
fn names_node(value: &Setting, word: &str) -> bool {
    match value {
        Setting::List(pairs) => pairs.iter().any(|(_, value)| value == word),
        Setting::Json(map) => map.values().any(|value| value == word),
    }
}

fn program(definition: &Definition) -> Result<&str> {
    let program = definition.arguments.first().map(|it| it.rsplit('/').next().unwrap_or(it)).unwrap_or_default();
    let plain = program.bytes().all(|it| it.is_ascii_alphanumeric() || matches!(it, b'-' | b'_' | b'.'));
    let is_qemu = program.starts_with("qemu-system-") || matches!(program, "qemu-kvm" | "kvm");
    if plain && is_qemu {
        return Ok(program);
    }
    Err(Error::usage("the description of the machine does not begin with a QEMU")
        .hint("restore the disks one by one with --disk, and the files with --attachment"))
}

/// The drive that an option such as `-hda` is, as an index.
fn image_option(argument: &Argument) -> Option<&'static str> {
    match argument.name.as_deref() {
        None | Some("hda") => Some("0"),
        Some("hdb") => Some("1"),
        Some("hdc") => Some("2"),
        Some("hdd") => Some("3"),
        _ => None,
    }
}

fn same_path(one: &str, other: &str, folder: &str) -> bool {
    Path::new(folder).join(one) == Path::new(folder).join(other)
}

/// The place of a file of the running process in the folder of the script.
fn moved(path: &str) -> String {
    let name = path.trim_end_matches('/').rsplit('/').next().filter(|it| !it.is_empty()).unwrap_or("file");
    format!("{RUN_FOLDER}/{name}")
}

/// A random UUID (RFC 9562, version 4).
fn uuid(world: &World) -> String {
    let mut bytes: [u8; 16] = world.random_bytes();
    bytes[6] = bytes[6] & 0x0F | 0x40;
    bytes[8] = bytes[8] & 0x3F | 0x80;
    let mut text = String::new();
    for (at, byte) in bytes.iter().enumerate() {
        let dash = if matches!(at, 4 | 6 | 8 | 10) { "-" } else { "" };
        let _ = write!(text, "{dash}{byte:02x}");
    }
    text
}

/// A random address of a network card, as QEMU begins them.
fn network_address(world: &World) -> String {
    let [a, b, c]: [u8; 3] = world.random_bytes();
    format!("52:54:00:{a:02x}:{b:02x}:{c:02x}")
}

fn text(program: &str, about: &str, qemu: &str, line: &Line) -> String {
    let comment = |words: &str| words.chars().map(|it| if it.is_control() { ' ' } else { it }).collect::<String>();
    let mut made = format!(
        "#!/bin/sh\n# Starts {}.\n# Made from the command line of the QEMU {} that ran the machine. Read it before you run \
         it.\n# More options can be given after its name. Another QEMU: QEMU=/path/to/it ./start\n",
        comment(about),
        comment(qemu)
    );
    for note in &line.notes {
        let _ = writeln!(made, "# Note: {}", comment(note));
    }
    let _ = write!(made, "set -e\ncd \"$(dirname \"$0\")\"\nmkdir -p {RUN_FOLDER}\nexec \"${{QEMU:-{program}}}\"");
    let mut begins = true;
    for word in write(&line.arguments) {
        let is_option = begins || word.starts_with('-');
        made.push_str(if is_option { " \\\n  " } else { " " });
        begins = false;
        made.push_str(&quoted(&word));
    }
    made.push_str(" \\\n  \"$@\"\n");
    made
}

/// A word as a shell takes it, whatever is in it.
fn quoted(word: &str) -> String {
    let plain =
        |it: char| it.is_ascii_alphanumeric() || matches!(it, '-' | '_' | '.' | '/' | ',' | '=' | ':' | '+' | '@');
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Options of a drive that a restored disk keeps.
const DRIVE_KEYS: [&str; 14] = [
    "if",
    "bus",
    "unit",
    "index",
    "id",
    "media",
    "cache",
    "aio",
    "discard",
    "detect-zeroes",
    "werror",
    "rerror",
    "serial",
    "throttling.iops-total",
];
/// Keys under which a node names another.
const NODE_KEYS: [&str; 5] = ["file", "backing", "data-file", "target", "image"];
/// Options that are about how the old process began.
const OF_THE_START: [&str; 4] = ["incoming", "S", "loadvm", "add-fd"];
/// Options whose value is the path of a file that stays.
const FILE_OPTIONS: [&str; 4] = ["kernel", "initrd", "dtb", "cdrom"];
/// Folder for sockets and logs, beside the script.
pub const RUN_FOLDER: &str = "run";

#[cfg(test)]
mod tests;
