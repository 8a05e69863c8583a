//! The way of a job to the writer thread and of its answer back. It is bounded in operations and in
//! time, and always separates "certainly did not happen" from "may still happen".

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
    mpsc,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Instant, timeout_at},
};

use crate::{
    cache::{Epoch, L1Name},
    record::State,
    store::{Claim as L1Claim, EpochState, Receipt, StoreError, Write},
};

/// The most writes in the queue. More wait in their callers, within their deadlines.
const WAITING_WRITES: u32 = 4096;

/// The outcome of a write, and the state afterwards.
pub(super) type Written = Result<(Receipt, State), StoreError>;
/// The outcome of each write of a batch.
pub(super) type Receipts = Vec<Result<Receipt, StoreError>>;
/// Receives the answer of a job.
pub(super) type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the writer is asked to do.
pub(super) enum Work {
    /// One write.
    Write(Box<Write>, Reply<Written>),
    /// Several writes, in order.
    Batch(Vec<Write>, Reply<Receipts>),
    /// A new epoch, if this one is still in use.
    RenewEpoch(Epoch, Reply<EpochState>),
    /// Name another L1, if the epoch has not changed since it was read.
    NameL1(Box<L1Claim>, Reply<EpochState>),
    /// A new epoch in any case.
    NewEpoch(Option<L1Name>, Reply<EpochState>),
    /// Set the dirty flag of the present epoch.
    MarkDirty(Reply<EpochState>),
    /// Nothing: shows that the writer works.
    Ping(Reply<()>),
    /// Commit what waits, then end.
    Close,
}

/// Work in the queue.
pub(super) struct Job {
    work: Work,
    claim: Claim,
    _room: Option<OwnedSemaphorePermit>,
}

impl Job {
    /// The work, unless its caller has given it up. From now on it may happen.
    pub(super) fn claim(self) -> Option<Work> {
        self.claim.take().then_some(self.work)
    }
}

/// Set by the writer, which then does the work, or by the caller, who gives it up.
#[derive(Clone, Default)]
struct Claim(Arc<AtomicBool>);

impl Claim {
    fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// Why the writer does no more work. Empty while it works.
pub(super) type Halt = Arc<OnceLock<Arc<str>>>;

/// The callers' side of the queue.
pub(super) struct Queue {
    jobs: mpsc::Sender<Job>,
    room: Arc<Semaphore>,
    halt: Halt,
}

/// Both sides of a new queue.
pub(super) fn queue(halt: Halt) -> (Queue, mpsc::Receiver<Job>) {
    let (jobs, waiting) = mpsc::channel();
    (Queue { jobs, room: Arc::new(Semaphore::new(WAITING_WRITES as usize)), halt }, waiting)
}

impl Queue {
    /// Submits work of `size` writes, and waits for its answer until `deadline`.
    pub(super) async fn submit<T>(
        &self,
        size: usize,
        deadline: Instant,
        work: impl FnOnce(Reply<T>) -> Work,
    ) -> Result<T, StoreError> {
        self.check()?;
        // A job that is larger than the whole queue is admitted alone.
        let size = u32::try_from(size).unwrap_or(u32::MAX).clamp(1, WAITING_WRITES);
        let room = match timeout_at(deadline, Arc::clone(&self.room).acquire_many_owned(size)).await {
            Ok(Ok(room)) => room,
            Ok(Err(_)) => return Err(unavailable("the store is closed")),
            Err(_) => return Err(unavailable("the queue of writes is full")),
        };
        let (reply, mut answer) = oneshot::channel();
        let claim = Claim::default();
        let job = Job { work: work(reply), claim: claim.clone(), _room: Some(room) };
        if self.jobs.send(job).is_err() {
            self.check()?;
            return Err(unavailable("the writer has ended"));
        }
        match timeout_at(deadline, &mut answer).await {
            Ok(Ok(answer)) => answer,
            late if claim.take() => Err(match late {
                Err(_) => unavailable("the deadline ended before the earlier writes were committed"),
                Ok(_) => unavailable("the writer has ended"),
            }),
            Ok(Err(_)) => Err(StoreError::OutcomeUnknown("the writer ended during the write".into())),
            // The answer may have come meanwhile.
            Err(_) => answer
                .try_recv()
                .unwrap_or_else(|_| Err(StoreError::OutcomeUnknown("not committed by the deadline".into()))),
        }
    }

    /// Accepts no more jobs, and ends the writer after those in the queue.
    pub(super) fn close(&self) {
        self.room.close();
        let _ = self.jobs.send(Job { work: Work::Close, claim: Claim::default(), _room: None });
    }

    fn check(&self) -> Result<(), StoreError> {
        self.halt.get().map_or(Ok(()), |why| Err(StoreError::Unavailable(Arc::clone(why))))
    }
}

fn unavailable(why: &str) -> StoreError {
    StoreError::Unavailable(why.into())
}
