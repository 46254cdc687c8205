//! Proxies that find machines, and a node that chooses among them: real QEMUs, real processes.

use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use windlass_tests::place::{Place, signal, wait_until};
use windlass_tests::program::Bench;
use windlass_tests::qemu::Qemu;

const UUID: &str = "5ca1ab1e-0000-4000-8000-00000000beef";
const BACKUP: [&str; 7] = ["backup", "--machine", "web", "-r", "NODE", "--quiesce", "off"];
/// A machine that does not run, with the disk of the place.
const DB: &str = "[[machine]]\nname = \"db\"\n[[machine.disk]]\nname = \"vda\"\nsource = \"disk.raw\"\n";

/// A site with two proxies of one owner, which look for machines every second.
struct Site {
    place: Place,
    /// Where QEMUs and images are.
    bench: Bench,
}

impl Site {
    fn new() -> Self {
        let site = Self { place: Place::new(1), bench: Bench::new() };
        fs::create_dir(site.place.path("scratch")).unwrap();
        site
    }

    /// A QEMU with this name and [`UUID`]: its disk has 64 MiB, of which some are data.
    fn qemu(&self, name: &str) -> Qemu {
        let image = self.bench.path("web.qcow2");
        if !image.exists() {
            convert(&self.bench.path("disk.raw"), &image);
            let resized =
                Command::new("qemu-img").args(["resize", "-q", "-f", "qcow2"]).arg(&image).arg("64M").status();
            assert!(resized.unwrap().success());
        }
        let disks = [(image.as_path(), "qcow2", "virtio-blk-pci,drive=DRIVE,id=vda")];
        Qemu::start(&self.bench, &disks, &["-name", name, "-uuid", UUID])
    }

    /// The configuration of a proxy; `found` is what it looks for.
    fn proxy(&self, name: &str, found: &str) -> PathBuf {
        self.place.issue("proxy", name, &["--owner", "cluster1"]);
        let config = self.place.path(&format!("{name}.toml"));
        let (node, scratch) = (format!("quic://127.0.0.1:{}", self.place.port), self.place.path("scratch"));
        let head = format!("identity = {name:?}\nnodes = [{node:?}]\nscratch = {scratch:?}\ndiscover_seconds = 1\n");
        fs::write(&config, format!("{head}labels = [{name:?}]\n{found}")).unwrap();
        config
    }

    /// The socket that the tests' QEMU has, as a pattern.
    fn by_socket(&self) -> String {
        format!("[[discover]]\nqmp = \"{}/q?p\"\ntags = [\"prod\"]\n", self.bench.path("").display()).replace("//", "/")
    }

    /// How the node is to choose among proxies.
    fn choose(&self, how: &str) {
        let config = self.place.path("site/windlass-store.toml");
        let text = fs::read_to_string(&config).unwrap();
        fs::write(&config, format!("proxy_choice = {how:?}\n{text}")).unwrap();
    }

    fn asked(&self, arguments: &[&str]) -> Value {
        document(&self.place.done(arguments))
    }

    /// Backs up without saying where, and gives the proxy that did it, and the summary.
    fn backed_up(&self, more: &[&str]) -> (String, Value) {
        let events = lines(&self.place.done(&[&BACKUP[..], more].concat()));
        let given = events.iter().find(|it| it["event"] == "given").expect("it is told who does it");
        (given["proxy"].as_str().unwrap().to_owned(), events.last().unwrap().clone())
    }

    /// The machines that are offered, by name.
    fn offered(&self) -> Vec<Value> {
        self.asked(&["machine", "list", "-r", "NODE"])["machines"].as_array().unwrap().clone()
    }

    fn wait_for_machine(&self, name: &str, proxies: usize) {
        let there = |it: &Value| it["machine"] == name && it["proxies"].as_array().unwrap().len() == proxies;
        wait_until("the machine is offered", || self.offered().iter().any(there));
    }
}

fn convert(from: &Path, to: &Path) {
    let made = Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2"]).arg(from).arg(to).status();
    assert!(made.unwrap().success());
}

fn document(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A backup that goes on for long, and the id of its job.
fn slow_backup(site: &Site, rate: &str, more: &[&str]) -> (Child, String) {
    let arguments = [&BACKUP[..], &["--rate", rate, "--change-tracking", "full"], more].concat();
    let mut child = site.place.windlass(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let job = job_under_way(child.stdout.take().unwrap());
    (child, job)
}

/// The id of the job whose events these are, when it has moved something.
fn job_under_way(events: ChildStdout) -> String {
    let mut reader = BufReader::new(events);
    let mut job = None;
    loop {
        let mut line = String::new();
        assert!(reader.read_line(&mut line).unwrap() > 0, "it ended early");
        let event: Value = serde_json::from_str(&line).unwrap();
        job = job.or_else(|| event["job"].as_str().map(str::to_owned));
        if event["event"] == "progress" && event["bytes_done"].as_u64() > Some(0) {
            // What else it says nobody reads.
            std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
            return job.expect("the job is told before its progress");
        }
    }
}

#[test]
fn a_found_machine_is_backed_up_by_proxies_in_turn_and_keeps_its_chain_when_it_is_renamed() {
    let site = Site::new();
    let _node = site.place.node();
    let qemu = site.qemu("web");
    let _proxies = ["host7", "host8"].map(|name| site.place.proxy(&site.proxy(name, &site.by_socket())));
    site.wait_for_machine("web", 2);
    let web = &site.offered()[0];
    assert_eq!(web["machine_id"].as_str().unwrap(), UUID.replace('-', ""));
    assert_eq!(
        (&web["power"], &web["owner"], &web["tags"][0]),
        (&"running".into(), &"cluster1".into(), &"prod".into())
    );
    assert_eq!((&web["disks"][0]["name"], web["disks"][0]["size"].as_u64()), (&"vda".into(), Some(64 << 20)));
    let before = site.asked(&["machine", "show", "web", "-r", "NODE"]);
    assert_eq!(before["disks"][0]["incremental"], false, "{before}");
    assert!(before["disks"][0]["reason"].as_str().unwrap().contains("first backup"), "{before}");
    assert_eq!((&before["last_point"], &before["agent_answers"]), (&Value::Null, &false.into()));
    let (first, full) = site.backed_up(&[]);
    assert_eq!(full["disks"][0]["change_tracking"], "full");
    let after = site.asked(&["machine", "show", "web", "-r", "NODE"]);
    assert_eq!(after["disks"][0]["incremental"], true, "{after}");
    assert!(after["disks"][0]["reason"].as_str().unwrap().contains("records since"), "{after}");
    assert_eq!(after["last_point"], full["point"]);
    qemu.write("vda", 7, 1 << 20, 128 << 10);
    // The looks at the machine were turns too, so only which follow each other says something.
    let (second, increment) = site.backed_up(&["--audit", "0"]);
    let (third, _) = site.backed_up(&[]);
    let (fourth, _) = site.backed_up(&[]);
    assert!(second != third && third != fourth && second == fourth, "{first} {second} {third} {fourth}");
    assert_eq!((&increment["disks"][0]["change_tracking"], &increment["parent"]), (&"bitmap".into(), &full["point"]));
    let (labelled, _) = site.backed_up(&["--proxy-label", "host8"]);
    assert_eq!(labelled, "host8");
    let (code, said) = site.place.fails(&[&BACKUP[..], &["--proxy-label", "other"]].concat());
    assert!(code == 10 && said.contains("no proxy with label other"), "{said}");

    // The same machine under another name.
    qemu.quit();
    let _qemu = site.qemu("renamed");
    site.wait_for_machine("renamed", 2);
    let by_id = ["backup", "--machine", UUID, "-r", "NODE", "--quiesce", "off"];
    let events = lines(&site.place.done(&by_id));
    let summary = events.last().unwrap();
    assert_eq!((&summary["machine"], summary["parent"].is_string()), (&"renamed".into(), true), "{summary}");
    assert_eq!(summary["disks"][0]["change_tracking"], "bitmap", "{summary}");
    let (code, said) = site.place.fails(&BACKUP);
    assert!(code == 10 && said.contains("offers machine web"), "{said}");
    let points = site.asked(&["points", "-r", "NODE"]);
    let ids: Vec<&Value> = points["points"].as_array().unwrap().iter().map(|it| &it["machine_id"]).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "one machine: {points}");
}

#[test]
fn jobs_are_followed_and_cancelled_from_anywhere_and_a_machine_has_one_at_a_time() {
    let site = Site::new();
    let _node = site.place.node();
    let _qemu = site.qemu("web");
    let _proxies = ["host7", "host8"].map(|name| site.place.proxy(&site.proxy(name, &site.by_socket())));
    site.wait_for_machine("web", 2);
    let (mut backup, job) = slow_backup(&site, "512KiB", &["--proxy", "host7"]);
    let (code, said) = site.place.fails(&BACKUP);
    assert!(code == 11 && said.contains(&job) && said.contains("host7"), "{said}");
    let (code, _) = site.place.fails(&[&BACKUP[..], &["--proxy", "host8"]].concat());
    assert_eq!(code, 11, "nor at another proxy");
    let seen = site.asked(&["machine", "show", "web", "--proxy", "host7", "-r", "NODE"]);
    assert!(seen["remarks"][0].as_str().unwrap().contains("is under way"), "{seen}");
    let listed = site.asked(&["job", "list", "--machine", "web", "-r", "NODE"]);
    let of = |job: &str| listed["jobs"].as_array().unwrap().iter().find(|it| it["job"] == job).unwrap().clone();
    assert_eq!(
        (&of(&job)["state"], &of(&job)["by"], &of(&job)["kind"]),
        (&"running".into(), &"admin".into(), &"backup".into())
    );
    // Its administrator goes without a word, and it goes on.
    signal(&backup, Signal::KILL);
    backup.wait().unwrap();
    let follow = ["job", "follow", &job[..8], "-r", "NODE"];
    let follower = site.place.windlass(&follow).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Whoever stops following does not end it.
    let impatient = site.place.windlass(&follow).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1500));
    signal(&impatient, Signal::INT);
    assert_eq!(impatient.wait_with_output().unwrap().status.code(), Some(130));
    assert_eq!(site.asked(&["job", "show", &job, "-r", "NODE"])["state"], "running");
    site.place.done(&["job", "cancel", &job[..8], "-r", "NODE"]);
    let followed = follower.wait_with_output().unwrap();
    let told = lines(&followed);
    assert_eq!(followed.status.code(), Some(130), "{told:?}");
    assert!(told.iter().any(|it| it["event"] == "progress") && told.last().unwrap()["code"] == "cancelled", "{told:?}");
    let shown = site.asked(&["job", "show", &job, "-r", "NODE"]);
    assert_eq!((&shown["state"], &shown["error"]["code"]), (&"cancelled".into(), &"cancelled".into()));
    assert_eq!(site.asked(&["job", "cancel", &job, "-r", "NODE"])["was_over"], true);

    // A job that is over is told too, with what it made.
    let (_, summary) = site.backed_up(&[]);
    let listed = site.asked(&["job", "list", "-r", "NODE"]);
    let last = listed["jobs"].as_array().unwrap().last().unwrap()["job"].as_str().unwrap().to_owned();
    let again = lines(&site.place.done(&["job", "follow", &last, "-r", "NODE"]));
    assert_eq!(again.last().unwrap()["point"], summary["point"]);
    for wrong in ["zzzz", "12"] {
        assert_eq!(site.place.fails(&["job", "show", wrong, "-r", "NODE"]).0, 2);
    }
    assert_eq!(site.place.fails(&["job", "follow", "00000000", "-r", "NODE"]).0, 10);
    // Proxies see none of it.
    for asks in [["job", "list"], ["proxy", "list"], ["machine", "list"]] {
        let asked = site.place.windlass(&[&asks[..], &["-r", "NODE"]].concat());
        let mut asked = asked;
        let output = asked.env("WINDLASS_IDENTITY", site.place.path("host8")).output().unwrap();
        assert_eq!(output.status.code(), Some(12), "{asks:?}");
    }
}

/// Who follows a job learns its end although the node was killed meanwhile, and the new one knows that the machine is busy.
#[test]
fn a_job_is_followed_and_cancelled_over_a_restart_of_the_node() {
    let site = Site::new();
    site.choose("least-loaded");
    let mut node = site.place.node();
    let _qemu = site.qemu("web");
    let found = DB.to_owned() + &site.by_socket();
    let _proxies = ["host7", "host8"].map(|name| site.place.proxy(&site.proxy(name, &found)));
    site.wait_for_machine("web", 2);
    let (mut backup, job) = slow_backup(&site, "128KiB", &["--proxy", "host7"]);
    // Meanwhile host7 is not taken for another machine, not even in its turn.
    for _ in 0..2 {
        let events = lines(&site.place.done(&["backup", "--machine", "db", "-r", "NODE"]));
        assert!(events.iter().any(|it| it["event"] == "given" && it["proxy"] == "host8"), "{events:?}");
    }
    signal(&backup, Signal::KILL);
    backup.wait().unwrap();
    let follow = ["job", "follow", &job, "-r", "NODE"];
    let mut follower = site.place.windlass(&follow).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    let mut reader = BufReader::new(follower.stdout.take().unwrap());
    reader.read_line(&mut first).unwrap();
    assert!(first.contains("\"given\""), "{first}");
    signal(&node.0, Signal::KILL);
    node.0.wait().unwrap();
    let _node = site.place.node();
    let is_listed = || {
        let listed = site.asked(&["job", "list", "-r", "NODE"]);
        listed["jobs"].as_array().unwrap().iter().any(|it| it["job"] == job && it["machine"] == "web")
    };
    wait_until("the new node knows the job", is_listed);
    site.wait_for_machine("web", 2);
    let (code, said) = site.place.fails(&BACKUP);
    assert!(code == 11 && said.contains(&job), "{said}");
    site.place.done(&["job", "cancel", &job, "-r", "NODE"]);
    let rest: Vec<Value> = reader.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    assert_eq!(follower.wait().unwrap().code(), Some(130), "{rest:?}");
    assert_eq!(rest.last().unwrap()["code"], "cancelled", "{rest:?}");
    site.backed_up(&[]);
}

/// Machines that do not run are found by their images, and one that runs is backed up live although its image is found too.
#[test]
fn images_are_found_and_what_does_not_fit_is_left_out() {
    let site = Site::new();
    let _node = site.place.node();
    let vms = site.place.path("vms");
    for name in ["web", "db", "test-1", "bad name"] {
        fs::create_dir_all(vms.join(name)).unwrap();
        convert(&site.place.path("disk.raw"), &vms.join(name).join("vda.qcow2"));
    }
    std::os::unix::fs::symlink(site.place.path("disk.raw"), vms.join("db/other.qcow2")).unwrap();
    let images = format!("[[discover]]\nimages = \"{}/*/*.qcow2\"\nexclude = [\"test-*\"]\n", vms.display());
    // A silent socket is in nobody's way.
    let silent = site.bench.path("qxp");
    let _silent = std::os::unix::net::UnixListener::bind(&silent).unwrap();
    let config = site.proxy("host7", &(site.by_socket() + &images));
    let _proxy = site.place.proxy(&config);
    site.wait_for_machine("db", 1);
    let names: Vec<String> = site.offered().iter().map(|it| it["machine"].as_str().unwrap().to_owned()).collect();
    assert_eq!(names, ["db", "web"]);
    assert!(site.offered().iter().all(|it| it["power"] == "off" && it["disks"].as_array().unwrap().len() == 1));
    let (_, full) = site.backed_up(&[]);
    assert_eq!((&full["disks"][0]["name"], &full["disks"][0]["change_tracking"]), (&"vda".into(), &"full".into()));
    let after = site.asked(&["machine", "show", "web", "-r", "NODE"]);
    assert_eq!((&after["power"], &after["disks"][0]["incremental"]), (&"off".into(), &true.into()), "{after}");
    let (_, increment) = site.backed_up(&[]);
    assert_eq!(increment["disks"][0]["change_tracking"], "bitmap");
    // It runs now.
    let _qemu = site.qemu("web");
    wait_until("its QEMU is found", || {
        site.offered().iter().any(|it| it["machine"] == "web" && it["power"] == "running")
    });
    let shown = site.asked(&["proxy", "show", "host7", "-r", "NODE"]);
    assert_eq!((&shown["owner"], shown["machines"].as_array().unwrap().len()), (&"cluster1".into(), 2));
    let log = fs::read_to_string(site.place.path("windlass-proxy.log")).unwrap();
    assert!(log.contains("bad name") && log.contains("qxp"), "{log}");
    assert_eq!(log.matches("no machine and disk can be called after it").count(), 1, "told once: {log}");
    // People get tables.
    for words in [&["machine", "list"][..], &["proxy", "list"], &["job", "list"], &["machine", "show", "db"]] {
        let json = site.place.windlass(&[words, &["-r", "NODE"]].concat());
        let mut people = Command::new(json.get_program());
        people.args(json.get_args().filter(|it| *it != "--json"));
        let output = people.env("WINDLASS_IDENTITY", site.place.path("site/admin")).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains("host7"), "{text}");
    }
}

/// Where nobody says where a machine is, nobody of another owner gets its jobs.
#[test]
fn proxies_of_different_owners_are_not_mixed() {
    let site = Site::new();
    let _node = site.place.node();
    let web = "[[machine]]\nname = \"web\"\n[[machine.disk]]\nname = \"vda\"\nsource = \"disk.raw\"\n";
    let _proxies = ["host7", "rogue"].map(|name| site.place.proxy(&site.place.make_proxy(name, web)));
    let (code, said) = site.place.fails(&["backup", "--machine", "web", "-r", "NODE"]);
    assert!(code == 2 && said.contains("host7 and rogue") && said.contains("--proxy"), "{said}");
    site.place.done(&["backup", "--machine", "web", "--proxy", "host7", "-r", "NODE"]);
    let (code, said) = site.place.fails(&["backup", "--machine", "web", "-r", "REPO"]);
    assert!(code == 2 && said.contains("without a source"), "{said}");
    let hook = ["backup", "--machine", "web", "--proxy", "host7", "--pre-freeze", "true", "-r", "NODE"];
    assert_eq!(site.place.fails(&hook).0, 2);
}
