//! What dashboards and alerts look at is there: every metric that they name is one of the real binary's, every label that
//! they pick by is one of its labels, and every alert tells what to do.

mod lint;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use mongodb::bson;
use tokio::io::AsyncReadExt as _;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::{
    access::{TokensFile, entry, with},
    harness::{
        binary::{Binary, SERVICE},
        client::*,
        raw,
        server::{Pair, eventually},
        tls::{Authority, Secret},
        tools,
    },
};

const DASHBOARD: &str = "deploy/observability/grafana/dashboards/featurestore.json";
const ALERTS: &str = "deploy/observability/alerts.yml";
const RUNBOOK: &str = "docs/runbook.md";
/// Made by Prometheus itself, of what it scrapes.
const OF_PROMETHEUS: [&str; 1] = ["up"];
const LABELS_OF_PROMETHEUS: [&str; 2] = ["job", "instance"];

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn text(path: &str) -> String {
    fs::read_to_string(file(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// A metric that an expression names, and the labels that it picks it by.
#[derive(Debug, PartialEq, Eq)]
struct Named {
    metric: String,
    labels: BTreeSet<String>,
}

/// The metrics of a PromQL expression.
fn named(expression: &str) -> Vec<Named> {
    const WORDS: [&str; 12] = [
        "and",
        "or",
        "unless",
        "by",
        "without",
        "on",
        "ignoring",
        "group_left",
        "group_right",
        "bool",
        "offset",
        "inf",
    ];
    let (mut found, mut rest, mut in_labels) = (Vec::new(), expression, false);
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    while let Some(c) = rest.chars().next() {
        if c == '[' {
            rest = &rest[rest.find(']').unwrap()..];
        } else if !c.is_ascii_alphabetic() && c != '_' {
            let skipped = if c.is_ascii_digit() { rest.find(|c| !is_part(c)).unwrap_or(rest.len()) } else { 1 };
            rest = &rest[skipped..];
        } else {
            let (word, after) = rest.split_at(rest.find(|c| !is_part(c)).unwrap_or(rest.len()));
            rest = after.trim_start();
            in_labels |= ["by", "without", "on", "ignoring", "group_left", "group_right"].contains(&word);
            if in_labels && rest.starts_with('(') {
                rest = &rest[rest.find(')').unwrap()..];
                in_labels = false;
                continue;
            }
            in_labels = false;
            // `sum(..)`, and `sum by (..) (..)`.
            let is_function = ["(", "by ", "without "].into_iter().any(|next| rest.starts_with(next));
            if WORDS.contains(&word) || is_function {
                continue;
            }
            let mut labels = BTreeSet::new();
            if let Some(picked) = rest.strip_prefix('{') {
                let end = picked.find('}').unwrap();
                labels.extend(picked[..end].split("\",").map(|pick| {
                    let name = pick.trim().find(|c| !is_part(c)).unwrap();
                    pick.trim()[..name].to_owned()
                }));
                rest = &picked[end..];
            }
            found.push(Named { metric: word.to_owned(), labels });
        }
    }
    found
}

/// The expressions of the dashboard's panels and variables.
fn of_the_dashboard() -> Vec<String> {
    fn collect(value: &serde_json::Value, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(fields) => {
                for (name, value) in fields {
                    match (name.as_str(), value.as_str()) {
                        ("expr", Some(expression)) => found.push(expression.to_owned()),
                        ("definition", Some(variable)) => {
                            let values = variable.strip_prefix("label_values(").unwrap();
                            found.push(values.rsplit_once(',').unwrap().0.to_owned());
                        }
                        _ => collect(value, found),
                    }
                }
            }
            serde_json::Value::Array(values) => values.iter().for_each(|value| collect(value, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    collect(&serde_json::from_str(&text(DASHBOARD)).unwrap(), &mut found);
    found
}

#[derive(Debug, Default)]
struct Alert {
    name: String,
    expression: String,
    /// By their names, without quotes.
    annotations: BTreeMap<String, String>,
}

/// The rules, as they are laid out in that file: a test needs no whole YAML.
fn alerts() -> Vec<Alert> {
    let (mut alerts, mut in_expression) = (Vec::<Alert>::new(), false);
    for line in text(ALERTS).lines() {
        let indent = line.len() - line.trim_start().len();
        if let Some(name) = line.trim().strip_prefix("- alert: ") {
            alerts.push(Alert { name: name.to_owned(), ..Alert::default() });
        }
        let Some(alert) = alerts.last_mut() else { continue };
        in_expression &= indent > 8;
        if in_expression {
            alert.expression += line.trim();
            alert.expression += " ";
        }
        in_expression |= line == "        expr: |-";
        if let (false, 10, Some((name, value))) = (in_expression, indent, line.trim().split_once(": ")) {
            alert.annotations.insert(name.to_owned(), value.trim_matches('"').to_owned());
        }
    }
    alerts
}

/// Metrics with their labels, as `/metrics` has them.
fn scraped(metrics: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut found = BTreeMap::<String, BTreeSet<String>>::new();
    let lines = metrics.lines().skip_while(|line| !line.starts_with('#')).filter(|line| !line.starts_with('#'));
    for Named { metric, labels } in lines.flat_map(named) {
        found.entry(metric).or_default().extend(labels);
    }
    found
}

/// What a server tells that has TLS and tokens.
async fn with_tls_and_tokens() -> String {
    let (signed, tokens) = (Authority::new().sign(), TokensFile::new(&[entry("a", &["a"], "")]));
    let secret = Secret::new(&signed.cert, &signed.key);
    let mut settings = secret.settings();
    settings.push(("FEATURESTORE_AUTH_TOKENS_FILE", tokens.path()));
    let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let server = Binary::start(&settings);
    eventually("it to be ready", async || server.admin_health(SERVICE).await == Some(ServingStatus::Serving)).await;
    server.metrics().await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_that_the_dashboard_and_the_alerts_name_is_there() {
    let pair = Pair::real();
    let server = Binary::start(&pair.settings());
    server.until_serving().await;
    let is_trusted = async || server.metrics().await.contains("featurestore_tier_mode{tier=\"l1\",mode=\"healthy\"} 1");
    eventually("L1 to be trusted", is_trusted).await;
    let mut client = server.client().await;
    put(&mut client, record("a", [("n", double(1.0))])).await;
    rows(&mut client, get(["a", "nobody"])).await;
    rows(&mut client, get(["a", "nobody"])).await;
    let (answers, ended) = bulk(&mut client, [chunk(1, [record("b", []), record("", [])])]).await;
    assert_eq!((answers[0].written, answers[0].failed, ended.is_none()), (1, 1, true));
    client.delete_features(delete(["a"])).await.unwrap();
    client.get_features(get([""])).await.unwrap_err();

    let metrics = server.metrics().await;
    let count = |series: &str| -> f64 {
        let value = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {series} in {metrics}")).parse().unwrap()
    };
    let calls = |method: &str, code: &str| {
        let method = format!("rpc_method=\"featurestore.v1.FeatureStoreService/{method}\"");
        let code = format!("rpc_response_status_code=\"{code}\"");
        count(&format!("rpc_server_call_duration_seconds_count{{rpc_system_name=\"grpc\",{method},{code}}}"))
    };
    assert_eq!([calls("GetFeatures", "OK"), calls("GetFeatures", "INVALID_ARGUMENT")], [2.0, 1.0]);
    let others = ["UpsertFeatures", "BulkUpsert", "DeleteFeatures"].map(|method| calls(method, "OK"));
    assert_eq!(others, [1.0, 1.0, 1.0]);
    let once = [
        "featurestore_tier_negative_hits_total{tier=\"l1\"}",
        "featurestore_l1_entries_total{step=\"acquire\",outcome=\"lease\"}",
        "featurestore_l1_entries_total{step=\"fill\",outcome=\"installed\"}",
        "featurestore_bulk_records_total{outcome=\"written\"}",
        "featurestore_bulk_records_total{outcome=\"failed\"}",
        "featurestore_tier_operation_duration_seconds_count{tier=\"l2\",operation=\"read\"}",
    ];
    assert_eq!(once.map(count), [1.0; 6], "{metrics}");
    assert_eq!(count("featurestore_tier_hits_total{tier=\"l1\"}"), 3.0);
    assert!(count("db_client_connection_wait_time_seconds_count{db_client_connection_pool_name=\"mongodb\"}") >= 4.0);
    assert!(
        count("db_client_connections{db_client_connection_pool_name=\"redis\",db_client_connection_state=\"used\"}")
            >= 2.0
    );
    assert_eq!(count("db_client_connection_max{db_client_connection_pool_name=\"mongodb\"}"), 64.0);

    let mut there = scraped(&metrics);
    for (metric, labels) in scraped(&with_tls_and_tokens().await) {
        there.entry(metric).or_default().extend(labels);
    }
    let alerts = alerts();
    let expressions = of_the_dashboard().into_iter().chain(alerts.iter().map(|alert| alert.expression.clone()));
    let (mut wrong, mut looked_at) = (Vec::new(), BTreeSet::new());
    for expression in expressions {
        let metrics = named(&expression);
        assert!(!metrics.is_empty(), "{expression}: is this test looking?");
        for Named { metric, labels } in metrics {
            match there.get(&metric) {
                Some(known) => {
                    let known =
                        |label: &String| known.contains(label) || LABELS_OF_PROMETHEUS.contains(&label.as_str());
                    wrong.extend(
                        labels.iter().filter(|label| !known(label)).map(|label| format!("{metric}{{{label}}}")),
                    );
                }
                None if OF_PROMETHEUS.contains(&metric.as_str()) => {}
                None => wrong.push(metric.clone()),
            }
            looked_at.insert(metric);
        }
    }
    assert!(wrong.is_empty(), "named, but not in /metrics: {wrong:?}");
    assert!(looked_at.len() > 30 && alerts.len() > 10, "{looked_at:?}");

    // And docs/observability.md names each.
    let page = text("docs/observability.md");
    let family = |name: &str| {
        ["_bucket", "_count", "_sum"].into_iter().find_map(|suffix| name.strip_suffix(suffix).map(str::to_owned))
    };
    let is_told = |name: &&String| {
        let family = family(name).filter(|family| there.contains_key(&format!("{family}_bucket")));
        page.contains(&format!("`{}`", family.as_deref().unwrap_or(name)))
    };
    let untold: Vec<_> = there.keys().filter(|name| !is_told(name)).collect();
    assert!(untold.is_empty(), "not in docs/observability.md: {untold:?}");
}

/// One number of a server's.
async fn count(server: &Binary, series: &str) -> f64 {
    let metrics = server.metrics().await;
    let value = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {series} in {metrics}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_alerts_wait_for_is_there_before_the_first_time_and_counted() {
    let pair = Pair::new(false, true);
    let settings = [&pair.settings()[..], &[("FEATURESTORE_LIMITS_MAX_IN_FLIGHT", "1")]].concat();
    let server = Binary::start(&settings);
    server.until_serving().await;
    let (shed, unreadable) = ("featurestore_calls_shed_total", "featurestore_unreadable_records_total");
    for series in [shed, unreadable, "featurestore_bytes_shed_total", "featurestore_writes_shed_total"] {
        assert_eq!(count(&server, series).await, 0.0, "{series}");
    }
    for method in ["GetFeatures", "UpsertFeatures", "BulkUpsert", "DeleteFeatures", "Info"] {
        let method = format!("rpc_method=\"featurestore.v1.FeatureStoreService/{method}\"");
        let labels = format!("rpc_system_name=\"grpc\",{method},rpc_response_status_code=\"INTERNAL\"");
        assert_eq!(count(&server, &format!("rpc_server_call_duration_seconds_count{{{labels}}}")).await, 0.0);
    }

    let mut client = server.client().await;
    put(&mut client, record("a", [("n", double(1.0))])).await;
    // A call whose message is not complete has the only place.
    let in_flight = async |calls: f64| count(&server, "featurestore_calls_in_flight").await == calls;
    eventually("the place to be free", async || in_flight(0.0).await).await;
    let raw = raw::connect(server.port, &h2::client::Builder::new()).await;
    let begun = raw.begin_only("GetFeatures", &get(["a"])).await;
    eventually("the place to be taken", async || in_flight(1.0).await).await;
    let refused = client.get_features(get(["a"])).await.unwrap_err();
    assert_eq!((refused.code(), count(&server, shed).await), (tonic::Code::ResourceExhausted, 1.0));
    drop(begun);
    eventually("the place to be free again", async || in_flight(0.0).await).await;

    // Somebody put in by hand what no kind of value stands for.
    let documents = pair.mongod.unwrap().database(pair.database()).await.collection::<bson::Document>("features");
    let update = bson::doc! { "$set": { "features.n": bson::Bson::ObjectId(bson::oid::ObjectId::new()) } };
    documents.update_one(bson::doc! { "_id.entity_id": "a" }, update).await.unwrap();
    assert_eq!(row(&mut client, strong(["a"])).await.status(), RowStatus::Error);
    assert_eq!(count(&server, unreadable).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn denied_calls_are_counted_by_reason() {
    let file = TokensFile::new(&[entry("reader", &["reads"], "read = [\"*\"]")]);
    let server = Binary::start(&[("FEATURESTORE_AUTH_TOKENS_FILE", &file.path())]);
    server.until_serving().await;
    let denied = async |reason: &str| count(&server, &format!("featurestore_denied_calls_total{{{reason}}}")).await;
    let reasons = ["no_token", "unknown_token", "no_rule", "no_right"].map(|reason| format!("reason=\"{reason}\""));
    for reason in &reasons {
        assert_eq!(denied(reason).await, 0.0, "{reason}");
    }
    let mut client = server.client().await;
    // More than are told.
    for _ in 0..30 {
        client.get_features(get(["a"])).await.unwrap_err();
    }
    for _ in 0..2 {
        client.get_features(with("unknown", get(["a"]))).await.unwrap_err();
        client.upsert_features(with("reads", upsert(record("a", [])))).await.unwrap_err();
    }
    client.get_features(with("reads", get(["a"]))).await.unwrap();
    for (reason, count) in reasons.iter().zip([30.0, 2.0, 0.0, 2.0]) {
        assert_eq!(denied(reason).await, count, "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_counted_and_those_that_are_too_many() {
    let server = Binary::start(&[("FEATURESTORE_LIMITS_MAX_CONNECTIONS", "3")]);
    // On the other port, as this one is counted.
    eventually("it to be ready", async || server.admin_health(SERVICE).await == Some(ServingStatus::Serving)).await;
    let (open, refused) = ("featurestore_connections", "featurestore_connections_refused_total");
    assert_eq!(count(&server, "featurestore_connections_max").await, 3.0);
    assert_eq!((count(&server, open).await, count(&server, refused).await), (0.0, 0.0));
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = server.client().await;
        client.info(InfoRequest {}).await.unwrap();
        clients.push(client);
    }
    let mut one_more = tokio::net::TcpStream::connect(server.address()).await.unwrap();
    eventually("it to be closed", async || matches!(one_more.read(&mut [0]).await, Ok(0) | Err(_))).await;
    assert_eq!((count(&server, open).await, count(&server, refused).await), (3.0, 1.0));
    drop(clients);
    eventually("all to be gone", async || count(&server, open).await == 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_readers_of_one_key_and_a_redis_that_is_gone_are_counted() {
    let mut pair = Pair::real();
    let server = Binary::start(&pair.settings());
    server.until_serving().await;
    let count = async |series: &str| -> f64 {
        let metrics = server.metrics().await;
        let value = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {series} in {metrics}")).parse().unwrap()
    };
    let healthy = "featurestore_tier_mode{tier=\"l1\",mode=\"healthy\"}";
    eventually("L1 to be trusted", async || count(healthy).await == 1.0).await;
    let client = server.client().await;
    let mut key = 0;
    eventually("reads to be coalesced", async || {
        key += 1;
        let mut readers = tokio::task::JoinSet::new();
        for _ in 0..50 {
            let mut client = client.clone();
            readers.spawn(async move { client.get_features(get([format!("cold {key}")])).await.unwrap() });
        }
        readers.join_all().await;
        count("featurestore_coalesced_reads_total").await > 0.0
    })
    .await;
    let (degraded, not_cached) = ("featurestore_degraded_reads_total", "featurestore_writes_not_cached_total");
    let before = [count(degraded).await, count(not_cached).await];

    pair.redis().kill();
    eventually("its loss to be noticed", async || count("featurestore_tier_up{tier=\"l1\"}").await == 0.0).await;
    let mut client = client;
    let answer = client.get_features(get(["a"])).await.unwrap().into_inner();
    assert!(answer.degraded && !put(&mut client, record("a", [])).await.cached);
    assert_eq!([count(degraded).await, count(not_cached).await], before.map(|count| count + 1.0));
    assert_eq!(count(healthy).await, 0.0);
}

#[test]
fn every_alert_has_a_section_of_the_runbook_and_every_section_an_alert() {
    let runbook = text(RUNBOOK);
    let sections: BTreeSet<&str> = runbook.lines().filter_map(|line| line.strip_prefix("## FeatureStore")).collect();
    let alerts = alerts();
    let names: BTreeSet<&str> = alerts.iter().filter_map(|alert| alert.name.strip_prefix("FeatureStore")).collect();
    assert_eq!(names, sections);
    for Alert { name, annotations, .. } in &alerts {
        let anchor = format!("{RUNBOOK}#{}", name.to_lowercase());
        assert_eq!(annotations.get("runbook_url"), Some(&anchor), "{name}");
        for told in ["summary", "action"] {
            assert!(annotations.get(told).is_some_and(|text| text.len() > 10), "{name} has no {told}: {annotations:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_own_parsers_read_both_texts() {
    let server = Binary::start(&[]);
    server.until_serving().await;
    let mut client = server.client().await;
    rows(&mut client, get(["a"])).await;
    let url = format!("http://127.0.0.1:{}/metrics", server.admin_port);
    let Some(read) = tools::python("read_metrics.py", &["--url", &url]).await else { return };
    let families = read.unwrap();
    for family in [
        "featurestore_build info",
        "rpc_server_call_duration_seconds histogram",
        "featurestore_tier_hits counter",
        "featurestore_calls_in_flight gauge",
        "process_cpu_seconds counter",
        "process_resident_memory_bytes gauge",
    ] {
        assert!(families.lines().any(|line| line == family), "{family} is not in: {families}");
    }
}

#[test]
fn this_test_reads_expressions_as_prometheus_does() {
    let expression = "sum by (job, le) (rate(a_total{job=\"x\",code=~\"A|B\"}[5m])) / on (job) group_left b_count\n> 0.01 and c offset 5m";
    let labels = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let expected = [("a_total", labels(&["job", "code"])), ("b_count", labels(&[])), ("c", labels(&[]))];
    let expected = expected.map(|(metric, labels)| Named { metric: metric.to_owned(), labels });
    assert_eq!(named(expression), expected);
}
