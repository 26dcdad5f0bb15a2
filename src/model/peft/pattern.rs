//! Regular expressions of `adapter_config.json`, which are Python's, and the values that they select.

use fancy_regex::Regex;
use serde_json::Value;

/// Name of a field, and the reason why it cannot be used.
pub(super) type FieldReason = (&'static str, String);

/// Entries of `rank_pattern` or `alpha_pattern`: each a regular expression that matches the end of a module's name, with a value.
#[derive(Debug, Clone)]
pub(super) struct NamePattern<T> {
    /// Pattern as written in the file.
    pub text: String,
    /// Compiled pattern.
    pub regex: Regex,
    /// Rank, or α.
    pub value: T,
}

/// Compiles a Python regular expression.
pub(super) fn compiled(pattern: &str) -> Result<Regex, String> {
    Regex::new(pattern).map_err(|e| format!("{pattern:?} is not a regular expression: {e}"))
}

/// Compiles a Python regular expression that must match a whole name (`re.fullmatch`).
pub(super) fn compiled_whole(pattern: &str) -> Result<Regex, String> {
    compiled(&format!("^(?:{pattern})$"))
}

/// Returns whether a field's regular expression matches a module's name. Fails where matching would take too many steps.
pub(super) fn fits(field: &'static str, regex: &Regex, module: &str) -> Result<bool, FieldReason> {
    regex.is_match(module).map_err(|e| (field, unmatched(regex, module, &e)))
}

/// Explains why a regular expression could not be matched.
pub(super) fn unmatched(regex: &Regex, module: &str, error: &fancy_regex::Error) -> String {
    format!("{:?} cannot be matched with {module}: {error}", regex.as_str())
}

/// Returns the value of the first entry that matches.
pub(super) fn first_fit<T: Copy>(
    field: &'static str,
    patterns: &[NamePattern<T>],
    module: &str,
) -> Result<Option<T>, FieldReason> {
    for pattern in patterns {
        if fits(field, &pattern.regex, module)? {
            return Ok(Some(pattern.value));
        }
    }
    Ok(None)
}

/// Reads an object of names and values. PEFT matches each name as a regular expression at the end of a module's name.
pub(super) fn read_patterns<T>(
    value: Option<&Value>,
    read: impl Fn(&Value) -> Result<T, String>,
) -> Result<Vec<NamePattern<T>>, String> {
    let Some(value) = value else { return Ok(Vec::new()) };
    let entries = value.as_object().ok_or_else(|| format!("expected an object of names and numbers, found {value}"))?;
    let pattern = |(text, value): (&String, &Value)| {
        let regex = compiled(&format!(r"^(?:.*\.)?(?:{text})$"))?;
        Ok(NamePattern { text: text.clone(), regex, value: read(value).map_err(|e| format!("{text}: {e}"))? })
    };
    entries.iter().map(pattern).collect()
}
