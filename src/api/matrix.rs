//! The matrix formats: rows x columns of little-endian numbers for `numpy.frombuffer`; NaN where
//! there is no number.

use std::collections::BTreeMap;

use super::{failure::Failure, rows::Judge};
use crate::{
    proto::{FeatureMatrix, FieldStatus, RowStatus},
    record::{
        State,
        encoding::{Cell, Columns, Places},
        float32::narrow,
    },
    tiered::{Row, RowError},
};

/// The least bytes of a matrix: its values, and a status for each.
pub(super) fn least_bytes(rows: usize, columns: &Columns, single: bool) -> usize {
    let cell = if single { 4 } else { 8 } + 1;
    rows.saturating_mul(columns.count()).saturating_mul(cell)
}

/// Builds the matrix. `single`: 4-byte floats, where an overflow becomes inf. `is_kept`: the
/// records are rows of cells already.
pub(super) fn build(
    names: &[String],
    columns: &Columns,
    single: bool,
    rows: Vec<Result<Row, RowError>>,
    is_kept: bool,
    judge: &Judge<'_>,
) -> FeatureMatrix {
    let cells = rows.len() * columns.count();
    let mut values = Values { bytes: Vec::with_capacity(cells * if single { 4 } else { 8 }), single };
    let mut field_statuses = Vec::with_capacity(cells);
    let mut row_statuses = Vec::with_capacity(rows.len());
    let mut revisions = Vec::with_capacity(rows.len());
    let mut row_errors = BTreeMap::new();
    let (mut row_cells, mut places) = (vec![Cell::Missing; columns.count()], Places::default());
    let row_count = rows.len() as u32;

    for (index, row) in (0..).zip(rows) {
        revisions.push(row.as_ref().map_or(0, |row| row.state.revision().0));
        let places = (!is_kept).then_some(&mut places);
        let read = |row: Row| read(&row.state, columns, judge, places, &mut row_cells);
        let status = match row.map_err(Failure::from).and_then(read) {
            Ok(status) => status,
            Err(failure) => {
                row_errors.insert(index, failure.into());
                RowStatus::Error
            }
        };
        row_statuses.push(status.into());
        for cell in &row_cells {
            const NONE: Cell = Cell::Number(f64::NAN);
            let (field_status, number) = match field_status(status) {
                Some(of_row) => (of_row, NONE),
                None => match cell {
                    Cell::Number(_) | Cell::Integer(_) => (FieldStatus::Present, *cell),
                    Cell::Null => (FieldStatus::NullValue, NONE),
                    Cell::NotNumeric => (FieldStatus::NotNumeric, NONE),
                    Cell::Missing => (FieldStatus::NotFound, NONE),
                },
            };
            field_statuses.push(field_status as u8);
            values.push(number);
        }
    }
    FeatureMatrix {
        feature_names: names.to_vec(),
        row_count,
        values: values.bytes.into(),
        field_statuses: field_statuses.into(),
        row_statuses,
        revisions,
        row_errors,
    }
}

/// `places` is None if the record is a row of cells.
fn read(
    state: &State,
    columns: &Columns,
    judge: &Judge<'_>,
    places: Option<&mut Places>,
    cells: &mut [Cell],
) -> Result<RowStatus, Failure> {
    let State::Record(record) = state else { return Ok(RowStatus::NotFound) };
    let read = judge.status(record).and_then(|status| {
        match places {
            _ if status != RowStatus::Found => {}
            Some(places) => columns.read(record, places, cells)?,
            None => Columns::read_kept(record, cells),
        }
        Ok(status)
    });
    read.map_err(|cause| Failure::unreadable(None, &cause))
}

/// The status of every field of a row that has no features. None: each field has its own.
fn field_status(row: RowStatus) -> Option<FieldStatus> {
    match row {
        RowStatus::Found => None,
        RowStatus::NotFound => Some(FieldStatus::NotFound),
        RowStatus::Expired | RowStatus::TooOld => Some(FieldStatus::OutsideMaxAge),
        RowStatus::VersionMismatch => Some(FieldStatus::VersionMismatch),
        RowStatus::Error | RowStatus::Unspecified => Some(FieldStatus::Error),
    }
}

struct Values {
    bytes: Vec<u8>,
    single: bool,
}

impl Values {
    /// Appends a cell. It is rounded at most once: a float64 between an integer and a float32 would
    /// round it twice.
    #[inline]
    fn push(&mut self, cell: Cell) {
        let number = match cell {
            Cell::Number(number) => number,
            Cell::Integer(number) if self.single => {
                return self.bytes.extend_from_slice(&(number as f32).to_le_bytes());
            }
            Cell::Integer(number) => number as f64,
            Cell::Null | Cell::NotNumeric | Cell::Missing => f64::NAN,
        };
        match self.single {
            true => self.bytes.extend_from_slice(&narrow(number).to_le_bytes()),
            false => self.bytes.extend_from_slice(&number.to_le_bytes()),
        }
    }
}
