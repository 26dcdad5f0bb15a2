//! Notes on the template of texts, and on BOS before them.

use super::conversation::Instruction;
use super::prompt_template::Template;
use super::tokens::Tokenizer;

/// Describes which template texts get, and why. `what` names the texts: rows or prompts.
pub fn template_line(tokenizer: &Tokenizer, template: &Template, first: &Instruction, what: &str) -> String {
    let form = template.for_instruction(first);
    let why = match first {
        Instruction::Verbatim(_) => format!("the {what} are whole texts"),
        _ if *template == Template::Chat && tokenizer.chat_templates().chosen_source().is_some() => {
            "--chat-template".into()
        }
        _ if *template != Template::ByRows => "--template".into(),
        Instruction::Chat(_) => format!("the {what} are conversations"),
        Instruction::Plain(_) => format!("the {what} are texts"),
    };
    format!("template: {} ({why})", form.name())
}

/// Returns a note where `none` puts a BOS before texts, while the tokenizer itself does not.
pub fn bos_note(tokenizer: &Tokenizer, template: &Template, first: &Instruction) -> Option<String> {
    let is_none = *template.for_instruction(first) == Template::None;
    let bos = tokenizer.bos_id().filter(|bos| is_none && !tokenizer.start_ids().contains(bos))?;
    let token = tokenizer.show(bos);
    Some(format!(
        "note: BOS, {token}, stands before each text; the tokenizer itself puts none there (--template plain: none, as TRL)"
    ))
}
