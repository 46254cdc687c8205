//! `windlass-store`: the storage node.

use std::process::ExitCode;

fn main() -> ExitCode {
    store::daemon::windlass_store()
}
