//! The layers of the crate: a module uses only what is below it, and files of a folder do not use each other in circles.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::UseTree;
use syn::visit::{self, Visit};

/// Modules of the crate from the top floor to the ground. Those of one entry may not use each other.
const ORDER: &[&[&str]] = &[
    &["main"],
    &["cli"],
    &["study"],
    &["flags"],
    &["workflow"],
    &["report"],
    &["eval"],
    &["train"],
    &["data"],
    &["model"],
    &["objective"],
    &["kernels"],
    &["gpu", "ranks"],
    &["files", "progress", "rng", "validate"],
    &["error"],
];

/// A source file: the modules of its path, and what it uses.
struct Source {
    /// `["data", "dataset", "fit"]` of `src/data/dataset/fit.rs`; none of the root.
    module: Vec<String>,
    /// Paths from the root: `["error", "Error"]`.
    uses: Vec<Vec<String>>,
}

/// Returns the modules of a file's path below `src`.
fn module_of(path: &Path) -> Vec<String> {
    let mut parts: Vec<String> = path.with_extension("").iter().map(|part| part.to_str().unwrap().into()).collect();
    if parts.last().is_some_and(|last| last == "mod" || last == "lib") {
        parts.pop();
    }
    parts
}

/// Collects the paths that a file uses, resolved from the crate's root.
struct UseVisitor {
    module: Vec<String>,
    uses: Vec<Vec<String>>,
}

impl UseVisitor {
    fn add(&mut self, path: &[String]) {
        let ups = path.iter().take_while(|part| *part == "super").count();
        let resolved = match path[0].as_str() {
            "crate" => path[1..].to_vec(),
            "self" => [&self.module, &path[1..]].concat(),
            "super" => [&self.module[..self.module.len().saturating_sub(ups)], &path[ups..]].concat(),
            _ => return,
        };
        self.uses.push(resolved);
    }

    fn add_tree(&mut self, before: &[String], tree: &UseTree) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.add_tree(&with(&path.ident), &path.tree),
            UseTree::Name(name) => self.add(&with(&name.ident)),
            UseTree::Rename(name) => self.add(&with(&name.ident)),
            UseTree::Glob(_) => self.add(before),
            UseTree::Group(group) => group.items.iter().for_each(|item| self.add_tree(before, item)),
        }
    }
}

impl<'ast> Visit<'ast> for UseVisitor {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        // Tests may use what they like.
        let is_test = |attribute: &syn::Attribute| {
            attribute.path().is_ident("cfg")
                && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
        };
        if item.content.is_some() && !item.attrs.iter().any(is_test) {
            self.module.push(item.ident.to_string());
            visit::visit_item_mod(self, item);
            self.module.pop();
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.add_tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.add(&path.segments.iter().map(|segment| segment.ident.to_string()).collect::<Vec<_>>());
        visit::visit_path(self, path);
    }
}

/// Reads what a file uses: its `use` items, and paths in its code that begin with `crate`, `self` or `super`.
fn source(module: Vec<String>, text: &str) -> Source {
    let mut visitor = UseVisitor { module: module.clone(), uses: Vec::new() };
    visitor.visit_file(&syn::parse_file(text).unwrap());
    Source { module, uses: visitor.uses }
}

fn files(dir: &Path, all: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, all);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            all.push(path);
        }
    }
}

fn crate_sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&root, &mut all);
    all.sort();
    let read =
        |path: &PathBuf| source(module_of(path.strip_prefix(&root).unwrap()), &fs::read_to_string(path).unwrap());
    all.iter().map(read).collect()
}

/// Names each use of a module that is not below the user's.
fn arrows_up(sources: &[Source]) -> Vec<String> {
    let floor = |name: &str| ORDER.iter().position(|floor| floor.contains(&name));
    let mut found = Vec::new();
    for Source { module, uses } in sources {
        let Some(from) = module.first().and_then(|name| floor(name)) else {
            continue;
        };
        for path in uses.iter().filter(|path| path.first() != module.first()) {
            if path.first().and_then(|name| floor(name)).is_some_and(|to| to <= from) {
                let (module, path) = (module.join("::"), path.join("::"));
                found.push(format!("{module} uses {path}, which is not below it"));
            }
        }
    }
    found
}

/// Names the circles among files of each folder. A parent and its children may use each other: children stand for their parent's file in its folder.
fn circles(sources: &[Source]) -> Vec<String> {
    let modules: BTreeSet<&[String]> = sources.iter().map(|source| &source.module[..]).collect();
    let mut edges: BTreeMap<Vec<String>, BTreeSet<Vec<String>>> = BTreeMap::new();
    for Source { module, uses } in sources {
        for path in uses {
            let Some(target) = (1..=path.len()).rev().map(|n| &path[..n]).find(|path| modules.contains(path)) else {
                continue;
            };
            // The first place where the two part: siblings there.
            let common = module.iter().zip(target).take_while(|(a, b)| a == b).count();
            if common < module.len() && common < target.len() && common > 0 {
                edges.entry(module[..=common].to_vec()).or_default().insert(target[..=common].to_vec());
            }
        }
    }
    let reaches = |from: &Vec<String>| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(at) = next.pop() {
            for to in edges.get(at).into_iter().flatten() {
                if seen.insert(to.clone()) {
                    next.push(to);
                }
            }
        }
        seen
    };
    let all: BTreeMap<&Vec<String>, BTreeSet<Vec<String>>> = edges.keys().map(|from| (from, reaches(from))).collect();
    let mut found = BTreeSet::new();
    for (from, seen) in &all {
        if seen.contains(*from) {
            let ring = seen.iter().filter(|to| all.get(to).is_some_and(|back| back.contains(*from)));
            found.insert(ring.map(|module| module.join("::")).collect::<Vec<_>>().join(", "));
        }
    }
    found.into_iter().collect()
}

#[test]
fn modules_use_only_what_is_below_them() {
    let sources = crate_sources();
    let known: BTreeSet<&str> = ORDER.iter().flat_map(|floor| floor.iter().copied()).collect();
    let unknown: BTreeSet<&str> = sources
        .iter()
        .filter_map(|s| s.module.first())
        .map(String::as_str)
        .filter(|name| !known.contains(name))
        .collect();
    assert!(unknown.is_empty(), "not in ORDER: {unknown:?}");
    let found = arrows_up(&sources);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn files_of_a_folder_use_each_other_in_no_circle() {
    let found = circles(&crate_sources());
    assert!(found.is_empty(), "{} circles:\n{}", found.len(), found.join("\n"));
}

/// Returns the command line's files of more than 350 lines, and its lines where there are more than 3,500.
fn too_long(files: &[(String, usize)]) -> Vec<String> {
    let all: usize = files.iter().map(|(_, lines)| lines).sum();
    let long = files.iter().filter(|(_, lines)| *lines > 350).map(|(file, lines)| format!("{file} has {lines} lines"));
    long.chain((all > 3500).then(|| format!("cli has {all} lines"))).collect()
}

/// The command line is flags and the terminal: what else it did belongs to the library.
#[test]
fn the_command_line_is_thin() {
    let mut files = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli")];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push((path.display().to_string(), fs::read_to_string(&path).unwrap().lines().count()));
            }
        }
    }
    assert!(files.len() > 15, "{files:?}");
    assert_eq!(too_long(&files), [""; 0]);
    assert_eq!(
        too_long(&[("a".into(), 351), ("b".into(), 3150)]),
        ["a has 351 lines", "b has 3150 lines", "cli has 3501 lines"]
    );
}

/// The control: arrows that run up and circles are found.
#[test]
fn arrows_that_run_up_and_circles_are_found() {
    let at = |path: &str| module_of(Path::new(path));
    let up =
        source(at("gpu/memory.rs"), "use crate::{error::Error, model::{config, load::Load}};\n// use crate::cli;\n");
    assert_eq!(arrows_up(&[up]).len(), 2);
    let inline = source(at("data/rows.rs"), "fn f() {\n    crate::train::run::go(crate::error::Error::new());\n}\n");
    assert_eq!(arrows_up(&[inline]), ["data::rows uses train::run::go, which is not below it"]);
    let folder = |a: &str, b: &str| {
        [source(at("data/a.rs"), a), source(at("data/b.rs"), b), source(at("data/b/c.rs"), "use super::super::a::A;")]
    };
    assert_eq!(circles(&folder("use super::b::{\n    B,\n};", "")), ["data::a, data::b"]);
    assert_eq!(circles(&folder("use super::B;", "use self::c::C;")), [""; 0]);
    let inner = source(at("data/a.rs"), "mod tests {\n    use super::super::b::B;\n    use super::*;\n}\n");
    assert_eq!(inner.uses, [vec!["data", "b", "B"], vec!["data", "a"]]);
}
