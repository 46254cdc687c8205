//! `windlass completion` and `windlass man`

use crate::cli::{Cli, Completion, Man};
use crate::context::{Context, Exit};
use clap::CommandFactory;
use mover::{Error, Result};

pub fn completion(context: &Context, arguments: &Completion) -> Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "windlass", &mut script);
    context.out.raw(&script);
    Ok(Exit::Done)
}

pub fn pages(context: &Context, arguments: &Man) -> Result<Exit> {
    let mut program = Cli::command();
    program.build();
    if let Some(directory) = &arguments.all {
        clap_mangen::generate_to(program, directory).map_err(|error| {
            Error::target(format!("manual pages in {} could not be written", directory.display())).because(error)
        })?;
        return Ok(Exit::Done);
    }
    let command = match &arguments.command {
        None => program,
        Some(name) => program.find_subcommand(name).cloned().ok_or_else(|| {
            Error::usage(format!("there is no command {name}")).hint("`windlass --help` lists the commands")
        })?,
    };
    let mut page = Vec::new();
    clap_mangen::Man::new(command)
        .render(&mut page)
        .map_err(|error| Error::internal("the manual page could not be made").because(error))?;
    context.out.raw(&page);
    Ok(Exit::Done)
}
