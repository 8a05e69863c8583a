//! Lines of the audit log about writes: one for each call or chunk, without keys and values. Only
//! if a tokens file is configured.

use tonic::{Code, Status};

use crate::{
    access::{AUDIT, Access},
    proto::{BulkUpsertResponse, DeleteFeaturesResponse, UpsertFeaturesResponse, WriteOutcome},
    record::DEFAULT_VIEW,
};

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Count {
    written: u64,
    deleted: u64,
    /// The stored record is newer, or there is none to delete.
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

/// A write that was admitted. It leaves one line when it ends, and also if its client cancels the
/// call before that: the write runs in its own task and may have happened.
pub(super) struct Attempt(Option<Asked>);

struct Asked {
    access: Access,
    view: String,
    records: usize,
}

impl Attempt {
    /// A write of `records` records to this feature view. If `access` is None, no tokens file is
    /// configured, and no line is written.
    pub(super) fn of(access: Option<&Access>, view: &str, records: usize) -> Self {
        let view = if view.is_empty() { DEFAULT_VIEW } else { view };
        Self(access.map(|access| Asked { access: access.clone(), view: view.to_owned(), records }))
    }

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
