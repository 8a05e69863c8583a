//! The changes of a store that several servers share, and the lease of the one who repairs.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use featurestore::{
    record::{Clock, RecordKey, Revision},
    store::{
        StoreError,
        changes::{Batch, Change, Changes, Event, FollowError, Leadership, MAX_BATCH, Position},
    },
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

const QUIET: Duration = Duration::from_millis(500);

/// Every change since the start; a position is how many came before it.
pub struct ChangeLog {
    changes: watch::Sender<Vec<Change>>,
    /// What came before can no longer be told.
    forgotten: Mutex<usize>,
    lease: Mutex<Lease>,
}

struct Lease {
    holder: String,
    until: Instant,
    position: Option<Position>,
    stored: Option<Instant>,
}

impl ChangeLog {
    pub fn new() -> Arc<Self> {
        let lease = Lease { holder: String::new(), until: Instant::now(), position: None, stored: None };
        Arc::new(Self {
            changes: watch::Sender::new(Vec::new()),
            forgotten: Mutex::default(),
            lease: Mutex::new(lease),
        })
    }

    pub fn written(&self, key: RecordKey, revision: Revision) {
        self.add(Event::Written { key, revision });
    }

    pub fn add(&self, event: Event) {
        self.changes.send_modify(|changes| {
            let order = changes.len() as u64 + 1;
            changes.push(Change { event, order, at: Clock::system().now() });
        });
    }

    pub fn len(&self) -> usize {
        self.changes.borrow().len()
    }

    /// From now on nobody can be told what happened before.
    pub fn forget(&self) {
        *self.forgotten.lock().unwrap() = self.len();
    }

    /// How many changes came before the stored position.
    pub fn stored(&self) -> Option<usize> {
        self.lease.lock().unwrap().position.as_ref().map(place)
    }

    pub fn holder(&self) -> String {
        self.lease.lock().unwrap().holder.clone()
    }

    pub fn follow(self: &Arc<Self>, after: Option<Position>) -> Result<Box<dyn Changes>, FollowError> {
        let after = after.map_or_else(|| self.len(), |position| place(&position));
        if after < *self.forgotten.lock().unwrap() {
            return Err(FollowError::HistoryLost("by order of a test".into()));
        }
        Ok(Box::new(Follower { log: self.clone(), position: position(after) }))
    }

    pub fn lead(&self, me: &str, lease: Duration, position: Option<Position>) -> Leadership {
        let mut held = self.lease.lock().unwrap();
        let granted = held.holder == me || (position.is_none() && held.until <= Instant::now());
        if granted {
            held.holder = me.to_owned();
            held.until = Instant::now() + lease;
            held.stored = position.as_ref().map(|_| Instant::now()).or(held.stored);
            held.position = position.or(held.position.take());
        }
        let stored = held.stored.map(|at| at.elapsed());
        Leadership { held: granted, position: held.position.clone(), stored }
    }

    pub fn resign(&self, me: &str) {
        let mut held = self.lease.lock().unwrap();
        if held.holder == me {
            (held.holder, held.until) = (String::new(), Instant::now());
        }
    }
}

fn position(place: usize) -> Position {
    Position(place.to_le_bytes().to_vec().into())
}

fn place(position: &Position) -> usize {
    usize::from_le_bytes(position.0[..].try_into().unwrap())
}

struct Follower {
    log: Arc<ChangeLog>,
    position: Position,
}

#[async_trait]
impl Changes for Follower {
    async fn next(&mut self, deadline: Instant) -> Result<Batch, FollowError> {
        let from = place(&self.position);
        let mut changes = self.log.changes.subscribe();
        let some = async {
            let changes = changes.wait_for(|changes| changes.len() > from).await.unwrap();
            changes[from..].iter().take(MAX_BATCH).cloned().collect::<Vec<_>>()
        };
        tokio::select! {
            some = timeout(QUIET, some) => {
                let changes = some.unwrap_or_default();
                self.position = position(from + changes.len());
                Ok(Batch { changes, position: self.position.clone() })
            }
            () = sleep_until(deadline) => Err(StoreError::Timeout("by order of a test".into()).into()),
        }
    }

    fn position(&self) -> &Position {
        &self.position
    }
}
