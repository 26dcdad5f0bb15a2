//! Flags from TOML files: `--config FILE.toml`, and the tables of a study.

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

/// Merges flags with the keys of a table; flags win. Messages put `section` before a key.
///
/// # Errors
/// [`Error::Field`] for a key that is not a flag, or has a wrong type.
pub fn from_table<A: Serialize + DeserializeOwned>(
    flags: A,
    file: toml::Table,
    path: &Path,
    section: &str,
    command: &str,
) -> Result<A> {
    let bad = |e: serde_json::Error| Error::file(path, e);
    let known = toml_keys(command);
    for key in file.keys() {
        let field = format!("{section}{key}");
        if !known.contains(key) {
            return Err(Error::field(path, field, "is not a flag"));
        }
        // Alone first, so that a wrong type is told with its key.
        let alone = toml::Table::from_iter([(key.clone(), file[key].clone())]);
        serde_json::to_value(alone).and_then(serde_json::from_value::<A>).map_err(|e| Error::field(path, field, e))?;
    }
    let mut merged = serde_json::to_value(&file).map_err(bad)?;
    let typed = serde_json::to_value(&flags).map_err(bad)?;
    if let (Some(merged), Some(typed)) = (merged.as_object_mut(), typed.as_object()) {
        merged.extend(typed.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), v.clone())));
    }
    serde_json::from_value(merged).map_err(bad)
}

/// Returns the keys that a TOML file may have: the command's flags, except the flag that names the file.
fn toml_keys(command: &str) -> Vec<String> {
    use clap::CommandFactory;
    let cli = Cli::command();
    let flags = cli.find_subcommand(command).into_iter().flat_map(|c| c.get_arguments()).filter_map(|a| a.get_long());
    flags.filter(|&flag| flag != "config").map(String::from).collect()
}
