//! `windlass-proxy`: backs up where the disks are.

use std::process::ExitCode;

fn main() -> ExitCode {
    proxy::daemon::windlass_proxy()
}
