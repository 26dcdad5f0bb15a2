//! Shared by tests of configs and checkpoints.
use std::fs;
use std::path::{Path, PathBuf};

use jointwise::error::Error;
use jointwise::model::description::ModelConfig;

/// Fixtures of whole models: ours, and those beside the repository where they are.
pub fn oracles() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["tests/oracle", "../shared/oracle", "../../shared/oracle"].map(|f| root.join(f));
    let families = folders.iter().filter_map(|f| fs::read_dir(f).ok()).flatten().flatten().map(|e| e.path());
    let mut all: Vec<PathBuf> = families.filter(|f| f.join("model/config.json").exists()).collect();
    all.sort();
    assert!(!all.is_empty());
    all
}

pub fn describe(path: &Path) -> ModelConfig {
    ModelConfig::from_json(path, &fs::read_to_string(path).unwrap()).unwrap()
}

/// One line, status 2, with every part.
#[track_caller]
pub fn says(result: Result<impl Sized, Error>, parts: &[&str]) {
    let error = result.err().expect("an error");
    let text = error.to_string();
    assert!(!text.contains('\n'), "{text}");
    assert_eq!(error.exit_status(), 2);
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}
