//! A storage node for one run of the comparison: a process of its own, on the same cores.

use crate::measure::{cpu_s, ran};
use crate::tools::Places;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A node that serves the repository [`OF_NODE`].
pub struct Node {
    child: Child,
    port: u16,
}

impl Node {
    /// Makes a site and a repository in the run's folder, and serves it.
    pub fn start(places: &Places) -> Result<Self> {
        Self::start_with(places, "")
    }

    /// The same, with more lines of configuration.
    pub fn start_with(places: &Places, settings: &str) -> Result<Self> {
        ran(places.windlass(&["init"], OF_NODE))?;
        Self::serve(places, settings)
    }

    /// The same on a repository that is there.
    pub fn serve(places: &Places, settings: &str) -> Result<Self> {
        let port = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
        let program = places.windlass.with_file_name("windlass-store");
        let (site, listen) = (places.path(SITE), format!("127.0.0.1:{port}"));
        let mut init = Command::new(&program);
        init.args(["init", "--site", "bench", "--listen", &listen]).arg(&site);
        ran(init)?;
        let config = site.join("windlass-store.toml");
        let path = places.path(OF_NODE);
        let text = settings.to_owned()
            + &fs::read_to_string(&config)?
            + &format!("[[repository]]\nname = \"main\"\npath = {path:?}\n");
        fs::write(&config, text)?;
        let mut serve = Command::new(&program);
        serve.arg("serve").arg("--config").arg(&config).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = serve.spawn().with_context(|| program.display().to_string())?;
        let mut line = String::new();
        let output = child.stdout.as_mut().context("its output")?;
        BufReader::new(output).read_line(&mut line)?;
        let node = Self { child, port };
        ensure!(line.contains("listening"), "the storage node does not answer");
        Ok(node)
    }

    /// Its port on the loopback address.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Gives out an identity, and gives the folder it is in.
    pub fn issue(&self, places: &Places, role: &str, name: &str) -> Result<PathBuf> {
        let (site, folder) = (places.path(SITE), places.path(name));
        let mut issue = Command::new(places.windlass.with_file_name("windlass-store"));
        issue.args(["issue", "--role", role, "--name", name, "--out"]).arg(&folder).arg(&site);
        ran(issue)?;
        Ok(folder)
    }

    /// Most memory that it had.
    pub fn peak_bytes(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
        Ok(peak.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    }

    /// User and system time that it took so far.
    pub fn cpu_s(&self) -> Result<f64> {
        cpu_s(self.child.id())
    }

    /// `windlass` on the node's repository.
    pub fn windlass(&self, places: &Places, arguments: &[&str]) -> Command {
        self.windlass_at(places, arguments, &format!("quic://127.0.0.1:{}/main", self.port))
    }

    /// The same under another address.
    pub fn windlass_at(&self, places: &Places, arguments: &[&str], address: &str) -> Command {
        let mut command = Command::new(&places.windlass);
        command.args(arguments).args(["-r", address, "--json"]).current_dir(&places.work);
        command.env("WINDLASS_IDENTITY", places.path(SITE).join("admin"));
        // Nobody reads this variable: what is named is brought into the page cache.
        command.env("WINDLASS_BENCH_NODE", places.path(OF_NODE));
        command
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The repository's folder.
pub const OF_NODE: &str = "windlass-node";
const SITE: &str = "site";
