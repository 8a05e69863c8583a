//! Traces, as a collector gets them from the real binary: who is whose parent, what is named how, what is left out.

use std::{collections::BTreeMap, time::Duration};

use opentelemetry_proto::tonic::trace::v1::{span::SpanKind, status::StatusCode};
use tonic::{Request, transport::Identity};

use crate::harness::{
    binary::{Binary, run},
    certificates::{Certificates, text},
    client::*,
    collector::{Collector, Seen},
    process::free_port,
    server::{Pair, eventually},
    tools,
};

const END: Duration = Duration::from_secs(60);
const SERVICE: &str = "featurestore.v1.FeatureStoreService";

/// Trace ids that a reader can tell apart.
fn trace_id(number: u8) -> String {
    format!("{number:02x}").repeat(16)
}

const PARENT: &str = "00f067aa0ba902b7";

/// As a traced client sends it.
fn traced<T>(trace: u8, sampled: bool, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let parent = format!("00-{}-{PARENT}-{:02x}", trace_id(trace), u8::from(sampled));
    request.metadata_mut().insert("traceparent", parent.parse().unwrap());
    request.metadata_mut().insert("tracestate", "vendor=opaque".parse().unwrap());
    request.metadata_mut().insert("authorization", "Bearer canary-token".parse().unwrap());
    request
}

async fn start(collector: &Collector, settings: &[(&str, &str)]) -> Binary {
    let ours = collector.settings();
    let ours: Vec<_> = ours.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Binary::start(&[&ours[..], settings].concat())
}

/// Ends it, and with it the wait for its spans.
fn stop(mut server: Binary) -> String {
    server.signal("TERM");
    assert_eq!(server.exit_code(END), 0, "{}", server.log());
    server.log()
}

/// Does once what each test looks at, so that Redis knows the scripts.
async fn warm_up(client: &mut Client) {
    client.upsert_features(traced(0xff, false, upsert(record("warm", [])))).await.unwrap();
    client.get_features(traced(0xff, false, get(["cold"]))).await.unwrap();
}

/// The span of the only call of a trace, and those of what it asked of backends.
fn of_trace(spans: &[Seen], trace: u8) -> (Seen, Vec<Seen>) {
    let (mut calls, asked): (Vec<Seen>, Vec<Seen>) =
        spans.iter().filter(|span| span.trace_id == trace_id(trace)).cloned().partition(|s| s.kind == SpanKind::Server);
    assert_eq!(calls.len(), 1, "{calls:#?}");
    let call = calls.remove(0);
    // On a busy machine a call may have to look at the epoch for itself.
    let is_usual = |span: &Seen| span.attributes.get("db.collection.name").is_none_or(|name| name != "meta");
    let asked: Vec<Seen> = asked.into_iter().filter(is_usual).collect();
    for span in &asked {
        assert_eq!((span.kind, &span.parent_id), (SpanKind::Client, &call.span_id), "{span:#?}");
        assert!(call.began <= span.began && span.began <= span.ended, "{span:#?}");
    }
    (call, asked)
}

/// What was asked, of scripts their names.
fn words(asked: &[Seen]) -> Vec<&str> {
    fn word(span: &Seen) -> &str {
        span.attributes.get("db.stored_procedure.name").unwrap_or(&span.attributes["db.operation.name"])
    }
    asked.iter().map(word).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_span_is_the_parent_of_ours_and_ours_of_those_of_redis_and_mongodb() {
    let (pair, collector) = (Pair::real(), Collector::start().await);
    let server = start(&collector, &[&pair.settings()[..], &[("FEATURESTORE_LOG_FORMAT", "json")]].concat()).await;
    server.until_serving().await;
    let mut client = server.client().await;
    let is_trusted = async || server.metrics().await.contains("featurestore_tier_mode{tier=\"l1\",mode=\"healthy\"} 1");
    eventually("L1 to be trusted", is_trusted).await;
    warm_up(&mut client).await;
    let canary = || record("canary-id", [("canary_feature", value(value::Kind::StringVal("canary-value".to_owned())))]);
    client.upsert_features(traced(1, true, upsert(canary()))).await.unwrap();
    client.get_features(traced(2, true, get(["canary-id", "nobody"]))).await.unwrap();
    pair.evict("canary-id");
    client.get_features(traced(3, true, get(["canary-id"]))).await.unwrap();
    client.get_features(traced(4, false, get(["canary-id"]))).await.unwrap();
    client.get_features(traced(5, true, get([""]))).await.unwrap_err();
    let records = ["canary-1", "canary-2", "canary-3"].map(|id| record(id, []));
    let chunks = tokio_stream::iter([chunk(1, records)]);
    let mut answers = client.bulk_upsert(traced(6, true, chunks)).await.unwrap().into_inner();
    while answers.message().await.unwrap().is_some() {}
    client.delete_features(traced(7, true, delete(["canary-1", "canary-2"]))).await.unwrap();
    drop((answers, client));
    let our_port = server.port.to_string();
    let log = stop(server);

    let (spans, redis) = (collector.spans(), pair.redis.as_ref().unwrap().port());
    let (call, asked) = of_trace(&spans, 1);
    assert_eq!((call.name.as_str(), call.parent_id.as_str()), (&*format!("{SERVICE}/UpsertFeatures"), PARENT));
    assert_eq!((call.status, call.trace_state.as_str()), (StatusCode::Unset, "vendor=opaque"));
    let expected = [
        ("rpc.method", &*format!("{SERVICE}/UpsertFeatures")),
        ("rpc.response.status_code", "OK"),
        ("rpc.system.name", "grpc"),
        ("server.address", "127.0.0.1"),
        ("server.port", &our_port),
    ];
    assert_eq!(call.attributes, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    assert_eq!(words(&asked), ["mark", "findAndModify", "put"]);
    assert!(asked.iter().all(|span| span.ended <= call.ended && span.status == StatusCode::Unset), "{asked:#?}");
    let port = redis.to_string();
    let expected = [
        ("db.namespace", "0"),
        ("db.operation.name", "EVALSHA"),
        ("db.stored_procedure.name", "mark"),
        ("db.system.name", "redis"),
        ("server.address", "127.0.0.1"),
        ("server.port", &port),
    ];
    assert_eq!(asked[0].attributes, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    assert_eq!(asked[0].name, format!("EVALSHA 127.0.0.1:{redis}"));
    let port = pair.mongod.unwrap().port().to_string();
    let expected = [
        ("db.collection.name", "features"),
        ("db.namespace", pair.database()),
        ("db.operation.name", "findAndModify"),
        ("db.system.name", "mongodb"),
        ("server.address", "127.0.0.1"),
        ("server.port", &port),
    ];
    assert_eq!(asked[1].attributes, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    assert_eq!(asked[1].name, "findAndModify features");

    // One span for a batch, never one a key.
    assert_eq!(words(&of_trace(&spans, 2).1), ["MGET", "acquire", "find", "settle"]);
    assert_eq!(words(&of_trace(&spans, 3).1), ["MGET", "acquire", "find", "settle"]);
    assert!(spans.iter().all(|span| span.trace_id != trace_id(4)), "its caller did not want it");
    let (call, asked) = of_trace(&spans, 5);
    assert_eq!(call.attributes["rpc.response.status_code"], "INVALID_ARGUMENT");
    assert!(call.status == StatusCode::Unset && asked.is_empty(), "it is the caller's fault");
    let (call, asked) = of_trace(&spans, 6);
    assert_eq!(call.name, format!("{SERVICE}/BulkUpsert"));
    assert_eq!(words(&asked), ["update", "find", "settle"]);
    let batches = asked.iter().map(|span| span.attributes.get("db.operation.batch.size").map(String::as_str));
    assert_eq!(batches.collect::<Vec<_>>(), [Some("3"), None, Some("3")]);
    assert_eq!(asked[2].attributes["db.operation.name"], "PIPELINE EVALSHA");
    assert_eq!(words(&of_trace(&spans, 7).1), ["mark", "update", "find", "put"]);
    // Nobody asked for spans of health checks, or of what the server does by itself.
    assert_eq!(spans.iter().filter(|span| span.kind == SpanKind::Server).count(), 6, "{spans:#?}");

    let resource = collector.resource();
    assert_eq!(
        (&*resource["service.name"], &*resource["service.version"]),
        ("featurestore", env!("CARGO_PKG_VERSION"))
    );
    assert_eq!(resource["service.instance.id"].len(), 36);
    let everything = format!("{:?}", collector.received());
    assert!(!everything.contains("canary"), "{everything}");
    assert!(!log.contains("canary-token") && !log.contains("canary-value"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_says_so_without_a_word_of_what_was_asked() {
    let (pair, collector) = (Pair::real(), Collector::start().await);
    let server = start(&collector, &pair.settings()).await;
    server.until_serving().await;
    let mut client = server.client().await;
    let is_trusted = async || server.metrics().await.contains("featurestore_tier_mode{tier=\"l1\",mode=\"healthy\"} 1");
    eventually("L1 to be trusted", is_trusted).await;
    warm_up(&mut client).await;
    pair.redis.as_ref().unwrap().cli(&["CONFIG", "SET", "maxmemory", "1"]);
    client.upsert_features(traced(1, true, upsert(record("canary", [])))).await.unwrap();
    drop(client);
    stop(server);
    let (call, asked) = of_trace(&collector.spans(), 1);
    assert_eq!((call.status, words(&asked)[0]), (StatusCode::Unset, "mark"));
    assert_eq!(asked[0].status, StatusCode::Error);
    let codes = ["error.type", "db.response.status_code"].map(|name| asked[0].attributes[name].as_str());
    assert_eq!(codes, ["OOM", "OOM"]);

    let (uri, collector) = (format!("mongodb://127.0.0.1:{}/", free_port()), Collector::start().await);
    let server = start(&collector, &[("MONGO_URI", &uri), ("FEATURESTORE_LOG_FORMAT", "json")]).await;
    eventually("it to be up", async || server.health("").await.is_some()).await;
    let mut client = server.client().await;
    let status = client.get_features(traced(2, true, get(["canary"]))).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable);
    drop(client);
    let log = stop(server);
    let (call, _) = of_trace(&collector.spans(), 2);
    assert_eq!(call.status, StatusCode::Error);
    assert_eq!([&call.attributes["error.type"], &call.attributes["rpc.response.status_code"]], ["UNAVAILABLE"; 2]);
    assert!(!format!("{:?}", collector.received()).contains("canary"), "{call:#?}");
    assert!(log.lines().all(|line| line.starts_with('{')), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_without_a_span_are_traced_as_often_as_the_sampler_says_and_lines_of_the_log_tell_the_trace() {
    let collector = Collector::start().await;
    let settings = [
        ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "0"),
        ("OTEL_SERVICE_NAME", "features-of-the-shop"),
        ("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=replica-7,deployment.environment.name=test"),
        ("FEATURESTORE_LOG_FORMAT", "json"),
        ("RUST_LOG", "warn,featurestore=debug"),
    ];
    let server = start(&collector, &settings).await;
    server.until_serving().await;
    let mut client = server.client().await;
    for _ in 0..50 {
        client.get_features(get(["a"])).await.unwrap();
    }
    client.get_features(traced(1, true, get(["b"]))).await.unwrap();
    drop(client);
    let log = stop(server);
    let spans = collector.spans();
    assert_eq!(spans.iter().map(|span| span.trace_id.clone()).collect::<Vec<_>>(), [trace_id(1)]);
    let resource = collector.resource();
    let told =
        ["service.name", "service.instance.id", "deployment.environment.name"].map(|name| resource[name].as_str());
    assert_eq!(told, ["features-of-the-shop", "replica-7", "test"]);

    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let lookups: BTreeMap<&str, _> = lines
        .iter()
        .filter_map(|line| Some((line["fields"]["entity_id"].as_str()?, line["span"]["trace_id"].as_str())))
        .collect();
    let traced = trace_id(1);
    assert_eq!(lookups, BTreeMap::from([("a", None), ("b", Some(traced.as_str()))]), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_collector_a_traced_client_is_served() {
    let off = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1"), ("OTEL_SDK_DISABLED", "true")];
    for settings in [&[][..], &off] {
        let server = Binary::start(settings);
        server.until_serving().await;
        let mut client = server.client().await;
        client.get_features(traced(1, true, get(["a"]))).await.unwrap();
        drop(client);
        let log = stop(server);
        assert!(!log.contains("collector"), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_gone_holds_nobody_up_and_is_told_of_once() {
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let server = Binary::start(&[("OTEL_EXPORTER_OTLP_ENDPOINT", nobody.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "50")]);
    server.until_serving().await;
    let mut client = server.client().await;
    client.get_features(traced(1, true, get(["a"]))).await.unwrap();
    let words = "spans do not reach the collector";
    eventually("it to be told", async || server.log().contains(words)).await;
    // And once more, as the last ones are sent at the end.
    client.get_features(traced(2, true, get(["a"]))).await.unwrap();
    drop(client);
    let log = stop(server);
    assert_eq!(log.matches(words).count(), 1, "{log}");
    assert!(!log.contains("ERROR"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_clients_span_is_the_parent_of_ours() {
    let collector = Collector::start().await;
    let server = start(&collector, &[]).await;
    server.until_serving().await;
    let ended = tools::python("traced_client.py", &["--target", &server.address()]).await;
    let Some(told) = ended.map(tools::Ended::unwrap) else { return };
    let (trace, span) = told.trim().split_once(' ').unwrap();
    stop(server);
    let spans = collector.spans();
    assert_eq!(spans.len(), 1, "{spans:#?}");
    assert_eq!((spans[0].trace_id.as_str(), spans[0].parent_id.as_str()), (trace, span), "{spans:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_without_a_scheme_is_an_error_and_another_protocol_is_told() {
    for (name, endpoint) in [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "grpc://collector:4317"),
    ] {
        let output = run(&["serve"], &[(name, endpoint), ("FEATURESTORE_LISTEN", "127.0.0.1:0")]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(64), "{said}");
        assert!(said.contains(&format!("{name}: must have the form http://host:4317")), "{said}");
    }
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let settings = [("OTEL_EXPORTER_OTLP_ENDPOINT", nobody.as_str()), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")];
    let server = Binary::start(&settings);
    server.until_serving().await;
    let told = "OTEL_EXPORTER_OTLP_PROTOCOL: http/protobuf is not supported";
    assert!(server.log().contains(told), "{}", server.log());
    let server = Binary::start(&[settings[0], ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]);
    server.until_serving().await;
    assert!(!server.log().contains("is not supported"), "{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_variables_say_is_taken_without_line_ends_and_sent_with_each_batch() {
    let collector = Collector::start().await;
    let endpoint = format!(" {}\n", collector.endpoint());
    let settings = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "\n"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Basic%20canary\n"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip\n"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc\n"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "20000\n"),
        ("OTEL_BSP_SCHEDULE_DELAY", "3600000\n"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1\n"),
        ("OTEL_TRACES_EXPORTER", "otlp\n"),
        ("OTEL_TRACES_SAMPLER", "always_on\r\n"),
        ("OTEL_SDK_DISABLED", "false\n"),
        ("OTEL_SERVICE_NAME", "shop\n"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=b%2Cc,service.instance.id=7\n"),
    ];
    let server = Binary::start(&settings);
    server.until_serving().await;
    let mut client = server.client().await;
    for trace in 1..=2 {
        client.get_features(traced(trace, false, get(["a"]))).await.unwrap();
    }
    drop(client);
    let log = stop(server);
    assert!(!log.contains("WARN") && !log.contains("canary"), "{log}");
    assert_eq!(collector.spans().len(), 2);
    let resource = collector.resource();
    assert_eq!(["service.name", "service.instance.id", "a"].map(|name| resource[name].as_str()), ["shop", "7", "b,c"]);
    // A batch of one span each, as the variable says.
    let sent = [Some("Basic canary".to_owned()), Some("gzip".to_owned())];
    assert_eq!(collector.headers(), [sent.clone(), sent]);

    let off =
        [("OTEL_SDK_DISABLED", "true\n"), ("OTEL_TRACES_EXPORTER", "none\n"), ("OTEL_TRACES_SAMPLER", "always_off\n")];
    for setting in off {
        let collector = Collector::start().await;
        let server = start(&collector, &[setting]).await;
        server.until_serving().await;
        server.client().await.get_features(traced(1, true, get(["a"]))).await.unwrap();
        stop(server);
        assert!(collector.spans().is_empty(), "{setting:?}");
    }
}

#[test]
fn what_cannot_be_sent_is_refused_by_its_name_and_without_the_secret() {
    let (endpoint, headers) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_HEADERS");
    let there = (endpoint, "https://127.0.0.1:1");
    for (settings, name) in [
        (&[(endpoint, "http://u:canary@127.0.0.1:4317\n")][..], endpoint),
        (&[(endpoint, "http://u:can ary@127.0.0.1:4317")], endpoint),
        (&[(endpoint, "http://u:canary@127.0.0.1:\n4317")], endpoint),
        (&[(endpoint, "http://canary h:4317")], endpoint),
        (&[(endpoint, "http://canary:0")], endpoint),
        (&[there, (headers, "canary")], headers),
        (&[there, (headers, "authorization=canary%0A")], headers),
        (&[there, (headers, "a=canary\nb=canary")], headers),
        (&[there, ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem")], "OTEL_EXPORTER_OTLP_CERTIFICATE"),
        (&[there, ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/dev/null")], "OTEL_EXPORTER_OTLP_CERTIFICATE"),
    ] {
        let output =
            run(&["serve"], &[settings, &[("FEATURESTORE_LISTEN", "127.0.0.1:0"), ("RUST_LOG", "trace")]].concat());
        let said = [output.stdout, output.stderr].map(|said| String::from_utf8(said).unwrap()).concat();
        assert_eq!(output.status.code(), Some(64), "{settings:?}: {said}");
        assert!(said.contains(&format!("featurestore: {name}: ")), "{settings:?}: {said}");
        assert!(!said.contains("canary") && !said.contains("can ary"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_known_of_the_variables_is_told() {
    let collector = Collector::start().await;
    let settings = [
        ("OTEL_TRACES_SAMPLER", "sometimes"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_SDK_DISABLED", "yes"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "many"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a"),
        ("OTEL_PROPAGATORS", "b3"),
    ];
    let server = start(&collector, &settings).await;
    server.until_serving().await;
    let log = server.log();
    let warnings: Vec<_> = log.lines().filter(|line| line.contains("WARN") && line.contains("OTEL_")).collect();
    assert_eq!(warnings.len(), settings.len(), "{log}");
    for (name, _) in settings {
        assert!(warnings.iter().any(|line| line.contains(name)), "{name}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_with_tls_is_known_by_its_certificate() {
    let certificates = Certificates::new();
    let [certificate, key] = [certificates.certificate(), certificates.key()].map(|path| std::fs::read(path).unwrap());
    let collector = Collector::start_with(Identity::from_pem(certificate, key)).await;
    let ca = certificates.ca();
    let server = start(&collector, &[("OTEL_EXPORTER_OTLP_CERTIFICATE", text(&ca))]).await;
    server.until_serving().await;
    server.client().await.get_features(traced(1, true, get(["a"]))).await.unwrap();
    stop(server);
    assert_eq!(collector.spans().len(), 1);
}
