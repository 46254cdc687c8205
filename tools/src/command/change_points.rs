//! `windlass unforget`, `windlass pin` and `windlass unpin`

use crate::cli::ChangePoints;
use crate::context::{Context, Exit};
use crate::open::{self, Access, Opened};
use crate::text::counted;
use mover::{PointChange, PointFilter, PointId, Repository as _, Result, select};
use serde::Serialize;
use std::collections::BTreeSet;

#[derive(Serialize)]
struct Changed {
    points: Vec<String>,
}

pub async fn run(context: &Context, arguments: &ChangePoints, change: PointChange) -> Result<Exit> {
    let place = &arguments.place;
    let repository = open::patiently(context, &place.repository, Access::Write, &place.patience).await?;
    let made = change_all(arguments, change, &repository).await;
    let closed = open::close(repository).await;
    let points = made?;
    closed?;
    context.out.document(&Changed { points: points.iter().map(PointId::to_string).collect() });
    let what = match change {
        PointChange::Forget | PointChange::ForgetByRules => "forgotten",
        PointChange::Unforget => "brought back",
        PointChange::Pin => "pinned",
        PointChange::Unpin => "no longer pinned",
    };
    context.out.done(&format!("{} {what}", counted(points.len() as u64, "point")));
    Ok(Exit::Done)
}

/// Changes the named points; what is unforgotten with its groups.
async fn change_all(arguments: &ChangePoints, change: PointChange, repository: &Opened) -> Result<Vec<PointId>> {
    let forgotten = change == PointChange::Unforget;
    let points = repository.list(&PointFilter { machine: None, forgotten }).await?;
    let mut named = BTreeSet::new();
    for selector in &arguments.point {
        let point = select(&points, selector)?;
        named.insert(point.id);
        let group = points.iter().filter(|it| forgotten && it.group.is_some() && it.group == point.group);
        named.extend(group.map(|it| it.id));
    }
    let named: Vec<PointId> = named.into_iter().collect();
    repository.change_points(&named, change).await?;
    Ok(named)
}
