//! Questions about chunks: what is asked while others are on their way goes together, so that pieces of 16 chunks do not
//! cost a message each, nor a round trip for a few of them.

use super::message::IDS_MAX;
use chunker::{ChunkId, ChunkKind};
use mover::{Presence, Result};
use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot};

/// Questions of one session.
#[derive(Debug)]
pub struct PresenceBatcher {
    waiting: Mutex<VecDeque<Question>>,
    /// Messages on their way.
    on_their_way: Arc<Semaphore>,
}

#[derive(Debug)]
struct Question {
    kind: ChunkKind,
    /// Ids that are asked about together, at most [`IDS_MAX`].
    ids: Vec<ChunkId>,
    answer: oneshot::Sender<Result<Vec<Presence>>>,
}

impl Default for PresenceBatcher {
    fn default() -> Self {
        Self { waiting: Mutex::default(), on_their_way: Arc::new(Semaphore::new(MESSAGES_MAX)) }
    }
}

impl PresenceBatcher {
    /// Asks, together with what waits at that moment; while others are on their way that is for a part of `round_trip` after
    /// it would be this one's turn. `message` makes one message of at most [`IDS_MAX`] ids. It is on its
    /// way whether or not anybody waits for it: others have their questions in it.
    ///
    /// # Errors
    /// Those of `message`.
    pub async fn ask<F>(
        &self,
        kind: ChunkKind,
        ids: Vec<ChunkId>,
        round_trip: Duration,
        message: impl Fn(ChunkKind, Vec<ChunkId>) -> F,
    ) -> Result<Vec<Presence>>
    where
        F: Future<Output = Result<Vec<Presence>>> + Send + 'static,
    {
        loop {
            let (answer, mut answered) = oneshot::channel();
            self.waiting.lock().expect("no holder panics").push_back(Question { kind, ids: ids.clone(), answer });
            tokio::select! {
                biased;
                answer = &mut answered => match answer {
                    Ok(answer) => return answer,
                    // The message failed, which the first who had a question in it was told.
                    Err(_) => continue,
                },
                turn = self.on_their_way.clone().acquire_owned() => {
                    let pause = round_trip / PAUSE_OF_ROUND_TRIP;
                    // Whose question went with that of another must not keep the turn from those that wait.
                    let wanted = !self.waiting.lock().expect("no holder panics").is_empty();
                    if wanted && pause >= PAUSE_MIN && self.on_their_way.available_permits() < MESSAGES_MAX - 1 {
                        tokio::time::sleep(pause).await;
                    }
                    let together = self.together();
                    if let Some(first) = together.first() {
                        let all = together.iter().flat_map(|question| question.ids.iter().copied()).collect();
                        let message = message(first.kind, all);
                        tokio::spawn(async move {
                            tell(message.await, together);
                            drop(turn);
                        });
                    }
                }
            }
            if let Ok(answer) = answered.await {
                return answer;
            }
        }
    }

    /// What waits longest, and more of its kind that fits into one message: pages come between data all the time.
    fn together(&self) -> Vec<Question> {
        let mut waiting = self.waiting.lock().expect("no holder panics");
        let Some(kind) = waiting.front().map(|first| first.kind) else { return Vec::new() };
        let mut ids = 0;
        let mut fits = |question: &Question| {
            let fits = question.kind == kind && ids + question.ids.len() <= IDS_MAX;
            ids += if fits { question.ids.len() } else { 0 };
            fits
        };
        let (made, left): (VecDeque<_>, VecDeque<_>) = waiting.drain(..).partition(&mut fits);
        *waiting = left;
        made.into()
    }
}

/// Gives everybody his part of the answer, or the first one the error.
fn tell(answer: Result<Vec<Presence>>, questions: Vec<Question>) {
    match answer {
        Ok(answers) => {
            let mut answers = answers.into_iter();
            for Question { ids, answer, .. } in questions {
                let _ = answer.send(Ok(answers.by_ref().take(ids.len()).collect()));
            }
        }
        Err(error) => {
            if let Some(first) = questions.into_iter().next() {
                let _ = first.answer.send(Err(error));
            }
        }
    }
}

/// Messages of a session on their way.
const MESSAGES_MAX: usize = 16;
/// The part of a round trip for which a question waits for others.
const PAUSE_OF_ROUND_TRIP: u32 = 16;
/// Near by it would wait longer than for its answer.
const PAUSE_MIN: Duration = Duration::from_millis(1);
