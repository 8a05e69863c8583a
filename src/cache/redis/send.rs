//! Sends a batch: the command of each item goes to the server that holds its key. There is one
//! pipeline for each server, and all are sent at once.
//!
//! A redirection (MOVED, ASK) says that the command did nothing, so it is sent once more to the
//! named server. The same holds for a script that a server does not know (NOSCRIPT). Nothing else
//! is repeated. If a server fails, only its own keys get an error.
//!
//! In a cluster a batch of GETs is not sent as MGET. Keys are spread over the slots, so there would
//! be about one MGET for each key, and Redis refuses MGET for a slot that is moving. Pipelined GETs
//! also take one round trip for each server.

use deadpool_redis::redis::{Pipeline, Value};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::Instant;

use super::{
    connections::{Lane, Sent, unavailable},
    refusal::{self, Meaning},
    scripts::Code,
    servers::{Layout, Servers, slots},
};
use crate::cache::{CacheError, CacheKey};

/// How often an item may be sent.
const SENDINGS: u32 = 6;

/// What is sent for each item.
pub(super) struct Sending<'a, I> {
    pub(super) key: fn(&I) -> &CacheKey,
    /// The command of one item.
    pub(super) write: &'a (dyn Fn(&mut Pipeline, &I) + Sync),
    /// Its name in traces.
    pub(super) command: &'static str,
    /// The script that the commands call, if any.
    pub(super) script: Option<&'a Code>,
    /// How many replicas must have it before it counts.
    pub(super) wait: u32,
}

/// Where an item is sent next.
#[derive(Clone, Copy)]
struct Step {
    item: usize,
    place: usize,
    /// How often it was sent before.
    sent: u32,
    /// The slot is moving to this server.
    asking: bool,
    /// The script must be loaded there first.
    load: bool,
}

impl Servers {
    /// One result for each item; a result may be an error of the server.
    pub(super) async fn send_each<I: Sync>(
        &self,
        items: &[I],
        sending: &Sending<'_, I>,
        deadline: Instant,
    ) -> Vec<Result<Value, CacheError>> {
        let layout = self.layout();
        let nobody = || CacheError::Unavailable("not connected, or no server has the slot of this key".into());
        let mut results: Vec<_> = items.iter().map(|_| Err(nobody())).collect();
        let start = |(item, of): (usize, &I)| {
            let place = layout.place_of((sending.key)(of).as_bytes())?;
            Some(Step { item, place, sent: 0, asking: false, load: false })
        };
        let steps: Vec<Step> = items.iter().enumerate().filter_map(start).collect();
        let send = async |part: Vec<Step>| {
            let answers = layout.send_part(items, &part, sending, deadline).await;
            (part, answers)
        };
        // Redirections of one server are followed while another one does not answer.
        let mut under_way: FuturesUnordered<_> = by_place(steps, layout.masters.len()).into_iter().map(&send).collect();
        while let Some((part, answers)) = under_way.next().await {
            let mut again = Vec::new();
            for (step, answer) in part.into_iter().zip(answers) {
                let key = (sending.key)(&items[step.item]);
                match layout.next(step, key, &answer, sending.script.is_some()) {
                    Some(next) => again.push(next),
                    None => results[step.item] = answer.and_then(|reply| layout.check(step.place, reply)),
                }
            }
            under_way.extend(by_place(again, layout.masters.len()).into_iter().map(&send));
        }
        results
    }
}

/// The steps of each server, without empty ones.
fn by_place(steps: Vec<Step>, servers: usize) -> Vec<Vec<Step>> {
    if servers == 1 {
        return if steps.is_empty() { Vec::new() } else { vec![steps] };
    }
    let mut parts = vec![Vec::new(); servers];
    for step in steps {
        parts[step.place].push(step);
    }
    parts.retain(|part| !part.is_empty());
    parts
}

impl Layout {
    /// Sends the items of one server.
    async fn send_part<I>(
        &self,
        items: &[I],
        part: &[Step],
        sending: &Sending<'_, I>,
        deadline: Instant,
    ) -> Vec<Result<Value, CacheError>> {
        let mut pipeline = Pipeline::with_capacity(part.len() + 2);
        if let Some(script) = sending.script.filter(|_| part.iter().any(|step| step.load)) {
            pipeline.cmd("SCRIPT").arg("LOAD").arg(script.text);
        }
        let mut wanted = Vec::with_capacity(part.len());
        for step in part {
            if step.asking {
                pipeline.cmd("ASKING");
            }
            wanted.push(pipeline.len());
            (sending.write)(&mut pipeline, &items[step.item]);
        }
        let mut lane = Lane::Swift;
        if sending.wait > 0 {
            lane = Lane::Waiting;
            // A WAIT without a time would wait forever.
            let left = deadline.saturating_duration_since(Instant::now()).as_millis().max(1);
            pipeline.cmd("WAIT").arg(sending.wait).arg(u64::try_from(left).unwrap_or(u64::MAX));
        }
        let sent = pipeline.len();
        let sent_as =
            Sent { command: sending.command, procedure: sending.script.map(|script| script.name), items: part.len() };
        let mut replies = match self.masters[part[0].place].connections.send(pipeline, lane, sent_as, deadline).await {
            Ok(replies) if replies.len() == sent => replies,
            Ok(_) => return vec![Err(CacheError::Refused("not one reply a command".into())); part.len()],
            Err(e) => return vec![Err(e); part.len()],
        };
        let waited = sending.wait == 0 || replies.last().is_some_and(|reply| has_waited(reply, sending.wait));
        let answer = |at| match std::mem::take(&mut replies[at]) {
            reply @ Value::ServerError(_) => Ok(reply),
            reply if waited => Ok(reply),
            // The server has done it, but perhaps not enough replicas have.
            _ => Err(CacheError::Timeout),
        };
        wanted.into_iter().map(answer).collect()
    }

    /// Where an item is sent next. None: this was its final reply.
    fn next(&self, step: Step, key: &CacheKey, answer: &Result<Value, CacheError>, is_script: bool) -> Option<Step> {
        let Ok(Value::ServerError(e)) = answer else { return None };
        let step = Step { sent: step.sent + 1, ..step };
        if step.sent == SENDINGS {
            return None;
        }
        match e.code() {
            "NOSCRIPT" if is_script && !step.load => Some(Step { load: true, ..step }),
            code @ ("MOVED" | "ASK") => {
                let place = self.place_named(e.details()?.rsplit(' ').next()?, step.place)?;
                if let (Some(slots), "MOVED") = (&self.slots, code) {
                    slots.moved(slots::slot_of(key.as_bytes()), place);
                }
                Some(Step { place, asking: code == "ASK", load: false, ..step })
            }
            _ => None,
        }
    }

    /// Rejects a reply that says that this server cannot serve, or not this key.
    fn check(&self, place: usize, reply: Value) -> Result<Value, CacheError> {
        match &reply {
            Value::ServerError(e) if self.is_unable(place, &refusal::text_of(e)) => Err(unavailable(e)),
            _ => Ok(reply),
        }
    }

    /// Whether the text of an error says so. Connections to a server that is no master, or that
    /// lacks a command or a right, are closed, so that the next probe connects again and tries
    /// everything.
    pub(super) fn is_unable(&self, place: usize, error: &str) -> bool {
        match (refusal::meaning(error), error.split(' ').next().unwrap_or_default()) {
            // It is no master, or not the verified one.
            (_, "READONLY" | "LOADING" | "MASTERDOWN")
            | (Meaning::CommandDenied | Meaning::KeysDenied | Meaning::Unknown, _) => {
                self.masters[place].connections.lose();
                true
            }
            // The cluster has no master for the key, or an unknown one, or something blocks the
            // server or makes it refuse writes. The probe finds out which.
            (_, "CLUSTERDOWN" | "MOVED" | "ASK" | "CROSSSLOT" | "BUSY" | "MISCONF" | "NOAUTH") => true,
            _ => false,
        }
    }
}

/// Whether the reply of WAIT says that `wanted` replicas have it.
pub(super) fn has_waited(reply: &Value, wanted: u32) -> bool {
    matches!(reply, Value::Int(replicas) if *replicas >= i64::from(wanted))
}
