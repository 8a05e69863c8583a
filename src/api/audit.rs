//! Who wrote what, for the audit log: a line a call or a chunk, never a key, never a value. Only where callers are known.

use tonic::{Code, Status};

use crate::{
    access::{AUDIT, Access},
    proto::{BulkUpsertResponse, DeleteFeaturesResponse, UpsertFeaturesResponse, WriteOutcome},
    record::DEFAULT_VIEW,
};

/// What became of the records of a write.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Count {
    written: u64,
    deleted: u64,
    /// Too old, or not there.
    skipped: u64,
    failed: u64,
}

impl From<&UpsertFeaturesResponse> for Count {
    fn from(response: &UpsertFeaturesResponse) -> Self {
        let mut count = Self::default();
        count.add(response.outcome());
        count
    }
}

impl From<&BulkUpsertResponse> for Count {
    fn from(response: &BulkUpsertResponse) -> Self {
        let BulkUpsertResponse { written, skipped_stale, failed, .. } = response;
        Self { written: *written, skipped: *skipped_stale, failed: *failed, deleted: 0 }
    }
}

impl From<&DeleteFeaturesResponse> for Count {
    fn from(response: &DeleteFeaturesResponse) -> Self {
        let mut count = Self::default();
        response.results.iter().for_each(|result| count.add(result.outcome()));
        count
    }
}

impl Count {
    fn add(&mut self, outcome: WriteOutcome) {
        match outcome {
            WriteOutcome::Written => self.written += 1,
            WriteOutcome::Deleted => self.deleted += 1,
            WriteOutcome::SkippedStale | WriteOutcome::NotFound => self.skipped += 1,
            WriteOutcome::Failed | WriteOutcome::Unspecified => self.failed += 1,
        }
    }
}

/// A write that was let in. It leaves one line when it ends, and also where its client gave the call up before that: the write
/// may have happened, as it is detached from its call.
pub(super) struct Attempt(Option<Asked>);

struct Asked {
    access: Access,
    view: String,
    records: usize,
}

impl Attempt {
    /// A write of so many records to this feature view. `access` is None where nobody asks whose it is, and then there is
    /// no line.
    pub(super) fn of(access: Option<&Access>, view: &str, records: usize) -> Self {
        let view = if view.is_empty() { DEFAULT_VIEW } else { view };
        Self(access.map(|access| Asked { access: access.clone(), view: view.to_owned(), records }))
    }

    /// Logs what became of it.
    pub(super) fn ended(mut self, became: Result<Count, &Status>) {
        let code = became.as_ref().map_or_else(|status| status.code(), |_| Code::Ok);
        self.log(became.unwrap_or_default(), code);
    }

    fn log(&mut self, count: Count, code: Code) {
        let Some(Asked { access, view, records }) = self.0.take() else { return };
        let (rpc, caller) = (access.rpc(), access.caller().name());
        let Count { written, deleted, skipped, failed } = count;
        tracing::info!(
            target: AUDIT, rpc, caller, feature_view = view, records, written, deleted, skipped, failed, ?code, "write"
        );
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.log(Count::default(), Code::Cancelled);
    }
}
