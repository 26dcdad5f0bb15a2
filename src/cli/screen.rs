//! The terminal that a person judges in.

use std::io::IsTerminal;

use console::{Key, Term, style};

use crate::error::{Error, Result, visible, visible_lines};
use crate::eval::judge::Choice;
use crate::eval::judge::person::{Press, Screen};

/// Columns of text on a wide terminal.
const WIDEST: usize = 110;

/// Standard error and the keyboard.
pub struct Terminal(Term);

impl Terminal {
    /// # Errors
    /// [`Error::Flag`] where there is none.
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

/// Lines of at most `width` columns, broken between words where there are some. Columns are counted in characters.
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

impl Screen for Terminal {
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

    fn press(&self) -> Result<Press> {
        Ok(match self.0.read_key_raw().map_err(fail)? {
            Key::Char('a' | 'A' | '1') | Key::ArrowLeft => Press::Choose(Choice::A),
            Key::Char('b' | 'B' | '2') | Key::ArrowRight => Press::Choose(Choice::B),
            Key::Char('t' | 'T' | '=') => Press::Choose(Choice::Tie),
            Key::Char('s' | 'S') => Press::Skip,
            Key::Char('u' | 'U') | Key::Backspace => Press::Undo,
            Key::Char('q' | 'Q' | '\u{4}') | Key::CtrlC => Press::Quit,
            _ => Press::Other,
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
