//! Answers that go wrong at chosen moments (the server's own fail points) and histories with crashes in them: what
//! was acknowledged is there, what was refused is not, and what is unknown applies at most once.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
};

use super::*;
use crate::harness::{
    proxy::{Line, Proxy},
    server::eventually,
};

/// One command of our client goes wrong, `times` times.
async fn fail(bench: &Bench, command: &str, times: i32, how: Document) {
    let mut data = doc! { "failCommands": [command], "appName": "featurestore" };
    data.extend(how);
    let command = doc! { "configureFailPoint": "failCommand", "mode": { "times": times }, "data": data };
    bench.database.client().database("admin").run_command(command).await.unwrap();
}

async fn mend(bench: &Bench) {
    let command = doc! { "configureFailPoint": "failCommand", "mode": "off" };
    bench.database.client().database("admin").run_command(command).await.unwrap();
}

fn cut() -> Document {
    doc! { "closeConnection": true }
}

fn code(code: i32) -> Document {
    doc! { "errorCode": code }
}

/// Done, but not by a majority as far as anybody knows.
fn not_confirmed() -> Document {
    doc! { "writeConcernError": { "code": 91, "errmsg": "shutting down" } }
}

fn one(n: i32) -> Record {
    record([("n", Kind::Int32Val(n))])
}

/// A batch is answered by what is read back after its command. Meanwhile others may write a record so often that it forgets the
/// write of the batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_done_and_forgotten_before_it_is_read_back_is_not_done_again() {
    let mongod = tokio::task::spawn_blocking(Mongod::replica_set).await.unwrap();
    let bench = Bench::on(&mongod, rules()).await;
    let number = |n: i32| merge([("n", Kind::Int32Val(n))]);
    let replace = |n: i32| record([("n", Kind::Int32Val(n)), ("base", Kind::Int32Val(n))]);
    let of_two = |id: &str| vec![upsert(id, number(1)), upsert("other", number(1))];
    let repeated = |id: &str| vec![upsert(id, number(1)), upsert(id, number(2)), delete("gone"), delete("gone")];
    for (id, batch, finds_before) in [("batch", of_two("batch"), 0), ("group", repeated("group"), 1)] {
        bench.write(upsert(id, replace(0))).await;
        let data = doc! {
            "failCommands": ["find"], "appName": "featurestore", "blockConnection": true, "blockTimeMS": 2000,
        };
        let mode = doc! { "skip": finds_before };
        let block = doc! { "configureFailPoint": "failCommand", "mode": mode, "data": data };
        bench.database.client().database("admin").run_command(block).await.unwrap();
        let store = bench.store.clone();
        let writing = tokio::spawn(async move { store.write_batch(batch, soon()).await });
        eventually("the batch is done", async || {
            let document = bench.document(id).await.unwrap();
            document.get_document("features").unwrap().get_i32("n").unwrap() > 0
        })
        .await;
        let mut last = None;
        for n in 100..110 {
            last = Some(bench.write(upsert(id, replace(n))).await.1);
        }
        mend(&bench).await;
        let answers = writing.await.unwrap();
        assert_eq!(bench.read(id).await.unwrap(), last.unwrap(), "{id}: {answers:?}");
        let of_others = answers.last().unwrap().as_ref().map(|receipt| receipt.outcome);
        assert!(matches!(of_others, Ok(Outcome::Written | Outcome::NotFound)), "{id}: {answers:?}");
    }
}

/// Writes of one record in one batch become one update, which is done only if the record is as it was read. What others left in
/// the document must not make it look done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_that_lost_a_race_is_done_again_whatever_the_document_holds() {
    let mongod = tokio::task::spawn_blocking(Mongod::replica_set).await.unwrap();
    let bench = Bench::on(&mongod, rules()).await;
    bench.write(upsert("raced", one(0))).await;
    fail(&bench, "update", 1, doc! { "blockConnection": true, "blockTimeMS": 1500 }).await;
    let number = |name| merge([(name, Kind::Int32Val(1))]);
    let batch = vec![upsert("raced", number("a")), upsert("raced", number("b"))];
    let store = bench.store.clone();
    let writing = tokio::spawn(async move { store.write_batch(batch, soon()).await });
    let admin = bench.database.client().database("admin");
    eventually("the update is on its way", async || {
        let block = doc! { "waitForFailPoint": "failCommand", "timesEntered": 1, "maxTimeMS": 5000 };
        admin.run_command(block).await.is_ok()
    })
    .await;
    let other = bench.write(upsert("raced", one(7))).await.0;
    bench.edit("raced", doc! { "$set": { "_attempt": [1] } }).await;
    let answers = writing.await.unwrap();
    let done = |answer: &Result<Receipt, StoreError>| {
        answer.as_ref().is_ok_and(|receipt| receipt.outcome == Outcome::Written && receipt.revision > other.revision)
    };
    assert!(answers.iter().all(done), "{answers:?} after {other:?}");
    let snapshot = bench.snapshot("raced").await;
    assert_eq!(snapshot.features.len(), 3, "{snapshot:?}");
}

#[tokio::test]
async fn one_bad_answer_is_made_good_by_a_repeat_that_applies_once() {
    let mongod = tokio::task::spawn_blocking(Mongod::replica_set).await.unwrap();
    let bench = Bench::on(&mongod, rules()).await;
    bench.store.ping(soon()).await.unwrap();
    for how in [cut(), code(10107), code(11602), not_confirmed()] {
        let write = upsert("a", one(1));
        fail(&bench, "findAndModify", 1, how.clone()).await;
        let (receipt, _) = bench.write(write.clone()).await;
        assert_eq!(receipt.outcome, Outcome::Written, "{how}");
        assert_eq!(bench.write(write).await.0, receipt, "{how}");

        let batch = vec![upsert("b", one(1)), upsert("c", one(1)), upsert("b", one(2))];
        fail(&bench, "update", 1, how.clone()).await;
        let receipts = bench.store.write_batch(batch.clone(), soon()).await;
        assert!(
            receipts.iter().all(|r| r.as_ref().is_ok_and(|r| r.outcome == Outcome::Written)),
            "{how}: {receipts:?}"
        );
        assert_eq!(bench.store.write_batch(batch, soon()).await[2], receipts[2], "{how}");
    }
    for how in [cut(), code(10107), code(11602)] {
        fail(&bench, "find", 1, how).await;
        assert!(bench.read("a").await.is_ok());
    }
}

#[tokio::test]
async fn what_may_have_happened_is_unknown_and_what_did_not_is_unavailable() {
    let mongod = tokio::task::spawn_blocking(Mongod::replica_set).await.unwrap();
    let bench = Bench::on(&mongod, rules()).await;
    bench.write(upsert("a", one(0))).await;
    let unknown = |error: &StoreError| matches!(error, StoreError::OutcomeUnknown(_));
    let unavailable = |error: &StoreError| matches!(error, StoreError::Unavailable(_));
    // How it fails, and whether a single write surely did not happen.
    for (how, surely_not) in
        [(cut(), false), (code(10107), true), (code(11602), false), (not_confirmed(), false), (code(50), false)]
    {
        fail(&bench, "findAndModify", 100, how.clone()).await;
        let error = bench.store.write(upsert("a", one(1)), soon()).await.unwrap_err();
        assert!(if surely_not { unavailable(&error) } else { unknown(&error) }, "{how}: {error:?}");
        mend(&bench).await;

        // Some writes of a batch may have been done before it was interrupted.
        fail(&bench, "update", 100, how.clone()).await;
        let answers = bench.store.write_batch(vec![upsert("b", one(1)), delete("c")], soon()).await;
        assert!(answers.iter().all(|a| a.as_ref().is_err_and(unknown)), "{how}: {answers:?}");
        mend(&bench).await;
    }
    // The writes are done, and nobody can tell what became of them.
    fail(&bench, "find", 100, code(50)).await;
    let answers = bench.store.write_batch(vec![upsert("b", one(1))], soon()).await;
    assert!(answers[0].as_ref().is_err_and(unknown), "{answers:?}");
    let read = bench.store.read(&[key("a")], ReadConcern::Majority, soon()).await;
    assert!(matches!(read[0], Err(StoreError::Timeout(_))), "{read:?}");
    mend(&bench).await;

    // A lost try may still find what is written meanwhile, so "there was nothing" is not known after it.
    fail(&bench, "findAndModify", 1, cut()).await;
    let error = bench.store.write(delete("absent"), soon()).await.unwrap_err();
    assert!(unknown(&error), "{error:?}");
    fail(&bench, "update", 1, cut()).await;
    let answers = bench.store.write_batch(vec![delete("absent")], soon()).await;
    assert!(answers[0].as_ref().is_err_and(unknown), "{answers:?}");

    // A server that refuses for good is neither: it is not an outage, and nothing happened.
    fail(&bench, "findAndModify", 1, code(72)).await;
    let error = bench.store.write(upsert("a", one(1)), soon()).await.unwrap_err();
    assert!(matches!(error, StoreError::Refused(_)), "{error:?}");
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Acknowledged,
    Refused,
    Unknown,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_step_downs_and_crashes_every_answer_is_true() {
    let mut mongod = tokio::task::spawn_blocking(Mongod::replica_set).await.unwrap();
    let bench = Arc::new(Bench::on(&mongod, rules()).await);
    bench.store.ping(soon()).await.unwrap();

    // Each writer merges features of its own into one record; so the record tells which writes happened.
    let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (bench, stop, acknowledged) = (bench.clone(), stop.clone(), acknowledged.clone());
            tokio::spawn(async move {
                let mut fates = BTreeMap::new();
                for n in 0.. {
                    if stop.load(SeqCst) {
                        break;
                    }
                    let name = format!("w{writer}_{n}");
                    let write = upsert("a", merge([(&name, Kind::BoolVal(true))]));
                    let deadline = Instant::now() + Duration::from_millis(3000);
                    let answer = if n % 2 == 0 {
                        bench.store.write(write, deadline).await.map(|(receipt, _)| receipt)
                    } else {
                        bench.store.write_batch(vec![write], deadline).await.remove(0)
                    };
                    let fate = match answer {
                        Ok(receipt) => {
                            assert_eq!(receipt.outcome, Outcome::Written);
                            acknowledged.fetch_add(1, SeqCst);
                            Fate::Acknowledged
                        }
                        Err(StoreError::Unavailable(_)) => Fate::Refused,
                        Err(StoreError::OutcomeUnknown(_)) => Fate::Unknown,
                        Err(other) => panic!("{other:?}"),
                    };
                    fates.insert(name, fate);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                fates
            })
        })
        .collect();

    // From now on so many: the writers are under way (again) and stay so.
    let some_more = async || {
        let before = acknowledged.load(SeqCst);
        eventually("writes to be acknowledged", async || acknowledged.load(SeqCst) > before + 20).await;
    };
    let admin = bench.database.client().database("admin");
    for _ in 0..2 {
        some_more().await;
        let step_down = doc! { "replSetStepDown": 1, "secondaryCatchUpPeriodSecs": 0, "force": true };
        let _ = admin.run_command(step_down).await; // the answer may be cut off with every other connection
        some_more().await;
        mongod = tokio::task::spawn_blocking(move || {
            mongod.restart();
            mongod
        })
        .await
        .unwrap();
    }
    some_more().await;
    stop.store(true, SeqCst);
    let mut fates = BTreeMap::new();
    for writer in writers {
        fates.extend(writer.await.unwrap());
    }
    let stored = bench.snapshot("a").await;
    for (name, fate) in &fates {
        let happened = stored.features.contains_key(name.as_str());
        match fate {
            Fate::Acknowledged => assert!(happened, "{name} was acknowledged and is lost"),
            Fate::Refused => assert!(!happened, "{name} was refused and happened"),
            Fate::Unknown => {}
        }
    }
    let count = |wanted| fates.values().filter(|fate| **fate == wanted).count();
    let counts = (count(Fate::Acknowledged), count(Fate::Refused), count(Fate::Unknown));
    // A lucky run is one in which every interrupted write was repeated in time.
    assert!(counts.0 > 20, "acknowledged, refused, unknown: {counts:?}");
    println!("acknowledged, refused, unknown: {counts:?}");
}

/// Sends a write whose answer is lost, lets so many others come, and mends the line: the store repeats it.
async fn repeated_after(others: i32, in_a_batch: bool) -> (Result<Receipt, StoreError>, i32) {
    let (mongod, name) = (Mongod::shared_replica_set(), Mongod::database_name());
    let line = Proxy::to(mongod.port()).await;
    let uri = format!("mongodb://127.0.0.1:{}/?directConnection=true", line.port());
    let far = Arc::new(MongoStore::new(MongoConfig::new(uri, &name, rules())).unwrap());
    let near = MongoStore::new(MongoConfig::new(mongod.uri(), &name, rules())).unwrap();
    far.ping(soon()).await.unwrap();

    line.set(Line::DropReplies);
    let lost = tokio::spawn({
        let far = far.clone();
        async move {
            let write = upsert("a", one(-1));
            match in_a_batch {
                true => far.write_batch(vec![write, upsert("b", one(-1))], soon()).await.remove(0),
                false => far.write(write, soon()).await.map(|(receipt, _)| receipt),
            }
        }
    });
    let stands = async || near.read(&[key("a")], ReadConcern::Majority, soon()).await.remove(0).unwrap();
    let bound = soon();
    while matches!(stands().await, State::Absent) {
        assert!(Instant::now() < bound, "the write never arrived");
    }
    for n in 0..others {
        near.write(upsert("a", one(n)), soon()).await.unwrap();
    }
    line.set(Line::Pass);
    let answer = lost.await.unwrap();
    let Kind::Int32Val(n) = *kind_of(&snapshot(&stands().await), "n") else { panic!("no number") };
    (answer, n)
}

#[tokio::test]
async fn a_repeat_that_the_record_may_have_forgotten_is_unknown_and_undoes_nothing() {
    for in_a_batch in [false, true] {
        let (answer, n) = repeated_after(7, in_a_batch).await;
        assert_eq!((answer.unwrap().outcome, n), (Outcome::Written, 6), "it is remembered, so it is a repeat");
        let (answer, n) = repeated_after(8, in_a_batch).await;
        assert!(matches!(answer, Err(StoreError::OutcomeUnknown(_))), "{answer:?}");
        assert_eq!(n, 7, "in a batch: {in_a_batch}");
    }
}
