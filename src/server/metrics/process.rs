//! What the process uses of the machine, under the names that all client libraries of Prometheus
//! use. Read from /proc of Linux; on other systems there are no such series.

use std::fs;

use crate::metrics::{Kind, Text};

/// Linux counts the time of a process in hundredths of a second, whatever the clock of the kernel
/// is.
const TICKS: f64 = 100.0;

pub(super) fn write(text: &mut Text) {
    let Some(process) = Process::now() else { return };
    let help = "User and system CPU time.";
    text.family("process_cpu_seconds", Kind::Counter, help).value(&[], process.cpu_seconds);
    let gauges = [
        ("process_resident_memory_bytes", "Memory in use.", process.resident_bytes),
        ("process_virtual_memory_bytes", "Virtual memory.", process.virtual_bytes),
        ("process_start_time_seconds", "When the process started, in seconds since 1970.", process.started),
        ("process_open_fds", "Open files and sockets.", process.open_fds),
        ("process_max_fds", "The most open files and sockets.", process.max_fds),
        ("process_threads", "Threads.", process.threads),
    ];
    for (name, help, value) in gauges {
        text.family(name, Kind::Gauge, help).value(&[], value);
    }
}

#[derive(Debug)]
struct Process {
    cpu_seconds: f64,
    resident_bytes: f64,
    virtual_bytes: f64,
    started: f64,
    open_fds: f64,
    max_fds: f64,
    threads: f64,
}

impl Process {
    fn now() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // What follows the name of the program, which may contain anything. So the first field here
        // is the third of the line.
        let stat: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |field: usize| Some(stat.get(field - 3)?.parse::<f64>().ok()? / TICKS);
        let boot: f64 = number(&fs::read_to_string("/proc/stat").ok()?, "btime ")?;
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let limits = fs::read_to_string("/proc/self/limits").ok()?;
        Some(Self {
            cpu_seconds: ticks(14)? + ticks(15)?,
            resident_bytes: number(&status, "VmRSS:")? * 1024.0,
            virtual_bytes: number(&status, "VmSize:")? * 1024.0,
            started: boot + ticks(22)?,
            open_fds: fs::read_dir("/proc/self/fd").ok()?.count() as f64,
            max_fds: number(&limits, "Max open files").unwrap_or(f64::INFINITY),
            threads: number(&status, "Threads:")?,
        })
    }
}

/// The number that follows a word at the beginning of a line.
fn number(text: &str, word: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(word))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_measured() {
        let process = Process::now().unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((now - process.started).abs() < 3600.0 * 24.0 && process.started < now + 1.0, "{process:?}");
        assert!(process.resident_bytes > 1e6 && process.virtual_bytes > process.resident_bytes, "{process:?}");
        assert!(process.cpu_seconds >= 0.0 && process.cpu_seconds < 3600.0, "{process:?}");
        assert!(
            process.open_fds >= 3.0 && process.max_fds >= process.open_fds && process.threads >= 1.0,
            "{process:?}"
        );
    }
}
