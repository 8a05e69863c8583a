//! Requests that are no messages: the client's fault, told as such, and never as a bug of the server's.

use bytes::Bytes;
use h2::client::Builder;
use http::HeaderMap;
use tonic::{Code, Status};

use super::small_server;
use crate::harness::{client::*, raw};

const METHODS: [&str; 4] = ["GetFeatures", "UpsertFeatures", "DeleteFeatures", "BulkUpsert"];

/// A message's frame by hand.
fn frame(compressed: u8, length: u32, message: &[u8]) -> Bytes {
    [&[compressed][..], &length.to_be_bytes(), message].concat().into()
}

/// What a call is answered, before or after its body.
async fn told(raw: &raw::Raw, head: http::request::Builder, body: Bytes) -> Status {
    let mut send = raw.send.clone().ready().await.unwrap();
    let (answer, mut to_server) = send.send_request(head.body(()).unwrap(), false).unwrap();
    // The answer may be there, and the stream at its end, before the body is sent.
    let _ = to_server.send_data(body, true);
    let answer = answer.await.unwrap();
    let status = |headers: &HeaderMap| Status::from_header_map(headers);
    if let Some(status) = status(answer.headers()) {
        return status;
    }
    let mut body = answer.into_body();
    while let Some(data) = body.data().await {
        body.flow_control().release_capacity(data.unwrap().len()).unwrap();
    }
    status(&body.trailers().await.unwrap().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_message_is_refused_with_a_reason_and_does_not_count_as_a_bug() {
    let server = small_server().await;
    let raw = raw::connect(server.address.port(), &Builder::new()).await;
    let bodies = [
        // Field 1, five bytes of text that are no UTF-8: of some methods it is the feature view, of a record the id.
        ("not UTF-8", frame(0, 7, b"\x0a\x05\xff\xfe\xfd\xfc\xfb")),
        ("garbage", frame(0, 4, b"\xff\xff\xff\xff")),
        ("cut off", frame(0, 100, b"\x0a")),
        ("a flag that is none", frame(7, 0, b"")),
        ("packed, but nobody says how", frame(1, 1, b"x")),
    ];
    for method in METHODS {
        for (what, body) in &bodies {
            let refused = Refusal::of(&told(&raw, raw::head(method), body.clone()).await);
            let expected = (Code::InvalidArgument, "REQUEST_UNREADABLE");
            assert_eq!(
                (refused.code, refused.reason.as_str(), refused.retry),
                (expected.0, expected.1, false),
                "{method} {what}"
            );
        }
        let packed = raw::head(method).header("grpc-encoding", "gzip");
        let refused = Refusal::of(&told(&raw, packed, frame(1, 4, b"nope")).await);
        assert_eq!((refused.code, refused.reason.as_str()), (Code::InvalidArgument, "REQUEST_UNREADABLE"), "{method}");
        let hurried = raw::head(method).header("grpc-timeout", "soon");
        let refused = Refusal::of(&told(&raw, hurried, raw::framed(&get(["a"]))).await);
        assert_eq!((refused.code, refused.reason.as_str()), (Code::InvalidArgument, "INVALID_TIMEOUT"), "{method}");
    }
    // An id in the middle of an upsert: what is told names the field.
    let mut bad = prost::Message::encode_to_vec(&upsert(record("LEFT", [])));
    let at = bad.windows(4).position(|bytes| bytes == b"LEFT").unwrap();
    bad[at] = 0xff;
    let status = told(&raw, raw::head("UpsertFeatures"), frame(0, bad.len() as u32, &bad)).await;
    assert!(status.message().contains("entity_id"), "{status:?}");
    // In a read the ids are checked by the server itself: the bad one is told by its place.
    let mut bad = prost::Message::encode_to_vec(&get(["RIGHT", "LEFT"]));
    let at = bad.windows(4).position(|bytes| bytes == b"LEFT").unwrap();
    bad[at] = 0xff;
    let refused = Refusal::of(&told(&raw, raw::head("GetFeatures"), frame(0, bad.len() as u32, &bad)).await);
    assert_eq!((refused.code, &refused.fields[..]), (Code::InvalidArgument, &["entity_ids[1]".to_owned()][..]));
    let text = server.metrics().await;
    let bugs = text.lines().filter(|line| line.contains(r#"rpc_response_status_code="INTERNAL""#));
    let counts: Vec<_> = bugs.filter(|line| line.contains("_count{")).collect();
    assert!(!counts.is_empty() && counts.iter().all(|count| count.ends_with(" 0")), "{counts:?}");
}
