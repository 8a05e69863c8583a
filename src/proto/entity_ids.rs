//! The entity ids of a batch. They arrive in one buffer and stay in it: a String for each, with its
//! copies to the caches and into the answer, would cost a batch of hits more than finding its rows.

use std::{cmp::Ordering, fmt, hash, str, sync::Arc};

use bytes::{Buf, BufMut};
use prost::{
    DecodeError,
    encoding::{self, DecodeContext, WireType},
};

/// A field of repeated strings as received: in one buffer, and unchecked. They may be invalid
/// UTF-8, which the parser of the ids detects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntityIds {
    bytes: Vec<u8>,
    /// The end of each. The length of a message has 32 bits, so this is enough.
    ends: Vec<u32>,
}

impl EntityIds {
    /// The number of ids.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The bytes of each id.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        places(&self.ends).map(|(from, to)| &self.bytes[from as usize..to as usize])
    }

    /// All ids, concatenated.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Each id as a part of one shared text. None: they are not all UTF-8.
    pub fn to_texts(&self) -> Option<impl ExactSizeIterator<Item = SharedText>> {
        let text = str::from_utf8(&self.bytes).ok()?;
        let whole = self.ends.iter().all(|end| text.is_char_boundary(*end as usize));
        whole.then(|| SharedText::pieces(text, &self.ends))
    }

    fn push(&mut self, id: &[u8]) {
        self.bytes.extend_from_slice(id);
        self.ends.push(self.bytes.len() as u32);
    }

    /// Appends a received id and those that follow it. `buf` ends with the message.
    pub(super) fn merge(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        encoding::check_wire_type(WireType::LengthDelimited, wire_type)?;
        let len = encoding::decode_varint(buf)?;
        if len > buf.remaining() as u64 {
            // Only the library can make its error, so it decodes a string whose one byte is
            // missing.
            return encoding::skip_field(wire_type, tag, &mut &[1][..], ctx);
        }
        let mut len = len as usize;
        if self.ends.is_empty() {
            // The rest of the message is nearly all ids, each with a key and a length.
            self.bytes.reserve(buf.remaining());
            self.ends.reserve(buf.remaining() / (len + 2) + 1);
        }
        while len > 0 {
            let piece = buf.chunk();
            let piece = &piece[..piece.len().min(len)];
            self.bytes.extend_from_slice(piece);
            let taken = piece.len();
            buf.advance(taken);
            len -= taken;
        }
        self.ends.push(self.bytes.len() as u32);

        // Most ids are shorter than 128 bytes and adjacent.
        let key = (tag << 3) as u8 | WireType::LengthDelimited as u8;
        let mut rest = buf.chunk();
        let before = rest.len();
        while let [first, len @ ..0x80, after @ ..] = rest
            && *first == key
            && let Some((id, after)) = after.split_at_checked(usize::from(*len))
        {
            self.push(id);
            rest = after;
        }
        let taken = before - rest.len();
        buf.advance(taken);
        Ok(())
    }

    pub(super) fn encode(&self, tag: u32, buf: &mut impl BufMut) {
        for id in self.iter() {
            encoding::encode_key(tag, WireType::LengthDelimited, buf);
            encoding::encode_varint(id.len() as u64, buf);
            buf.put_slice(id);
        }
    }

    pub(super) fn encoded_len(&self, tag: u32) -> usize {
        let heads = self.iter().map(|id| encoding::key_len(tag) + encoding::encoded_len_varint(id.len() as u64));
        heads.sum::<usize>() + self.bytes.len()
    }
}

fn places(ends: &[u32]) -> impl ExactSizeIterator<Item = (u32, u32)> {
    let mut from = 0;
    ends.iter().map(move |end| (std::mem::replace(&mut from, *end), *end))
}

impl<T: AsRef<str>> FromIterator<T> for EntityIds {
    fn from_iter<I: IntoIterator<Item = T>>(ids: I) -> Self {
        let mut all = Self::default();
        ids.into_iter().for_each(|id| all.push(id.as_ref().as_bytes()));
        all
    }
}

/// A part of a text that others share. Cloning is cheap, and a clone keeps the whole text alive.
#[derive(Clone)]
pub struct SharedText {
    text: Arc<str>,
    from: u32,
    to: u32,
}

impl SharedText {
    /// The parts of a text with these ends.
    pub fn pieces(text: &str, ends: &[u32]) -> impl ExactSizeIterator<Item = Self> {
        let text: Arc<str> = text.into();
        places(ends).map(move |(from, to)| Self { text: text.clone(), from, to })
    }

    /// The part.
    pub fn as_str(&self) -> &str {
        &self.text[self.from as usize..self.to as usize]
    }

    /// The bytes of the part.
    pub fn as_bytes(&self) -> &[u8] {
        &self.text.as_bytes()[self.from as usize..self.to as usize]
    }

    /// A copy in its own buffer, for texts that are kept.
    pub fn detached(&self) -> Self {
        self.as_str().into()
    }
}

impl From<&str> for SharedText {
    fn from(text: &str) -> Self {
        Self { text: text.into(), from: 0, to: text.len() as u32 }
    }
}

impl Default for SharedText {
    fn default() -> Self {
        Self { text: Arc::default(), from: 0, to: 0 }
    }
}

impl fmt::Debug for SharedText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

impl PartialEq for SharedText {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for SharedText {}

impl hash::Hash for SharedText {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl PartialOrd for SharedText {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SharedText {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}
