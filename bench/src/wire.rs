//! The speed of the wire, compared with quinn alone. Both ends are in this process, each with threads of its own.

use anyhow::{Context, Result};
use bytes::Bytes;
use chunker::{Blob, ChunkId, ChunkKind, Compression, Compressor, DomainKeys, GRID_BYTES};
use futures::{StreamExt, TryStreamExt, stream};
use mover::{Begin, Holder, Mem, PointId, ReadSession, Repository, Role, Verification, World, WriteSession};
use quinn::{ClientConfig, Connection, Endpoint, VarInt};
use std::sync::Arc;
use std::time::Instant;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use wire::identity::Authority;
use wire::{Congestion, Node, Peer, Remote, WINDOW_BYTES, client, client_config, server};

/// Prints GB/s and seconds of CPU for a GB, of both ends together.
///
/// # Errors
/// When a connection fails.
pub fn wire() -> Result<()> {
    let world = World::system();
    let authority = Authority::create(&"bench".parse()?, &world)?;
    let named = |role, name: &str, hosts: &[String]| -> Result<_> {
        let holder = Holder::new(role, name.parse()?);
        Ok(authority.issue(&holder, hosts, 1, &world)?.identity()?)
    };
    let (node, proxy) = (named(Role::Node, "node", &["localhost".into()])?, named(Role::Proxy, "proxy", &[])?);
    let trust = authority.trust()?;
    let (there, here) = (Runtime::new()?, Runtime::new()?);
    let listen = || there.block_on(async { server(([127, 0, 0, 1], 0).into(), &node, &trust, Congestion::Cubic) });
    let config = client_config(&proxy, &trust, Congestion::Cubic)?;
    println!("{} MiB of blobs, 64 KiB each; CPU of both ends\n", BYTES >> 20);
    println!("{:<46} {:>8} {:>10}", "", "GB/s", "CPU s/GB");

    for connections in [1, 2] {
        let endpoint = listen()?;
        let port = endpoint.local_addr()?.port();
        there.spawn(discard(endpoint));
        let what = format!("quinn alone, {connections} connection{}", if connections > 1 { "s" } else { "" });
        measured(&what, || here.block_on(flood(&config, port, connections)))?;
    }

    let repository = Mem::new(&world);
    let keys = DomainKeys::new(&repository.config().domain);
    let blobs = blobs(&keys);
    let ids: Vec<ChunkId> = blobs.iter().map(|(id, _)| *id).collect();
    let endpoint = listen()?;
    let port = endpoint.local_addr()?.port();
    let (stop, stopped) = watch::channel(false);
    let serving = there.spawn(Arc::new(Node::new(world.clone()).with("main", repository)).serve(endpoint, stopped));
    let session = here.block_on(async {
        let remote = Remote::connect(client()?, Peer::new("localhost", port, config.clone()), "main", None).await?;
        let point = PointId::random(&world);
        let begin = Begin { point, parents: Vec::new(), holder: None, verification: Verification::Decode };
        anyhow::Ok((remote.begin(begin).await?.0, remote))
    })?;
    measured("put, each decoded and fingerprinted on arrival", || {
        let batches: Vec<Vec<(ChunkId, Blob)>> = blobs.chunks(16).map(<[_]>::to_vec).collect();
        here.block_on(async {
            let puts = stream::iter(batches).map(|batch| session.0.put(batch)).buffer_unordered(16);
            puts.try_collect::<Vec<()>>().await?;
            session.0.flush().await?;
            Ok(())
        })
    })?;
    measured("get", || {
        here.block_on(async {
            let mut bytes = 0;
            let mut got = std::pin::pin!(session.0.get(ids.clone()));
            while let Some(batch) = got.next().await {
                for (_, blob) in batch {
                    bytes += blob?.header().plain_bytes as usize;
                }
            }
            anyhow::ensure!(bytes == BYTES, "{bytes} bytes came");
            Ok(())
        })
    })?;
    here.block_on(async {
        session.0.abandon().await?;
        session.1.close().await;
        anyhow::Ok(())
    })?;
    let _ = stop.send(true);
    there.block_on(serving)?;
    Ok(())
}

/// Reads what comes, and nothing else.
async fn discard(endpoint: Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else { return };
            connection.set_receive_window(VarInt::from_u32(WINDOW_BYTES));
            while let Ok((mut to, mut from)) = connection.accept_bi().await {
                tokio::spawn(async move {
                    while let Ok(Some(_)) = from.read_chunk(1 << 20, true).await {}
                    let _ = to.finish();
                });
            }
        });
    }
}

/// Sends as many bytes over so many connections, on eight streams each.
async fn flood(config: &ClientConfig, port: u16, connections: usize) -> Result<()> {
    let endpoint = client()?;
    let mut open: Vec<Connection> = Vec::new();
    for _ in 0..connections {
        let address = std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST.to_ipv6_mapped(), port));
        open.push(endpoint.connect_with(config.clone(), address, "localhost")?.await?);
    }
    let piece = Bytes::from(vec![7; 1 << 20]);
    let pieces = BYTES / piece.len() / connections / STREAMS;
    let streams = open.iter().flat_map(|connection| (0..STREAMS).map(move |_| connection)).map(|connection| {
        let piece = piece.clone();
        async move {
            let (mut to, mut from) = connection.open_bi().await?;
            for _ in 0..pieces {
                to.write_chunk(piece.clone()).await?;
            }
            to.finish()?;
            from.read_to_end(0).await?;
            anyhow::Ok(())
        }
    });
    futures::future::try_join_all(streams).await?;
    open.iter().for_each(|connection| connection.close(VarInt::from_u32(0), b"done"));
    endpoint.wait_idle().await;
    Ok(())
}

/// Chunks that do not compress, all different.
fn blobs(keys: &DomainKeys) -> Vec<(ChunkId, Blob)> {
    let mut noise = blake3::Hasher::new().update(b"wire").finalize_xof();
    let mut compressor = Compressor::new(Compression::None);
    let mut plain = vec![0; GRID_BYTES as usize];
    (0..BYTES / plain.len())
        .map(|_| {
            noise.fill(&mut plain);
            (keys.id(ChunkKind::Data, &plain), compressor.compress(ChunkKind::Data, &plain))
        })
        .collect()
}

fn measured(what: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let (cpu, began) = (cpu_seconds()?, Instant::now());
    work()?;
    let (wall, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds()? - cpu);
    let gigabytes = BYTES as f64 / 1e9;
    println!("{what:<46} {:>8.2} {:>10.2}", gigabytes / wall, cpu / gigabytes);
    Ok(())
}

/// User and system time of this process: proc(5), in hundredths.
fn cpu_seconds() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = text.rsplit(')').next().context("proc(5)")?.split_whitespace().collect();
    let at = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).context("proc(5)");
    Ok((at(11)? + at(12)?) / 100.0)
}

const BYTES: usize = 512 << 20;
const STREAMS: usize = 8;
