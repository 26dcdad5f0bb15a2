//! The command line described from its own definition: the Markdown reference, shell completions and man pages.

use clap::builder::StyledStr;
use clap::{Arg, ArgAction, Command};
use clap_complete::Shell;

use crate::objective::{FORMULA_LEGEND, Loss, SftLoss};

/// Head of `docs/reference.md`.
const PREFACE: &str = "# Reference

Every command and flag of `jointwise`, with values and defaults.

This file is generated. Do not edit it. After a change of the command line, write it again:

    jointwise reference >docs/reference.md

`jointwise COMMAND --help` shows the same on a terminal. `jointwise man [COMMAND]` prints a man page. `jointwise completions SHELL`
prints completions for bash, zsh, fish, elvish or powershell.

Where a command has `--config FILE.toml`, every flag without its dashes is a key of that file: `learning-rate = 2e-4`. Flags win over
the file. Where a flag is repeatable, its key is a list.
";

/// Returns the reference of all commands as Markdown: `docs/reference.md`.
pub fn reference() -> String {
    let program = super::command();
    let mut out = PREFACE.to_string();
    out.push_str("\n| command | what it does |\n|---|---|\n");
    for command in commands(&program) {
        let name = command.get_name();
        let link = format!("[`{name}`](#jointwise-{name})");
        out.push_str(&format!("| {link} | {} |\n", cell(&plain(command.get_about()))));
    }
    push_losses(&mut out);
    for command in commands(&program) {
        push_command(&mut out, command);
    }
    out
}

/// Returns shell completions.
pub fn completions(shell: Shell) -> Vec<u8> {
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut super::command(), "jointwise", &mut out);
    out
}

/// Returns the man page of a command as roff, or of the program where no command has this name.
pub fn man_page(name: Option<&str>) -> Vec<u8> {
    let mut program = super::command();
    program.build();
    let found = name.and_then(|name| program.find_subcommand(name));
    // The page of `train` is jointwise-train(1), as git's are.
    let page = found.map(|c| c.clone().display_name(format!("jointwise-{}", c.get_name())));
    let mut out = Vec::new();
    let man = clap_mangen::Man::new(page.unwrap_or(program)).source(concat!("jointwise ", env!("CARGO_PKG_VERSION")));
    man.render(&mut out).expect("a Vec takes everything");
    out
}

/// Parses the name of a command.
///
/// # Errors
/// A message with all names.
pub fn parse_command_name(name: &str) -> Result<String, String> {
    let program = super::command();
    let known: Vec<&str> = commands(&program).map(Command::get_name).collect();
    match known.contains(&name) {
        true => Ok(name.to_string()),
        false => Err(format!("expected one of {}", known.join(", "))),
    }
}

fn commands(program: &Command) -> impl Iterator<Item = &Command> {
    program.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help")
}

/// Adds the table of losses.
fn push_losses(out: &mut String) {
    out.push_str(&format!("\n## Losses\n\nValues of `--loss`, with {FORMULA_LEGEND}.\n\n"));
    out.push_str("| loss | formula | source |\n|---|---|---|\n");
    for loss in Loss::ALL {
        out.push_str(&format!("| `{}` | {} | {} |\n", loss.name(), cell(loss.formula()), cell(loss.source())));
    }
    out.push_str(
        "\nValues of `--sft-loss`, of a token of probability p.\n\n| loss | formula | source |\n|---|---|---|\n",
    );
    for loss in SftLoss::ALL {
        out.push_str(&format!("| `{}` | {} | {} |\n", loss.name(), cell(loss.formula()), cell(loss.source())));
    }
}

fn push_command(out: &mut String, command: &Command) {
    let name = command.get_name();
    let positional: String = command.get_positionals().map(|a| format!(" {}", value_name(a))).collect();
    out.push_str(&format!("\n## jointwise {name}\n\n{}.\n\n", plain(command.get_about())));
    out.push_str(&format!("    jointwise {name}{positional} [FLAGS]\n"));
    let arguments: Vec<&Arg> = command
        .get_arguments()
        .filter(|a| !a.is_hide_set() && !matches!(a.get_id().as_str(), "help" | "version"))
        .collect();
    let mut headings: Vec<Option<&str>> = Vec::new();
    for heading in arguments.iter().map(|a| a.get_help_heading()) {
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    for heading in headings {
        if let Some(heading) = heading {
            out.push_str(&format!("\n### {heading} (`{name}`)\n"));
        }
        out.push_str("\n| flag | meaning | default |\n|---|---|---|\n");
        for arg in arguments.iter().filter(|a| a.get_help_heading() == heading) {
            push_flag(out, arg);
        }
    }
}

fn push_flag(out: &mut String, arg: &Arg) {
    let takes_value = arg.get_action().takes_values();
    let mut flag = arg.get_long().map(|long| format!("--{long}")).unwrap_or_default();
    if takes_value {
        flag = format!("{flag} {}", value_name(arg));
    }
    let (mut meaning, default) = split_default(&plain(arg.get_help()));
    let default = default.unwrap_or_else(|| match takes_value {
        true => arg.get_default_values().iter().map(|v| v.to_string_lossy()).collect::<Vec<_>>().join(","),
        false => String::new(),
    });
    let values = arg.get_possible_values();
    let values = values.iter().filter(|v| takes_value && !v.is_hide_set());
    let values: Vec<String> = values.map(|v| named_value(v.get_name(), v.get_help())).collect();
    if !values.is_empty() {
        meaning = format!("{meaning}. Values: {}", values.join("; "));
    }
    if matches!(arg.get_action(), ArgAction::Append)
        && !meaning.contains("repeatable")
        && !meaning.contains("omma-separated")
    {
        let many = if arg.get_value_delimiter().is_some() { "comma-separated" } else { "repeatable" };
        meaning = format!("{meaning}; {many}");
    }
    let aliases: Vec<String> = arg.get_all_aliases().unwrap_or_default().iter().map(|a| format!("`--{a}`")).collect();
    if !aliases.is_empty() {
        meaning = format!("{meaning}. Also {}", aliases.join(", "));
    }
    if arg.is_required_set() {
        meaning = format!("{meaning} (required)");
    }
    // A value is code; a default that depends on something is a text.
    let default = if default.is_empty() || default.contains(' ') { default } else { format!("`{default}`") };
    out.push_str(&format!(
        "| `{}` | {} | {} |\n",
        cell(flag.trim()),
        cell(meaning.trim_start_matches(". ")),
        cell(&default)
    ));
}

fn value_name(arg: &Arg) -> String {
    let names: Vec<&str> = arg.get_value_names().unwrap_or_default().iter().map(|n| n.as_str()).collect();
    match names.is_empty() {
        true => arg.get_id().as_str().to_uppercase(),
        false => names.join(" "),
    }
}

fn named_value(name: &str, help: Option<&StyledStr>) -> String {
    match plain(help) {
        help if help.is_empty() => format!("`{name}`"),
        help => format!("`{name}` ({})", lower_first(&help)),
    }
}

/// Splits `text [default: value]` into its parts. Help texts carry the default where it depends on another flag or on a file.
fn split_default(help: &str) -> (String, Option<String>) {
    match help.rsplit_once("[default: ") {
        Some((meaning, default)) if default.ends_with(']') => {
            (meaning.trim_end().to_string(), Some(default.trim_end_matches(']').to_string()))
        }
        _ => (help.to_string(), None),
    }
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    let Some(first) = chars.next() else { return String::new() };
    // An acronym stays as it is.
    match chars.clone().next().is_some_and(char::is_uppercase) {
        true => text.to_string(),
        false => first.to_lowercase().chain(chars).collect(),
    }
}

fn plain(text: Option<&StyledStr>) -> String {
    text.map(|t| t.to_string().split_whitespace().collect::<Vec<_>>().join(" ")).unwrap_or_default()
}

/// Escapes what would end a cell of a Markdown table, or become HTML outside code.
fn cell(text: &str) -> String {
    let escaped = text.replace('|', "\\|");
    let code = |(i, part): (usize, &str)| if i % 2 == 0 { part.replace('<', "&lt;") } else { part.to_string() };
    escaped.split('`').enumerate().map(code).collect::<Vec<_>>().join("`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_split_from_the_text() {
        assert_eq!(split_default("Rank [default: 8]"), ("Rank".into(), Some("8".into())));
        assert_eq!(split_default("[default: 0.9]"), (String::new(), Some("0.9".into())));
        assert_eq!(split_default("As JSON"), ("As JSON".into(), None));
    }

    #[test]
    fn cells_of_a_table_stay_cells() {
        assert_eq!(cell("a|b `<x>` <y>"), "a\\|b `<x>` &lt;y>");
    }

    #[test]
    fn every_shell_and_every_command_has_its_page() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::PowerShell, Shell::Elvish] {
            let text = String::from_utf8(completions(shell)).unwrap();
            assert!(text.contains("learning-rate"), "{shell}");
        }
        let program = crate::cli::command();
        for command in commands(&program) {
            let page = String::from_utf8(man_page(Some(command.get_name()))).unwrap();
            assert!(page.contains(&format!("jointwise\\-{}", command.get_name())), "{page}");
        }
        assert!(String::from_utf8(man_page(None)).unwrap().contains("evaluate"));
        assert!(parse_command_name("trian").unwrap_err().contains("train"));
    }
}
