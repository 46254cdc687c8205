//! Arguments of commands about proxies, their machines and their jobs.

use super::Place;
use crate::address::RepositoryAddress;
use crate::text::parsed;
use clap::{Args, Subcommand};
use mover::{Machine, Name};
use wire::NodeAddress;

/// Which node is asked.
#[derive(Debug, Clone, Args)]
pub struct AtNode {
    /// The node: quic://host[:port]
    #[arg(long, value_parser = parsed::<NodeAddress>, value_name = "ADDR")]
    pub node: Option<NodeAddress>,
    /// A repository on that node, instead of --node
    #[arg(short, long, value_name = "ADDR", env = "WINDLASS_REPOSITORY", required_unless_present = "node")]
    pub repository: Option<RepositoryAddress>,
}

/// Which proxy does it.
#[derive(Debug, Clone, Args)]
pub struct Through {
    /// Let this proxy do it; it must attend the repository's node
    #[arg(long, value_name = "NAME", value_parser = parsed::<Name>)]
    pub proxy: Option<Name>,
    /// Choose among proxies with this label only
    #[arg(long, value_name = "LABEL", value_parser = parsed::<Name>, conflicts_with = "proxy")]
    pub proxy_label: Option<Name>,
}

/// Show the proxies of a node, and what they offer
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  windlass proxy list --node quic://store1.example
  windlass proxy list --json -r quic://store1.example/main
  windlass proxy show host7 --node quic://store1.example")]
pub struct OfProxy {
    #[command(subcommand)]
    pub action: ProxyAction,
}

#[derive(Debug, Subcommand)]
pub enum ProxyAction {
    /// List the proxies that attend a node
    #[command(after_help = "\
Examples:
  windlass proxy list --node quic://store1.example
  windlass proxy list --json -r quic://store1.example/main
  WINDLASS_REPOSITORY=quic://store1.example/main windlass proxy list")]
    List {
        #[command(flatten)]
        at: AtNode,
    },
    /// Show a proxy, and the machines that it offers
    #[command(after_help = "\
Examples:
  windlass proxy show host7 --node quic://store1.example
  windlass proxy show host7 --json -r quic://store1.example/main
  WINDLASS_REPOSITORY=quic://store1.example/main windlass proxy show host7")]
    Show {
        /// Name of the proxy
        #[arg(value_parser = parsed::<Name>)]
        name: Name,
        #[command(flatten)]
        at: AtNode,
    },
}

/// Show, follow and cancel jobs of proxies
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  windlass job list --node quic://store1.example
  windlass job follow 3fa9 -r quic://store1.example/main
  windlass job cancel 3fa9 -r quic://store1.example/main")]
pub struct OfJob {
    #[command(subcommand)]
    pub action: JobAction,
}

#[derive(Debug, Subcommand)]
pub enum JobAction {
    /// List jobs that are under way, and those that ended in the last 24 hours
    #[command(after_help = "\
Examples:
  windlass job list --node quic://store1.example
  windlass job list --machine web -r quic://store1.example/main
  windlass job list --json -r quic://store1.example/main")]
    List {
        /// Only jobs of this machine
        #[arg(long, value_parser = parsed::<Name>, value_name = "NAME")]
        machine: Option<Name>,
        #[command(flatten)]
        at: AtNode,
    },
    /// Show a job
    #[command(after_help = "\
Examples:
  windlass job show 3fa9 --node quic://store1.example
  windlass job show 3fa9 --json -r quic://store1.example/main
  WINDLASS_REPOSITORY=quic://store1.example/main windlass job show 3fa9")]
    Show {
        #[command(flatten)]
        of: JobAt,
    },
    /// Show what happens to a job until it ends, as the command that began it does
    ///
    /// The job goes on when this command is interrupted.
    #[command(after_help = "\
Examples:
  windlass job follow 3fa9 --node quic://store1.example
  windlass job follow 3fa9 --json -r quic://store1.example/main
  WINDLASS_REPOSITORY=quic://store1.example/main windlass job follow 3fa9")]
    Follow {
        #[command(flatten)]
        of: JobAt,
    },
    /// End a job
    #[command(after_help = "\
Examples:
  windlass job cancel 3fa9 --node quic://store1.example
  windlass job cancel 3fa9 --json -r quic://store1.example/main
  WINDLASS_REPOSITORY=quic://store1.example/main windlass job cancel 3fa9")]
    Cancel {
        #[command(flatten)]
        of: JobAt,
    },
}

/// A job at a node.
#[derive(Debug, Clone, Args)]
pub struct JobAt {
    /// The job: the first digits of its id, at least 4 (`windlass job list` shows it)
    #[arg(value_name = "ID")]
    pub id: String,
    #[command(flatten)]
    pub at: AtNode,
}

/// Show machines that proxies offer, and move machines between owners
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  windlass machine list --node quic://store1.example
  windlass machine show web -r quic://store1.example/main
  windlass machine move host7/web --to-owner host8 -r quic://store1/main")]
pub struct OfMachine {
    #[command(subcommand)]
    pub action: MachineAction,
}

#[derive(Debug, Subcommand)]
pub enum MachineAction {
    /// List the machines that the proxies of a node offer
    #[command(after_help = "\
Examples:
  windlass machine list --node quic://store1.example
  windlass machine list --tag prod -r quic://store1.example/main
  windlass machine list --json -r quic://store1.example/main")]
    List {
        /// Only machines with this tag
        #[arg(long, value_parser = parsed::<Name>, value_name = "T")]
        tag: Option<Name>,
        #[command(flatten)]
        at: AtNode,
    },
    /// Show a machine: its disks, whether it runs, whether its guest agent answers, and what the next backup will do
    ///
    /// A proxy looks at the machine, and changes nothing. It does not read what bitmaps mark, so a backup may still find
    /// that a bitmap cannot be believed.
    #[command(after_help = "\
Examples:
  windlass machine show web -r quic://store1.example/main
  windlass machine show web --proxy host7 -r quic://store1.example/main
  windlass machine show web --json -r quic://store1.example/main")]
    Show {
        /// Name of the machine, or the hypervisor's id of it
        #[arg(value_parser = parsed::<Name>)]
        name: Name,
        #[command(flatten)]
        through: Through,
        #[command(flatten)]
        place: Place,
    },
    /// Give a machine to another owner, with its points
    ///
    /// The new owner sees and restores all its points. The next backup reads everything once, but stores nothing twice.
    #[command(after_help = "\
Examples:
  windlass machine move web --to-owner cluster1 -r quic://store1/main
  windlass machine move host7/web --to-owner host8 -r quic://store1/main
  windlass machine move host7/web --to-site -r /backup/main")]
    Move {
        /// The machine: NAME, or OWNER/NAME where several have that name
        #[arg(value_parser = parsed::<Machine>)]
        machine: Machine,
        /// The new owner: the name of a proxy, or the name that the proxy was given with --owner
        #[arg(long, value_parser = parsed::<Name>, value_name = "NAME", required_unless_present = "to_site")]
        to_owner: Option<Name>,
        /// Give it to the site: only administrators see it then
        #[arg(long, conflicts_with = "to_owner")]
        to_site: bool,
        #[command(flatten)]
        place: Place,
    },
}
