//! A job beside the display of its progress.

use crate::output::Output;
use crate::text::size;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mover::Progress;
use mover::event::{JobEvent, ProgressEvent};
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
        let event = ProgressEvent::of(progress, self.began.elapsed());
        match &self.way {
            Way::Silent => {}
            Way::Bar(bar) => {
                bar.set_message(event.phase.as_str());
                // Not every job knows how much it has to do.
                bar.set_length(event.bytes_total.max(event.bytes_done));
                bar.set_position(event.bytes_done);
            }
            Way::Lines => {
                let left = event.seconds_left().map_or(String::new(), |seconds| format!(", {seconds} s left"));
                let (done, total) = (size(event.bytes_done), size(event.bytes_total));
                let rate = size(event.bytes_per_second);
                out.note(&format!("{}: {done} of {total}, {rate}/s{left}", event.phase.as_str()));
            }
            Way::Events => out.event(&JobEvent::Progress(event)),
        }
    }

    fn clear(&self) {
        if let Way::Bar(bar) = &self.way {
            bar.finish_and_clear();
        }
    }
}
