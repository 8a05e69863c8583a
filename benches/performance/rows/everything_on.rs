//! What tokens, traces of one call in a hundred and a scraped `/metrics` cost a hit, without TLS and with it. TLS' own cost is
//! in the rows of `tls`.

use std::{path::Path, sync::Arc, time::Duration};

use featurestore::access::tokens::{digest, hex};
use prost::Message as _;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};

use super::hits::F20;
use crate::{
    bench::Bench,
    compare::Plan,
    data::{self, Ask},
    harness::collector::Collector,
    pb::{self, Source},
    report::{Outcome, Row},
    server::{Server, Settings},
    tls::Tls,
    wire::Wire,
};

const ENTITIES: usize = 100;
const TOKEN: &str = "fst_of-the-bench";
/// More often than Prometheus does.
const SCRAPED_EVERY: Duration = Duration::from_secs(1);

const PLAINTEXT: &str = "tokens, traces, metrics, hit 100";
const ALL: &str = "TLS, tokens, traces, metrics, hit 100";
const BESIDE_TLS: &str = "TLS, tokens, traces, metrics, hit 100 against TLS";

pub(crate) fn names() -> Vec<String> {
    [PLAINTEXT, ALL, BESIDE_TLS].map(str::to_owned).into()
}

pub(crate) async fn run(bench: Arc<Bench>) -> Result<(), String> {
    let (tls, collector) = (Tls::new(&bench.folder()?)?, Collector::start().await);
    let on = settings(&bench.folder()?, &collector)?;
    let off = start(&bench, Vec::new(), None).await?;
    let only_tls = start(&bench, tls.settings(), Some(tls.clone())).await?;
    let without_tls = start(&bench, on.clone(), None).await?;
    let all = start(&bench, [on, tls.settings()].concat(), Some(tls)).await?;
    for (name, ours, other, against, target) in [
        (PLAINTEXT, &without_tls, &off, "everything off", "CPU <= 1.15"),
        (ALL, &all, &off, "everything off", ""),
        (BESIDE_TLS, &all, &only_tls, "TLS alone", "CPU <= 1.15"),
    ] {
        let facts = json!({ "l1": "memory", "entities": ENTITIES });
        bench
            .row(Row::new(name).against(against).target(target).facts(facts), async {
                let (ours, other, _scraper) = (hits(&bench, ours).await?, hits(&bench, other).await?, scraper(ours));
                collector.take();
                let mut compared = bench.against(Plan::in_flight(32), other, ours).await?;
                let spans = collector.take();
                compared.note = format!("{spans} spans were sent");
                compared.doubtful = spans == 0;
                Ok(Outcome::Compared(compared))
            })
            .await;
    }
    Ok(())
}

fn settings(folder: &Path, collector: &Collector) -> Result<Settings, String> {
    let tokens = folder.join("tokens.toml");
    let digest = hex(&digest(TOKEN.as_bytes()));
    let entry = format!("[[tokens]]\nname = \"bench\"\nsha256 = [\"{digest}\"]\nread = [\"f*\"]\n");
    std::fs::write(&tokens, entry).map_err(|e| format!("{}: {e}", tokens.display()))?;
    Ok(vec![
        ("FEATURESTORE_AUTH_TOKENS_FILE", tokens.display().to_string()),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint()),
        ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio".to_owned()),
        ("OTEL_TRACES_SAMPLER_ARG", "0.01".to_owned()),
    ])
}

/// Starts a server over records that one without tokens has loaded.
async fn start(bench: &Bench, settings: Settings, tls: Option<Tls>) -> Result<Server, String> {
    let loader = Server::start(&bench.folder()?.join("data"), Vec::new()).await?;
    loader.load(&F20, 0..F20.entities, false).await?;
    Server::start_over(&loader.crash(), settings, tls).await
}

/// Reads that L1 answers.
async fn hits(bench: &Bench, server: &Server) -> Result<Wire, String> {
    const PATIENCE: u32 = 300;
    let keys = data::keys(200, ENTITIES, F20.entities);
    let requests: Vec<_> = keys.iter().map(|keys| Ask::rows(ENTITIES).request(F20.view, keys)).collect();
    let wire = server.wire("GetFeatures", bench.args.connections, &requests).await?;
    let mut wire = wire.with_token(TOKEN)?;
    // L1 of a new process is trusted after some seconds only.
    for _ in 0..PATIENCE {
        let mut hits = true;
        for answer in wire.learn(0).await? {
            let answer = pb::GetFeaturesResponse::decode(answer).map_err(|e| e.to_string())?;
            hits &= answer.rows.len() == ENTITIES && answer.rows.iter().all(|row| row.source() == Source::L1);
        }
        if hits {
            return Ok(wire);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err("L1 did not answer all of it".to_owned())
}

/// Ends with what it gives.
struct Scraper(JoinHandle<()>);

impl Drop for Scraper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn scraper(server: &Server) -> Scraper {
    let port = server.admin_port();
    Scraper(tokio::spawn(async move {
        loop {
            let scrape = async {
                let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
                stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
                stream.read_to_end(&mut Vec::new()).await
            };
            if let Err(error) = scrape.await {
                eprintln!("/metrics: {error}");
            }
            tokio::time::sleep(SCRAPED_EVERY).await;
        }
    }))
}
