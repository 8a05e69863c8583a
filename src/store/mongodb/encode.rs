//! Features as BSON, made directly from their stored bytes. A tree of values between would take
//! forty times the size of a list of small integers, with one byte each in the request.
//!
//! The same code measures and writes, so a document that is too large is noticed before it is
//! built.

use prost::encoding::{self, WireType};

use super::value;
use crate::record::{encoding::EncodedFeatures, float32::widen};

// The numbers of BSON's types.
pub(super) const DOUBLE: u8 = 0x01;
pub(super) const STRING: u8 = 0x02;
pub(super) const DOCUMENT: u8 = 0x03;
pub(super) const ARRAY: u8 = 0x04;
pub(super) const BINARY: u8 = 0x05;
pub(super) const BOOLEAN: u8 = 0x08;
pub(super) const NULL: u8 = 0x0a;
pub(super) const INT32: u8 = 0x10;
pub(super) const INT64: u8 = 0x12;

/// Receives BSON in pieces: `Vec<u8>` keeps it, `Size` counts it.
pub(super) trait Sink {
    /// Takes bytes.
    fn put_bytes(&mut self, bytes: &[u8]);
    /// Begins a document or an array, after its name.
    fn begin(&mut self) -> usize;
    /// Ends what was begun at this position.
    fn end(&mut self, begun: usize);

    /// Takes the size of an array of `count` elements with `bytes` bytes each. False: they must be
    /// put one by one.
    fn elements(&mut self, _count: usize, _bytes: usize) -> bool {
        false
    }

    /// Takes the type and the name of an element.
    fn head(&mut self, element: u8, name: &[u8]) {
        self.put_bytes(&[element]);
        self.put_bytes(name);
        self.put_bytes(&[0]);
    }

    /// Takes a whole document as an element.
    fn document(&mut self, name: &[u8], document: &[u8]) {
        self.head(DOCUMENT, name);
        self.put_bytes(document);
    }

    /// Begins a document that is an element.
    fn begin_document(&mut self, name: &[u8]) -> usize {
        self.head(DOCUMENT, name);
        self.begin()
    }

    /// Begins an array that is an element.
    fn begin_array(&mut self, name: &[u8]) -> usize {
        self.head(ARRAY, name);
        self.begin()
    }
}

impl Sink for Vec<u8> {
    fn put_bytes(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    fn begin(&mut self) -> usize {
        let begun = self.len();
        self.extend_from_slice(&[0; 4]);
        begun
    }

    fn end(&mut self, begun: usize) {
        self.push(0);
        // The size was measured before, and is far below 2 GiB.
        let length = i32::try_from(self.len() - begun).unwrap_or(i32::MAX);
        self[begun..begun + 4].copy_from_slice(&length.to_le_bytes());
    }
}

/// Counts bytes of BSON.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Size(pub(super) usize);

impl Sink for Size {
    fn put_bytes(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }

    fn begin(&mut self) -> usize {
        self.0 += 4;
        0
    }

    fn end(&mut self, _: usize) {
        self.0 += 1;
    }

    fn elements(&mut self, count: usize, bytes: usize) -> bool {
        // Type, name with its end, and value. `from..to` are the indices with equally many digits.
        let (mut digits, mut from) = (1, 0);
        while from < count {
            let to = count.min(10_usize.pow(digits));
            self.0 += (to - from) * (digits as usize + 2 + bytes);
            (digits, from) = (digits + 1, to);
        }
        true
    }
}

/// Puts the document of the features.
pub(super) fn put_features(features: &EncodedFeatures, into: &mut impl Sink) {
    let begun = into.begin();
    for entry in features.entries().flatten() {
        // Features were checked on arrival. An invalid value would become null, like a value
        // without a kind.
        if put_value(entry.name, entry.value, into).is_none() {
            into.head(NULL, entry.name);
        }
    }
    into.end(begun);
}

/// Puts the document of the kinds: of features whose BSON type does not show the kind, or with
/// `all` of every feature (0 for the others).
pub(super) fn put_kinds(features: &EncodedFeatures, all: bool, into: &mut impl Sink) {
    let begun = into.begin();
    for entry in features.entries().flatten() {
        let kind = kind_of(entry.value);
        if all || kind != 0 {
            into.head(INT32, entry.name);
            into.put_bytes(&kind.to_le_bytes());
        }
    }
    into.end(begun);
}

/// The number of a value's kind if its BSON type does not show it, else 0.
fn kind_of(value: &[u8]) -> i32 {
    match first_field(value) {
        Some((tag @ (6 | 8 | 11..=18), _, _)) => tag as i32,
        Some((40, _, object)) if !is_natural(object) => value::STRUCT,
        _ => 0,
    }
}

/// The first field of a message: its number, wire type and bytes, without a length.
fn first_field(mut message: &[u8]) -> Option<(u32, WireType, &[u8])> {
    next_field(&mut message)
}

fn next_field<'a>(rest: &mut &'a [u8]) -> Option<(u32, WireType, &'a [u8])> {
    let (tag, wire_type) = encoding::decode_key(rest).ok()?;
    let bytes = match wire_type {
        WireType::LengthDelimited => {
            let length = usize::try_from(encoding::decode_varint(rest).ok()?).ok()?;
            take(rest, length)?
        }
        WireType::SixtyFourBit => take(rest, 8)?,
        WireType::ThirtyTwoBit => take(rest, 4)?,
        WireType::Varint => {
            let before = *rest;
            encoding::decode_varint(rest).ok()?;
            &before[..before.len() - rest.len()]
        }
        WireType::StartGroup | WireType::EndGroup => return None,
    };
    Some((tag, wire_type, bytes))
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(taken)
}

fn varint(mut bytes: &[u8]) -> Option<u64> {
    encoding::decode_varint(&mut bytes).ok()
}

/// Puts a feature. None: it is no value, and nothing was put.
fn put_value(name: &[u8], value: &[u8], into: &mut impl Sink) -> Option<()> {
    let (tag, _, bytes) = first_field(value)?;
    match tag {
        1 => put_binary(name, bytes, into),
        2 => put_string(name, bytes, into),
        3 => put_number(INT32, name, &(varint(bytes)? as i32).to_le_bytes(), into),
        4 | 8 => put_number(INT64, name, &varint(bytes)?.to_le_bytes(), into),
        5 => put_number(DOUBLE, name, bytes, into),
        6 => put_number(DOUBLE, name, &widened(bytes)?, into),
        7 => put_number(BOOLEAN, name, &[u8::from(varint(bytes)? != 0)], into),
        11..=18 => put_list(tag, name, bytes, into),
        40 => match is_natural(bytes) {
            true => {
                into.head(DOCUMENT, name);
                put_struct(bytes, into)?;
            }
            false => put_binary(name, bytes, into),
        },
        _ => into.head(NULL, name),
    }
    Some(())
}

fn put_number(element: u8, name: &[u8], bytes: &[u8], into: &mut impl Sink) {
    into.head(element, name);
    into.put_bytes(bytes);
}

fn put_string(name: &[u8], text: &[u8], into: &mut impl Sink) {
    into.head(STRING, name);
    into.put_bytes(&(text.len() as u32 + 1).to_le_bytes());
    into.put_bytes(text);
    into.put_bytes(&[0]);
}

fn put_binary(name: &[u8], bytes: &[u8], into: &mut impl Sink) {
    into.head(BINARY, name);
    into.put_bytes(&(bytes.len() as u32).to_le_bytes());
    into.put_bytes(&[0]); // the generic subtype
    into.put_bytes(bytes);
}

/// A float as BSON has it.
fn widened(float: &[u8]) -> Option<[u8; 8]> {
    Some(widen(f32::from_le_bytes(float.try_into().ok()?)).to_le_bytes())
}

/// Puts a list. Its numbers are packed in one piece, or come one by one.
fn put_list(tag: u32, name: &[u8], mut list: &[u8], into: &mut impl Sink) {
    let begun = into.begin_array(name);
    let mut index = Index::default();
    while let Some((_, wire_type, bytes)) = next_field(&mut list) {
        match (tag, wire_type) {
            (11, _) => put_binary(index.next(), bytes, into),
            (12, _) => put_string(index.next(), bytes, into),
            (_, WireType::LengthDelimited) => {
                let mut packed = bytes;
                if index.is_new() && list.is_empty() && into.elements(count(tag, packed), width(tag)) {
                    break;
                }
                while put_item(tag, &mut packed, &mut index, into).is_some() {}
            }
            (_, _) => {
                let mut single = bytes;
                put_item(tag, &mut single, &mut index, into);
            }
        }
    }
    into.end(begun);
}

/// How many numbers are packed here.
fn count(tag: u32, packed: &[u8]) -> usize {
    match tag {
        15 => packed.len() / 8,
        16 => packed.len() / 4,
        _ => packed.iter().filter(|byte| **byte < 0x80).count(),
    }
}

/// How many bytes of BSON a number of such a list takes.
fn width(tag: u32) -> usize {
    match tag {
        13 => 4,
        17 => 1,
        _ => 8,
    }
}

/// Puts the next number of a list. None: there is none.
fn put_item(tag: u32, packed: &mut &[u8], index: &mut Index, into: &mut impl Sink) -> Option<()> {
    match tag {
        15 => {
            let number = take(packed, 8)?;
            put_number(DOUBLE, index.next(), number, into);
        }
        16 => {
            let number = widened(take(packed, 4)?)?;
            put_number(DOUBLE, index.next(), &number, into);
        }
        _ if packed.is_empty() => return None,
        _ => {
            let number = encoding::decode_varint(packed).ok()?;
            match tag {
                13 => put_number(INT32, index.next(), &(number as i32).to_le_bytes(), into),
                17 => put_number(BOOLEAN, index.next(), &[u8::from(number != 0)], into),
                _ => put_number(INT64, index.next(), &number.to_le_bytes(), into),
            }
        }
    }
    Some(())
}

/// The names of an array's elements: "0", "1" and so on.
pub(super) struct Index {
    digits: [u8; 20],
    /// Where the digits begin; behind the end before the first one.
    first: usize,
}

impl Default for Index {
    fn default() -> Self {
        Self { digits: [b'0'; 20], first: 20 }
    }
}

impl Index {
    fn is_new(&self) -> bool {
        self.first == self.digits.len()
    }

    /// The next name.
    pub(super) fn next(&mut self) -> &[u8] {
        if self.first == 20 {
            self.first = 19;
            return &self.digits[19..];
        }
        for at in (0..20).rev() {
            if self.digits[at] < b'9' {
                self.digits[at] += 1;
                self.first = self.first.min(at);
                break;
            }
            self.digits[at] = b'0';
        }
        &self.digits[self.first..]
    }
}

/// Whether MongoDB can hold a JSON object as a document: every key is safe, and each value has a
/// kind. Depth does not matter, because the limit of protobuf is half of MongoDB's.
fn is_natural(object: &[u8]) -> bool {
    put_struct(object, &mut Size::default()).is_some()
}

fn put_struct(mut object: &[u8], into: &mut impl Sink) -> Option<()> {
    let begun = into.begin();
    while !object.is_empty() {
        let (_, _, mut entry) = next_field(&mut object)?;
        let (mut key, mut value): (&[u8], Option<&[u8]>) = (&[], None);
        while !entry.is_empty() {
            match next_field(&mut entry)? {
                (1, _, bytes) => key = bytes,
                (2, _, bytes) => value = Some(bytes),
                _ => {}
            }
        }
        let is_safe = !key.is_empty() && key[0] != b'$' && !key.iter().any(|byte| matches!(byte, b'.' | 0));
        if !is_safe {
            return None;
        }
        put_json(key, value?, into)?;
    }
    into.end(begun);
    Some(())
}

fn put_json(name: &[u8], value: &[u8], into: &mut impl Sink) -> Option<()> {
    let (tag, _, bytes) = first_field(value)?;
    match tag {
        1 => into.head(NULL, name),
        2 => put_number(DOUBLE, name, bytes, into),
        3 => put_string(name, bytes, into),
        4 => put_number(BOOLEAN, name, &[u8::from(varint(bytes)? != 0)], into),
        5 => {
            into.head(DOCUMENT, name);
            put_struct(bytes, into)?;
        }
        6 => {
            let begun = into.begin_array(name);
            let (mut rest, mut index) = (bytes, Index::default());
            while !rest.is_empty() {
                let (_, _, item) = next_field(&mut rest)?;
                put_json(index.next(), item, into)?;
            }
            into.end(begun);
        }
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests;
