//! Answers on disk, one JSON object a line, each there before the next question depends on it. The first line says who is asked.
//!
//! ```text
//! {"judge":{"kind":"endpoint","model":"...",...}}
//! {"key":"0f3c...","row":"rows.jsonl:3","order":"ab","choice":"a","text":"Output (a)","usage":{...},"crc32c":"..."}
//! {"key":"91aa...","row":"rows.jsonl:3","order":"ba","failed":"HTTP 500 ..."}
//! {"key":"0f3c...","undone":true}
//! ```
//!
//! A later line about the same question replaces an earlier one; one that failed replaces nothing. Texts are kept, and read anew whenever the
//! file is opened: which verdict a text holds is this version's reading, not that of the version that asked.
//! Lines but the first end with a checksum.

use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::judge::{Answer, Judge, Question};
use crate::error::{Error, Result};
use crate::files::open_log;
use crate::train::tensorboard::crc32c;

/// The file's name.
pub const ANSWERS: &str = "answers.jsonl";

/// The last key of a line that has a checksum: CRC-32C, in hexadecimal, of the line without it.
const CHECKSUM: &str = "crc32c";

fn checksum_entry(object: &str) -> String {
    format!(",\"{CHECKSUM}\":\"{:08x}\"}}", crc32c(object.as_bytes()))
}

/// Writes a JSON object that is not empty as a line with a checksum.
pub fn sealed(object: &Value) -> String {
    let text = object.to_string();
    format!("{}{}\n", text.strip_suffix('}').unwrap_or(&text), checksum_entry(&text))
}

/// Takes the checksum out of a line's object. True where it fits the line, or the line has none.
fn is_as_written(line: &[u8], object: &mut Map<String, Value>) -> bool {
    if object.shift_remove(CHECKSUM).is_none() {
        return true;
    }
    let Ok(text) = std::str::from_utf8(line.trim_ascii_end()) else { return false };
    let n_entry = checksum_entry("{}").len();
    let Some((head, entry)) = text.len().checked_sub(n_entry).and_then(|at| text.split_at_checked(at)) else {
        return false;
    };
    checksum_entry(&format!("{head}}}")) == entry
}

/// Whole lines of a JSONL text, with their numbers from 1, and what the last line is where a crash cut it short: it has no newline, and is no
/// object. Blank lines are skipped.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Line numbers and objects.
    pub lines: Vec<(usize, Map<String, Value>)>,
    /// Bytes that they take.
    pub whole_bytes: usize,
    /// The number of the half-written last line, and its bytes.
    pub cut: Option<(usize, usize)>,
}

impl Recovered {
    /// Of a file's bytes; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Line`] for a line that is no object, unless it is the last and unfinished; for one whose checksum does not fit.
    pub fn of(path: &Path, bytes: &[u8]) -> Result<Self> {
        let mut found = Self::default();
        for (i, line) in bytes.split_inclusive(|&b| b == b'\n').enumerate() {
            let finished = line.ends_with(b"\n");
            if finished && line.trim_ascii().is_empty() {
                found.whole_bytes += line.len();
                continue;
            }
            match serde_json::from_slice::<Map<String, Value>>(line) {
                // An object that lacks no more than its newline is whole for a reader; the writer gives it one.
                Ok(mut object) => {
                    if !is_as_written(line, &mut object) {
                        let reason = format!(
                            "is damaged: its {CHECKSUM} does not fit. Remove it (of responses: with the lines behind it), and it is made again; \
                             or its {CHECKSUM} alone, and it is taken as it is"
                        );
                        return Err(Error::line(path, i + 1, reason));
                    }
                    found.lines.push((i + 1, object));
                    found.whole_bytes += line.len();
                }
                Err(_) if !finished => found.cut = Some((i + 1, line.len())),
                Err(error) => {
                    let reason = error.to_string();
                    let reason = reason.split(" at line ").next().unwrap_or_default();
                    return Err(Error::line(path, i + 1, format!("no JSON object: {reason}")));
                }
            }
        }
        Ok(found)
    }

    /// "answers.jsonl:7: the last line was cut short: dropped".
    pub fn note(&self, path: &Path) -> Option<String> {
        let (line, bytes) = self.cut?;
        Some(format!("{}:{line}: the last line was cut short after {bytes} bytes, and is dropped", path.display()))
    }
}

/// An open file of answers. One program has it at a time.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    answers: HashMap<String, Answer>,
    durable: bool,
    notes: Vec<String>,
}

/// The identity of the judge whose answers a file holds; `None` where there is no such file, or it holds none.
pub fn kept_identity(path: &Path) -> Option<Value> {
    let mut head = String::new();
    BufReader::new(File::open(path).ok()?).read_line(&mut head).ok()?;
    let head: Map<String, Value> = serde_json::from_str(&head).ok()?;
    head.get("judge").cloned()
}

/// Tokens that an answer of this judge may have, over which fields of its own requests go.
fn longest_answer(identity: &Value) -> Option<u64> {
    let extra = &identity["extra"];
    let own = if extra.get("max_tokens").is_some() { &extra["max_tokens"] } else { &identity["max_tokens"] };
    [own, &extra["max_completion_tokens"]].into_iter().filter_map(Value::as_u64).max()
}

impl Journal {
    /// Opens or begins the file of a judge's answers.
    ///
    /// # Errors
    /// [`Error::Line`] for a line that is damaged, [`Error::Flag`] for answers of another judge, [`Error::File`], also where another program
    /// has the file open.
    pub fn open(path: &Path, judge: &dyn Judge) -> Result<Self> {
        let fail = |e: std::io::Error| Error::file(path, e);
        let mut file = open_log(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::file(path, "another run is writing to it")),
            // Where the file system has no locks, nobody is kept out.
            Err(TryLockError::Error(_)) => {}
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(fail)?;
        let found = Recovered::of(path, &bytes)?;
        let notes = found.note(path).into_iter().collect();
        file.set_len(found.whole_bytes as u64).map_err(fail)?;
        file.seek(SeekFrom::End(0)).map_err(fail)?;
        if found.whole_bytes > 0 && bytes[found.whole_bytes - 1] != b'\n' {
            file.write_all(b"\n").map_err(fail)?;
        }
        let mut journal = Self { path: path.into(), file, answers: HashMap::new(), durable: judge.is_costly(), notes };
        let mut lines = found.lines.into_iter();
        match lines.next() {
            None => journal.write(&format!("{}\n", json!({"judge": judge.identity()})))?,
            Some((line, head)) => journal.check(line, &head, &judge.identity())?,
        }
        for (line, object) in lines {
            journal.take(object).map_err(|reason| Error::line(path, line, reason))?;
        }
        journal.read_again(longest_answer(&judge.identity()));
        Ok(journal)
    }

    fn check(&self, line: usize, head: &Map<String, Value>, now: &Value) -> Result<()> {
        let Some(was) = head.get("judge") else {
            return Err(Error::line(&self.path, line, "field `judge` is missing: this is no file of answers"));
        };
        if was == now {
            return Ok(());
        }
        let empty = Map::new();
        let (old, new) = (was.as_object().unwrap_or(&empty), now.as_object().unwrap_or(&empty));
        let differs = old.keys().chain(new.keys()).find(|name| old.get(*name) != new.get(*name));
        let show = |value: Option<&Value>| value.map_or("nothing".into(), Value::to_string);
        let name = differs.map_or("kind", String::as_str);
        let reason = format!(
            "{} holds answers of another judge: its `{name}` is {}, now it is {} (give the old value, or another --output-dir)",
            self.path.display(),
            show(old.get(name)),
            show(new.get(name))
        );
        Err(Error::flag("resume", reason))
    }

    fn take(&mut self, mut object: Map<String, Value>) -> std::result::Result<(), String> {
        let key = match object.get("key") {
            Some(Value::String(key)) => key.clone(),
            _ => return Err("field `key` is missing".into()),
        };
        if object.contains_key("failed") {
            return Ok(());
        }
        if object.contains_key("undone") {
            self.answers.remove(&key);
            return Ok(());
        }
        ["key", "row", "order"].iter().for_each(|name| drop(object.remove(*name)));
        let answer = serde_json::from_value(Value::Object(object)).map_err(|e| format!("no answer: {e}"))?;
        self.answers.insert(key, answer);
        Ok(())
    }

    /// Reads every answer that has a text anew: earlier versions took letters for verdicts that were none.
    fn read_again(&mut self, longest: Option<u64>) {
        let [mut turned, mut cleared, mut found] = [0; 3];
        for answer in self.answers.values_mut() {
            let before = answer.choice;
            if answer.read_again(longest) {
                match (before, answer.choice) {
                    (None, _) => found += 1,
                    (Some(_), None) => cleared += 1,
                    (Some(_), Some(_)) => turned += 1,
                }
            }
        }
        if turned + cleared + found > 0 {
            self.notes.push(format!(
                "{}: this version reads the kept texts otherwise than the one that asked: {turned} verdicts are another one, {cleared} are no \
                 answer now, {found} were none",
                self.path.display()
            ));
        }
    }

    /// What a user should know about the file: a last line that was cut short, texts that are read otherwise now.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// What was answered to a question of this key.
    pub fn answer(&self, key: &str) -> Option<&Answer> {
        self.answers.get(key)
    }

    /// Questions that were answered, with or without sense.
    pub fn len(&self) -> usize {
        self.answers.len()
    }

    /// Nothing was answered yet.
    pub fn is_empty(&self) -> bool {
        self.answers.is_empty()
    }

    /// All answers, in no order.
    pub fn answers(&self) -> impl Iterator<Item = &Answer> {
        self.answers.values()
    }

    fn write(&mut self, text: &str) -> Result<()> {
        let written = self.file.write_all(text.as_bytes());
        let written = if self.durable { written.and_then(|()| self.file.sync_data()) } else { written };
        written.map_err(|e| Error::file(&self.path, e))
    }

    fn line(question: &Question<'_>, key: &str, more: Value) -> Value {
        let row = question.comparison.place.to_string();
        let mut line = json!({"key": key, "row": row, "order": question.order});
        if let (Some(line), Value::Object(more)) = (line.as_object_mut(), more) {
            line.extend(more);
        }
        line
    }

    /// Keeps an answer: it is on disk when this returns.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn keep(&mut self, question: &Question<'_>, answer: Answer) -> Result<()> {
        let key = question.key();
        self.write(&sealed(&Self::line(question, &key, json!(answer))))?;
        self.answers.insert(key, answer);
        Ok(())
    }

    /// Keeps that a question has no answer, and why.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn failed(&mut self, question: &Question<'_>, reason: &str) -> Result<()> {
        self.write(&sealed(&Self::line(question, &question.key(), json!({"failed": reason}))))
    }

    /// Takes an answer back.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn undo(&mut self, question: &Question<'_>) -> Result<()> {
        let key = question.key();
        self.write(&sealed(&json!({"key": key, "undone": true})))?;
        self.answers.remove(&key);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::eval::judge::{Choice, Reply};

    struct Asked(Value);

    impl Judge for Asked {
        fn name(&self) -> &str {
            "asked"
        }
        fn identity(&self) -> Value {
            self.0.clone()
        }
        fn ask(&self, _: &[Question<'_>], _: &AtomicBool, _: &mut dyn FnMut(usize, Reply) -> Result<()>) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_kept_text_as_long_as_it_may_be_is_read_as_cut() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(ANSWERS);
        let said = [
            ("cut", "Output (a) is better", 16, false),
            ("short", "Output (a) is better", 15, false),
            ("told", "Output (a) is better", 16, true),
            ("json", "{\"winner\": \"a\"}\n\n", 16, false),
        ];
        for (identity, cut) in [
            (json!({"kind": "endpoint", "max_tokens": 16, "extra": {}}), true),
            (json!({"kind": "endpoint", "max_tokens": 99, "extra": {"max_tokens": 16}}), true),
            (json!({"kind": "endpoint", "max_tokens": 16, "extra": {"max_tokens": null}}), false),
            (json!({"kind": "endpoint", "max_tokens": 16, "extra": {"max_completion_tokens": 32}}), false),
            (json!({"kind": "command"}), false),
        ] {
            let mut text = format!("{}\n", json!({"judge": identity}));
            for (key, said, tokens, is_whole) in said {
                let mut line = json!({
                    "key": key, "row": "r:1", "order": "ab", "choice": "a", "text": said,
                    "usage": {"prompt_tokens": 9, "completion_tokens": tokens},
                });
                if is_whole {
                    line["is_whole"] = true.into();
                }
                text += &sealed(&line);
            }
            std::fs::write(&path, text).expect("written");
            let journal = Journal::open(&path, &Asked(identity.clone())).expect("opened");
            let choices = said.map(|(key, ..)| journal.answer(key).and_then(|answer| answer.choice));
            let a = Some(Choice::A);
            assert_eq!(choices, [if cut { None } else { a }, a, a, a], "{identity}");
            assert_eq!(journal.notes().iter().any(|note| note.contains("1 are no")), cut, "{:?}", journal.notes());
        }
    }
}
