//! The load. Closed loop: so many calls are always in flight, which tells the throughput. Open loop: calls come at a
//! constant rate whether or not earlier ones were answered, and latency counts from when a call was due, so that a stall
//! is seen by all calls that it delays (no coordinated omission).

use std::{
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use crate::usage::Cpu;

/// How long calls that are in flight at the end may still take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Calls in flight of an open loop at most: beyond, the rate is more than can be served.
const MAX_BEHIND: usize = 20_000;
/// Latencies are told up to here.
const MAX_NANOS: u64 = 60_000_000_000;

/// Something that can be called again and again, from many tasks at once.
pub(crate) trait Call: Send + Sync + 'static {
    /// One call.
    fn call(&self) -> impl Future<Output = Result<(), String>> + Send;

    /// The process whose CPU time is counted.
    fn pid(&self) -> u32 {
        std::process::id()
    }
}

/// What a closed loop showed.
pub(crate) struct Closed {
    pub(crate) per_second: f64,
    pub(crate) cpu_micros: f64,
    pub(crate) latencies: Latencies,
}

/// Latencies in nanoseconds.
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    fn new() -> Self {
        Self(Histogram::new_with_bounds(1, MAX_NANOS, 3).expect("these bounds are allowed"))
    }

    fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    /// In microseconds.
    pub(crate) fn quantile(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e3
    }
}

/// Keeps so many calls in flight.
pub(crate) async fn closed<C: Call>(call: &Arc<C>, in_flight: usize, span: Duration) -> Result<Closed, String> {
    let cpu = Cpu::of(call.pid())?;
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..in_flight {
        let call = call.clone();
        tasks.spawn(async move {
            let (mut latencies, mut at) = (Latencies::new(), Instant::now());
            loop {
                call.call().await?;
                let now = Instant::now();
                latencies.record(now - at);
                at = now;
                if now >= start + span {
                    return Ok::<_, String>(latencies);
                }
            }
        });
    }
    let mut all = Latencies::new();
    let gather = async {
        while let Some(ended) = tasks.join_next().await {
            all.0 += ended.map_err(|e| e.to_string())??.0;
        }
        Ok::<_, String>(())
    };
    tokio::time::timeout(span + PATIENCE, gather).await.map_err(|_| "calls were not answered in time".to_owned())??;
    let (elapsed, cpu, calls) = (start.elapsed(), cpu.since()?, all.0.len() as f64);
    Ok(Closed {
        per_second: calls / elapsed.as_secs_f64(),
        cpu_micros: cpu.as_secs_f64() * 1e6 / calls,
        latencies: all,
    })
}

/// Calls at a constant rate.
pub(crate) async fn open<C: Call>(call: &Arc<C>, per_second: f64, span: Duration) -> Result<Latencies, String> {
    let seen = Arc::new(Mutex::new(Ok(Latencies::new())));
    let (calls, stop) = (TaskTracker::new(), Arc::new(AtomicBool::new(false)));
    let pace = {
        let (call, seen, calls, stop) = (call.clone(), seen.clone(), calls.clone(), stop.clone());
        let runtime = tokio::runtime::Handle::current();
        // A thread sleeps more exactly than a timer of the runtime, which counts whole milliseconds.
        move || {
            let start = Instant::now();
            for number in 0..(per_second * span.as_secs_f64()) as u64 {
                let due = start + Duration::from_secs_f64(number as f64 / per_second);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                if stop.load(Relaxed) || calls.len() > MAX_BEHIND {
                    stop.store(true, Relaxed);
                    return;
                }
                let (call, seen) = (call.clone(), seen.clone());
                calls.spawn_on(
                    async move {
                        let answer = call.call().await;
                        let latency = due.elapsed();
                        let mut seen = seen.lock().expect("nothing panics with it");
                        match (&mut *seen, answer) {
                            (Ok(latencies), Ok(())) => latencies.record(latency),
                            (Ok(_), Err(error)) => *seen = Err(error),
                            (Err(_), _) => {}
                        }
                    },
                    &runtime,
                );
            }
        }
    };
    let pace = tokio::task::spawn_blocking(pace);
    let ended = tokio::time::timeout(span + PATIENCE, async {
        pace.await.map_err(|e| e.to_string())?;
        calls.close();
        calls.wait().await;
        Ok::<_, String>(())
    });
    let in_time = ended.await;
    let too_much = stop.swap(true, Relaxed);
    in_time.map_err(|_| "calls were not answered in time".to_owned())??;
    if too_much {
        return Err(format!("{per_second:.0} calls/s were more than could be served: {MAX_BEHIND} waited"));
    }
    let mut seen = seen.lock().expect("nothing panics with it");
    std::mem::replace(&mut *seen, Err(String::new()))
}
