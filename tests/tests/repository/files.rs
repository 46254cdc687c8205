//! A repository's files: whose they are, what else may stand in their place, file systems without hard links, copies without
//! empty folders.

use mover::{Depth, ErrorKind, World};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::io::{DiskIo, FaultIo, Names};
use store::{Access, Local};
use windlass_tests::fake::{Machine, noise};
use windlass_tests::kept::{Bench, History, files, folder};

async fn filled(bench: &Bench, local: &Local, machine: &Machine) -> History {
    machine.write(0, 0, &noise(1, 200_000));
    let mut history = vec![(bench.backup(local, machine).await.unwrap().point.id, machine.images())];
    machine.write(0, 70_000, b"changed");
    history.push((bench.backup(local, machine).await.unwrap().point.id, machine.images()));
    history
}

/// Three kinds of file systems: with hard links, with a rename that replaces nothing (exFAT), with neither.
#[tokio::test(flavor = "multi_thread")]
async fn complete_files_come_to_their_names_on_every_file_system() {
    for names in [Names::Links, Names::Renames, Names::Replaces] {
        let (bench, kept) = (Bench::new(), folder());
        let io = Arc::new(FaultIo::new(DiskIo));
        io.name_by(names);
        let root = kept.path().join("repo");
        Local::init_with(&root, None, &World::system(), io.clone()).unwrap();
        let local = bench.open_with(&root, Access::Write, io.clone()).await.unwrap();
        let machine = Machine::new(&bench.world, &[300_000]);
        let history = filled(&bench, &local, &machine).await;
        local.close().await.unwrap();
        let local = bench.open_with(&root, Access::Write, io).await.unwrap();
        bench.assert_holds(&local, &history).await;
        assert!(bench.verify(&local, Depth::Decode).await.errors.is_empty(), "{names:?}");
        local.close().await.unwrap();
        // And it is the same repository where there are links.
        let local = bench.open(&root, Access::Read).await.unwrap();
        bench.assert_holds(&local, &history).await;
        let left = files(&root.join("incoming"));
        assert!(left.is_empty(), "{names:?}: {left:?}");
    }
}

fn empty_folders(root: &Path) -> Vec<PathBuf> {
    let folders: Vec<PathBuf> = fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir() && !path.ends_with("index"))
        .collect();
    let inner = folders.iter().flat_map(|folder| empty_folders(folder)).collect::<Vec<_>>();
    let empty = folders.into_iter().filter(|folder| fs::read_dir(folder).unwrap().next().is_none());
    empty.chain(inner).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_without_its_empty_folders_opens() {
    let (bench, kept) = (Bench::new(), folder());
    let root = kept.path().join("repo");
    Local::init(&root, None, &World::system()).unwrap();
    let local = bench.open(&root, Access::Write).await.unwrap();
    let machine = Machine::new(&bench.world, &[300_000]);
    let mut history = filled(&bench, &local, &machine).await;
    local.close().await.unwrap();
    let empty = empty_folders(&root);
    assert!(empty.len() > 200, "{}", empty.len());
    empty.iter().for_each(|folder| fs::remove_dir(folder).unwrap());
    let local = bench.open(&root, Access::Read).await.unwrap();
    bench.assert_holds(&local, &history).await;
    drop(local);
    let local = bench.open(&root, Access::Write).await.unwrap();
    machine.write(0, 0, b"goes on");
    history.push((bench.backup(&local, &machine).await.unwrap().point.id, machine.images()));
    bench.assert_holds(&local, &history).await;
}

#[test]
fn a_repository_is_its_owners_alone_whatever_the_umask() {
    let place = tempfile::tempdir().unwrap();
    let (root, disk) = (place.path().join("repo"), place.path().join("disk.raw"));
    fs::write(&disk, noise(1, 100_000)).unwrap();
    let windlass = windlass_tests::program::beside("windlass");
    for arguments in [&["init", "-r"][..], &["backup", "--machine", "m", "-r"]] {
        let mut command = Command::new("sh");
        command.args(["-c", "umask 000; exec \"$0\" \"$@\""]).arg(&windlass).args(arguments).arg(&root);
        if arguments[0] == "backup" {
            command.arg(&disk);
        }
        assert!(command.status().unwrap().success());
    }
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&root), 0o700);
    for file in files(&root).iter().filter(|file| !file.starts_with("index") && !file.starts_with("references")) {
        assert_eq!(mode(&root.join(file)), 0o600, "{}", file.display());
    }
}

/// What a prepared directory may have where files of a repository are: nothing else is opened, written or waited for.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_files_is_opened() {
    let (bench, kept) = (Bench::new(), folder());
    let root = kept.path().join("repo");
    Local::init(&root, None, &World::system()).unwrap();
    let local = bench.open(&root, Access::Write).await.unwrap();
    let machine = Machine::new(&bench.world, &[300_000]);
    filled(&bench, &local, &machine).await;
    local.close().await.unwrap();
    let victim = kept.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    let record = root.join("log").join(format!("{:020}", 0)).join(format!("{:020}", 2));
    let away = kept.path().join("away");
    for path in [root.join("lock"), root.join("config"), record] {
        fs::rename(&path, &away).unwrap();
        symlink(&victim, &path).unwrap();
        let error = bench.open(&root, Access::Write).await.err().expect("a link is not followed");
        assert!(matches!(error.kind(), ErrorKind::Integrity | ErrorKind::StoreIo), "{}: {error}", path.display());
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        fs::remove_file(&path).unwrap();
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        let began = Instant::now();
        for access in [Access::Read, Access::Write] {
            // A reader does not look at the lock.
            let opened =
                tokio::time::timeout(Duration::from_secs(20), bench.open(&root, access)).await.expect("no wait");
            assert!(opened.is_err() || (access == Access::Read && path.ends_with("lock")), "{}", path.display());
        }
        assert!(began.elapsed() < Duration::from_secs(20));
        fs::remove_file(&path).unwrap();
        fs::rename(&away, &path).unwrap();
    }
    bench.open(&root, Access::Write).await.unwrap();
}
