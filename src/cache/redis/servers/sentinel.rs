//! Finds the master by its sentinels. All are asked at once, more than half must name one, and the
//! answer of the newest configuration counts. A failover needs more than half of the sentinels too.
//! So an old master that is cut off, with fewer sentinels than that, is never used.

use std::sync::Arc;

use deadpool_redis::redis::{ConnectionInfo, Pipeline, Value};
use futures_util::future::join_all;
use tokio::time::{Instant, timeout_at};

use super::{WORD, down};
use crate::cache::{
    CacheError,
    redis::{
        config::{Address, InvalidRedisConfig},
        connections::{Connections, Kinds, Lane, Sent},
    },
};

#[derive(Debug)]
pub(super) struct Sentinels {
    /// The name by which the sentinels know it.
    master: String,
    all: Vec<Connections>,
}

impl Sentinels {
    pub(super) fn new(master: &str, addresses: &[ConnectionInfo]) -> Result<Self, InvalidRedisConfig> {
        let all = addresses
            .iter()
            .map(|address| Connections::new(address.clone(), 1, Kinds { waiting: false, readers: false }));
        Ok(Self { master: master.to_owned(), all: all.collect::<Result<_, _>>()? })
    }

    /// The address of the master that more than half of the sentinels name.
    pub(super) async fn master(&self) -> Result<Address, CacheError> {
        let answers = join_all(self.all.iter().map(|sentinel| self.ask(sentinel))).await;
        agreed(&answers).map_err(|why| down(format!("{why} (the master is {:?})", self.master)))
    }

    /// None: it does not answer. An error: it answers, but names no master.
    async fn ask(&self, sentinel: &Connections) -> Option<Answer> {
        let mut pipeline = Pipeline::new();
        // During a failover the first command returns the new address earlier than the second one.
        pipeline.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(&self.master);
        pipeline.cmd("SENTINEL").arg("MASTER").arg(&self.master);
        let deadline = Instant::now() + WORD;
        if sentinel.verified().is_none() {
            let connected = timeout_at(deadline, sentinel.connect()).await.ok()?.ok()?;
            sentinel.trust(Arc::new(connected));
        }
        let sent = Sent { command: "SENTINEL", procedure: None, items: 2 };
        let replies = sentinel.send(pipeline, Lane::Swift, sent, deadline).await;
        let Ok(replies) = replies.inspect_err(|_| sentinel.lose()) else { return None };
        Some(answer(&replies))
    }
}

/// The number of a configuration and its master, or why a sentinel names none.
type Answer = Result<(u64, Address), String>;

/// The newest master, if more than half name one; otherwise how many answered what.
fn agreed(answers: &[Option<Answer>]) -> Result<Address, String> {
    let named: Vec<_> = answers.iter().flatten().flatten().collect();
    match named.iter().max_by_key(|(configuration, _)| *configuration) {
        Some((_, address)) if named.len() * 2 > answers.len() => Ok(address.clone()),
        _ => {
            let (answered, all) = (answers.iter().flatten().count(), answers.len());
            let refusal = answers.iter().flatten().find_map(|answer| answer.as_ref().err());
            let why = refusal.map(|why| format!(": {why}")).unwrap_or_default();
            let named = named.len();
            Err(format!("{answered} of {all} sentinels answer, {named} name a master, and more than half must{why}"))
        }
    }
}

fn answer(replies: &[Value]) -> Answer {
    let refusal = replies.iter().find_map(|reply| if let Value::ServerError(e) = reply { Some(e) } else { None });
    let why = || refusal.map_or_else(|| "it is not known".to_owned(), ToString::to_string);
    let [Value::Array(address), about] = replies else { return Err(why()) };
    let [host, port] = &address[..] else { return Err(why()) };
    let port = text(port).and_then(|port| port.parse().ok());
    let (Some(host), Some(port)) = (text(host), port) else { return Err(why()) };
    let configuration = field(about, "config-epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
    Ok((configuration, Address { host: host.to_owned(), port }))
}

fn field<'a>(about: &'a Value, name: &str) -> Option<&'a str> {
    match about {
        Value::Array(flat) => {
            flat.chunks_exact(2).find(|pair| text(&pair[0]) == Some(name)).and_then(|pair| text(&pair[1]))
        }
        Value::Map(pairs) => pairs.iter().find(|(key, _)| text(key) == Some(name)).and_then(|(_, value)| text(value)),
        _ => None,
    }
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(text) => std::str::from_utf8(text).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(port: &str, configuration: &str) -> Vec<Value> {
        let array = |words: &[&str]| {
            Value::Array(words.iter().map(|word| Value::BulkString(word.as_bytes().to_vec())).collect())
        };
        vec![array(&["10.0.0.1", port]), array(&["name", "main", "config-epoch", configuration, "quorum", "2"])]
    }

    #[test]
    fn of_different_answers_that_of_the_newest_configuration_counts() {
        let answers = [says("1", "3"), says("2", "10"), says("3", "9"), vec![Value::Nil, Value::Nil]];
        let answers: Vec<_> = answers.iter().map(|replies| Some(answer(replies))).collect();
        assert_eq!(agreed(&answers), Ok(Address { host: "10.0.0.1".to_owned(), port: 2 }));
    }

    #[test]
    fn half_of_the_sentinels_or_fewer_convince_nobody() {
        let named = || Some(answer(&says("1", "3")));
        let unknown = || Some(answer(&[Value::Nil, Value::Nil]));
        for answers in [vec![named()], vec![named(), named(), None], vec![named(), unknown(), named()]] {
            assert_eq!(agreed(&answers).unwrap().port, 1);
        }
        for (answers, told) in [
            (vec![None], "0 of 1 sentinels answer, 0 name"),
            (vec![named(), None], "1 of 2 sentinels answer, 1 name"),
            (vec![None, named(), None], "1 of 3 sentinels answer, 1 name"),
            (
                vec![unknown(), named(), None],
                "2 of 3 sentinels answer, 1 name a master, and more than half must: it is",
            ),
        ] {
            let why = agreed(&answers).unwrap_err();
            assert!(why.starts_with(told), "{why}");
        }
    }
}
