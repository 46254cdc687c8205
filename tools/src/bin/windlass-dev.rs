//! `windlass-dev`: what developers run.

use std::process::ExitCode;

fn main() -> ExitCode {
    tools::windlass_dev()
}
