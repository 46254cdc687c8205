//! `windlass machine`

mod offered;

use crate::cli::{MachineAction, Place};
use crate::context::{Context, Exit};
use crate::open::{self, Access, Opened};
use crate::text::counted;
use mover::{Machine, Name, PointFilter, RecoveryPoint, Repository as _, Result};
pub use offered::{MachineFields, joined, machine_rows, print_examination};
use serde::Serialize;

#[derive(Serialize)]
struct Moved {
    machine: String,
    machine_id: String,
    origin_repository: String,
    /// None: the site's own.
    owner: Option<String>,
    points: usize,
}

pub async fn run(context: &Context, action: &MachineAction) -> Result<Exit> {
    match action {
        MachineAction::List { tag, at } => offered::list(context, at, tag.as_ref()).await,
        MachineAction::Show { name, through, place } => offered::show(context, name, through, place).await,
        MachineAction::Move { machine, to_owner, place, .. } => {
            move_to(context, machine, to_owner.as_ref(), place).await
        }
    }
}

async fn move_to(context: &Context, machine: &Machine, to_owner: Option<&Name>, place: &Place) -> Result<Exit> {
    let repository = open::patiently(context, &place.repository, Access::Write, &place.patience).await?;
    let made = hand_over(&repository, machine, to_owner).await;
    let closed = open::close(repository).await;
    let moved = made?;
    closed?;
    let whose = moved.owner.as_deref().unwrap_or("the site");
    context.out.done(&format!(
        "machine {} now belongs to {whose}, with {}",
        moved.machine,
        counted(moved.points as u64, "point")
    ));
    context.out.document(&moved);
    Ok(Exit::Done)
}

async fn hand_over(repository: &Opened, machine: &Machine, owner: Option<&Name>) -> Result<Moved> {
    let mut points: Vec<RecoveryPoint> = Vec::new();
    for forgotten in [false, true] {
        points.extend(repository.list(&PointFilter { machine: Some(machine.name.clone()), forgotten }).await?);
    }
    machine.is_there(&points)?;
    let of = machine.only(&points, "")?;
    let (id, origin) = (of[0].machine, of[0].origin.0);
    repository.move_machine(id, origin, owner.cloned()).await?;
    Ok(Moved {
        machine: machine.name.to_string(),
        machine_id: id.to_string(),
        origin_repository: origin.to_string(),
        owner: owner.map(ToString::to_string),
        points: of.len(),
    })
}
