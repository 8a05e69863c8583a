//! What the kernel says of a process: CPU time and memory.

use std::{collections::HashMap, fs, path::PathBuf, time::Duration};

/// The CPU time (user and system) of a process up to now. The scheduler counts each thread's in nanoseconds; the sum
/// that the kernel keeps for the process comes in ticks of 10 ms, and is taken where a thread has ended meanwhile.
pub(crate) struct Cpu {
    pid: u32,
    threads: HashMap<PathBuf, u64>,
    ticks: u64,
}

impl Cpu {
    pub(crate) fn of(pid: u32) -> Result<Self, String> {
        let gone = |e: std::io::Error| format!("no CPU time of process {pid}: {e}");
        let mut threads = HashMap::new();
        for thread in fs::read_dir(format!("/proc/{pid}/task")).map_err(gone)?.flatten() {
            // A thread may be gone before it is looked at, and a kernel may not count.
            let counted = fs::read_to_string(thread.path().join("schedstat")).ok();
            if let Some(nanos) = counted.and_then(|line| line.split_whitespace().next()?.parse().ok()) {
                threads.insert(thread.path(), nanos);
            }
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(gone)?;
        // Fields 14 and 15 of proc(5); the second one, a name, may hold spaces.
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let ticks = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        Ok(Self { pid, threads, ticks })
    }

    /// What was used from then to now.
    pub(crate) fn since(&self) -> Result<Duration, String> {
        let now = Self::of(self.pid)?;
        if self.threads.is_empty() || self.threads.keys().any(|thread| !now.threads.contains_key(thread)) {
            return Ok(Duration::from_millis((now.ticks - self.ticks) * 10));
        }
        let of = |(thread, nanos): (&PathBuf, &u64)| nanos - self.threads.get(thread).unwrap_or(&0);
        Ok(Duration::from_nanos(now.threads.iter().map(of).sum()))
    }
}

/// The memory of a process that is in RAM, in MiB.
pub(crate) fn resident_mib(pid: u32) -> Result<f64, String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).map_err(|e| format!("process {pid}: {e}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kib.ok_or_else(|| format!("process {pid} has ended"))? / 1024.0)
}

/// What the machine calculates with.
pub(crate) fn cpu_model() -> String {
    let all = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = all.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned())).unwrap_or_default()
}
