//! What all rows share: the arguments, a folder, the report.

use std::{
    future::Future,
    path::PathBuf,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use serde_json::json;

use crate::{
    args::Args,
    compare::{Comparison, Plan, compare},
    floor::Floor,
    load::Call,
    report::{Outcome, Report, Row},
    usage,
    wire::Wire,
};

pub(crate) struct Bench {
    pub(crate) args: Args,
    root: PathBuf,
    folders: AtomicU32,
    report: Mutex<Report>,
}

impl Bench {
    pub(crate) fn new(args: Args, root: PathBuf) -> Self {
        let about = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "commit": env!("BUILD_GIT_COMMIT"),
            "cpu": usage::cpu_model(),
            "cores": std::thread::available_parallelism().map_or(0, usize::from),
            "rounds": args.rounds,
            "seconds": args.span().as_secs_f64(),
            "connections": args.connections,
            "records": args.records,
        });
        let report = Mutex::new(Report::new(&args.json, about));
        Self { args, root, folders: AtomicU32::new(0), report }
    }

    /// A new folder, which goes with the bench.
    pub(crate) fn folder(&self) -> Result<PathBuf, String> {
        let folder = self.root.join(self.folders.fetch_add(1, Relaxed).to_string());
        std::fs::create_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        Ok(folder)
    }

    pub(crate) fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Measures a row if it is asked for. One that fails tells why, and the others go on.
    pub(crate) async fn row(&self, row: Row, measure: impl Future<Output = Result<Outcome, String>>) {
        if !self.args.wants(&row.name) {
            return;
        }
        let patience = self.args.span() * 5 * self.args.rounds + Duration::from_secs(300);
        let outcome = match tokio::time::timeout(patience, measure).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => Outcome::Failed(error),
            Err(_) => Outcome::Failed(format!("not done within {patience:?}")),
        };
        self.report().add(&row, &outcome);
    }

    /// Leaves rows out, with a word on why.
    pub(crate) fn leave_out(&self, names: &[String], why: &str) {
        for name in names.iter().filter(|name| self.args.wants(name)) {
            self.report().add(&Row::new(name), &Outcome::LeftOut(why.to_owned()));
        }
    }

    /// Compares ours with a floor of its answers. With `slack` bytes the sizes of later answers may differ from those
    /// that are learnt here.
    pub(crate) async fn against_floor(&self, plan: Plan, mut ours: Wire, slack: usize) -> Result<Outcome, String> {
        let answers = ours.learn(slack).await?;
        let floor = Floor::start_over(&answers, &self.folder()?, ours.tls()).await?;
        let load = floor.under_the_load_of(&ours).await?;
        Ok(Outcome::Compared(compare(&self.args, plan, load, ours).await?))
    }

    /// Compares ours with anything.
    pub(crate) async fn against<C: Call>(&self, plan: Plan, other: C, ours: Wire) -> Result<Comparison, String> {
        compare(&self.args, plan, other, ours).await
    }
}
