//! Why a folder could not be opened, in words for the operator.

use std::{
    cell::Cell,
    io,
    panic::{self, AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Once,
};

/// Why a folder could not be opened as a store. The text names the folder and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process, or another store in this one, has it open.
    #[error(
        "the folder {} is in use by another featurestore process; stop that one, or set another data_dir here",
        dir.display()
    )]
    InUse {
        /// The folder.
        dir: PathBuf,
    },
    /// It cannot be created, read or written.
    #[error("the folder {} cannot be used: {reason}; it must be a folder that this user can write", dir.display())]
    Unusable {
        /// The folder.
        dir: PathBuf,
        /// The error of the system.
        reason: String,
    },
    /// A newer version wrote it.
    #[error(
        "the store in the folder {} was written by a newer version of featurestore (format {found}, this \
         one reads up to {known}); start that version, or set another data_dir here",
        dir.display()
    )]
    Newer {
        /// The folder.
        dir: PathBuf,
        /// The format that was found.
        found: u8,
        /// The latest that this version can read.
        known: u8,
    },
    /// Its content is damaged, or is not a store.
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
            fjall::Error::Io(e) | fjall::Error::Storage(fjall::LsmError::Io(e)) => {
                Self::corrupt(dir, &format!("a file of it is missing or cut off ({e})"))
            }
            fjall::Error::Unrecoverable => Self::corrupt(dir, "its files do not fit together"),
            error => Self::corrupt(dir, &error.to_string()),
        }
    }
}

/// Whether the engine found invalid files (missing, too short, or with an impossible offset), and
/// not a system that refuses.
fn is_damage(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, NotFound, UnexpectedEof};
    matches!(error.kind(), InvalidData | InvalidInput | NotFound | UnexpectedEof)
}

/// The format of the engine's files. A newer featurestore may bring a newer one.
const ENGINE_FORMAT: u8 = 3;

/// Checks the engine's version marker, because the engine reports an unknown version as damage.
pub(super) fn check_version(dir: &Path, folder: &Path, commits: u64) -> Result<(), OpenError> {
    match std::fs::read(folder.join("version")) {
        Ok(marker) => match marker[..] {
            [b'F', b'J', b'L', found] if found > ENGINE_FORMAT => {
                Err(OpenError::Newer { dir: dir.to_owned(), found, known: ENGINE_FORMAT })
            }
            [b'F', b'J', b'L', ENGINE_FORMAT] => Ok(()),
            _ => Err(OpenError::corrupt(dir, "the engine's version marker cannot be read")),
        },
        // The engine creates a new store if there is no marker.
        Err(e) if e.kind() == io::ErrorKind::NotFound && commits == 0 => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Err(OpenError::corrupt(dir, "the engine's version marker is gone"))
        }
        Err(e) => Err(OpenError::io(dir, &e)),
    }
}

thread_local! {
    /// The panics of an open on this thread. None: no open is running.
    static PANICS: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Runs `open`. None: it panicked. The panic is not printed.
///
/// Some damage makes fjall panic again during unwinding, which always ends the process. Then the
/// error of a damaged folder is printed instead of the panic, with the exit code of any refusal.
pub(super) fn guarded<T>(dir: &Path, open: impl FnOnce() -> T) -> Option<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| match PANICS.get() {
            None => before(info),
            Some(0) => PANICS.set(Some(1)),
            Some(_) => {
                DIR.with_borrow(|dir| eprintln!("featurestore: data_dir: {}", OpenError::corrupt(dir, PANICKED)));
                std::process::exit(1);
            }
        }));
    });
    DIR.set(dir.to_owned());
    PANICS.set(Some(0));
    let opened = catch_unwind(AssertUnwindSafe(open));
    PANICS.set(None);
    opened.ok()
}

const PANICKED: &str = "its files make no sense to the engine";

thread_local! {
    /// The folder that this thread opens.
    static DIR: std::cell::RefCell<PathBuf> = const { std::cell::RefCell::new(PathBuf::new()) };
}
