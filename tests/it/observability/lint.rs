//! What promtool finds in `/metrics` and in the alerts: nothing; and that any Grafana can import the dashboard.

use super::*;
use crate::harness::process::temp_dir;

#[tokio::test(flavor = "multi_thread")]
async fn promtool_finds_nothing_in_the_metrics_and_in_the_alerts() {
    let pair = Pair::real();
    let server = Binary::start(&pair.settings());
    server.until_serving().await;
    let mut client = server.client().await;
    put(&mut client, record("a", [("n", double(1.0))])).await;
    rows(&mut client, get(["a", "nobody"])).await;
    let folder = temp_dir();
    let path = folder.path().join("metrics");
    for text in [server.metrics().await, with_tls_and_tokens().await] {
        assert!(text.matches("# TYPE ").count() > 30, "is this test looking? {text}");
        // Without the head of the answer.
        std::fs::write(&path, text.split_once("\r\n\r\n").unwrap().1).unwrap();
        let Some(ended) = tools::promtool("check metrics", Some(&path)).await else { return };
        assert!(ended.success && ended.errors.is_empty() && ended.output.is_empty(), "{ended:#?}");
    }
    // It finds what is wrong.
    std::fs::write(&path, "# TYPE featurestore_x_count gauge\nfeaturestore_x_count 1\n").unwrap();
    let ended = tools::promtool("check metrics", Some(&path)).await.unwrap();
    assert!(!ended.success && ended.errors.contains("featurestore_x_count"), "{ended:#?}");

    let alerts = file(ALERTS);
    let ended = tools::promtool(&format!("check rules {}", alerts.display()), None).await.unwrap();
    println!("{}", ended.unwrap());
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
