//! `windlass init`

use crate::cli::Init;
use crate::context::{Context, Exit};
use crate::open::{self, Access, Local};
use crate::text::utc_time;
use mover::{Repository as _, Result, blocking};
use serde::Serialize;

#[derive(Serialize)]
struct Made {
    repository: String,
    address: String,
    domain: String,
    created: String,
}

pub async fn run(context: &Context, arguments: &Init) -> Result<Exit> {
    let like = match &arguments.like {
        Some(address) => {
            let like = open::patiently(context, address, Access::Read, &arguments.place.patience).await?;
            let config = like.config().clone();
            open::close(like).await?;
            Some(config)
        }
        None => None,
    };
    let path = arguments.place.repository.directory()?.to_owned();
    let world = context.world.clone();
    let config = blocking(move || Local::init(&path, like.as_ref(), &world)).await?;
    let domain = config.domain.fingerprint();
    let made = Made {
        repository: config.id.to_string(),
        address: arguments.place.repository.to_string(),
        domain: domain.iter().map(|byte| format!("{byte:02x}")).collect(),
        created: utc_time(config.created),
    };
    context.out.document(&made);
    context.out.done(&format!("created repository {} at {}", made.repository, made.address));
    Ok(Exit::Done)
}
