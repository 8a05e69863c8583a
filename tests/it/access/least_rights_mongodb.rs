//! A MongoDB user with just the role that the documentation names: everything works; and without any one of its rights
//! something does not.

use std::time::Duration;

use bson::{Document, doc};
use featurestore::{
    app,
    config::{Config, Flags},
    store::{
        ReadConcern, Store,
        mongodb::{MongoConfig, MongoStore},
    },
};

use super::*;
use crate::{
    harness::{guarded::guarded_mongod, mongod::Mongod, redis::RedisServer},
    store_contract::fixture,
};

const DOCUMENT: &str = include_str!("../../../docs/security.md");
const DATABASE: &str = "featurestore";

/// The privileges of the documented role, for a database of another name: collection and actions.
fn privileges() -> Vec<(String, Vec<String>)> {
    let block = DOCUMENT.split("privileges: [").nth(1).unwrap().split("\n  ],").next().unwrap();
    let lines = block.lines().filter(|line| line.contains("resource"));
    let quoted = |text: &str| text.split('"').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    lines
        .map(|line| {
            let (resource, actions) = line.split_once("actions").unwrap();
            let [database, collection] = <[String; 2]>::try_from(quoted(resource)).unwrap();
            assert_eq!(database, DATABASE);
            (collection, quoted(actions))
        })
        .collect()
}

/// Makes a user with these privileges in a database of its own, and says how it is reached.
async fn user(mongod: &Mongod, database: &str, privileges: &[(String, Vec<String>)]) -> String {
    let of = |(collection, actions): &(String, Vec<String>)| {
        doc! { "resource": { "db": database, "collection": collection }, "actions": actions.clone() }
    };
    let own = mongod.database(database).await;
    let privileges: Vec<Document> = privileges.iter().map(of).collect();
    own.run_command(doc! { "createRole": "least", "privileges": privileges, "roles": [] }).await.unwrap();
    own.run_command(doc! { "createUser": "least", "pwd": "p", "roles": ["least"] }).await.unwrap();
    mongod.uri().replace("mongodb://", "mongodb://least:p@") + &format!("&authSource={database}")
}

/// Everything that a server does with its store: what was refused.
async fn refusals(uri: &str, database: &str) -> Vec<String> {
    let store = MongoStore::new(MongoConfig::new(uri, database, fixture::rules())).unwrap();
    let (key, deadline) = (fixture::key("a"), fixture::deadline);
    let mut refused = Vec::new();
    let mut note = |what: &str, error: Option<String>| {
        if let Some(error) = error {
            assert!(error.contains("Unauthorized"), "{what}: {error}");
            refused.push(what.to_owned());
        }
    };
    macro_rules! note {
        ($what:literal, $result:expr) => {
            note($what, $result.err().map(|error| error.to_string()))
        };
    }
    let epoch = store.epoch(deadline()).await;
    note!("epoch", epoch.clone());
    if let Ok(epoch) = epoch {
        note!("renew_epoch", store.renew_epoch(epoch.epoch, deadline()).await);
    }
    note!("mark_dirty", store.mark_dirty(deadline()).await);
    note!("ping", store.ping(deadline()).await);
    note!("write", store.write(fixture::put(&key).0, deadline()).await);
    for result in store.write_batch(vec![fixture::put(&key).0, fixture::put(&fixture::key("b")).0], deadline()).await {
        note!("write_batch", result);
    }
    for concern in [ReadConcern::Majority, ReadConcern::Linearizable] {
        for result in store.read(std::slice::from_ref(&key), concern, deadline()).await {
            note!("read", result);
        }
    }
    note!("delete", store.write(fixture::delete(&key).0, deadline()).await);
    note!("lead", store.lead("me", Duration::from_secs(10), None, deadline()).await);
    match store.changes(None, deadline()).await {
        Ok(Some(mut changes)) => {
            note!(
                "lead",
                store.lead("me", Duration::from_secs(10), Some(changes.position().clone()), deadline()).await
            );
            note!("changes", changes.next(deadline()).await);
        }
        Ok(None) => panic!("a replica set has changes"),
        Err(error) => note!("changes", Err::<(), _>(error)),
    }
    note!("resign", store.resign("me", deadline()).await);
    // What it may not look at, or make, is no error of any call.
    for _ in 0..60 {
        if !store.findings().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    refused.extend(store.findings().iter().map(|finding| format!("{:?}: {}", finding.severity, finding.text)));
    store.close().await;
    refused
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_mongodb_role_suffices_and_each_of_its_rights_is_needed() {
    let mongod = tokio::task::spawn_blocking(guarded_mongod).await.unwrap();
    let all = privileges();
    assert!(all.len() == 3 && all.iter().map(|(_, actions)| actions.len()).sum::<usize>() >= 6, "{all:?}");
    let uri = user(&mongod, "whole", &all).await;
    assert_eq!(refusals(&uri, "whole").await, Vec::<String>::new());

    let rights =
        all.iter().enumerate().flat_map(|(at, (_, actions))| (0..actions.len()).map(move |action| (at, action)));
    let without = rights.map(async |(at, action)| {
        let mut less = all.clone();
        let right = format!("{} on {}", less[at].1.remove(action), less[at].0);
        less.retain(|(_, actions)| !actions.is_empty()); // MongoDB rejects a privilege without an action
        let database = format!("less_{at}_{action}");
        let uri = user(&mongod, &database, &less).await;
        (right, refusals(&uri, &database).await)
    });
    for (right, refused) in futures_util::future::join_all(without).await {
        println!("without {right}: {refused:?}");
        assert!(!refused.is_empty(), "{right} is not needed");
        if right.starts_with("list") {
            // Who may not look is served all the same, and told of it.
            assert!(
                refused.iter().all(|what| what.contains("cannot be checked") && what.contains("grant")),
                "{refused:?}"
            );
        }
    }

    everything_works(&mongod, &uri).await;
    a_wrong_password_is_told(&mongod).await;
}

/// Through a server: reads, writes, bulk, delete, the repairer, the auditor, a new epoch.
async fn everything_works(mongod: &Mongod, uri: &str) {
    let redis = RedisServer::start();
    let url = redis.url();
    let settings = [("REDIS_URL", url.as_str()), ("MONGO_URI", uri), ("MONGO_DB", "whole")];
    let server = Server::start(&settings).await;
    let mut client = server.client().await;
    eventually("a write to be cached", async || put(&mut client, record("a", [("n", double(1.0))])).await.cached).await;
    assert_eq!(row(&mut client, get(["a"])).await.status(), RowStatus::Found);
    assert_eq!(row(&mut client, strong(["a"])).await.source(), Source::L2);
    let (answers, status) = bulk(&mut client, [chunk(1, [record("b", [("n", double(2.0))])])]).await;
    assert!(answers[0].written == 1 && status.is_none(), "{status:?}");
    client.delete_features(delete(["b"])).await.unwrap();
    eventually("it to repair", async || server.tiered.repairs().reading().leading).await;
    // By somebody who may.
    let features = mongod.database("whole").await.collection::<Document>("features");
    let edit = doc! { "$set": { "features.n": 5.0 } };
    features.update_one(doc! { "_id": { "view": "default", "entity_id": "a" } }, edit).await.unwrap();
    eventually("the edit to be read", async || row(&mut client, get(["a"])).await.features == features_n(5.0)).await;
    eventually("the auditor to look", async || server.tiered.audit().checks() > 0).await;
    let environment = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let (config, _) = Config::load(&Flags::default(), environment).unwrap();
    let renewed = app::new_epoch(&config).await.unwrap();
    eventually("the new epoch to be seen", async || {
        server.tiered.trust().epoch().is_some_and(|seen| seen.epoch == renewed.epoch)
    })
    .await;
    eventually("writes to be cached", async || put(&mut client, record("c", [])).await.cached).await;
    server.stop().await;
}

fn features_n(n: f64) -> std::collections::BTreeMap<String, Value> {
    features([("n", double(n))])
}

async fn a_wrong_password_is_told(mongod: &Mongod) {
    let uri = mongod.uri().replace("mongodb://", "mongodb://least:canary@") + "&authSource=whole";
    let store = MongoStore::new(MongoConfig::new(uri, "whole", fixture::rules())).unwrap();
    let error = store.ping(fixture::deadline()).await.unwrap_err().to_string();
    assert!(error.contains("authentication failed") && error.contains("mongodb.uri"), "{error}");
    assert!(!error.contains("canary"), "{error}");
    store.close().await;
}
