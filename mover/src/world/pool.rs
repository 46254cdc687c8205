//! CPU work: a bounded pool of threads, each with its own compression contexts.

use crate::{Error, Result};
use chunker::{Compression, Compressor, Decoder};
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use tokio::sync::oneshot;

/// Threads for cutting, fingerprints, compression and decoding. Nothing on it waits for I/O of a network.
#[derive(Clone)]
pub struct Pool(Option<Arc<rayon::ThreadPool>>);

impl Pool {
    /// A pool of `threads`; 0 means one for each processor.
    ///
    /// # Errors
    /// When threads cannot be started.
    pub fn new(threads: usize) -> Result<Self> {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|number| format!("cpu-{number}"))
            .build()
            .map(|pool| Self(Some(Arc::new(pool))))
            .map_err(|error| Error::internal("cannot start worker threads").because(error))
    }

    /// A pool without threads. The caller does each job at once, so the order of events depends only on the jobs; a
    /// simulation needs this.
    pub const fn inline() -> Self {
        Self(None)
    }

    /// Number of jobs that are done at the same time.
    pub fn threads(&self) -> usize {
        self.0.as_ref().map_or(1, |pool| pool.current_num_threads())
    }

    /// Runs `job` on the pool. A panic of the job is a panic here.
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let Some(pool) = &self.0 else { return job() };
        let (done, result) = oneshot::channel();
        pool.spawn(move || {
            // A panic must not end the pool's thread (rayon would abort the process).
            let _ = done.send(catch_unwind(AssertUnwindSafe(job)));
        });
        match result.await.expect("the job sends its result") {
            Ok(value) => value,
            Err(panic) => resume_unwind(panic),
        }
    }
}

/// Calls `work` with this thread's compressor for `compression`.
pub fn with_compressor<T>(compression: Compression, work: impl FnOnce(&mut Compressor) -> T) -> T {
    thread_local!(static SEALER: RefCell<Option<(Compression, Compressor)>> = const { RefCell::new(None) });
    SEALER.with_borrow_mut(|held| {
        if held.as_ref().is_none_or(|(have, _)| *have != compression) {
            *held = Some((compression, Compressor::new(compression)));
        }
        work(&mut held.as_mut().expect("just made").1)
    })
}

/// Calls `work` with this thread's decoder.
pub fn with_decoder<T>(work: impl FnOnce(&mut Decoder) -> T) -> T {
    thread_local!(static OPENER: RefCell<Decoder> = RefCell::default());
    OPENER.with_borrow_mut(work)
}

/// Runs blocking file or database work on a thread where it may wait. A panic of the work is a panic here.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // Only a runtime that is shutting down cancels blocking work, and then nobody polls this.
            Err(_) => std::future::pending().await,
        },
    }
}
