//! Our own connection for the command of reads, MGET. It is the hot path, and the connection of the
//! library costs more than everything else of a hit together: it parses a batch piece by piece as
//! it arrives, copies each value, and sends each command in its own write. Here the commands of all
//! calls that are ready share one write, replies are read in large pieces, and values are not
//! copied.
//!
//! Commands and replies are in the same order, so a reply belongs to the oldest waiting caller. A
//! caller who gave up keeps its position. On any error the connection is closed, and all waiting
//! callers get the error.
//!
//! Not here: TLS and Unix sockets, which use the library; whether the server may be read (`probe`).

mod reply;

use std::{
    collections::VecDeque,
    io::{self, Write as _},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use bytes::BytesMut;
use deadpool_redis::redis::{ConnectionAddr, ConnectionInfo};
use futures_util::future::select_ok;
use tokio::{
    net::{TcpStream, lookup_host},
    sync::{Notify, oneshot},
    task::AbortHandle,
    time::{Instant, timeout_at},
};

pub(super) use self::reply::{NotRedis, Replies, Reply};
use crate::cache::{BATCH_BYTES, time_to_move};

/// The size of the pieces in which replies are read, so that a batch of rows takes few of them.
const PIECE: usize = 128 << 10;
/// While the commands without a reply are shorter than this together (many for one key, or one for
/// a hundred), more are written. Redis executes all that it has read before it replies, and replies
/// of a megabyte have left every CPU cache by the time that they are sent.
const WINDOW: usize = 4 << 10;
/// The most waiting callers, including those who gave up; far more than there are calls.
const MAX_WAITING: usize = 1 << 16;
/// The most bytes of commands that are kept while the server does not read.
const MAX_UNWRITTEN: usize = 16 << 20;

/// The connection. It is closed when this is dropped.
pub(super) struct Reader {
    shared: Arc<SharedState>,
    tasks: [AbortHandle; 2],
}

/// Why a reply did not come in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Late {
    /// No bytes came that explain it.
    Silent,
    /// The rest of a too large reply to another caller came first.
    Behind,
}

struct SharedState {
    stream: TcpStream,
    outbox: Mutex<Outbox>,
    filled: Notify,
    /// Bytes that came, and those of them that were dropped because they exceeded the limit.
    came: AtomicUsize,
    dropped: AtomicUsize,
}

#[derive(Default)]
struct Outbox {
    /// Not yet written.
    commands: Vec<u8>,
    /// The waiting callers in the order of their commands, written or not, with the length of each.
    waiting: VecDeque<(oneshot::Sender<Reply>, usize)>,
    /// How many of these commands are written, and their length together.
    written: usize,
    written_bytes: usize,
    /// The writer left commands here because the window was full. The reader wakes it.
    held: bool,
    closed: bool,
}

impl Outbox {
    /// The length of the commands to write now: whole ones, until the window is full.
    fn grant(&mut self) -> usize {
        let mut bytes = 0;
        while self.written_bytes < WINDOW
            && let Some((_, len)) = self.waiting.get(self.written)
        {
            bytes += len;
            self.written_bytes += len;
            self.written += 1;
        }
        self.held = bytes < self.commands.len();
        bytes
    }

    /// The caller of the next reply. None: there is none.
    fn answered(&mut self) -> Option<oneshot::Sender<Reply>> {
        self.written = self.written.checked_sub(1)?;
        let (answer, len) = self.waiting.pop_front()?;
        self.written_bytes -= len;
        Some(answer)
    }
}

impl Reader {
    /// Connects and logs in. None: the address is not plain TCP.
    pub(super) async fn connect(server: &ConnectionInfo) -> io::Result<Option<Self>> {
        let ConnectionAddr::Tcp(host, port) = server.addr() else { return Ok(None) };
        // All addresses at once, as the library does: the first one may be unreachable.
        let addresses = lookup_host((host.as_str(), *port)).await?;
        let connecting: Vec<_> = addresses.map(|address| Box::pin(TcpStream::connect(address))).collect();
        if connecting.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the host name has no address"));
        }
        let (stream, _) = select_ok(connecting).await?;
        stream.set_nodelay(true)?;
        let shared = Arc::new(SharedState {
            stream,
            outbox: Mutex::default(),
            filled: Notify::new(),
            came: AtomicUsize::new(0),
            dropped: AtomicUsize::new(0),
        });
        let writing = tokio::spawn(shared.clone().write()).abort_handle();
        let reading = tokio::spawn(shared.clone().read()).abort_handle();
        let reader = Self { shared, tasks: [writing, reading] };
        let settings = server.redis_settings();
        if let Some(password) = settings.password() {
            let words: Vec<&str> = settings.username().into_iter().chain([password]).collect();
            reader.expect_ok(b"AUTH", &words).await?;
        }
        if settings.db() != 0 {
            reader.expect_ok(b"SELECT", &[&settings.db().to_string()]).await?;
        }
        Ok(Some(reader))
    }

    /// Sends a command and waits for its reply. None: too many commands wait for the server.
    pub(super) async fn ask<'a>(
        &self,
        command: &'a [u8],
        arguments: impl ExactSizeIterator<Item = &'a [u8]>,
    ) -> io::Result<Option<Reply>> {
        let (answer, reply) = oneshot::channel();
        if !self.shared.put(command, arguments, answer)? {
            return Ok(None);
        }
        reply.await.map(Some).map_err(|_| broken())
    }

    /// As `ask`, but only until the deadline. If bytes have come since, it waits longer, in
    /// proportion.
    pub(super) async fn ask_by<'a>(
        &self,
        deadline: Instant,
        command: &'a [u8],
        arguments: impl ExactSizeIterator<Item = &'a [u8]>,
    ) -> Result<io::Result<Option<Reply>>, Late> {
        let now = || (self.shared.came.load(Relaxed), self.shared.dropped.load(Relaxed));
        let (came, dropped) = now();
        let mut asking = pin!(self.ask(command, arguments));
        if let Ok(reply) = timeout_at(deadline, asking.as_mut()).await {
            return Ok(reply);
        }
        // Its own large values, or those of earlier callers.
        let moved = now().0.wrapping_sub(came).min(2 * BATCH_BYTES);
        let late = |_| if now().1 == dropped { Late::Silent } else { Late::Behind };
        timeout_at(deadline + time_to_move(moved), asking).await.map_err(late)
    }

    /// The number of waiting callers, including those who gave up.
    pub(super) fn waiting(&self) -> usize {
        self.shared.lock().waiting.len()
    }

    async fn expect_ok(&self, command: &[u8], arguments: &[&str]) -> io::Result<()> {
        match self.ask(command, arguments.iter().map(|word| word.as_bytes())).await? {
            Some(Reply::Line(line)) if line == "OK" => Ok(()),
            // Only its code: the rest may repeat a password.
            Some(Reply::Error(why)) => {
                let kind = why.split(' ').next().unwrap_or_default();
                Err(io::Error::other(format!("{} was refused: {kind}", String::from_utf8_lossy(command))))
            }
            _ => Err(io::Error::other("Redis sent an unexpected reply")),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        self.shared.close();
    }
}

impl SharedState {
    fn lock(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends all waiting calls with an error, and accepts no more.
    fn close(&self) {
        let mut outbox = self.lock();
        outbox.closed = true;
        outbox.waiting.clear();
    }

    /// False: too many commands wait.
    fn put<'a>(
        &self,
        command: &'a [u8],
        arguments: impl ExactSizeIterator<Item = &'a [u8]>,
        answer: oneshot::Sender<Reply>,
    ) -> io::Result<bool> {
        let mut outbox = self.lock();
        if outbox.closed {
            return Err(broken());
        }
        if outbox.waiting.len() >= MAX_WAITING || outbox.commands.len() >= MAX_UNWRITTEN {
            return Ok(false);
        }
        // If so, everything before is written and the writer is idle. A single caller writes by
        // itself.
        let (alone, before) = (outbox.waiting.is_empty(), outbox.commands.len());
        put_command(command, arguments, &mut outbox.commands);
        let len = outbox.commands.len() - before;
        outbox.waiting.push_back((answer, len));
        if alone && let Ok(written) = self.stream.try_write(&outbox.commands) {
            if written == len {
                outbox.commands.clear();
                (outbox.written, outbox.written_bytes) = (1, len);
                return Ok(true);
            }
            outbox.commands.drain(..written);
            outbox.waiting[0].1 -= written;
        }
        let held = outbox.held;
        drop(outbox);
        // Otherwise the reader wakes it.
        if !held {
            self.filled.notify_one();
        }
        Ok(true)
    }

    async fn write(self: Arc<Self>) {
        let mut commands = Vec::new();
        loop {
            self.filled.notified().await;
            let held = self.lock().held;
            if !held {
                // Other callers who are ready add their commands first, and all share one write.
                tokio::task::yield_now().await;
            }
            {
                let mut outbox = self.lock();
                let granted = outbox.grant();
                commands.extend(outbox.commands.drain(..granted));
            }
            if self.write_all(&commands).await.is_err() {
                return self.close();
            }
            commands.clear();
            commands.shrink_to(PIECE);
        }
    }

    async fn write_all(&self, mut commands: &[u8]) -> io::Result<()> {
        while !commands.is_empty() {
            match self.stream.try_write(commands) {
                Ok(written) => commands = &commands[written..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.stream.writable().await?,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    async fn read(self: Arc<Self>) {
        let (mut buffer, mut replies) = (BytesMut::new(), Replies::default());
        loop {
            // At least half a piece, so that small reads do not use up the room.
            if buffer.capacity() - buffer.len() < PIECE / 2 {
                buffer.reserve(PIECE);
            }
            match self.stream.try_read_buf(&mut buffer) {
                Ok(0) => return self.close(),
                Ok(count) => _ = self.came.fetch_add(count, Relaxed),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if self.stream.readable().await.is_err() {
                        return self.close();
                    }
                    continue;
                }
                Err(_) => return self.close(),
            }
            loop {
                let next = replies.next(&mut buffer);
                match replies.take_dropped() {
                    0 => {}
                    dropped => _ = self.dropped.fetch_add(dropped, Relaxed),
                }
                match next {
                    Ok(Some(reply)) => {
                        let Some(answer) = self.lock().answered() else { return self.close() };
                        let _ = answer.send(reply);
                    }
                    Ok(None) => {
                        let outbox = self.lock();
                        if outbox.held && outbox.written_bytes < WINDOW {
                            self.filled.notify_one();
                        }
                        break;
                    }
                    Err(NotRedis) => return self.close(),
                }
            }
        }
    }
}

fn put_command<'a>(command: &'a [u8], arguments: impl ExactSizeIterator<Item = &'a [u8]>, buf: &mut Vec<u8>) {
    let head = |kind: u8, len: usize, buf: &mut Vec<u8>| {
        buf.push(kind);
        let _ = write!(buf, "{len}"); // a Vec takes everything
        buf.extend_from_slice(b"\r\n");
    };
    head(b'*', 1 + arguments.len(), buf);
    for word in [command].into_iter().chain(arguments) {
        head(b'$', word.len(), buf);
        buf.extend_from_slice(word);
        buf.extend_from_slice(b"\r\n");
    }
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the connection for reads is closed")
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, time::Duration};

    use deadpool_redis::redis::IntoConnectionInfo as _;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    /// Replies only when nothing more comes, then to all commands, each with a number. Returns how
    /// many commands came at once.
    async fn slow_server(listener: TcpListener, commands: usize) -> Vec<usize> {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut seen, mut answered, mut buffer) = (Vec::new(), 0, Vec::new());
        while answered < commands {
            while let Ok(read) = tokio::time::timeout(Duration::from_millis(50), stream.read_buf(&mut buffer)).await {
                assert_ne!(read.unwrap(), 0, "it is not closed");
            }
            let came = buffer.windows(4).filter(|bytes| bytes == b"ECHO").count() - answered;
            for number in answered..answered + came {
                stream.write_all(format!(":{number}\r\n").as_bytes()).await.unwrap();
            }
            answered += came;
            seen.push(came);
        }
        seen
    }

    async fn asked(commands: usize, bytes: usize) -> Vec<usize> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let server = format!("redis://{}", listener.local_addr().unwrap()).into_connection_info().unwrap();
        let served = tokio::spawn(slow_server(listener, commands));
        let reader = Reader::connect(&server).await.unwrap().unwrap();
        let argument = vec![b'x'; bytes];
        let asks = (0..commands).map(|_| reader.ask(b"ECHO", [argument.as_slice()].into_iter()));
        for (number, reply) in futures_util::future::join_all(asks).await.into_iter().enumerate() {
            assert_eq!(reply.unwrap(), Some(Reply::Line(number.to_string())));
        }
        served.await.unwrap()
    }

    #[tokio::test]
    async fn of_large_commands_one_is_under_way_and_of_small_ones_many() {
        assert_eq!(asked(5, WINDOW).await, [1; 5]);
        let seen = asked(200, 8).await;
        assert!(seen.len() <= 8, "{seen:?}");
    }

    #[tokio::test]
    async fn who_waits_behind_what_is_too_much_for_another_is_told_so() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let server = format!("redis://{}", listener.local_addr().unwrap()).into_connection_info().unwrap();
        let reader = Reader::connect(&server).await.unwrap().unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let ask = |seconds| {
            let deadline = Instant::now() + Duration::from_secs(seconds);
            reader.ask_by(deadline, b"MGET", [&b"a"[..]].into_iter())
        };
        // The second of two strings, of which a byte is there, makes it too large.
        let first = [format!("*2\r\n${BATCH_BYTES}\r\n").into_bytes(), vec![b'x'; BATCH_BYTES], b"\r\n".to_vec()];
        let wire = [first.concat(), b"$1000000\r\nx".to_vec()].concat();
        let (answer, sent) = tokio::join!(ask(60), stream.write_all(&wire));
        sent.unwrap();
        assert!(matches!(answer, Ok(Ok(Some(Reply::Part(strings)))) if strings.len() == 1));
        // More of it comes, and not the end.
        let (answer, sent) = tokio::join!(ask(2), stream.write_all(&[b'x'; 1000]));
        sent.unwrap();
        assert_eq!(answer.unwrap_err(), Late::Behind);
        assert_eq!(ask(0).await.unwrap_err(), Late::Silent);
    }
}
