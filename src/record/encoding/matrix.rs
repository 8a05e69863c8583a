//! Features as numbers: one row of a matrix, read from the stored bytes without decoding a `Value`.

use prost::encoding::{self, WireType};

use super::{
    Corrupt, FeatureEntry, StoredRecord,
    places::{Places, Wanted},
    take_delimited,
};
use crate::record::{FeatureName, float32::widen};

/// The content of one cell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cell {
    /// A floating-point number, or a bool as 0 or 1.
    Number(f64),
    /// An integer. It may need more bits than a double has, and is rounded once, to the requested
    /// type.
    Integer(i64),
    /// A stored null.
    Null,
    /// A string, bytes, a list or a struct.
    NotNumeric,
    /// The record has no such feature.
    Missing,
}

/// The requested columns, prepared once for each call.
#[derive(Clone, Debug)]
pub struct Columns {
    /// Sorted by name. A name that is requested twice is two columns.
    wanted: Vec<Wanted>,
}

impl Columns {
    /// With these names, in this order.
    pub fn new(names: &[FeatureName]) -> Self {
        Self { wanted: Wanted::all(names) }
    }

    /// The number of columns.
    pub fn count(&self) -> usize {
        self.wanted.len()
    }

    /// Overwrites `row` with the cells of a record, in the order of the columns. All rows of a call
    /// share `places`.
    pub fn read(&self, record: &StoredRecord, places: &mut Places, row: &mut [Cell]) -> Result<(), Corrupt> {
        let take = |wanted: &Wanted, _: &[u8], rest: &[u8]| {
            let (len, value) = rest.split_first()?;
            // Numbers are short. Anything longer, or with more than a value, is left to the search.
            let is_value = *len < 0x80 && usize::from(*len) == value.len();
            row[wanted.place] = cell(is_value.then_some(value)?).ok()?;
            Some(())
        };
        if places.step(record, &self.wanted, take).is_some() {
            return Ok(());
        }
        row.fill(Cell::Missing);
        let take = |wanted: &Wanted, entry: FeatureEntry<'_>| {
            row[wanted.place] = cell(entry.value)?;
            Ok(())
        };
        places.search(record, &self.wanted, take, |_| {})
    }
}

/// The number in an encoded `Value`, by its field number.
fn cell(value: &[u8]) -> Result<Cell, Corrupt> {
    const CUT_OFF: Corrupt = Corrupt("a value is cut off");
    let mut rest = value;
    let (kind, wire_type) = encoding::decode_key(&mut rest).map_err(|_| CUT_OFF)?;
    let number = match (kind, wire_type) {
        // int32_val, int64_val, unix_timestamp_val; a negative int32 has 64 bits on the wire.
        (3 | 4 | 8, WireType::Varint) => {
            return encoding::decode_varint(&mut rest).map(|number| Cell::Integer(number as i64)).map_err(|_| CUT_OFF);
        }
        (5, WireType::SixtyFourBit) => f64::from_le_bytes(rest.try_into().map_err(|_| CUT_OFF)?),
        (6, WireType::ThirtyTwoBit) => widen(f32::from_le_bytes(rest.try_into().map_err(|_| CUT_OFF)?)),
        (7, WireType::Varint) => f64::from(encoding::decode_varint(&mut rest).map_err(|_| CUT_OFF)? != 0),
        (19, WireType::Varint) => return Ok(Cell::Null),
        (_, WireType::LengthDelimited) => {
            return take_delimited(&mut rest).map(|_| Cell::NotNumeric).ok_or(CUT_OFF);
        }
        _ => return Err(Corrupt("a value is of no known kind")),
    };
    Ok(Cell::Number(number))
}
