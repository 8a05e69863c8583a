//! The stream: what holds for one message and what for the next, and how it ends.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use value::Kind;

use super::{one, some};
use crate::harness::{
    client::*,
    server::{PATIENCE, Pair, Server},
};

async fn status_in(client: &mut Client, view: &str, id: &str) -> RowStatus {
    let request = GetFeaturesRequest { feature_view: view.into(), ..get([id]) };
    row(client, request).await.status()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_message_keeps_the_view_or_names_another() {
    let server = Pair::embedded().serve().await;
    let mut client = server.client().await;
    let of =
        |view: &str, sequence, id| BulkUpsertRequest { feature_view: view.into(), ..chunk(sequence, [some(id, 1.0)]) };
    // The number is echoed, not checked.
    let messages = [of("one", 9, "A"), of("", 0, "B"), of("two", u64::MAX, "C"), of("", 9, "D"), of("default", 1, "E")];
    let (answers, ended) = bulk(&mut client, messages).await;
    assert!(ended.is_none(), "{ended:?}");
    assert_eq!(answers.iter().map(|answer| answer.sequence).collect::<Vec<_>>(), [9, 0, u64::MAX, 9, 1]);
    for (view, id) in [("one", "A"), ("one", "B"), ("two", "C"), ("two", "D"), ("default", "E")] {
        for other in ["one", "two", "default"] {
            let wanted = if other == view { RowStatus::Found } else { RowStatus::NotFound };
            assert_eq!(status_in(&mut client, other, id).await, wanted, "{id} in {other}");
        }
    }
    // A first message without a view writes into the default one.
    one(&mut client, of("", 1, "F")).await;
    assert_eq!(status_in(&mut client, "default", "F").await, RowStatus::Found);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_messages_model_version_ttl_and_flags_hold_for_its_own_records_that_give_none() {
    for pair in Pair::all() {
        let server = pair.serve_with(&[("FEATURESTORE_TTL_DEFAULT", "1000s")]).await;
        let mut client = server.client().await;
        let given = |id| FeatureRecord { model_version: "own".into(), ttl: Some(seconds(10)), ..some(id, 1.0) };
        let forever = FeatureRecord { never_expires: true, ..some("FOREVER", 1.0) };
        let with_defaults = BulkUpsertRequest {
            model_version: "message".into(),
            ttl: Some(seconds(100)),
            all_results: true,
            warm_cache: true,
            ..chunk(1, [some("NONE", 1.0), given("GIVEN"), forever])
        };
        let (answers, ended) = bulk(&mut client, [with_defaults, chunk(2, [some("NEXT", 1.0), given("GIVEN2")])]).await;
        assert!(ended.is_none(), "{ended:?}");
        assert_eq!((answers[0].results.len(), answers[1].results.len()), (3, 0), "{}", pair.name());
        let wanted = [
            ("NONE", "message", Some(100_000), Source::L1),
            ("GIVEN", "own", Some(10_000), Source::L1),
            ("FOREVER", "message", None, Source::L1),
            ("NEXT", "", Some(1_000_000), Source::L2),
            ("GIVEN2", "own", Some(10_000), Source::L2),
        ];
        for (id, version, ttl, source) in wanted {
            let row = row(&mut client, get([id])).await;
            let lifetime =
                row.expire_time.as_ref().map(|at| in_millis(at) - in_millis(row.write_time.as_ref().unwrap()));
            assert_eq!((&*row.model_version, lifetime, row.source()), (version, ttl, source), "{} {id}", pair.name());
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_without_records_has_zero_counts_and_a_stream_without_messages_no_answers() {
    for pair in [Pair::embedded(), Pair::real()] {
        let server = pair.serve().await;
        let mut client = server.client().await;
        let answer = one(&mut client, BulkUpsertRequest { warm_cache: true, all_results: true, ..chunk(3, []) }).await;
        let counts = (answer.sequence, answer.written, answer.skipped_stale, answer.failed, answer.results.len());
        assert_eq!(counts, (3, 0, 0, 0, 0), "{}", pair.name());
        let (answers, ended) = bulk(&mut client, []).await;
        assert!(answers.is_empty() && ended.is_none(), "{answers:?} {ended:?}");
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_message_ends_the_stream_after_the_earlier_answers() {
    let server = Server::start(&[("FEATURESTORE_LIMITS_MAX_BULK_RECORDS", "3")]).await;
    let mut client = server.client().await;
    let good = |sequence| chunk(sequence, [some("A", 1.0), some("B", 1.0), some("C", 1.0)]);
    let four = ["LEFT", "LEFT", "LEFT", "LEFT"].map(|id| some(id, 1.0));
    let left = |sequence| chunk(sequence, [some("LEFT", 1.0)]);
    let bad = [
        (chunk(3, four), "TOO_MANY_RECORDS", None),
        (BulkUpsertRequest { feature_view: "No".into(), ..left(3) }, "INVALID_FEATURE_VIEW", Some("feature_view")),
        (BulkUpsertRequest { ttl: Some(seconds(-1)), ..left(3) }, "INVALID_TTL", Some("ttl")),
    ];
    for (message, reason, field) in bad {
        for earlier in [0_u64, 2] {
            let messages = (1..=earlier).map(good).chain([message.clone(), left(4)]);
            let (answers, ended) = bulk(&mut client, messages).await;
            let sequences: Vec<_> = answers.iter().map(|answer| (answer.sequence, answer.written)).collect();
            assert_eq!(sequences, (1..=earlier).map(|sequence| (sequence, 3)).collect::<Vec<_>>(), "{reason}");
            let refused = Refusal::of(&ended.unwrap());
            assert_eq!((refused.code, refused.reason.as_str()), (Code::InvalidArgument, reason));
            assert_eq!(refused.fields, field.map(str::to_owned).into_iter().collect::<Vec<_>>());
            if reason == "TOO_MANY_RECORDS" {
                assert_eq!((&*refused.metadata["count"], &*refused.metadata["maximum"]), ("4", "3"));
            }
            assert_eq!(row(&mut client, strong(["LEFT"])).await.revision, 0, "{reason}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_message_is_answered_before_the_next_is_sent() {
    let server = Pair::embedded().serve().await;
    let mut client = server.client().await;
    let (send, messages) = mpsc::channel(1);
    send.send(chunk(1, [some("A", 1.0)])).await.unwrap();
    let mut answers = client.bulk_upsert(ReceiverStream::new(messages)).await.unwrap().into_inner();
    for sequence in 1..=5 {
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!((answer.sequence, answer.written), (sequence, 1));
        // It is durable, and no older value is read.
        assert_eq!(row(&mut client, get(["A"])).await.features["a"], double(sequence as f64));
        send.send(chunk(sequence + 1, [some("A", (sequence + 1) as f64)])).await.unwrap();
    }
    drop(send);
    assert_eq!(answers.message().await.unwrap().unwrap().sequence, 6);
    assert!(answers.message().await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_not_read_either_and_breaks_nothing() {
    let server = Server::start(&[]).await;
    let mut client = server.client().await;
    let (send, messages) = mpsc::channel(1);
    // Answers of about 100 KB each: the flow control windows are soon full.
    let id = "x".repeat(500);
    let bad = |i| record(&id, [(format!("{i} {}", "y".repeat(500)).as_str(), double(1.0))]);
    let message = |sequence| chunk(sequence, (0..100).map(bad));
    let mut answers = {
        send.send(message(0)).await.unwrap();
        client.bulk_upsert(ReceiverStream::new(messages)).await.unwrap().into_inner()
    };
    // Sends until nothing is taken any more. 200 messages are about 20 MB of answers.
    let mut sent = 1;
    while sent < 2000 {
        match tokio::time::timeout(std::time::Duration::from_secs(1), send.send(message(sent))).await {
            Ok(taken) => taken.unwrap(),
            Err(_) => break,
        }
        sent += 1;
    }
    assert!(sent < 2000, "the server read all and kept the answers");
    // Others are served meanwhile, and once it reads, every message is answered in order.
    let mut other = server.client().await;
    put(&mut other, record("A", [("text", value(Kind::StringVal("x".into())))])).await;
    drop(send);
    for sequence in 0..sent {
        let answer = tokio::time::timeout(PATIENCE, answers.message()).await.unwrap().unwrap().unwrap();
        assert_eq!((answer.sequence, answer.failed, answer.results.len()), (sequence, 100, 100));
    }
    assert!(answers.message().await.unwrap().is_none());
}
