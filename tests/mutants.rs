//! The faults of `tests/mutants` still apply: `make mutants` (by hand: it runs the tests once a fault) plants them and says which live.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    name: String,
    kind: String,
    breaks: String,
    file: String,
    find: String,
    put: String,
    tests: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutants {
    mutant: Vec<Mutant>,
}

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Where a fault's text is, and where the part is that it replaces: both as ranges of bytes. The reason where it is not there once.
fn place(text: &str, find: &str) -> Result<(usize, usize), String> {
    let (before, rest) = find.split_once('⟦').ok_or("`find` has no ⟦")?;
    let (old, after) = rest.split_once('⟧').ok_or("`find` has no ⟧")?;
    let whole = [before, old, after].concat();
    match text.matches(&whole).count() {
        1 => {}
        n => return Err(format!("what it replaces stands {n} times: change `find` in tests/mutants/mutants.toml")),
    }
    let at = text.find(&whole).unwrap_or_default() + before.len();
    Ok((at, at + old.len()))
}

#[test]
fn every_fault_still_applies() {
    let all: Mutants = toml::from_str(&read("tests/mutants/mutants.toml")).expect("a list of faults");
    let names: BTreeSet<&str> = all.mutant.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(names.len(), all.mutant.len(), "two faults of one name");
    let kinds: BTreeSet<&str> = all.mutant.iter().map(|m| m.kind.as_str()).collect();
    assert!(all.mutant.len() >= 72 && kinds.len() >= 12, "{} faults of {} kinds", all.mutant.len(), kinds.len());
    let mut places: BTreeMap<&str, Vec<(usize, usize, &str)>> = BTreeMap::new();
    for m in &all.mutant {
        let (start, end) = place(&read(&m.file), &m.find).unwrap_or_else(|e| panic!("{}: {}: {e}", m.name, m.file));
        let replaced = m.find.split(['⟦', '⟧']).nth(1).unwrap_or_default();
        assert!(replaced != m.put && !m.put.is_empty() && !m.breaks.is_empty(), "{}: it changes nothing", m.name);
        places.entry(&m.file).or_default().push((start, end, &m.name));
        for spec in &m.tests {
            let test = spec.split(' ').next().unwrap_or_default();
            assert!(test == "lib" || !read(&format!("tests/{test}.rs")).is_empty(), "{}: {spec}", m.name);
        }
        assert!(!m.tests.is_empty(), "{}: nothing is named that should see it", m.name);
    }
    for (file, mut some) in places {
        some.sort_unstable();
        for two in some.windows(2) {
            assert!(two[0].1 <= two[1].0, "{file}: {} and {} replace the same text", two[0].2, two[1].2);
        }
    }
    // The check can fail.
    assert!(place("a b a", "⟦a⟧").is_err() && place("a b", "⟦c⟧").is_err() && place("a", "a").is_err());
    assert_eq!(place("a b a", "b ⟦a⟧"), Ok((4, 5)));
}
