//! Comparisons that a judge is asked about.

use std::path::Path;

use super::{COMPARISONS, counted};
use crate::data::bad_rows::BadRows;
use crate::data::comparisons::{Comparison, ComparisonKind, read_comparisons};
use crate::data::rows::{DatasetType, FieldMap, read_row_file};
use crate::error::{Error, Result};
use crate::eval::strata::{ConditionalPreference, Stratum, draw};
use crate::flags::JudgeArgs;

/// Reads or draws the comparisons to judge.
pub fn comparisons(args: &JudgeArgs, out: &Path) -> Result<Vec<Comparison>> {
    let map = FieldMap::parse(&args.map)?;
    match (args.data.is_empty(), args.sample.is_empty()) {
        (true, true) => Err(Error::flag("data", "is missing: rows to judge, or --sample FILE")),
        (false, false) => Err(Error::flag("sample", "cannot be used with --data: rows are read or drawn")),
        (false, true) if args.pairs.is_some() => Err(Error::flag("pairs", "needs --sample")),
        (false, true) if !args.strata.is_empty() => Err(Error::flag("strata", "needs --sample")),
        (false, true) => {
            let read = read_comparisons(&args.data, &map, args.mode.map(ComparisonKind::from))?;
            read.notes.iter().for_each(|line| note!("note: {line}"));
            let is_empty = |row: &&Comparison| row.sides.iter().any(|side| side.response.trim().is_empty());
            if let n @ 1.. = read.rows.iter().filter(is_empty).count() {
                note!("note: {} with an empty response: it is judged as it stands", counted(n, "row"));
            }
            Ok(read.rows)
        }
        (true, false) => {
            if args.mode.map(ComparisonKind::from) == Some(ComparisonKind::Single) {
                return Err(Error::flag("mode", "single: --sample draws pairs"));
            }
            let mut preferences = Vec::new();
            for file in &args.sample {
                let read = read_row_file(file, &map, DatasetType::Preference, BadRows::Error)?;
                for line in read.notes {
                    note!("note: {line}");
                }
                for row in read.rows {
                    preferences.push(ConditionalPreference::from_row(&row)?);
                }
            }
            let strata: Vec<Stratum> = match &args.strata[..] {
                [] => Stratum::DRAWN.into(),
                named => named.iter().copied().map(Stratum::from).collect(),
            };
            let pairs = args.pairs.unwrap_or(preferences.len());
            draw(&preferences, &strata, pairs, args.seed.unwrap_or(0), &out.join(COMPARISONS))
        }
    }
}
