//! Comparisons to judge: two responses to one instruction, or two instruction–response pairs.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::fields::{RowFields, names};
use super::forms;
use super::json_kind::kind;
use super::rows::{FieldMap, FileRows, SourceLocation};
use super::source::for_each_row;
use crate::error::Result;

/// Kind of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComparisonKind {
    /// Two responses to one instruction: a conditional preference.
    Single,
    /// Two instructions, each with its response: a joint preference.
    Pair,
}

impl ComparisonKind {
    /// Returns the kind's name in flags and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Pair => "pair",
        }
    }

    /// Returns the fields of a row of this kind, in the order of the sides.
    pub fn fields(self) -> &'static [&'static str] {
        match self {
            Self::Single => &["instruction", "response_0", "response_1"],
            Self::Pair => &["instruction_0", "response_0", "instruction_1", "response_1"],
        }
    }
}

/// Instruction and its response.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Side {
    /// I, the instruction.
    pub instruction: String,
    /// R, the response. It may be empty, as a model's answer may be.
    pub response: String,
}

/// Row to judge.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// File and line of the row, for messages.
    pub place: SourceLocation,
    /// Kind of the comparison.
    pub mode: ComparisonKind,
    /// Side 0 and side 1. Under [`ComparisonKind::Single`] their instructions are equal.
    pub sides: [Side; 2],
    /// Other fields of the row, without an earlier judge's annotations ([`ANNOTATIONS`]).
    pub more: Map<String, Value>,
}

/// Fields that a judge adds to a row.
pub const ANNOTATIONS: [&str; 6] = ["verdict", "answers", "flip", "judge", "logps", "mode"];

impl Comparison {
    /// Returns the row without annotations, its own fields first.
    pub fn row(&self) -> Map<String, Value> {
        let [first, second] = &self.sides;
        let texts: Vec<&String> = match self.mode {
            ComparisonKind::Single => vec![&first.instruction, &first.response, &second.response],
            ComparisonKind::Pair => vec![&first.instruction, &first.response, &second.instruction, &second.response],
        };
        let own = self.mode.fields().iter().zip(texts).map(|(name, text)| ((*name).into(), text.as_str().into()));
        own.chain(self.more.iter().map(|(name, value)| (name.clone(), value.clone()))).collect()
    }

    /// Parses a comparison from an object. The error is the reason.
    pub(crate) fn from_object(
        place: SourceLocation,
        object: Map<String, Value>,
        map: &FieldMap,
    ) -> std::result::Result<Self, String> {
        let fields = RowFields::new(&object, map);
        let is_pair = ["instruction_0", "instruction_1"].iter().any(|name| fields.get(name).is_some());
        let mode = if is_pair { ComparisonKind::Pair } else { ComparisonKind::Single };
        let text = |field: &str| match fields.get(field) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(format!("field `{}`: expected text, found {}", map.name(field), kind(other))),
            None => Err(format!(
                "field `{}` is missing ({}); a row to judge is {{instruction, response_0, response_1}} or {{instruction_0, response_0, \
                 instruction_1, response_1}}",
                map.name(field),
                names(&object)
            )),
        };
        let side = |instruction: &str, response: &str| {
            Ok::<_, String>(Side { instruction: text(instruction)?, response: text(response)? })
        };
        let sides = match mode {
            ComparisonKind::Single => [side("instruction", "response_0")?, side("instruction", "response_1")?],
            ComparisonKind::Pair => [side("instruction_0", "response_0")?, side("instruction_1", "response_1")?],
        };
        let own: Vec<&str> = mode.fields().iter().map(|field| map.name(field)).collect();
        let more = object
            .iter()
            .filter(|(name, _)| !own.contains(&name.as_str()) && !ANNOTATIONS.contains(&name.as_str()))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        Ok(Self { place, mode, sides, more })
    }

    /// Appends the row's context to the instruction of both sides, and removes the context's columns from `more`.
    fn with_context(mut self, fields: &RowFields) -> std::result::Result<Self, String> {
        match self.mode {
            ComparisonKind::Pair => forms::refuse_beside_pair(fields)?,
            ComparisonKind::Single => {
                let whole = forms::judged_instruction(fields)?;
                self.sides.iter_mut().for_each(|side| side.instruction.clone_from(&whole));
                forms::input_columns(fields).for_each(|column| drop(self.more.shift_remove(column)));
            }
        }
        Ok(self)
    }
}

/// Creates the location of a row in a file that was not read.
pub fn place(path: PathBuf, line: usize) -> SourceLocation {
    SourceLocation::new(path, line)
}

/// Reads the rows to judge from some files. `input` or `context` is appended to the instruction. All rows must be of one kind: `mode`, or
/// that of the first row.
///
/// # Errors
/// [`crate::Error::Line`] for a malformed line, a missing field, a row of the other kind, or a field with context (such as `history`) that
/// cannot be shown to a judge; [`crate::Error::File`] where a file cannot be read or has no rows.
pub fn read_comparisons(
    files: &[impl AsRef<Path>],
    map: &FieldMap,
    mode: Option<ComparisonKind>,
) -> Result<FileRows<Comparison>> {
    let (mut rows, mut notes) = (Vec::<Comparison>::new(), Vec::new());
    let mut wanted = mode;
    for file in files {
        notes.extend(for_each_row(file.as_ref(), |place, object| {
            let fields = RowFields::new(&object, map);
            let row = Comparison::from_object(place, object.clone(), map)?.with_context(&fields)?;
            let asked = *wanted.get_or_insert(row.mode);
            if row.mode != asked {
                let found = row.mode.fields().join(", ");
                let why = if mode.is_some() { "--mode is" } else { "the rows before it are of mode" };
                return Err(format!("the row holds {{{found}}}, {why} {}", asked.name()));
            }
            rows.push(row);
            Ok(())
        })?);
    }
    Ok(FileRows { rows, notes })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(row: Value, map: &[&str]) -> std::result::Result<Map<String, Value>, String> {
        let file = tempfile::NamedTempFile::with_suffix(".jsonl").expect("a file");
        std::fs::write(file.path(), row.to_string()).expect("written");
        let map = FieldMap::parse(map).expect("a map");
        let rows = read_comparisons(&[file.path()], &map, None).map_err(|error| error.to_string())?.rows;
        Ok(rows[0].row())
    }

    fn single(more: Value) -> Value {
        let mut row = json!({"instruction": "Translate", "response_0": "dog", "response_1": "cat"});
        row.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        row
    }

    #[test]
    fn a_judge_sees_what_stands_behind_the_instruction() {
        let whole = json!({"instruction": "Translate\nHund", "response_0": "dog", "response_1": "cat"});
        for name in ["input", "context"] {
            let row = single(json!({name: "Hund"}));
            assert_eq!(read(row, &[]).map(Value::Object), Ok(whole.clone()), "{name}");
        }
        let mapped = read(single(json!({"word": "Hund"})), &["input=word"]);
        assert_eq!(mapped.map(Value::Object), Ok(whole));
        // Fields that are empty, or left out by `--map`, are kept in `more`.
        for (more, map) in [
            (json!({"id": 3, "input": "", "history": [], "system": null}), vec![]),
            (json!({"input": "Hund"}), vec!["input="]),
            (json!({"system": "Be brief.", "tools": [{}]}), vec!["system=", "tools="]),
        ] {
            assert_eq!(read(single(more.clone()), &map).map(Value::Object), Ok(single(more)));
        }
    }

    #[test]
    fn what_a_judge_is_not_shown_is_refused_by_name() {
        for (name, value) in [
            ("system", json!("Be brief.")),
            ("system_prompt", json!("Be brief.")),
            ("history", json!([["Hi", "Hello"]])),
            ("tools", json!([{"name": "search"}])),
            ("input", json!({"word": "Hund"})),
        ] {
            let error = read(single(json!({name: value})), &[]).expect_err(name);
            assert!(error.contains(&format!("field `{name}`")) && error.contains(&format!("--map {name}=")), "{error}");
        }
        let pair = |more: &str| json!({"instruction_0": "I", "response_0": "R", "instruction_1": "J", "response_1": "S", more: "Hund"});
        for name in ["input", "context", "system"] {
            let error = read(pair(name), &[]).expect_err(name);
            assert!(error.contains(&format!("field `{name}`")) && error.contains(&format!("--map {name}=")), "{error}");
            assert!(read(pair(name), &[&format!("{name}=")]).is_ok());
        }
        for name in ["input_0", "system_1"] {
            let error = read(pair(name), &[]).expect_err(name);
            assert!(error.contains(&format!("field `{name}`: a joint pair's sides")), "{error}");
        }
        assert!(read(pair("id"), &[]).is_ok());
    }

    #[test]
    fn rows_of_another_kind_are_refused_across_files() {
        let dir = tempfile::tempdir().expect("a folder");
        let pair = json!({"instruction_0": "I", "response_0": "R", "instruction_1": "J", "response_1": "S"});
        let files = [("single.jsonl", single(json!({}))), ("pair.jsonl", pair)].map(|(name, row)| {
            std::fs::write(dir.path().join(name), row.to_string()).expect("written");
            dir.path().join(name)
        });
        let error = |mode| read_comparisons(&files, &FieldMap::default(), mode).expect_err("refused").to_string();
        assert!(error(None).contains("pair.jsonl:1: the row holds"), "{}", error(None));
        assert!(error(None).ends_with("the rows before it are of mode single"), "{}", error(None));
        assert!(error(Some(ComparisonKind::Single)).ends_with("--mode is single"));
    }
}
