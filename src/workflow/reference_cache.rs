//! Cache of reference scores. A folder of it has the scores of one model, by one program on one driver, whatever rows and losses they are for.

use std::path::PathBuf;

use super::cache_folder::cache_folder;
use super::self_test_cache::program_file;
use crate::files::parts_hash;
use crate::gpu::Caps;

/// Returns the folder of a reference's scores. Its name is a hash of `contents`, which holds no paths, of the program's version and file, and of the device
/// with its driver's name and version, because another driver or program may round otherwise.
pub fn folder(caps: &Caps, contents: &[&str]) -> PathBuf {
    cache_folder().join("reference").join(key(caps, contents))
}

fn key(caps: &Caps, contents: &[&str]) -> String {
    let program = format!("{} {:?}", env!("CARGO_PKG_VERSION"), program_file());
    let device = format!("{} {} {} {:?}", caps.name, caps.backend, caps.driver, caps.variants);
    let precision = caps.matmul_precision.name();
    let own = [program.as_str(), device.as_str(), precision];
    parts_hash(own.iter().chain(contents).map(|part| part.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_driver_device_precision_or_content_has_another_key() {
        let caps = Caps::baseline();
        let known = key(&caps, &["model", "reference"]);
        assert_eq!(known, key(&caps, &["model", "reference"]));
        let of = |caps: &Caps| key(caps, &["model", "reference"]);
        let others = [
            of(&Caps { driver: "llvmpipe Mesa 25.0.7".into(), ..caps.clone() }),
            of(&Caps { driver: "llvmpipe Mesa 26.0.0".into(), ..caps.clone() }),
            of(&Caps { name: "another device".into(), ..caps.clone() }),
            of(&Caps { backend: "another backend".into(), ..caps.clone() }),
            key(&caps, &["model", "another reference"]),
            key(&caps, &["modelreference"]),
        ];
        let mut all: Vec<&String> = others.iter().chain([&known]).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 7);
    }
}
