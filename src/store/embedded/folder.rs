//! The identity of the data folder, by which a copy or a restored backup differs from the original:
//! the device and inode of the folder, and the inode, creation time and random content of a small
//! file in it. A copy of the file is created later, and no tool can set that time back.
//!
//! A snapshot of a whole volume that replaces the volume is not noticed.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

const FILE: &str = "identity";

/// The identity of a folder. The file is created if it is missing.
pub(super) fn identity(dir: &Path) -> io::Result<String> {
    let path = dir.join(FILE);
    let id = match fs::read(&path) {
        Ok(id) if !id.is_empty() => id,
        Ok(_) => made(&path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => made(&path)?,
        Err(error) => return Err(error),
    };
    let (folder, file) = (fs::metadata(dir)?, fs::metadata(&path)?);
    // If a file system has no creation time: the last change of the inode, which a copy cannot set
    // back either.
    let made_at = match file.created() {
        Ok(created) => created.duration_since(UNIX_EPOCH).as_ref().map_or(0, Duration::as_nanos),
        Err(_) => file.ctime().unsigned_abs() as u128 * 1_000_000_000 + file.ctime_nsec().unsigned_abs() as u128,
    };
    let sum = crc32fast::hash(&id);
    let id = String::from_utf8_lossy(&id);
    Ok(format!("{}:{}:{}:{made_at}:{}:{sum:08x}", folder.dev(), folder.ino(), file.ino(), id.trim()))
}

fn made(path: &Path) -> io::Result<Vec<u8>> {
    let id = format!("{:032x}\n", rand::random::<u128>()).into_bytes();
    fs::write(path, &id)?;
    fs::File::open(path)?.sync_all()?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_keeps_its_identity_and_a_copy_has_another_wherever_it_lies() {
        let root = tempfile::tempdir().unwrap();
        let (one, two) = (root.path().join("one"), root.path().join("two"));
        fs::create_dir(&one).unwrap();
        let original = identity(&one).unwrap();
        assert_eq!(identity(&one).unwrap(), original);
        fs::create_dir(&two).unwrap();
        fs::copy(one.join(FILE), two.join(FILE)).unwrap();
        assert_ne!(identity(&two).unwrap(), original);
        // The backup replaces the original, and inodes may be reused.
        fs::remove_dir_all(&one).unwrap();
        fs::create_dir(&one).unwrap();
        fs::copy(two.join(FILE), one.join(FILE)).unwrap();
        assert_ne!(identity(&one).unwrap(), original);
    }
}
