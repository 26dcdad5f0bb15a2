//! Templates around an instruction: the paper's, the tokenizer's chat template, none, or a custom text.

use serde_json::Value;

use super::chat_template::ChatTemplate;
use super::conversation::{Conversation, Instruction, Message, PromptResponse};
use super::rendered::RenderedText;
use super::turns::render_turns;
use crate::error::{Error, Result};

const PAPER: &str = "### Instructions: {instruction}\n\n### Response:";
const PAPER_TLDR: &str = "### Instructions: You are given a social media post, summarize it accordingly. \nPost: {instruction}\n\n### Response:";
const PLACE: &str = "{instruction}";
const BY_ROWS: &str = "by-rows";

/// Text that is put around an instruction before it is tokenised.
///
/// # Examples
/// ```
/// use jointwise::Template;
/// assert_eq!(Template::parse("chat")?, Template::Chat);
/// let own = Template::parse("Q: {instruction}\\nA:")?;
/// # assert!(!own.renders_chats());
/// # Ok::<(), jointwise::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Template {
    /// The default: [`Template::Chat`] for rows that are conversations, [`Template::Paper`] for texts.
    ByRows,
    /// TRL's choice: [`Template::Chat`] for rows that are conversations, [`Template::Plain`] for texts.
    Trl,
    /// The paper's template for helpful answers.
    Paper,
    /// The paper's template for TL;DR summaries.
    PaperTldr,
    /// The tokenizer's chat template.
    Chat,
    /// BOS, then instruction and response as they are, with nothing between them.
    None,
    /// Like [`Template::None`], but with BOS only where the tokenizer itself puts BOS before a text, as in transformers and TRL.
    Plain,
    /// Custom text with `{instruction}` in it once. The response follows without a separator.
    Text(String),
}

impl Template {
    /// Parses `by-rows`, `trl`, `paper`, `paper-tldr`, `chat`, `none`, `plain`, or a text with `{instruction}`, in which `\n`, `\t` and
    /// `\\` are escapes.
    ///
    /// # Errors
    /// [`Error::Flag`] for anything else.
    pub fn parse(value: &str) -> Result<Self> {
        match value {
            BY_ROWS => Ok(Self::ByRows),
            "trl" => Ok(Self::Trl),
            "paper" => Ok(Self::Paper),
            "paper-tldr" => Ok(Self::PaperTldr),
            "chat" => Ok(Self::Chat),
            "none" => Ok(Self::None),
            "plain" => Ok(Self::Plain),
            text if text.matches(PLACE).count() == 1 => Ok(Self::Text(unescape(text))),
            other => Err(Error::flag(
                "template",
                format!(
                    "`{}`: expected {BY_ROWS}, trl, paper, paper-tldr, chat, none, plain, or a text that holds {PLACE} once",
                    other.escape_debug()
                ),
            )),
        }
    }

    /// Returns the template for an instruction. A verbatim instruction gets [`Template::Plain`]: no template, only the tokenizer's own
    /// leading tokens.
    pub fn for_instruction(&self, instruction: &Instruction) -> &Self {
        match (self, instruction) {
            (_, Instruction::Verbatim(_)) => &Self::Plain,
            (Self::ByRows | Self::Trl, Instruction::Chat(_)) => &Self::Chat,
            (Self::ByRows, Instruction::Plain(_)) => &Self::Paper,
            (Self::Trl, Instruction::Plain(_)) => &Self::Plain,
            (chosen, _) => chosen,
        }
    }

    /// Returns whether conversations are rendered by the tokenizer's chat template.
    pub fn renders_chats(&self) -> bool {
        matches!(self, Self::Chat | Self::ByRows | Self::Trl)
    }

    /// Returns whether the template depends on each row's form.
    pub fn is_by_rows(&self) -> bool {
        matches!(self, Self::ByRows | Self::Trl)
    }

    /// Replaces a template that depends on the rows' form by a fixed one, where all instructions get the same template.
    #[must_use]
    pub fn settled<'a>(self, mut instructions: impl Iterator<Item = &'a Instruction>) -> Self {
        let templated = |instruction: &&Instruction| !matches!(instruction, Instruction::Verbatim(_));
        let Some(first) = instructions.find(templated).map(|first| self.for_instruction(first).clone()) else {
            return self;
        };
        match instructions.filter(templated).all(|next| *self.for_instruction(next) == first) {
            true => first,
            false => self,
        }
    }

    /// Returns the short value of `--template`; for a custom text, a name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::ByRows => BY_ROWS,
            Self::Trl => "trl",
            Self::Paper => "paper",
            Self::PaperTldr => "paper-tldr",
            Self::Chat => "chat",
            Self::None => "none",
            Self::Plain => "plain",
            Self::Text(_) => "a text of your own",
        }
    }

    /// Renders the text before the response.
    ///
    /// # Errors
    /// The reason, where the template cannot represent this instruction.
    pub fn instruction(
        &self,
        instruction: &Instruction,
        chat: Option<&ChatTemplate>,
    ) -> std::result::Result<String, String> {
        let pattern = match self.for_instruction(instruction) {
            Self::Chat => {
                let Conversation { messages, inputs } = instruction.conversation();
                let values: Vec<Value> = messages.iter().map(Message::to_value).collect();
                let rendered = chat.ok_or(NO_CHAT)?.render(&inputs.for_template(&values, true))?;
                return Ok(rendered.text);
            }
            Self::Paper | Self::ByRows => PAPER,
            Self::PaperTldr => PAPER_TLDR,
            Self::None | Self::Plain | Self::Trl => PLACE,
            Self::Text(pattern) => pattern,
        };
        let text = instruction.plain()?;
        let (before, after) = pattern.split_once(PLACE).unwrap_or((pattern, ""));
        Ok(format!("{before}{text}{after}"))
    }

    /// Renders instruction and response.
    ///
    /// # Errors
    /// The reason, where the template cannot represent this text.
    pub fn render(
        &self,
        text: &PromptResponse,
        chat: Option<&ChatTemplate>,
    ) -> std::result::Result<RenderedText, String> {
        if *self.for_instruction(&text.instruction) == Self::Chat {
            return render_turns(text, chat.ok_or(NO_CHAT)?);
        }
        let instruction = self.instruction(&text.instruction, chat)?;
        let start = instruction.len();
        let text = instruction + &text.response.plain()?;
        let scored = std::iter::once(start..text.len()).collect();
        Ok(RenderedText { text, scored, cut: Vec::new() })
    }
}

const NO_CHAT: &str = "the tokenizer has no chat template";

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

    fn text(instruction: Instruction, response: &str) -> PromptResponse {
        PromptResponse { instruction, response: response.into() }
    }

    #[test]
    fn the_paper_s_strings() {
        let t = text(Instruction::Plain("Say {hi} {instruction}".into()), "Hi");
        let r = Template::Paper.render(&t, None).unwrap();
        assert_eq!(r.text, "### Instructions: Say {hi} {instruction}\n\n### Response:Hi");
        assert_eq!(&r.text[r.scored[0].clone()], "Hi");
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
            "--template: `papper`: expected by-rows, trl, paper, paper-tldr, chat, none, plain, or a text that holds {instruction} once"
        );
        assert!(Template::parse("{instruction}{instruction}").is_err());
    }

    #[test]
    fn chat_scores_what_follows_the_question() {
        let source = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</>\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
        let chat = ChatTemplate::new(source, vec![]).unwrap();
        let r = Template::Chat.render(&text(Instruction::Plain("Q".into()), " A </> "), Some(&chat)).unwrap();
        assert_eq!(r.text, "<user>Q</>\n<assistant>A </></>\n");
        assert_eq!((&r.text[r.scored[0].clone()], r.scored.len(), r.cut.len()), ("A </></>\n", 1, 0));

        // The prompt is not a prefix of the text with the answer.
        let source =
            "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<think>{% endif %}";
        let chat = ChatTemplate::new(source, vec![]).unwrap();
        let r = Template::Chat.render(&text(Instruction::Plain("Q".into()), "A"), Some(&chat)).unwrap();
        assert_eq!((r.text.as_str(), &r.scored[0], r.cut), ("QA", &(1..2), vec![(0, "Q<think>".into())]));
        let many = Instruction::Chat(["system", "user"].map(|r| Message::new(r, "x")).to_vec().into());
        assert!(Template::Paper.render(&text(many.clone(), "A"), None).unwrap_err().contains("--template chat"));
        assert_eq!(Template::Chat.render(&text(many, "A"), None).unwrap_err(), NO_CHAT);
    }
}
