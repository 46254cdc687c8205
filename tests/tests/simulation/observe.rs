//! What the code under test says about itself.

use std::cell::Cell;
use std::fmt;
use std::sync::Once;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Counts of this thread, on which a whole run happens.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    pub resumed: u64,
    pub reconnected: u64,
    pub panics: u64,
}

thread_local!(static SEEN: Cell<Seen> = Cell::default());

pub fn seen() -> Seen {
    SEEN.get()
}

fn count(change: impl FnOnce(&mut Seen)) {
    let mut seen = SEEN.get();
    change(&mut seen);
    SEEN.set(seen);
}

/// Counts, and prints everything when `loud`.
pub fn begin(loud: bool) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = loud.then(|| {
            let level =
                std::env::var("RUST_LOG").unwrap_or_else(|_| "info,turmoil=warn,quinn=warn,quinn_proto=warn".into());
            tracing_subscriber::fmt::layer()
                .without_time()
                .with_test_writer()
                .with_filter(tracing_subscriber::EnvFilter::new(level))
        });
        tracing_subscriber::registry().with(Counting.with_filter(LevelFilter::INFO)).with(print).init();
        // A panic of a task ends that task alone, and would pass unnoticed.
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            count(|seen| seen.panics += 1);
            usual(panic);
        }));
    });
}

struct Counting;

impl<S: Subscriber> Layer<S> for Counting {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target().starts_with("wire") {
            event.record(&mut Message);
        }
    }
}

struct Message;

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            match format!("{value:?}").as_str() {
                "the node had forgotten the session" => count(|seen| seen.resumed += 1),
                "connection lost, trying again" => count(|seen| seen.reconnected += 1),
                _ => {}
            }
        }
    }
}
