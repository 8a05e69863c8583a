//! The lines of the log on their way to standard error. A thread that logs never waits for the
//! reader of standard error: lines go into a bounded queue, a thread of its own writes them, and a
//! line that finds no room is dropped and counted. When the reader continues, a line says how many
//! were lost.
//!
//! A part of the queue is for the audit log alone, so that a flood of other lines does not displace
//! it; its losses are counted separately.

use std::{
    io::{self, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    thread::{self, ThreadId},
    time::{Duration, Instant},
};

use tracing::Metadata;
use tracing_subscriber::fmt::MakeWriter;

use crate::{
    access::AUDIT,
    metrics::{Log, LostLines},
};

/// The most bytes that wait to be written; the writing thread may hold as many again.
const MAX_BYTES: usize = 1 << 20;
/// The part that only the audit log may use.
const AUDIT_BYTES: usize = MAX_BYTES / 4;
/// The most bytes of one write.
const WRITE_BYTES: usize = 16 << 10;
/// How long `flush` waits while nothing at all is read, and how long while something is.
const STALLED: Duration = Duration::from_secs(1);
const FLUSH: Duration = Duration::from_secs(5);
/// The pause before the next write if standard error is non-blocking and full.
const FULL: Duration = Duration::from_millis(10);

type Counts = [u64; Log::ALL.len()];

/// The queue to standard error; clones share it.
#[derive(Clone)]
pub struct Lines(Arc<Queue>);

struct Queue {
    state: Mutex<State>,
    filled: Condvar,
    written: Condvar,
    lost: Arc<LostLines>,
    writer: OnceLock<ThreadId>,
}

#[derive(Default)]
struct State {
    waiting: Batch,
    is_writing: bool,
    writes: u64,
}

/// Lines in a row, and how many were dropped after them.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    lines: Counts,
    dropped: Counts,
}

impl Lines {
    /// Lines to standard error; starts the thread that writes them.
    pub(super) fn to_standard_error() -> io::Result<Self> {
        Self::to(standard_error(), log_loss)
    }

    /// `log_loss` logs how many lines were lost.
    fn to(out: impl Write + Send + 'static, log_loss: impl Fn(Counts) + Send + 'static) -> io::Result<Self> {
        let (state, lost, writer) = (Mutex::default(), Arc::default(), OnceLock::new());
        let queue = Arc::new(Queue { state, filled: Condvar::new(), written: Condvar::new(), lost, writer });
        let writing = queue.clone();
        let thread = thread::Builder::new().name("log".to_owned()).spawn(move || writing.write_all(out, log_loss))?;
        let _ = queue.writer.set(thread.thread().id());
        Ok(Self(queue))
    }

    /// The counter of lost lines.
    pub fn lost(&self) -> Arc<LostLines> {
        self.0.lost.clone()
    }

    /// Waits until all lines are written, for a bounded time.
    pub fn flush(&self) {
        let (end, mut state) = (Instant::now() + FLUSH, self.0.lock());
        let (mut writes, mut since) = (state.writes, Instant::now());
        while state.is_writing || !state.waiting.bytes.is_empty() {
            if state.writes != writes {
                (writes, since) = (state.writes, Instant::now());
            }
            let left = end.min(since + STALLED).saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.0.written.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Queues a line, or counts it as lost.
    pub(super) fn push(&self, log: Log, line: &[u8]) {
        let room = if log == Log::Audit { MAX_BYTES } else { MAX_BYTES - AUDIT_BYTES };
        let mut state = self.0.lock();
        let waiting = &mut state.waiting;
        // The writing thread itself logs one or two lines for a batch, and they must not be lost.
        let fits = waiting.dropped[log as usize] == 0 && waiting.bytes.len() + line.len() <= room;
        if !fits && self.0.writer.get() != Some(&thread::current().id()) {
            waiting.dropped[log as usize] += 1;
            drop(state);
            return self.0.lost.add(log, 1);
        }
        waiting.bytes.extend_from_slice(line);
        waiting.lines[log as usize] += 1;
        drop(state);
        self.0.filled.notify_one();
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes lines for as long as the process lives.
    fn write_all(&self, mut out: impl Write, log_loss: impl Fn(Counts)) {
        let mut unlogged = Counts::default();
        loop {
            let batch = self.next();
            let is_written = self.write(&batch.bytes, &mut out).is_ok();
            for log in Log::ALL {
                let at = log as usize;
                unlogged[at] += batch.dropped[at];
                if !is_written {
                    unlogged[at] += batch.lines[at];
                    self.lost.add(log, usize::try_from(batch.lines[at]).unwrap_or(usize::MAX));
                }
            }
            if is_written && unlogged != Counts::default() {
                log_loss(std::mem::take(&mut unlogged));
            }
        }
    }

    fn next(&self) -> Batch {
        let mut state = self.lock();
        state.is_writing = false;
        self.written.notify_all();
        while state.waiting.bytes.is_empty() {
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.is_writing = true;
        std::mem::take(&mut state.waiting)
    }

    fn write(&self, mut bytes: &[u8], out: &mut impl Write) -> io::Result<()> {
        while !bytes.is_empty() {
            match out.write(&bytes[..bytes.len().min(WRITE_BYTES)]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Another process that shares standard error made it non-blocking.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(FULL),
                Err(error) => return Err(error),
            }
            self.lock().writes += 1;
            self.written.notify_all();
        }
        Ok(())
    }
}

/// A duplicate of standard error, without the lock of `io::stderr`, which a blocked write would
/// hold forever.
fn standard_error() -> Box<dyn Write + Send> {
    use std::os::fd::AsFd as _;
    match io::stderr().as_fd().try_clone_to_owned() {
        Ok(own) => Box::new(std::fs::File::from(own)),
        Err(_) => Box::new(io::stderr()),
    }
}

/// Logs the losses of each log in that log.
fn log_loss([server, audit]: Counts) {
    if server > 0 {
        tracing::warn!(
            lines = server,
            "lines of this log were lost, because standard error was not read or could not be written"
        );
    }
    if audit > 0 {
        tracing::warn!(
            target: AUDIT,
            lines = audit,
            "lines of the audit log were lost, because standard error was not read or could not be written"
        );
    }
}

/// A writer for the line of one event.
pub struct Line<'a>(&'a Lines, Log);

impl Write for Line<'_> {
    /// `tracing` writes the whole line at once.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(self.1, line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self, Log::Server)
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Line<'a> {
        Line(self, if event.target() == AUDIT { Log::Audit } else { Log::Server })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    /// Passes on what is written, and waits until it is taken; fails after it was closed.
    struct Slow(SyncSender<Vec<u8>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn slow() -> (Lines, Receiver<Vec<u8>>, Receiver<Counts>) {
        let ((write, read), (tell, told)) = (sync_channel(0), sync_channel(100));
        let lines = Lines::to(Slow(write), move |counts| tell.send(counts).unwrap()).unwrap();
        (lines, read, told)
    }

    /// Pushes a line, and waits until the thread has taken it.
    fn first(lines: &Lines) {
        lines.push(Log::Server, b"first\n");
        while !lines.0.lock().is_writing {
            thread::yield_now();
        }
    }

    #[test]
    fn who_logs_never_waits_and_what_is_lost_is_counted_and_told_by_its_log() {
        let (lines, read, told) = slow();
        first(&lines);
        let line = [b'x'; 1000];
        for _ in 0..1000 {
            lines.push(Log::Server, &line);
        }
        let room = ((MAX_BYTES - AUDIT_BYTES) / line.len()) as u64;
        assert_eq!(lines.lost().get(Log::Server), 1000 - room);
        // There is room for a small one, but it must not overtake what was dropped.
        lines.push(Log::Server, b"x");
        assert_eq!(lines.lost().get(Log::Server), 1001 - room);
        assert_eq!(lines.lost().get(Log::Audit), 0);
        for _ in 0..1000 {
            lines.push(Log::Audit, &line);
        }
        let audited = (AUDIT_BYTES / line.len()) as u64;
        assert_eq!(lines.lost().get(Log::Audit), 1000 - audited);
        let lost = [1001 - room, 1000 - audited];
        assert_eq!(Log::ALL.map(|log| lines.lost().get(log)), lost);

        let mut bytes = read.recv().unwrap();
        assert_eq!(bytes, b"first\n");
        while (bytes.len() as u64) < 6 + (room + audited) * line.len() as u64 {
            bytes.extend(read.recv().unwrap());
        }
        assert_eq!(told.recv().unwrap(), lost, "it is told once they are written");
        lines.push(Log::Server, b"last\n");
        assert_eq!(read.recv().unwrap(), b"last\n");
    }

    #[test]
    fn that_lines_were_lost_is_logged_though_there_is_no_room_for_other_lines() {
        let ((write, read), own) = (sync_channel(0), Arc::new(OnceLock::<Lines>::new()));
        let telling = own.clone();
        let tell_loss = move |_| telling.get().unwrap().push(Log::Server, b"lost\n");
        let lines = Lines::to(Slow(write), tell_loss).unwrap();
        assert!(own.set(lines.clone()).is_ok());
        first(&lines);
        let fill = || (0..1000).for_each(|_| lines.push(Log::Server, &[b'x'; 1000]));
        fill();
        let next = || read.recv_timeout(Duration::from_secs(60)).expect("the loss is not logged");
        assert_eq!(next(), b"first\n");
        // The thread has taken the lines after which others were lost, and before it can say so there
        // is no room again.
        while !lines.0.lock().waiting.bytes.is_empty() {
            thread::yield_now();
        }
        fill();
        for _ in 0..2 {
            while !next().ends_with(b"lost\n") {}
        }
    }

    #[test]
    fn flush_waits_for_who_reads_and_not_for_who_does_not() {
        let (lines, read, _told) = slow();
        first(&lines);
        let start = Instant::now();
        lines.flush();
        assert!(start.elapsed() >= STALLED, "nobody read it");
        for _ in 0..10 {
            lines.push(Log::Server, b"x\n");
        }
        let reader = thread::spawn(move || {
            let mut bytes = Vec::new();
            while bytes.len() < 26 {
                bytes.extend(read.recv().unwrap());
            }
            bytes
        });
        lines.flush();
        assert!(lines.0.lock().waiting.bytes.is_empty());
        assert_eq!(reader.join().unwrap().len(), 26);
    }

    #[test]
    fn what_cannot_be_written_is_lost_and_counted() {
        let (lines, read, told) = slow();
        drop(read);
        lines.push(Log::Server, b"x\n");
        lines.push(Log::Audit, b"y\n");
        lines.flush();
        assert_eq!(Log::ALL.map(|log| lines.lost().get(log)), [1, 1]);
        assert!(told.try_recv().is_err(), "there is nobody who could be told");
    }
}
