//! Mapping of fields to a file's columns: `--map field=name`.

use crate::error::{Error, Result};

/// Fields of rows that `--map` accepts.
const FIELDS: [&str; 31] = [
    "i_chosen",
    "r_chosen",
    "i_reject",
    "r_reject",
    "prompt",
    "chosen",
    "rejected",
    "prompt_chosen",
    "prompt_rejected",
    "instruction",
    "response",
    "completion",
    "messages",
    "gold_response",
    "label",
    "instruction_0",
    "response_0",
    "instruction_1",
    "response_1",
    "question",
    "query",
    "output",
    "input",
    "context",
    "system",
    "system_prompt",
    "history",
    "conversations",
    "text",
    "tools",
    "chat_template_kwargs",
];

/// Returns whether a name is that of a field of rows.
pub(super) fn is_field(name: &str) -> bool {
    FIELDS.contains(&name)
}

/// Names of fields in this program, each with its name in the file, as `--map` gives them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldMap(Vec<(&'static str, String)>);

impl FieldMap {
    /// Parses the values of `--map`. An empty name (`system=`) means that the field is not read.
    ///
    /// # Errors
    /// [`Error::Flag`] for a value without `=`, an unknown field, or a field given twice.
    pub fn parse(values: &[impl AsRef<str>]) -> Result<Self> {
        let mut map = Self::default();
        for value in values.iter().map(AsRef::as_ref) {
            let Some((field, name)) = value.split_once('=') else {
                return Err(Error::flag("map", format!("`{value}`: expected field=name, such as prompt=question")));
            };
            let Some(known) = FIELDS.iter().find(|known| **known == field) else {
                return Err(Error::flag("map", format!("`{field}` is not a field; fields are {}", FIELDS.join(", "))));
            };
            if map.0.iter().any(|(taken, _)| taken == known) {
                return Err(Error::flag("map", format!("field `{field}` is mapped twice")));
            }
            map.0.push((known, name.into()));
        }
        Ok(map)
    }

    /// Returns a field's name in the file, for messages.
    pub fn name<'a>(&'a self, field: &'a str) -> &'a str {
        self.mapped(field).filter(|name| !name.is_empty()).unwrap_or(field)
    }

    /// Returns the column from which a field is read; `None` where the field is not read, or where another field reads the column of this
    /// name.
    pub fn column<'a>(&'a self, field: &'a str) -> Option<&'a str> {
        match self.mapped(field) {
            Some(name) => Some(name).filter(|name| !name.is_empty()),
            None => Some(field).filter(|own| self.0.iter().all(|(_, name)| name != own)),
        }
    }

    fn mapped(&self, field: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| *known == field).map(|(_, name)| name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_is_one_field() {
        let map = FieldMap::parse(&["prompt=question", "response=output", "system="]).unwrap();
        assert_eq!(map.column("prompt"), Some("question"));
        assert_eq!(map.column("question"), None, "it is the prompt");
        assert_eq!(map.column("output"), None);
        assert_eq!(map.column("system"), None, "it is left out");
        assert_eq!(map.column("label"), Some("label"));
        assert_eq!([map.name("prompt"), map.name("system"), map.name("label")], ["question", "system", "label"]);
        let swapped = FieldMap::parse(&["chosen=rejected", "rejected=chosen"]).unwrap();
        assert_eq!([swapped.column("chosen"), swapped.column("rejected")], [Some("rejected"), Some("chosen")]);
    }
}
