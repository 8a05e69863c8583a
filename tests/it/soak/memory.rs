//! The servers' memory, by process, every two seconds.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, atomic::Ordering::SeqCst},
    time::Duration,
};

use crate::history::client::Shared;

const EVERY: Duration = Duration::from_secs(2);
const MIB: usize = 1 << 20;
/// A process that lived shorter than this many samples is told, and not judged.
const ENOUGH: usize = 15;

pub struct Memory {
    instances: Mutex<Vec<Instance>>,
    watching: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

/// One process, from its start to its end.
#[derive(Clone, Debug)]
pub struct Instance {
    pub server: usize,
    pid: u32,
    /// Bytes.
    pub samples: Vec<usize>,
}

impl Memory {
    pub fn watch(shared: &Arc<Shared>) -> Arc<Self> {
        let memory = Arc::new(Self { instances: Mutex::default(), watching: Mutex::default() });
        let (of, shared) = (memory.clone(), shared.clone());
        let watching = tokio::spawn(async move {
            while !shared.stop.load(SeqCst) {
                tokio::time::sleep(EVERY).await;
                of.look();
            }
        });
        *memory.watching.lock().unwrap() = Some(watching);
        memory
    }

    /// A server's process from now on.
    pub fn began(&self, server: usize, pid: u32) {
        self.instances.lock().unwrap().push(Instance { server, pid, samples: Vec::new() });
    }

    pub fn stop(&self) {
        if let Some(watching) = self.watching.lock().unwrap().take() {
            watching.abort();
        }
    }

    /// What all have now.
    pub fn now(&self) -> String {
        let mut now = BTreeMap::new();
        for instance in self.instances.lock().unwrap().iter() {
            now.insert(instance.server, instance.samples.last().map_or(0, |bytes| bytes / MIB));
        }
        now.values().map(|mib| format!("{mib} MiB")).collect::<Vec<_>>().join(", ")
    }

    pub fn judge(&self) -> Vec<Instance> {
        self.instances.lock().unwrap().clone()
    }

    fn look(&self) {
        for instance in self.instances.lock().unwrap().iter_mut() {
            // One that has ended has no such line any more.
            instance.samples.extend(resident(instance.pid));
        }
    }
}

fn resident(pid: u32) -> Option<usize> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<usize>().ok()? << 10)
}

impl Instance {
    /// The median of the n-th third of its life.
    pub fn third(&self, n: usize) -> usize {
        let all = self.samples.len();
        let mut part = self.samples[all * n / 3..all * (n + 1) / 3].to_vec();
        part.sort_unstable();
        part.get(part.len() / 2).copied().unwrap_or(0)
    }

    pub fn is_judged(&self) -> bool {
        self.samples.len() >= ENOUGH
    }

    /// Its first third is what it takes to get warm.
    pub fn is_flat(&self) -> bool {
        !self.is_judged() || self.third(2) <= self.third(1) * 11 / 10 + 16 * MIB
    }

    /// A row of the table, in MiB.
    pub fn row(&self) -> String {
        let mib = |bytes: usize| format!("{:.0}", bytes as f64 / MIB as f64);
        let thirds: Vec<String> = (0..3).map(|n| mib(self.third(n))).collect();
        let last = self.samples.last().copied().unwrap_or(0);
        let largest = self.samples.iter().max().copied().unwrap_or(0);
        let verdict = match (self.is_judged(), self.is_flat()) {
            (false, _) => "too short",
            (true, true) => "flat",
            (true, false) => "GROWS",
        };
        let (seconds, thirds) = (self.samples.len() as u64 * EVERY.as_secs(), thirds.join(" | "));
        format!("{} | {seconds} s | {thirds} | {} | {} | {verdict}", self.server, mib(last), mib(largest))
    }
}
