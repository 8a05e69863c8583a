//! Redis' replies (RESP2, https://redis.io/docs/latest/develop/reference/protocol-spec) as far as reads meet them: lines,
//! bulk strings, and arrays of bulk strings. A reply that is cut off goes on where it was cut, so that a large one is
//! looked at once, however many pieces it comes in.

use bytes::{Buf as _, Bytes, BytesMut};

/// A string of more than this is none of ours: no record is larger than its request.
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
}

/// What came is no reply that reads meet.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::cache::redis) struct NotRedis;

/// Takes replies off a stream of bytes.
#[derive(Debug, Default)]
pub(in crate::cache::redis) struct Replies {
    /// The array that is being read, and how many of its strings are still to come.
    array: Option<(Vec<Option<Bytes>>, usize)>,
}

/// A line without its end, and how many bytes both have.
type Taken<'a> = (&'a [u8], usize);

impl Replies {
    /// The next whole reply, which is then gone from the buffer; None: more has to come.
    pub(in crate::cache::redis) fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Reply>, NotRedis> {
        if self.array.is_none() {
            let Some((line, len)) = first_line(buffer)? else { return Ok(None) };
            let (kind, text) = line.split_first().ok_or(NotRedis)?;
            match kind {
                b'*' => {
                    let count = usize::try_from(number(text)?).ok().filter(|count| *count <= MAX_ARRAY);
                    let count = count.ok_or(NotRedis)?;
                    buffer.advance(len);
                    self.array = Some((Vec::with_capacity(count), count));
                }
                b'$' => return Ok(bulk(buffer)?.map(Reply::Bulk)),
                b'+' | b':' | b'-' => {
                    let text = String::from_utf8_lossy(text).into_owned();
                    let reply = if *kind == b'-' { Reply::Error(text) } else { Reply::Line(text) };
                    buffer.advance(len);
                    return Ok(Some(reply));
                }
                _ => return Err(NotRedis),
            }
        }
        let Some((strings, left)) = &mut self.array else { return Ok(None) };
        while *left > 0 {
            let Some(string) = bulk(buffer)? else { return Ok(None) };
            strings.push(string);
            *left -= 1;
        }
        Ok(self.array.take().map(|(strings, _)| Reply::Array(strings)))
    }
}

/// The string at the beginning of the buffer, without a copy; None: more has to come.
#[expect(clippy::option_option, reason = "not yet there, and not there at all")]
fn bulk(buffer: &mut BytesMut) -> Result<Option<Option<Bytes>>, NotRedis> {
    let Some((line, head)) = first_line(buffer)? else { return Ok(None) };
    let (b'$', text) = line.split_first().ok_or(NotRedis)? else { return Err(NotRedis) };
    let len = match number(text)? {
        -1 => {
            buffer.advance(head);
            return Ok(Some(None));
        }
        len => usize::try_from(len).ok().filter(|len| *len <= MAX_STRING).ok_or(NotRedis)?,
    };
    let whole = head + len + 2;
    if buffer.len() < whole {
        // So that the rest fits, and is not moved for it again and again.
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
