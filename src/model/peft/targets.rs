//! Selection of the modules that have an adapter, with PEFT's precedence (`check_target_module_exists` in PEFT 0.21): `exclude_modules`,
//! then `target_modules`, then `layers_to_transform`.

use std::collections::BTreeSet;
use std::fmt;

use fancy_regex::Regex;
use serde_json::{Value, json};

use super::super::description::LinearSpec;
use super::pattern::{FieldReason, compiled, compiled_whole, fits, unmatched};

/// Name that means every linear module except the head.
pub(super) const ALL_LINEAR: &str = "all-linear";

/// Selection of the modules that have an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoraTargets {
    /// `all-linear`: all linear modules except the head.
    AllLinear,
    /// Last components, or longer suffixes, of module names.
    Names(Vec<String>),
    /// Python regular expression that matches whole names.
    Pattern(String),
}

impl fmt::Display for LoraTargets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllLinear => f.write_str(ALL_LINEAR),
            Self::Names(names) => f.write_str(&names.join(", ")),
            Self::Pattern(pattern) => f.write_str(pattern),
        }
    }
}

/// Returns the last components of modules' names.
fn last_components<'m>(modules: impl IntoIterator<Item = &'m LinearSpec>) -> BTreeSet<&'m str> {
    modules.into_iter().filter_map(|module| module.name.rsplit('.').next()).collect()
}

impl LoraTargets {
    /// Parses names as typed on the command line; `all-linear` may be among them.
    pub(super) fn typed(names: &[String]) -> Self {
        if names.iter().any(|n| n == ALL_LINEAR) { Self::AllLinear } else { Self::Names(names.to_vec()) }
    }

    /// Lists the names of these modules. PEFT takes `layers_to_transform` with a list only, not with `all-linear`.
    pub(super) fn listed<'m>(modules: impl IntoIterator<Item = &'m LinearSpec>) -> Self {
        Self::Names(last_components(modules).into_iter().map(String::from).collect())
    }

    /// Returns the pattern of modules of a wrapped language model, in some layers or (empty) in all. Their names alone would match a vision
    /// tower's modules, too.
    pub(super) fn in_language_model(modules: &[&LinearSpec], layers: &[usize]) -> Self {
        let names = last_components(modules.iter().copied()).into_iter().collect::<Vec<_>>().join("|");
        let layers = layers.iter().map(usize::to_string).collect::<Vec<_>>().join("|");
        let place = if layers.is_empty() { String::new() } else { format!(r"layers\.(?:{layers})\..*") };
        // Gemma 4 has a projection beside its layers.
        let beside = modules.iter().any(|module| !module.name.contains(".layers."));
        match place.is_empty() {
            true if beside => Self::Pattern(format!(r".*\blanguage_model\.(?:.*\.)?({names})")),
            true => Self::Pattern(format!(r".*\blanguage_model\..*\.({names})")),
            false => Self::Pattern(format!(r".*\blanguage_model\.(?:.*\.)?{place}\.({names})")),
        }
    }

    /// Reads `target_modules`.
    ///
    /// # Errors
    /// A message with what was expected.
    pub(super) fn read(value: Option<&Value>) -> Result<Self, String> {
        match value {
            Some(Value::String(all)) if all.eq_ignore_ascii_case(ALL_LINEAR) => Ok(Self::AllLinear),
            Some(Value::String(pattern)) if !pattern.is_empty() => Ok(Self::Pattern(pattern.clone())),
            Some(Value::Array(list)) if !list.is_empty() => {
                let name = |v: &Value| v.as_str().map(String::from).ok_or_else(|| format!("expected names, found {v}"));
                list.iter().map(name).collect::<Result<_, _>>().map(Self::Names)
            }
            _ => Err(format!("expected a list of names, a pattern, or \"{ALL_LINEAR}\"")),
        }
    }

    /// Writes `target_modules`.
    pub(super) fn to_json(&self) -> Value {
        match self {
            Self::AllLinear => json!(ALL_LINEAR),
            Self::Names(names) => json!(names),
            Self::Pattern(pattern) => json!(pattern),
        }
    }
}

/// Fields that decide about modules beside `target_modules`, with all regular expressions compiled.
#[derive(Debug, Clone, Default)]
pub(super) struct ModuleFilter {
    /// `target_modules` as a regular expression.
    target_pattern: Option<Regex>,
    /// Names or name endings in `exclude_modules`.
    excluded: Vec<String>,
    /// `exclude_modules` as one regular expression.
    excluded_pattern: Option<Regex>,
    /// Layer numbers in `layers_to_transform`; `None` for all layers.
    layers: Option<Vec<u64>>,
    /// Expressions that find a layer's number in a module's name, as group 1.
    layer_numbers: Vec<Regex>,
}

/// Returns whether a field's value means the same as an absent field.
pub(super) fn is_off(value: &Value) -> bool {
    match value {
        Value::Bool(on) => !on,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

/// Returns whether `name` is a module's name, or its last components.
pub(super) fn ends(module: &str, name: &str) -> bool {
    module == name || module.strip_suffix(name).is_some_and(|before| before.ends_with('.'))
}

impl ModuleFilter {
    /// Reads the fields that `get` finds. Combinations that PEFT refuses are refused.
    ///
    /// # Errors
    /// The field and the reason.
    pub fn read<'v>(targets: &LoraTargets, get: &impl Fn(&str) -> Option<&'v Value>) -> Result<Self, FieldReason> {
        let names = |field: &'static str| -> Result<Vec<String>, FieldReason> {
            let bad = |found: &Value| (field, format!("expected a name or a list of names, found {found}"));
            match get(field) {
                None => Ok(Vec::new()),
                Some(Value::String(name)) => Ok(vec![name.clone()]),
                Some(Value::Array(list)) => {
                    list.iter().map(|v| v.as_str().map(String::from).ok_or_else(|| bad(v))).collect()
                }
                Some(other) => Err(bad(other)),
            }
        };
        let is_set = |field: &str| get(field).is_some_and(|value| !is_off(value));
        let mut filter = Self::default();
        if !matches!(targets, LoraTargets::Names(_)) {
            for field in ["layers_to_transform", "layers_pattern"] {
                if is_set(field) {
                    return Err((field, "cannot be used where target_modules is a text, as in PEFT".into()));
                }
            }
        }
        if is_set("layers_pattern") && !is_set("layers_to_transform") {
            return Err(("layers_pattern", "needs layers_to_transform, as in PEFT".into()));
        }
        if let LoraTargets::Pattern(pattern) = targets {
            let regex = compiled_whole(pattern).map_err(|reason| ("target_modules", reason))?;
            filter.target_pattern = Some(regex);
        }
        match get("exclude_modules") {
            Some(Value::String(pattern)) if !pattern.is_empty() => {
                let regex = compiled_whole(pattern).map_err(|reason| ("exclude_modules", reason))?;
                filter.excluded_pattern = Some(regex);
            }
            _ => filter.excluded = names("exclude_modules")?,
        }
        let layer = |value: &Value| {
            value.as_u64().ok_or_else(|| ("layers_to_transform", format!("expected layers' numbers, found {value}")))
        };
        filter.layers = match get("layers_to_transform").filter(|v| !is_off(v)) {
            None => None,
            Some(Value::Array(list)) => Some(list.iter().map(layer).collect::<Result<_, _>>()?),
            Some(one) => Some(vec![layer(one)?]),
        };
        let patterns = names("layers_pattern")?;
        let patterns = patterns.into_iter().filter(|p| !p.is_empty());
        let numbered = patterns.map(|p| compiled(&format!(r"^(?:|.*?\.)(?:{p})\.(\d+)\.")));
        filter.layer_numbers = numbered.collect::<Result<_, _>>().map_err(|reason| ("layers_pattern", reason))?;
        if filter.layer_numbers.is_empty() {
            let any = compiled(r"^.*?\.[^.]*\.(\d+)\.").map_err(|reason| ("layers_pattern", reason))?;
            filter.layer_numbers = vec![any];
        }
        Ok(filter)
    }

    /// Returns whether a linear module has an adapter. As in PEFT, exclusions win over everything, and `layers_to_transform` does not apply
    /// to a module whose whole name is listed.
    ///
    /// # Errors
    /// The field and the reason, where a regular expression would take too many steps.
    pub fn selects(&self, module: &str, targets: &LoraTargets) -> Result<bool, FieldReason> {
        let excluded =
            self.excluded_pattern.as_ref().map(|regex| fits("exclude_modules", regex, module)).transpose()?;
        if excluded == Some(true) || self.excluded.iter().any(|name| ends(module, name)) {
            return Ok(false);
        }
        match (targets, &self.target_pattern) {
            (LoraTargets::AllLinear, _) => Ok(true),
            (LoraTargets::Pattern(_), Some(regex)) => fits("target_modules", regex, module),
            (LoraTargets::Pattern(_), None) => Ok(false),
            (LoraTargets::Names(names), _) if names.iter().any(|name| name == module) => Ok(true),
            (LoraTargets::Names(names), _) => {
                Ok(names.iter().any(|name| ends(module, name)) && self.is_in_layers(module)?)
            }
        }
    }

    /// Returns whether a module is in one of the layers of `layers_to_transform`.
    fn is_in_layers(&self, module: &str) -> Result<bool, FieldReason> {
        let Some(layers) = &self.layers else { return Ok(true) };
        for regex in &self.layer_numbers {
            let found = regex.captures(module).map_err(|e| ("layers_pattern", unmatched(regex, module, &e)))?;
            if let Some(layer) = found.and_then(|groups| groups.get(1)?.as_str().parse().ok()) {
                return Ok(layers.contains(&layer));
            }
        }
        Ok(false)
    }
}
