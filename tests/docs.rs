//! The documents: every command in them parses, every flag in them exists, links lead somewhere, the reference is the program's own, and the
//! README stays short.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use jointwise::cli::reference::reference;
use jointwise::cli::{command, parse_only};
use jointwise::objective::Loss;

/// Flags of other programs that the documents name.
const FLAGS_OF_OTHERS: &[&str] =
    &["--model_outputs", "--reference_outputs", "--release", "--steps", "--warm", "--rows", "--check", "--cuda"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// README, CONTRIBUTING and the manual, without the generated reference.
fn manual() -> Vec<String> {
    let pages = fs::read_dir(root().join("docs")).expect("docs/").map(|e| e.expect("an entry").file_name());
    let pages = pages.map(|name| format!("docs/{}", name.to_string_lossy()));
    let mut all: Vec<String> = pages.filter(|p| p.ends_with(".md") && !p.ends_with("/reference.md")).collect();
    all.sort();
    assert!(all.len() >= 12, "{all:?}");
    all.extend(["README.md", "CONTRIBUTING.md"].map(String::from));
    all
}

/// Documents elsewhere, whose links are checked too.
const OTHERS: &[&str] = &[
    "CHANGELOG.md",
    "SECURITY.md",
    "docs/reference.md",
    "benches/README.md",
    "benches/results/README.md",
    "benches/peers/README.md",
    "examples/studies/README.md",
    "models/demo/README.md",
    "tests/oracle/README.md",
];

/// Splits a line as a shell would: quotes, backslashes and comments. A redirection, a pipe or `&&` ends the command.
fn shell_words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '\\') => word.get_or_insert_default().extend(chars.next()),
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, '#') if word.is_none() => break,
            (None, '>' | '|' | '&' | ';') => break,
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// Extracts the arguments of each `jointwise ...` command in code blocks, with the number of its line. Lines that end in a backslash are joined.
fn commands(text: &str) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    let mut fenced = false;
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        if !fenced && !line.starts_with("    ") {
            continue;
        }
        let mut joined = line.trim().trim_start_matches("$ ").to_string();
        while let Some(start) = joined.strip_suffix('\\') {
            let next = lines.next().map(|(_, line)| line.trim()).unwrap_or_default();
            joined = format!("{start} {next}");
        }
        let words = shell_words(&joined);
        let program = |word: &String| word == "jointwise" || word.ends_with("release/jointwise");
        let start = match words.first().map(String::as_str) {
            Some("cargo") if words.get(1).is_some_and(|w| w == "run") && !words.contains(&"--example".into()) => {
                words.iter().position(|w| w == "--")
            }
            // A launcher, with its own flags.
            Some("mpirun" | "srun") => words.iter().position(program),
            // A wrapper such as .ci/with-driver may stand before it.
            Some(first) if first.ends_with("jointwise") || first.starts_with(".ci/with-") => {
                words.iter().take(2).position(program)
            }
            _ => None,
        };
        if let Some(start) = start {
            // A lone colon of mpirun's ends the first program's arguments.
            let arguments = words[start + 1..].iter().take_while(|word| *word != ":");
            found.push((number + 1, arguments.cloned().collect()));
        }
    }
    found
}

/// Parses every command of a document, and returns a message per mistake.
fn command_mistakes(name: &str, text: &str) -> Vec<String> {
    let wrong = |(line, words): (usize, Vec<String>)| {
        let arguments = std::iter::once("jointwise".to_string()).chain(words);
        parse_only(arguments).err().map(|e| format!("{name}:{line}: {}", e.lines().next().unwrap_or_default()))
    };
    commands(text).into_iter().filter_map(wrong).collect()
}

/// Commands that need no network, no other machine and no minutes. The documents' model stands for the bundled one.
const RUNS: &[&str] = &["check", "completions", "info", "man", "plan"];

/// Runs a command of the documents in a folder that has the bundled model, the demo's data and a file of preferences; `None` where it needs another file.
fn run_in(folder: &Path, words: &[String]) -> Option<Result<(), String>> {
    if !RUNS.contains(&words.first()?.as_str()) || words.iter().any(|word| word.contains("[FLAGS]")) {
        return None;
    }
    let words: Vec<&str> = words.iter().map(|w| w.trim_start_matches("HuggingFaceTB/SmolLM2-135M")).collect();
    let words: Vec<&str> = words.into_iter().map(|w| if w.is_empty() { "models/demo" } else { w }).collect();
    let is_name = |word: &str| word.chars().all(|c| c.is_ascii_uppercase());
    let mut flag = "";
    for &word in &words[1..] {
        if word.starts_with("--") {
            flag = word;
        } else if is_name(word) || ["--model", "--data", "--adapter"].contains(&flag) && !folder.join(word).exists() {
            return None;
        }
    }
    let done =
        Command::new(env!("CARGO_BIN_EXE_jointwise")).args(&words).current_dir(folder).output().expect("the program");
    let said = String::from_utf8_lossy(&done.stderr);
    Some(if done.status.success() { Ok(()) } else { Err(said.lines().last().unwrap_or_default().into()) })
}

#[test]
fn commands_that_need_no_network_run() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = dir.path().join("models/demo");
    fs::create_dir_all(&model).expect("a folder");
    for entry in fs::read_dir(root().join("models/demo")).expect("the model").map(|e| e.expect("an entry").path()) {
        fs::copy(&entry, model.join(entry.file_name().expect("a name"))).expect("a copy");
    }
    let row = r#"{"prompt": "Say red.", "chosen": " red", "rejected": " blue"}"#;
    fs::write(dir.path().join("prefs.jsonl"), [row; 8].join("\n")).expect("rows");
    let prepare: Vec<String> = ["demo", "--prepare", "runs/demo-data"].map(String::from).into();
    let prepared = Command::new(env!("CARGO_BIN_EXE_jointwise")).args(&prepare).current_dir(dir.path()).output();
    assert!(prepared.expect("the program").status.success());
    let mut n_run = 0;
    for page in manual() {
        for (line, words) in commands(&read(&page)) {
            if let Some(done) = run_in(dir.path(), &words) {
                n_run += 1;
                assert_eq!(done, Ok(()), "{page}:{line}: {}", words.join(" "));
            }
        }
    }
    assert!(n_run >= 8, "{n_run} commands were run");
    // The check can fail.
    let wrong: Vec<String> = ["check", "--model", "models/demo", "--data", "models/demo"].map(String::from).into();
    assert!(run_in(dir.path(), &wrong).is_some_and(|done| done.is_err()));
}

/// Code spans of a text, outside blocks.
fn code_spans(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().filter(|line| !line.starts_with("    "));
    lines.flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// Every flag of every command.
fn known_flags() -> BTreeSet<String> {
    let program = command();
    let arguments = program.get_subcommands().flat_map(|c| c.get_arguments());
    let names = arguments.flat_map(|a| {
        let aliases = a.get_all_aliases().unwrap_or_default();
        a.get_long().into_iter().map(String::from).chain(aliases.into_iter().map(String::from)).collect::<Vec<_>>()
    });
    names.chain(["help".into(), "version".into()]).map(|name| format!("--{name}")).collect()
}

/// Returns the flags in a document's code spans that no command has.
fn flag_mistakes(name: &str, text: &str) -> Vec<String> {
    let known = known_flags();
    let spans = code_spans(text).filter(|span| span.starts_with("--") && span.len() > 2);
    let flags = spans.map(|span| span.split([' ', '=']).next().unwrap_or_default().trim_end_matches("..."));
    let unknown = flags.filter(|flag| !known.contains(*flag) && !FLAGS_OF_OTHERS.contains(flag));
    unknown.map(|flag| format!("{name}: no command has {flag}")).collect()
}

/// Returns the targets of `make TARGET`, in code blocks and code spans, that the Makefile lacks.
fn target_mistakes(name: &str, text: &str) -> Vec<String> {
    let makefile = read("Makefile");
    let known = |target: &str| {
        makefile.lines().any(|l| l.split(':').next().unwrap_or_default().split(' ').any(|t| t == target))
    };
    let blocks = text.lines().filter(|line| line.starts_with("    ")).map(str::trim);
    let commands = blocks.chain(code_spans(text)).flat_map(|line| line.split("&&"));
    let targets =
        commands.filter_map(|c| c.trim().strip_prefix("make ")).filter_map(|rest| rest.split_whitespace().next());
    targets.filter(|target| !known(target)).map(|target| format!("{name}: the Makefile has no {target}")).collect()
}

/// Returns the repository's files in code spans that do not exist. A rename must reach the documents too.
fn file_mistakes(name: &str, text: &str) -> Vec<String> {
    const FOLDERS: [&str; 8] = ["src/", "shaders/", "tests/", "benches/", "examples/", "models/", "docs/", ".ci/"];
    let words = code_spans(text).filter_map(|span| span.split_whitespace().next());
    let paths = words.filter(|word| FOLDERS.iter().any(|f| word.starts_with(f)) && !word.contains(['<', '*']));
    let missing = paths.filter(|path| !root().join(path).exists());
    missing.map(|path| format!("{name}: there is no {path}")).collect()
}

/// GitHub's anchor of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    text.lines().filter(|l| l.starts_with('#')).map(|l| anchor(l.trim_start_matches('#'))).collect()
}

/// Returns the links of a document, inside the repository, that lead nowhere.
fn link_mistakes(name: &str, text: &str) -> Vec<String> {
    let folder = root().join(name).parent().map(PathBuf::from).unwrap_or_default();
    let prose: String = text.lines().filter(|l| !l.starts_with("    ")).map(|l| format!("{l}\n")).collect();
    // Links are not taken from code spans.
    let prose: String = prose.split('`').step_by(2).collect::<Vec<_>>().join("x");
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
    let mut wrong = Vec::new();
    for target in targets.filter(|t| !t.contains("://")) {
        let (path, fragment) = target.split_once('#').unwrap_or((target, ""));
        let file = if path.is_empty() { root().join(name) } else { folder.join(path) };
        if !file.exists() {
            wrong.push(format!("{name}: {target} leads nowhere"));
        } else if !fragment.is_empty() && !anchors(&fs::read_to_string(&file).unwrap_or_default()).contains(fragment) {
            wrong.push(format!("{name}: {path} has no heading #{fragment}"));
        }
    }
    wrong
}

/// Returns what is too long in the README: at most 200 lines of 120 columns, 1,500 words.
fn length_mistakes(text: &str) -> Vec<String> {
    let (lines, words) = (text.lines().count(), text.split_whitespace().count());
    let mut wrong = Vec::new();
    if lines > 200 {
        wrong.push(format!("README.md has {lines} lines: at most 200"));
    }
    if words > 1500 {
        wrong.push(format!("README.md has {words} words: at most 1500"));
    }
    let wide = text.lines().enumerate().map(|(i, line)| (i + 1, line.chars().count())).filter(|(_, n)| *n > 120);
    wrong.extend(wide.map(|(line, columns)| format!("README.md:{line} has {columns} columns: at most 120")));
    wrong
}

fn no_mistakes(mistakes: &[String]) {
    assert!(mistakes.is_empty(), "\n{}", mistakes.join("\n"));
}

#[test]
fn commands_of_the_documents_parse() {
    let mut n = 0;
    let mut mistakes = Vec::new();
    for name in manual() {
        let text = read(&name);
        n += commands(&text).len();
        mistakes.extend(command_mistakes(&name, &text));
    }
    no_mistakes(&mistakes);
    assert!(n >= 40, "{n} commands were found");
}

#[test]
fn flags_of_the_documents_exist() {
    let mistakes: Vec<String> = manual().iter().flat_map(|name| flag_mistakes(name, &read(name))).collect();
    no_mistakes(&mistakes);
}

#[test]
fn targets_of_make_exist() {
    let mistakes: Vec<String> = manual().iter().flat_map(|name| target_mistakes(name, &read(name))).collect();
    no_mistakes(&mistakes);
}

#[test]
fn files_that_the_documents_name_exist() {
    let mistakes: Vec<String> = manual().iter().flat_map(|name| file_mistakes(name, &read(name))).collect();
    no_mistakes(&mistakes);
}

#[test]
fn links_between_documents_lead_somewhere() {
    let names = manual().into_iter().chain(OTHERS.iter().map(|&name| name.to_string()));
    let mistakes: Vec<String> = names.flat_map(|name| link_mistakes(&name, &read(&name))).collect();
    no_mistakes(&mistakes);
}

#[test]
fn the_readme_is_short() {
    no_mistakes(&length_mistakes(&read("README.md")));
}

/// Numbers of rows of tables with an empty cell.
fn empty_cells(text: &str) -> Vec<usize> {
    let has_empty = |line: &str| {
        let cells = line.strip_prefix('|').and_then(|rest| rest.strip_suffix('|'));
        cells.is_some_and(|cells| cells.split('|').any(|cell| cell.trim().is_empty()))
    };
    (1..).zip(text.lines()).filter(|(_, line)| has_empty(line)).map(|(number, _)| number).collect()
}

#[test]
fn every_flag_of_trl_has_an_answer() {
    assert_eq!(empty_cells("| a | b |\n|---|---|\n| c | |\n| | d |"), [3, 4]);
    let text = read("docs/from-trl.md");
    assert_eq!(empty_cells(&text), Vec::<usize>::new(), "docs/from-trl.md");
    for part in ["DPOConfig", "KTOConfig", "CPOConfig", "SFTConfig", "TrainingArguments", "PEFT's LoraConfig"] {
        assert!(text.contains(&format!("\n### {part}\n")), "{part}");
    }
}

#[test]
fn every_loss_has_its_row_with_its_source() {
    let text = read("docs/objectives.md");
    for loss in Loss::ALL {
        let row = format!("| `{}`", loss.name());
        let row = text.lines().find(|line| line.starts_with(&row)).unwrap_or_else(|| panic!("{row}"));
        let papers = loss.source().split(|c: char| !c.is_ascii_digit() && c != '.').filter(|word| word.len() == 10);
        papers.for_each(|paper| assert!(row.contains(paper) || loss == Loss::BcoPair, "{paper}: {row}"));
    }
}

#[test]
fn the_reference_is_the_programs() {
    let (written, now) = (read("docs/reference.md"), reference());
    let differs = written.lines().zip(now.lines()).position(|(a, b)| a != b);
    assert!(
        written == now,
        "docs/reference.md is old (line {:?} differs first). Write it again: cargo run --release -- reference >docs/reference.md",
        differs.map(|line| line + 1)
    );
}

#[test]
fn the_program_prints_its_reference_man_pages_and_completions() {
    let run = |arguments: &[&str]| {
        let ran = Command::new(env!("CARGO_BIN_EXE_jointwise")).args(arguments).output().expect("the program");
        (ran.status.code(), String::from_utf8(ran.stdout).expect("text"))
    };
    assert_eq!(run(&["reference"]), (Some(0), reference()));
    assert!(run(&["man", "train"]).1.contains("learning"));
    for shell in ["bash", "zsh", "fish", "powershell"] {
        assert!(run(&["completions", shell]).1.contains("--learning-rate") || shell == "fish", "{shell}");
    }
    assert_eq!(run(&["man", "trian"]).0, Some(2));
    assert_eq!(run(&["completions", "dos"]).0, Some(2));
}

/// Each check above finds what it is for.
#[test]
fn mistakes_are_found() {
    let text = "Text.\n\n    # A comment.\n    jointwise train --model m --data d \\\n        --learning-rat 1e-3   # no flag\n";
    assert!(
        matches!(&command_mistakes("a.md", text)[..], [m] if m.starts_with("a.md:4: ") && m.contains("learning-rat"))
    );
    assert!(command_mistakes("a.md", &text.replace("rat ", "rate ")).is_empty());
    let fenced = "```\n$ jointwise generate --prompt 'a > b' --temprature 0 | less\n```\n";
    assert_eq!(command_mistakes("a.md", fenced).len(), 1);
    assert!(command_mistakes("a.md", &fenced.replace("temprature", "temperature")).is_empty());
    assert_eq!(command_mistakes("a.md", "    .ci/with-driver target/release/jointwise tran\n").len(), 1);
    assert_eq!(command_mistakes("a.md", "    cargo run --release -- referense >a\n").len(), 1);
    assert_eq!(command_mistakes("a.md", "    mpirun -n 2 jointwise tran : -n 1 jointwise train\n").len(), 1);
    // A value that is not one, and a required flag that is missing.
    assert_eq!(
        command_mistakes("a.md", "    jointwise train --recompute nothing\n    jointwise merge --model m\n").len(),
        2
    );
    assert_eq!(command_mistakes("a.md", "jointwise tran is prose\n"), Vec::<String>::new());

    assert_eq!(flag_mistakes("a.md", "Use `--learning-rat 1` or `--beta 1`."), ["a.md: no command has --learning-rat"]);
    let links =
        "[a](docs/start.md) [b](docs/strat.md) [c](docs/start.md#install) [d](docs/start.md#instal) [e](https://a.b/c)";
    assert_eq!(
        link_mistakes("README.md", links),
        ["README.md: docs/strat.md leads nowhere", "README.md: docs/start.md has no heading #instal"]
    );
    assert_eq!(length_mistakes(&"a\n".repeat(201)).len(), 1);
    assert_eq!(length_mistakes(&"a ".repeat(61)).len(), 1);
    assert_eq!(length_mistakes(&format!("{}\n", "a ".repeat(59)).repeat(26)).len(), 1);
    assert_eq!(shell_words(r#"a 'b c' "d"e \f #g"#), ["a", "b c", "de", "f"]);
    assert_eq!(anchor(" Windows and macOS"), "windows-and-macos");
}
