//! Two sides in turn, in short rounds: what disturbs the machine for longer than a round disturbs both.

use std::{sync::Arc, time::Duration};

use crate::{
    args::Args,
    load::{self, Call, Latencies},
};

/// How a row is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Calls in flight, of the floor and of ours.
    pub(crate) in_flight: [usize; 2],
    /// How many of what is counted (calls, records) one call brings.
    pub(crate) per_call: f64,
    /// Latencies at a constant rate, half of what the slower side can do. Else they are those of the closed loop.
    pub(crate) open: bool,
}

impl Plan {
    /// With the same calls in flight on both sides, and an open loop.
    pub(crate) fn in_flight(in_flight: usize) -> Self {
        Self { in_flight: [in_flight; 2], per_call: 1.0, open: true }
    }

    pub(crate) fn closed(self) -> Self {
        Self { open: false, ..self }
    }

    pub(crate) fn per_call(self, per_call: f64) -> Self {
        Self { per_call, ..self }
    }
}

/// One side in one round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(crate) per_second: f64,
    pub(crate) cpu_micros: f64,
    pub(crate) p50_micros: f64,
    pub(crate) p99_micros: f64,
    pub(crate) p999_micros: f64,
}

/// All rounds of a row: the floor and ours.
#[derive(Clone, Debug)]
pub(crate) struct Comparison {
    pub(crate) plan: Plan,
    /// Of the open loop.
    pub(crate) offered_per_second: Option<f64>,
    pub(crate) rounds: Vec<[Figures; 2]>,
    /// What else is to be known.
    pub(crate) note: String,
    /// The row is not what it says; why is in the note.
    pub(crate) doubtful: bool,
}

/// A median and its range.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |i: usize| values.get(i).copied().unwrap_or(f64::NAN);
        let last = values.len().saturating_sub(1);
        Self { median: (at(last / 2) + at(last.div_ceil(2))) / 2.0, min: at(0), max: at(last) }
    }
}

impl Comparison {
    /// Of one side (0: the floor, 1: ours).
    pub(crate) fn side(&self, side: usize, figure: impl Fn(&Figures) -> f64) -> Spread {
        Spread::of(self.rounds.iter().map(|round| figure(&round[side])))
    }

    /// Ours by the floor's, each round by itself.
    pub(crate) fn ratio(&self, figure: impl Fn(&Figures) -> f64) -> Spread {
        Spread::of(self.rounds.iter().map(|[floor, ours]| figure(ours) / figure(floor)))
    }
}

/// Measures floor and ours in turn.
pub(crate) async fn compare<A: Call, B: Call>(
    args: &Args,
    plan: Plan,
    floor: A,
    ours: B,
) -> Result<Comparison, String> {
    let (floor, ours) = (Arc::new(floor), Arc::new(ours));
    let of_floor = |error| format!("the other side: {error}");
    // Warms up both, and finds the rate that both can bear.
    let warm_up = args.span() / 2;
    let slower = load::closed(&floor, plan.in_flight[0], warm_up).await.map_err(of_floor)?.per_second;
    let slower = slower.min(load::closed(&ours, plan.in_flight[1], warm_up).await?.per_second);
    let rate = plan.open.then_some(slower / 2.0);
    let mut rounds = Vec::new();
    for _ in 0..args.rounds {
        let floor = figures(&floor, plan.in_flight[0], plan, rate, args.span()).await.map_err(of_floor)?;
        rounds.push([floor, figures(&ours, plan.in_flight[1], plan, rate, args.span()).await?]);
    }
    Ok(Comparison { plan, offered_per_second: rate, rounds, note: String::new(), doubtful: false })
}

async fn figures<C: Call>(
    call: &Arc<C>,
    in_flight: usize,
    plan: Plan,
    rate: Option<f64>,
    span: Duration,
) -> Result<Figures, String> {
    let closed = load::closed(call, in_flight, span).await?;
    let latencies: Latencies = match rate {
        Some(rate) => load::open(call, rate, span).await?,
        None => closed.latencies,
    };
    Ok(Figures {
        per_second: closed.per_second * plan.per_call,
        cpu_micros: closed.cpu_micros / plan.per_call,
        p50_micros: latencies.quantile(0.5),
        p99_micros: latencies.quantile(0.99),
        p999_micros: latencies.quantile(0.999),
    })
}
