//! The only thread that changes the store. It takes the waiting jobs as a group, applies them in
//! order, commits, fsyncs, and only then answers. While one group is fsynced the next one gathers
//! in the queue. So groups grow with the load, and a single write never waits for others.
//!
//! It also removes what is due by the expiry table, one limited batch at a time, and flushes what
//! it wrote after some idle seconds.

use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

use super::{
    engine::{Engine, parse_expiry_key},
    envelope, epoch,
    group::Group,
    queue::{Halt, Job, Receipts, Reply, Work, Written},
};
use crate::{
    record::{Clock, Revision, State},
    store::{EpochState, StoreError, WriteRules, apply::Document},
};

/// A group ends after this many jobs or writes, which limits the waiting time and the memory.
const GROUP_WRITES: usize = 2048;
/// Or after this many bytes of records. A batch with more (such as a thousand small merges into
/// large records) is committed in parts, and answered when all of them are.
const GROUP_BYTES: usize = 16 << 20;
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// After this many sweeps without a commit the store is idle. A pause between batches is shorter.
const IDLE_SWEEPS: u32 = 5;
/// How many records one sweep removes. This takes the writer a few milliseconds.
const SWEEP_RECORDS: usize = 500;

/// What the thread owns.
pub(super) struct Writer {
    pub(super) engine: Arc<Engine>,
    pub(super) rules: WriteRules,
    pub(super) clock: Clock,
    /// The number of committed groups.
    pub(super) commits: u64,
    /// The highest revision that was ever given.
    pub(super) highest: Revision,
    pub(super) epoch: Arc<ArcSwap<EpochState>>,
    /// The identity of the folder.
    pub(super) folder: String,
    pub(super) halt: Halt,
    /// Sweeps begin at this expiry key, because a scan from the start would pass over all removed
    /// keys.
    pub(super) swept: Vec<u8>,
}

/// An answer that waits for the commit.
enum Answer {
    Written(Reply<Written>, Written),
    Receipts(Reply<Receipts>, Receipts),
    Epoch(Reply<EpochState>, EpochState),
    Ping(Reply<()>),
}

impl Writer {
    /// Runs until `Close`, or until all callers are gone.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        let _last_words = LastWords(Arc::clone(&self.halt));
        let mut sweep_at = Instant::now() + SWEEP_EVERY;
        let (mut commits_before, mut idle_sweeps) = (self.commits, 0);
        loop {
            let first = match jobs.recv_timeout(sweep_at.saturating_duration_since(Instant::now())) {
                Ok(job) => Some(job),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if let Some(first) = first
                && self.group(first, jobs).is_break()
            {
                while let Ok(job) = jobs.try_recv() {
                    let _ = self.group(job, jobs);
                }
                return;
            }
            if Instant::now() >= sweep_at {
                let more = self.sweep();
                idle_sweeps = if self.commits == commits_before { idle_sweeps + 1 } else { 0 };
                commits_before = self.commits;
                if idle_sweeps >= IDLE_SWEEPS && self.halt.get().is_none() {
                    self.engine.flush();
                }
                sweep_at = Instant::now() + if more { Duration::ZERO } else { SWEEP_EVERY };
            }
        }
    }

    fn group(&mut self, first: Job, jobs: &Receiver<Job>) -> ControlFlow<()> {
        let engine = Arc::clone(&self.engine);
        let (rules, clock) = (self.rules.clone(), self.clock.clone());
        let mut group = Group::new(&engine, &rules, &clock, self.highest);
        let epoch_before = self.epoch.load_full();
        let mut epoch = EpochState::clone(&epoch_before);
        let mut answers = Vec::new();
        let mut size = 0;
        let mut earlier_parts = EarlierParts::default();
        let mut flow = ControlFlow::Continue(());

        let mut next = Some(first);
        while let Some(job) = next {
            size += 1;
            match job.claim() {
                Some(Work::Write(write, reply)) => {
                    size += 1;
                    let written = group.write(*write).map(|(receipt, stored)| (receipt, state(stored)));
                    answers.push(Answer::Written(reply, written));
                }
                Some(Work::Batch(writes, reply)) => {
                    size += writes.len();
                    let mut receipts = Vec::with_capacity(writes.len());
                    for write in writes {
                        if group.bytes() >= GROUP_BYTES {
                            let next = Group::new(&engine, &rules, &clock, group.highest());
                            earlier_parts.note(self.commit(std::mem::replace(&mut group, next), None));
                        }
                        receipts.push(group.write(write).map(|(receipt, _)| receipt));
                    }
                    answers.push(Answer::Receipts(reply, receipts));
                }
                Some(Work::RenewEpoch(seen, reply)) => {
                    if epoch.epoch == seen {
                        epoch = epoch::new(epoch.l1);
                    }
                    answers.push(Answer::Epoch(reply, epoch.clone()));
                }
                Some(Work::NameL1(claim, reply)) => {
                    epoch = epoch::claimed(epoch, *claim);
                    answers.push(Answer::Epoch(reply, epoch.clone()));
                }
                Some(Work::NewEpoch(l1, reply)) => {
                    epoch = epoch::new(l1);
                    answers.push(Answer::Epoch(reply, epoch.clone()));
                }
                Some(Work::MarkDirty(reply)) => {
                    epoch.dirty = true;
                    answers.push(Answer::Epoch(reply, epoch.clone()));
                }
                Some(Work::Ping(reply)) => answers.push(Answer::Ping(reply)),
                Some(Work::Close) => flow = ControlFlow::Break(()),
                None => {} // its caller gave it up
            }
            let has_room = size < GROUP_WRITES && group.bytes() < GROUP_BYTES;
            next = if has_room { jobs.try_recv().ok() } else { None };
        }

        let done = self.commit(group, (epoch != *epoch_before).then_some(epoch));
        let done = earlier_parts.and(done);
        for answer in answers {
            answer.send(done.clone().err());
        }
        flow
    }

    fn commit(&mut self, group: Group<'_>, epoch: Option<EpochState>) -> Result<(), StoreError> {
        if let Some(why) = self.halt.get() {
            return Err(StoreError::Unavailable(Arc::clone(why)));
        }
        if !group.is_changed() && epoch.is_none() {
            return Ok(());
        }
        let highest = group.highest();
        let mut changes = self.engine.changes(self.commits + 1, highest);
        let earliest = group.put_into(&mut changes);
        if let Some(epoch) = &epoch {
            self.engine.put_meta(&mut changes, epoch::EPOCH, epoch::encode(epoch));
            self.engine.put_meta(&mut changes, epoch::L1, epoch::encode_l1(epoch, &self.folder));
        }
        self.engine.commit(changes).inspect_err(|error| self.stop(error))?;
        (self.commits, self.highest) = (self.commits + 1, highest);
        if let Some(epoch) = epoch {
            self.epoch.store(Arc::new(epoch));
        }
        if let Some(earliest) = earliest.filter(|earliest| *earliest <= self.swept) {
            self.swept = earliest;
            self.swept.pop(); // the scan begins after this one
        }
        Ok(())
    }

    /// Removes what is due, and returns whether there is more. This is only garbage collection:
    /// readers decide about expiry.
    fn sweep(&mut self) -> bool {
        if self.halt.get().is_some() {
            return false;
        }
        let now = self.clock.now();
        let due = match self.engine.due(&self.swept, now, SWEEP_RECORDS) {
            Ok(due) => due,
            Err(error) => {
                tracing::warn!(%error, "the expired records that are due for removal could not be read");
                return false;
            }
        };
        let Some(last) = due.last().cloned() else { return false };
        let more = due.len() == SWEEP_RECORDS;
        let mut changes = self.engine.changes(self.commits + 1, self.highest);
        for expiry_key in due {
            let Some((at, key)) = parse_expiry_key(&expiry_key) else { continue };
            match self.engine.get(key).map(|envelope| envelope.map(|bytes| envelope::decode(key, bytes))) {
                Ok(Some(Ok(stored))) if stored.collect_at == Some(at) => self.engine.remove(&mut changes, key),
                Ok(Some(Ok(_)) | None) => {}           // it lives on, or is gone
                Ok(Some(Err(_))) | Err(_) => continue, // cannot be read: left as it is for whoever repairs it
            }
            self.engine.remove_expiry(&mut changes, expiry_key);
        }
        if let Err(error) = self.engine.commit(changes) {
            self.stop(&error);
            return false;
        }
        self.commits += 1;
        self.swept = last;
        more
    }

    /// After a failed commit the result of another fsync cannot be trusted, so there is none.
    fn stop(&self, error: &StoreError) {
        let folder = self.engine.folder().display();
        match self.engine.refuses_data() {
            Some(reason) => tracing::error!(
                %folder, %error, %reason,
                "the local store cannot write to its folder: it takes no more writes, and reads continue; make room \
                 in the folder, then restart the server"
            ),
            None => tracing::error!(
                %folder, %error,
                "a commit to the local store failed: it takes no more writes, and reads continue; restart the server"
            ),
        }
        let _ = self.halt.set("an earlier commit failed; restart the server".into());
    }
}

/// The result of the parts of a group that were committed before its last one.
#[derive(Default)]
struct EarlierParts {
    are_some_done: bool,
    failure: Option<StoreError>,
}

impl EarlierParts {
    fn note(&mut self, done: Result<(), StoreError>) {
        match done {
            Ok(()) => self.are_some_done = true,
            Err(error) => _ = self.failure.get_or_insert(error),
        }
    }

    /// The result of the whole group, whose last part is `last`. All of it gets one answer, so if
    /// only some parts were committed, no caller is told that nothing happened.
    fn and(self, last: Result<(), StoreError>) -> Result<(), StoreError> {
        match self.failure.map_or(last, Err) {
            Err(StoreError::Unavailable(why)) if self.are_some_done => Err(StoreError::OutcomeUnknown(why)),
            done => done,
        }
    }
}

fn state(stored: Option<&Document>) -> State {
    stored.map_or(State::Absent, |stored| stored.content.state())
}

impl Answer {
    fn send(self, failure: Option<StoreError>) {
        // A caller that no longer waits has returned its own error.
        match self {
            Self::Written(reply, written) => drop(reply.send(failure.map_or(Ok(written), Err))),
            Self::Receipts(reply, receipts) => drop(reply.send(failure.map_or(Ok(receipts), Err))),
            Self::Epoch(reply, epoch) => drop(reply.send(failure.map_or(Ok(epoch), Err))),
            Self::Ping(reply) => drop(reply.send(failure.map_or(Ok(()), Err))),
        }
    }
}

/// Notes that the writer has ended, also after a panic.
struct LastWords(Halt);

impl Drop for LastWords {
    fn drop(&mut self) {
        let _ = self.0.set("the store is closed".into());
        if std::thread::panicking() {
            tracing::error!("the writer of the local store panicked: it takes no more writes; restart the server");
        }
    }
}
