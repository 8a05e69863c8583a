//! The calls themselves, and how their answers become events.

use std::{error::Error as _, sync::atomic::Ordering::SeqCst, time::Duration};

use rand::RngExt as _;
use tokio::time::timeout;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::{Worker, entity_id};
use crate::{
    harness::client::{
        self as api, Consistency, FeatureRow, RowStatus, WriteMode, WriteOutcome, value::Kind::Int64Val,
    },
    history::event::{Answer, Attempt, Call, Kind, Nanos, Value},
};

/// How often a write is sent again at most.
const RETRIES: usize = 100;

/// An answer, or why there is none: the client's patience ended.
type Called<T> = Result<Result<tonic::Response<T>, Status>, tokio::time::error::Elapsed>;

impl Worker {
    pub(super) async fn read(&mut self, server: usize, keys: Vec<u16>, strong: bool, with_revisions: bool) {
        let mut request = api::get(keys.iter().map(|key| entity_id(*key)));
        request.consistency = if strong { Consistency::Strong } else { Consistency::Cached }.into();
        if with_revisions {
            let known = keys.iter().filter_map(|key| Some((entity_id(*key), *self.known.get(key)?)));
            request.min_revisions = known.collect();
        }
        let at_least = request.min_revisions.clone();
        let (patience, invoked) = (self.patience(), self.shared.now());
        let called = timeout(patience, self.servers[server].get_features(request)).await;
        let what = if strong { "read strong" } else { "read" };
        let mut outcome = outcome_of(&called, patience < self.habits.patience);
        let Ok(Ok(response)) = called else { return self.ended(what, invoked, outcome) };
        let response = response.into_inner();
        for (key, row) in keys.into_iter().zip(response.rows) {
            let at_least = at_least.get(&entity_id(key)).copied().unwrap_or(0);
            match row_answer(&row, response.degraded) {
                Ok(answer) => {
                    self.learn(key, row.revision);
                    let event = self.event(server, key, invoked, Call::Read { strong, at_least }, answer);
                    self.log.events.push(event);
                }
                Err(reason) => outcome = reason,
            }
        }
        self.ended(what, invoked, outcome);
    }

    pub(super) async fn upsert(&mut self, mut server: usize, kind: Kind, conditional: bool) {
        let (key, write) = (self.key_to_write(), self.next_write());
        let mut record = record(key, write, kind);
        if conditional {
            record.if_revision = Some(self.known.get(&key).copied().unwrap_or(0));
        } else if !self.habits.plain && self.dice.random_ratio(1, 20) {
            record.event_time = Some(api::timestamp(1_000_000_000)); // older than anything that stands
        }
        let if_revision = record.if_revision;
        let request = api::UpsertFeaturesRequest { request_id: format!("w{write}"), ..api::upsert(record) };
        for sending in 0..RETRIES {
            let (patience, invoked) = (self.patience(), self.shared.now());
            let called = timeout(patience, self.servers[server].upsert_features(request.clone())).await;
            let outcome = outcome_of(&called, patience < self.habits.patience);
            let answer = match called {
                Ok(Ok(response)) => {
                    let done = response.into_inner();
                    let changed = done.outcome() == WriteOutcome::Written;
                    Answer::Done { changed, revision: done.revision, cached: done.cached }
                }
                Ok(Err(status)) => failed_write(&status),
                Err(_) => Answer::Unknown,
            };
            let known = answer != Answer::Unknown;
            let attempt = Attempt { write, kind, again: sending > 0, batched: false, if_revision };
            self.note_write(server, key, invoked, attempt, answer);
            self.ended(if conditional { "upsert if" } else { "upsert" }, invoked, outcome);
            if known || !self.sends_again().await {
                return;
            }
            server = self.server();
        }
    }

    pub(super) async fn delete(&mut self, mut server: usize) {
        let mut keys = vec![self.key_to_write()];
        let other = self.key_to_write();
        if self.dice.random_ratio(1, 3) && other != keys[0] {
            keys.push(other);
        }
        let (write, batched) = (self.next_write(), keys.len() > 1);
        let ids = keys.iter().map(|key| entity_id(*key));
        let request = api::DeleteFeaturesRequest { request_id: format!("w{write}"), ..api::delete(ids) };
        for sending in 0..RETRIES {
            let (patience, invoked) = (self.patience(), self.shared.now());
            let called = timeout(patience, self.servers[server].delete_features(request.clone())).await;
            let outcome = outcome_of(&called, patience < self.habits.patience);
            let answers: Vec<Answer> = match called {
                Ok(Ok(response)) => response.into_inner().results.iter().map(item_answer).collect(),
                Ok(Err(status)) => vec![failed_write(&status); keys.len()],
                Err(_) => vec![Answer::Unknown; keys.len()],
            };
            let known = !answers.contains(&Answer::Unknown);
            for (key, answer) in keys.clone().into_iter().zip(answers) {
                let attempt = Attempt { write, kind: Kind::Delete, again: sending > 0, batched, if_revision: None };
                self.note_write(server, key, invoked, attempt, answer);
            }
            self.ended("delete", invoked, outcome);
            if known || !self.sends_again().await {
                return;
            }
            server = self.server();
        }
    }

    /// A stream of one or two chunks. Its records have no request ids of ours, so none is sent again.
    pub(super) async fn bulk(&mut self, server: usize) {
        let (mut chunks, mut items) = (Vec::new(), Vec::new());
        for sequence in 0..self.dice.random_range(1..3u64) {
            let (mut records, mut of_chunk) = (Vec::new(), Vec::new());
            for _ in 0..self.dice.random_range(1..5) {
                let (key, write) = (self.key_to_write(), self.next_write());
                let kind = if self.dice.random_ratio(1, 3) { Kind::Merge } else { Kind::Replace };
                records.push(record(key, write, kind));
                of_chunk.push((key, write, kind));
            }
            let (warm_cache, all_results) = (self.dice.random(), true);
            chunks.push(api::BulkUpsertRequest { warm_cache, all_results, ..api::chunk(sequence, records) });
            items.push(of_chunk);
        }
        let (patience, invoked) = (self.patience(), self.shared.now());
        let mut answered: Vec<api::BulkUpsertResponse> = Vec::new();
        let client = &mut self.servers[server];
        let streaming = async {
            let mut stream = client.bulk_upsert(tokio_stream::iter(chunks)).await?.into_inner();
            while let Some(answer) = stream.message().await? {
                answered.push(answer);
            }
            Ok::<_, Status>(tonic::Response::new(()))
        };
        let called = timeout(patience, streaming).await;
        let outcome = outcome_of(&called, patience < self.habits.patience);
        for (place, of_chunk) in items.into_iter().enumerate() {
            for (index, (key, write, kind)) in of_chunk.into_iter().enumerate() {
                let answer = answered.get(place).map_or(Answer::Unknown, |chunk| item_answer(&chunk.results[index]));
                let attempt = Attempt { write, kind, again: false, batched: true, if_revision: None };
                self.note_write(server, key, invoked, attempt, answer);
            }
        }
        self.ended("bulk", invoked, outcome);
    }

    fn note_write(&mut self, server: usize, key: u16, invoked: Nanos, attempt: Attempt, answer: Answer) {
        if let Answer::Done { revision, .. } | Answer::Mismatch { stored: revision } = answer {
            self.learn(key, revision);
        }
        let event = self.event(server, key, invoked, Call::Write(attempt), answer);
        self.log.events.push(event);
    }

    /// Whether a write of unknown outcome is sent once more, after a pause.
    async fn sends_again(&mut self) -> bool {
        if self.shared.stop.load(SeqCst) || self.dice.random_ratio(1, 10) {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(self.dice.random_range(self.habits.retry_pause.clone()))).await;
        true
    }
}

/// What write number `write` makes of a key.
fn record(key: u16, write: u64, kind: Kind) -> api::FeatureRecord {
    let number = || api::value(Int64Val(write as i64));
    let mut record = api::record(&entity_id(key), [("last", number())]);
    if kind == Kind::Replace {
        record.features.insert("base".to_owned(), number());
    }
    let mode = if kind == Kind::Merge { WriteMode::Merge } else { WriteMode::Replace };
    record.write_mode = mode.into();
    record
}

/// An error is why there is no answer.
fn row_answer(row: &FeatureRow, degraded: bool) -> Result<Answer, String> {
    let number = |name: &str| match row.features.get(name)?.kind {
        Some(Int64Val(number)) => Some(number as u64),
        _ => None,
    };
    let value = match row.status() {
        RowStatus::Found => Some(Value { last: number("last").unwrap_or(0), base: number("base") }),
        RowStatus::NotFound => None,
        RowStatus::Error => {
            let reason = row.error.clone().unwrap_or_default().reason;
            return if reason == "REVISION_NOT_REACHED" { Ok(Answer::NotReached) } else { Err(reason) };
        }
        other => panic!("nothing here expires: {other:?}"),
    };
    Ok(Answer::Row { revision: row.revision, value, degraded, from_l1: row.source() == api::Source::L1 })
}

fn item_answer(result: &api::WriteResult) -> Answer {
    let done = |changed| Answer::Done { changed, revision: result.revision, cached: result.cached };
    match result.outcome() {
        WriteOutcome::Written | WriteOutcome::Deleted => done(true),
        WriteOutcome::SkippedStale | WriteOutcome::NotFound => done(false),
        _ => Answer::Unknown,
    }
}

fn failed_write(status: &Status) -> Answer {
    match status.code() {
        Code::Aborted => {
            let stored = api::Refusal::of(status).metadata.get("stored").and_then(|stored| stored.parse().ok());
            Answer::Mismatch { stored: stored.unwrap_or_else(|| panic!("no stored revision: {status:?}")) }
        }
        Code::ResourceExhausted => Answer::Refused,
        Code::InvalidArgument => panic!("{status:?}"),
        _ => Answer::Unknown,
    }
}

/// In a word.
fn outcome_of<T>(called: &Called<T>, drops: bool) -> String {
    match called {
        Ok(Ok(_)) => "ok".to_owned(),
        Ok(Err(status)) if status.code() == Code::Aborted => "mismatch".to_owned(),
        // Ours, and not what a server said.
        Ok(Err(status)) if status.source().is_some() => "no connection".to_owned(),
        Ok(Err(status)) => {
            let reason = status.get_error_details().error_info().map(|info| info.reason.clone());
            reason.unwrap_or_else(|| format!("{:?}", status.code()))
        }
        Err(_) if drops => "dropped".to_owned(),
        Err(_) => "no answer".to_owned(),
    }
}
