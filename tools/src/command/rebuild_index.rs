//! `windlass rebuild-index`

use crate::cli::RebuildIndex;
use crate::open::{self, Access};
use crate::text::count;
use crate::windlass::{Context, Exit};
use mover::Result;

pub async fn run(context: &Context, arguments: &RebuildIndex) -> Result<Exit> {
    let repository =
        open::directory_patiently(context, &arguments.place.repository, Access::Write, &arguments.place.patience)
            .await?;
    let made = repository.rebuild_index().await;
    repository.close().await?;
    let made = made?;
    context.out.document(&serde_json::json!({ "packs": made.packs, "chunks": made.chunks }));
    context.out.done(&format!("index made of {} chunks in {} packs", count(made.chunks), count(made.packs)));
    Ok(Exit::Done)
}
