//! The auditor.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn it_finds_and_mends_an_entry_that_is_older_than_l2_and_agrees_with_true_ones() {
    let pair = Pair::real();
    let (server, redis) = (pair.serve().await, pair.redis.as_ref().unwrap());
    let mut client = server.client().await;
    let audit = server.tiered.audit();
    let old = write(&mut client, "a", 1.0).await;
    let entry = redis.cli(&["KEYS", "*:a"]);
    assert_eq!(redis.cli(&["COPY", &entry, "kept"]), "1");
    let new = write(&mut client, "a", 2.0).await;
    let (key, _) = (key_of("a"), assert!(old.cached && new.cached));
    until_hit(&mut client, "a").await;
    let before = audit.checks();
    audit.sample(&key);
    eventually("it to be checked", async || audit.checks() > before).await;
    assert_eq!(audit.disagreements(), 0);

    // Behind everybody's back, long after the first pass and before the second.
    until_leads(&server).await;
    write(&mut client, "b", 1.0).await; // as two changes of one record may be made good at once
    eventually("the first pass", async || server.tiered.repairs().reading().written >= 2).await;
    assert_eq!(redis.cli(&["COPY", "kept", &entry, "REPLACE"]), "1");
    assert_eq!(read(&mut client, "a").await, Some(1.0), "the test plants nothing");
    audit.sample(&key);
    eventually("it to be found", async || audit.disagreements() == 1).await;
    until_read(&mut client, "a", Some(2.0), LAG).await;

    // The same revision with another content, as after an edit by hand that nobody heard of, would be found too; a newer
    // one in L1 than was read from L2 would not. Here both are equal again.
    until_hit(&mut client, "a").await;
    let before = audit.checks();
    audit.sample(&key);
    eventually("it to be checked", async || audit.checks() > before).await;
    assert_eq!(audit.disagreements(), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fresh_changes_are_looked_at() {
    let pair = Pair::real();
    let server = pair.serve().await;
    let mut client = server.client().await;
    let audit = server.tiered.audit();
    until_leads(&server).await;
    write(&mut client, "a", 1.0).await;
    eventually("a change to be checked", async || audit.checks() >= 1).await;
    assert_eq!(audit.disagreements(), 0);
    server.stop().await;
}

fn key_of(id: &str) -> featurestore::record::RecordKey {
    use featurestore::record::{EntityId, FeatureView, RecordKey};
    RecordKey { view: FeatureView::parse("").unwrap(), entity_id: EntityId::parse(id).unwrap() }
}
