//! A connection of our own for what reads send: MGET. It is the hot path, and the library's costs more than everything else
//! of a hit together: it parses a batch piece by piece as it trickles in, copies each value, and writes each command by
//! itself. Here the commands of all calls that are ready go out in one write, replies are read in large pieces, and values
//! stay where they were read.
//!
//! Commands and replies are in the same order, so a reply belongs to the caller who has waited longest. A caller who gave up
//! still has its place. Once anything goes wrong the connection is closed, and all who wait learn it.
//!
//! Not here: TLS and Unix sockets, which go through the library; and whether the server may be read (`probe`).

mod reply;

use std::{
    collections::VecDeque,
    io::{self, Write as _},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::BytesMut;
use deadpool_redis::redis::{ConnectionAddr, ConnectionInfo};
use futures_util::future::select_ok;
use tokio::{
    net::{TcpStream, lookup_host},
    sync::{Notify, oneshot},
    task::AbortHandle,
};

pub(super) use self::reply::{NotRedis, Replies, Reply};

/// Replies are read in pieces of about this size, so that a batch of rows takes few of them.
const PIECE: usize = 128 << 10;
/// Callers who may wait for replies, those included who gave up; far more than there are calls.
const MAX_WAITING: usize = 1 << 16;
/// Commands that a server which does not read may leave with us.
const MAX_UNWRITTEN: usize = 16 << 20;

/// The connection; it is closed when this is dropped.
pub(super) struct Reader {
    shared: Arc<SharedState>,
    tasks: [AbortHandle; 2],
}

struct SharedState {
    stream: TcpStream,
    outbox: Mutex<Outbox>,
    filled: Notify,
}

#[derive(Default)]
struct Outbox {
    /// Not yet written.
    commands: Vec<u8>,
    /// For replies, of what was written and what was not, in that order.
    waiting: VecDeque<oneshot::Sender<Reply>>,
    closed: bool,
}

impl Reader {
    /// Connects, and says who it is. None: not by plain TCP.
    pub(super) async fn connect(server: &ConnectionInfo) -> io::Result<Option<Self>> {
        let ConnectionAddr::Tcp(host, port) = server.addr() else { return Ok(None) };
        // All addresses at once, as the library does: the first may lead nowhere.
        let addresses = lookup_host((host.as_str(), *port)).await?;
        let connecting: Vec<_> = addresses.map(|address| Box::pin(TcpStream::connect(address))).collect();
        if connecting.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
        }
        let (stream, _) = select_ok(connecting).await?;
        stream.set_nodelay(true)?;
        let shared = Arc::new(SharedState { stream, outbox: Mutex::default(), filled: Notify::new() });
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

    /// Sends a command and waits for its reply. None: the server has not read so many others that no more are taken.
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

    /// Callers who wait for replies, those included who gave up.
    pub(super) fn waiting(&self) -> usize {
        self.shared.lock().waiting.len()
    }

    async fn expect_ok(&self, command: &[u8], arguments: &[&str]) -> io::Result<()> {
        match self.ask(command, arguments.iter().map(|word| word.as_bytes())).await? {
            Some(Reply::Line(line)) if line == "OK" => Ok(()),
            // Its kind only: the rest may repeat a password.
            Some(Reply::Error(why)) => {
                let kind = why.split(' ').next().unwrap_or_default();
                Err(io::Error::other(format!("{} was refused: {kind}", String::from_utf8_lossy(command))))
            }
            _ => Err(io::Error::other("an unexpected reply")),
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

    /// Nobody waits any more, and nobody will.
    fn close(&self) {
        let mut outbox = self.lock();
        outbox.closed = true;
        outbox.waiting.clear();
    }

    /// False: there are too many before it.
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
        // Then all that went before is written, and the writer is idle: who comes alone need not wake it.
        let alone = outbox.waiting.is_empty();
        put_command(command, arguments, &mut outbox.commands);
        outbox.waiting.push_back(answer);
        if alone && let Ok(written) = self.stream.try_write(&outbox.commands) {
            outbox.commands.drain(..written);
            if outbox.commands.is_empty() {
                return Ok(true);
            }
        }
        drop(outbox);
        self.filled.notify_one();
        Ok(true)
    }

    async fn write(self: Arc<Self>) {
        let mut commands = Vec::new();
        loop {
            self.filled.notified().await;
            // Others who are ready to run add theirs first, and all of them go out in one write.
            tokio::task::yield_now().await;
            mem::swap(&mut commands, &mut self.lock().commands);
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
            // At least half a piece, so that the room is not used up by a trickle.
            if buffer.capacity() - buffer.len() < PIECE / 2 {
                buffer.reserve(PIECE);
            }
            match self.stream.try_read_buf(&mut buffer) {
                Ok(0) => return self.close(),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if self.stream.readable().await.is_err() {
                        return self.close();
                    }
                    continue;
                }
                Err(_) => return self.close(),
            }
            loop {
                match replies.next(&mut buffer) {
                    Ok(Some(reply)) => {
                        let Some(answer) = self.lock().waiting.pop_front() else { return self.close() };
                        let _ = answer.send(reply);
                    }
                    Ok(None) => break,
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
    io::Error::new(io::ErrorKind::ConnectionAborted, "the connection to read by is closed")
}
