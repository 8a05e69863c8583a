//! Tokens, their rights on feature views, and the file that is read anew.

use std::collections::BTreeSet;

use featurestore::access::{
    Right,
    rules::{self, Rule},
};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::{Code, Status, transport::Channel};
use tonic_prost::ProstCodec;

use super::*;

const NAME: &str = "FEATURESTORE_AUTH_TOKENS_FILE";

async fn serve(file: &TokensFile) -> Server {
    Server::start(&[(NAME, &file.path())]).await
}

fn everybody() -> TokensFile {
    TokensFile::new(&[
        entry("nobody", &["no-rights"], ""),
        entry("reader", &["reads"], "read = [\"credit_*\"]"),
        entry("loader", &["loads"], "write = [\"credit_scores\", \"default\"]"),
        entry("cleaner", &["cleans"], "delete = [\"*\"]"),
        entry("admin", &["old-admin", "new-admin"], "admin = [\"*\"]"),
    ])
}

/// Calls whatever is at a path with an empty message, which every RPC can decode; the code of its end.
async fn call(channel: &Channel, path: &'static str, token: Option<&str>) -> Code {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let stream = tokio_stream::iter([()]);
    let request = token.map_or_else(|| Request::new(tokio_stream::iter([()])), |token| with(token, stream));
    let codec = ProstCodec::<(), ()>::default();
    let answers = client.streaming(request, http::uri::PathAndQuery::from_static(path), codec).await;
    let mut answers = match answers {
        Ok(answers) => answers.into_inner(),
        Err(status) => return status.code(),
    };
    // A Watch never ends.
    answers.message().await.map_or_else(|status| status.code(), |_| Code::Ok)
}

#[test]
fn every_rpc_that_is_served_has_a_rule() {
    let sets = [
        featurestore::proto::DESCRIPTORS,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let files = sets.into_iter().flat_map(|set| FileDescriptorSet::decode(set).unwrap().file);
    let rpcs: BTreeSet<String> = files
        .flat_map(|file| {
            let package = file.package().to_owned();
            file.service.into_iter().flat_map(move |service| {
                let package = package.clone();
                let name = service.name().to_owned();
                service.method.into_iter().map(move |rpc| format!("/{package}.{name}/{}", rpc.name()))
            })
        })
        .collect();
    let ruled: BTreeSet<String> = rules::all().map(|(path, _)| path.to_owned()).collect();
    assert!(rpcs.len() >= 9, "{rpcs:?}");
    assert_eq!(rpcs, ruled, "each RPC needs a rule in src/access/rules.rs");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rule_holds_on_the_wire() {
    let file = everybody();
    let server = serve(&file).await;
    let channel = Channel::from_shared(server.url()).unwrap().connect().await.unwrap();
    for (path, rule) in rules::all() {
        let codes = [
            call(&channel, path, None).await,
            call(&channel, path, Some("unknown")).await,
            call(&channel, path, Some("no-rights")).await,
        ];
        let is_let_in = |code: Code| code != Code::Unauthenticated && code != Code::PermissionDenied;
        match rule {
            Rule::Open => assert!(codes.into_iter().all(is_let_in), "{path}: {codes:?}"),
            Rule::AnyCaller => {
                assert_eq!(codes[..2], [Code::Unauthenticated; 2], "{path}");
                assert!(is_let_in(codes[2]), "{path}: {codes:?}");
            }
            Rule::Needs(_) => {
                assert_eq!(codes, [Code::Unauthenticated, Code::Unauthenticated, Code::PermissionDenied], "{path}");
                assert!(is_let_in(call(&channel, path, Some("new-admin")).await), "{path}");
            }
        }
    }
    // What has no rule is denied to all.
    for path in ["/featurestore.v1.FeatureStoreService/DropEverything", "/nowhere"] {
        assert_eq!(call(&channel, path, None).await, Code::Unauthenticated);
        assert_eq!(call(&channel, path, Some("new-admin")).await, Code::PermissionDenied);
    }
    server.stop().await;
}

fn in_view(view: &str) -> (GetFeaturesRequest, UpsertFeaturesRequest, DeleteFeaturesRequest, BulkUpsertRequest) {
    let feature_view = view.to_owned();
    (
        GetFeaturesRequest { feature_view: feature_view.clone(), ..get(["a"]) },
        UpsertFeaturesRequest { feature_view: feature_view.clone(), ..upsert(record("a", [("n", double(1.0))])) },
        DeleteFeaturesRequest { feature_view: feature_view.clone(), ..delete(["a"]) },
        BulkUpsertRequest { feature_view, ..chunk(1, [record("b", [("n", double(1.0))])]) },
    )
}

async fn bulk_with(client: &mut Client, token: &str, chunks: Vec<BulkUpsertRequest>) -> (usize, Option<Status>) {
    let mut stream = match client.bulk_upsert(with(token, tokio_stream::iter(chunks))).await {
        Ok(response) => response.into_inner(),
        Err(status) => return (0, Some(status)),
    };
    let mut answers = 0;
    loop {
        match stream.message().await {
            Ok(Some(_)) => answers += 1,
            Ok(None) => return (answers, None),
            Err(status) => return (answers, Some(status)),
        }
    }
}

/// Read, write, delete, bulk: which of them are allowed.
async fn allowed(client: &mut Client, token: &str, view: &str) -> [bool; 4] {
    let (read, write, gone, bulk) = in_view(view);
    let told = |status: Option<Status>| match status {
        None => true,
        Some(status) => {
            let refusal = Refusal::of(&status);
            assert_eq!((refusal.code, refusal.reason.as_str()), (Code::PermissionDenied, "RIGHT_MISSING"));
            false
        }
    };
    [
        told(client.get_features(with(token, read)).await.err()),
        told(client.upsert_features(with(token, write)).await.err()),
        told(client.delete_features(with(token, gone)).await.err()),
        told(bulk_with(client, token, vec![bulk]).await.1),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_are_on_feature_views() {
    let file = everybody();
    let server = serve(&file).await;
    let mut client = server.client().await;
    for (token, view, rights) in [
        ("no-rights", "default", [false; 4]),
        ("reads", "credit_scores", [true, false, false, false]),
        ("reads", "credits", [false; 4]),
        ("reads", "", [false; 4]),
        ("loads", "credit_scores", [false, true, false, true]),
        ("loads", "credit_scores_2", [false; 4]),
        ("loads", "", [false, true, false, true]),
        ("cleans", "anything", [false, false, true, false]),
        ("old-admin", "anything", [true; 4]),
        ("new-admin", "", [true; 4]),
    ] {
        assert_eq!(allowed(&mut client, token, view).await, rights, "{token} on {view:?}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_says_what_to_do_and_nothing_of_others() {
    let file = everybody();
    let server = serve(&file).await;
    let mut client = server.client().await;

    let status = client.get_features(get(["a"])).await.unwrap_err();
    let missing = Refusal::of(&status);
    assert_eq!((missing.code, missing.reason.as_str()), (Code::Unauthenticated, "TOKEN_MISSING"));
    assert!(status.message().contains("authorization: Bearer"), "{status:?}");
    // Another scheme is no token.
    let mut basic = Request::new(InfoRequest {});
    basic.metadata_mut().insert("authorization", "Basic reads".parse().unwrap());
    assert_eq!(Refusal::of(&client.info(basic).await.unwrap_err()).reason, "TOKEN_MISSING");

    let status = client.info(with("canary-unknown", InfoRequest {})).await.unwrap_err();
    let unknown = Refusal::of(&status);
    assert_eq!((unknown.code, unknown.reason.as_str()), (Code::Unauthenticated, "TOKEN_UNKNOWN"));
    assert!(status.message().contains("auth.tokens_file") && !format!("{status:?}").contains("canary"), "{status:?}");

    // Before anything else is said of the request; of who has the right nowhere, before it is read.
    for (token, caller, view) in [("loads", "loader", Some("other")), ("reads", "reader", None)] {
        let (_, mut write, _, _) = in_view("other");
        write.record = None;
        let status = client.upsert_features(with(token, write)).await.unwrap_err();
        let denied = Refusal::of(&status);
        assert_eq!((denied.code, denied.reason.as_str()), (Code::PermissionDenied, "RIGHT_MISSING"));
        let told: Vec<_> = denied.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let view = view.map(|view| ("feature_view", view));
        let expected: Vec<_> =
            [Some(("caller", caller)), view, Some(("right", "write"))].into_iter().flatten().collect();
        assert_eq!(told, expected);
        assert!(status.message().contains("write") && status.message().contains("auth.tokens_file"), "{status:?}");
    }

    // A name that is none may be long.
    let (read, ..) = in_view(&"x".repeat(100_000));
    let status = client.get_features(with("reads", read)).await.unwrap_err();
    assert!(status.code() == Code::PermissionDenied && status.message().len() < 500, "{}", status.message().len());
    assert_eq!(Right::ALL.map(Right::name), ["read", "write", "delete", "admin"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_chunk_of_a_stream_is_checked() {
    let file = everybody();
    let server = serve(&file).await;
    let mut client = server.client().await;
    let (.., mine) = in_view("credit_scores");
    let (.., other) = in_view("other");
    let unnamed = BulkUpsertRequest { feature_view: String::new(), ..mine.clone() };
    let chunks = vec![mine.clone(), unnamed.clone(), other, mine.clone()];
    let (answers, status) = bulk_with(&mut client, "loads", chunks).await;
    assert_eq!((answers, status.map(|status| status.code())), (2, Some(Code::PermissionDenied)));
    let other = GetFeaturesRequest { feature_view: "other".to_owned(), ..get(["b"]) };
    let answer = client.get_features(with("new-admin", other)).await.unwrap().into_inner();
    assert_eq!(answer.rows[0].status(), RowStatus::NotFound);

    // A token that is taken back ends what began with it.
    let (chunks, to_send) = tokio::sync::mpsc::channel(1);
    let stream = tokio_stream::wrappers::ReceiverStream::new(to_send);
    chunks.send(mine.clone()).await.unwrap();
    let mut answers = client.bulk_upsert(with("loads", stream)).await.unwrap().into_inner();
    answers.message().await.unwrap().unwrap();
    file.write(&entry("admin", &["new-admin"], "admin = [\"*\"]"));
    eventually("the token to be nobody's", async || client.clone().info(with("loads", InfoRequest {})).await.is_err())
        .await;
    chunks.send(unnamed).await.unwrap();
    let status = answers.message().await.unwrap_err();
    assert_eq!(Refusal::of(&status).reason, "TOKEN_UNKNOWN");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_rotated_without_a_failed_call() {
    let file = TokensFile::new(&[entry("a", &["old"], "admin = [\"*\"]")]);
    let server = serve(&file).await;
    let mut client = server.client().await;
    let works = async |token: &str| client.clone().get_features(with(token, get(["a"]))).await.is_ok();
    assert!(works("old").await && !works("new").await);
    file.write(&entry("a", &["old", "new"], "admin = [\"*\"]"));
    eventually("the new one to count", async || {
        assert!(works("old").await);
        works("new").await
    })
    .await;
    // What is bad changes nothing.
    file.write("[[tokens]]\nname = ");
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    assert!(works("old").await && works("new").await);
    file.write(&entry("a", &["new"], "admin = [\"*\"]"));
    eventually("the old one to be gone", async || {
        assert!(works("new").await);
        !works("old").await
    })
    .await;
    // Rights change too.
    file.write(&entry("a", &["new"], ""));
    eventually("the right to be gone", async || !works("new").await).await;
    assert!(client.info(with("new", InfoRequest {})).await.is_ok());
    server.stop().await;
}

/// Writes a file as a slow editor does, with no more than a moment between two pieces; whether it kept to that.
fn write_slowly(path: &str, beginning: &str, end: &str) -> bool {
    use std::{
        io::Write as _,
        time::{Duration, Instant},
    };
    let mut file = std::fs::File::create(path).unwrap();
    file.write_all(beginning.as_bytes()).unwrap();
    let (start, mut last, mut longest) = (Instant::now(), Instant::now(), Duration::ZERO);
    while start.elapsed() < Duration::from_millis(1500) {
        file.write_all(b"# a long file\n").unwrap();
        longest = longest.max(last.elapsed());
        last = Instant::now();
        std::thread::sleep(Duration::from_millis(10));
    }
    file.write_all(end.as_bytes()).unwrap();
    longest.max(last.elapsed()) < Duration::from_millis(150)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_half_written_takes_no_token_away() {
    let (one, other) = (entry("a", &["one"], "admin = [\"*\"]"), entry("b", &["other"], "admin = [\"*\"]"));
    let file = TokensFile::new(&[one.clone(), other.clone()]);
    let server = serve(&file).await;
    let client = server.client().await;
    // On a busy machine the writer may rest for longer than the server waits: then it may take what is there.
    for _ in 0..10 {
        let (path, one, other) = (file.path(), one.clone(), other.clone());
        let writing = tokio::task::spawn_blocking(move || write_slowly(&path, &one, &other));
        let mut denied = 0;
        while !writing.is_finished() {
            denied += usize::from(client.clone().info(with("other", InfoRequest {})).await.is_err());
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        if writing.await.unwrap() {
            assert_eq!(denied, 0);
            server.stop().await;
            return;
        }
        eventually("the whole file", async || client.clone().info(with("other", InfoRequest {})).await.is_ok()).await;
    }
    panic!("the writer was never fast enough");
}
