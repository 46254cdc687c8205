//! What is printed, and where: results on stdout, the rest on stderr.

use crate::text::escaped;
use clap::{ArgAction, Args};
use comfy_table::{CellAlignment, Table, presets};
use mover::event::{FailureEvent, JobEvent, JobSummary};
use mover::{Error, Result};
use serde::Serialize;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::sync::Mutex;

/// How to print.
#[derive(Debug, Clone, Copy, Default, Args)]
#[command(next_help_heading = "Output")]
pub struct Style {
    /// Print JSON: one document for a query, one line for each event of a job, its summary last
    #[arg(long, global = true)]
    pub json: bool,
    /// Print only errors, warnings and what was asked for
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Write more log messages to stderr; give it twice for still more (or set WINDLASS_LOG)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
}

/// Prints as the administrator wants it.
pub struct Output {
    style: Style,
    colour: bool,
    /// Whether stdout still takes what is written, and the first failure that was not a closed pipe.
    stdout: Mutex<(bool, Option<io::Error>)>,
}

impl Output {
    pub fn new(style: Style) -> Self {
        let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { style, colour, stdout: Mutex::new((true, None)) }
    }

    pub fn json(&self) -> bool {
        self.style.json
    }

    pub fn colour(&self) -> bool {
        self.colour
    }

    /// True when progress may be shown for people.
    pub fn shows_progress(&self) -> bool {
        !self.style.quiet && !self.style.json
    }

    /// Writes bytes to stdout. A reader that went away is no failure, nor does it end the job: the rest is dropped.
    pub fn raw(&self, bytes: &[u8]) {
        let mut state = self.stdout.lock().expect("not poisoned");
        if !state.0 {
            return;
        }
        let mut stdout = io::stdout().lock();
        if let Err(error) = stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            let failure = (error.kind() != ErrorKind::BrokenPipe).then_some(error);
            *state = (false, failure);
        }
    }

    /// Fails when something could not be printed.
    pub fn finish(&self) -> Result<()> {
        match self.stdout.lock().expect("not poisoned").1.take() {
            Some(error) => Err(Error::target("stdout could not be written").because(error)),
            None => Ok(()),
        }
    }

    /// A line of text for people.
    pub fn line(&self, text: &str) {
        if !self.style.json {
            self.raw(format!("{text}\n").as_bytes());
        }
    }

    /// A confirmation for people: not what was asked for, only that it was done.
    pub fn done(&self, text: &str) {
        if !self.style.quiet {
            self.line(text);
        }
    }

    /// A table for people.
    pub fn table(&self, table: &Table) {
        for line in table.lines() {
            self.line(line.trim_end());
        }
    }

    /// The answer to a query with `--json`.
    pub fn document(&self, document: &impl Serialize) {
        if self.style.json {
            self.raw(&json_line(document));
        }
    }

    /// One event of a job with `--json`.
    pub fn event(&self, event: &JobEvent) {
        self.document(event);
    }

    /// The end of a job: JSON, or lines for people unless they asked for quiet.
    pub fn summary(&self, summary: JobSummary, people: impl FnOnce()) {
        self.event(&JobEvent::Summary(summary));
        if self.shows_progress() {
            people();
        }
    }

    /// Something unexpected that did not stop the job.
    pub fn warn(&self, message: &str) {
        if self.style.json {
            self.event(&JobEvent::warning(message));
        } else {
            self.stderr(&format!("{} {}", self.paint("warning:", YELLOW), escaped(message)));
        }
    }

    /// One point of several failed; the job goes on.
    pub fn point_failed(&self, point: &str, error: &Error) {
        if self.style.json {
            self.event(&JobEvent::Error(FailureEvent::of_point(point, error)));
        } else {
            self.error_lines(&format!("{point}: {}", error.message()), error.remedy());
        }
    }

    /// The end of the program, when it failed. A job tells it among its events, too.
    pub fn failure(&self, error: &Error, job: bool) {
        if !self.style.json {
            return self.error_lines(&error.message(), error.remedy());
        }
        let failure = FailureEvent::of(error);
        let line = json_line(&failure);
        if job {
            self.event(&JobEvent::Error(failure));
        }
        let _ = io::stderr().lock().write_all(&line);
    }

    /// Somebody has to wait, because something is busy.
    pub fn waits_for(&self, busy: &Error) {
        self.note(&format!("waiting: {}", busy.message()));
    }

    /// A remark for people.
    pub fn note(&self, text: &str) {
        if self.shows_progress() {
            self.stderr(&escaped(text));
        }
    }

    fn error_lines(&self, message: &str, hint: Option<&str>) {
        self.stderr(&format!("{} {}", self.paint("error:", RED), escaped(message)));
        if let Some(hint) = hint {
            self.stderr(&format!("{} {}", self.paint("hint:", CYAN), escaped(hint)));
        }
    }

    /// Nobody can be told when stderr is closed.
    fn stderr(&self, text: &str) {
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    fn paint(&self, text: &str, colour: &str) -> String {
        if self.colour { format!("{colour}{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// An empty table; columns named in `right` are numbers.
pub fn table(header: &[&str], right: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied());
    for (column, name) in table.column_iter_mut().zip(header) {
        column.set_padding((0, 2));
        if right.contains(name) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn json_line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("plain data becomes JSON");
    line.push(b'\n');
    line
}

const RED: &str = "\u{1b}[1;31m";
const YELLOW: &str = "\u{1b}[1;33m";
const CYAN: &str = "\u{1b}[1;36m";
