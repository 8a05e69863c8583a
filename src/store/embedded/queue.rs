//! The way of a job to the writer thread and of its answer back: bounded in operations and in time, and always telling
//! "surely did not happen" apart from "may still happen".

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

/// Writes that may wait for the writer; more wait, within their deadline, in the callers.
const WAITING_WRITES: u32 = 4096;

/// What became of a write, and what stands after it.
pub(super) type Written = Result<(Receipt, State), StoreError>;
/// What became of each write of a batch.
pub(super) type Receipts = Vec<Result<Receipt, StoreError>>;
/// Where a job's answer goes.
pub(super) type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the writer is asked to do.
pub(super) enum Work {
    /// One write.
    Write(Box<Write>, Reply<Written>),
    /// Writes, in their order.
    Batch(Vec<Write>, Reply<Receipts>),
    /// A new epoch if it is still this one.
    RenewEpoch(Epoch, Reply<EpochState>),
    /// The L1 that the epoch holds for, if it is still the one that was seen.
    NameL1(Box<L1Claim>, Reply<EpochState>),
    /// A new epoch, whatever stands there.
    NewEpoch(Option<L1Name>, Reply<EpochState>),
    /// The flag of the present epoch.
    MarkDirty(Reply<EpochState>),
    /// Nothing: shows that the writer comes round.
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
    /// The work, unless its caller has given it up; from now on it may happen.
    pub(super) fn claim(self) -> Option<Work> {
        self.claim.take().then_some(self.work)
    }
}

/// Taken either by the writer, who then does the work, or by the caller, who gives it up.
#[derive(Clone, Default)]
struct Claim(Arc<AtomicBool>);

impl Claim {
    fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// Why the writer does no more work; empty while it works.
pub(super) type Halt = Arc<OnceLock<Arc<str>>>;

/// The callers' end.
pub(super) struct Queue {
    jobs: mpsc::Sender<Job>,
    room: Arc<Semaphore>,
    halt: Halt,
}

/// The queue, and the writer's end of it.
pub(super) fn queue(halt: Halt) -> (Queue, mpsc::Receiver<Job>) {
    let (jobs, waiting) = mpsc::channel();
    (Queue { jobs, room: Arc::new(Semaphore::new(WAITING_WRITES as usize)), halt }, waiting)
}

impl Queue {
    /// Has work of `size` writes done, and waits for its answer until `deadline`.
    pub(super) async fn submit<T>(
        &self,
        size: usize,
        deadline: Instant,
        work: impl FnOnce(Reply<T>) -> Work,
    ) -> Result<T, StoreError> {
        self.check()?;
        // One job larger than all the room is let in alone.
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
                Err(_) => unavailable("the writes before this one took until its deadline"),
                Ok(_) => unavailable("the writer has ended"),
            }),
            Ok(Err(_)) => Err(StoreError::OutcomeUnknown("the writer ended during the write".into())),
            // The answer may have come since.
            Err(_) => answer
                .try_recv()
                .unwrap_or_else(|_| Err(StoreError::OutcomeUnknown("not committed by the deadline".into()))),
        }
    }

    /// Lets nothing more in, and has the writer end after what is in.
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
