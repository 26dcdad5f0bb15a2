//! What is to be told about a file of rows: columns that no field was read from, whole texts.

use std::collections::HashMap;
use std::path::Path;

use super::conversation::Instruction;
use super::fields::Fields;

/// Bytes of a note; names that don't fit it are counted.
const MAX_NOTE: usize = 900;

/// Columns that rows were not read from, each with the number of rows that have something in it, and rows of whole texts.
#[derive(Debug, Default)]
pub(super) struct FileNotes {
    /// Columns in the order in which they were met.
    unread: Vec<(String, usize)>,
    by_name: HashMap<String, usize>,
    n_verbatim: usize,
}

impl FileNotes {
    /// Counts a row that was read.
    pub fn count(&mut self, fields: &Fields, instruction: Option<&Instruction>) {
        self.n_verbatim += usize::from(matches!(instruction, Some(Instruction::Verbatim(_))));
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

    /// Gives the notes of a file, a line each.
    pub fn lines(&self, path: &Path) -> Vec<String> {
        let path = path.display();
        let mut lines = Vec::new();
        if !self.unread.is_empty() {
            lines.push(self.columns(format!("{path}: columns that are not read:")));
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
