//! Notes on a file of rows: columns that were not read, rows of whole texts, and rows without a label among labelled ones.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use super::conversation::Instruction;
use super::fields::RowFields;

/// Largest length of a note, in bytes. Further names are only counted.
const MAX_NOTE: usize = 900;

/// Counts for the notes on a file: unread columns with the number of rows in which they are not null, rows of whole texts, and labels.
#[derive(Debug, Default)]
pub(super) struct FileNotes {
    /// Unread columns in the order in which they occurred.
    unread: Vec<(String, usize)>,
    by_name: HashMap<String, usize>,
    n_verbatim: usize,
    n_labels: usize,
    /// Number of rows whose label is null, and the label's column.
    null_labels: (usize, String),
    /// Columns that were taken as the prompt, each with its number of rows.
    prompts: Vec<(String, usize)>,
}

impl FileNotes {
    /// Counts a row that was read.
    pub fn count(&mut self, fields: &RowFields, instruction: Option<&Instruction>) {
        self.n_verbatim += usize::from(matches!(instruction, Some(Instruction::Verbatim(_))));
        if let Some(name) = fields.prompt() {
            match self.prompts.iter_mut().find(|(known, _)| known == name) {
                Some((_, n)) => *n += 1,
                None => self.prompts.push((name.into(), 1)),
            }
        }
        for name in fields.unread() {
            match self.by_name.get(name) {
                Some(&at) => self.unread[at].1 += 1,
                None => {
                    self.by_name.insert(name.into(), self.unread.len());
                    self.unread.push((name.into(), 1));
                }
            }
        }
    }

    /// Counts the label of a row that becomes a single text: present, or null.
    pub fn count_label(&mut self, fields: &RowFields) {
        match fields.map.column("label").and_then(|column| fields.object.get_key_value(column)) {
            Some((column, Value::Null)) => self.null_labels = (self.null_labels.0 + 1, column.clone()),
            Some(_) => self.n_labels += 1,
            None => {}
        }
    }

    /// Returns the notes on a file, one per line.
    pub fn lines(&self, path: &Path) -> Vec<String> {
        let path = path.display();
        let prompt = |(name, n): &(String, usize)| {
            let rows = if *n == 1 { "row" } else { "rows" };
            format!("{path}: `{}` is read as the prompt ({n} {rows})", name.escape_debug())
        };
        let mut lines: Vec<String> = self.prompts.iter().map(prompt).collect();
        if !self.unread.is_empty() {
            lines.push(self.columns(format!("{path}: columns that are not read:")));
        }
        if let ((n @ 1.., column), 1..) = (&self.null_labels, self.n_labels) {
            let (rows, are) = if *n == 1 { ("row", "it is") } else { ("rows", "they are") };
            lines.push(format!(
                "{path}: {n} {rows} beside labelled ones have no label (`{column}`: null): {are} imitated"
            ));
        }
        match self.n_verbatim {
            0 => {}
            1 => lines.push(format!("{path}: 1 row holds whole texts: no template is put around them")),
            n => lines.push(format!("{path}: {n} rows hold whole texts: no template is put around them")),
        }
        lines
    }

    fn columns(&self, mut line: String) -> String {
        for (i, (name, n)) in self.unread.iter().enumerate() {
            let name: String = name.chars().take(40).collect();
            let rows = if *n == 1 { "row" } else { "rows" };
            let one = format!("{} `{}` ({n} {rows})", if i == 0 { "" } else { "," }, name.escape_debug());
            if line.len() + one.len() > MAX_NOTE {
                return format!("{line}, and {} more", self.unread.len() - i);
            }
            line.push_str(&one);
        }
        line
    }
}
