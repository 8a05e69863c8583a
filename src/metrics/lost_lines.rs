//! Lines of the logs that were lost.

use super::Counter;

/// Which log a line belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Log {
    /// What the server logs of itself.
    Server,
    /// Who was denied, and who wrote what.
    Audit,
}

impl Log {
    /// Both, in the order in which they are numbered.
    pub const ALL: [Self; 2] = [Self::Server, Self::Audit];

    /// As the metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Audit => "audit",
        }
    }
}

/// Counts lines that never reached standard error, as nobody read it or it could not be written to.
#[derive(Debug, Default)]
pub struct LostLines([Counter; Log::ALL.len()]);

impl LostLines {
    /// So many more of a log.
    pub fn add(&self, log: Log, lines: usize) {
        self.0[log as usize].add(lines);
    }

    /// All of a log, since start.
    pub fn get(&self, log: Log) -> u64 {
        self.0[log as usize].get()
    }
}
