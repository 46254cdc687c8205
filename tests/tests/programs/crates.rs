//! What each crate and program is built with: a crate that is not needed costs everybody who builds, and is one more that
//! may be attacked.

use std::path::Path;
use std::process::Command;

/// Names of the crates that `package` is built with, on this kind of machine.
fn built_with(package: &str) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let tree = Command::new(cargo)
        .args(["tree", "--locked", "--offline", "-e", "normal", "--prefix", "none", "-p", package])
        .current_dir(root)
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let names = String::from_utf8(tree.stdout).unwrap();
    names.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn crates_know_only_what_they_are_for() {
    let network = ["quinn", "quinn-proto", "quinn-udp", "rustls", "rustls-webpki", "rcgen", "aws-lc-rs", "socket2"];
    // tokio needs it for its own sockets.
    let network_but_sockets = &network[..7];
    for (package, others) in [
        ("windlass-chunker", &[&network[..], &["tokio", "serde", "rocksdb"]].concat()[..]),
        ("windlass-mover", &[network_but_sockets, &["rocksdb", "clap"]].concat()),
        ("windlass-wire", &["rocksdb", "clap"]),
        ("windlass-store", &[network_but_sockets, &["clap", "windlass-wire", "windlass-proxy"]].concat()),
        ("windlass-proxy", &[network_but_sockets, &["clap", "rocksdb", "windlass-wire", "windlass-store"]].concat()),
        ("windlass-proxy-daemon", &["rocksdb", "windlass-store", "windlass-bench"]),
        ("windlass-node", &["windlass-proxy", "windlass-bench"]),
        ("windlass-tools", &["windlass-bench"]),
    ] {
        let built = built_with(package);
        assert!(built.iter().any(|name| name == "blake3"), "{package}: {built:?}");
        let wrong: Vec<&&str> = others.iter().filter(|name| built.iter().any(|built| built == *name)).collect();
        assert!(wrong.is_empty(), "{package} is built with {wrong:?}");
    }
}
