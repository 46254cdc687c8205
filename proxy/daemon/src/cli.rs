//! The arguments of `windlass-proxy`.

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Proxy: backs up machines on the host of their disks, when an administrator asks a storage node for it.
#[derive(Debug, Parser)]
#[command(
    name = "windlass-proxy",
    version,
    max_term_width = 110,
    after_help = "\
Examples:
  windlass token join --token-file host7.token --out /etc/windlass/host7
  windlass-proxy serve --config /etc/windlass/windlass-proxy.toml
  windlass backup --machine web --proxy host7 -r quic://store1.example/main     (anywhere)"
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Serve(Serve),
    Doctor(Doctor),
}

/// Check what backups of the configuration's running machines will meet
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  windlass-proxy doctor
  windlass-proxy doctor --config ./lab/windlass-proxy.toml
  windlass-proxy doctor --undo")]
pub struct Doctor {
    /// Configuration file
    #[arg(long, value_name = "FILE", default_value = "/etc/windlass/windlass-proxy.toml")]
    pub config: PathBuf,
    /// Take out of the machines' QEMUs what killed backups left there
    #[arg(long)]
    pub undo: bool,
}

/// Attend storage nodes, and carry out their jobs, until SIGTERM
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  windlass-proxy serve --config /etc/windlass/windlass-proxy.toml
  WINDLASS_LOG=debug windlass-proxy serve --config ./lab/windlass-proxy.toml
  systemctl start windlass-proxy

Configuration:
  identity = \"host7\"                            # folder that `windlass token join` created
  nodes = [\"quic://store1.example\"]             # quic://host[:port][?congestion=bbr]
  jobs = 2                                      # at the same time; others wait
  image_roots = [\"/templates\"]                # more folders in which backing files may lie
  scratch = \"/var/tmp\"                         # for what running machines overwrite meanwhile

  labels = [\"ssd\"]                              # for `windlass backup --proxy-label`

  [[discover]]                                  # machines that run are found by their QMP sockets
  qmp = \"/run/qemu/*.qmp\"
  exclude = [\"test-*\"]

  [[discover]]                                  # others by their images, a folder for each
  images = \"/images/*/*.qcow2\"

  [[machine]]
  name = \"web\"                                 # it runs: all its disks are backed up
  source = \"qmp+unix:///run/web.qmp\"

  [[machine]]
  name = \"old\"                                 # it is shut down: these disks are
  [[machine.disk]]
  name = \"vda\"
  source = \"/images/old.qcow2\"                  # as SOURCE of `windlass backup`")]
pub struct Serve {
    /// Configuration file
    #[arg(long, value_name = "FILE", default_value = "/etc/windlass/windlass-proxy.toml")]
    pub config: PathBuf,
}
