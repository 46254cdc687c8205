//! The NBD client against servers of others.

use crate::tools::*;
use mover::{ChangeTracking, ErrorKind, TrackingWish};
use proxy::nbd::{NbdDisk, NbdError, NbdServer, NbdUri, Patience};
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn backup(uri: &str) -> mover::Result<Store> {
    let mut store = Store::default();
    store.backup(uri, TrackingWish::Auto).await?;
    Ok(store)
}

async fn disk(uri: &str) -> NbdDisk {
    let uri: NbdUri = uri.parse().unwrap();
    NbdDisk::open(&uri.server, &uri.export, &[], uri.patience()).await.unwrap()
}

/// qemu-nbd on a unix socket.
fn qemu_nbd(place: &Place, name: &str, arguments: &[&str]) -> (Running, String) {
    let socket = place.path(name);
    let mut command = Command::new("qemu-nbd");
    command.args(["--persistent", "-k", text(&socket)]).args(arguments).stderr(Stdio::null());
    let running = Running(command.spawn().unwrap());
    listens(&socket);
    (running, format!("nbd+unix:///d?socket={}", text(&socket)))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_server_gives_the_same_bytes() {
    let place = Place::new();
    let file = place.raw("disk", 12 * MIB);
    qemu_io(&file, "raw", &["write -P 1 0 3M", "write -P 2 5000k 4k", "write -P 3 12287k 1k"]);
    let want = std::fs::read(&file).unwrap();
    let path = format!("file={}", text(&file));
    for (at, arguments) in [
        &["file", &path][..],
        &["--filter=noextents", "file", &path],
        &["--no-sr", "file", &path],
        &["--filter=noparallel", "--filter=multi-conn", "file", &path, "multi-conn-mode=disable"],
        &[
            "--filter=blocksize-policy",
            "file",
            &path,
            "blocksize-minimum=4k",
            "blocksize-maximum=64k",
            "blocksize-error-policy=error",
        ],
        &["--filter=delay", "file", &path, "rdelay=1ms"],
    ]
    .into_iter()
    .enumerate()
    {
        let (_server, uri) = nbdkit(&place, &at.to_string(), arguments);
        let store = backup(&uri).await.unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
        assert!(store.bytes == want, "{arguments:?}");
    }
    let (_server, uri) = qemu_nbd(&place, "q", &["-r", "-f", "raw", "-e", "8", "-x", "d", text(&file)]);
    assert!(backup(&uri).await.unwrap().bytes == want);
    assert_eq!(disk(&uri).await.connections(), proxy::nbd::CONNECTIONS_MAX);
    let (_server, uri) = qemu_nbd(&place, "q1", &["-r", "-f", "raw", "-x", "d", text(&file)]);
    assert!(backup(&uri).await.unwrap().bytes == want);
    assert_eq!(disk(&uri).await.connections(), 1);
    // Longer than any server takes at once.
    let big = place.raw("big", 80 * MIB);
    qemu_io(&big, "raw", &["write -P 4 33M 1M"]);
    let (_server, uri) = nbdkit(&place, "big.s", &["file", text(&big)]);
    let bytes = disk(&uri).await.read(chunker::Extent::new(0, 80 * MIB)).await.unwrap();
    assert!(bytes[..] == std::fs::read(&big).unwrap()[..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bitmap_by_address_counts_when_its_name_proves_it() {
    let place = Place::new();
    let image = place.qcow2("a.qcow2", 8 * MIB);
    let mut store = Store::default();
    store.backup(text(&image), TrackingWish::Auto).await.unwrap();
    qemu_io(&image, "qcow2", &["write -P 1 1M 64k"]);
    let (name, all) = (changes(&image), bitmaps(&image));
    let serve = |socket: &str, bitmaps: &[String]| {
        let exported = bitmaps.iter().flat_map(|it| ["-B", it.as_str()]);
        let arguments = ["-r", "-f", "qcow2", "-e", "8", "-x", "d"].into_iter().chain(exported).chain([text(&image)]);
        qemu_nbd(&place, socket, &arguments.collect::<Vec<_>>())
    };
    // What would show that it looked away must be there.
    for missing in all.iter().filter(|it| **it != name) {
        let some: Vec<String> = all.iter().filter(|it| *it != missing).cloned().collect();
        let (_server, uri) = serve("some", &some);
        let past = Remembered { committed: &store.committed, parent: store.parent.as_ref() };
        let session = open_after(&format!("{uri}&bitmap={name}"), TrackingWish::Auto, &past).await.unwrap();
        let (made, _, _) = store.read(&session, TrackingWish::Auto).await.unwrap();
        assert_eq!(made.changed.mode, ChangeTracking::Fingerprint);
        assert!(made.changed.reason.contains(missing), "{}", made.changed.reason);
    }
    let (_server, uri) = serve("q", &all);
    let made = store.backup(&format!("{uri}&bitmap={name}"), TrackingWish::Auto).await.unwrap();
    assert_eq!((made.changed.mode, made.bytes_read), (ChangeTracking::Bitmap, GRID), "{}", made.changed.reason);
    assert!(store.bytes == content(&image, "qcow2"));
    let made = store.backup(&format!("{uri}&bitmap={name}"), TrackingWish::Auto).await.unwrap();
    assert_eq!(made.changed.mode, ChangeTracking::Fingerprint, "that point began no checkpoint");
    let made = store.backup(&format!("{uri}&bitmap=cp0"), TrackingWish::Auto).await.unwrap();
    assert!(made.changed.reason.contains("does not have a name that Windlass gives"), "{}", made.changed.reason);
}

#[tokio::test(flavor = "multi_thread")]
async fn failing_servers() {
    let place = Place::new();
    // Every read fails: an error of the source, never zeros.
    let (_server, uri) = nbdkit(&place, "1", &["--filter=error", "pattern", "4M", "error-pread-rate=100%"]);
    let error = backup(&uri).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Source, "{error}");
    // One in five fails: tried again.
    let (_server, uri) = nbdkit(&place, "2", &["--filter=error", "pattern", "4M", "error-pread-rate=10%"]);
    let sound = disk(&uri).await;
    for at in 0..64 {
        match sound.read(chunker::Extent::new(at * GRID, GRID)).await {
            Ok(bytes) => assert_eq!(bytes[..8], (at * GRID).to_be_bytes()),
            Err(error) => assert!(error.is_request(), "{error}"),
        }
    }
    // The server dies.
    let (server, uri) = nbdkit(&place, "3", &["memory", "4M"]);
    let lost = disk(&uri).await;
    drop(server);
    let error = lost.read(chunker::Extent::new(0, GRID)).await.unwrap_err();
    assert!(!error.is_request(), "{error}");
    let error = backup(&uri).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Transport, "{error}");
    // No such export; no server.
    let file = place.raw("f", MIB);
    let (_server, uri) = qemu_nbd(&place, "4", &["-r", "-f", "raw", "-x", "other", text(&file)]);
    let error = backup(&uri).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
    assert_eq!(backup("nbd://127.0.0.1:1/x").await.err().unwrap().kind(), ErrorKind::Transport);
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_disks_are_asked_in_windows() {
    let place = Place::new();
    // Extended headers where qemu-nbd has them, 32-bit ones with nbdkit.
    let image = place.qcow2("a.qcow2", 8 << 40);
    qemu_io(&image, "qcow2", &["write -P 1 1T 64k", "write -P 1 7T 1M"]);
    let (_server, uri) = qemu_nbd(&place, "q", &["-r", "-f", "qcow2", "-e", "8", "-x", "d", text(&image)]);
    let extents = disk(&uri).await.extents().await.unwrap();
    assert_eq!(extents.zeroes.complement(8 << 40).bytes(), MIB + GRID);
    let (_server, uri) = nbdkit(&place, "k", &["memory", "1T"]);
    let extents = disk(&uri).await.extents().await.unwrap();
    assert_eq!(extents.zeroes.bytes(), 1 << 40);
}

/// A server of our own that says `bytes` after the greeting was answered, then hangs up or goes on for ever.
async fn evil(place: &Place, name: &str, bytes: Vec<u8>, endless: bool) -> NbdServer {
    let path = place.path(name);
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (bytes, mut told) = (bytes.clone(), [0; 4]);
            tokio::spawn(async move {
                client.write_all(b"NBDMAGICIHAVEOPT\0\x03").await?;
                client.read_exact(&mut told).await?;
                client.write_all(&bytes).await?;
                if endless {
                    loop {
                        client.write_all(&bytes).await?;
                    }
                }
                // What the client still says is read: a hang-up is no reset.
                client.shutdown().await?;
                tokio::io::copy(&mut client, &mut tokio::io::sink()).await.map(drop)
            });
        }
    });
    NbdServer::Unix(path)
}

fn option(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let magic = 0x0003_e889_0455_65a9_u64.to_be_bytes();
    [&magic[..], &option.to_be_bytes(), &kind.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn evil_servers_end_in_bounded_time() {
    let place = Place::new();
    let info = [&[0, 0][..], &MIB.to_be_bytes(), &3_u16.to_be_bytes()].concat();
    let ready =
        [option(11, 1 << 31 | 1, b""), option(8, 1, b""), option(10, 1, b""), option(7, 3, &info), option(7, 1, b"")]
            .concat();
    let reply = |kind: u16, payload: &[u8]| {
        let head = [&0x668e_33ef_u32.to_be_bytes()[..], &[0, 0], &kind.to_be_bytes(), &1_u64.to_be_bytes()];
        [&head.concat()[..], &(payload.len() as u32).to_be_bytes(), payload].concat()
    };
    let half = [&reply(1, &[0; 100])[..60]].concat();
    let cases = [
        ("hang up", Vec::new(), false),
        ("endless information", option(11, 3, &[0, 1, 7]), true),
        ("hang up after the handshake", ready.clone(), false),
        ("half a reply", [ready.clone(), half].concat(), false),
        ("endless replies", [ready.clone(), reply(0x8001, &[0, 0, 0, 5, 0, 0])].concat(), true),
        ("noise", [ready, vec![0x55; 100_000]].concat(), true),
    ];
    for (at, (what, bytes, endless)) in cases.into_iter().enumerate() {
        let server = evil(&place, &at.to_string(), bytes, endless).await;
        let outcome = tokio::time::timeout(Duration::from_secs(60), async {
            let disk = NbdDisk::open(&server, "d", &[], Patience::default()).await?;
            disk.read(chunker::Extent::new(0, GRID)).await
        });
        let error: NbdError = outcome.await.unwrap_or_else(|_| panic!("{what}: no end")).expect_err(what);
        assert!(!error.is_request(), "{what}: {error}");
    }
}

/// A server that cannot tell what it holds is read; it is no reason to fail.
#[tokio::test(flavor = "multi_thread")]
async fn block_status_that_fails_means_read_everything() {
    let place = Place::new();
    for error in ["EIO", "ENOTSUP"] {
        let script = [
            "eval",
            "get_size=echo 4194304",
            "can_extents=exit 0",
            &format!("extents=echo {error} no map >&2; exit 1"),
            "pread=head -c $3 /dev/zero | tr '\\0' 'x'",
        ];
        let (_server, uri) = nbdkit(&place, error, &script);
        let extents = disk(&uri).await.extents().await.unwrap();
        assert!(extents.failed.is_some() && extents.zeroes.is_empty(), "{error}");
        assert!(backup(&uri).await.unwrap().bytes == vec![b'x'; 4 << 20], "{error}");
    }
}
