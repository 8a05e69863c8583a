//! Runs operations of the driver: each in a task of its own, within a deadline, on a prepared
//! database.
//!
//! Invariants: no future of the driver is ever dropped half way (RUST-937: it can corrupt the
//! driver's state). At most as many operations run as there are connections, so no queue in the
//! driver grows without limit.

use std::{
    future::Future,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use bson::doc;
use mongodb::{
    Client,
    error::Error,
    options::{ClientOptions, ConnectionString},
};
use tokio::{
    sync::{AcquireError, Mutex, OnceCell, OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    MongoConfig, address, cause,
    failure::Failure,
    keeper,
    prepared::Prepared,
    setup::{self, Setup},
};
use crate::{
    metrics::{Histogram, PoolReading},
    record::Millis,
    store::{Finding, TimeSeen},
    trace::{self, Asked, Place},
};

/// Connections and slots that operations of users cannot take.
const RESERVED: u32 = 2;
/// Change streams at a time, each with its own connection: the two passes of the repairer.
const STREAMS: u32 = 2;
/// Connections for `keeper`: one to check the collections, one to make the index.
const KEEPERS: u32 = 2;
/// How long `close` waits for running operations, and then for the driver.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long `close` waits for the server to end its cursors.
const CURSORS_TIMEOUT: Duration = Duration::from_secs(2);
/// The interval and timeout of the driver's monitor, unless the URI says otherwise. Only the
/// monitor ends operations on a connection to a server that no longer answers.
const MONITOR_INTERVAL: Duration = Duration::from_secs(2);

/// The time between two searches for the cause of a failure to connect.
const CAUSE_INTERVAL: Duration = Duration::from_secs(5);

/// That of MongoDB 4.4, the first with `$bsonSize` in pipelines.
const OLDEST_WIRE_VERSION: i32 = 9;

/// Who asks for the operation, which decides for which slots it waits.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lane {
    /// The users' reads and writes.
    Users,
    /// Operations that must not queue behind them.
    Reserved,
}

/// How an operation is named in traces.
#[derive(Clone, Copy, Debug)]
pub(super) struct Command {
    /// MongoDB's name.
    name: &'static str,
    collection: &'static str,
    /// The number of writes in the command.
    writes: usize,
}

impl Command {
    pub(super) fn new(name: &'static str, collection: &'static str) -> Self {
        Self { name, collection, writes: 1 }
    }

    pub(super) fn of_many(self, writes: usize) -> Self {
        Self { writes, ..self }
    }
}

/// The connection to MongoDB.
pub(super) struct Connection {
    config: MongoConfig,
    uri: ConnectionString,
    client: OnceCell<Client>,
    prepared: OnceLock<Prepared>,
    setup: Arc<Setup>,
    /// The last reading of the server's clock.
    time: ArcSwapOption<TimeSeen>,
    slots: Arc<Semaphore>,
    reserved: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    running: TaskTracker,
    closing: CancellationToken,
    /// Operations of users that wait for a slot.
    waiting: AtomicUsize,
    /// How long they waited.
    waits: Histogram,
    /// For traces.
    place: Place,
    /// Why no server could be reached, as far as known, and when that was last looked for.
    cause: Mutex<Option<(Option<String>, Instant)>>,
}

impl Connection {
    /// Options of the URI for the pool and for waiting have priority over the configuration.
    pub(super) fn new(mut config: MongoConfig, uri: ConnectionString) -> Self {
        config.max_pool = uri.max_pool_size.filter(|size| *size > 0).unwrap_or(config.max_pool);
        config.max_connecting = uri.max_connecting.unwrap_or(config.max_connecting);
        config.server_selection_timeout = uri.server_selection_timeout.unwrap_or(config.server_selection_timeout);
        let slots = Arc::new(Semaphore::new(config.max_pool.max(1) as usize));
        let reserved = Arc::new(Semaphore::new(RESERVED as usize));
        let streams = Arc::new(Semaphore::new(STREAMS as usize));
        let (client, prepared, running) = (OnceCell::new(), OnceLock::new(), TaskTracker::new());
        let (closing, waiting, waits) = (CancellationToken::new(), AtomicUsize::new(0), Histogram::default());
        let place = address::place(&uri, &config.database);
        let (setup, time) = (Arc::default(), ArcSwapOption::empty());
        Self {
            config,
            uri,
            client,
            prepared,
            setup,
            time,
            slots,
            reserved,
            streams,
            running,
            closing,
            waiting,
            waits,
            place,
            cause: Mutex::default(),
        }
    }

    /// The findings about the collections.
    pub(super) fn findings(&self) -> Arc<Vec<Finding>> {
        self.setup.findings()
    }

    /// An error may come from a change of the collections, so they are checked soon.
    pub(super) fn suspect(&self) {
        self.setup.suspected.notify_one();
    }

    /// The last reading of the server's clock.
    pub(super) fn time(&self) -> Option<TimeSeen> {
        self.time.load().as_deref().copied()
    }

    pub(super) fn saw_time(&self, time: bson::DateTime, after: Instant) {
        let time = Millis(time.timestamp_millis());
        self.time.store(Some(TimeSeen { time, after, before: Instant::now() }.into()));
    }

    /// The present time by the server's clock, as far as it is known.
    pub(super) fn now(&self) -> bson::DateTime {
        match self.time() {
            Some(seen) => bson::DateTime::from_millis(seen.time.after(seen.before.elapsed()).0),
            None => bson::DateTime::now(),
        }
    }

    pub(super) fn config(&self) -> &MongoConfig {
        &self.config
    }

    pub(super) fn uri(&self) -> &ConnectionString {
        &self.uri
    }

    /// How the users' connections are used.
    pub(super) fn pool(&self) -> PoolReading {
        let max = self.config.max_pool.max(1) as usize;
        let (used, pending) = (max - self.slots.available_permits(), self.waiting.load(Relaxed));
        PoolReading { max, used, pending, waits: Some(self.waits.distribution()) }
    }

    /// Whether the server is no member of a replica set. None: it was not reached yet.
    pub(super) fn is_standalone(&self) -> Option<bool> {
        self.prepared.get().map(|prepared| prepared.standalone)
    }

    /// Runs a long operation in a task of its own. It must end soon after the token is cancelled,
    /// or when its receiver is gone. None: every slot was taken until the deadline.
    pub(super) async fn run_on<F>(
        &self,
        deadline: Instant,
        work: impl FnOnce(Prepared, CancellationToken) -> F,
    ) -> Result<(), Failure>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let prepared = self.prepared(deadline).await?;
        let place = match timeout_at(deadline, self.streams.clone().acquire_owned()).await {
            Ok(Ok(place)) => place,
            Ok(Err(_)) => return Err(Failure::not_done("the store is closed")),
            Err(_) => return Err(Failure::not_done("earlier change streams did not end in time")),
        };
        let work = work(prepared, self.closing.clone());
        self.running.spawn(async move {
            let _place = place;
            work.await;
        });
        Ok(())
    }

    /// Runs one operation on the prepared database. It gets the time that is left.
    pub(super) async fn run<T, F>(
        &self,
        command: Command,
        lane: Lane,
        deadline: Instant,
        operation: impl FnOnce(Prepared, Duration) -> F,
    ) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let asked = || Asked {
            place: &self.place,
            operation: command.name.into(),
            collection: Some(command.collection),
            procedure: None,
            operations: command.writes,
        };
        let run = async {
            let prepared = self.prepared(deadline).await?;
            let done = self.spawn(lane, deadline, |left| operation(prepared, left)).await;
            if done.as_ref().is_err_and(Failure::is_refusal) {
                self.suspect();
            }
            done
        };
        trace::backend(asked, |done: &Result<T, Failure>| done.as_ref().err().map(Failure::for_traces), run).await
    }

    /// Waits for running operations, and ends the driver's own tasks. Nothing is sent afterwards.
    pub(super) async fn close(&self) {
        self.slots.close();
        self.reserved.close();
        self.streams.close();
        self.closing.cancel();
        self.running.close();
        if timeout(CLOSE_TIMEOUT, self.running.wait()).await.is_err() {
            tracing::warn!(
                operations = self.running.len(),
                "operations of MongoDB were still running when the server stopped; they may still happen"
            );
        }
        if let Some(client) = self.client.get() {
            // Tasks of the driver end the cursors of change streams, and panic if the client is
            // gone.
            let cursors = tokio::spawn(client.clone().shutdown().into_future());
            let _ = timeout(CURSORS_TIMEOUT, cursors).await;
            let shutdown = tokio::spawn(client.clone().shutdown().immediate(true).into_future());
            let _ = timeout(CLOSE_TIMEOUT, shutdown).await;
        }
    }

    async fn prepared(&self, deadline: Instant) -> Result<Prepared, Failure> {
        if let Some(prepared) = self.prepared.get() {
            return self.unless_refused(prepared);
        }
        // Several callers may do this at the same time, which is harmless, and none waits for
        // another's deadline. On any failure here the caller's operation was not done.
        let client = timeout_at(deadline, self.client.get_or_try_init(|| self.connect(deadline)));
        let client = client.await.map_err(|_| Failure::not_done("connecting took too long"))??;
        let database = client.database(&self.config.database);
        let hello = database.clone();
        let hello =
            self.spawn(Lane::Reserved, deadline, move |_| async move { hello.run_command(doc! { "hello": 1 }).await });
        let hello = match hello.await {
            Ok(hello) => hello,
            Err(failure) => return Err(self.explained(failure.before_the_operation(), deadline).await),
        };
        let wire_version = hello.get_i32("maxWireVersion").unwrap_or(0);
        if wire_version < OLDEST_WIRE_VERSION {
            return Err(Failure::not_done(&format!(
                "MongoDB is too old (wire version {wire_version}): 4.4 or newer is needed"
            )));
        }
        let standalone = !hello.contains_key("setName") && !hello.get_str("msg").is_ok_and(|msg| msg == "isdbgrid");
        let prepared = Prepared { database, standalone };
        let database = prepared.database.clone();
        let seen = self.spawn(Lane::Reserved, deadline, move |_| async move { setup::look(&database).await }).await;
        self.setup.found(seen.map_err(Failure::before_the_operation)?.findings);
        let prepared = self.prepared.get_or_init(|| {
            self.running.spawn(keeper::keep(prepared.clone(), self.setup.clone(), self.closing.clone()));
            prepared
        });
        self.unless_refused(prepared)
    }

    /// Fails if answers from the collections would be wrong; then nothing is read or written.
    fn unless_refused(&self, prepared: &Prepared) -> Result<Prepared, Failure> {
        match self.setup.refusal() {
            None => Ok(prepared.clone()),
            Some(why) => Err(Failure::unusable(&why)),
        }
    }

    /// The failure with its cause, if one can be found. It is looked for from time to time, not at
    /// every call.
    async fn explained(&self, failure: Failure, deadline: Instant) -> Failure {
        let Ok(mut cause) = timeout_at(deadline, self.cause.lock()).await else { return failure };
        if cause.as_ref().is_none_or(|(_, looked)| looked.elapsed() > CAUSE_INTERVAL) {
            let found = timeout_at(deadline, cause::of_failure(&self.uri)).await;
            *cause = found.ok().map(|found| (found, Instant::now()));
        }
        match cause.as_ref() {
            Some((Some(why), _)) => failure.with_text(why),
            _ => failure,
        }
    }

    async fn connect(&self, deadline: Instant) -> Result<Client, Failure> {
        let uri = self.uri.clone();
        let config = &self.config;
        // Asks DNS if the URI is mongodb+srv.
        let options = self.spawn(Lane::Reserved, deadline, |_| async { ClientOptions::parse(uri).await });
        let mut options = options.await.map_err(Failure::before_the_operation)?;
        options.app_name.get_or_insert_with(|| "featurestore".to_owned());
        options.max_pool_size = Some(config.max_pool.saturating_add(RESERVED + STREAMS + KEEPERS));
        options.max_connecting = Some(config.max_connecting);
        options.server_selection_timeout = Some(config.server_selection_timeout);
        options.connect_timeout.get_or_insert(MONITOR_INTERVAL);
        options.heartbeat_freq.get_or_insert(MONITOR_INTERVAL);
        // The retry of the driver would hide that the first try may have happened. Our own does
        // not, and also covers commands.
        options.retry_writes = Some(false);
        Client::with_options(options).map_err(|error| Failure::not_done(&error.kind.to_string()))
    }

    async fn spawn<T, F>(
        &self,
        lane: Lane,
        deadline: Instant,
        operation: impl FnOnce(Duration) -> F,
    ) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let slot = match lane {
            Lane::Users => timeout_at(deadline, self.slot()).await,
            Lane::Reserved => timeout_at(deadline, self.reserved.clone().acquire_owned()).await,
        };
        let slot = match slot {
            Ok(Ok(slot)) => slot,
            Ok(Err(_)) => return Err(Failure::not_done("the store is closed")),
            Err(_) => return Err(Failure::not_done("every connection was busy until the deadline")),
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left < Duration::from_millis(1) {
            return Err(Failure::not_done("the deadline passed before the operation was sent"));
        }
        let operation = operation(left);
        let task = self.running.spawn(async move {
            let _slot = slot; // held until it has ended, not until somebody stops waiting
            operation.await
        });
        match timeout_at(deadline, task).await {
            Ok(Ok(result)) => result.map_err(Failure::from),
            Ok(Err(_)) => Err(Failure::unknown("the operation's task ended without an answer")),
            Err(_) => Err(Failure::out_of_time()),
        }
    }

    /// A slot for an operation of a user.
    async fn slot(&self) -> Result<OwnedSemaphorePermit, AcquireError> {
        if let Ok(slot) = self.slots.clone().try_acquire_owned() {
            self.waits.note(Duration::ZERO);
            return Ok(slot);
        }
        let waiting = Waiting::new(&self.waiting, &self.waits);
        let slot = self.slots.clone().acquire_owned().await;
        drop(waiting);
        slot
    }
}

/// A caller that waits for a slot, until it gets one or gives up.
struct Waiting<'a> {
    count: &'a AtomicUsize,
    waits: &'a Histogram,
    since: Instant,
}

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize, waits: &'a Histogram) -> Self {
        count.fetch_add(1, Relaxed);
        Self { count, waits, since: Instant::now() }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Relaxed);
        self.waits.note(self.since.elapsed());
    }
}
