//! Why a folder could not be opened, in words for whoever starts the server.

use std::{
    cell::Cell,
    io,
    panic::{self, AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Once,
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
    /// A later version wrote it.
    #[error(
        "the store in the folder {} was written by a newer version of featurestore ({found}, this one knows {known}); \
         start that version, or give this one a folder of its own",
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
            fjall::Error::Io(e) | fjall::Error::Storage(fjall::LsmError::Io(e)) => {
                Self::corrupt(dir, &format!("a file of it is missing or cut off ({e})"))
            }
            fjall::Error::Unrecoverable => Self::corrupt(dir, "its files do not fit together"),
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

/// The format of the engine's files; a newer featurestore may bring a newer one.
const ENGINE_FORMAT: u8 = 3;

/// Looks at the engine's version marker, as the engine calls each one it does not know damaged.
pub(super) fn check_version(dir: &Path, folder: &Path, commits: u64) -> Result<(), OpenError> {
    match std::fs::read(folder.join("version")) {
        Ok(marker) => match marker[..] {
            [b'F', b'J', b'L', found] if found > ENGINE_FORMAT => {
                Err(OpenError::Newer { dir: dir.to_owned(), found, known: ENGINE_FORMAT })
            }
            [b'F', b'J', b'L', ENGINE_FORMAT] => Ok(()),
            _ => Err(OpenError::corrupt(dir, "the engine's version marker cannot be read")),
        },
        // The engine makes a new store where there is no marker.
        Err(e) if e.kind() == io::ErrorKind::NotFound && commits == 0 => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Err(OpenError::corrupt(dir, "the engine's version marker is gone"))
        }
        Err(e) => Err(OpenError::io(dir, &e)),
    }
}

thread_local! {
    /// The panics of an open on this thread; None: there is no open.
    static PANICS: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Does `open`; None: it panicked. The panic is not printed.
///
/// Some damage makes fjall panic once more while it unwinds, which ends the process whatever anybody does. Then the last
/// words are the refusal, not the panic's, and the exit code is that of any refusal.
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
