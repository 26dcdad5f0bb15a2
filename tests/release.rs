//! Checks of a release: one version everywhere, the same platforms as archive and as wheel, workflows whose commands and tests exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use jointwise::cli::parse_only;
use toml::{Table, Value};

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn table(path: &str) -> Table {
    read(path).parse().unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Names and texts of the workflows, without `release.yml`, which dist writes.
fn workflows() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(".github/workflows");
    let files = fs::read_dir(folder).expect("the workflows").map(|e| e.expect("an entry").file_name());
    let names = files.map(|name| format!(".github/workflows/{}", name.to_string_lossy()));
    names.filter(|name| !name.ends_with("/release.yml")).map(|name| (name.clone(), read(&name))).collect()
}

fn strings(value: &Value) -> BTreeSet<String> {
    value.as_array().expect("a list").iter().map(|s| s.as_str().expect("a text").to_string()).collect()
}

/// Returns the first version among a changelog's headings.
fn newest_version(changelog: &str) -> Option<&str> {
    let headings = changelog.lines().filter_map(|line| line.strip_prefix("## "));
    headings.filter_map(|h| h.split(' ').next()).find(|word| word.starts_with(|c: char| c.is_ascii_digit()))
}

#[test]
fn versions_are_in_step() {
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(newest_version(&read("CHANGELOG.md")), Some(version), "CHANGELOG.md and Cargo.toml");
    assert_eq!(newest_version("# A\n## Unreleased\n## 1.2.3 (2026-12-01)\n## 1.2.2\n"), Some("1.2.3"));
    // The wheel takes its version from Cargo.toml.
    let project = &table("pyproject.toml")["project"];
    assert_eq!(strings(&project["dynamic"]), BTreeSet::from(["version".to_string()]));
    assert!(project.get("version").is_none());
    // release.yml is what this dist writes.
    let dist = &table("dist-workspace.toml")["dist"];
    let used = format!("/cargo-dist/releases/download/v{}/", dist["cargo-dist-version"].as_str().expect("a version"));
    assert!(read(".github/workflows/release.yml").contains(&used), "release.yml: run `dist generate`");
}

#[test]
fn archives_and_wheels_are_for_the_same_platforms() {
    let dist = &table("dist-workspace.toml")["dist"];
    let wheels = read(".github/workflows/wheels.yml");
    let of_wheels: BTreeSet<String> =
        wheels.lines().filter_map(|l| l.trim().strip_prefix("- target: ")).map(String::from).collect();
    assert_eq!(of_wheels, strings(&dist["targets"]));
    let checked = strings(&table("deny.toml")["graph"]["targets"]);
    assert!(checked.is_superset(&of_wheels), "deny.toml checks {checked:?}");
}

/// The repository's owner has one name, or one placeholder.
#[test]
fn one_owner_is_named() {
    let cargo = table("Cargo.toml");
    let repository = cargo["package"]["repository"].as_str().expect("an address");
    let owner =
        repository.strip_prefix("https://github.com/").and_then(|r| r.strip_suffix("/jointwise")).expect("an owner");
    let tap = format!("{owner}/homebrew-tap");
    assert_eq!(table("dist-workspace.toml")["dist"]["tap"].as_str(), Some(&tap[..]));
    assert!(read(".github/workflows/release.yml").contains(&tap), "release.yml: run `dist generate`");
    assert!(read("SECURITY.md").contains(&format!("--repo {owner}/jointwise")));
}

/// Returns what is wrong with the `uses:` of a workflow: an action by a tag may change under us.
fn unpinned(text: &str) -> Vec<&str> {
    // Its commits could not be looked up when this was written.
    const BY_TAG: &str = "pypa/gh-action-pypi-publish@release/v1";
    let uses = text.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix("uses: "));
    let is_pinned = |action: &str| {
        let commit = action.split('@').nth(1).and_then(|c| c.split(' ').next()).unwrap_or_default();
        commit.len() == 40 && commit.chars().all(|c| c.is_ascii_hexdigit())
    };
    uses.filter(|action| !is_pinned(action) && *action != BY_TAG).collect()
}

#[test]
fn workflows_are_pinned_and_may_only_read() {
    for (name, text) in workflows() {
        assert_eq!(unpinned(&text), Vec::<&str>::new(), "{name}");
        assert!(text.contains("\npermissions:\n  contents: read\n"), "{name}: permissions");
        assert!(text.contains("\nconcurrency:\n"), "{name}: concurrency");
    }
    assert_eq!(unpinned(&read(".github/workflows/release.yml")), Vec::<&str>::new());
    assert_eq!(unpinned("  - uses: actions/checkout@v7\n"), ["actions/checkout@v7"]);
}

/// Returns the command lines in a script or workflow that begin, after an assignment or a wrapper, with `program`.
fn commands<'a>(text: &'a str, program: &str) -> Vec<Vec<&'a str>> {
    let mut found = Vec::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        let words: Vec<&str> = line.split([' ', '"', '\'']).filter(|w| !w.is_empty()).collect();
        for start in (0..words.len()).filter(|&i| words[i] == program) {
            let ends = |word: &&&str| !word.starts_with(['>', '|', '&', ';']) && !word.ends_with(']');
            found.push(words[start + 1..].iter().take_while(ends).copied().collect());
        }
    }
    found
}

/// Returns what a `cargo test` asks for that does not exist: files in tests/, and filters that no name in them has.
fn test_mistakes(words: &[&str]) -> Vec<String> {
    let mut wrong = Vec::new();
    let (own, filters) = words.split_at(words.iter().position(|w| *w == "--").unwrap_or(words.len()));
    let files: Vec<&str> = own.windows(2).filter(|pair| pair[0] == "--test").map(|pair| pair[1]).collect();
    let exists = |file: &&str| Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/{file}.rs")).exists();
    wrong.extend(files.iter().filter(|f| !exists(f)).map(|file| format!("there is no tests/{file}.rs")));
    let sources: String = files.iter().filter(|f| exists(f)).map(|file| read(&format!("tests/{file}.rs"))).collect();
    let is_there = |filter: &str| match filter.strip_suffix("::") {
        Some(module) => sources.lines().any(|line| line.trim_start().starts_with(&format!("{module}: "))),
        None => sources.contains(filter),
    };
    let names = filters.iter().skip(1).filter(|word| !word.starts_with('-'));
    wrong.extend(names.filter(|word| !is_there(word)).map(|word| format!("no test is called {word}")));
    wrong
}

#[test]
fn what_the_workflows_run_exists() {
    let mut scripts = workflows();
    scripts.push((".ci/run".into(), read(".ci/run")));
    let (mut n_tests, mut n_commands) = (0, 0);
    for (name, text) in &scripts {
        for words in commands(text, "cargo").iter().filter(|words| words.first() == Some(&"test")) {
            n_tests += 1;
            assert_eq!(test_mistakes(words), Vec::<String>::new(), "{name}: {}", words.join(" "));
        }
        for words in commands(text, "target/release/jointwise") {
            n_commands += 1;
            let parsed = parse_only(std::iter::once("jointwise").chain(words).map(String::from));
            assert_eq!(parsed.err(), None, "{name}");
        }
        let called = text.split([' ', '\n', '"']).filter(|word| word.starts_with(".ci/"));
        for file in called.map(|word| word.trim_end_matches([':', ';', ','])) {
            assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(file).exists(), "{name}: there is no {file}");
        }
    }
    assert!(n_tests >= 8 && n_commands >= 5, "{n_tests} runs of tests and {n_commands} commands were found");
    assert_eq!(test_mistakes(&["test", "--test", "oracle", "--", "qwen3::"]), Vec::<String>::new());
    assert_eq!(test_mistakes(&["test", "--test", "oracle", "--", "qwen33::"]), ["no test is called qwen33::"]);
    assert_eq!(test_mistakes(&["test", "--test", "orakle"]), ["there is no tests/orakle.rs"]);
}
