//! Chunks that were read lately, and those on their way. No I/O, no clock.

use super::Chunk;
use crate::ChunkError;
use chunker::ChunkId;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::sync::watch;

/// What became of chunks that were asked for.
pub type Fetched = HashMap<ChunkId, Result<Chunk, ChunkError>>;

/// Chunks by their id, at most so many bytes of them.
pub struct Cache {
    bytes_max: usize,
    bytes: usize,
    slots: HashMap<ChunkId, Slot>,
    /// Chunks in the order in which they were used last.
    order: BTreeMap<u64, ChunkId>,
    now: u64,
    claims: u64,
}

enum Slot {
    /// It is on its way.
    Claimed(Wait),
    /// It is here; used last at this time.
    Here(Chunk, u64),
}

/// What one request finds.
pub struct Claims {
    /// What is here.
    pub there: Fetched,
    /// What is on its way, for this request or for others.
    pub waits: Vec<Wait>,
    /// What this request must fetch, and the claim under which it arrives.
    pub claimed: Option<(Vec<ChunkId>, Claim)>,
}

/// The duty to fetch some chunks. If it is dropped before they arrive, readers that wait for them get an error.
pub struct Claim {
    ids: Vec<ChunkId>,
    tell: watch::Sender<Option<Arc<Fetched>>>,
    number: u64,
}

/// Waits for chunks that a request fetches.
#[derive(Clone)]
pub struct Wait {
    told: watch::Receiver<Option<Arc<Fetched>>>,
    ids: Vec<ChunkId>,
    number: u64,
}

impl Wait {
    /// What was fetched of the chunks waited for.
    pub async fn fetched(mut self) -> Fetched {
        let nothing = |chunk: ChunkId| {
            let what = "fetching it ended without an answer".to_owned();
            (chunk, Err(ChunkError::Unreadable { chunk, kind: crate::ErrorKind::Internal, what }))
        };
        let told = self.told.wait_for(Option::is_some).await.ok().and_then(|it| it.clone());
        let Some(all) = told else { return self.ids.into_iter().map(nothing).collect() };
        let of = |id: &ChunkId| all.get(id).cloned().unwrap_or(Err(ChunkError::Missing { chunk: *id }));
        self.ids.iter().map(|id| (*id, of(id))).collect()
    }
}

impl Cache {
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, bytes: 0, slots: HashMap::new(), order: BTreeMap::new(), now: 0, claims: 0 }
    }

    /// Looks up `ids`, and claims those that are neither here nor on their way.
    pub fn claim(&mut self, ids: Vec<ChunkId>) -> Claims {
        let (mut there, mut waits) = (Fetched::new(), BTreeMap::<u64, Wait>::new());
        let (tell, told) = watch::channel(None);
        self.claims += 1;
        let own = Wait { told, ids: Vec::new(), number: self.claims };
        let mut missing = Vec::new();
        for id in ids {
            self.now += 1;
            match self.slots.get_mut(&id) {
                Some(Slot::Here(chunk, used)) => {
                    there.entry(id).or_insert_with(|| Ok(chunk.clone()));
                    self.order.remove(used);
                    *used = self.now;
                    self.order.insert(self.now, id);
                }
                // A claim that was dropped is nobody's.
                Some(Slot::Claimed(wait)) if wait.told.has_changed().is_ok() => {
                    let wait = waits.entry(wait.number).or_insert_with(|| wait.clone());
                    wait.ids.push(id);
                }
                _ => {
                    self.slots.insert(id, Slot::Claimed(own.clone()));
                    missing.push(id);
                }
            }
        }
        let mut waits: Vec<Wait> = waits.into_values().collect();
        if missing.is_empty() {
            return Claims { there, waits, claimed: None };
        }
        // One that was asked for twice waits for the own claim already.
        waits.retain(|wait| wait.number != own.number);
        waits.push(Wait { ids: missing.clone(), ..own });
        let claim = Claim { ids: missing.clone(), tell, number: self.claims };
        Claims { there, waits, claimed: Some((missing, claim)) }
    }

    /// Takes the chunks that were fetched, and gives them to the readers that wait. Errors are not kept, because a copy
    /// may come back.
    pub fn arrived(&mut self, claim: Claim, fetched: Fetched) {
        for id in &claim.ids {
            if matches!(self.slots.get(id), Some(Slot::Claimed(wait)) if wait.number == claim.number) {
                self.slots.remove(id);
            }
            if let Some(Ok(chunk)) = fetched.get(id) {
                self.now += 1;
                self.bytes += chunk.bytes.len();
                self.slots.insert(*id, Slot::Here(chunk.clone(), self.now));
                self.order.insert(self.now, *id);
            }
        }
        while self.bytes > self.bytes_max
            && let Some((_, id)) = self.order.pop_first()
        {
            if let Some(Slot::Here(chunk, _)) = self.slots.remove(&id) {
                self.bytes -= chunk.bytes.len();
            }
        }
        let _ = claim.tell.send(Some(Arc::new(fetched)));
    }
}
