//! HTTP/2 as nobody should speak it: memory stays where it was, and others are served.

use bytes::{BufMut as _, Bytes};
use h2::client::Builder;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::*;

/// More than any of these may make the server grow by.
const GROWTH: usize = 64 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_opened_and_reset_at_once_cost_their_client_the_connection_at_most() {
    const RESETS: usize = 20_000;
    let server = Binary::start(&[]);
    server.until_serving().await;
    another_is_served(&server).await;
    let before = server.memory();
    let (mut resets, mut connections) = (0, 0);
    while resets < RESETS {
        connections += 1;
        let raw = raw::connect(server.port, &Builder::new()).await;
        while resets < RESETS {
            let Ok(mut send) = raw.send.clone().ready().await else { break };
            let request = raw::head("GetFeatures").body(()).unwrap();
            let Ok((_, mut body)) = send.send_request(request, false) else { break };
            let _ = body.send_data(raw::framed(&get(["a"])), true);
            body.send_reset(h2::Reason::CANCEL);
            resets += 1;
            if resets % 16 == 0 {
                tokio::task::yield_now().await;
            }
        }
        if connections % 8 == 1 {
            another_is_served(&server).await;
        }
    }
    let after = server.memory();
    println!("{resets} resets over {connections} connections: {} KiB, then {} KiB", before >> 10, after >> 10);
    assert!(after < before + GROWTH, "{before} {after}");
    another_is_served(&server).await;
    eventually("nothing to be left of them", async || {
        server.metrics().await.lines().any(|line| line == "featurestore_calls_in_flight 0")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_list_of_a_mebibyte_is_refused() {
    let server = Binary::start(&[]);
    server.until_serving().await;
    another_is_served(&server).await;
    let before = server.memory();
    for _ in 0..20 {
        let raw = raw::connect(server.port, &Builder::new()).await;
        let mut head = raw::head("GetFeatures");
        for i in 0..256 {
            head = head.header(format!("x-{i}"), "y".repeat(4096));
        }
        let mut send = raw.send.clone().ready().await.unwrap();
        let refused = match send.send_request(head.body(()).unwrap(), true) {
            Ok((answer, _)) => answer.await.map(|answer| answer.status()),
            Err(error) => Err(error),
        };
        assert!(!refused.as_ref().is_ok_and(|status| status.is_success()), "{refused:?}");
    }
    let after = server.memory();
    println!("20 header lists of 1 MiB: {} KiB, then {} KiB", before >> 10, after >> 10);
    assert!(after < before + GROWTH, "{before} {after}");
    another_is_served(&server).await;
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Bytes {
    let mut frame = Vec::with_capacity(9 + payload.len());
    frame.put_uint(payload.len() as u64, 3);
    frame.put_u8(kind);
    frame.put_u8(flags);
    frame.put_u32(stream);
    frame.put_slice(payload);
    frame.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_never_end_end_the_connection() {
    const SETTINGS: u8 = 4;
    const HEADERS: u8 = 1;
    const CONTINUATION: u8 = 9;
    let server = Binary::start(&[]);
    server.until_serving().await;
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    // Without END_HEADERS: literal fields, not indexed, "x: y".
    let fields = [0, 1, b'x', 1, b'y'].repeat(3000);
    stream.write_all(&frame(HEADERS, 0, 1, &fields)).await.unwrap();
    let mut sent = 0;
    while sent < 64 << 20 {
        if stream.write_all(&frame(CONTINUATION, 0, 1, &fields)).await.is_err() {
            break;
        }
        sent += fields.len();
    }
    println!("{} KiB of headers until the connection was ended", sent >> 10);
    assert!(sent < 64 << 20, "it takes headers without end");
    let _ = stream.read_to_end(&mut Vec::new()).await;
    another_is_served(&server).await;
}
