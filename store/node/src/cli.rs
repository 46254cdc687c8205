//! The arguments of `windlass-store`.

use clap::{Args, Parser, Subcommand};
use mover::{Name, Role};
use std::path::PathBuf;

/// Storage node: serves repositories to proxies, administrators and other nodes.
#[derive(Debug, Parser)]
#[command(
    name = "windlass-store",
    version,
    max_term_width = 110,
    after_help = "\
Examples:
  windlass-store init --site home --host store1.example /etc/windlass
  windlass-store issue --role proxy --name host7 --out ./host7 /etc/windlass
  windlass-store serve --config /etc/windlass/windlass-store.toml"
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Init(Init),
    Issue(Issue),
    Serve(Serve),
}

/// Create a site: its certificate authority, and the identities of this node and of an administrator
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  windlass-store init --site home /etc/windlass
  windlass-store init --site home --host store1.example --host 192.0.2.7 /etc/windlass
  windlass-store init --site lab --listen 127.0.0.1:7440 ./lab")]
pub struct Init {
    /// Name of the site
    #[arg(long, value_name = "NAME")]
    pub site: Name,
    /// Name or address under which this node is reached, besides localhost
    #[arg(long, value_name = "HOST")]
    pub host: Vec<String>,
    /// Address and UDP port for the configuration that is written
    #[arg(long, value_name = "ADDR:PORT", default_value = "[::]:7440")]
    pub listen: String,
    /// Print nothing on success
    #[arg(long, short)]
    pub quiet: bool,
    /// Folder for certificates and configuration; created if it does not exist
    pub folder: PathBuf,
}

/// Create an identity without a network: a folder to copy to its holder, and to nobody else
///
/// With a network, `windlass token create` is better: then the key never leaves the machine that uses it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  windlass-store issue --role proxy --name host7 --out ./host7 /etc/windlass
  windlass-store issue --role admin --name anna --days 30 --out ./anna /etc/windlass
  windlass-store issue --role node --name store2 --host store2.example --out ./store2 /etc/windlass")]
pub struct Issue {
    /// Role: node, proxy or admin
    #[arg(long)]
    pub role: Role,
    /// Name of the holder
    #[arg(long)]
    pub name: Name,
    /// For a proxy: the owner of the machines that it backs up and sees; its own name by default
    #[arg(long, value_name = "NAME")]
    pub owner: Option<Name>,
    /// For a node: name or address under which it is reached
    #[arg(long, value_name = "HOST")]
    pub host: Vec<String>,
    /// How long the certificate is valid
    #[arg(long, value_name = "DAYS", default_value_t = 90)]
    pub days: u32,
    /// New folder for the identity
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Print nothing on success
    #[arg(long, short)]
    pub quiet: bool,
    /// Folder of the site, which `windlass-store init` created
    pub folder: PathBuf,
}

/// Serve repositories until SIGTERM
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  windlass-store serve --config /etc/windlass/windlass-store.toml
  WINDLASS_LOG=debug windlass-store serve --config ./lab/windlass-store.toml
  systemctl start windlass-store")]
pub struct Serve {
    /// Configuration file
    #[arg(long, value_name = "FILE", default_value = "/etc/windlass/windlass-store.toml")]
    pub config: PathBuf,
}
