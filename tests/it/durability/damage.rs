//! A file that was cut, removed, or lost a bit: the store starts with all it acknowledged, or rows answer that they
//! cannot be read, or it does not start and says so in one line. Never does a row just miss.

use std::{collections::BTreeMap, path::Path};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::store::*;

/// Bits of one file that are flipped, one at a time, besides those in the first and the last byte.
const FLIPS: usize = 4;

#[tokio::test]
async fn every_file_with_a_flipped_bit_or_cut_or_removed_is_whole_or_data_loss_or_refused() {
    let whole = filled(200, 5, 10).await;
    assert_eq!(look(copy(whole.path()).path(), "not damaged"), Seen::Whole);
    let mut damages = Vec::new();
    for file in files(whole.path()) {
        damages.extend(damages_of(whole.path(), &file).into_iter().map(|damage| (file.clone(), damage)));
    }
    try_all(whole.path(), &damages);
}

#[tokio::test]
async fn damage_in_a_table_on_disk_is_data_loss_of_rows_or_refused() {
    let whole = filled(3_000, 500, 50).await; // more than a memtable holds
    let len = |file: &Path| whole.path().join(file).metadata().unwrap().len();
    let tables = files(whole.path()).into_iter().filter(|file| file.parent().unwrap().ends_with("tables"));
    let table = tables.max_by_key(|file| len(file)).expect("a table was flushed");
    let len = len(&table);
    assert!(len > 1 << 20, "{len}");
    let flips = [8 * (len / 3), 8 * (len / 2) + 3, 8 * (len - 20_000), 8 * (len - 100)].map(Damage::Flip);
    let damages = flips.into_iter().chain([Damage::Cut(len / 2), Damage::Remove]);
    let seen = try_all(whole.path(), &damages.map(|damage| (table.clone(), damage)).collect::<Vec<_>>());
    assert!(seen.contains(&Seen::Rows), "no row answered that it cannot be read: {seen:?}");
}

#[tokio::test]
async fn what_makes_the_engine_panic_twice_is_refused_in_our_words() {
    let whole = filled(3, 1, 1).await;
    // It expects a number, panics with a lock in its hand, and panics on that while it unwinds.
    std::fs::create_dir(whole.path().join("fjall/keyspaces/stray")).unwrap();
    let seen = look(whole.path(), "a stray folder");
    assert_eq!(seen, Seen::Refused("its files make no sense to the engine".to_owned()));
}

fn damages_of(whole: &Path, file: &Path) -> Vec<Damage> {
    // The same ones in each run, for a file of the same length.
    let (len, mut random) = (used(&whole.join(file)), StdRng::seed_from_u64(20261123));
    let mut damages = vec![Damage::Remove, Damage::Cut(0)];
    if len > 0 {
        damages.extend([Damage::Cut(len / 2), Damage::Cut(len - 1)]);
        damages.extend([Damage::Flip(0), Damage::Flip(8 * len - 1)]);
        damages.extend((0..FLIPS).map(|_| Damage::Flip(random.random_range(0..8 * len))));
    }
    damages
}

/// Does each damage to a copy of its own; prints a table of what came of it.
fn try_all(whole: &Path, damages: &[(std::path::PathBuf, Damage)]) -> Vec<Seen> {
    let seen = in_parallel(damages, |(file, damage)| {
        let dir = copy(whole);
        damage.to(&dir.path().join(file));
        look(dir.path(), &format!("{damage:?} of {}", file.display()))
    });
    let mut table = BTreeMap::<_, usize>::new();
    for ((file, damage), seen) in damages.iter().zip(&seen) {
        let damage = format!("{damage:?}");
        *table.entry((file, damage.split('(').next().unwrap().to_owned(), seen)).or_default() += 1;
    }
    for ((file, damage, seen), times) in table {
        println!("| {} | {damage} x {times} | {seen:?} |", file.display());
    }
    assert!(seen.iter().any(|seen| matches!(seen, Seen::Refused(_))), "no damage was noticed");
    seen
}
