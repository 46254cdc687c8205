//! `windlass`, the administrator's program: arguments in, calls of the other crates, text out.
//!
//! Architecture Invariant: no logic of its own worth a unit test. The command line is a contract; its end-to-end tests
//! run the programs.

// Comments of arguments are help texts: what stands in square brackets there is no link.
#![allow(rustdoc::broken_intra_doc_links)]

mod address;
mod cli;
mod command;
mod context;
mod job;
mod open;
mod output;
mod program;
mod site;
mod stop;
mod text;

use std::process::ExitCode;

fn main() -> ExitCode {
    program::run()
}
