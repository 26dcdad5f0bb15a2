//! Program as a judge: gets the row as JSON on standard input, and gives its answer on standard output.

use std::io::{Read, Write};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::prompt::JudgePrompt;
use super::{Answer, Judge, Question, Reply, pool, shell};
use crate::error::Result;

/// Largest number of bytes of an answer that are read.
const MOST_BYTES: u64 = 1 << 20;

/// Command line that the shell runs once for each question.
#[derive(Debug, Clone)]
pub struct CommandJudge {
    /// Command line, such as `python judge.py`.
    pub command: String,
    /// Longest time per question.
    pub timeout: Duration,
    /// Largest number of questions at a time.
    pub concurrency: usize,
    /// Prompt for a model, passed as field `prompt`.
    pub prompt: JudgePrompt,
}

impl CommandJudge {
    /// Returns the JSON for a question: `{"mode", "order", "row", "instruction", "response_a", "response_b", "prompt"}`; for pairs with
    /// `instruction_a` and `instruction_b`.
    fn input(&self, question: &Question<'_>) -> String {
        let mut row = Map::new();
        row.insert("mode".into(), json!(question.comparison.mode));
        row.insert("order".into(), json!(question.order));
        row.insert("row".into(), json!(question.comparison.place.to_string()));
        row.extend(question.texts().into_iter().map(|(name, text)| (name.into(), text.into())));
        row.insert("prompt".into(), self.prompt.render(question).into());
        Value::Object(row).to_string() + "\n"
    }

    fn run(&self, question: &Question<'_>) -> Reply {
        match self.output(self.input(question)) {
            Ok(text) => Reply::Answer(Answer::read(text, false)),
            Err(reason) => Reply::Failed(reason),
        }
    }

    fn output(&self, input: String) -> std::result::Result<String, String> {
        let mut running = shell::start(&self.command).map_err(|e| format!("the command does not start: {e}"))?;
        let child = &mut running.child;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (status, out, err) = std::thread::scope(|scope| {
            // A program that does not read its input may still answer.
            scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input.as_bytes())));
            let out = scope.spawn(|| read(stdout));
            let err = scope.spawn(|| read(stderr));
            let status = running.wait(self.timeout);
            running.end();
            (status, out.join().unwrap_or_default(), err.join().unwrap_or_default())
        });
        match status {
            Ok(Some(status)) if status.success() => Ok(out.trim().to_string()),
            Ok(Some(status)) => {
                let said = err.trim().lines().last().map_or(String::new(), |line| format!(": {line}"));
                Err(format!("the command {}{said}", shell::describe(status)))
            }
            Ok(None) => Err(format!("timeout: the command did not end in {} s", self.timeout.as_secs_f64())),
            Err(error) => Err(format!("the command cannot be waited for: {error}")),
        }
    }
}

fn read(pipe: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    let _ = pipe.map(|pipe| pipe.take(MOST_BYTES).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Judge for CommandJudge {
    fn name(&self) -> &str {
        &self.command
    }

    fn identity(&self) -> Value {
        json!({"kind": "command", "command": self.command, "prompt": self.prompt.hash()})
    }

    fn ask(
        &self,
        questions: &[Question<'_>],
        stop: &AtomicBool,
        tell: &mut dyn FnMut(usize, Reply) -> Result<()>,
    ) -> Result<()> {
        let work = |_: usize, question: &Question<'_>, _: &dyn Fn() -> bool, say: &dyn Fn(Result<Reply>)| {
            say(Ok(self.run(question)));
        };
        pool::ask(questions, self.concurrency, stop, &work, tell)
    }
}
