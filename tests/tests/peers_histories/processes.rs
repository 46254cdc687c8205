//! F31: a process stands still (SIGSTOP) for longer than anybody waits for it, others go on without it, and it wakes up
//! (SIGCONT) in the middle of what it did. Real programs.
//!
//! restic, <https://github.com/restic/restic/issues/3182>, <https://github.com/restic/restic/pull/3201>,
//! <https://github.com/restic/restic/issues/3239>: a lock that was not refreshed for half an hour counted as left over,
//! `unlock` removed that of a host which was only suspended, and what `prune` took then was missing in the backup that went
//! on.

use crate::case::sweep;
use mover::{PointChange, Pool, Repository, World};
use rustix::process::Signal;
use std::fs;
use std::io::Read;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use store::{Access, Local};
use tokio::sync::watch;
use windlass_tests::fake::noise;
use windlass_tests::kept::replay;
use windlass_tests::place::{Place, signal, wait_until};
use windlass_tests::program::Ended;
use wire::identity::Credentials;
use wire::{Congestion, Node, server};

const MEBIBYTE: u64 = 1 << 20;

/// A job of the program that has come some way, and stands still.
fn stopped(place: &Place, arguments: &[&str], is_under_way: impl Fn() -> bool) -> Ended {
    let mut command = place.windlass(arguments);
    let mut job = Ended(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
    wait_until("it is under way", is_under_way);
    assert!(job.0.try_wait().unwrap().is_none(), "in the middle");
    signal(&job.0, Signal::STOP);
    job
}

fn stopped_backup(place: &Place, machine: &str, to: &str) -> Ended {
    let before = place.packs_bytes();
    let arguments = ["backup", "--machine", machine, "--rate", "200MiB", "-r", to, "DISK"];
    stopped(place, &arguments, || place.packs_bytes() > before + 24 * MEBIBYTE)
}

/// Lets a job go on, and waits for its end: its exit code, and what it complained of.
fn woken(mut job: Ended) -> (Option<i32>, String) {
    signal(&job.0, Signal::CONT);
    let mut said = String::new();
    job.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (job.0.wait().unwrap().code(), said)
}

/// The directory's lock is the kernel's and goes with its process, so it is never stale. When somebody takes it away all
/// the same, the term in each record of the log tells the two apart (`State::check`): the one that was stopped states
/// nothing any more, and is told so.
#[test]
fn f31_a_stopped_backup_is_fenced_by_who_took_over() {
    let place = Place::new(8);
    place.done(&["backup", "--machine", "web", "-r", "REPO", "DISK"]);
    fs::write(place.path("disk.raw"), noise(1, 192 * MEBIBYTE)).unwrap();
    let backup = stopped_backup(&place, "web", "REPO");
    let (code, said) = place.fails(&["sweep", "-r", "REPO"]);
    assert!(code == 11 && said.contains(&format!("process {}", backup.0.id())), "{code} {said}");

    fs::remove_file(place.path("repo/lock")).unwrap();
    place.done(&["forget", "web@latest", "-r", "REPO"]);
    place.done(&["sweep", "--repack-from", "1", "-r", "REPO"]);
    assert!(replay(&place.path("repo")).points().is_empty(), "what the stopped one builds on is gone");
    let (code, said) = woken(backup);
    assert!(
        code == Some(1)
            && said.contains("\"fenced\"")
            && said.contains("took over")
            && said.contains("run the job again"),
        "{code:?} {said}"
    );

    place.done(&["backup", "--machine", "web", "-r", "REPO", "DISK"]);
    place.assert_restores("REPO");
    place.done(&["sweep", "--repack-from", "1", "-r", "REPO"]);
    place.done(&["verify", "--decode", "-r", "REPO"]);
    let points = replay(&place.path("repo")).points().len();
    assert_eq!(points, 1);
}

/// R10: a reader's session holds what it reads, for as long as an administrator waits for it. When it was ended the reader
/// is told that chunks are gone; what it has restored is no copy.
#[test]
fn f31_a_stopped_restore_whose_session_was_ended_fails() {
    let place = Place::new(8);
    fs::write(place.path("disk.raw"), noise(1, 192 * MEBIBYTE)).unwrap();
    place.done(&["backup", "--machine", "web", "-r", "REPO", "DISK"]);
    let arguments = ["restore", "web@latest", "--to", "HERE/restored.raw", "-r", "REPO"];
    let restore = stopped(&place, &arguments, || !replay(&place.path("repo")).sessions().is_empty());
    place.done(&["forget", "web@latest", "-r", "REPO"]);
    place.done(&["sweep", "-r", "REPO"]);
    assert_eq!(replay(&place.path("repo")).points().len(), 1, "it is being read");
    wait_until("its session is old enough", || {
        place.done(&["sweep", "--fence-older", "1s", "-r", "REPO"]);
        place.packs().is_empty()
    });
    let (code, said) = woken(restore);
    let told = said.contains("is missing") || said.contains("there is no point");
    assert!(matches!(code, Some(10 | 13)) && told, "{code:?} {said}");
    place.done(&["backup", "--machine", "web", "-r", "REPO", "DISK"]);
    place.assert_restores("REPO");
}

/// A session on a node ends when its holder was gone for long; who comes back begins it again. What it had been told to be
/// there is looked for once more by the commit (R7), and what is gone is read again while the snapshot is open (R8); without
/// the parent that it builds on it fails, and the next one reads everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f31_stopped_clients_come_back_to_a_node_that_forgot_them() {
    let (place, world) = (Place::new(8), World::system());
    let local = Local::open(&place.path("repo"), Access::Write, Pool::new(2).unwrap(), world.clone()).await.unwrap();
    let node = Node::new(world).forgetting_after(Duration::from_secs(1)).with("main", local.clone());
    let Credentials { identity, trust } = Credentials::load(&place.path("site/node")).unwrap();
    let endpoint = server(([127, 0, 0, 1], place.port).into(), &identity, &trust, Congestion::default()).unwrap();
    let (stop, stopping) = watch::channel(false);
    let serving = tokio::spawn(Arc::new(node).serve(endpoint, stopping));

    let mut disk = noise(1, 128 * MEBIBYTE);
    fs::write(place.path("disk.raw"), &disk).unwrap();
    place.done(&["backup", "--machine", "old", "-r", "NODE", "DISK"]);
    // Under each leaf of the map something is new.
    disk[0] ^= 1;
    disk[64 << 20] ^= 1;
    disk.extend(noise(2, 128 * MEBIBYTE));
    fs::write(place.path("disk.raw"), &disk).unwrap();
    // Both have been told that most of the first half is there; one of them builds on the point that has it.
    let heir = stopped_backup(&place, "old", "NODE");
    let web = stopped_backup(&place, "web", "NODE");
    assert_eq!(replay(&place.path("repo")).sessions().len(), 2);
    wait_until("the node has ended them", || replay(&place.path("repo")).sessions().is_empty());
    let points: Vec<_> = local.list(&Default::default()).await.unwrap().iter().map(|point| point.id).collect();
    local.change_points(&points, PointChange::Forget).await.unwrap();
    let swept = sweep(&local).await;
    assert!(swept.points_final == 1 && swept.bytes_reclaimed > 128 * MEBIBYTE, "{swept:?}");

    let (code, said) = woken(web);
    assert_eq!(code, Some(0), "{said}");
    place.assert_restores("NODE");
    let (code, said) = woken(heir);
    assert!(code == Some(10) && said.contains("there is no point"), "{code:?} {said}");
    place.done(&["backup", "--machine", "old", "-r", "NODE", "DISK"]);
    place.done(&["restore", "old@latest", "--to", "HERE/restored.raw", "--overwrite", "-r", "NODE"]);
    assert!(fs::read(place.path("restored.raw")).unwrap() == disk);
    stop.send(true).unwrap();
    serving.await.unwrap();
    local.close().await.unwrap();
    place.done(&["sweep", "--repack-from", "1", "-r", "REPO"]);
    place.done(&["verify", "--decode", "-r", "REPO"]);
}
