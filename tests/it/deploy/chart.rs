//! The Helm chart, rendered: its environment and files are the binary's, its probes are answered, and its Pods are given
//! the time that the drain takes. `deploy/helm/check.sh` holds the manifests to Kubernetes' schemas.

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tonic_health::pb::health_check_response::ServingStatus::Serving;

use super::environment::{self, Environment};
use crate::harness::{
    binary::Binary,
    process::temp_dir,
    server::{Pair, eventually},
    tools,
};

const SECRETS: &str = "/run/secrets/featurestore";
const CONFIG: &str = "/etc/featurestore";

/// What the chart makes of a file of its `ci/`, or of its own values; None: there is no helm.
async fn rendered(values: Option<&str>) -> Option<Manifest> {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/helm/featurestore");
    let values = chart.join(values.map_or("values.yaml".into(), |name| PathBuf::from("ci").join(name)));
    let args = ["template", "release", chart.to_str().unwrap(), "--values", values.to_str().unwrap()];
    Some(Manifest(tools::helm(&args).await?.unwrap()))
}

/// YAML as helm prints it.
struct Manifest(String);

impl Manifest {
    /// The container's environment, with its files below `folder`.
    fn environment(&self, folder: &Path) -> Environment {
        let lines: Vec<_> = self.0.lines().map(str::trim).collect();
        let upper = |name: &str| name.bytes().all(|byte| matches!(byte, b'A'..=b'Z' | b'0'..=b'9' | b'_'));
        let pair = |lines: &[&str]| {
            let name = lines[0].strip_prefix("- name: ").filter(|name| upper(name))?;
            let value = lines[1].strip_prefix("value: ")?;
            let value = serde_json::from_str(value).unwrap_or_else(|_| value.to_owned());
            let below = |at: &str| folder.join(at.trim_start_matches('/')).display().to_string();
            Some((name.to_owned(), value.replace(SECRETS, &below(SECRETS)).replace(CONFIG, &below(CONFIG))))
        };
        lines.windows(2).filter_map(pair).collect()
    }

    /// The configuration file of the ConfigMap.
    fn config(&self) -> String {
        let lines = self.0.lines().skip_while(|line| line.trim() != "featurestore.toml: |").skip(1);
        let lines = lines.take_while(|line| line.is_empty() || line.starts_with("    "));
        lines.map(|line| format!("{}\n", line.trim_start())).collect()
    }

    /// What follows `key:` wherever it stands.
    fn all(&self, key: &str) -> Vec<&str> {
        let prefix = format!("{key}: ");
        self.0.lines().filter_map(|line| line.trim().strip_prefix(&prefix)).map(|text| text.trim_matches('"')).collect()
    }

    /// The folder of a container: its configuration file and its Secrets.
    fn files(&self, secrets: &[(&str, &str)]) -> TempDir {
        let folder = temp_dir();
        let write = |path: String, text: &str| {
            let path = folder.path().join(path.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write(format!("{CONFIG}/featurestore.toml"), &self.config());
        for (name, text) in secrets {
            write(format!("{SECRETS}/{name}"), text);
        }
        folder
    }
}

/// Renders it, and has the binary judge the environment.
async fn is_known(values: Option<&str>, secrets: &[(&str, &str)]) {
    let Some(manifest) = rendered(values).await else { return };
    let folder = manifest.files(secrets);
    let environment = manifest.environment(folder.path());
    environment::is_known(&environment, values.unwrap_or("values.yaml"));
    let [grace] = manifest.all("terminationGracePeriodSeconds")[..] else { panic!("{}", manifest.0) };
    let part = |name| environment::seconds(environment::of(&environment, name));
    let drain = part("FEATURESTORE_DRAIN_DELAY") + part("FEATURESTORE_DRAIN_TIMEOUT") + 45;
    assert!(grace.parse::<u64>().unwrap() > drain, "{grace} s for {drain} s");
}

const BACKENDS: [(&str, &str); 2] =
    [("redis/url", "redis://:secret@cache:6379/0\n"), ("mongodb/uri", "mongodb://me:secret@db/?replicaSet=rs0\n")];

#[tokio::test]
async fn every_name_that_the_chart_sets_is_in_effect() {
    is_known(None, &BACKENDS).await;
    is_known(Some("embedded.yaml"), &[]).await;
}

#[tokio::test]
async fn every_name_of_a_chart_with_tls_and_tokens_is_in_effect() {
    is_known(Some("secure.yaml"), &BACKENDS).await;
    is_known(Some("everything.yaml"), &BACKENDS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_the_charts_environment_answers_the_charts_probes() {
    let Some(manifest) = rendered(None).await else { return };
    let pair = Pair::real();
    let redis = pair.redis.as_ref().unwrap().url();
    let folder = manifest.files(&[("redis/url", &redis), ("mongodb/uri", &pair.mongod.unwrap().uri())]);
    let mut environment = manifest.environment(folder.path());
    // Nothing here listens for others, and the tests have a database each.
    environment.retain(|(name, _)| !name.ends_with("LISTEN") && name != "MONGO_DB");
    environment.push(("MONGO_DB".to_owned(), pair.database().to_owned()));
    let settings: Vec<_> = environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let server = Binary::start(&settings);
    // startup, liveness, readiness
    let probes = manifest.all("service");
    assert_eq!(probes, ["", "", "featurestore.v1.FeatureStoreService"]);
    assert_eq!(
        manifest.all("port").iter().filter(|port| **port == "9464").count(),
        probes.len() + 1,
        "and the Service's"
    );
    for service in probes {
        eventually("a probe to succeed", async || server.admin_health(service).await == Some(Serving)).await;
    }
    assert!(server.log().contains("\"message\":\"serving\""), "the ConfigMap asks for JSON: {}", server.log());
}

#[tokio::test]
async fn the_job_that_the_alert_rules_know_is_the_one_that_is_scraped() {
    let read = |path: &str| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let rules = read("deploy/observability/alerts.yml");
    let jobs: Vec<_> = rules.split("job=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    assert!(jobs.len() > 3, "{jobs:?}");
    assert!(rules.contains("absent(up{job=\"featurestore\"})"), "and when there is nothing to scrape");
    let config = read("deploy/observability/prometheus.yml");
    let Some(manifest) = rendered(Some("everything.yaml")).await else { return };
    let monitor = manifest.0.split("\n---").find(|part| part.contains("kind: ServiceMonitor")).unwrap();
    for job in jobs {
        assert!(config.contains(&format!("job_name: {job} ")), "{job}");
        let relabeling = format!("- targetLabel: job\n          replacement: {job}\n");
        assert!(format!("{monitor}\n").contains(&relabeling), "{job}: {monitor}");
    }
}
