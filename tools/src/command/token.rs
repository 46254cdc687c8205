//! `windlass token`

use crate::cli::TokenAction;
use crate::context::{Context, Exit};
use crate::open;
use crate::text::{local_time, utc_time};
use mover::{Error, Holder, Result};
use serde::Serialize;
use std::io::Read;
use std::path::{Path, PathBuf};
use wire;
use wire::identity::{Credentials, Token, Wanted, create_private};

#[derive(Serialize)]
struct Made {
    role: &'static str,
    name: String,
    expires: String,
    /// Of a token that was not written to a file.
    token: Option<String>,
    file: Option<PathBuf>,
}

#[derive(Serialize)]
struct Joined<'a> {
    role: &'static str,
    name: String,
    valid_until: String,
    identity: &'a Path,
}

pub async fn run(context: &Context, action: &TokenAction) -> Result<Exit> {
    match action {
        TokenAction::Create { role, name, owner, host, valid, node, repository, out } => {
            let node = match (node, repository) {
                (Some(node), _) => node.at.clone(),
                (None, Some(repository)) => repository.node()?,
                (None, None) => return Err(Error::usage("no node is given").hint("give it with --node")),
            };
            let us = open::credentials(context).await?;
            let holder = Holder { role: *role, name: name.clone(), owner: owner.clone() };
            let wanted = Wanted { holder, hosts: host.clone() };
            create(context, &us, node, wanted, *valid, out.as_deref()).await
        }
        TokenAction::Join { token_file, out } => join(context, token_file.as_deref(), out.clone()).await,
    }
}

async fn create(
    context: &Context,
    us: &Credentials,
    node: wire::identity::Address,
    wanted: Wanted,
    valid: std::time::Duration,
    out: Option<&Path>,
) -> Result<Exit> {
    let holder = wanted.holder.clone();
    if let Some(file) = out.filter(|file| file.exists()) {
        return Err(Error::usage(format!("{} already exists", file.display())).hint("choose another file with --out"));
    }
    let (token, expires) = wire::create_token(us, node, wanted, valid, &context.world).await?;
    if let Some(file) = out {
        create_private(file, format!("{token}\n").as_bytes())?;
    }
    context.out.document(&Made {
        role: holder.role.as_str(),
        name: holder.name.to_string(),
        expires: utc_time(expires),
        token: out.is_none().then(|| token.to_string()),
        file: out.map(Path::to_owned),
    });
    match out {
        Some(file) => context.out.done(&format!("token for {holder} written to {}", file.display())),
        None => context.out.line(&token.to_string()),
    }
    context.out.note(&format!("the token works once, until {}", local_time(expires)));
    Ok(Exit::Done)
}

async fn join(context: &Context, file: Option<&Path>, out: Option<PathBuf>) -> Result<Exit> {
    let folder = out.map_or_else(open::identity_folder, Ok)?;
    Credentials::prepare(&folder)?;
    let token: Token = read(file)?.parse()?;
    let (holder, issued, authority) = wire::join(&token, &context.world).await?;
    Credentials::store(&folder, &issued, &authority, Some(&token.address))?;
    let valid_until = issued.identity()?.facts().not_after;
    context.out.document(&Joined {
        role: holder.role.as_str(),
        name: holder.name.to_string(),
        valid_until: utc_time(valid_until),
        identity: &folder,
    });
    context.out.done(&format!("joined as {holder}: identity in {}", folder.display()));
    Ok(Exit::Done)
}

/// The text of a token, which is short.
fn read(file: Option<&Path>) -> Result<String> {
    let shown = file.map_or_else(|| "stdin".into(), |file| file.display().to_string());
    let mut text = String::new();
    let read = match file {
        Some(file) => std::fs::File::open(file).and_then(|file| file.take(TOKEN_BYTES_MAX).read_to_string(&mut text)),
        None => std::io::stdin().lock().take(TOKEN_BYTES_MAX).read_to_string(&mut text),
    };
    read.map_err(|error| Error::usage(shown).because(error))?;
    Ok(text)
}

const TOKEN_BYTES_MAX: u64 = 1024;
