//! Reads that L1 in the process answers, over TLS: against a floor over TLS, and what TLS itself costs.

use std::sync::Arc;

use serde_json::json;

use super::hits::F20;
use crate::{
    bench::Bench,
    compare::Plan,
    data::{self, Ask},
    pb::Source,
    report::{Outcome, Row},
    server::Server,
    tls::Tls,
};

/// Entities of a call, and calls in flight.
const READS: [(usize, usize); 2] = [(1, 128), (100, 32)];

fn against_floor(entities: usize) -> String {
    format!("TLS hit {entities}")
}

fn against_plaintext(entities: usize) -> String {
    format!("TLS hit {entities} against plaintext")
}

pub(crate) fn names() -> Vec<String> {
    READS.iter().flat_map(|(entities, _)| [against_floor(*entities), against_plaintext(*entities)]).collect()
}

pub(crate) async fn run(bench: Arc<Bench>) -> Result<(), String> {
    let tls = Tls::new(&bench.folder()?)?;
    let over_tls = Server::start_over(&bench.folder()?.join("data"), tls.settings(), Some(tls)).await?;
    let plaintext = Server::start(&bench.folder()?.join("data"), Vec::new()).await?;
    for server in [&over_tls, &plaintext] {
        server.load(&F20, 0..F20.entities, true).await?;
        server.until_answered_by(Source::L1, &F20).await?;
    }
    for (entities, in_flight) in READS {
        let keys = data::keys((20_000 / entities).min(256), entities, F20.entities);
        let requests: Vec<_> = keys.iter().map(|keys| Ask::rows(entities).request(F20.view, keys)).collect();
        let (plan, facts) = (Plan::in_flight(in_flight), json!({ "l1": "memory", "entities": entities, "tls": true }));
        bench
            .row(Row::new(against_floor(entities)).facts(facts.clone()), async {
                let ours = over_tls.wire("GetFeatures", bench.args.connections, &requests).await?;
                bench.against_floor(plan, ours, 0).await
            })
            .await;
        bench
            .row(Row::new(against_plaintext(entities)).against("plaintext").facts(facts), async {
                let mut ours = over_tls.wire("GetFeatures", bench.args.connections, &requests).await?;
                ours.learn(0).await?;
                let other = plaintext.wire("GetFeatures", bench.args.connections, &requests).await?;
                Ok(Outcome::Compared(bench.against(plan, other, ours).await?))
            })
            .await;
    }
    Ok(())
}
