//! `windlass show --log`

use crate::context::Context;
use crate::open::Opened;
use crate::text::{escaped, local_time, utc_time};
use chunker::ChunkId;
use mover::{LogEntry, Repository as _, Result};
use serde::Serialize;

/// One record: a line of JSON each, because there may be very many.
#[derive(Serialize)]
struct Record<'a> {
    event: &'static str,
    record: u64,
    time: String,
    writer: String,
    term: u64,
    hash: String,
    events: &'a [String],
}

pub async fn show(context: &Context, repository: &Opened, after: u64) -> Result<()> {
    let mut last = after;
    loop {
        let entries = repository.log(last).await?;
        let Some(newest) = entries.last() else { return Ok(()) };
        last = newest.end.sequence;
        for LogEntry { end, time, writer, term, events } in &entries {
            let hash = ChunkId(end.hash).to_string();
            context.out.document(&Record {
                event: "record",
                record: end.sequence,
                time: utc_time(*time),
                writer: writer.to_string(),
                term: *term,
                hash: hash.clone(),
                events,
            });
            let head = |text: &str| text.chars().take(SHORT).collect::<String>();
            let by = if *term == 0 { "reader".to_owned() } else { format!("term {term}") };
            let (time, writer) = (local_time(*time), head(&writer.to_string()));
            context.out.line(&format!("{:>6}  {time}  {writer} {by}  {}", end.sequence, head(&hash)));
            events.iter().for_each(|event| context.out.line(&format!("        {}", escaped(event))));
        }
    }
}

/// Of ids, to a person.
const SHORT: usize = 8;
