//! A disk, or an attachment, to stdout.

use bytes::Bytes;
use mover::{Error, Result, Sink, blocking};
use std::io::{self, IsTerminal, Write};

/// Takes what is written in order.
pub struct Stdout;

impl Sink for Stdout {
    async fn write(&mut self, parts: Vec<Bytes>) -> Result<()> {
        let written = blocking(move || {
            let mut stdout = io::stdout().lock();
            parts.iter().try_for_each(|part| stdout.write_all(part)).and_then(|()| stdout.flush())
        });
        // Unlike a table that is cut short, a disk that is has failed.
        written.await.map_err(|error| Error::target("stdout could not be written").because(error))
    }
}

/// Fails where stdout is a terminal, which bytes of a disk would upset.
///
/// # Errors
/// `Usage`.
pub fn check() -> Result<()> {
    if io::stdout().is_terminal() {
        return Err(Error::usage("stdout is a terminal").hint("redirect it to a file or to another program"));
    }
    Ok(())
}
