//! Standard error that nobody reads: nothing waits for it, and what was lost is counted and logged.

use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::*;
use crate::access::{TokensFile, entry, with};

/// The drain's own bounds, and time to spare.
const END: Duration = Duration::from_secs(60);

/// A pipe: what is written to it stays there until it is read here, and there is room for 64 KiB.
struct Pipe {
    path: String,
    end: File,
    _folder: TempDir,
}

impl Pipe {
    fn new() -> Self {
        let folder = temp_dir();
        let path = folder.path().join("pipe").display().to_string();
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let end = OpenOptions::new().read(true).write(true).custom_flags(nonblocking).open(&path).unwrap();
        Self { path, end, _folder: folder }
    }

    /// Nothing more can be written to it.
    fn full() -> Self {
        let mut pipe = Self::new();
        for piece in [&[b'x'; 4096][..], b"x"] {
            while pipe.end.write(piece).is_ok() {}
        }
        pipe
    }

    /// What starts a program whose standard error it is.
    fn starter(&self) -> [&str; 4] {
        ["sh", "-c", "exec \"$@\" 2>\"$0\"", &self.path]
    }

    /// Reads on until `enough`.
    fn read_until(&mut self, text: &mut String, enough: impl Fn(&str) -> bool) {
        let start = Instant::now();
        let mut bytes = vec![0; 64 << 10];
        while !enough(text) {
            match self.end.read(&mut bytes) {
                Ok(read) => text.push_str(&String::from_utf8_lossy(&bytes[..read])),
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(1)),
                Err(error) => panic!("{error}"),
            }
            assert!(
                start.elapsed() < END,
                "it did not come; the last of it: {}",
                &text[text.len().saturating_sub(2000)..]
            );
        }
    }
}

/// How many lines were lost, of the server's log and of the audit log.
async fn lost(server: &Binary) -> [u64; 2] {
    let metrics = server.metrics().await;
    ["server", "audit"].map(|log| {
        let series = format!("featurestore_log_lines_lost_total{{log=\"{log}\"}} ");
        metrics
            .lines()
            .find_map(|line| line.strip_prefix(&series))
            .unwrap_or_else(|| panic!("{metrics}"))
            .parse()
            .unwrap()
    })
}

/// 800 writes, each of which is a line of the audit log.
async fn write_much(client: &Client) {
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..16 {
        let mut client = client.clone();
        writers.spawn(async move {
            for _ in 0..50 {
                let record = record(&format!("r{writer}"), [("n", double(1.0))]);
                client.upsert_features(with("t", upsert(record))).await.unwrap();
            }
        });
    }
    writers.join_all().await;
}

/// Writes until lines of both logs are lost.
async fn write_until_lines_are_lost(server: &Binary) {
    let before = lost(server).await;
    let client = server.client().await;
    let start = Instant::now();
    loop {
        write_much(&client).await;
        let now = lost(server).await;
        if (0..2).all(|log| now[log] > before[log]) {
            return;
        }
        assert!(start.elapsed() < END, "{before:?} {now:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_waits_for_who_reads_the_log_and_what_is_lost_is_counted_and_logged() {
    let (mut pipe, tokens) = (Pipe::new(), TokensFile::new(&[entry("all", &["t"], "admin = [\"*\"]")]));
    let settings = [("FEATURESTORE_AUTH_TOKENS_FILE", tokens.path()), ("RUST_LOG", "trace".to_owned())];
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    let mut server = Binary::start_under(&pipe.starter(), &settings);
    server.until_serving().await;
    write_until_lines_are_lost(&server).await;

    // Nobody has read a line so far.
    let mut client = server.client().await;
    let answer = client.get_features(with("t", get(["r0"]))).await.unwrap().into_inner();
    assert_eq!(answer.rows[0].status(), RowStatus::Found);
    assert_eq!(server.health(SERVICE).await, Some(tonic_health::pb::health_check_response::ServingStatus::Serving));
    assert_eq!(words::http(server.admin_port, "/livez").unwrap().0, 200);

    let (ours, audit) = ("lines of this log were lost", "lines of the audit log were lost");
    let mut log = String::new();
    pipe.read_until(&mut log, |log| log.contains(ours) && log.contains(audit));
    let line = log.lines().find(|line| line.contains(audit)).unwrap();
    let lines: u64 = line.split("lines=").nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap();
    assert!(line.contains("featurestore::audit") && lines > 0, "{line}");
    assert!(log.contains("serving"), "what came before the loss is there");

    write_until_lines_are_lost(&server).await;
    server.signal("TERM");
    assert_eq!(server.exit_code(END), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_lines_say_where_it_serves_what_it_stores_where_and_what_to_try() {
    let server = Binary::start(&[]);
    server.until_serving().await;
    let (log, port, admin_port) = (server.log(), server.port, server.admin_port);
    let serving = log.lines().find(|line| line.contains("serving")).unwrap_or_else(|| panic!("{log}"));
    for words in [
        format!("address=127.0.0.1:{port}"),
        format!("admin_address=127.0.0.1:{admin_port}"),
        "l1=\"memory\"".to_owned(),
        "l2=\"embedded\"".to_owned(),
        "l2_address=".to_owned(),
    ] {
        assert!(serving.contains(&words), "{words}: {serving}");
    }
    let command = format!("grpcurl -plaintext 127.0.0.1:{port} featurestore.v1.FeatureStoreService/Info");
    assert!(log.contains(&command), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_line_is_there_when_it_ends() {
    let mut server = Binary::start(&[]);
    server.until_serving().await;
    server.signal("TERM");
    assert_eq!(server.exit_code(END), 0);
    assert!(server.log().lines().last().unwrap().contains("drained"), "{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_wait_for_a_slow_reader_are_written_before_it_ends() {
    let (mut pipe, tokens) = (Pipe::new(), TokensFile::new(&[entry("all", &["t"], "admin = [\"*\"]")]));
    let settings = [("FEATURESTORE_AUTH_TOKENS_FILE", tokens.path())];
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    let mut server = Binary::start_under(&pipe.starter(), &settings);
    server.until_serving().await;
    // Several times as much as the pipe holds, and not so much that it would be lost.
    let client = server.client().await;
    for _ in 0..3 {
        write_much(&client).await;
    }
    drop(client);
    assert_eq!(lost(&server).await, [0, 0]);
    server.signal("TERM");
    // So slowly that a server which does not wait for it has long ended.
    let (mut log, mut bytes) = (String::new(), [0; 2 << 10]);
    while let Ok(read) = pipe.end.read(&mut bytes) {
        log.push_str(&String::from_utf8_lossy(&bytes[..read]));
        std::thread::sleep(Duration::from_millis(5));
    }
    pipe.read_until(&mut log, |log| log.contains("drained"));
    assert_eq!(log.matches("featurestore::audit").count(), 2400);
    assert_eq!(server.exit_code(END), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_ends_though_nobody_reads_why() {
    let (pipe, taken) = (Pipe::full(), std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let address = taken.local_addr().unwrap().to_string();
    for (setting, code) in [(("FEATURESTORE_L1_TTL", "soon"), 64), (("FEATURESTORE_LISTEN", address.as_str()), 1)] {
        assert_eq!(Binary::start_under(&pipe.starter(), &[setting]).exit_code(END), code, "{setting:?}");
    }
}
