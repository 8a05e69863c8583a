//! The bare MongoDB driver, doing to the same documents what our server does: the same find, the same update pipeline,
//! the same concerns. The pipeline is the server's own, as mongod's profiler recorded it, so it is never out of date.

use std::{
    sync::Arc,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use futures_util::StreamExt as _;
use mongodb::{
    Collection, Database,
    bson::{Bson, Document, RawDocumentBuf, doc},
    options::{
        Acknowledgment, CollectionOptions, ReadConcern, ReadPreference, ReturnDocument, SelectionCriteria, WriteConcern,
    },
};

use crate::{data::entity_id, load::Call};

const FEATURES: &str = "features";

/// The collection as our server uses it.
pub(crate) fn features(database: &Database) -> Collection<RawDocumentBuf> {
    let options = CollectionOptions::builder()
        .read_concern(ReadConcern::majority())
        .selection_criteria(SelectionCriteria::ReadPreference(ReadPreference::Primary))
        .write_concern(WriteConcern::builder().w(Acknowledgment::Majority).journal(true).build())
        .build();
    database.collection_with_options(FEATURES, options)
}

fn id(view: &str, number: u64) -> Document {
    doc! { "view": view, "entity_id": entity_id(number) }
}

/// One query for the documents of a call.
pub(crate) struct Find {
    pub(crate) collection: Collection<RawDocumentBuf>,
    pub(crate) view: &'static str,
    pub(crate) keys: Vec<Vec<u64>>,
    pub(crate) next: AtomicUsize,
}

impl Call for Find {
    async fn call(&self) -> Result<(), String> {
        let keys = &self.keys[self.next.fetch_add(1, Relaxed) % self.keys.len()];
        let ids: Vec<Document> = keys.iter().map(|key| id(self.view, *key)).collect();
        let batch = u32::try_from(ids.len() + 1).map_err(text)?;
        let mut cursor = self.collection.find(doc! { "_id": { "$in": ids } }).batch_size(batch).await.map_err(text)?;
        let mut found = 0;
        while let Some(document) = cursor.next().await {
            std::hint::black_box(document.map_err(text)?);
            found += 1;
        }
        if found == keys.len() { Ok(()) } else { Err(format!("{found} of {} documents were found", keys.len())) }
    }
}

/// A write as our server sent it.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pipeline: Vec<Document>,
    request_id: String,
}

impl Recorded {
    /// Has mongod record what happens meanwhile, and takes the first write out of it.
    pub(crate) async fn during<F: Future<Output = Result<(), String>>>(
        database: &Database,
        write: F,
    ) -> Result<Self, String> {
        database.run_command(doc! { "profile": 2 }).await.map_err(text)?;
        let written = write.await;
        database.run_command(doc! { "profile": 0 }).await.map_err(text)?;
        written?;
        let profile: Collection<Document> = database.collection("system.profile");
        let ours = doc! {
            "ns": format!("{}.{FEATURES}", database.name()),
            "$or": [{ "command.findAndModify": FEATURES }, { "op": "update" }],
        };
        let entry = profile.find_one(ours).sort(doc! { "ts": -1 }).await.map_err(text)?;
        profile.drop().await.map_err(text)?;
        let command = entry.as_ref().and_then(|entry| entry.get_document("command").ok());
        let command = command.ok_or("mongod's profiler recorded no write of the server")?;
        let pipeline = command.get_array("update").or_else(|_| command.get_array("u")).map_err(text)?;
        let pipeline: Vec<Document> = pipeline.iter().filter_map(Bson::as_document).cloned().collect();
        let request_id = pipeline.iter().find_map(|stage| {
            let attempt = stage.get_document("$set").ok()?.get_document("_attempt").ok()?;
            let known = attempt.get_document("repeat").ok()?.get_array("$in").ok()?;
            known.first()?.as_document()?.get_str("$literal").ok().map(str::to_owned)
        });
        let request_id = request_id.ok_or("the recorded write has no request id where the bench looks for it")?;
        Ok(Self { pipeline, request_id })
    }

    /// The same with another request id: a document does nothing for one that it remembers.
    fn again(&self, number: u64) -> Vec<Document> {
        let new = format!("{number:032x}");
        let mut pipeline = self.pipeline.clone();
        for (_, value) in pipeline.iter_mut().flat_map(Document::iter_mut) {
            self.rename(value, &new);
        }
        pipeline
    }

    fn rename(&self, value: &mut Bson, new: &str) {
        match value {
            Bson::String(text) if *text == self.request_id => new.clone_into(text),
            Bson::Array(items) => items.iter_mut().for_each(|item| self.rename(item, new)),
            Bson::Document(fields) => fields.iter_mut().for_each(|(_, field)| self.rename(field, new)),
            _ => {}
        }
    }
}

/// One findOneAndUpdate a call.
pub(crate) struct FindOneAndUpdate {
    pub(crate) collection: Collection<RawDocumentBuf>,
    pub(crate) view: &'static str,
    pub(crate) recorded: Recorded,
    pub(crate) entities: u64,
    pub(crate) next: AtomicU64,
}

impl Call for FindOneAndUpdate {
    async fn call(&self) -> Result<(), String> {
        let number = self.next.fetch_add(1, Relaxed);
        let filter = doc! { "_id": id(self.view, number % self.entities) };
        let update = self.collection.find_one_and_update(filter, self.recorded.again(number));
        let document = update.upsert(true).return_document(ReturnDocument::After).await.map_err(text)?;
        document.map(|_| ()).ok_or_else(|| "the update answered nothing".to_owned())
    }
}

/// What a bulk write puts.
#[derive(Clone, Debug)]
pub(crate) enum Put {
    /// The server's pipeline.
    Pipeline(Recorded),
    /// Plain documents, as glue without revisions and request ids would.
    Plain(Document),
}

/// One unordered `update` command of new documents a call.
pub(crate) struct BulkUpdate {
    pub(crate) database: Database,
    pub(crate) view: &'static str,
    pub(crate) put: Put,
    pub(crate) documents: u64,
    pub(crate) next: Arc<AtomicU64>,
}

impl Call for BulkUpdate {
    async fn call(&self) -> Result<(), String> {
        let first = self.next.fetch_add(self.documents, Relaxed);
        let statement = |number: u64| {
            let filter = doc! { "_id": id(self.view, number) };
            match &self.put {
                Put::Pipeline(recorded) => doc! { "q": filter, "u": recorded.again(number), "upsert": true },
                Put::Plain(document) => doc! { "q": filter, "u": document.clone(), "upsert": true },
            }
        };
        let updates: Vec<Document> = (first..first + self.documents).map(statement).collect();
        let command = doc! {
            "update": FEATURES,
            "ordered": false,
            "writeConcern": { "w": "majority", "j": true },
            "updates": updates,
        };
        let answer = self.database.run_command(command).await.map_err(text)?;
        match (answer.get_i32("n"), answer.get("writeErrors"), answer.get("writeConcernError")) {
            (Ok(n), None, None) if n as u64 == self.documents => Ok(()),
            _ => Err(format!("the update command answered {answer}")),
        }
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
