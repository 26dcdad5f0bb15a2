//! What stands around an instruction: the paper's templates, the tokenizer's chat template, none, or one's own.

use super::chat::ChatTemplate;
use super::rows::{Instruction, Message, Text};
use crate::error::{Error, Result};

const PAPER: &str = "### Instructions: {instruction}\n\n### Response:";
const PAPER_TLDR: &str = "### Instructions: You are given a social media post, summarize it accordingly. \nPost: {instruction}\n\n### Response:";
const PLACE: &str = "{instruction}";

/// The value of `--template`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Template {
    /// The paper's, for helpful answers.
    Paper,
    /// The paper's, for TL;DR summaries.
    PaperTldr,
    /// The tokenizer's own.
    Chat,
    /// Instruction and response as they are, with nothing between them.
    None,
    /// A text that holds `{instruction}` once; the response follows it with no separator.
    Text(String),
}

/// A text to tokenise, and where its parts end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// template(I) + R, and what the chat template puts behind.
    pub text: String,
    /// Bytes of template(I).
    pub instruction_bytes: usize,
    /// Where the chat template's own ending starts; `None` where no template closes the response.
    pub closing: Option<usize>,
}

impl Template {
    /// From `paper`, `paper-tldr`, `chat`, `none`, or a text with `{instruction}`, in which `\n`, `\t` and `\\` are escapes.
    ///
    /// # Errors
    /// [`Error::Flag`] for anything else.
    pub fn parse(value: &str) -> Result<Self> {
        match value {
            "paper" => Ok(Self::Paper),
            "paper-tldr" => Ok(Self::PaperTldr),
            "chat" => Ok(Self::Chat),
            "none" => Ok(Self::None),
            text if text.matches(PLACE).count() == 1 => Ok(Self::Text(unescape(text))),
            other => Err(Error::flag(
                "template",
                format!(
                    "`{}`: expected paper, paper-tldr, chat, none, or a text that holds {PLACE} once",
                    other.escape_debug()
                ),
            )),
        }
    }

    /// The text before the response.
    ///
    /// # Errors
    /// The reason, where the template can't hold this instruction.
    pub fn instruction(
        &self,
        instruction: &Instruction,
        chat: Option<&ChatTemplate>,
    ) -> std::result::Result<String, String> {
        let pattern = match self {
            Self::Chat => return chat.ok_or(NO_CHAT)?.render(&conversation(instruction), true),
            Self::Paper => PAPER,
            Self::PaperTldr => PAPER_TLDR,
            Self::None => PLACE,
            Self::Text(pattern) => pattern,
        };
        let text = plain(instruction)?;
        let (before, after) = pattern.split_once(PLACE).unwrap_or((pattern, ""));
        Ok(format!("{before}{text}{after}"))
    }

    /// The whole text.
    ///
    /// # Errors
    /// The reason, where the template can't hold this text.
    pub fn render(&self, text: &Text, chat: Option<&ChatTemplate>) -> std::result::Result<Rendered, String> {
        let instruction = self.instruction(&text.instruction, chat)?;
        let instruction_bytes = instruction.len();
        if *self != Self::Chat {
            return Ok(Rendered { text: instruction + &text.response, instruction_bytes, closing: None });
        }
        let mut messages = conversation(&text.instruction);
        messages.push(Message { role: "assistant".into(), content: text.response.clone() });
        let whole = chat.ok_or(NO_CHAT)?.render(&messages, false)?;
        let Some(answer) = whole.strip_prefix(&instruction) else {
            return Err("the chat template's text with the response does not begin with its text that asks for one, so where the \
                        response begins is unknown: use another template"
                .into());
        };
        // Templates may trim the response, so it is sought as it stands and trimmed.
        let response =
            [text.response.as_str(), text.response.trim()].into_iter().find_map(|r| Some((r, answer.find(r)?)));
        let closing = instruction_bytes + response.map_or(0, |(r, at)| at + r.len());
        Ok(Rendered { text: whole, instruction_bytes, closing: Some(closing) })
    }
}

const NO_CHAT: &str = "the tokenizer has no chat template";

fn conversation(instruction: &Instruction) -> Vec<Message> {
    match instruction {
        Instruction::Plain(text) => vec![Message { role: "user".into(), content: text.clone() }],
        Instruction::Chat(messages) => messages.clone(),
    }
}

fn plain(instruction: &Instruction) -> std::result::Result<&str, String> {
    match instruction {
        Instruction::Plain(text) => Ok(text),
        Instruction::Chat(messages) => match messages.as_slice() {
            [only] if only.role == "user" => Ok(&only.content),
            _ => {
                Err(format!("a conversation of {} messages before the response needs --template chat", messages.len()))
            }
        },
    }
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, if c == '\\' { chars.next() } else { None }) {
            ('\\', Some('n')) => out.push('\n'),
            ('\\', Some('t')) => out.push('\t'),
            ('\\', Some('r')) => out.push('\r'),
            ('\\', Some('\\')) => out.push('\\'),
            ('\\', Some(other)) => out.extend(['\\', other]),
            (c, _) => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(instruction: Instruction, response: &str) -> Text {
        Text { instruction, response: response.into() }
    }

    #[test]
    fn the_paper_s_strings() {
        let t = text(Instruction::Plain("Say {hi} {instruction}".into()), "Hi");
        let r = Template::Paper.render(&t, None).unwrap();
        assert_eq!(r.text, "### Instructions: Say {hi} {instruction}\n\n### Response:Hi");
        assert_eq!(&r.text[r.instruction_bytes..], "Hi");
        let r = Template::PaperTldr.render(&t, None).unwrap();
        assert_eq!(
            r.text,
            "### Instructions: You are given a social media post, summarize it accordingly. \nPost: Say {hi} {instruction}\n\n### Response:Hi"
        );
        assert_eq!(Template::None.render(&t, None).unwrap().text, "Say {hi} {instruction}Hi");
    }

    #[test]
    fn parsing() {
        assert_eq!(Template::parse("paper-tldr").unwrap(), Template::PaperTldr);
        assert_eq!(
            Template::parse(r"Q: {instruction}\n\\n\x A:").unwrap(),
            Template::Text("Q: {instruction}\n\\n\\x A:".into())
        );
        assert_eq!(
            Template::parse("papper").unwrap_err().to_string(),
            "--template: `papper`: expected paper, paper-tldr, chat, none, or a text that holds {instruction} once"
        );
        assert!(Template::parse("{instruction}{instruction}").is_err());
    }

    #[test]
    fn chat_closes_the_response() {
        let source = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</>\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
        let chat = ChatTemplate::new(source, vec![]).unwrap();
        let r = Template::Chat.render(&text(Instruction::Plain("Q".into()), " A </> "), Some(&chat)).unwrap();
        assert_eq!(r.text, "<user>Q</>\n<assistant>A </></>\n");
        assert_eq!(&r.text[r.instruction_bytes..r.closing.unwrap()], "A </>");

        let source =
            "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<think>{% endif %}";
        let chat = ChatTemplate::new(source, vec![]).unwrap();
        let reason = Template::Chat.render(&text(Instruction::Plain("Q".into()), "A"), Some(&chat)).unwrap_err();
        assert!(reason.contains("does not begin with"), "{reason}");
        let many =
            Instruction::Chat(["system", "user"].map(|r| Message { role: r.into(), content: "x".into() }).into());
        assert!(Template::Paper.render(&text(many.clone(), "A"), None).unwrap_err().contains("--template chat"));
        assert_eq!(Template::Chat.render(&text(many, "A"), None).unwrap_err(), NO_CHAT);
    }
}
