//! The rows: a module for what needs the same servers.

mod bulk;
mod cold;
mod embedded;
mod everything_on;
mod hit_ratio;
mod hits;
mod latency;
mod mongodb;
mod mongodb_driver;
mod scaling;
mod share;
pub(crate) mod soak;
mod streams;
mod tls;

use std::{future::Future, pin::Pin, sync::Arc};

use crate::{bench::Bench, report::Outcome, report::Row};

type Run = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// Rows over the same servers, which are started only if one of them is asked for.
struct Group {
    names: Vec<String>,
    run: fn(Arc<Bench>) -> Run,
}

fn groups() -> Vec<Group> {
    vec![
        Group { names: hits::names(hits::L1::Memory), run: |bench| Box::pin(hits::run(bench, hits::L1::Memory)) },
        Group { names: hits::names(hits::L1::Redis), run: |bench| Box::pin(hits::run(bench, hits::L1::Redis)) },
        Group { names: embedded::names(), run: |bench| Box::pin(embedded::run(bench)) },
        Group { names: mongodb::names(), run: |bench| Box::pin(mongodb::run(bench)) },
        Group { names: bulk::names(), run: |bench| Box::pin(bulk::run(bench)) },
        Group { names: streams::names(), run: |bench| Box::pin(streams::run(bench)) },
        Group { names: cold::names(), run: |bench| Box::pin(cold::run(bench)) },
        Group {
            names: hit_ratio::names(hits::L1::Memory),
            run: |bench| Box::pin(hit_ratio::run(bench, hits::L1::Memory)),
        },
        Group {
            names: hit_ratio::names(hits::L1::Redis),
            run: |bench| Box::pin(hit_ratio::run(bench, hits::L1::Redis)),
        },
        Group { names: scaling::names(), run: |bench| Box::pin(scaling::run(bench)) },
        Group { names: tls::names(), run: |bench| Box::pin(tls::run(bench)) },
        Group { names: everything_on::names(), run: |bench| Box::pin(everything_on::run(bench)) },
    ]
}

/// The records of most reads.
pub(crate) fn f20() -> crate::data::Set {
    hits::F20
}

/// Of all rows.
pub(crate) fn names() -> Vec<String> {
    groups().into_iter().flat_map(|group| group.names).collect()
}

/// Measures what is asked for.
pub(crate) async fn run(bench: &Arc<Bench>) {
    for Group { names, run } in groups() {
        let names: Vec<String> = names.into_iter().filter(|name| bench.args.wants(name)).collect();
        if names.is_empty() {
            continue;
        }
        // A task, so that a panic is one group's.
        let failure = match tokio::spawn(run(bench.clone())).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error),
            Err(error) => Some(error.to_string()),
        };
        let mut report = bench.report();
        for name in names.iter().filter(|name| !report.has(name)).cloned().collect::<Vec<_>>() {
            let why = failure.clone().unwrap_or_else(|| "it was not measured".to_owned());
            report.add(&Row::new(name), &Outcome::Failed(why));
        }
    }
}
