//! `windlass tracking`

use crate::cli::TrackingAction;
use crate::output::table;
use crate::text::{escaped, size};
use crate::windlass::{Context, Exit};
use mover::Result;
use proxy::{TrackedBitmap, list_tracking, remove_tracking};
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Serialize)]
struct Bitmap {
    name: String,
    /// The first digits of its repository's id.
    repository: String,
    checkpoint: String,
    base: Option<String>,
    granularity: u64,
    state: &'static str,
}

impl From<&TrackedBitmap> for Bitmap {
    fn from(bitmap: &TrackedBitmap) -> Self {
        let state = match (bitmap.consistent, bitmap.recording) {
            (false, _) => "inconsistent",
            (true, true) => "recording",
            (true, false) => "disabled",
        };
        Self {
            name: bitmap.name.clone(),
            repository: bitmap.repository.iter().map(|byte| format!("{byte:02x}")).collect(),
            checkpoint: bitmap.checkpoint.to_string(),
            base: bitmap.base.map(|base| base.to_string()),
            granularity: bitmap.granularity,
            state,
        }
    }
}

pub async fn run(context: &Context, action: &TrackingAction) -> Result<Exit> {
    let (out, stop) = (&context.out, &context.stop);
    let (listed, bitmaps) = match action {
        TrackingAction::List { source, patience } => {
            ("bitmaps", patience.wait().retry(out, stop, async || list_tracking(source).await).await?)
        }
        TrackingAction::Remove { source, patience } => {
            ("removed", patience.wait().retry(out, stop, async || remove_tracking(source, None).await).await?)
        }
    };
    let bitmaps: Vec<Bitmap> = bitmaps.iter().map(Bitmap::from).collect();
    out.document(&BTreeMap::from([(listed, &bitmaps)]));
    if bitmaps.is_empty() {
        out.line("no bitmaps");
        return Ok(Exit::Done);
    }
    let mut rows =
        table(&[if listed == "removed" { "REMOVED" } else { "BITMAP" }, "GRANULARITY", "STATE"], &["GRANULARITY"]);
    for bitmap in &bitmaps {
        rows.add_row([escaped(&bitmap.name), size(bitmap.granularity), bitmap.state.into()]);
    }
    out.table(&rows);
    Ok(Exit::Done)
}
