//! Counts lines of the logs that were lost.

use super::Counter;

/// The log of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Log {
    /// The log of the server.
    Server,
    /// The audit log: denied calls and writes.
    Audit,
}

impl Log {
    /// Both, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Server, Self::Audit];

    /// The name in the metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Audit => "audit",
        }
    }
}

/// Counts lines that were dropped because standard error was not read, or could not be written.
#[derive(Debug, Default)]
pub struct LostLines([Counter; Log::ALL.len()]);

impl LostLines {
    /// Adds lost lines of a log.
    pub fn add(&self, log: Log, lines: usize) {
        self.0[log as usize].add(lines);
    }

    /// The lost lines of a log since the start.
    pub fn get(&self, log: Log) -> u64 {
        self.0[log as usize].get()
    }
}
