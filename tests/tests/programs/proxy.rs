//! Proxies as they ship: backups that an administrator asks for, and everybody killed and started again in the middle.

use mover::{ErrorKind, JobId, PointId, Progress, World};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use windlass_tests::place::{Place, signal, wait_until};
use windlass_tests::program::beside;
use wire::control::{Attend, Event, Job, Jobs, Report, Run};
use wire::identity::Credentials;
use wire::{Congestion, Peer, client, client_config};

const WEB: &str = "[[machine]]\nname = \"web\"\n[[machine.disk]]\nname = \"vda\"\nsource = \"disk.raw\"\n";
const BACKUP: [&str; 7] = ["backup", "--machine", "web", "--proxy", "host7", "-r", "NODE"];
/// The same, so slow that there is a middle.
const SLOWLY: [&str; 9] = ["backup", "--machine", "web", "--proxy", "host7", "-r", "NODE", "--rate", "40MiB"];

fn events(output: &Output) -> Vec<Value> {
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn spawned(mut command: Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// A site whose disk is a qcow2 image too.
fn with_image(mebibytes: usize) -> Place {
    let place = Place::new(mebibytes);
    let mut convert = Command::new("qemu-img");
    // In one piece: a file of thousands of holes takes a minute to be removed where the file system discards.
    convert
        .args(["convert", "-S", "0", "-f", "raw", "-O", "qcow2"])
        .arg(place.path("disk.raw"))
        .arg(place.path("web.qcow2"));
    assert!(convert.status().unwrap().success());
    place
}

/// A backup under way, seen to have stored something.
fn in_the_middle(place: &Place) -> Child {
    let before = place.packs_bytes();
    let mut backup = spawned(place.windlass(&SLOWLY));
    wait_until("it is under way", || place.packs_bytes() > before + (8 << 20));
    assert!(backup.try_wait().unwrap().is_none(), "it is not over");
    backup
}

fn points(place: &Place) -> usize {
    let listed = place.done(&["points", "-r", "NODE"]);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    listed["points"].as_array().unwrap().len()
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn full_and_by_bitmap_where_the_disks_are() {
    let place = with_image(16);
    let _node = place.node();
    let _proxy = place.proxy(&place.make_proxy("host7", &WEB.replace("disk.raw", "web.qcow2")));
    let full = events(&place.done(&BACKUP));
    let full = full.last().unwrap();
    assert_eq!(
        (&full["event"], &full["machine"], &full["disks"][0]["name"]),
        (&"summary".into(), &"web".into(), &"vda".into())
    );
    assert_eq!(
        (full["disks"][0]["size"].as_u64(), full["disks"][0]["change_tracking"].as_str()),
        (Some(16 << 20), Some("full"))
    );
    let write = |file: &str, format: &str| {
        let mut io = Command::new("qemu-io");
        io.args(["-f", format, "-c", "write -P 7 1M 128k"]).arg(place.path(file)).stdout(Stdio::null());
        assert!(io.status().unwrap().success());
    };
    write("web.qcow2", "qcow2");
    write("disk.raw", "raw");
    let mut increment = BACKUP.to_vec();
    increment.extend(["--change-tracking", "bitmap", "--tag", "nightly", "--compression", "zstd:1", "--audit", "0"]);
    let increment = events(&place.done(&increment));
    let disk = &increment.last().unwrap()["disks"][0];
    assert_eq!(
        (disk["change_tracking"].as_str(), disk["bytes_read"].as_u64()),
        // What was written, and the last block, which every bitmap marks.
        (Some("bitmap"), Some(192 << 10)),
        "{disk}"
    );
    assert_eq!(increment.last().unwrap()["parent"], full["point"]);
    place.assert_restores("NODE");
    // People are told as of a backup on their own machine.
    let json = place.windlass(&BACKUP);
    let mut people = Command::new(json.get_program());
    people.args(json.get_args().filter(|it| *it != "--json"));
    let people = people.env("WINDLASS_IDENTITY", place.path("site/admin")).output().unwrap();
    let text = String::from_utf8_lossy(&people.stdout).into_owned();
    assert!(people.status.success() && text.contains("TRACKING") && text.contains("point "), "{text}");
}

#[test]
fn a_proxy_killed_in_the_middle_is_told_and_the_next_backup_ends_well() {
    let place = with_image(128);
    let _node = place.node();
    let config = place.make_proxy("host7", &WEB.replace("disk.raw", "web.qcow2"));
    let mut proxy = place.proxy(&config);
    let backup = in_the_middle(&place);
    signal(&proxy.0, Signal::KILL);
    proxy.0.wait().unwrap();
    let _proxy = place.proxy(&config);
    let ended = backup.wait_with_output().unwrap();
    assert!(ended.status.code() == Some(20) && told(&ended).contains("started again"), "{}", told(&ended));
    assert_eq!(events(&ended).last().unwrap()["event"], "error");
    assert_eq!(points(&place), 0);
    place.done(&BACKUP);
    place.assert_restores("NODE");
    // What the killed one left in the image does not spoil its tracking.
    let increment = events(&place.done(&BACKUP));
    assert_eq!(increment.last().unwrap()["disks"][0]["change_tracking"], "bitmap");
}

#[test]
fn a_node_killed_in_the_middle_costs_nothing() {
    let place = Place::new(128);
    let mut node = place.node();
    let config = place.make_proxy("host7", WEB);
    let mut proxy = place.proxy(&config);
    let mut backup = in_the_middle(&place);
    signal(&node.0, Signal::KILL);
    node.0.wait().unwrap();
    node = place.node();
    // And once more in an orderly way: who waits for jobs holds nothing up.
    let before = place.packs_bytes();
    wait_until("it goes on", || place.packs_bytes() > before + (8 << 20));
    assert!(backup.try_wait().unwrap().is_none(), "it is not over");
    signal(&node.0, Signal::TERM);
    assert!(node.0.wait().unwrap().success());
    let _node = place.node();
    let ended = backup.wait_with_output().unwrap();
    assert!(ended.status.success(), "{}", told(&ended));
    assert_eq!(points(&place), 1, "it was not made twice");
    place.assert_restores("NODE");
    signal(&proxy.0, Signal::TERM);
    assert!(proxy.0.wait().unwrap().success());
}

#[test]
fn who_interrupts_cancels_and_a_proxy_that_stops_tells_so() {
    let place = Place::new(128);
    let _node = place.node();
    let config = place.make_proxy("host7", WEB);
    let socket = place.path("notify");
    let systemd = UnixDatagram::bind(&socket).unwrap();
    let variables = [("NOTIFY_SOCKET", socket.as_path()), ("WATCHDOG_USEC", Path::new("2000000"))];
    let mut proxy = place.started("windlass-proxy", &config, "attending", &variables);
    let heard = || {
        let mut state = [0; 64];
        let length = systemd.recv(&mut state).unwrap();
        String::from_utf8_lossy(&state[..length]).into_owned()
    };
    assert_eq!((heard().as_str(), heard().as_str()), ("READY=1", "WATCHDOG=1"));
    let backup = in_the_middle(&place);
    signal(&backup, Signal::INT);
    let ended = backup.wait_with_output().unwrap();
    assert!(ended.status.code() == Some(130) && told(&ended).contains("cancelled"), "{}", told(&ended));
    // Nothing is left of it that would hold the next one up.
    let backup = in_the_middle(&place);
    signal(&proxy.0, Signal::TERM);
    let last = std::iter::repeat_with(heard).find(|state| state != "WATCHDOG=1");
    assert_eq!(last.as_deref(), Some("STOPPING=1"));
    let ended = backup.wait_with_output().unwrap();
    assert!(ended.status.code() == Some(130) && told(&ended).contains("the proxy stops"), "{}", told(&ended));
    assert!(proxy.0.wait().unwrap().success(), "a graceful stop");
    assert_eq!(points(&place), 0);
    let _proxy = place.proxy(&config);
    place.done(&BACKUP);
    place.assert_restores("NODE");
}

#[test]
fn backups_of_one_machine_take_turns() {
    let place = Place::new(128);
    let _node = place.node();
    let _proxy = place.proxy(&place.make_proxy("host7", WEB));
    let first = in_the_middle(&place);
    let (code, said) = place.fails(&BACKUP);
    assert!(code == 11 && said.contains("proxy host7 already has job") && said.contains("job follow"), "{said}");
    place.done(&[&BACKUP[..], &["--wait=1m"]].concat());
    assert!(first.wait_with_output().unwrap().status.success());
    assert_eq!(points(&place), 2);
    place.assert_restores("NODE");
}

#[test]
fn an_administrator_that_comes_back_gets_the_same_job() {
    let place = Place::new(128);
    let _node = place.node();
    let _proxy = place.proxy(&place.make_proxy("host7", WEB));
    let peer = |folder: &str| {
        let Credentials { identity, trust } = Credentials::load(&place.path(folder)).unwrap();
        Peer::new("127.0.0.1", place.port, client_config(&identity, &trust, Congestion::default()).unwrap())
    };
    let peer = (peer("site/admin"), peer("host7"));
    let (world, repository) = (World::system(), "main".parse().unwrap());
    let mut options = windlass_tests::conformance::options("web");
    options.rate = Some(40 << 20);
    options.allow = mover::Allow::default();
    let point = PointId::random(&world);
    let job = Job::backup(JobId::random(&world), point, repository, &options).unwrap();
    let run = Run { proxy: Some("host7".parse().unwrap()), label: None, again: false, job };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let progress = Progress::default();
        let first = Jobs::new(client().unwrap(), peer.0.clone());
        let moving = async {
            while progress.bytes().0 == 0 {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            made = first.run(&run, &progress, |_| {}) => panic!("it is over: {made:?}"),
            () = moving => {}
        }
        // Its connections go without a word to the node about the job.
        drop(first);
        let again = Jobs::new(client().unwrap(), peer.0.clone());
        let report = again.run(&run, &progress, |_| {}).await.unwrap();
        let made = report.backup().unwrap();
        assert_eq!((made.point.id, made.disks[0].size), (point, 128 << 20));
        // Also when it is over.
        assert_eq!(again.run(&run, &progress, |_| {}).await.unwrap(), report);
        assert_eq!(again.follow(run.job.id, &progress, |_| {}).await.unwrap(), report);
        // Each for itself.
        let refused = ErrorKind::NotAuthorised;
        let proxy = Jobs::new(client().unwrap(), peer.1.clone());
        assert_eq!(proxy.run(&run, &progress, |_| {}).await.unwrap_err().kind(), refused);
        assert_eq!(proxy.cancel(run.job.id).await.unwrap_err().kind(), refused);
        assert_eq!(proxy.follow(run.job.id, &progress, |_| {}).await.unwrap_err().kind(), refused);
        assert_eq!(proxy.jobs().await.unwrap_err().kind(), refused);
        assert_eq!(proxy.proxies().await.unwrap_err().kind(), refused);
        let attend = Attend { instance: [1; 16], jobs: Vec::new(), labels: Vec::new(), machines: Vec::new() };
        assert_eq!(again.attend(attend).await.err().map(|error| error.kind()), Some(refused));
        let event = Event::Warning("no".into());
        assert_eq!(again.report(Report { job: run.job.id, event }).await.unwrap_err().kind(), refused);
    });
    assert_eq!(points(&place), 1);
}

#[test]
fn who_and_what_is_not_there_is_told() {
    let place = Place::new(1);
    let _node = place.node();
    let config = place.make_proxy("host7", WEB);
    let mut proxy = place.proxy(&config);
    let fails = |changed: &[(usize, &str)]| {
        let mut arguments = BACKUP;
        changed.iter().for_each(|(at, to)| arguments[*at] = to);
        place.fails(&arguments)
    };
    let (code, said) = fails(&[(2, "db")]);
    assert!(code == 10 && said.contains("proxy host7: it has no machine db (it has: web)"), "{said}");
    let other = format!("quic://127.0.0.1:{}/other", place.port);
    let (code, said) = fails(&[(6, &other)]);
    assert!(code == 10 && said.contains("no repository"), "{said}");
    let (code, said) = fails(&[(6, "REPO")]);
    assert!(code == 2 && said.contains("quic://host/name"), "{said}");
    let (code, _) = place.fails(&["backup", "--machine", "web", "--proxy", "host7", "-r", "NODE", "DISK"]);
    assert_eq!(code, 2, "where the disks are the proxy knows");
    let as_proxy = place.windlass(&BACKUP).env("WINDLASS_IDENTITY", place.path("host7")).output().unwrap();
    assert!(
        as_proxy.status.code() == Some(12) && told(&as_proxy).contains("proxy host7 may not"),
        "{}",
        told(&as_proxy)
    );
    // A node that was just started waits a little for its proxies to come back.
    let (code, said) = fails(&[(4, "host8")]);
    assert!(code == 10 && said.contains("proxy host8 does not attend this node (attending: host7)"), "{said}");
    // Whoever comes under the same name takes over.
    let _second = place.proxy(&config);
    assert_eq!(proxy.0.wait().unwrap().code(), Some(11));
    place.done(&BACKUP);
}

#[test]
fn a_wrong_configuration_is_told_with_its_place() {
    let place = Place::new(1);
    let config = place.make_proxy("host7", "colour = 1\n");
    let serve = || {
        let output = Command::new(beside("windlass-proxy")).args(["serve", "--config"]).arg(&config).output().unwrap();
        (output.status.code(), told(&output))
    };
    let (code, said) = serve();
    assert!(code == Some(2) && said.contains("host7.toml") && said.contains("line 3, column 1"), "{said}");
    fs::write(&config, "identity = \"site/admin\"\nnodes = [\"quic://localhost\"]\n").unwrap();
    let (code, said) = serve();
    assert!(code == Some(2) && said.contains("identity of admin admin") && said.contains("windlass token"), "{said}");
    fs::remove_file(&config).unwrap();
    let (code, said) = serve();
    assert!(code == Some(2) && said.contains("host7.toml"), "{said}");
}

/// The commands of its configuration run once each around the opening of the disks, and nothing of a job gets to them.
#[test]
fn a_proxy_runs_the_commands_of_its_machine() {
    let place = Place::new(4);
    let _node = place.node();
    let said = place.path("said");
    let command = |word: &str, then: &str| {
        format!("echo {word} $WINDLASS_MACHINE $WINDLASS_STATUS >> {}; {then}", said.display())
    };
    let with = |before: &str| {
        let (before, after) = (command("before", before), command("after", "true"));
        let hooks = format!("pre_freeze = {before:?}\npost_thaw = {after:?}\nhook_timeout = 20\n[[machine.disk]]");
        WEB.replace("[[machine.disk]]", &hooks)
    };
    let proxy = place.proxy(&place.make_proxy("host7", &with("sleep 0.1")));
    let made = events(&place.done(&BACKUP));
    assert!(made.last().unwrap()["freeze_ms"].as_u64().unwrap() >= 100, "{made:?}");
    assert_eq!(fs::read_to_string(&said).unwrap(), "before web ok\nafter web ok\n");
    place.assert_restores("NODE");
    drop(proxy);
    fs::remove_file(&said).unwrap();
    let _proxy = place.proxy(&place.make_proxy("host8", &with("exit 3")));
    let backup = BACKUP.map(|word| if word == "host7" { "host8" } else { word });
    let failed = place.windlass(&backup).output().unwrap();
    assert_eq!(failed.status.code(), Some(16), "{}", told(&failed));
    assert_eq!(fs::read_to_string(&said).unwrap(), "before web ok\nafter web failed\n");
    assert_eq!(points(&place), 1);
}
