//! A data folder that cannot be used: one clear line that names it and says what to do, and exit code 1.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::{Command, Output},
};

use super::{
    room::{Disk, left_out},
    store::filled,
};
use crate::harness::{
    binary::{PROGRAM, run},
    process::temp_dir,
};

const LISTEN: [&str; 5] = ["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];

/// What it said, in its one line on standard error.
fn refused(output: &Output, dir: &Path, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let lines: Vec<_> = said.lines().filter(|line| line.starts_with("featurestore: data_dir: ")).collect();
    assert!(lines.len() == 1 && said.lines().last() == Some(lines[0]), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    for word in words.iter().copied().chain([dir.to_str().unwrap()]) {
        assert!(lines[0].contains(word), "{word} is not in: {said}");
    }
}

fn serve(dir: &Path) -> Output {
    run(&[&LISTEN[..], &["--data-dir", dir.to_str().unwrap()]].concat(), &[])
}

/// As a user who owns nothing: another one, where the tests run as root.
fn serve_as_nobody(dir: &Path) -> Option<Output> {
    let args = [&LISTEN[..], &["--data-dir", dir.to_str().unwrap()]].concat();
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return Some(run(&args, &[]));
    }
    let nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let may = Command::new("setpriv").args(nobody).args(["test", "-x", PROGRAM]).status();
    if !may.is_ok_and(|may| may.success()) {
        left_out("there is no setpriv, or another user cannot run the binary where it lies: no folder of another user");
        return None;
    }
    Some(Command::new("setpriv").args(nobody).arg(PROGRAM).args(args).env_clear().output().unwrap())
}

#[test]
fn a_data_folder_that_is_no_folder_is_refused() {
    let dir = temp_dir();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    refused(&serve(&file), &file, &["cannot be used", "must be a folder"]);
}

#[tokio::test]
async fn a_data_folder_from_a_newer_version_is_refused_as_such() {
    let dir = filled(3, 1, 1).await;
    fs::write(dir.path().join("fjall/version"), b"FJL\x04").unwrap();
    refused(&serve(dir.path()), dir.path(), &["newer version of featurestore"]);
}

#[tokio::test]
async fn a_damaged_data_folder_is_refused_and_the_line_says_what_to_do() {
    let dir = filled(3, 1, 1).await;
    fs::write(dir.path().join("fjall/keyspaces/1/current"), b"").unwrap();
    refused(&serve(dir.path()), dir.path(), &["is damaged", "restore a backup", "move it away to start empty"]);
}

#[tokio::test]
async fn a_data_folder_that_this_user_may_not_write_is_refused() {
    let (empty, full) = (temp_dir(), filled(3, 1, 1).await);
    for dir in [&empty, &full] {
        let mode = |mode| fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
        mode(0o555);
        if let Some(output) = serve_as_nobody(dir.path()) {
            refused(&output, dir.path(), &["cannot be used", "Permission denied", "this user can write"]);
        }
        mode(0o755);
    }
}

#[tokio::test]
async fn a_data_folder_on_a_read_only_disk_is_refused() {
    let Some(disk) = Disk::new("8m") else { return };
    let (dir, empty) = (disk.path().join("data"), disk.path().join("empty"));
    let whole = filled(3, 1, 1).await;
    let copied = Command::new("cp").args(["-r", "--sparse=always"]).arg(whole.path()).arg(&dir).status().unwrap();
    assert!(copied.success());
    disk.freeze();
    for dir in [dir, empty] {
        refused(&serve(&dir), &dir, &["cannot be used", "Read-only file system", "this user can write"]);
    }
}
