//! Features as numbers: one row of a matrix, read off the stored bytes without decoding a `Value`.

use prost::encoding::{self, WireType};

use super::{Corrupt, StoredRecord, take_delimited};
use crate::record::FeatureName;

/// What stands in one cell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cell {
    /// A number; integers beyond 2^53 are the nearest double.
    Number(f64),
    /// A stored null.
    Null,
    /// A string, bytes, a list or a struct.
    NotNumeric,
    /// The record has no such feature.
    Missing,
}

/// The columns that a read asked for, made ready once per call.
#[derive(Clone, Debug)]
pub struct Columns {
    /// Sorted by name; a name asked for twice is two columns.
    wanted: Vec<(FeatureName, usize)>,
}

impl Columns {
    /// Of these names, in this order.
    pub fn new(names: &[FeatureName]) -> Self {
        let mut wanted: Vec<_> = names.iter().cloned().enumerate().map(|(column, name)| (name, column)).collect();
        wanted.sort();
        Self { wanted }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.wanted.len()
    }

    /// One row of cells, in the order of the columns; `row` is overwritten and has one place a column.
    pub fn read(&self, record: &StoredRecord, row: &mut [Cell]) -> Result<(), Corrupt> {
        row.fill(Cell::Missing);
        let mut wanted = self.wanted.iter().peekable();
        for entry in record.entries() {
            if wanted.peek().is_none() {
                break;
            }
            let entry = entry?;
            while wanted.next_if(|(name, _)| name.as_str().as_bytes() < entry.name).is_some() {}
            while let Some((_, column)) = wanted.next_if(|(name, _)| name.as_str().as_bytes() == entry.name) {
                row[*column] = cell(entry.value)?;
            }
        }
        Ok(())
    }
}

/// The number in an encoded `Value`, by its field number.
fn cell(value: &[u8]) -> Result<Cell, Corrupt> {
    const CUT_OFF: Corrupt = Corrupt("a value is cut off");
    let mut rest = value;
    let (kind, wire_type) = encoding::decode_key(&mut rest).map_err(|_| CUT_OFF)?;
    let number = match (kind, wire_type) {
        // int32_val, int64_val, unix_timestamp_val; a negative int32 is sign-extended to 64 bits on the wire.
        (3 | 4 | 8, WireType::Varint) => encoding::decode_varint(&mut rest).map_err(|_| CUT_OFF)? as i64 as f64,
        (5, WireType::SixtyFourBit) => f64::from_le_bytes(rest.try_into().map_err(|_| CUT_OFF)?),
        (6, WireType::ThirtyTwoBit) => f64::from(f32::from_le_bytes(rest.try_into().map_err(|_| CUT_OFF)?)),
        (7, WireType::Varint) => f64::from(encoding::decode_varint(&mut rest).map_err(|_| CUT_OFF)? != 0),
        (19, WireType::Varint) => return Ok(Cell::Null),
        (_, WireType::LengthDelimited) => {
            return take_delimited(&mut rest).map(|_| Cell::NotNumeric).ok_or(CUT_OFF);
        }
        _ => return Err(Corrupt("a value is of no known kind")),
    };
    Ok(Cell::Number(number))
}
