//! Questions about which chunks are there. Questions that are asked while others are on their way go together into one
//! message. So a piece of 16 chunks does not cost a message of its own, and a few pieces do not cost a round trip.

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
    /// Asks about `ids`, in one message with the other questions that wait at that moment. While other messages are on
    /// their way, a question that has its turn waits for a part of `round_trip` more, so that others can join it.
    /// `message` makes one message of at most [`IDS_MAX`] ids. The message is sent even when this caller stops waiting,
    /// because it also has questions of other callers.
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

    /// Takes the question that waits longest, and others of its kind that fit into one message. They need not follow
    /// one another, because questions about pages come between those about data all the time.
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

/// Gives each question its part of the answer. An error goes to the first question only; the others are asked again.
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
/// No question waits for less than this, because the answer of a near node would come sooner.
const PAUSE_MIN: Duration = Duration::from_millis(1);
