//! `windlass annotate`

use crate::cli::Annotate;
use crate::context::{Context, Exit};
use crate::open::{self, Access, Opened};
use crate::text::{SetTime, counted};
use mover::labels::{TAGGED, TIME_KEY, UNTAGGED, tag_key, time_value};
use mover::{PointFilter, PointId, Repository as _, Result, select};
use serde::Serialize;
use std::collections::BTreeSet;

#[derive(Serialize)]
struct Annotated {
    points: Vec<String>,
}

pub async fn run(context: &Context, arguments: &Annotate) -> Result<Exit> {
    let place = &arguments.place;
    let repository = open::patiently(context, &place.repository, Access::Write, &place.patience).await?;
    let made = annotate(arguments, &repository).await;
    let closed = open::close(repository).await;
    let points = made?;
    closed?;
    context.out.document(&Annotated { points: points.iter().map(PointId::to_string).collect() });
    context.out.done(&format!("{} changed", counted(points.len() as u64, "point")));
    Ok(Exit::Done)
}

async fn annotate(arguments: &Annotate, repository: &Opened) -> Result<BTreeSet<PointId>> {
    let points = repository.list(&PointFilter::default()).await?;
    let named = arguments.point.iter().map(|selector| select(&points, selector).map(|point| point.id));
    let named: BTreeSet<PointId> = named.collect::<Result<_>>()?;
    let with = |tags: &[String], value: &str| -> Vec<(String, String)> {
        tags.iter().map(|tag| (tag_key(tag), value.to_owned())).collect()
    };
    let mut labels = with(&arguments.tag, TAGGED);
    labels.extend(with(&arguments.remove_tag, UNTAGGED));
    labels.extend(arguments.time.map(|time| {
        let value = match time {
            SetTime::Original => String::new(),
            SetTime::At(time) => time_value(time),
        };
        (TIME_KEY.to_owned(), value)
    }));
    for point in &named {
        repository.annotate(*point, &labels).await?;
    }
    Ok(named)
}
