//! The names of entities.

use std::{fmt, str};

use super::InvalidName;
use crate::proto::{EntityIds, SharedText};

/// The most bytes of an entity id.
pub const MAX_ENTITY_ID_BYTES: usize = 512;

/// The id of an entity: 1 to 512 bytes of UTF-8 without control characters. Cloning is cheap. The
/// ids of a batch share one text.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntityId(SharedText);

impl EntityId {
    /// Checks an id, without changing it.
    pub fn parse(id: &str) -> Result<Self, InvalidName> {
        check(id).map(|()| Self(id.into()))
    }

    /// Checks the ids of a batch. Err: the index of each rejected id, and why.
    pub fn parse_all(ids: &EntityIds) -> Result<impl ExactSizeIterator<Item = Self>, Vec<(usize, InvalidName)>> {
        // Most ids are plain. This checks many bytes at once, and then only lengths remain to be
        // checked.
        let plain = ids.bytes().iter().fold(true, |plain, byte| plain & is_plain(*byte));
        let wrong = |(i, id): (usize, &[u8])| {
            if plain && (1..=MAX_ENTITY_ID_BYTES).contains(&id.len()) {
                return None;
            }
            let checked = match str::from_utf8(id) {
                Ok(id) => check(id),
                Err(_) => Err(InvalidName("an entity id must be UTF-8".to_owned())),
            };
            checked.err().map(|why| (i, why))
        };
        let wrong: Vec<_> = ids.iter().enumerate().filter_map(wrong).collect();
        match ids.to_texts() {
            Some(texts) if wrong.is_empty() => Ok(texts.map(Self)),
            _ => Err(wrong),
        }
    }

    /// The id.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The bytes of the id.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// A copy in its own buffer, for ids that are kept.
    pub fn detached(&self) -> Self {
        Self(self.0.detached())
    }

    /// The id as a text for a row.
    pub fn into_text(self) -> SharedText {
        self.0
    }
}

impl fmt::Display for EntityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn check(id: &str) -> Result<(), InvalidName> {
    if id.is_empty() {
        return Err(InvalidName("an entity id must not be empty".to_owned()));
    }
    if id.len() > MAX_ENTITY_ID_BYTES {
        let len = id.len();
        return Err(InvalidName(format!("an entity id may have {MAX_ENTITY_ID_BYTES} bytes, but this one has {len}")));
    }
    if id.bytes().all(is_plain) {
        return Ok(());
    }
    match id.chars().find(|c| c.is_control()) {
        Some(c) => {
            Err(InvalidName(format!("an entity id must have no control character; this one has U+{:04X}", c as u32)))
        }
        None => Ok(()),
    }
}

fn is_plain(byte: u8) -> bool {
    (b' '..=b'~').contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_refused_where_one_alone_would_be() {
        let long = "é".repeat(257);
        let cases = ["a", "", "CUST 1", "a\n", "ключ", "\u{85}", &long, "~", "\u{7f}"];
        for first in cases {
            for second in cases {
                let alone: Vec<_> = [first, second].map(EntityId::parse).into_iter().collect();
                match EntityId::parse_all(&[first, second].into_iter().collect()) {
                    Ok(ids) => assert!(ids.map(Ok).eq(alone)),
                    Err(wrong) => {
                        let errors = alone.into_iter().enumerate().filter_map(|(i, id)| Some((i, id.err()?)));
                        assert!(!wrong.is_empty() && errors.eq(wrong), "{first:?} {second:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn equal_ids_are_equal_wherever_their_text_is() {
        let ids: Vec<_> = EntityId::parse_all(&["ab", "b", "ab"].into_iter().collect()).unwrap().collect();
        assert_eq!((&ids[0], &ids[2]), (&ids[2], &EntityId::parse("ab").unwrap()));
        assert!(ids[0] < ids[1] && ids[0].to_string() == "ab" && format!("{:?}", ids[1]) == "EntityId(\"b\")");
    }
}
