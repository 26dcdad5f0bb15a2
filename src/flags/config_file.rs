//! Flags from TOML files: `--config FILE.toml`, and the tables of a study.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Cli;
use crate::error::{Error, Result};
use crate::model::folder::{MAX_CONFIG_BYTES, read_file};

/// Merges flags with the keys of a TOML file; flags win.
///
/// # Errors
/// [`Error::File`] for a file that cannot be read; those of [`from_table`].
pub fn with_config<A: Serialize + DeserializeOwned>(flags: A, config: Option<&Path>, command: &str) -> Result<A> {
    let Some(path) = config else { return Ok(flags) };
    let text = read_file(path, MAX_CONFIG_BYTES)?;
    let file: toml::Table = text.parse().map_err(|e: toml::de::Error| {
        Error::file(path, e.to_string().lines().map(str::trim).collect::<Vec<_>>().join(" "))
    })?;
    from_table(flags, file, path, "", command)
}

/// Merges flags with the keys of a table; flags win. A key may be an alias of a flag. Messages put `section` before a key.
///
/// # Errors
/// [`Error::Field`] for a key that is not a flag, stands beside another name of the same flag, or has a wrong type.
pub fn from_table<A: Serialize + DeserializeOwned>(
    flags: A,
    file: toml::Table,
    path: &Path,
    section: &str,
    command: &str,
) -> Result<A> {
    let bad = |e: serde_json::Error| Error::file(path, e);
    let names = toml_keys(command);
    let mut by_flag = toml::Table::new();
    for (key, value) in file {
        let field = format!("{section}{key}");
        let Some(flag) = names.get(&key) else {
            return Err(Error::field(path, field, "is not a flag"));
        };
        // Alone first, so that a wrong type is told with its key.
        let alone = toml::Table::from_iter([(flag.clone(), value.clone())]);
        serde_json::to_value(alone).and_then(serde_json::from_value::<A>).map_err(|e| Error::field(path, &field, e))?;
        if by_flag.insert(flag.clone(), value).is_some() {
            return Err(Error::field(path, field, format!("is there twice: it and another key are both {flag}")));
        }
    }
    let mut merged = serde_json::to_value(&by_flag).map_err(bad)?;
    let typed = serde_json::to_value(&flags).map_err(bad)?;
    if let (Some(merged), Some(typed)) = (merged.as_object_mut(), typed.as_object()) {
        merged.extend(typed.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), v.clone())));
    }
    serde_json::from_value(merged).map_err(bad)
}

/// Returns the keys that a TOML file may have, each with its flag: the command's flags and their aliases, except the flag that names the file.
fn toml_keys(command: &str) -> BTreeMap<String, String> {
    use clap::CommandFactory;
    let cli = Cli::command();
    let mut keys = BTreeMap::new();
    for argument in cli.find_subcommand(command).into_iter().flat_map(|c| c.get_arguments()) {
        let Some(flag) = argument.get_long().filter(|&flag| flag != "config") else { continue };
        for name in argument.get_all_aliases().unwrap_or_default().into_iter().chain([flag]) {
            keys.insert(name.to_string(), flag.to_string());
        }
    }
    keys
}
