//! A TCP proxy of our own between a server and a backend, which breaks the line in the ways that networks do.
//!
//! Within one connection bytes are never lost in the middle, as TCP would not: replies that were dropped end their
//! connection when the line is mended, and what was stalled arrives late.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// As if there were no proxy.
    Pass,
    /// Connections are closed, new ones at once.
    Cut,
    /// Connections stand, and nothing comes through.
    Stall,
    /// Everything takes this much longer, each way.
    Delay(Duration),
    /// What is sent arrives, and what is answered does not.
    DropReplies,
}

/// One listener in front of one address; ended when dropped.
pub struct Proxy {
    port: u16,
    to: Arc<AtomicU16>,
    line: Arc<watch::Sender<Line>>,
    listening: JoinHandle<()>,
}

impl Proxy {
    /// To a port of this machine.
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own_port = listener.local_addr().unwrap().port();
        let line = Arc::new(watch::Sender::new(Line::Pass));
        let to = Arc::new(AtomicU16::new(port));
        let listening = tokio::spawn(listen(listener, to.clone(), line.clone()));
        Self { port: own_port, to, line, listening }
    }

    /// New connections lead to another port from now on; those that stand do not.
    pub fn lead_to(&self, port: u16) {
        self.to.store(port, SeqCst);
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn set(&self, line: Line) {
        self.line.send_replace(line);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
        self.line.send_replace(Line::Cut);
    }
}

async fn listen(listener: TcpListener, to: Arc<AtomicU16>, line: Arc<watch::Sender<Line>>) {
    loop {
        let Ok((client, _)) = listener.accept().await else { return };
        if *line.borrow() != Line::Cut {
            tokio::spawn(connect(client, to.load(SeqCst), line.subscribe()));
        }
    }
}

async fn connect(client: TcpStream, port: u16, line: watch::Receiver<Line>) {
    let Ok(backend) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let _ = (client.set_nodelay(true), backend.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_backend, to_backend) = backend.into_split();
    // When either way ends, both do.
    tokio::select! {
        _ = pump(from_client, to_backend, line.clone(), false) => {}
        _ = pump(from_backend, to_client, line, true) => {}
    }
}

/// Carries bytes one way until an end closes or the line is cut.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut line: watch::Receiver<Line>,
    replies: bool,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    let mut dropped = false;
    loop {
        let now = *line.borrow_and_update();
        if now == Line::Cut || (dropped && now != Line::DropReplies) {
            return Ok(());
        }
        if now == Line::Stall {
            if line.changed().await.is_err() {
                return Ok(());
            }
            continue;
        }
        let read = tokio::select! {
            read = from.read(&mut buffer) => read?,
            changed = line.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return Ok(()),
            },
        };
        if read == 0 {
            return Ok(());
        }
        match now {
            Line::DropReplies if replies => {
                dropped = true;
                continue;
            }
            Line::Delay(delay) => tokio::time::sleep(delay).await,
            _ => {}
        }
        // The line may have changed since: what was read before it stalled comes late, and what was cut never.
        let carried = line.wait_for(|line| *line != Line::Stall).await.is_ok_and(|line| *line != Line::Cut);
        if !carried {
            return Ok(());
        }
        to.write_all(&buffer[..read]).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(200);

    async fn echo() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        port
    }

    async fn ask(stream: &mut TcpStream) -> io::Result<u8> {
        stream.write_all(b"x").await?;
        stream.read_u8().await
    }

    #[tokio::test]
    async fn the_proxy_does_as_it_is_told() {
        let proxy = Proxy::to(echo().await).await;
        let connect = || TcpStream::connect(("127.0.0.1", proxy.port()));
        let mut stream = connect().await.unwrap();
        assert_eq!(ask(&mut stream).await.unwrap(), b'x');

        proxy.set(Line::Delay(SOON));
        let start = tokio::time::Instant::now();
        assert_eq!(ask(&mut stream).await.unwrap(), b'x');
        assert!(start.elapsed() >= 2 * SOON);

        proxy.set(Line::Stall);
        assert!(tokio::time::timeout(SOON, ask(&mut stream)).await.is_err());
        proxy.set(Line::Pass);
        assert_eq!(stream.read_u8().await.unwrap(), b'x', "what was stalled comes late");

        proxy.set(Line::DropReplies);
        assert!(tokio::time::timeout(SOON, ask(&mut stream)).await.is_err());
        proxy.set(Line::Pass);
        assert!(ask(&mut stream).await.is_err(), "a reply was lost, so the connection is");

        let mut stream = connect().await.unwrap();
        assert_eq!(ask(&mut stream).await.unwrap(), b'x');
        proxy.set(Line::Cut);
        assert!(ask(&mut stream).await.is_err());
        let mut refused = connect().await.unwrap();
        assert!(ask(&mut refused).await.is_err());
    }
}
