//! Who the master is, by the sentinels' word. All are asked at once, and of different answers that of the newest
//! configuration counts, so that a sentinel that was cut off with an old master convinces nobody.

use std::sync::Arc;

use deadpool_redis::redis::{ConnectionInfo, Pipeline, Value};
use futures_util::future::join_all;
use tokio::time::{Instant, timeout_at};

use super::{WORD, down};
use crate::cache::{
    CacheError,
    redis::{
        config::{Address, InvalidRedisConfig},
        connections::{Connections, Lane},
    },
};

#[derive(Debug)]
pub(super) struct Sentinels {
    /// The name by which they know it.
    master: String,
    all: Vec<Connections>,
}

impl Sentinels {
    pub(super) fn new(master: &str, addresses: &[ConnectionInfo]) -> Result<Self, InvalidRedisConfig> {
        let all = addresses.iter().map(|address| Connections::new(address.clone(), 1, false));
        Ok(Self { master: master.to_owned(), all: all.collect::<Result<_, _>>()? })
    }

    /// The master's address; None: no sentinel answers.
    pub(super) async fn master(&self) -> Result<Option<Address>, CacheError> {
        let answers = join_all(self.all.iter().map(|sentinel| self.ask(sentinel))).await;
        let does_one_answer = answers.iter().any(Option::is_some);
        match newest(answers.into_iter().flatten().flatten()) {
            None if does_one_answer => Err(down(format!("no sentinel knows a master named {:?}", self.master))),
            newest => Ok(newest),
        }
    }

    /// None: it does not answer. `Some(None)`: it does not know that master.
    async fn ask(&self, sentinel: &Connections) -> Option<Option<(u64, Address)>> {
        let mut pipeline = Pipeline::new();
        // During a failover the first one tells the new address before the second one does.
        pipeline.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(&self.master);
        pipeline.cmd("SENTINEL").arg("MASTER").arg(&self.master);
        let deadline = Instant::now() + WORD;
        if sentinel.verified().is_none() {
            let connected = timeout_at(deadline, sentinel.connect()).await.ok()?.ok()?;
            sentinel.trust(Arc::new(connected));
        }
        let replies = sentinel.send(pipeline, Lane::Swift, deadline).await;
        let Ok(replies) = replies.inspect_err(|_| sentinel.lose()) else { return None };
        Some(answer(&replies))
    }
}

fn newest(answers: impl Iterator<Item = (u64, Address)>) -> Option<Address> {
    answers.max_by_key(|(configuration, _)| *configuration).map(|(_, address)| address)
}

fn answer(replies: &[Value]) -> Option<(u64, Address)> {
    let [Value::Array(address), about] = replies else { return None };
    let [host, port] = &address[..] else { return None };
    let address = Address { host: text(host)?.to_owned(), port: text(port)?.parse().ok()? };
    let configuration = field(about, "config-epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
    Some((configuration, address))
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
        let address = newest(answers.iter().filter_map(|replies| answer(replies)));
        assert_eq!(address, Some(Address { host: "10.0.0.1".to_owned(), port: 2 }));
        assert_eq!(newest([].into_iter()), None);
    }
}
