//! Fuzzes the replies and addresses of Redis: the bytes of an L1 entry, replies in pieces, URLs.

use bytes::{Bytes, BytesMut};
use deadpool_redis::redis::{Value, parse_redis_value};

use super::{
    RedisConfig, entry,
    reader::{NotRedis, Replies, Reply},
    scripts,
};
use crate::{
    cache::{CacheKey, Epoch},
    fuzzing::Input,
    record::{EntityId, FeatureView, RecordKey},
};

/// Used as a password.
const SECRET: &str = "c4n4ry";

/// The bytes of an entry, as they are, and with a correct version and checksum.
pub fn packed(data: &[u8]) {
    let key = RecordKey {
        view: FeatureView::parse("").expect("the default"),
        entity_id: EntityId::parse("CUST1").expect("a good id"),
    };
    let key = CacheKey::new(Epoch(7), &key);
    let _ = entry::unpack(&key, Bytes::copy_from_slice(data));

    let packed = entry::summed(&key, data.to_vec());
    let value = entry::unpack(&key, packed.clone());
    if let Some(value) = &value {
        assert!(!entry::is_pending(&packed));
        assert_eq!(entry::unpack(&key, entry::pack(&key, value).freeze()).as_ref(), Some(value));
    }
    // The same bytes in the reply of a script.
    for word in ["HIT", "LEASE", "NOFILL", "?"] {
        let reply = [Value::SimpleString(word.to_owned()), Value::BulkString(packed.to_vec())];
        let acquired = scripts::acquired(&key, Value::Array(reply.into()));
        assert_eq!(acquired.is_some(), value.is_some() && word != "?");
    }
}

/// What a server sends: sizes of pieces, then the bytes. However they are cut, the replies must be
/// the same, and a whole string or array must be what the library reads too.
pub fn replies(data: &[u8]) {
    let mut input = Input::new(data);
    let sizes: Vec<usize> = input.piece().iter().map(|size| usize::from(*size) + 1).collect();
    let wire = input.rest();

    let (mut whole, mut end) = (Vec::new(), Ok(()));
    let (mut buffer, mut replies) = (BytesMut::from(wire), Replies::default());
    let mut from = 0;
    loop {
        match replies.next(&mut buffer) {
            Ok(Some(reply)) => {
                let to = wire.len() - buffer.len();
                assert!(to > from, "a reply of nothing");
                check_against_library(&reply, &wire[from..to]);
                from = to;
                whole.push(reply);
            }
            Ok(None) => break,
            Err(refused) => {
                end = Err(refused);
                break;
            }
        }
    }

    assert_eq!((&whole, &end), (&in_pieces(wire, &[1]).0, &in_pieces(wire, &[1]).1), "byte by byte");
    if !sizes.is_empty() {
        let cut = in_pieces(wire, &sizes);
        assert_eq!((whole, end), cut, "in pieces of {sizes:?}");
    }
}

fn in_pieces(wire: &[u8], sizes: &[usize]) -> (Vec<Reply>, Result<(), NotRedis>) {
    let (mut buffer, mut replies, mut seen) = (BytesMut::new(), Replies::default(), Vec::new());
    let (mut rest, mut sizes) = (wire, sizes.iter().cycle());
    while !rest.is_empty() {
        let (piece, tail) = rest.split_at(sizes.next().map_or(1, |size| *size).min(rest.len()));
        buffer.extend_from_slice(piece);
        rest = tail;
        loop {
            match replies.next(&mut buffer) {
                Ok(Some(reply)) => seen.push(reply),
                Ok(None) => break,
                Err(refused) => return (seen, Err(refused)),
            }
        }
    }
    (seen, Ok(()))
}

fn check_against_library(reply: &Reply, wire: &[u8]) {
    let strings = match reply {
        Reply::Line(_) | Reply::Error(_) => return,
        Reply::Bulk(string) => std::slice::from_ref(string),
        Reply::Array(strings) => &strings[..],
        Reply::Part(_) => return,
    };
    let value = |string: &Option<Bytes>| string.as_ref().map_or(Value::Nil, |bytes| Value::BulkString(bytes.to_vec()));
    let mut expected: Vec<Value> = strings.iter().map(value).collect();
    let expected = match reply {
        Reply::Array(_) => Value::Array(expected),
        _ => expected.pop().expect("there is one"),
    };
    // The library rejects some numbers that we accept, such as +1.
    if let Ok(seen) = parse_redis_value(wire) {
        assert_eq!(seen, expected);
    }
}

/// An address with a password, which must never be shown, however wrong the address is.
pub fn redis_url(data: &[u8]) {
    let _ = RedisConfig::parse(&String::from_utf8_lossy(data));

    let mut input = Input::new(data);
    let schemes = ["redis", "rediss", "redis-sentinel", "rediss-sentinel", "redis-cluster", "rediss-cluster"];
    let (scheme, user) = (input.one_of(&schemes), input.text());
    let (before, after) = (input.text(), input.text());
    let user: String = user.chars().filter(|c| c.is_ascii_alphanumeric()).collect();
    let url = format!("{scheme}://{user}:{before}{SECRET}{after}@{}", String::from_utf8_lossy(input.rest()));
    match RedisConfig::parse(&url) {
        Ok(config) => {
            let shown = format!("{} {config:?} {}", config.address(), config.kind());
            assert!(!shown.contains(SECRET), "{url} is shown as {shown}");
        }
        Err(refused) => assert!(!refused.to_string().contains(SECRET), "{refused}"),
    }
}
