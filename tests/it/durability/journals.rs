//! Journals: a tail that was never finished is cut off, and nothing before it may be missing. fjall takes both for the
//! same, and goes on with the next journal; the store's own chain tells them apart.

use std::{fs, path::Path};

use super::store::*;

/// How fjall ends each batch.
const END: &[u8] = b"FJL\x03";

/// Where the batches of a journal end.
fn ends(journal: &[u8]) -> Vec<usize> {
    journal.windows(END.len()).enumerate().filter(|(_, bytes)| *bytes == END).map(|(at, _)| at + END.len()).collect()
}

/// A store with two journals, as a crash leaves one before the first of them is flushed, and where the batches end in
/// the first.
async fn two_journals() -> (tempfile::TempDir, Vec<usize>) {
    let whole = filled(200, 5, 4).await;
    let folder = whole.path().join("fjall");
    let journal = fs::read(folder.join("0.jnl")).unwrap();
    let ends = ends(&journal);
    assert!(ends.len() > 50, "{} batches", ends.len());
    let middle = ends[ends.len() * 2 / 3];
    fs::write(folder.join("0.jnl"), &journal[..middle]).unwrap();
    fs::write(folder.join("1.jnl"), &journal[middle..*ends.last().unwrap()]).unwrap();
    (whole, ends.into_iter().filter(|end| *end <= middle).collect())
}

fn with_damage(whole: &Path, file: &str, damage: Damage) -> Seen {
    let dir = copy(whole);
    damage.to(&dir.path().join(file));
    look(dir.path(), &format!("{damage:?} of {file}"))
}

#[tokio::test]
async fn a_hole_in_an_older_journal_is_refused_though_the_newest_is_whole() {
    let (whole, ends) = two_journals().await;
    assert_eq!(look(copy(whole.path()).path(), "two journals"), Seen::Whole);
    let (first, middle, last) = (ends[0], ends[ends.len() / 2], ends[ends.len() - 2]);
    let damages = [
        Damage::Remove,
        Damage::Cut(0),
        // At the very end of a batch: all that is left is valid.
        Damage::Cut(middle as u64),
        Damage::Cut(last as u64),
        Damage::Cut(middle as u64 + 5),
        // The tag that a batch begins with, its count, and what it ends with.
        Damage::Flip(8 * middle as u64 + 3),
        Damage::Flip(8 * middle as u64 + 12),
        Damage::Flip(8 * middle as u64 - 8),
        Damage::Flip(8 * last as u64 + 2),
        Damage::Flip(8 * first as u64 + 40),
    ];
    let seen = in_parallel(&damages, |damage| with_damage(whole.path(), "fjall/0.jnl", *damage));
    for (damage, seen) in damages.iter().zip(seen) {
        println!("| an older journal | {damage:?} | {seen:?} |");
        // The sequence number in a batch's beginning is not summed, and says nothing to us.
        let harmless = matches!(damage, Damage::Flip(bit) if *bit == 8 * first as u64 + 40) && seen == Seen::Whole;
        assert!(harmless || matches!(seen, Seen::Refused(_)), "{damage:?}: {seen:?}");
    }
}

#[tokio::test]
async fn the_newest_journal_that_ends_earlier_than_what_was_acknowledged_is_refused() {
    let whole = filled(60, 5, 4).await;
    let ends = ends(&fs::read(whole.path().join("fjall/0.jnl")).unwrap());
    let at = |back: usize| ends[ends.len() - 1 - back] as u64;
    let damages = [Damage::Cut(at(1)), Damage::Cut(at(0) - 1), Damage::Cut(at(8)), Damage::Flip(8 * at(3) + 1)];
    for seen in in_parallel(&damages, |damage| with_damage(whole.path(), "fjall/0.jnl", *damage)) {
        assert!(matches!(&seen, Seen::Refused(why) if why.contains("groups of writes are gone")), "{seen:?}");
    }
}

#[tokio::test]
async fn a_group_that_was_never_finished_is_cut_off_and_the_store_starts() {
    let whole = filled(60, 5, 4).await;
    let journal = whole.path().join("fjall/0.jnl");
    let bytes = fs::read(&journal).unwrap();
    let ends = ends(&bytes);
    let (before, end) = (ends[ends.len() - 2], ends[ends.len() - 1]);
    // As a crash leaves a group in the middle of its write: part of it, and then what the file was made of.
    let torn = &bytes[before..before + (end - before) / 2];
    for tail in [torn.to_vec(), [torn, &[0; 4096]].concat()] {
        let dir = copy(whole.path());
        fs::write(dir.path().join("fjall/0.jnl"), [&bytes[..end], &tail].concat()).unwrap();
        assert_eq!(look(dir.path(), "a torn tail"), Seen::Whole);
        assert_eq!(look(dir.path(), "a torn tail, once more"), Seen::Whole);
    }
}

#[tokio::test]
async fn a_group_that_lost_its_place_never_lets_an_older_value_win() {
    // One record, written again and again: who is newest depends on the groups' sequence numbers alone.
    let whole = rewritten(30).await;
    let ends = ends(&fs::read(whole.path().join("fjall/0.jnl")).unwrap());
    let mut damages = Vec::new();
    for back in [1, 7] {
        // After the tag and the count. Nothing of it is in a checksum.
        let sequence = 8 * (ends[ends.len() - 1 - back] as u64 + 5);
        damages.extend([0, 1, 2, 4, 5, 33].map(|bit| Damage::Flip(sequence + bit)));
    }
    let seen = in_parallel(&damages, |damage| with_damage(whole.path(), "fjall/0.jnl", *damage));
    assert!(seen.iter().filter(|seen| matches!(seen, Seen::Refused(_))).count() > damages.len() / 2, "{seen:?}");
}
