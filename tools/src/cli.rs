//! The arguments of `windlass`; `site` has those of commands about proxies, their machines and their jobs.

mod site;

use crate::address::{Attach, Attachment, RepositoryAddress};
use crate::output::Style;
use crate::text::SetTime;
use crate::text::{parse_compression, parsed, parsed_duration, parsed_wait};
use chunker::Compression;
use clap::{Args, Parser, Subcommand, ValueEnum};
use mover::{JobKind, Keep, Machine, Name, Role, Selector, Wait, parse_bytes};
use proxy::{BackupAddress, NamedSource, QmpAddress, SourceAddress};
use std::path::PathBuf;
use std::time::Duration;
use wire::NodeAddress;

pub use site::{AtNode, JobAction, MachineAction, OfJob, OfMachine, OfProxy, ProxyAction, Through};

/// Backs up disks of virtual machines into deduplicating repositories, and gives them back.
#[derive(Debug, Parser)]
#[command(
    name = "windlass",
    version,
    max_term_width = 110,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "\
Examples:
  windlass init -r /backup/main
  windlass backup --machine web /images/web.qcow2 -r /backup/main
  windlass restore web@latest --to /images/web-restored.qcow2 -r /backup/main"
)]
pub struct Cli {
    #[command(flatten)]
    pub style: Style,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Init(Init),
    Backup(Box<Backup>),
    Points(Points),
    Show(Show),
    Diff(Diff),
    Restore(Restore),
    Copy(Copy),
    Verify(Verify),
    Forget(Forget),
    Unforget(Unforget),
    Pin(Pin),
    Unpin(Unpin),
    Annotate(Annotate),
    Sweep(Sweep),
    Machine(OfMachine),
    Proxy(OfProxy),
    Job(OfJob),
    Tracking(Tracking),
    Stats(Stats),
    RebuildIndex(RebuildIndex),
    Doctor(Doctor),
    Token(Token),
    Completion(Completion),
    Man(Man),
}

impl Command {
    /// What it runs with JSON lines for events, where it is such a job. Others print one document.
    pub const fn job(&self) -> Option<JobKind> {
        match self {
            Self::Backup(_) => Some(JobKind::Backup),
            Self::Restore(_) => Some(JobKind::Restore),
            Self::Copy(_) => Some(JobKind::Copy),
            Self::Verify(_) => Some(JobKind::Verify),
            Self::Sweep(_) => Some(JobKind::Sweep),
            Self::Job(OfJob { action: JobAction::Follow { .. } }) => Some(JobKind::Backup),
            _ => None,
        }
    }
}

/// Where the repository is, and how patient to be.
#[derive(Debug, Clone, Args)]
pub struct Place {
    /// Repository: /path, file:///path, or quic://host[:port]/name on a storage node
    #[arg(short, long, value_name = "ADDR", env = "WINDLASS_REPOSITORY")]
    pub repository: RepositoryAddress,
    #[command(flatten)]
    pub patience: Patience,
}

#[derive(Debug, Clone, Args)]
pub struct Patience {
    /// Wait while something is busy: without a limit, or at most this long (30s, 5m, 1h)
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, default_missing_value = "forever", value_parser = parsed_wait)]
    pub wait: Option<Wait>,
}

impl Patience {
    pub fn wait(&self) -> Wait {
        self.wait.unwrap_or_default()
    }
}

/// Create a repository
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  windlass init -r /backup/main
  windlass init -r /mnt/usb/second --like /backup/main
  WINDLASS_REPOSITORY=/backup/main windlass init --json")]
pub struct Init {
    #[command(flatten)]
    pub place: Place,
    /// Use the dedup domain of this repository, so that points can be copied between the two
    #[arg(long, value_name = "ADDR2")]
    pub like: Option<RepositoryAddress>,
}

/// Back up a machine's disks as one recovery point
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  windlass backup --machine web /images/web.qcow2 -r /backup/main
  windlass backup --machine web qmp+unix:///run/web.qmp -r /backup/main
  windlass backup --machine db --disk a=/images/db.qcow2 --disk b=nbd://host/b -r /backup
  windlass backup --machine web --tag before-upgrade -r quic://store1/main
  windlass backup --machine web --proxy host7 --json -r quic://store1/main")]
pub struct Backup {
    /// The machine's name; without a source, the name or the hypervisor's id of a machine that proxies offer
    #[arg(long, value_parser = parsed::<Name>, value_name = "NAME")]
    pub machine: Name,
    /// A disk and where to read it: PATH (raw or qcow2), nbd://host/export, nbd+unix:///export?socket=PATH
    #[arg(long, value_parser = parsed::<NamedSource>, value_name = "NAME=SOURCE")]
    pub disk: Vec<NamedSource>,
    /// A machine that runs, with all its disks: qmp+unix:///PATH of its QMP socket, perhaps with ?agent=PATH of the guest
    /// agent's socket; or the only disk, which is called disk0. Without a source, a proxy makes the backup that offers the
    /// machine to the repository's node
    #[arg(value_name = "SOURCE", conflicts_with = "disk", value_parser = parsed::<BackupAddress>)]
    pub source: Option<BackupAddress>,
    /// Allow backing and data files of an image in this folder too; an image's own folder is always allowed
    #[arg(long, value_name = "DIR")]
    pub image_root: Vec<PathBuf>,
    #[command(flatten)]
    pub place: Place,
    /// How to find what changed since the last point
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    pub change_tracking: Wish,
    /// Whether to freeze the file systems of a running machine, through its guest agent
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    pub quiesce: Quiesce,
    /// Folder on a local disk for what a running machine overwrites while it is read [default: TMPDIR, or /var/tmp]
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,
    /// Command for sh on this host, run before the disks are opened; WINDLASS_PHASE is set
    #[arg(long, value_name = "CMD")]
    pub pre_freeze: Option<String>,
    /// Command for sh on this host, run when the disks are open, and after every failure; WINDLASS_PHASE and
    /// WINDLASS_STATUS are set
    #[arg(long, value_name = "CMD")]
    pub post_thaw: Option<String>,
    /// Time limit for each of the two commands, and for opening the disks between them
    #[arg(long, value_name = "DURATION", value_parser = parsed_duration, default_value = "5m")]
    pub hook_timeout: Duration,
    /// Tag for the point
    #[arg(long, value_name = "T")]
    pub tag: Vec<String>,
    /// none, zstd or zstd:LEVEL (1 to 22)
    #[arg(long, value_parser = parse_compression, default_value = "zstd", value_name = "HOW")]
    pub compression: Compression,
    /// Read at most this many bytes in a second: 20MiB
    #[arg(long, value_parser = parse_bytes, value_name = "BYTES")]
    pub rate: Option<u64>,
    /// Small file of the machine to store with the point; KIND is a word such as domain, nvram or tpm
    #[arg(long, value_name = "KIND=FILE")]
    pub attach: Vec<Attach>,
    /// Let the repository check what arrives by checksum only, without decoding it again
    #[arg(long)]
    pub no_extra_verify: bool,
    /// Audit: read and compare this share of each disk although a bitmap calls it unchanged, another share in each
    /// increment; 0: no audit [default: 1 % of what is unchanged, at most 1 GiB and 2 % of the time]
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=100), value_name = "PERCENT")]
    pub audit: Option<u8>,
    /// Accept a disk that is smaller than in the last point
    #[arg(long)]
    pub allow_shrink: bool,
    /// Accept a disk that has another format than in the last point
    #[arg(long)]
    pub allow_format_change: bool,
    #[command(flatten)]
    pub through: Through,
}

impl Backup {
    /// Whether a proxy makes the backup.
    pub const fn is_through_proxy(&self) -> bool {
        self.source.is_none() && self.disk.is_empty()
    }
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum Wish {
    /// The fastest way that is proven to be right
    #[default]
    Auto,
    /// Use a proven bitmap, or fail with exit code 17
    Bitmap,
    /// Read and compare what is allocated; writes nothing into the image
    Fingerprint,
    /// Read everything, and compare with nothing
    Full,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Quiesce {
    /// Freeze them where that is possible
    #[default]
    Auto,
    /// Freeze them, or fail with exit code 16
    Require,
    /// Do not freeze them
    Off,
}

/// List recovery points
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  windlass points -r /backup/main
  windlass points --machine web --tag before-upgrade -r /backup/main
  windlass points --suspect-times -r /backup/main")]
pub struct Points {
    /// Only points of this machine
    #[arg(long, value_parser = parsed::<Machine>, value_name = "NAME")]
    pub machine: Option<Machine>,
    /// Only points with this tag; if several are given, with all of them
    #[arg(long, value_name = "T")]
    pub tag: Vec<String>,
    /// Only points whose time cannot be right: it is in the future, or contradicts the order in which points were made
    #[arg(long)]
    pub suspect_times: bool,
    /// Points that are forgotten but not yet swept
    #[arg(long)]
    pub forgotten: bool,
    #[command(flatten)]
    pub place: Place,
}

/// Show a recovery point (disks, sizes, consistency, change tracking and its reason), or the commit log
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  windlass show web@latest -r /backup/main
  windlass show web@2026-01-02T03:04:05Z --json -r /backup/main
  windlass show --log --after 1200 -r quic://store1.example/main")]
pub struct Show {
    /// MACHINE@latest, MACHINE@latest~2, MACHINE@TIME, or the first digits of an id
    #[arg(value_parser = parsed::<Selector>, required_unless_present = "log")]
    pub point: Option<Selector>,
    /// Show the commit log: everything that happened in the repository, as far back as the log goes
    #[arg(long, conflicts_with = "point")]
    pub log: bool,
    /// Only records after this number
    #[arg(long, value_name = "NUMBER", requires = "log", default_value_t = 0)]
    pub after: u64,
    #[command(flatten)]
    pub place: Place,
}

/// List the extents that differ between two recovery points
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  windlass diff web@latest~1 web@latest -r /backup/main
  windlass diff 3fa9c1d2 77b0e4aa --json -r /backup/main
  windlass diff web@2026-01-01T00:00:00Z web@latest -r /backup/main")]
pub struct Diff {
    /// The older point
    #[arg(value_parser = parsed::<Selector>)]
    pub from: Selector,
    /// The newer point
    #[arg(value_parser = parsed::<Selector>)]
    pub to: Selector,
    #[command(flatten)]
    pub place: Place,
}

/// Restore a disk of a recovery point to a file, device or NBD server, or restore an attached file
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  windlass restore web@latest --to /images/web.qcow2 -r /backup/main
  windlass restore db@latest~1 --disk b --to /dev/vg0/b --overwrite -r /backup/main
  windlass restore web@latest --machine --to /images/web-restored -r /backup/main
  windlass restore web@latest --attachment domain --to - --copy /mnt/usb/second")]
pub struct Restore {
    /// MACHINE@latest, MACHINE@latest~2, MACHINE@TIME, or the first digits of an id
    #[arg(value_parser = parsed::<Selector>)]
    pub point: Selector,
    /// The disk; needed if the point has several
    #[arg(long, value_parser = parsed::<Name>, value_name = "NAME")]
    pub disk: Option<Name>,
    /// Restore an attached file instead of a disk: its kind, and its name if there are several (`show` lists them)
    #[arg(long, value_parser = parsed::<Attachment>, value_name = "KIND[/NAME]", conflicts_with_all = ["disk", "delta", "overwrite"])]
    pub attachment: Option<Attachment>,
    /// Restore the whole machine into a folder: its disks, what is attached to it, and a script that starts it
    ///
    /// Disks become NAME.raw. The script `start` is made from the command line of the QEMU that ran the machine: it uses the
    /// restored disks, and has its own sockets. The machine gets a new UUID and new network addresses, so that it can run
    /// beside the old one. Read the script before you run it.
    #[arg(long, conflicts_with_all = ["disk", "attachment"])]
    pub machine: bool,
    /// With --machine: keep UUID and network addresses, because the restored machine takes the place of the old one
    #[arg(long, requires = "machine")]
    pub same_identity: bool,
    /// PATH.raw, PATH.qcow2, PATH?format=raw|qcow2, a block device, an NBD URI, or - for stdout (a raw disk); with
    /// --machine a folder
    #[arg(long, value_name = "TARGET", allow_hyphen_values = true)]
    pub to: String,
    /// Repository: /path, file:///path, or quic://host[:port]/name on a storage node
    #[arg(short, long, value_name = "ADDR", env = "WINDLASS_REPOSITORY", required_unless_present = "copy")]
    pub repository: Option<RepositoryAddress>,
    #[command(flatten)]
    pub patience: Patience,
    /// Another copy, used for what the first cannot serve
    #[arg(long, value_name = "ADDR2")]
    pub also_from: Vec<RepositoryAddress>,
    /// Read only this copy; --repository is not needed then
    #[arg(long, value_name = "ADDR", conflicts_with = "also_from")]
    pub copy: Option<RepositoryAddress>,
    /// TARGET holds an older state: write only what differs
    ///
    /// TARGET must exist, and be at least as large as the disk. It is read, compared by fingerprint and updated in
    /// place. What it holds behind the end of the disk stays. --overwrite is not needed, and has no effect. An update
    /// that is interrupted leaves parts of both states; run the same command again to finish it.
    #[arg(long)]
    pub delta: bool,
    /// Overwrite a target that exists; without --delta, nothing of an old file stays
    #[arg(long)]
    pub overwrite: bool,
}

/// Copy recovery points to another repository; only chunks that are missing there are moved
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  windlass copy web@latest -r /backup/main --to /mnt/usb/second
  windlass copy --all -r quic://store1/main --to quic://store2/main
  windlass copy --all --trust-source -r /backup/main --to /mnt/usb/second")]
pub struct Copy {
    /// Points to copy
    #[arg(value_parser = parsed::<Selector>, required_unless_present_any = ["machine", "all"])]
    pub point: Vec<Selector>,
    /// All points of this machine
    #[arg(long, value_parser = parsed::<Machine>, value_name = "NAME", conflicts_with = "point")]
    pub machine: Option<Machine>,
    /// All points
    #[arg(long, conflicts_with_all = ["point", "machine"])]
    pub all: bool,
    #[command(flatten)]
    pub place: Place,
    /// The repository to copy to, made with `init --like`
    #[arg(long, value_name = "ADDR")]
    pub to: RepositoryAddress,
    /// Check what arrives by checksum only, because the source is known to be sound
    #[arg(long)]
    pub trust_source: bool,
    /// Between two nodes: move the data through this machine, because the nodes cannot reach each other
    #[arg(long)]
    pub through_here: bool,
}

/// Verify a repository or some of its points
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  windlass verify -r quic://store1.example/main
  windlass verify web@latest --read-data --json -r /backup/main
  windlass verify --decode --outdated-after 7d --rate 100MiB -r /backup/main
  windlass verify --repair --also-from quic://store2.example/main -r /backup/main")]
pub struct Verify {
    /// Only these points
    #[arg(value_parser = parsed::<Selector>)]
    pub point: Vec<Selector>,
    /// Also compare stored bytes with the packs' own hashes: of all packs, or of this share of them, those that were
    /// read longest ago; 0: structure only
    #[arg(long, value_name = "PERCENT", num_args = 0..=1, require_equals = true, default_missing_value = "100",
          value_parser = clap::value_parser!(u8).range(0..=100))]
    pub read_data: Option<u8>,
    /// Also decode and fingerprint every chunk
    #[arg(long, conflicts_with = "read_data")]
    pub decode: bool,
    /// Do not read packs again that were found sound within this time, for example after an interruption
    #[arg(long, value_name = "DURATION", value_parser = parsed_duration)]
    pub outdated_after: Option<Duration>,
    /// Read at most this many bytes in a second: 20MiB
    #[arg(long, value_parser = parse_bytes, value_name = "BYTES")]
    pub rate: Option<u64>,
    /// Replace what is damaged. All stored bytes are read to find it, unless --decode or --read-data is given;
    /// --read-data=0 replaces only what is known to be damaged
    #[arg(long, requires = "also_from")]
    pub repair: bool,
    /// The repository to repair from
    #[arg(long, value_name = "ADDR2", requires = "repair")]
    pub also_from: Option<RepositoryAddress>,
    #[command(flatten)]
    pub place: Place,
}

/// Forget recovery points, by name or by rules; a sweep makes it final
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  windlass forget web@latest~3 -r /backup/main
  windlass forget --keep-daily 7 --keep-weekly 4 --keep-monthly 12 --dry-run -r /backup/main
  windlass forget --machine web --keep-last 3 -r quic://store1.example/main")]
#[command(group(clap::ArgGroup::new("keep").multiple(true)))]
pub struct Forget {
    /// Points to forget; the other points of their groups are forgotten too
    #[arg(value_parser = parsed::<Selector>, required_unless_present = "keep", conflicts_with = "keep")]
    pub point: Vec<Selector>,
    /// Keep the newest N points of each machine
    #[arg(long, value_name = "N", group = "keep", value_parser = clap::value_parser!(u32).range(1..))]
    pub keep_last: Option<u32>,
    /// Keep the newest point of each of the last N hours (UTC) that have one
    #[arg(long, value_name = "N", group = "keep", value_parser = clap::value_parser!(u32).range(1..))]
    pub keep_hourly: Option<u32>,
    /// Keep the newest point of each of the last N days (UTC) that have one
    #[arg(long, value_name = "N", group = "keep", value_parser = clap::value_parser!(u32).range(1..))]
    pub keep_daily: Option<u32>,
    /// Keep the newest point of each of the last N weeks (UTC, from Monday) that have one
    #[arg(long, value_name = "N", group = "keep", value_parser = clap::value_parser!(u32).range(1..))]
    pub keep_weekly: Option<u32>,
    /// Keep the newest point of each of the last N months (UTC) that have one
    #[arg(long, value_name = "N", group = "keep", value_parser = clap::value_parser!(u32).range(1..))]
    pub keep_monthly: Option<u32>,
    /// Keep the newest point of each of the last N years (UTC) that have one
    #[arg(long, value_name = "N", group = "keep", value_parser = clap::value_parser!(u32).range(1..))]
    pub keep_yearly: Option<u32>,
    /// Apply the rules to this machine only
    #[arg(long, value_parser = parsed::<Machine>, value_name = "NAME", conflicts_with = "point")]
    pub machine: Option<Machine>,
    /// Only show what would be forgotten, and which rules keep the other points
    #[arg(long)]
    pub dry_run: bool,
    /// Apply the rules although the times in the repository make the clock doubtful
    #[arg(long, requires = "keep")]
    pub clock_is_right: bool,
    #[command(flatten)]
    pub place: Place,
}

impl Forget {
    /// The rules, where there are any.
    pub fn keep(&self) -> Option<Keep> {
        let of = |count: Option<u32>| count.unwrap_or(0);
        let keep = Keep {
            last: of(self.keep_last),
            hourly: of(self.keep_hourly),
            daily: of(self.keep_daily),
            weekly: of(self.keep_weekly),
            monthly: of(self.keep_monthly),
            yearly: of(self.keep_yearly),
        };
        (!keep.is_empty()).then_some(keep)
    }
}

/// Points that are named.
#[derive(Debug, Args)]
pub struct ChangePoints {
    /// The points
    #[arg(value_parser = parsed::<Selector>, required = true)]
    pub point: Vec<Selector>,
    #[command(flatten)]
    pub place: Place,
}

/// Change the tags of points, or correct a time that a wrong clock gave them; the commit log keeps every change
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  windlass annotate web@latest --tag before-upgrade --remove-tag test -r /backup/main
  windlass annotate 3fa9c1d2 --time '2026-11-28 14:22:15 +01:00' -r /backup/main
  windlass annotate 3fa9c1d2 --time original -r quic://store1/main")]
#[command(group(clap::ArgGroup::new("change").multiple(true).required(true)))]
pub struct Annotate {
    /// The points
    #[arg(value_parser = parsed::<Selector>, required = true)]
    pub point: Vec<Selector>,
    /// Add this tag
    #[arg(long, value_name = "T", group = "change")]
    pub tag: Vec<String>,
    /// Remove this tag
    #[arg(long, value_name = "T", group = "change")]
    pub remove_tag: Vec<String>,
    /// Set the time that rules and selectors use; `original`: the time of the clock when the point was made
    #[arg(long, value_name = "TIME", group = "change", value_parser = parsed::<SetTime>)]
    pub time: Option<SetTime>,
    #[command(flatten)]
    pub place: Place,
}

/// Bring back forgotten points, as long as no sweep has made them final
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  windlass points --forgotten -r /backup/main
  windlass unforget 3fa9 -r /backup/main
  windlass unforget web@latest --json -r /backup/main")]
pub struct Unforget {
    #[command(flatten)]
    pub of: ChangePoints,
}

/// Protect points: neither rules nor commands can forget them
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  windlass pin web@latest -r /backup/main
  windlass pin web@2026-01-02T03:04:05Z db@latest -r /backup/main
  windlass pin 3fa9 --json -r quic://store1.example/main")]
pub struct Pin {
    #[command(flatten)]
    pub of: ChangePoints,
}

/// Allow pinned points to be forgotten again
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  windlass unpin web@latest -r /backup/main
  windlass unpin 3fa9 77c1 -r /backup/main
  windlass unpin 3fa9 --json -r quic://store1.example/main")]
pub struct Unpin {
    #[command(flatten)]
    pub of: ChangePoints,
}

/// Reclaim the space that only forgotten points used
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  windlass sweep --dry-run -r /backup/main
  windlass sweep --rate 50MiB -r quic://store1.example/main
  windlass sweep --repack-from 20 --json -r /backup/main")]
pub struct Sweep {
    /// Only show what would be reclaimed; forgotten points can still be brought back
    #[arg(long)]
    pub dry_run: bool,
    /// Repack packs of which at least this share is dead
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub repack_from: u8,
    /// Read at most this many bytes in a second while repacking: 20MiB
    #[arg(long, value_parser = parse_bytes, value_name = "BYTES")]
    pub rate: Option<u64>,
    /// End sessions of other processes that are older than this; jobs that still run in them fail
    #[arg(long, value_name = "DURATION", value_parser = parsed_duration)]
    pub fence_older: Option<Duration>,
    #[command(flatten)]
    pub place: Place,
}

/// List or remove the bitmaps that Windlass keeps in an image
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  windlass tracking list /images/web.qcow2
  windlass tracking list /images/web.qcow2 --json
  windlass tracking remove /images/web.qcow2")]
pub struct Tracking {
    #[command(subcommand)]
    pub action: TrackingAction,
}

#[derive(Debug, Subcommand)]
pub enum TrackingAction {
    /// List the bitmaps
    #[command(after_help = "\
Examples:
  windlass tracking list /images/web.qcow2
  windlass tracking list /images/web.qcow2 --json
  for image in /images/*.qcow2; do windlass tracking list $image; done")]
    List {
        /// A qcow2 image
        #[arg(value_parser = parsed::<SourceAddress>)]
        source: SourceAddress,
        /// Allow backing and data files in this folder too; the image's own folder is always allowed
        #[arg(long, value_name = "DIR")]
        image_root: Vec<PathBuf>,
        #[command(flatten)]
        patience: Patience,
    },
    /// Remove the bitmaps; the next backup reads everything once
    #[command(after_help = "\
Examples:
  windlass tracking remove /images/web.qcow2
  windlass tracking remove /images/web.qcow2 --wait=1m
  windlass tracking remove /images/web.qcow2 --json")]
    Remove {
        /// A qcow2 image that no machine uses
        #[arg(value_parser = parsed::<SourceAddress>)]
        source: SourceAddress,
        /// Allow backing and data files in this folder too; the image's own folder is always allowed
        #[arg(long, value_name = "DIR")]
        image_root: Vec<PathBuf>,
        #[command(flatten)]
        patience: Patience,
    },
}

/// Show totals of a repository
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  windlass stats -r /backup/main
  windlass stats --json -r /backup/main
  WINDLASS_REPOSITORY=/backup/main windlass stats")]
pub struct Stats {
    #[command(flatten)]
    pub place: Place,
}

/// Rebuild the index from the log and the packs
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  windlass rebuild-index -r /backup/main
  windlass rebuild-index --wait=5m -r /backup/main
  windlass rebuild-index -r quic://store1.example/main
  windlass rebuild-index --json -r /backup/main")]
pub struct RebuildIndex {
    #[command(flatten)]
    pub place: Place,
}

/// Check what is installed, and whether a repository can be used
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  windlass doctor
  windlass doctor -r quic://store1.example/main
  windlass doctor qmp+unix:///run/web.qmp --undo
  windlass doctor --accept-rollback -r /backup/main")]
pub struct Doctor {
    /// Also check what a backup of this running machine will meet: qmp+unix:///PATH
    #[arg(value_name = "MACHINE", value_parser = parsed::<QmpAddress>)]
    pub machine: Option<QmpAddress>,
    /// Take out of the machine's QEMU what a killed backup left there
    #[arg(long, requires = "machine")]
    pub undo: bool,
    /// Check this folder for scratch space [default: TMPDIR, or /var/tmp]
    #[arg(long, value_name = "DIR", requires = "machine")]
    pub scratch: Option<PathBuf>,
    /// Also check this repository: /path, file:///path, or quic://host[:port]/name on a storage node
    #[arg(short, long, value_name = "ADDR", env = "WINDLASS_REPOSITORY")]
    pub repository: Option<RepositoryAddress>,
    /// Accept that the repository was set back to an older state, or that its log lost a record. What was committed
    /// after that is given up. Needs the repository's directory
    #[arg(long, requires = "repository")]
    pub accept_rollback: bool,
}

/// Create a token for somebody who joins the site, or join with a token
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  windlass token create --role proxy --name host7 --node quic://store1.example --out host7.token
  windlass token join --token-file host7.token
  ssh host7 windlass token join < host7.token")]
pub struct Token {
    #[command(subcommand)]
    pub action: TokenAction,
}

#[derive(Debug, Subcommand)]
pub enum TokenAction {
    /// Create a token (for administrators)
    ///
    /// The token is a secret: give it only to the one who joins. It works once, and only for the time of --valid. --node
    /// must be the node that holds the site's authority. For a node that joins, give every name under which it is
    /// reached.
    #[command(after_help = "\
Examples:
  windlass token create --role proxy --name host7 --node quic://store1.example --out host7.token
  windlass token create --role admin --name anna --valid 10m --node quic://store1.example
  windlass token create --role node --name store2 --host store2.example --node quic://store1.example")]
    Create {
        /// Role: node, proxy or admin
        #[arg(long, value_parser = parsed::<Role>)]
        role: Role,
        /// Name of the one who joins
        #[arg(long, value_parser = parsed::<Name>, value_name = "NAME")]
        name: Name,
        /// For a proxy: the owner of the machines that it backs up and sees; its own name by default
        #[arg(long, value_parser = parsed::<Name>, value_name = "NAME")]
        owner: Option<Name>,
        /// For a node: name or address under which it is reached
        #[arg(long, value_name = "HOST")]
        host: Vec<String>,
        /// How long the token can be used: 30s, 10m, 1h
        #[arg(long, value_parser = parsed_duration, value_name = "DURATION", default_value = "1h")]
        valid: Duration,
        /// The node that holds the authority: quic://host[:port]
        #[arg(long, value_parser = parsed::<NodeAddress>, value_name = "ADDR")]
        node: Option<NodeAddress>,
        /// A repository on that node, instead of --node
        #[arg(short, long, value_name = "ADDR", env = "WINDLASS_REPOSITORY", required_unless_present = "node")]
        repository: Option<RepositoryAddress>,
        /// Write the token to this new file instead of printing it
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Join with a token: create a key here, and get a certificate for it
    #[command(after_help = "\
Examples:
  windlass token join --token-file host7.token
  windlass token join --token-file host7.token --out /etc/windlass/identity
  windlass token join < host7.token")]
    Join {
        /// File with the token; stdin by default
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
        /// New folder for the identity; WINDLASS_IDENTITY or ~/.config/windlass/identity by default
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
}

/// Print a completion script
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  windlass completion bash > /etc/bash_completion.d/windlass
  windlass completion zsh > ~/.zfunc/_windlass
  windlass completion fish > ~/.config/fish/completions/windlass.fish")]
pub struct Completion {
    pub shell: clap_complete::Shell,
}

/// Print the manual page of windlass or of one of its commands
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  windlass man | man -l -
  windlass man backup > windlass-backup.1
  windlass man --all /usr/local/share/man/man1")]
pub struct Man {
    /// The command
    #[arg(conflicts_with = "all")]
    pub command: Option<String>,
    /// Write every page into this directory
    #[arg(long, value_name = "DIR")]
    pub all: Option<PathBuf>,
}
