//! A backup that a proxy makes.

use crate::cli::Backup;
use crate::context::Context;
use crate::job::watched;
use crate::site::{Node, tell};
use mover::{BackupOptions, BackupReport, Error, JobId, PointId, Progress, Result};
use wire::control::Job;

pub async fn attempt(context: &Context, arguments: &Backup, options: &BackupOptions) -> Result<BackupReport> {
    let (node, repository) = Node::of(context, &arguments.place.repository, "a backup without a source").await?;
    let (id, point) = (JobId::random(&context.world), PointId::random(&context.world));
    let job = Job::backup(id, point, repository, options)?;
    let progress = Progress::default();
    let running = node.run(context, &arguments.through, job, &progress, |told| tell(context, id, told));
    watched(&context.out, &progress, running).await?.backup()
}

/// No path and no command is given to a proxy: they stand in its configuration.
///
/// # Errors
/// `Usage`.
pub fn refuse_what_proxies_decide(arguments: &Backup) -> Result<()> {
    let given = [
        ("--image-root", !arguments.image_root.is_empty()),
        ("--scratch", arguments.scratch.is_some()),
        ("--pre-freeze", arguments.pre_freeze.is_some()),
        ("--post-thaw", arguments.post_thaw.is_some()),
        ("--attach", !arguments.attach.is_empty()),
    ];
    match given.into_iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((option, _)) => Err(Error::usage(format!("{option} cannot be used when a proxy makes the backup"))
            .hint("set it in the proxy's configuration, or give a source (SOURCE or --disk NAME=SOURCE)")),
    }
}
