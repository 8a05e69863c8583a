//! Limits how often the same failure of a tier is logged, so that an operator finds it and it does
//! not fill the log.

use std::time::Duration;

use tokio::time::Instant;

/// How long the same failure is not logged again.
const REMINDER: Duration = Duration::from_secs(60);
/// How long another failure is not logged.
const OTHER: Duration = Duration::from_secs(5);

/// The failure that was logged last, and when.
#[derive(Debug, Default)]
pub(super) struct Trouble(Option<(String, Instant)>);

impl Trouble {
    /// Whether this failure should be logged now.
    pub(super) fn is_news(&mut self, text: &str) -> bool {
        let quiet = match &self.0 {
            None => false,
            Some((told, at)) => at.elapsed() < if told == text { REMINDER } else { OTHER },
        };
        if !quiet {
            self.0 = Some((text.to_owned(), Instant::now()));
        }
        !quiet
    }

    /// The failure has ended, so the next one is logged at once.
    pub(super) fn is_over(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_logged_at_once_and_then_once_a_minute() {
        let mut trouble = Trouble::default();
        assert!(trouble.is_news("a") && !trouble.is_news("a") && !trouble.is_news("b"));
        tokio::time::advance(OTHER).await;
        assert!(!trouble.is_news("a") && trouble.is_news("b") && !trouble.is_news("b"));
        tokio::time::advance(REMINDER).await;
        assert!(trouble.is_news("b") && !trouble.is_news("b"));
        trouble.is_over();
        assert!(trouble.is_news("b"));
    }
}
