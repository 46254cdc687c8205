//! Storage nodes inside the test's own process, and a site that gives everybody a certificate.

use mover::{Holder, Repository, Result, Role, World};
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use wire::identity::{Authority, Identity, Trust};
use wire::{Congestion, Node, Peer, Remote, client, client_config, server};

/// A site: its authority.
#[derive(Debug)]
pub struct Site {
    /// Signs certificates.
    pub authority: Authority,
}

impl Site {
    /// A new one.
    pub fn new(world: &World) -> Self {
        let name = "test".parse().expect("a name");
        Self { authority: Authority::create(&name, world).expect("an authority") }
    }

    /// The certificates that are trusted: those of this site.
    pub fn trust(&self) -> Trust {
        self.authority.trust().expect("a certificate")
    }

    /// A new identity of this site.
    pub fn identity(&self, role: Role, name: &str, world: &World) -> Identity {
        let holder = Holder::new(role, name.parse().expect("a name"));
        let hosts = if role == Role::Node { vec!["localhost".to_owned()] } else { Vec::new() };
        let issued = self.authority.issue(&holder, &hosts, 1, world).expect("a certificate");
        issued.identity().expect("a certificate")
    }
}

/// A node that serves.
#[derive(Debug)]
pub struct Running {
    /// Its port on the loopback address.
    pub port: u16,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Running {
    /// Serves `repository` under `name` on a free port.
    pub fn start<R: Repository + 'static>(site: &Site, name: &str, repository: R, world: &World) -> Self {
        Self::serve(site, Node::new(world.clone()).with(name, repository), world)
    }

    /// Serves what `node` has.
    pub fn serve<R: Repository + 'static>(site: &Site, node: Node<R>, world: &World) -> Self {
        Self::start_on(site, 0, node, world)
    }

    /// The same on this port, where one was before.
    pub fn start_on<R: Repository + 'static>(site: &Site, port: u16, node: Node<R>, world: &World) -> Self {
        let identity = site.identity(Role::Node, "node", world);
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        // Who had the port before gives it back a moment after it has ended.
        let endpoint = (0..1000).find_map(|_| {
            let bound = server(address, &identity, &site.trust(), Congestion::default());
            bound.inspect_err(|_| std::thread::sleep(std::time::Duration::from_millis(5))).ok()
        });
        let endpoint = endpoint.expect("a port");
        let port = endpoint.local_addr().expect("an address").port();
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(Arc::new(node).serve(endpoint, stopped));
        Self { port, stop, task }
    }

    /// Connects to it as an administrator.
    ///
    /// # Errors
    /// As [`Remote::connect`].
    pub async fn connect(&self, site: &Site, name: &str, world: &World) -> Result<Remote> {
        self.connect_as(&site.identity(Role::Admin, "admin", world), &site.trust(), name).await
    }

    /// Connects to it as somebody.
    ///
    /// # Errors
    /// As [`Remote::connect`].
    pub async fn connect_as(&self, identity: &Identity, trust: &Trust, name: &str) -> Result<Remote> {
        let config = client_config(identity, trust, Congestion::default())?;
        Remote::connect(client()?, Peer::new("localhost", self.port, config), name, None).await
    }

    /// Stops it gracefully and waits for its end.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        let _ = self.task.await;
    }
}
