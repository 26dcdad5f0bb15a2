//! Reference scores on disk: computed once for a model, rows and an objective, by one program on one driver.

use std::path::PathBuf;

use super::train::hash;
use super::{checked, session};
use crate::error::Result;
use crate::gpu::Caps;
use crate::model::folder::read_regular;
use crate::model::save::write_text;

/// A file of scores is smaller than this: two numbers a row.
const MAX_BYTES: u64 = 1 << 32;

/// The folder of reference scores.
pub struct ReferenceCache {
    dir: PathBuf,
}

impl ReferenceCache {
    /// That of the cache folder.
    pub fn new() -> Self {
        Self { dir: session::cache_folder().join("reference") }
    }

    /// Returns the name of scores: a hash of `contents`, which holds no paths, of the program's version and file, and of the device with its
    /// driver's name and version. Another driver or program may round otherwise.
    pub fn key(caps: &Caps, contents: &[&str]) -> String {
        let program = format!("{} {:?}", env!("CARGO_PKG_VERSION"), checked::program_file());
        let device = format!("{} {} {} {:?}", caps.name, caps.backend, caps.driver, caps.variants);
        let precision = caps.matmul_precision.name();
        let own = [program.as_str(), device.as_str(), precision];
        hash(own.iter().chain(contents).map(|part| part.as_bytes()))
    }

    /// Returns the scores of this name, or computes and keeps them. A cache that cannot be read or written costs time, nothing else.
    ///
    /// # Errors
    /// Those of `compute`.
    pub fn get(&self, key: &str, n: usize, compute: impl FnOnce() -> Result<Vec<[f64; 2]>>) -> Result<Vec<[f64; 2]>> {
        let path = self.dir.join(format!("{key}.json"));
        let kept = read_regular(&path, MAX_BYTES).ok().and_then(|t| serde_json::from_slice::<Vec<[f64; 2]>>(&t).ok());
        if let Some(kept) = kept.filter(|k| k.len() == n) {
            return Ok(kept);
        }
        let scores = compute()?;
        if std::fs::create_dir_all(&self.dir).is_ok()
            && let Ok(text) = serde_json::to_string(&scores)
        {
            let _ = write_text(&path, &text);
        }
        Ok(scores)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn another_driver_device_precision_or_content_has_another_key() {
        let caps = Caps::baseline();
        let key = |caps: &Caps| ReferenceCache::key(caps, &["model", "rows"]);
        let known = key(&caps);
        assert_eq!(known, key(&caps));
        let others = [
            key(&Caps { driver: "llvmpipe Mesa 25.0.7".into(), ..caps.clone() }),
            key(&Caps { driver: "llvmpipe Mesa 26.0.0".into(), ..caps.clone() }),
            key(&Caps { name: "another device".into(), ..caps.clone() }),
            key(&Caps { backend: "another backend".into(), ..caps.clone() }),
            ReferenceCache::key(&caps, &["model", "other rows"]),
            ReferenceCache::key(&caps, &["modelrows"]),
        ];
        let mut all: Vec<&String> = others.iter().chain([&known]).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 7);
    }

    #[test]
    fn scores_are_computed_once() {
        let dir = tempfile::tempdir().unwrap();
        let cache = ReferenceCache { dir: dir.path().join("reference") };
        let scores = vec![[0.1, -2.0], [1.0 / 3.0, 4.0]];
        assert_eq!(cache.get("k", 2, || Ok(scores.clone())).unwrap(), scores);
        assert_eq!(cache.get("k", 2, || panic!("computed again")).unwrap(), scores);
        // Of other rows, or damaged: computed again.
        assert_eq!(cache.get("k", 1, || Ok(vec![[5.0; 2]])).unwrap(), [[5.0; 2]]);
        std::fs::write(dir.path().join("reference/k.json"), "[[1.0,").unwrap();
        assert_eq!(cache.get("k", 1, || Ok(vec![[6.0; 2]])).unwrap(), [[6.0; 2]]);
    }
}
