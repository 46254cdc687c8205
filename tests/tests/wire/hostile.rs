//! A node that speaks the protocol as far as it likes, and then does something else.

use mover::{OwnerId, RepositoryId, Result, Role, SessionId, Timestamp, World};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use windlass_tests::node::Site;
use wire::message::{Opened, Reply, Request, SessionRef, Welcome};
use wire::{Congestion, Peer, Remote, client, client_config, decode, encode, server};

/// What it does with a request.
pub enum Act {
    /// What an honest node would say first.
    Honest,
    /// Says these bytes and nothing more, with the stream open.
    Say(Vec<u8>),
    /// Says these bytes for as long as anybody listens, with a pause between.
    Again(Vec<u8>, Duration),
    /// Says these bytes, and these on a part of their own.
    Part(Vec<u8>, Vec<u8>),
    /// Reads no more than the beginning, and says nothing.
    Nothing,
}

/// It accepts everybody, and does with requests as `act` says.
pub struct Hostile {
    pub port: u16,
    site: Site,
    world: World,
}

impl Hostile {
    pub fn start(act: impl Fn(&Request) -> Act + Send + Sync + 'static) -> Self {
        let world = World::system();
        let site = Site::new(&world);
        let identity = site.identity(Role::Node, "node", &world);
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let endpoint = server(address, &identity, &site.trust(), Congestion::default()).unwrap();
        let (port, act) = (endpoint.local_addr().unwrap().port(), Arc::new(act));
        tokio::spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let act = act.clone();
                tokio::spawn(async move {
                    let Ok(connection) = incoming.await else { return };
                    while let Ok((to, from)) = connection.accept_bi().await {
                        tokio::spawn(stream(connection.clone(), to, from, act.clone()));
                    }
                });
            }
        });
        Self { port, site, world }
    }

    /// Somebody who waits `silence` for an answer, and half a second for one that is gone.
    pub fn peer(&self, silence: Duration) -> Peer {
        let identity = self.site.identity(Role::Admin, "admin", &self.world);
        let config = client_config(&identity, &self.site.trust(), Congestion::default()).unwrap();
        Peer { patience: Duration::from_millis(500), silence, ..Peer::new("localhost", self.port, config) }
    }

    pub async fn connect(&self, silence: Duration) -> Result<Remote> {
        Remote::connect(client()?, self.peer(silence), "repo", None).await
    }
}

async fn stream(
    connection: Connection,
    mut to: SendStream,
    mut from: RecvStream,
    act: Arc<impl Fn(&Request) -> Act + Send + Sync + 'static>,
) {
    let mut bytes = Vec::new();
    let (request, bulk) = loop {
        match decode::<Request>(&bytes) {
            Ok(Some((request, bulk, _))) => break (request, bulk),
            Ok(None) => {}
            Err(_) => return,
        }
        let Ok(Some(chunk)) = from.read_chunk(1 << 16, true).await else { return };
        bytes.extend_from_slice(&chunk.bytes);
    };
    let act = act(&request);
    if let Act::Nothing = act {
        // Held, and not read.
        std::future::pending::<()>().await;
    }
    let head = encode(&request, bulk, false).unwrap().len();
    let mut left = usize::try_from(bulk).unwrap().saturating_sub(bytes.len() - head);
    while left > 0 {
        let Ok(Some(chunk)) = from.read_chunk(left, true).await else { return };
        left -= chunk.bytes.len();
    }
    let said = match act {
        Act::Honest => to.write_all(&honest(&request)).await,
        Act::Say(bytes) => to.write_all(&bytes).await,
        Act::Again(bytes, pause) => {
            while to.write_all(&bytes).await.is_ok() {
                tokio::time::sleep(pause).await;
            }
            return;
        }
        Act::Part(bytes, part) => {
            let id = VarInt::from(to.id()).into_inner();
            let mut beside = connection.open_uni().await.unwrap();
            let _ = beside.write_all(&[&id.to_le_bytes()[..], &part].concat()).await;
            std::mem::forget(beside);
            to.write_all(&bytes).await
        }
        Act::Nothing => unreachable!(),
    };
    if said.is_ok() {
        // Neither finished nor reset.
        connection.closed().await;
    }
}

fn honest(request: &Request) -> Vec<u8> {
    match request {
        Request::Hello(_) => {
            say(&Reply::Welcome(Welcome { version: wire::VERSION, features: 0, program: "hostile".into() }))
        }
        Request::Open(_) => say(&Reply::Opened(Opened {
            repository: RepositoryId([1; 16]),
            domain: [2; 32],
            created: Timestamp(3),
            owner: OwnerId::default(),
        })),
        Request::Begin(_) | Request::Read(_) => say(&Reply::Session(SessionRef { session: SessionId([3; 16]) })),
        _ => say(&Reply::Done(())),
    }
}

/// A whole reply that is the last.
pub fn say(reply: &Reply) -> Vec<u8> {
    encode(reply, 0, false).unwrap().to_vec()
}

/// A whole reply after which more is to follow.
pub fn more(reply: &Reply) -> Vec<u8> {
    encode(reply, 0, true).unwrap().to_vec()
}
