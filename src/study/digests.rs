//! Digests of what a study reads. A study that goes on is refused where these contents have changed.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::rows;
use super::study_file::Study;
use crate::error::{Error, Result};
use crate::model::checkpoint::Checkpoint;
use crate::model::gguf::is_gguf;
use crate::model::hub;
use crate::model::peft;
use crate::model::side_files::{CONFIG, GENERATION_CONFIG, SideFiles};

/// Computes the SHA-256 of each file that the study reads, and of the model. Results depend on these contents.
pub fn digests(study: &Study) -> Result<BTreeMap<PathBuf, String>> {
    let digest = |path: &PathBuf| Ok((path.clone(), file_digest(path)?));
    let mut all: BTreeMap<PathBuf, String> = study.files().iter().map(digest).collect::<Result<_>>()?;
    let model = Path::new(&study.model);
    let digest = if is_gguf(model) { file_digest(model)? } else { model_digest(&hub::resolve(&study.model)?)? };
    all.insert(model.into(), digest);
    Ok(all)
}

/// Computes the SHA-256, in hexadecimal, of the regular files that a path stands for. No more than a piece is in memory at a time.
fn file_digest(path: &Path) -> Result<String> {
    let at = |e: std::io::Error| Error::file(path, e);
    let files = rows::regular(path)?;
    let mut hash = Sha256::new();
    for file in &files {
        let n_bytes = fs::metadata(file).map_err(at)?.len();
        if files.len() > 1 {
            hash.update(n_bytes.to_le_bytes());
        }
        // A file that grows while it is read ends where it ended.
        let mut rest = fs::File::open(file).map_err(at)?.take(n_bytes);
        let mut piece = vec![0; 1 << 20];
        loop {
            match rest.read(&mut piece) {
                Ok(0) => break,
                Ok(n) => hash.update(&piece[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(at(e)),
            }
        }
    }
    Ok(hex(hash))
}

/// Computes the SHA-256, in hexadecimal, of a model's weights and of the side files that a result depends on.
fn model_digest(dir: &Path) -> Result<String> {
    let side = SideFiles::read(dir);
    let mut hash = Sha256::new();
    hash.update(Checkpoint::open(dir)?.digest()?);
    hash.update(side.tokenizer_digest());
    for name in [CONFIG, GENERATION_CONFIG] {
        let bytes = side.bytes(name)?.unwrap_or_default();
        hash.update(format!("\0{name}\0{}\0", bytes.len()));
        hash.update(bytes);
    }
    Ok(hex(hash))
}

/// Computes the SHA-256, in hexadecimal, of an adapter's weights and of the side files that a result depends on.
pub fn adapter_digest(place: &Path) -> Result<String> {
    let dir = hub::resolve_adapter(place)?;
    let mut hash = Sha256::new();
    for name in [peft::CONFIG, peft::WEIGHTS] {
        hash.update(file_digest(&dir.join(name))?);
    }
    let side = SideFiles::read(&dir);
    hash.update(side.tokenizer_digest());
    hash.update(side.bytes(GENERATION_CONFIG)?.unwrap_or_default());
    Ok(hex(hash))
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_study_reads_has_a_digest() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x");
        std::fs::write(&file, "abc").unwrap();
        assert!(file_digest(&file).unwrap().starts_with("ba7816bf8f01cfea"), "SHA-256 of abc");
        let told = |path: &Path| file_digest(path).unwrap_err().to_string();
        assert!(told(dir.path()).contains("the folder holds no file of rows"));
        let rows = dir.path().join("rows");
        std::fs::create_dir(&rows).unwrap();
        let folder = |b: &str| {
            [("a.jsonl", "a"), ("b.jsonl", b)]
                .iter()
                .for_each(|(name, text)| std::fs::write(rows.join(name), text).unwrap());
            file_digest(&rows).unwrap()
        };
        assert_eq!(folder("b"), folder("b"));
        assert_ne!(folder("b"), folder("c"), "every file of a folder counts");
        #[cfg(unix)]
        assert_eq!(told(Path::new("/dev/zero")), "/dev/zero: is not a regular file");

        let model = dir.path().join("model");
        std::fs::create_dir(&model).unwrap();
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
        for entry in std::fs::read_dir(demo).unwrap().map(|e| e.unwrap().path()).filter(|path| path.is_file()) {
            std::fs::copy(&entry, model.join(entry.file_name().unwrap())).unwrap();
        }
        let was = model_digest(&model).unwrap();
        assert_eq!(model_digest(&model).unwrap(), was);
        std::fs::write(model.join("README.md"), "other").unwrap();
        assert_eq!(model_digest(&model).unwrap(), was, "a card changes no result");
        for name in ["chat_template.jinja", GENERATION_CONFIG] {
            std::fs::write(model.join(name), "{ }").unwrap();
            assert_ne!(model_digest(&model).unwrap(), was, "{name}");
            std::fs::remove_file(model.join(name)).unwrap();
        }
    }
}
