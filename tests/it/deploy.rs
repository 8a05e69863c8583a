//! What operators are given: the chart's and docker compose's environment, the retry policy, backups.

mod backup;
mod chart;
mod compose;
mod environment;
mod retry_policy;
