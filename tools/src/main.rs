//! `windlass`: the administrator's program.

use std::process::ExitCode;

fn main() -> ExitCode {
    tools::windlass()
}
