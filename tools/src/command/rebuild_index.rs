//! `windlass rebuild-index`

use crate::cli::RebuildIndex;
use crate::context::{Context, Exit};
use crate::job::watched;
use crate::open::{self, Access};
use crate::text::counted;
use mover::{Progress, Repository as _, Result};
use std::sync::Arc;

pub async fn run(context: &Context, arguments: &RebuildIndex) -> Result<Exit> {
    let place = &arguments.place;
    let repository = open::patiently(context, &place.repository, Access::Write, &place.patience).await?;
    let progress = Arc::new(Progress::default());
    let made = watched(&context.out, &progress, repository.rebuild_index(progress.clone())).await;
    let closed = open::close(repository).await;
    let made = made?;
    closed?;
    context.out.document(&serde_json::json!({ "packs": made.packs, "chunks": made.chunks }));
    context.out.done(&format!("index rebuilt: {} in {}", counted(made.chunks, "chunk"), counted(made.packs, "pack")));
    Ok(Exit::Done)
}
