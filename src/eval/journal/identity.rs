//! Checks whether a judge may continue a file of answers: it must be the judge that gave them.

use serde_json::{Map, Value};

/// Field with the address of a judge. It may change, because a server may move.
const ADDRESS: &str = "endpoint";
/// Field with the largest number of tokens per answer. It may grow, because verdicts of shorter answers remain valid.
const LONGEST: &str = "max_tokens";

/// Result of comparing a judge with the judge that gave a file's answers.
#[derive(Debug, PartialEq)]
pub enum IdentityMatch {
    /// Identical judge.
    Same,
    /// Identical judge at another endpoint.
    Moved,
    /// Identical judge with a higher limit of tokens per answer.
    Longer,
    /// Different judge, with the name of the first field that differs.
    Other(String),
}

/// Compares the identities of an earlier judge and of the present one.
pub fn kinship(was: &Value, now: &Value) -> IdentityMatch {
    let empty = Map::new();
    let (old, new) = (was.as_object().unwrap_or(&empty), now.as_object().unwrap_or(&empty));
    if was == now {
        return IdentityMatch::Same;
    }
    let differing = || old.keys().chain(new.keys()).filter(|name| old.get(*name) != new.get(*name));
    let limits = [old, new].map(|identity| identity.get(LONGEST).and_then(Value::as_u64));
    let grows = matches!(limits, [Some(old), Some(new)] if old <= new);
    match differing().find(|name| *name != ADDRESS && !(*name == LONGEST && grows)) {
        Some(name) => IdentityMatch::Other(name.clone()),
        None if limits[0] != limits[1] => IdentityMatch::Longer,
        None if differing().next().is_some() => IdentityMatch::Moved,
        None => IdentityMatch::Other("kind".into()),
    }
}

/// Returns the address in a judge's identity.
pub fn address(identity: &Value) -> &str {
    identity[ADDRESS].as_str().unwrap_or("elsewhere")
}

/// Returns the largest number of tokens of an answer of this judge. Custom fields of its requests take precedence.
pub fn longest_answer(identity: &Value) -> Option<u64> {
    let extra = &identity["extra"];
    let own = if extra.get(LONGEST).is_some() { &extra[LONGEST] } else { &identity[LONGEST] };
    [own, &extra["max_completion_tokens"]].into_iter().filter_map(Value::as_u64).max()
}
