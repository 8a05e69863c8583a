//! The replies of Redis (RESP2, https://redis.io/docs/latest/develop/reference/protocol-spec) that
//! reads can get: lines, bulk strings, and arrays of bulk strings. An incomplete reply is continued
//! where it ended, so a large one is parsed once, in however many pieces it arrives.
//!
//! If an array exceeds the limit of a batch, its first strings are returned as soon as that is
//! known, and the rest is dropped as it arrives. So a connection never holds more than a batch and
//! one string.

use bytes::{Buf as _, Bytes, BytesMut};

use crate::cache::BATCH_BYTES;

/// The longest string. Ours are shorter: no record is larger than its request.
const MAX_STRING: usize = 512 << 20;
/// More than a batch can ask for.
const MAX_ARRAY: usize = 1 << 20;

/// One reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cache::redis) enum Reply {
    /// A status or a number.
    Line(String),
    /// An error.
    Error(String),
    /// A string; None: there is none.
    Bulk(Option<Bytes>),
    /// Of strings.
    Array(Vec<Option<Bytes>>),
    /// The first strings of an array that exceeds the limit. At least one of them is present.
    Part(Vec<Option<Bytes>>),
}

/// The bytes are no reply that a read can get.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::cache::redis) struct NotRedis;

/// Reads replies from a stream of bytes.
#[derive(Debug, Default)]
pub(in crate::cache::redis) struct Replies {
    /// The array that is being read.
    array: Option<Incoming>,
    /// How many strings are still to be dropped, and how many bytes of the first one, with its end.
    too_many: usize,
    too_much: usize,
    /// Bytes that were dropped.
    dropped: usize,
}

#[derive(Debug)]
struct Incoming {
    strings: Vec<Option<Bytes>>,
    /// Strings still to come.
    left: usize,
    bytes: usize,
}

/// The length of a string (None: there is none), and of the line that announces it.
type Head = (Option<usize>, usize);
/// A line without its end, and the length of both.
type Taken<'a> = (&'a [u8], usize);

impl Replies {
    /// Removes the next whole reply from the buffer. None: it is not complete.
    pub(in crate::cache::redis) fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Reply>, NotRedis> {
        if !self.drop_too_much(buffer)? {
            return Ok(None);
        }
        if self.array.is_none() {
            let Some((line, len)) = first_line(buffer)? else { return Ok(None) };
            let (kind, text) = line.split_first().ok_or(NotRedis)?;
            match kind {
                b'*' => {
                    let count = usize::try_from(number(text)?).ok().filter(|count| *count <= MAX_ARRAY);
                    let count = count.ok_or(NotRedis)?;
                    buffer.advance(len);
                    self.array = Some(Incoming { strings: Vec::with_capacity(count), left: count, bytes: 0 });
                }
                b'$' => {
                    let Some(head) = string_head(buffer)? else { return Ok(None) };
                    return Ok(string(buffer, head)?.map(Reply::Bulk));
                }
                b'+' | b':' | b'-' => {
                    let text = String::from_utf8_lossy(text).into_owned();
                    let reply = if *kind == b'-' { Reply::Error(text) } else { Reply::Line(text) };
                    buffer.advance(len);
                    return Ok(Some(reply));
                }
                _ => return Err(NotRedis),
            }
        }
        let Some(array) = &mut self.array else { return Ok(None) };
        while array.left > 0 {
            let Some(head) = string_head(buffer)? else { return Ok(None) };
            let len = head.0.unwrap_or(0);
            if array.bytes > 0 && array.bytes + len > BATCH_BYTES {
                self.too_many = array.left;
                return Ok(self.array.take().map(|array| Reply::Part(array.strings)));
            }
            let Some(string) = string(buffer, head)? else { return Ok(None) };
            array.strings.push(string);
            array.bytes += len;
            array.left -= 1;
        }
        Ok(self.array.take().map(|array| Reply::Array(array.strings)))
    }

    /// Bytes that were dropped since the last call.
    pub(in crate::cache::redis) fn take_dropped(&mut self) -> usize {
        std::mem::take(&mut self.dropped)
    }

    /// Drops strings beyond the limit. False: more of them must come first.
    fn drop_too_much(&mut self, buffer: &mut BytesMut) -> Result<bool, NotRedis> {
        while self.too_many > 0 {
            if self.too_much == 0 {
                let Some((len, head)) = string_head(buffer)? else { return Ok(false) };
                self.too_much = head + len.map_or(0, |len| len + 2);
            }
            let here = self.too_much.min(buffer.len());
            buffer.advance(here);
            self.dropped += here;
            self.too_much -= here;
            if self.too_much > 0 {
                return Ok(false);
            }
            self.too_many -= 1;
        }
        Ok(true)
    }
}

/// Reads the line that announces a string. None: it is not complete.
fn string_head(buffer: &[u8]) -> Result<Option<Head>, NotRedis> {
    let Some((line, head)) = first_line(buffer)? else { return Ok(None) };
    let (b'$', text) = line.split_first().ok_or(NotRedis)? else { return Err(NotRedis) };
    let len = match number(text)? {
        -1 => None,
        len => Some(usize::try_from(len).ok().filter(|len| *len <= MAX_STRING).ok_or(NotRedis)?),
    };
    Ok(Some((len, head)))
}

/// The string at the beginning of the buffer, without a copy. None: it is not complete.
#[expect(clippy::option_option, reason = "not yet there, and not there at all")]
fn string(buffer: &mut BytesMut, (len, head): Head) -> Result<Option<Option<Bytes>>, NotRedis> {
    let Some(len) = len else {
        buffer.advance(head);
        return Ok(Some(None));
    };
    let whole = head + len + 2;
    if buffer.len() < whole {
        // Makes room for the rest at once, so that it is not moved again and again.
        buffer.reserve(whole - buffer.len());
        return Ok(None);
    }
    buffer.advance(head);
    let string = buffer.split_to(len).freeze();
    if !buffer.starts_with(b"\r\n") {
        return Err(NotRedis);
    }
    buffer.advance(2);
    Ok(Some(Some(string)))
}

fn first_line(buffer: &[u8]) -> Result<Option<Taken<'_>>, NotRedis> {
    // Sizes are short lines, and errors are not long.
    const MAX_LINE: usize = 64 << 10;
    let Some(end) = buffer.iter().take(MAX_LINE).position(|byte| *byte == b'\n') else {
        return if buffer.len() < MAX_LINE { Ok(None) } else { Err(NotRedis) };
    };
    let line = buffer[..end].strip_suffix(b"\r").ok_or(NotRedis)?;
    Ok(Some((line, end + 1)))
}

fn number(text: &[u8]) -> Result<i64, NotRedis> {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(NotRedis)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIRE: &[u8] =
        b"+OK\r\n*3\r\n$3\r\na\r\n\r\n$-1\r\n$0\r\n\r\n:7\r\n-LOADING wait\r\n$-1\r\n*0\r\n$2\r\nhi\r\n";

    fn expected() -> Vec<Reply> {
        let bytes = |text: &'static str| Some(Bytes::from_static(text.as_bytes()));
        vec![
            Reply::Line("OK".to_owned()),
            Reply::Array(vec![bytes("a\r\n"), None, bytes("")]),
            Reply::Line("7".to_owned()),
            Reply::Error("LOADING wait".to_owned()),
            Reply::Bulk(None),
            Reply::Array(Vec::new()),
            Reply::Bulk(bytes("hi")),
        ]
    }

    #[test]
    fn replies_are_the_same_however_they_are_cut() {
        for piece in 1..=WIRE.len() {
            let (mut buffer, mut replies, mut seen) = (BytesMut::new(), Replies::default(), Vec::new());
            for part in WIRE.chunks(piece) {
                buffer.extend_from_slice(part);
                while let Some(reply) = replies.next(&mut buffer).unwrap() {
                    seen.push(reply);
                }
            }
            assert_eq!(seen, expected(), "in pieces of {piece}");
            assert!(buffer.is_empty());
        }
    }

    #[test]
    fn of_an_array_that_is_too_large_the_first_strings_are_given_and_the_others_dropped_as_they_come() {
        const LEN: usize = BATCH_BYTES / 4 + 1;
        let string = [format!("${LEN}\r\n").into_bytes(), vec![b'x'; LEN], b"\r\n".to_vec()].concat();
        let wire = [b"*9\r\n$-1\r\n".to_vec(), string.repeat(7), b"$-1\r\n".to_vec(), b"+OK\r\n".to_vec()].concat();
        let (mut buffer, mut replies, mut seen, mut dropped) = (BytesMut::new(), Replies::default(), Vec::new(), 0);
        for (at, part) in wire.chunks(100_000).enumerate() {
            buffer.extend_from_slice(part);
            while let Some(reply) = replies.next(&mut buffer).unwrap() {
                seen.push(reply);
                if seen.len() == 1 {
                    assert!(at * 100_000 < 5 * string.len(), "as soon as it is known");
                }
            }
            dropped += replies.take_dropped();
            assert!(seen.is_empty() || buffer.len() < 100, "nothing of it is kept");
        }
        let Reply::Part(first) = &seen[0] else { panic!("{:?}", seen[0]) };
        let lengths: Vec<_> = first.iter().map(|string| string.as_ref().map(Bytes::len)).collect();
        assert_eq!(lengths, [None, Some(LEN), Some(LEN), Some(LEN)]);
        assert_eq!(seen[1..], [Reply::Line("OK".to_owned())]);
        assert_eq!(dropped, 4 * string.len() + b"$-1\r\n".len());
    }

    #[test]
    fn the_first_string_is_given_however_large_it_is() {
        let wire = [format!("*1\r\n${}\r\n", 2 * BATCH_BYTES).into_bytes(), vec![b'x'; 2 * BATCH_BYTES]].concat();
        let (mut buffer, mut replies) = (BytesMut::from(&wire[..]), Replies::default());
        assert_eq!(replies.next(&mut buffer), Ok(None));
        buffer.extend_from_slice(b"\r\n");
        let Ok(Some(Reply::Array(strings))) = replies.next(&mut buffer) else { panic!("not whole") };
        assert_eq!(strings[0].as_ref().map(Bytes::len), Some(2 * BATCH_BYTES));
    }

    #[test]
    fn what_is_no_reply_is_refused() {
        for wire in [
            "hello\r\n",
            "\r\n",
            "$x\r\n",
            "*-1\r\n",
            "*1\r\n:1\r\n",
            "$1\r\nabc",
            "+OK\n",
            "$999999999999\r\n",
            "$-2\r\n",
        ] {
            let mut buffer = BytesMut::from(wire);
            assert_eq!(Replies::default().next(&mut buffer), Err(NotRedis), "{wire:?}");
        }
    }
}
