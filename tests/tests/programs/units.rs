//! The units for systemd, under what they say themselves: a root that is read-only but for the named paths, a `/tmp` of its
//! own, a runtime folder, a umask, no new privileges. Made with mounts, because where tests run there often is no systemd.

use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use windlass_tests::place::{Place, signal};
use windlass_tests::program::{Ended, beside};

/// What a unit says.
struct Unit {
    text: String,
}

impl Unit {
    fn read(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
        Self { text: fs::read_to_string(path).unwrap() }
    }

    fn says(&self, key: &str) -> Option<&str> {
        self.text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
    }

    /// Starts its program as it says, with `folders` in the places of its `ReadWritePaths`, and waits for this word.
    fn start(&self, place: &Place, folders: &[PathBuf], word: &str) -> Ended {
        for (key, value) in [("ProtectSystem", "strict"), ("PrivateTmp", "yes"), ("NoNewPrivileges", "yes")] {
            assert_eq!(self.says(key), Some(value), "{key} is not what the sandbox here is like");
        }
        let mut line = self.says("ExecStart").unwrap().split(' ');
        let program = Path::new(line.next().unwrap()).file_name().unwrap().to_str().unwrap();
        let root = place.path(&format!("{program}.root"));
        fs::create_dir(&root).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "bash", "-euc", SANDBOX, "sandbox"]);
        command.arg(&root).arg(beside(program));
        command.args([self.says("UMask").unwrap(), self.says("RuntimeDirectory").unwrap_or("")]);
        let paths: Vec<&str> = self.says("ReadWritePaths").unwrap().split(' ').collect();
        assert_eq!(paths.len(), folders.len());
        command.arg(paths.len().to_string());
        for (path, folder) in paths.iter().zip(folders) {
            command.arg(folder).arg(path);
        }
        let mut child = command.args(line).stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let mut first = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut first).unwrap();
        assert!(first.contains(word), "{first}");
        Ended(child)
    }
}

/// Folder for the root, program, umask, runtime folder, number of writable paths, pairs of them, arguments.
const SANDBOX: &str = r#"
root=$1 program=$2 mask=$3 runtime=$4 count=$5; shift 5
mount -t tmpfs tmpfs "$root"
mkdir -p "$root"/{usr,dev,proc,sys,etc,run,tmp,var/tmp,opt}
for there in bin sbin lib lib64; do
    if [ -L "/$there" ]; then cp -a "/$there" "$root/"; elif [ -d "/$there" ]; then mkdir "$root/$there"; mount --rbind "/$there" "$root/$there"; fi
done
for there in usr dev proc sys; do mount --rbind "/$there" "$root/$there"; done
for there in passwd group hosts nsswitch.conf ld.so.cache ld.so.conf ld.so.conf.d alternatives; do
    if [ -e "/etc/$there" ]; then cp -a "/etc/$there" "$root/etc/"; fi
done
touch "$root/opt/program"
mount --bind "$program" "$root/opt/program"
for ((at = 0; at < count; at++)); do
    mkdir -p "$root$2"
    mount --bind "$1" "$root$2"
    shift 2
done
if [ -n "$runtime" ]; then mkdir -m 700 "$root/run/$runtime"; fi
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs tmpfs "$root/var/tmp"
if [ -n "$runtime" ]; then mount -t tmpfs -o mode=700 tmpfs "$root/run/$runtime"; export RUNTIME_DIRECTORY="/run/$runtime"; fi
mount -o remount,ro "$root"
umask "$mask"
exec setpriv --no-new-privs chroot "$root" /opt/program "$@"
"#;

fn modes(folder: &Path) -> Vec<(PathBuf, u32)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let below = |path: PathBuf| {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let inside = if metadata.is_dir() { modes(&path) } else { Vec::new() };
        std::iter::once((path, metadata.permissions().mode() & 0o777)).chain(inside).collect::<Vec<_>>()
    };
    entries.flat_map(below).collect()
}

#[test]
fn units_work_under_what_they_say() {
    let place = Place::new(8);
    fs::create_dir(place.path("backup")).unwrap();
    fs::rename(place.path("repo"), place.path("backup/repo")).unwrap();
    let config = place.path("site/windlass-store.toml");
    let inside = fs::read_to_string(&config).unwrap().replace(place.path("repo").to_str().unwrap(), "/backup/repo");
    fs::write(&config, inside).unwrap();
    let store = Unit::read("store/windlass-store.service");
    let mut node = store.start(&place, &[place.path("backup"), place.path("site")], "listening");
    // Tokens are written beside the authority.
    let token = ["token", "create", "--role", "proxy", "--name", "host7", "--node"];
    let address = format!("quic://127.0.0.1:{}", place.port);
    place.done(&[&token[..], &[&address, "--out", "HERE/host7.token"]].concat());

    for folder in ["images", "proxy"] {
        fs::create_dir(place.path(folder)).unwrap();
    }
    place.done(&["token", "join", "--token-file", "HERE/host7.token", "--out", "HERE/proxy/host7"]);
    let image = place.path("images/web.qcow2");
    let made = Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&image).arg("8M").status();
    assert!(made.unwrap().success());
    fs::write(
        place.path("proxy/windlass-proxy.toml"),
        format!(
            "identity = \"/etc/windlass/host7\"\nnodes = [{address:?}]\n[[machine]]\nname = \"web\"\n\
             [[machine.disk]]\nname = \"vda\"\nsource = \"/images/web.qcow2\"\n"
        ),
    )
    .unwrap();
    let proxy = Unit::read("proxy/windlass-proxy.service");
    let mut proxy = proxy.start(&place, &[place.path("images"), place.path("proxy")], "attending");
    for tracking in ["full", "bitmap"] {
        let made = place.done(&["backup", "--machine", "web", "--proxy", "host7", "-r", "NODE"]);
        let summary = String::from_utf8_lossy(&made.stdout).lines().last().unwrap().to_owned();
        let summary: Value = serde_json::from_str(&summary).unwrap();
        assert_eq!(summary["disks"][0]["change_tracking"], tracking, "{summary}");
    }
    for process in [&mut proxy, &mut node] {
        signal(&process.0, Signal::TERM);
        assert!(process.0.wait().unwrap().success(), "a graceful stop");
    }
    let open: Vec<_> = modes(&place.path("backup/repo")).into_iter().filter(|(_, mode)| mode & 0o077 != 0).collect();
    assert!(open.is_empty(), "others can read {open:?}");
}
