//! The terminal that a person judges in.

use std::io::IsTerminal;

use console::{Key, Term, style};

use crate::error::{Error, Result, visible, visible_lines};
use crate::eval::judge::Choice;
use crate::eval::judge::person::{JudgeScreen, KeyPress};

/// Most columns of text, on a wide terminal.
const WIDEST: usize = 110;

/// Terminal made of standard error and the keyboard.
pub struct Terminal(Term);

impl Terminal {
    /// Opens the terminal.
    ///
    /// # Errors
    /// [`Error::Flag`] where there is no terminal.
    pub fn open() -> Result<Self> {
        let term = Term::stderr();
        match std::io::stdin().is_terminal() && term.is_term() {
            true => Ok(Self(term)),
            false => Err(Error::flag("person", "needs a terminal")),
        }
    }
}

fn fail(error: std::io::Error) -> Error {
    Error::file("terminal", error)
}

/// Breaks a text into lines of at most `width` columns, between words where possible. Columns are counted in characters.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.split('\n') {
        let mut line = String::new();
        let mut n = 0;
        for word in paragraph.split_inclusive(' ') {
            let mut word: Vec<char> = word.chars().collect();
            if n + word.iter().rev().skip_while(|c| **c == ' ').count() > width && n > 0 {
                lines.push(std::mem::take(&mut line));
                n = 0;
            }
            while word.len() > width {
                lines.push(word.drain(..width).collect());
            }
            n += word.len();
            line.extend(word);
        }
        lines.push(line);
    }
    lines
}

impl JudgeScreen for Terminal {
    fn show(&self, title: &str, texts: &[(&str, String)], keys: &str) -> Result<()> {
        let width = usize::from(self.0.size().1).clamp(20, WIDEST) - 4;
        self.0.clear_screen().map_err(fail)?;
        let mut page = vec![style(visible(title)).bold().for_stderr().to_string()];
        for (heading, text) in texts {
            page.push(String::new());
            page.push(style(visible(heading)).cyan().bold().for_stderr().to_string());
            page.extend(wrap(&visible_lines(text), width).into_iter().map(|line| format!("  {line}")));
        }
        page.push(String::new());
        page.push(style(visible(keys)).dim().for_stderr().to_string());
        page.iter().try_for_each(|line| self.0.write_line(line)).map_err(fail)
    }

    fn press(&self) -> Result<KeyPress> {
        Ok(match self.0.read_key_raw().map_err(fail)? {
            Key::Char('a' | 'A' | '1') | Key::ArrowLeft => KeyPress::Choose(Choice::A),
            Key::Char('b' | 'B' | '2') | Key::ArrowRight => KeyPress::Choose(Choice::B),
            Key::Char('t' | 'T' | '=') => KeyPress::Choose(Choice::Tie),
            Key::Char('s' | 'S') => KeyPress::Skip,
            Key::Char('u' | 'U') | Key::Backspace => KeyPress::Undo,
            Key::Char('q' | 'Q' | '\u{4}') | Key::CtrlC => KeyPress::Quit,
            _ => KeyPress::Other,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::wrap;

    #[test]
    fn lines_break_between_words() {
        assert_eq!(wrap("a bc def", 4), ["a bc ", "def"]);
        assert_eq!(wrap("one\n\ntwo", 10), ["one", "", "two"]);
        assert_eq!(wrap("abcdefghij kl", 4), ["abcd", "efgh", "ij ", "kl"]);
        assert_eq!(wrap("", 4), [""]);
        let text = "漢字 and some words, longer than the line is wide";
        assert!(wrap(text, 12).iter().all(|line| line.trim_end().chars().count() <= 12));
        assert_eq!(wrap(text, 12).concat(), text);
    }
}
