//! `FeatureRecord` as the server receives it: features stay encoded if they arrive as they would be
//! stored. Most do, and a bulk load would spend much of its time on decoding them.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut};
use prost::{
    DecodeError, Message,
    encoding::{self, DecodeContext, WireType},
};
use prost_types::{Duration, Timestamp};

use super::encoding::{FeatureEntry, PlainFeatures};
use crate::proto::Value;

/// See the .proto file.
#[allow(missing_docs, reason = "the documentation is in the .proto file")]
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FeatureRecord {
    pub entity_id: String,
    pub features: GivenFeatures,
    pub model_version: String,
    pub event_time: Option<Timestamp>,
    pub ttl: Option<Duration>,
    pub never_expires: bool,
    pub write_mode: i32,
    pub if_revision: Option<i64>,
}

/// The received features of a record.
#[derive(Clone, Debug, PartialEq)]
pub enum GivenFeatures {
    /// Checked, and encoded as they are stored.
    Plain(PlainFeatures),
    /// At least one has another kind or encoding, or is not allowed.
    Decoded(BTreeMap<String, Value>),
}

impl Default for GivenFeatures {
    fn default() -> Self {
        Self::Plain(PlainFeatures::default())
    }
}

impl GivenFeatures {
    /// The decoded features.
    pub fn into_map(self) -> BTreeMap<String, Value> {
        match self {
            Self::Decoded(map) => map,
            Self::Plain(plain) => {
                let feature = |entry: FeatureEntry<'_>| {
                    let name = std::str::from_utf8(entry.name).ok()?.to_owned();
                    Some((name, Value::decode(entry.value).ok()?))
                };
                // All were checked, so none is left out.
                plain.entries().flatten().filter_map(feature).collect()
            }
        }
    }

    /// Reads a map entry, which follows its tag in `buf`.
    fn merge(&mut self, buf: &mut impl Buf, ctx: DecodeContext) -> Result<(), DecodeError> {
        if let Self::Plain(plain) = self {
            let mut chunk = buf.chunk();
            let len = encoding::decode_varint(&mut chunk).ok().and_then(|len| usize::try_from(len).ok());
            if let Some(body) = len.and_then(|len| chunk.get(..len))
                && plain.take(body)
            {
                let taken = buf.chunk().len() - chunk.len() + body.len();
                buf.advance(taken);
                return Ok(());
            }
            *self = Self::Decoded(std::mem::take(self).into_map());
        }
        let Self::Decoded(map) = self else { return Ok(()) };
        encoding::btree_map::merge(encoding::string::merge, encoding::message::merge, map, buf, ctx)
    }
}

impl FromIterator<(String, Value)> for GivenFeatures {
    fn from_iter<I: IntoIterator<Item = (String, Value)>>(features: I) -> Self {
        Self::Decoded(features.into_iter().collect())
    }
}

impl Message for FeatureRecord {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        if !self.entity_id.is_empty() {
            encoding::string::encode(1, &self.entity_id, buf);
        }
        let (features, string, value) =
            (self.features.clone().into_map(), encoding::string::encode, encoding::message::encode);
        encoding::btree_map::encode(
            string,
            encoding::string::encoded_len,
            value,
            encoding::message::encoded_len,
            2,
            &features,
            buf,
        );
        if !self.model_version.is_empty() {
            encoding::string::encode(3, &self.model_version, buf);
        }
        if let Some(at) = &self.event_time {
            encoding::message::encode(4, at, buf);
        }
        if let Some(ttl) = &self.ttl {
            encoding::message::encode(5, ttl, buf);
        }
        if self.never_expires {
            encoding::bool::encode(6, &self.never_expires, buf);
        }
        if self.write_mode != 0 {
            encoding::int32::encode(7, &self.write_mode, buf);
        }
        if let Some(revision) = &self.if_revision {
            encoding::int64::encode(8, revision, buf);
        }
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        let named = |field: &'static str| {
            move |mut error: DecodeError| {
                error.push("FeatureRecord", field);
                error
            }
        };
        match tag {
            1 => encoding::string::merge(wire_type, &mut self.entity_id, buf, ctx).map_err(named("entity_id")),
            2 => {
                let checked = encoding::check_wire_type(WireType::LengthDelimited, wire_type);
                checked.and_then(|()| self.features.merge(buf, ctx)).map_err(named("features"))
            }
            3 => encoding::string::merge(wire_type, &mut self.model_version, buf, ctx).map_err(named("model_version")),
            4 => {
                let at = self.event_time.get_or_insert_default();
                encoding::message::merge(wire_type, at, buf, ctx).map_err(named("event_time"))
            }
            5 => {
                let ttl = self.ttl.get_or_insert_default();
                encoding::message::merge(wire_type, ttl, buf, ctx).map_err(named("ttl"))
            }
            6 => encoding::bool::merge(wire_type, &mut self.never_expires, buf, ctx).map_err(named("never_expires")),
            7 => encoding::int32::merge(wire_type, &mut self.write_mode, buf, ctx).map_err(named("write_mode")),
            8 => {
                let revision = self.if_revision.get_or_insert_default();
                encoding::int64::merge(wire_type, revision, buf, ctx).map_err(named("if_revision"))
            }
            _ => encoding::skip_field(wire_type, tag, buf, ctx),
        }
    }

    fn encoded_len(&self) -> usize {
        // Servers only receive records, so this need not be fast.
        let mut count = Vec::new();
        self.encode_raw(&mut count);
        count.len()
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{
        fuzzing::client,
        proto::{DoubleList, FloatList, Int64List, value::Kind},
        record::{FeatureName, encoding::EncodedFeatures},
    };

    fn kinds() -> impl Strategy<Value = Kind> {
        let number = || prop_oneof![any::<f64>(), Just(f64::NAN), Just(0.0)];
        prop_oneof![
            number().prop_map(Kind::DoubleVal),
            vec(any::<u8>(), 0..200).prop_map(|bytes| Kind::BytesVal(bytes.into())),
            ".{0,60}".prop_map(Kind::StringVal),
            any::<i32>().prop_map(Kind::Int32Val),
            any::<i64>().prop_map(Kind::Int64Val),
            any::<f32>().prop_map(Kind::FloatVal),
            any::<bool>().prop_map(Kind::BoolVal),
            any::<i64>().prop_map(Kind::UnixTimestampVal),
            vec(number(), 0..20).prop_map(|val| Kind::DoubleListVal(DoubleList { val })),
            vec(any::<f32>(), 0..40).prop_map(|val| Kind::FloatListVal(FloatList { val })),
            vec(any::<i64>(), 0..4).prop_map(|val| Kind::Int64ListVal(Int64List { val })),
            Just(Kind::NullVal(0)),
        ]
    }

    /// The bytes of a record with features in any order, some of them twice, perhaps with an error.
    fn wire() -> impl Strategy<Value = Vec<u8>> {
        let name = prop_oneof![
            9 => "[a-c]{1,2}",
            1 => prop_oneof!["[a-z]{120,130}", Just("b.d".to_owned()), Just(String::new())],
        ];
        let feature = (name, proptest::option::weighted(0.97, kinds()));
        let damage = proptest::option::weighted(0.3, (any::<prop::sample::Index>(), any::<u8>()));
        (vec(feature, 0..12), damage).prop_map(|(features, damage)| {
            let mut bytes = FeatureRecord { entity_id: "id".to_owned(), ..Default::default() }.encode_to_vec();
            for (name, kind) in features {
                let features = [(name, Value { kind })].into_iter().collect();
                bytes.extend(FeatureRecord { features, ..Default::default() }.encode_to_vec());
            }
            if let Some((at, byte)) = damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn it_takes_what_the_generated_code_would(bytes in wire()) {
            let expected = client::FeatureRecord::decode(&*bytes);
            let record = FeatureRecord::decode(&*bytes);
            prop_assert_eq!(record.as_ref().err(), expected.as_ref().err());
            let (Ok(record), Ok(expected)) = (record, expected) else { return Ok(()) };
            prop_assert_eq!(record.encode_to_vec(), expected.encode_to_vec());
            if let GivenFeatures::Plain(plain) = &record.features {
                let feature = |(name, value): (String, Value)| (FeatureName::parse(&name).expect("it was checked"), value);
                let decoded = record.features.clone().into_map();
                let stored = plain.clone().finish();
                prop_assert_eq!(stored.count(), decoded.len());
                prop_assert_eq!(stored, decoded.into_iter().map(feature).collect::<EncodedFeatures>());
            }
        }
    }

    #[test]
    fn features_of_another_wire_type_are_refused_and_not_read_as_something_else() {
        let wire = [2 << 3, 4, 1 << 3 | 2, 0, 2 << 3 | 2, 0];
        assert_eq!(FeatureRecord::decode(&wire[..]).err(), client::FeatureRecord::decode(&wire[..]).err());
    }

    #[test]
    fn plain_features_are_not_decoded() {
        let plain = [("b", Kind::DoubleVal(1.0)), ("a", Kind::StringVal("ü".into())), ("c", Kind::Int32Val(-1))];
        let struct_val = || Kind::StructVal(prost_types::Struct::default());
        let record = |kinds: &[(&str, Kind)]| {
            let value = |(name, kind): &(&str, Kind)| ((*name).to_owned(), Value { kind: Some(kind.clone()) });
            let record = FeatureRecord { features: kinds.iter().map(value).collect(), ..Default::default() };
            FeatureRecord::decode(&*record.encode_to_vec()).unwrap()
        };
        assert!(matches!(record(&plain).features, GivenFeatures::Plain(_)));
        assert!(matches!(record(&[("a", struct_val())]).features, GivenFeatures::Decoded(_)));
    }
}
