//! Why a folder could not be opened, in words for whoever starts the server.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Why a folder could not be opened as a store. The text says which folder, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process, or another store in this one, has it open.
    #[error(
        "the folder {} is in use by another featurestore process; stop that one, or give this one a folder of its own",
        dir.display()
    )]
    InUse {
        /// The folder.
        dir: PathBuf,
    },
    /// It cannot be made, read or written.
    #[error("the folder {} cannot be used: {reason}; it must be a folder that this user can write", dir.display())]
    Unusable {
        /// The folder.
        dir: PathBuf,
        /// The system's words.
        reason: String,
    },
    /// What lies in it is damaged, or is no store.
    #[error(
        "the store in the folder {} is damaged: {reason}; restore a backup of it (then run `featurestore epoch \
         new`), or move it away to start empty",
        dir.display()
    )]
    Corrupt {
        /// The folder.
        dir: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl OpenError {
    pub(super) fn io(dir: &Path, error: &io::Error) -> Self {
        Self::Unusable { dir: dir.to_owned(), reason: error.to_string() }
    }

    pub(super) fn corrupt(dir: &Path, reason: &str) -> Self {
        Self::Corrupt { dir: dir.to_owned(), reason: reason.to_owned() }
    }

    pub(super) fn engine(dir: &Path, error: &fjall::Error) -> Self {
        match error {
            fjall::Error::Locked => Self::InUse { dir: dir.to_owned() },
            fjall::Error::Io(e) | fjall::Error::Storage(fjall::LsmError::Io(e)) if !is_damage(e) => Self::io(dir, e),
            error => Self::corrupt(dir, &error.to_string()),
        }
    }
}

/// Whether the engine met nonsense in its files, rather than a system that refuses: a file that is missing or too short, or
/// an offset that makes no sense.
fn is_damage(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, NotFound, UnexpectedEof};
    matches!(error.kind(), InvalidData | InvalidInput | NotFound | UnexpectedEof)
}
