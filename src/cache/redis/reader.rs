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
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Notify, oneshot},
    task::AbortHandle,
};

use self::reply::Replies;
pub(super) use self::reply::Reply;

/// Replies are read in pieces of this size at most, so that a batch of rows takes few of them.
const PIECE: usize = 128 << 10;
/// Callers who may wait for replies, those included who gave up; far more than there are calls.
const MAX_WAITING: usize = 1 << 16;

/// The connection; it is closed when this is dropped.
pub(super) struct Reader {
    shared: Arc<SharedState>,
    tasks: [AbortHandle; 2],
}

struct SharedState {
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
        let stream = TcpStream::connect((host.as_str(), *port)).await?;
        stream.set_nodelay(true)?;
        let (read, write) = stream.into_split();
        let shared = Arc::new(SharedState { outbox: Mutex::default(), filled: Notify::new() });
        let writing = tokio::spawn(shared.clone().write_to(write)).abort_handle();
        let reading = tokio::spawn(shared.clone().read_from(read)).abort_handle();
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

    /// Sends a command and waits for its reply.
    pub(super) async fn ask<'a>(
        &self,
        command: &'a [u8],
        arguments: impl ExactSizeIterator<Item = &'a [u8]>,
    ) -> io::Result<Reply> {
        let (answer, reply) = oneshot::channel();
        {
            let mut outbox = self.shared.lock();
            if outbox.closed || outbox.waiting.len() >= MAX_WAITING {
                return Err(broken());
            }
            put_command(command, arguments, &mut outbox.commands);
            outbox.waiting.push_back(answer);
        }
        self.shared.filled.notify_one();
        reply.await.map_err(|_| broken())
    }

    async fn expect_ok(&self, command: &[u8], arguments: &[&str]) -> io::Result<()> {
        match self.ask(command, arguments.iter().map(|word| word.as_bytes())).await? {
            Reply::Line(line) if line == "OK" => Ok(()),
            Reply::Error(why) => Err(io::Error::other(why)),
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

    async fn write_to(self: Arc<Self>, mut stream: OwnedWriteHalf) {
        let mut commands = Vec::new();
        loop {
            self.filled.notified().await;
            // Others who are ready to run add theirs first, and all of them go out in one write.
            tokio::task::yield_now().await;
            mem::swap(&mut commands, &mut self.lock().commands);
            if !commands.is_empty() && stream.write_all(&commands).await.is_err() {
                return self.close();
            }
            commands.clear();
        }
    }

    async fn read_from(self: Arc<Self>, mut stream: OwnedReadHalf) {
        let (mut buffer, mut replies) = (BytesMut::new(), Replies::default());
        loop {
            // At least half a piece, so that the room is not used up by a trickle.
            if buffer.capacity() - buffer.len() < PIECE / 2 {
                buffer.reserve(PIECE);
            }
            match stream.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return self.close(),
                Ok(_) => {}
            }
            loop {
                match replies.next(&mut buffer) {
                    Ok(Some(reply)) => {
                        let Some(answer) = self.lock().waiting.pop_front() else { return self.close() };
                        let _ = answer.send(reply);
                    }
                    Ok(None) => break,
                    Err(reply::NotRedis) => return self.close(),
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
