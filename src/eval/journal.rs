//! Answers on disk, one JSON object per line. Each is written before the next question depends on it. The first line identifies the judge.
//!
//! ```text
//! {"judge":{"kind":"endpoint","model":"...",...}}
//! {"key":"0f3c...","row":"rows.jsonl:3","order":"ab","choice":"a","text":"Output (a)","usage":{...},"crc32c":"..."}
//! {"key":"91aa...","row":"rows.jsonl:3","order":"ba","failed":"HTTP 500 ..."}
//! {"key":"0f3c...","undone":true}
//! ```
//!
//! A later line about the same question replaces an earlier one, except that a failure replaces nothing. The texts of answers are stored
//! and read anew whenever the file is opened, so verdicts are those of the present version's reader, not of the version that asked. All
//! lines but the first end with a checksum. A later `judge` line means that the same judge has a new address, or a higher limit on tokens,
//! from there on.

mod identity;
mod lines;

use std::collections::{HashMap, HashSet};
use std::fs::{File, TryLockError};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::judge::{Answer, Choice, Judge, Question};
use crate::error::{Error, Result};
use crate::files::open_log;
use identity::{IdentityMatch, address, kinship, longest_answer};
pub use lines::{RecoveredLines, sealed};

/// Name of the answers' file.
pub const ANSWERS: &str = "answers.jsonl";

/// Open file of answers. Only one program may have it open.
#[derive(Debug)]
pub struct AnswerJournal {
    path: PathBuf,
    file: File,
    answers: HashMap<String, Answer>,
    /// Keys of questions that failed and were not answered since.
    failed: HashSet<String>,
    /// Keys of questions that were answered without a verdict, with the present limit on an answer's tokens.
    unclear: HashSet<String>,
    /// Whether the judge is deterministic, so that asking again is useless.
    repeats: bool,
    durable: bool,
    notes: Vec<String>,
}

/// Numbers of stored texts whose verdict differs from that of the version that asked.
#[derive(Debug, Default)]
struct ChangedVerdicts {
    turned: usize,
    cleared: usize,
    found: usize,
}

impl ChangedVerdicts {
    fn add(&mut self, before: Option<Choice>, now: Option<Choice>) {
        match (before, now) {
            (None, _) => self.found += 1,
            (Some(_), None) => self.cleared += 1,
            (Some(_), Some(_)) => self.turned += 1,
        }
    }

    fn note(&self, path: &Path) -> Option<String> {
        let Self { turned, cleared, found } = self;
        (turned + cleared + found > 0).then(|| {
            format!(
                "{}: this version reads the kept texts otherwise than the one that asked: {turned} verdicts are another one, {cleared} are no \
                 answer now, {found} were none",
                path.display()
            )
        })
    }
}

/// Returns the identity of the judge of a file of answers; `None` where there is no such file, or where the file has none.
pub fn kept_identity(path: &Path) -> Option<Value> {
    let mut head = String::new();
    BufReader::new(File::open(path).ok()?).read_line(&mut head).ok()?;
    let head: Map<String, Value> = serde_json::from_str(&head).ok()?;
    head.get("judge").cloned()
}

impl AnswerJournal {
    /// Opens or creates the file of a judge's answers.
    ///
    /// # Errors
    /// [`Error::Line`] for a line that is damaged; [`Error::Flag`] where the answers are of another judge; [`Error::File`], also where
    /// another program has the file open.
    pub fn open(path: &Path, judge: &dyn Judge) -> Result<Self> {
        let fail = |e: std::io::Error| Error::file(path, e);
        let mut file = open_log(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::file(path, "another run is writing to it")),
            // On file systems without locks, the file is opened without one.
            Err(TryLockError::Error(_)) => {}
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(fail)?;
        let found = RecoveredLines::read(path, &bytes)?;
        let notes = found.note(path).into_iter().collect();
        file.set_len(found.whole_bytes as u64).map_err(fail)?;
        file.seek(SeekFrom::End(0)).map_err(fail)?;
        if found.whole_bytes > 0 && bytes[found.whole_bytes - 1] != b'\n' {
            file.write_all(b"\n").map_err(fail)?;
        }
        let mut journal = Self {
            path: path.into(),
            file,
            answers: HashMap::new(),
            failed: HashSet::new(),
            unclear: HashSet::new(),
            repeats: judge.is_deterministic(),
            durable: judge.is_costly(),
            notes,
        };
        match journal.take_all(found.lines)? {
            Some(was) => journal.go_on(&was, &judge.identity())?,
            None => journal.begin(&judge.identity())?,
        }
        if journal.repeats && !journal.unclear.is_empty() {
            journal.notes.push(format!(
                "{}: {} without a verdict, kept and not asked again: at temperature 0 the judge would say the same (a higher limit on an \
                 answer's tokens asks again)",
                path.display(),
                journal.unclear.len()
            ));
        }
        Ok(journal)
    }

    /// Starts the file with the identity of the judge.
    fn begin(&mut self, judge: &Value) -> Result<()> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map_err(|e| Error::file(&self.path, e))?;
        self.write(&format!("{}\n", json!({"judge": judge})))
    }

    /// Reads the lines of a file. Returns the identity of the last judge; `None` for a file without lines.
    fn take_all(&mut self, lines: Vec<(usize, Map<String, Value>)>) -> Result<Option<Value>> {
        let mut lines = lines.into_iter();
        let Some((line, mut head)) = lines.next() else { return Ok(None) };
        let missing = || Error::line(&self.path, line, "field `judge` is missing: this is not a file of answers");
        let mut judge = head.remove("judge").ok_or_else(missing)?;
        let mut changed = ChangedVerdicts::default();
        for (line, mut object) in lines {
            if let Some(next) = object.remove("judge") {
                if longest_answer(&next) != longest_answer(&judge) {
                    self.unclear.clear();
                }
                judge = next;
                continue;
            }
            self.take(object, longest_answer(&judge), &mut changed)
                .map_err(|reason| Error::line(&self.path, line, reason))?;
        }
        self.notes.extend(changed.note(&self.path));
        Ok(Some(judge))
    }

    /// Continues with the answers of `was` if the judge is the same, or if there are no answers yet.
    fn go_on(&mut self, was: &Value, now: &Value) -> Result<()> {
        let path = self.path.display();
        match kinship(was, now) {
            IdentityMatch::Same => Ok(()),
            IdentityMatch::Moved => {
                self.notes.push(format!(
                    "{path}: its answers came from {}, the judge is at {} now",
                    address(was),
                    address(now)
                ));
                self.write(&sealed(&json!({"judge": now})))
            }
            IdentityMatch::Longer => {
                self.notes.push(format!(
                    "{path}: answers may be longer than before: {} without a verdict are asked again",
                    self.unclear.len()
                ));
                self.unclear.clear();
                self.write(&sealed(&json!({"judge": now})))
            }
            IdentityMatch::Other(name) if self.answers.is_empty() => {
                self.notes.push(format!(
                    "{path}: no question was answered yet, so that another judge may be asked (its `{name}` is another)"
                ));
                self.failed.clear();
                self.begin(now)
            }
            IdentityMatch::Other(name) => {
                let show = |value: Option<&Value>| value.map_or("nothing".into(), Value::to_string);
                let reason = format!(
                    "{path} holds answers of another judge: its `{name}` is {}, now it is {} (give the old value, or another --output-dir)",
                    show(was.get(&name)),
                    show(now.get(&name))
                );
                Err(Error::flag("resume", reason))
            }
        }
    }

    /// Reads a line. The answer's text is read anew, because readers of earlier versions took some texts for verdicts that contain none.
    fn take(
        &mut self,
        mut object: Map<String, Value>,
        longest: Option<u64>,
        changed: &mut ChangedVerdicts,
    ) -> std::result::Result<(), String> {
        let key = match object.get("key") {
            Some(Value::String(key)) => key.clone(),
            _ => return Err("field `key` is missing".into()),
        };
        if object.contains_key("failed") {
            self.failed.insert(key);
            return Ok(());
        }
        if object.contains_key("undone") {
            self.forget(&key);
            return Ok(());
        }
        ["key", "row", "order"].iter().for_each(|name| drop(object.remove(*name)));
        let mut answer: Answer =
            serde_json::from_value(Value::Object(object)).map_err(|e| format!("no answer: {e}"))?;
        let before = answer.choice;
        if answer.read_again(longest) {
            changed.add(before, answer.choice);
        }
        self.insert(key, answer);
        Ok(())
    }

    fn insert(&mut self, key: String, answer: Answer) {
        self.failed.remove(&key);
        match (answer.choice, answer.no_verdict) {
            (None, Some(_)) => self.unclear.insert(key.clone()),
            _ => self.unclear.remove(&key),
        };
        self.answers.insert(key, answer);
    }

    fn forget(&mut self, key: &str) {
        self.answers.remove(key);
        self.unclear.remove(key);
    }

    /// Returns notes on the file for the user: a last line that was cut short, and texts that are now read differently.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Returns the answer to the question with this key.
    pub fn answer(&self, key: &str) -> Option<&Answer> {
        self.answers.get(key)
    }

    /// Returns whether the question with this key failed, and was not answered since.
    pub fn has_failed(&self, key: &str) -> bool {
        self.failed.contains(key)
    }

    /// Returns whether the question with this key was answered without a verdict, and would be again.
    pub fn is_settled(&self, key: &str) -> bool {
        self.repeats && self.unclear.contains(key)
    }

    /// Returns the number of questions that were answered, with or without a verdict.
    pub fn len(&self) -> usize {
        self.answers.len()
    }

    /// Returns whether no question was answered yet.
    pub fn is_empty(&self) -> bool {
        self.answers.is_empty()
    }

    /// Returns all answers, in any order.
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

    /// Stores an answer. It is on disk when this returns.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn keep(&mut self, question: &Question<'_>, answer: Answer) -> Result<()> {
        let key = question.key();
        self.write(&sealed(&Self::line(question, &key, json!(answer))))?;
        self.insert(key, answer);
        Ok(())
    }

    /// Stores that a question has no answer, and the reason.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn failed(&mut self, question: &Question<'_>, reason: &str) -> Result<()> {
        let key = question.key();
        self.write(&sealed(&Self::line(question, &key, json!({"failed": reason}))))?;
        self.failed.insert(key);
        Ok(())
    }

    /// Takes an answer back, so that its question is open again.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn undo(&mut self, question: &Question<'_>) -> Result<()> {
        let key = question.key();
        self.write(&sealed(&json!({"key": key, "undone": true})))?;
        self.forget(&key);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::eval::judge::{Choice, Reply};

    struct AskedQuestion(Value);

    impl Judge for AskedQuestion {
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
            let journal = AnswerJournal::open(&path, &AskedQuestion(identity.clone())).expect("opened");
            let choices = said.map(|(key, ..)| journal.answer(key).and_then(|answer| answer.choice));
            let a = Some(Choice::A);
            assert_eq!(choices, [if cut { None } else { a }, a, a, a], "{identity}");
            assert_eq!(journal.notes().iter().any(|note| note.contains("1 are no")), cut, "{:?}", journal.notes());
        }
    }
}
