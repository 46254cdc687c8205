//! A job beside the display of its progress.

use crate::output::Output;
use crate::text::{milliseconds, size};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mover::{Phase, Progress};
use serde::Serialize;
use std::future::Future;
use std::io::{self, IsTerminal};
use std::pin::pin;
use std::time::{Duration, Instant};
use tokio::time::{MissedTickBehavior, interval_at};

/// Runs `job` and shows what `progress` says: a bar on a terminal, a line now and then elsewhere, events as JSON.
pub async fn watched<T>(out: &Output, progress: &Progress, job: impl Future<Output = T>) -> T {
    let display = Display::new(out);
    let Some(every) = display.every() else { return job.await };
    let mut ticks = interval_at(tokio::time::Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut job = pin!(job);
    loop {
        tokio::select! {
            biased;
            done = &mut job => {
                display.clear();
                return done;
            }
            _ = ticks.tick() => display.show(out, progress),
        }
    }
}

struct Display {
    began: Instant,
    way: Way,
}

enum Way {
    Silent,
    Bar(ProgressBar),
    Lines,
    Events,
}

impl Display {
    fn new(out: &Output) -> Self {
        let way = if out.json() {
            Way::Events
        } else if !out.shows_progress() {
            Way::Silent
        } else if io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
            let form = if out.colour() { "{bar:30.cyan/blue}" } else { "{bar:30}" };
            let form = format!(
                "{{msg:8}} {form} {{binary_bytes}} of {{binary_total_bytes}}, {{binary_bytes_per_sec}}, {{eta}} left"
            );
            bar.set_style(ProgressStyle::with_template(&form).expect("a valid template").progress_chars("=> "));
            Way::Bar(bar)
        } else {
            Way::Lines
        };
        Self { began: Instant::now(), way }
    }

    fn every(&self) -> Option<Duration> {
        match self.way {
            Way::Silent => None,
            Way::Bar(_) => Some(Duration::from_millis(100)),
            Way::Lines => Some(Duration::from_secs(30)),
            Way::Events => Some(Duration::from_secs(1)),
        }
    }

    fn show(&self, out: &Output, progress: &Progress) {
        let (done, total) = progress.bytes();
        let elapsed = self.began.elapsed();
        let rate = (done as f64 / elapsed.as_secs_f64().max(0.001)) as u64;
        match &self.way {
            Way::Silent => {}
            Way::Bar(bar) => {
                bar.set_message(phase(progress));
                // Not every job knows how much it has to do.
                bar.set_length(total.max(done));
                bar.set_position(done);
            }
            Way::Lines => {
                let left = total.saturating_sub(done).checked_div(rate);
                let left = left.map_or(String::new(), |seconds| format!(", {seconds} s left"));
                out.note(&format!("{}: {} of {}, {}/s{left}", phase(progress), size(done), size(total), size(rate)));
            }
            Way::Events => {
                #[derive(Serialize)]
                struct Fields {
                    phase: &'static str,
                    bytes_done: u64,
                    bytes_total: u64,
                    bytes_per_second: u64,
                    elapsed_ms: u64,
                }
                out.event(
                    "progress",
                    &Fields {
                        phase: phase(progress),
                        bytes_done: done,
                        bytes_total: total,
                        bytes_per_second: rate,
                        elapsed_ms: milliseconds(elapsed),
                    },
                );
            }
        }
    }

    fn clear(&self) {
        if let Way::Bar(bar) = &self.way {
            bar.finish_and_clear();
        }
    }
}

fn phase(progress: &Progress) -> &'static str {
    match progress.phase() {
        Phase::Prepare => "prepare",
        Phase::Move => "move",
        Phase::Commit => "commit",
        Phase::Done => "done",
    }
}
