//! Servers that go silent: wherever that is, the wait for them ends by its limit, and slow ones that live are waited for.

use crate::tools::*;
use bytes::Bytes;
use chunker::Extent;
use proxy::nbd::{NbdDisk, NbdError, NbdServer, Patience};
use rustix::process::{Pid, Signal, kill_process};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

const LIMIT: Duration = Duration::from_millis(300);

/// Between the client and a real server: passes on so many bytes of the server's, then none.
fn gate(place: &Place, name: &str, server: &str, pass: usize) -> NbdServer {
    let path = place.path(name);
    let listener = UnixListener::bind(&path).unwrap();
    let server = server.split("socket=").nth(1).unwrap().to_owned();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = UnixStream::connect(&server).await.unwrap();
            tokio::spawn(async move {
                let ((mut from, mut to), (mut read, mut write)) = (client.into_split(), server.into_split());
                let asked = tokio::spawn(async move { tokio::io::copy(&mut from, &mut write).await });
                let (mut left, mut buffer) = (pass, vec![0; 65536]);
                while left > 0 {
                    let room = left.min(buffer.len());
                    match read.read(&mut buffer[..room]).await {
                        Ok(got @ 1..) if to.write_all(&buffer[..got]).await.is_ok() => left -= got,
                        _ => return,
                    }
                }
                let _ = asked.await;
            });
        }
    });
    NbdServer::Unix(path)
}

/// Everything that is asked of servers, once.
async fn all_of(server: &NbdServer) -> Result<(), NbdError> {
    let disk = NbdDisk::open(server, "", &[], Patience::of(LIMIT)).await?;
    disk.extents().await?;
    disk.read(Extent::new(0, GRID)).await?;
    disk.write(GRID, Bytes::from(vec![7; 4096])).await?;
    disk.zero(Extent::new(2 * GRID, GRID)).await?;
    disk.flush().await
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_in_any_place_ends_by_its_limit() {
    let place = Place::new();
    let (_server, uri) = nbdkit(&place, "s", &["--filter=noparallel", "memory", "1M"]);
    let sound = gate(&place, "sound", &uri, usize::MAX);
    all_of(&sound).await.unwrap();
    let mut said = std::collections::BTreeSet::new();
    // The handshake byte by byte would take long; every few bytes stop in each option, and in each reply after them.
    let places = (0..200).step_by(11).chain((200..420).step_by(5)).chain([30_000, 65_700, 65_800, 65_820, 65_860]);
    for pass in places {
        let server = gate(&place, &format!("g{pass}"), &uri, pass);
        let (began, ended) = (Instant::now(), all_of(&server).await);
        let Err(error) = ended else { continue };
        let NbdError::Silent { doing, .. } = error else { panic!("after {pass} bytes: {error}") };
        assert!(began.elapsed() < LIMIT * 8, "after {pass} bytes: {:?} while {doing}", began.elapsed());
        said.insert(doing);
    }
    for doing in ["connecting", "reading"] {
        assert!(said.contains(doing) || doing == "connecting" && said.contains("negotiating"), "{said:?}");
    }
    // Nobody takes the connection at all.
    let path = place.path("deaf");
    let _deaf = UnixListener::bind(&path).unwrap();
    let error = all_of(&NbdServer::Unix(path)).await.unwrap_err();
    assert!(matches!(error, NbdError::Silent { .. }), "{error}");
}

/// A server that is stopped while it does something is silent; one that is slow is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_server_is_given_up_and_a_slow_one_is_not() {
    let place = Place::new();
    let limit = Duration::from_secs(1);
    for doing in ["read", "write", "zero", "flush", "extents"] {
        let (server, uri) = nbdkit(&place, doing, &["memory", "1M"]);
        let uri: proxy::nbd::NbdUri = format!("{uri}&timeout=1").parse().unwrap();
        let disk = NbdDisk::open(&uri.server, &uri.export, &[], uri.patience()).await.unwrap();
        kill_process(Pid::from_child(&server.0), Signal::STOP).unwrap();
        let began = Instant::now();
        let ended = match doing {
            "read" => disk.read(Extent::new(0, GRID)).await.map(drop),
            "write" => disk.write(0, Bytes::from(vec![1; 1 << 20])).await,
            "zero" => disk.zero(Extent::new(0, GRID)).await,
            "flush" => disk.flush().await,
            _ => disk.extents().await.map(drop),
        };
        assert!(matches!(ended, Err(NbdError::Silent { .. })), "{doing}: {ended:?}");
        assert!(began.elapsed() >= limit && began.elapsed() < limit * 4, "{doing}: {:?}", began.elapsed());
    }
    // 64 KiB in 2 s, never a whole second without a byte.
    let (_server, uri) = nbdkit(&place, "slow", &["--filter=delay", "memory", "1M", "rdelay=600ms"]);
    let uri: proxy::nbd::NbdUri = format!("{uri}&timeout=1").parse().unwrap();
    let disk = NbdDisk::open(&uri.server, &uri.export, &[], uri.patience()).await.unwrap();
    for at in 0..4 {
        disk.read(Extent::new(at * GRID, GRID)).await.unwrap();
    }
}
