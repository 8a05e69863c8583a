//! What `promtool check metrics` would find in `/metrics`, by its rules; and that any Grafana can import the dashboard.

use super::*;

/// Units that have a base unit, and the short forms of units; a name holds none of them as a word.
const NO_BASE_UNITS: [&str; 40] = [
    "milliseconds",
    "microseconds",
    "nanoseconds",
    "minutes",
    "hours",
    "days",
    "weeks",
    "kilobytes",
    "megabytes",
    "gigabytes",
    "kibibytes",
    "mebibytes",
    "gibibytes",
    "bits",
    "kilobits",
    "megabits",
    "millimeters",
    "kilometers",
    "fahrenheit",
    "percent",
    "milliamperes",
    "s",
    "sec",
    "secs",
    "ms",
    "us",
    "ns",
    "m",
    "min",
    "mins",
    "h",
    "d",
    "b",
    "kb",
    "mb",
    "gb",
    "kib",
    "mib",
    "gib",
    "pct",
];

/// What is wrong with a text of metrics.
fn problems(text: &str) -> Vec<String> {
    let (mut found, mut helps) = (Vec::new(), BTreeSet::new());
    let lines = text.lines().skip_while(|line| !line.starts_with('#'));
    let mut families = BTreeMap::<&str, &str>::new();
    for line in lines.clone() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' '))
            && (help.trim().is_empty() || !helps.insert(name))
        {
            found.push(format!("{name}: no help text, or two"));
        }
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
            && families.insert(name, kind).is_some()
        {
            found.push(format!("{name}: it is there twice"));
        }
    }
    for (name, kind) in &families {
        let mut wrong = |why: &str| found.push(format!("{name} ({kind}): {why}"));
        let is_histogram = *kind == "histogram";
        if !helps.contains(name) {
            wrong("no help text");
        }
        if (*kind == "counter") != name.ends_with("_total") {
            wrong("counters, and they alone, end with _total");
        }
        if !is_histogram && ["_count", "_sum", "_bucket"].iter().any(|end| name.ends_with(end)) {
            wrong("it ends as the parts of a histogram do");
        }
        if !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_') {
            wrong("it is no snake_case");
        }
        if name.split('_').any(|word| NO_BASE_UNITS.contains(&word)) {
            wrong("its unit is no base unit, or a short form of one");
        }
        if ["counter", "gauge", "histogram", "summary"].iter().any(|kind| name.split('_').any(|word| word == *kind)) {
            wrong("its name tells its type");
        }
    }
    for Named { metric, labels } in lines.filter(|line| !line.starts_with('#')).flat_map(named) {
        let family = family_of(&metric, &families);
        let (name, kind) = family.unwrap_or((metric.as_str(), "no type"));
        if kind == "no type" || (labels.contains("le") && kind != "histogram") || labels.contains("quantile") {
            found.push(format!("{name} ({kind}): {metric} has no type, or a label of another one"));
        }
    }
    found
}

/// The family that a series belongs to, and its type.
fn family_of<'a>(series: &'a str, families: &BTreeMap<&'a str, &'a str>) -> Option<(&'a str, &'a str)> {
    let names = ["", "_bucket", "_count", "_sum"].into_iter().filter_map(|end| series.strip_suffix(end));
    names.into_iter().find_map(|name| Some((name, *families.get(name)?)))
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_would_find_nothing_in_the_metrics() {
    let pair = Pair::real();
    let server = Binary::start(&pair.settings());
    server.until_serving().await;
    let mut client = server.client().await;
    put(&mut client, record("a", [("n", double(1.0))])).await;
    rows(&mut client, get(["a", "nobody"])).await;
    for text in [server.metrics().await, with_tls_and_tokens().await] {
        assert!(text.matches("# TYPE ").count() > 30, "is this test looking? {text}");
        let problems = problems(&text);
        assert!(problems.is_empty(), "{problems:#?}");
    }
}

#[test]
fn this_test_finds_what_promtool_finds() {
    let bad = "# TYPE a_count gauge\na_count 1\n# HELP b x\n# TYPE b counter\nb 1\n# HELP c_ms x\n# TYPE c_ms gauge\nc_ms 1\nd 1\n";
    let found = problems(bad).join("\n");
    for part in ["a_count (gauge): no help", "a_count (gauge): it ends", "b (counter)", "c_ms (gauge)", "d (no type)"] {
        assert!(found.contains(part), "{part} is not in {found}");
    }
}

#[test]
fn any_grafana_can_import_the_dashboard() {
    let dashboard: serde_json::Value = serde_json::from_str(&text(DASHBOARD)).unwrap();
    // Provisioned from a file, or imported by hand: both choose the data source by a variable.
    let variable = &dashboard["templating"]["list"][0];
    assert_eq!((&variable["name"], &variable["type"]), (&"datasource".into(), &"datasource".into()), "{variable}");
    assert_eq!(variable["query"], "prometheus");
    assert!(dashboard.get("__inputs").is_none() && dashboard.get("id").is_none(), "a provisioned one has neither");
    fn sources(value: &serde_json::Value, found: &mut Vec<serde_json::Value>) {
        match value {
            serde_json::Value::Object(fields) => fields.iter().for_each(|(name, value)| match name.as_str() {
                "datasource" => found.push(value.clone()),
                _ => sources(value, found),
            }),
            serde_json::Value::Array(values) => values.iter().for_each(|value| sources(value, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    sources(&dashboard, &mut found);
    let chosen = serde_json::json!({"type": "prometheus", "uid": "${datasource}"});
    assert!(found.len() > 60 && found.iter().all(|source| *source == chosen), "{found:?}");
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "two panels have one id");
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        assert_eq!(panel["datasource"], chosen, "{}", panel["title"]);
        assert!(panel["targets"].as_array().unwrap().iter().all(|target| target["datasource"] == chosen));
    }
}
