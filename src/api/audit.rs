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

/// Tells of a write of so many records. One that failed may have happened, so it is told too.
pub(super) fn wrote(access: Option<&Access>, view: &str, records: usize, became: Result<Count, &Status>) {
    let Some(access) = access else { return };
    let (rpc, caller) = (access.rpc(), access.caller().name());
    let view = if view.is_empty() { DEFAULT_VIEW } else { view };
    let code = became.map_or_else(|status| status.code(), |_| Code::Ok);
    let Count { written, deleted, skipped, failed } = became.unwrap_or_default();
    tracing::info!(
        target: AUDIT, rpc, caller, feature_view = view, records, written, deleted, skipped, failed, ?code, "write"
    );
}
