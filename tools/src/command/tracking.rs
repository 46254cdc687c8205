//! `windlass tracking`

use crate::cli::TrackingAction;
use crate::context::{Context, Exit};
use crate::output::table;
use crate::text::{escaped, size};
use mover::{Error, Result};
use proxy::{TrackedBitmap, TrackedKind, list_tracking, remove_tracking};
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Serialize)]
struct Bitmap {
    name: String,
    /// The first digits of its repository's id.
    repository: String,
    /// What it is for: changes, twin, witness.
    kind: &'static str,
    checkpoint: Option<String>,
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
        let (kind, checkpoint, base) = match bitmap.kind {
            TrackedKind::Changes { checkpoint, base } => ("changes", Some(checkpoint), base),
            TrackedKind::Twin(checkpoint) => ("twin", Some(checkpoint), None),
            TrackedKind::Witness => ("witness", None, None),
        };
        Self {
            name: bitmap.name.clone(),
            repository: bitmap.repository.iter().map(|byte| format!("{byte:02x}")).collect(),
            kind,
            checkpoint: checkpoint.map(|it| it.to_string()),
            base: base.map(|base| base.to_string()),
            granularity: bitmap.granularity,
            state,
        }
    }
}

pub async fn run(context: &Context, action: &TrackingAction) -> Result<Exit> {
    let (out, stop) = (&context.out, &context.stop);
    let waits = |busy: &Error| out.waits_for(busy);
    let (listed, bitmaps) = match action {
        TrackingAction::List { source, image_root, patience } => {
            ("bitmaps", patience.wait().retry(stop, waits, async || list_tracking(source, image_root).await).await?)
        }
        TrackingAction::Remove { source, image_root, patience } => (
            "removed",
            patience.wait().retry(stop, waits, async || remove_tracking(source, None, image_root).await).await?,
        ),
    };
    let bitmaps: Vec<Bitmap> = bitmaps.iter().map(Bitmap::from).collect();
    out.document(&BTreeMap::from([(listed, &bitmaps)]));
    if bitmaps.is_empty() {
        out.line("no bitmaps of Windlass");
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
