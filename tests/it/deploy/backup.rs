//! Backup and restore, as docs/operations.md tells it: what was there comes back, and no L1 hides it.

use std::{path::Path, process::Command, time::Duration};

use mongodb::bson::{Document, doc};

use crate::harness::{
    backends::Backends,
    binary::{Binary, run},
    client::*,
    process::temp_dir,
    server::eventually,
};

const END: Duration = Duration::from_secs(60);

fn version(id: &str, model_version: &str) -> FeatureRecord {
    FeatureRecord { model_version: model_version.to_owned(), ..record(id, [("x", double(0.5))]) }
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").args(["-a", "--sparse=always"]).arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

fn new_epoch(settings: &[(&str, &str)]) {
    let output = run(&["epoch", "new"], settings);
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_data_folder_of_a_stopped_server_is_a_backup() {
    let mut server = Binary::start(&[]);
    server.until_serving().await;
    put(&mut server.client().await, version("A", "before")).await;
    server.signal("TERM");
    assert_eq!(server.exit_code(END), 0, "{}", server.log());
    let backup = temp_dir();
    let saved = backup.path().join("data");
    copy(&server.data_dir(), &saved);
    server.start_again();
    server.until_serving().await;
    put(&mut server.client().await, version("A", "after")).await;
    put(&mut server.client().await, version("B", "after")).await;
    server.kill();

    std::fs::remove_dir_all(server.data_dir()).unwrap();
    copy(&saved, &server.data_dir());
    new_epoch(&[("FEATURESTORE_DATA_DIR", server.data_dir().to_str().unwrap())]);
    server.start_again();
    server.until_serving().await;
    let mut client = server.client().await;
    let found = rows(&mut client, get(["A", "B"])).await;
    assert_eq!((found[0].model_version.as_str(), found[1].status()), ("before", RowStatus::NotFound));
    put(&mut client, version("A", "again")).await;
    assert_eq!(row(&mut client, get(["A"])).await.model_version, "again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_mongodb_is_what_every_server_reads_after_a_new_epoch() {
    let backends = Backends::start();
    let server = backends.serve(&[]).await;
    let mut client = server.client().await;
    let database = backends.mongod.database("featurestore").await;
    let collections = ["features", "meta"].map(|name| database.collection::<Document>(name));
    put(&mut client, version("A", "before")).await;
    // What mongodump reads.
    let mut dump = Vec::new();
    for collection in &collections {
        let mut cursor = collection.find(doc! {}).await.unwrap();
        let mut documents = Vec::new();
        while cursor.advance().await.unwrap() {
            documents.push(cursor.deserialize_current().unwrap());
        }
        dump.push(documents);
    }
    put(&mut client, version("A", "after")).await;
    put(&mut client, version("B", "after")).await;
    assert_eq!(row(&mut client, get(["A"])).await.source(), Source::L1);
    server.stop().await;

    // What mongorestore --drop does. Redis still holds what was written after the dump, under the dump's own epoch.
    for (collection, documents) in collections.iter().zip(dump) {
        collection.drop().await.unwrap();
        collection.insert_many(documents).await.unwrap();
    }
    new_epoch(&backends.settings());
    let server = backends.serve(&[]).await;
    let mut client = server.client().await;
    let found = rows(&mut client, get(["A", "B"])).await;
    assert_eq!((found[0].model_version.as_str(), found[1].status()), ("before", RowStatus::NotFound));
    put(&mut client, version("A", "again")).await;
    eventually("the new value", async || row(&mut client, get(["A"])).await.model_version == "again").await;
    server.stop().await;
}
