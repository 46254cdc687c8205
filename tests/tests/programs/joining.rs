//! Joining a site with the programs as they ship: tokens, nodes that are killed, certificates that renew themselves.

use rustix::process::Signal;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use windlass_tests::program::{Ended, beside, free_port, served};

/// A site in a folder; what is started in it is called by the folder that it was configured in.
struct Site {
    folder: tempfile::TempDir,
    port: u16,
}

impl Site {
    fn new() -> Self {
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
        let site = Self { folder, port };
        fs::write(site.path("disk.raw"), vec![7; 1 << 20]).unwrap();
        let (listen, place) = (format!("127.0.0.1:{port}"), site.path("site"));
        let init = ["init", "--site", "test", "--listen", &listen, place.to_str().unwrap()];
        assert!(Command::new(beside("windlass-store")).args(init).output().unwrap().status.success());
        site.configure("site", "");
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Adds to the configuration in a folder, and a repository.
    fn configure(&self, folder: &str, more: &str) {
        let repository = self.path(&format!("{folder}-repository"));
        let mut init = Command::new(beside("windlass"));
        init.args(["init", "-r"]).arg(&repository);
        // What is copied from one to the other is of one domain.
        if folder != "site" {
            init.arg("--like").arg(self.path("site-repository"));
        }
        let made = init.output().unwrap();
        assert!(made.status.success());
        let path = self.path(folder).join("windlass-store.toml");
        let config = fs::read_to_string(&path).unwrap_or_default();
        let config = format!("{config}{more}[[repository]]\nname = \"main\"\npath = {repository:?}\n");
        fs::write(path, config).unwrap();
    }

    /// Starts the node that a folder configures and waits until it answers.
    fn serve(&self, folder: &str) -> Ended {
        self.started("windlass-store", folder, "listening")
    }

    /// The same for any program that serves.
    fn started(&self, program: &str, folder: &str, says: &str) -> Ended {
        let config = self.path(folder).join(format!("{program}.toml"));
        served(program, &config, says, &self.path(&format!("{folder}.log")), &[])
    }

    /// Runs `windlass` as who has the identity in a folder; HERE and NODE are replaced.
    fn run_as(&self, identity: &str, arguments: &[&str], stdin: &str) -> Output {
        let (here, node) = (self.folder.path().to_str().unwrap(), format!("quic://127.0.0.1:{}", self.port));
        let arguments = arguments.iter().map(|it| it.replace("HERE", here).replace("NODE", &node));
        let mut command = Command::new(beside("windlass"));
        command.env("WINDLASS_IDENTITY", self.path(identity)).args(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Who does not read it closes it.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        child.wait_with_output().unwrap()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.run_as("site/admin", arguments, "")
    }
}

#[track_caller]
fn done(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn refused(output: &Output, code: i32, says: &str) {
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(code) && told.contains(says), "{:?}: {told}", output.status.code());
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn kill(node: &mut Ended) {
    rustix::process::kill_process(rustix::process::Pid::from_child(&node.0), Signal::KILL).unwrap();
    node.0.wait().unwrap();
}

const CREATE: &[&str] = &["token", "create", "--role", "proxy", "--name", "host7", "--node", "NODE"];

#[test]
fn a_token_joins_a_proxy_once_also_past_nodes_that_are_killed() {
    let site = Site::new();
    let mut node = site.serve("site");
    done(site.run(&[CREATE, &["--out", "HERE/host7.token"]].concat()));
    assert_eq!(mode(&site.path("host7.token")), 0o600);
    refused(&site.run(&[CREATE, &["--out", "HERE/host7.token"]].concat()), 2, "exists");
    // It was promised, so it is kept.
    kill(&mut node);
    node = site.serve("site");
    let join: &[&str] = &["token", "join", "--token-file", "HERE/host7.token", "--out"];
    // What must fail does so before the token is used.
    refused(&site.run(&[join, &["HERE/site/admin"]].concat()), 2, "already holds an identity");
    let told = done(site.run(&[join, &["HERE/host7"]].concat()));
    assert!(told.contains("proxy host7"), "{told}");
    assert_eq!((mode(&site.path("host7")), mode(&site.path("host7/identity.pem"))), (0o700, 0o600));
    done(site.run_as("host7", &["backup", "--machine", "web", "-r", "NODE/main", "HERE/disk.raw"], ""));
    assert!(done(site.run_as("host7", &["points", "-r", "NODE/main"], "")).contains("web"));
    refused(&site.run_as("host7", CREATE, ""), 12, "proxy host7 may not do this");
    for _ in 0..2 {
        refused(&site.run(&[join, &["HERE/again"]].concat()), 12, "it was used already, or it has expired");
        kill(&mut node);
        node = site.serve("site");
    }
    // Revoked, it is neither served nor renewed, and gets no other token.
    fs::write(site.path("site/deny"), "proxy host7\n").unwrap();
    let began = Instant::now();
    while site.run_as("host7", &["points", "-r", "NODE/main"], "").status.success() {
        assert!(began.elapsed() < Duration::from_secs(10), "the deny list is looked at");
    }
    refused(&site.run(CREATE), 12, "revoked");
}

#[test]
fn tokens_come_by_stdout_and_stdin_and_are_never_repeated() {
    let site = Site::new();
    let _node = site.serve("site");
    let create =
        ["--json", "token", "create", "--role", "admin", "--name", "anna", "--valid", "10m", "-r", "NODE/main"];
    let made: serde_json::Value = serde_json::from_str(&done(site.run(&create))).unwrap();
    assert_eq!((made["role"].as_str(), made["name"].as_str()), (Some("admin"), Some("anna")));
    let token = made["token"].as_str().unwrap();
    let joined = done(site.run_as("anna", &["--json", "token", "join"], &format!("{token}\n")));
    let joined: serde_json::Value = serde_json::from_str(&joined).unwrap();
    assert_eq!(joined["identity"].as_str(), site.path("anna").to_str());
    done(site.run_as("anna", &["stats", "-r", "NODE/main"], ""));
    let cut = &token[..token.len() - 30];
    for garbage in ["", "garbage", cut, &token.replace("token-1", "token-2"), &"a".repeat(5000)] {
        let output = site.run_as("nobody", &["token", "join"], garbage);
        refused(&output, 2, "not a join token");
        assert!(!String::from_utf8_lossy(&output.stderr).contains(&token[20..60]));
    }
    let expired = ["token", "create", "--role", "admin", "--name", "eve", "--valid", "1s", "--node", "NODE"];
    let token = done(site.run(&expired));
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(1100) {
        std::thread::yield_now();
    }
    refused(&site.run_as("eve", &["token", "join"], &token), 12, "has expired");
    assert!(!site.path("eve/identity.pem").exists());
}

/// A second node, a proxy that attends and one that is only used, whose certificates live for ten seconds, work for longer
/// than that, and connect anew.
#[test]
fn certificates_renew_themselves() {
    let site = Site::new();
    let config = site.path("site/windlass-store.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replacen("listen", "certificate_seconds = 10\nlisten", 1)).unwrap();
    let mut first = site.serve("site");
    let create = ["token", "create", "--node", "NODE", "--role"];
    let token = done(site.run(&[&create[..], &["node", "--name", "second", "--host", "127.0.0.1"]].concat()));
    done(site.run_as("second/node", &["token", "join"], &token));
    let token = done(site.run(&[&create[..], &["proxy", "--name", "host7"]].concat()));
    done(site.run_as("host7", &["token", "join"], &token));
    let port = free_port();
    site.configure("second", &format!("listen = \"127.0.0.1:{port}\"\nidentity = \"node\"\n"));
    let _second = site.serve("second");
    let second = format!("quic://127.0.0.1:{port}/main");
    let token = done(site.run(&[&create[..], &["proxy", "--name", "host8"]].concat()));
    done(site.run_as("proxy/host8", &["token", "join"], &token));
    let machine = "[[machine]]\nname = \"web\"\n[[machine.disk]]\nname = \"vda\"\nsource = \"../disk.raw\"\n";
    let attends = format!("identity = \"host8\"\nnodes = [\"quic://127.0.0.1:{}\"]\n{machine}", site.port);
    fs::write(site.path("proxy/windlass-proxy.toml"), attends).unwrap();
    let _proxy = site.started("windlass-proxy", "proxy", "attending");

    let files = ["second/node", "host7", "proxy/host8"].map(|folder| site.path(folder).join("identity.pem"));
    let mut seen: [Vec<Vec<u8>>; 3] = files.each_ref().map(|file| vec![fs::read(file).unwrap()]);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(13) || seen.iter().any(|seen| seen.len() < 3) {
        assert!(began.elapsed() < Duration::from_secs(60), "{}", fs::read_to_string(site.path("second.log")).unwrap());
        done(site.run_as("host7", &["points", "-r", &second], ""));
        for (file, seen) in files.iter().zip(&mut seen) {
            let now = fs::read(file).unwrap();
            assert_eq!(mode(file), 0o600);
            if seen.last() != Some(&now) {
                seen.push(now);
            }
        }
    }
    // Whoever was connected shows now what it renewed.
    kill(&mut first);
    let _first = site.serve("site");
    done(site.run(&["backup", "--machine", "web", "--proxy", "host8", "-r", "NODE/main"]));
    done(site.run(&["copy", "--all", "-r", "NODE/main", "--to", &second]));
    assert!(done(site.run(&["points", "-r", &second])).contains("web"));
}
