//! The bundled model inside the program: an installed program has no folder models/demo beside it.

use std::fs;
use std::path::Path;

use crate::error::{Error, Result};
use crate::model::save::StagedFolder;

/// Default of `demo --model`: the bundled model in the repository and in a release's archive.
const FOLDER: &str = "models/demo";

/// Files of the bundled model, by name.
const FILES: [(&str, &[u8]); 5] = [
    ("config.json", include_bytes!("../../models/demo/config.json")),
    ("model.safetensors", include_bytes!("../../models/demo/model.safetensors")),
    ("special_tokens_map.json", include_bytes!("../../models/demo/special_tokens_map.json")),
    ("tokenizer.json", include_bytes!("../../models/demo/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../models/demo/tokenizer_config.json")),
];

/// Writes the bundled model where `model` is the default folder and does not exist, with a note.
///
/// # Errors
/// [`Error::File`].
pub fn write_if_absent(model: &Path) -> Result<()> {
    if model != Path::new(FOLDER) || model.exists() {
        return Ok(());
    }
    write_demo_model(model)?;
    note!("note: {FOLDER} was not here: written by the program, which has the bundled model inside");
    Ok(())
}

/// Writes the bundled model into a new folder, completely or not at all.
fn write_demo_model(dir: &Path) -> Result<()> {
    StagedFolder::filled(dir, |aside| {
        FILES.iter().try_for_each(|(name, bytes)| {
            let path = aside.join(name);
            fs::write(&path, bytes).map_err(|e| Error::file(&path, e))
        })
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_programs_model_is_the_repositorys() {
        let dir = tempfile::tempdir().unwrap();
        let (written, bundled) = (dir.path().join("model"), Path::new(env!("CARGO_MANIFEST_DIR")).join(FOLDER));
        write_demo_model(&written).unwrap();
        let names = |dir: &Path| {
            let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.retain(|name| name != "README.md" && name != "report.png");
            names.sort();
            names
        };
        assert_eq!(names(&written), names(&bundled));
        for name in names(&written) {
            assert_eq!(fs::read(written.join(&name)).unwrap(), fs::read(bundled.join(&name)).unwrap(), "{name:?}");
        }
        crate::Policy::open(written.to_str().unwrap()).unwrap();
    }
}
