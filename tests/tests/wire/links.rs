//! Jobs across links that do what links do: real programs with a relay between them.

use rustix::process::Signal;
use std::fs;
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use windlass_bench::relay::{Relay, Shape};
use windlass_tests::place::{Place, signal, wait_until};
use windlass_tests::program::{Ended, free_port};
use wire::WINDOW_BYTES;

/// 400 Mbit/s, 10 ms there and back.
const SHAPE: Shape = Shape {
    delay: Duration::from_millis(5),
    jitter: Duration::ZERO,
    rate: 400_000_000,
    lost_per_mille: 0,
    doubled_per_mille: 0,
    seed: 1,
};

fn relay(place: &Place, shape: Shape) -> (Relay, String) {
    let relay = Relay::start(SocketAddr::from(([127, 0, 0, 1], place.port)), shape).unwrap();
    let address = format!("quic://127.0.0.1:{}/main", relay.port);
    (relay, address)
}

/// A backup, once so many bytes of it are on their way.
fn begun(place: &Place, relay: &Relay, address: &str, bytes: u64) -> Child {
    let mut backup = place.windlass(&["backup", "--machine", "web", "-r", address, "DISK"]);
    let mut backup = backup.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("it is under way", || relay.up.bytes.load(Relaxed) > bytes);
    assert!(backup.try_wait().unwrap().is_none(), "in the middle");
    backup
}

/// Waits for its end; beside what the repository got, no more than `twice` was sent, and a twelfth for packets' headers.
fn ends_well(place: &Place, relay: &Relay, backup: Child, twice: u64) {
    let ended = backup.wait_with_output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let (sent, stored) = (relay.up.bytes.load(Relaxed), place.packs_bytes());
    assert!(stored > 120 << 20, "{stored}");
    assert!(sent < stored + stored / 12 + twice, "{sent} bytes were sent for {stored}");
    place.assert_restores("NODE");
}

#[test]
fn an_address_changes_in_the_middle() {
    let place = Place::new(256);
    let _node = place.node();
    let (relay, address) = relay(&place, SHAPE);
    let backup = begun(&place, &relay, &address, 40 << 20);
    relay.readdress();
    let half = relay.up.bytes.load(Relaxed) + (30 << 20);
    wait_until("it goes on", || relay.up.bytes.load(Relaxed) > half);
    relay.readdress();
    ends_well(&place, &relay, backup, WINDOW_BYTES.into());
    let log = fs::read_to_string(place.path("windlass-store.log")).unwrap();
    assert!(!log.contains("was not connected for a long time"), "{log}");
}

#[test]
fn a_link_is_cut_for_half_a_minute() {
    let place = Place::new(256);
    let _node = place.node();
    let (relay, address) = relay(&place, SHAPE);
    let backup = begun(&place, &relay, &address, 40 << 20);
    relay.cut(true);
    std::thread::sleep(Duration::from_secs(30));
    relay.cut(false);
    ends_well(&place, &relay, backup, WINDOW_BYTES.into());
}

/// What the node had not made durable is sent again: at most a pack, and what was on its way.
#[test]
fn a_node_is_killed_and_started_again() {
    let place = Place::new(256);
    let mut node = place.node();
    let (relay, address) = relay(&place, SHAPE);
    let backup = begun(&place, &relay, &address, 80 << 20);
    signal(&node.0, Signal::KILL);
    node.0.wait().unwrap();
    let _node = place.node();
    ends_well(&place, &relay, backup, u64::from(WINDOW_BYTES) + PACK_BYTES);
}

/// Everything at once that a link does: nothing is lost, and nothing stands still.
#[test]
fn packets_are_lost_doubled_and_out_of_order() {
    let place = Place::new(16);
    let _node = place.node();
    let shape = Shape { lost_per_mille: 20, doubled_per_mille: 20, jitter: Duration::from_millis(2), ..SHAPE };
    let (relay, address) = relay(&place, shape);
    place.done(&["backup", "--machine", "web", "-r", &address, "DISK"]);
    place.assert_restores(&address);
    assert!(relay.up.lost.load(Relaxed) > 0 && relay.down.lost.load(Relaxed) > 0);
}

/// A second node of the site, with a repository that takes copies of the first one's.
fn second_node(place: &Place) -> (Ended, SocketAddr) {
    let (repository, port) = (place.path("copies"), free_port());
    place.issue("node", "second", &["--host", "127.0.0.1"]);
    place.done(&["init", "-r", repository.to_str().unwrap(), "--like", "REPO"]);
    let config = place.path("second.toml");
    let text = format!(
        "listen = \"127.0.0.1:{port}\"\nidentity = \"second\"\n[[repository]]\nname = \"main\"\npath = {repository:?}\n"
    );
    fs::write(&config, text).unwrap();
    let node = place.started("windlass-store", &config, "listening", &[]);
    (node, SocketAddr::from(([127, 0, 0, 1], port)))
}

#[test]
fn a_copy_between_nodes_does_not_pass_through_the_terminal() {
    let place = Place::new(32);
    let (second, at) = second_node(&place);
    let mut node = place.node();
    place.done(&["backup", "--machine", "web", "-r", "NODE", "DISK"]);
    let terminal = Relay::start(at, Shape { seed: 1, ..Shape::default() }).unwrap();
    let to = format!("quic://127.0.0.1:{}/main", terminal.port);
    let passed = || terminal.up.bytes.load(Relaxed) + terminal.down.bytes.load(Relaxed);
    let copy = ["copy", "--all", "-r", "NODE", "--to", &to];
    let summary = |output: std::process::Output| -> serde_json::Value {
        serde_json::from_str(String::from_utf8_lossy(&output.stdout).lines().last().unwrap()).unwrap()
    };
    let made = summary(place.done(&copy));
    assert!(made["points"] == 1 && made["bytes_moved"].as_u64().unwrap() > 15 << 20, "{made}");
    assert!(passed() < 1 << 20, "{} bytes", passed());
    let again = summary(place.done(&copy));
    assert!(again["points"] == 0 && again["points_there_already"] == 1, "{again}");
    // The other way, for nodes that do not reach each other: that it is counted shows that counting works.
    let mut noise = blake3::Hasher::new().update(b"another").finalize_xof();
    let mut disk = vec![0; 32 << 20];
    noise.fill(&mut disk[..8 << 20]);
    fs::write(place.path("disk.raw"), disk).unwrap();
    place.done(&["backup", "--machine", "web", "-r", "NODE", "DISK"]);
    place.done(&[&copy[..], &["--through-here"]].concat());
    assert!(passed() > 8 << 20, "{} bytes", passed());
    // The first one is not needed any more.
    signal(&node.0, Signal::KILL);
    node.0.wait().unwrap();
    place.assert_restores(&to);
    drop(second);
}

/// What a pack grows to before it is sealed, and the batch that was going into it.
const PACK_BYTES: u64 = (56 << 20) + (2 << 20);
