//! `GetFeaturesRequest` as the server reads it: the ids of a batch stay in one buffer. The other
//! fields are as generated.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut};
use prost::{
    DecodeError, Message,
    encoding::{self, DecodeContext, WireType},
};

use super::EntityIds;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct GetFeaturesRequest {
    pub feature_view: String,
    pub entity_ids: EntityIds,
    pub feature_names: Vec<String>,
    pub consistency: i32,
    pub expected_model_version: String,
    pub max_age: Option<prost_types::Duration>,
    pub min_revisions: BTreeMap<String, i64>,
    pub format: i32,
    pub omit_metadata: bool,
}

impl Message for GetFeaturesRequest {
    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        let (field, merged) = match tag {
            1 => ("feature_view", encoding::string::merge(wire_type, &mut self.feature_view, buf, ctx)),
            2 => ("entity_ids", self.entity_ids.merge(tag, wire_type, buf, ctx)),
            3 => ("feature_names", encoding::string::merge_repeated(wire_type, &mut self.feature_names, buf, ctx)),
            4 => ("consistency", encoding::int32::merge(wire_type, &mut self.consistency, buf, ctx)),
            5 => {
                let version = &mut self.expected_model_version;
                ("expected_model_version", encoding::string::merge(wire_type, version, buf, ctx))
            }
            6 => {
                let max_age = self.max_age.get_or_insert_default();
                ("max_age", encoding::message::merge(wire_type, max_age, buf, ctx))
            }
            7 => {
                let (key, value) = (encoding::string::merge, encoding::int64::merge);
                let checked = encoding::check_wire_type(WireType::LengthDelimited, wire_type);
                let map = &mut self.min_revisions;
                ("min_revisions", checked.and_then(|()| encoding::btree_map::merge(key, value, map, buf, ctx)))
            }
            8 => ("format", encoding::int32::merge(wire_type, &mut self.format, buf, ctx)),
            9 => ("omit_metadata", encoding::bool::merge(wire_type, &mut self.omit_metadata, buf, ctx)),
            _ => return encoding::skip_field(wire_type, tag, buf, ctx),
        };
        merged.map_err(|mut error| {
            error.push("GetFeaturesRequest", field);
            error
        })
    }

    fn encode_raw(&self, buf: &mut impl BufMut) {
        if !self.feature_view.is_empty() {
            encoding::string::encode(1, &self.feature_view, buf);
        }
        self.entity_ids.encode(2, buf);
        encoding::string::encode_repeated(3, &self.feature_names, buf);
        if self.consistency != 0 {
            encoding::int32::encode(4, &self.consistency, buf);
        }
        if !self.expected_model_version.is_empty() {
            encoding::string::encode(5, &self.expected_model_version, buf);
        }
        if let Some(max_age) = &self.max_age {
            encoding::message::encode(6, max_age, buf);
        }
        let (key, value) = (encoding::string::encode, encoding::int64::encode);
        let (key_len, value_len) = (encoding::string::encoded_len, encoding::int64::encoded_len);
        encoding::btree_map::encode(key, key_len, value, value_len, 7, &self.min_revisions, buf);
        if self.format != 0 {
            encoding::int32::encode(8, &self.format, buf);
        }
        if self.omit_metadata {
            encoding::bool::encode(9, &self.omit_metadata, buf);
        }
    }

    fn encoded_len(&self) -> usize {
        let mut len = self.entity_ids.encoded_len(2) + encoding::string::encoded_len_repeated(3, &self.feature_names);
        if !self.feature_view.is_empty() {
            len += encoding::string::encoded_len(1, &self.feature_view);
        }
        if self.consistency != 0 {
            len += encoding::int32::encoded_len(4, &self.consistency);
        }
        if !self.expected_model_version.is_empty() {
            len += encoding::string::encoded_len(5, &self.expected_model_version);
        }
        if let Some(max_age) = &self.max_age {
            len += encoding::message::encoded_len(6, max_age);
        }
        let (key_len, value_len) = (encoding::string::encoded_len, encoding::int64::encoded_len);
        len += encoding::btree_map::encoded_len(key_len, value_len, 7, &self.min_revisions);
        if self.format != 0 {
            len += encoding::int32::encoded_len(8, &self.format);
        }
        if self.omit_metadata {
            len += encoding::bool::encoded_len(9, &self.omit_metadata);
        }
        len
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost_types::FileDescriptorSet;

    use super::*;
    use crate::{fuzzing::client, proto::DESCRIPTORS};

    prop_compose! {
        fn requests()(
            feature_view in "[a-z]{0,3}",
            entity_ids in prop::collection::vec("\\PC{0,200}", 0..9),
            feature_names in prop::collection::vec(".{0,3}", 0..4),
            (consistency, format, omit_metadata) in any::<(i32, i32, bool)>(),
            expected_model_version in ".{0,3}",
            max_age in prop::option::of(any::<(i64, i32)>()),
            min_revisions in prop::collection::btree_map(".{0,3}", any::<i64>(), 0..4),
        ) -> client::GetFeaturesRequest {
            let max_age = max_age.map(|(seconds, nanos)| prost_types::Duration { seconds, nanos });
            client::GetFeaturesRequest {
                feature_view, entity_ids, feature_names, consistency, expected_model_version, max_age, min_revisions, format,
                omit_metadata,
            }
        }
    }

    proptest! {
        #[test]
        fn it_is_what_clients_send(sent in requests()) {
            let wire = sent.encode_to_vec();
            let read = GetFeaturesRequest::decode(&wire[..]).unwrap();
            prop_assert_eq!(read.encoded_len(), wire.len());
            prop_assert_eq!(&read.encode_to_vec(), &wire);
            // Frames may split the message anywhere, also within an id.
            let (first, second) = wire.split_at(wire.len() / 2);
            prop_assert_eq!(&GetFeaturesRequest::decode(first.chain(second)).unwrap(), &read);
            let client::GetFeaturesRequest { entity_ids, .. } = sent;
            prop_assert!(read.entity_ids.iter().eq(entity_ids.iter().map(String::as_bytes)));
            prop_assert_eq!(read.entity_ids.len(), entity_ids.len());
            let texts: Vec<_> = read.entity_ids.to_texts().unwrap().collect();
            prop_assert!(texts.iter().map(|text| text.as_str()).eq(entity_ids.iter().map(String::as_str)));
        }

        #[test]
        fn any_bytes_are_read_as_the_generated_code_reads_them(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let ours = GetFeaturesRequest::decode(&bytes[..]);
            match client::GetFeaturesRequest::decode(&bytes[..]) {
                Ok(theirs) => prop_assert_eq!(ours.unwrap().encode_to_vec(), theirs.encode_to_vec()),
                // Ids that are not UTF-8 are detected later, after errors that stand behind them.
                Err(why) => match ours {
                    Err(_) if why.to_string().contains("entity_ids: invalid string value") => {}
                    Err(ours) => prop_assert_eq!(ours.to_string(), why.to_string()),
                    Ok(ours) => prop_assert!(ours.entity_ids.to_texts().is_none(), "{}", why),
                },
            }
        }
    }

    #[test]
    fn an_id_that_is_cut_off_is_an_error_and_takes_no_memory() {
        let error = GetFeaturesRequest::decode(&[0x12, 0xff, 0xff, 0xff, 0xff, 0x0f, b'a'][..]).unwrap_err();
        assert_eq!(
            error.to_string(),
            client::GetFeaturesRequest::decode(&[0x12, 2, b'a'][..]).unwrap_err().to_string()
        );
    }

    #[test]
    fn every_field_of_the_proto_is_read() {
        let files = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
        let message = files.file.iter().flat_map(|file| &file.message_type).find(|m| m.name() == "GetFeaturesRequest");
        let fields: Vec<_> = message.unwrap().field.iter().map(|field| (field.number(), field.name())).collect();
        let known = [
            (1, "feature_view"),
            (2, "entity_ids"),
            (3, "feature_names"),
            (4, "consistency"),
            (5, "expected_model_version"),
            (6, "max_age"),
            (7, "min_revisions"),
            (8, "format"),
            (9, "omit_metadata"),
        ];
        assert_eq!(fields, known, "a field was added: read it here too");
    }
}
