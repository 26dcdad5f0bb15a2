//! The shader linker: WESL's import syntax over sources that are part of the program.
//!
//! `import package::shared::reduce::{sum};` puts `shaders/shared/reduce.wgsl` before the importing module, once. A variant
//! substitutes one module for another that defines the same names (`shared/weight` by `shared/weight_bf16`) and bakes `override`s:
//! the linker writes them as `const`, because naga takes an `override` as the size of a workgroup array but not of a private one,
//! and attention keeps a head's row in private memory. There is no `#ifdef`.

use crate::error::{Error, Result};

macro_rules! shaders {
    ($($name:literal),* $(,)?) => {
        /// Every module of `shaders/`, by its path without the extension.
        pub const SHADERS: &[(&str, &str)] = &[$(($name, include_str!(concat!("../../shaders/", $name, ".wgsl")))),*];
    };
}

shaders![
    "activation",
    "adamw",
    "add",
    "attention",
    "attention_coop",
    "attention_halves",
    "attention_lanes",
    "attention_tiles",
    "ceiling",
    "column_sum",
    "embedding",
    "gather",
    "global_norm",
    "layernorm",
    "logprob",
    "matmul",
    "matmul_coop",
    "matmul_cpu",
    "matmul_lanes",
    "matmul_largest",
    "matmul_tiles",
    "objective",
    "pack",
    "rmsnorm",
    "rope",
    "sample",
    "shared/epilogue",
    "shared/epilogue_none",
    "shared/fragment16",
    "shared/fragment8",
    "shared/grid",
    "shared/halves",
    "shared/head_halves",
    "shared/head_quads",
    "shared/head_values",
    "shared/lanes",
    "shared/levels",
    "shared/moments",
    "shared/moments_8bit",
    "shared/param",
    "shared/param_bf16",
    "shared/philox",
    "shared/product",
    "shared/reduce",
    "shared/scores",
    "shared/second",
    "shared/second_none",
    "shared/weight",
    "shared/weight_bf16",
    "shared/weight_int8",
    "shared/weight_nf4",
];

/// A specialised entry point.
#[derive(Debug, Clone, PartialEq)]
pub struct Shader {
    /// A name of [`SHADERS`].
    pub module: &'static str,
    /// Entry point, `<op>_fwd` or `<op>_bwd_<wrt>`.
    pub entry: &'static str,
    /// Values of `override`s.
    pub constants: Vec<(&'static str, f64)>,
    /// Modules replaced: (imported, taken instead).
    pub substitutions: Vec<(&'static str, &'static str)>,
    /// Extensions of WGSL that the device must have: `enable` lines, which a shader's file has none of.
    pub enables: &'static [&'static str],
}

impl Shader {
    /// With no constants, no substitutions and no extensions.
    pub fn new(module: &'static str, entry: &'static str) -> Self {
        Self { module, entry, constants: Vec::new(), substitutions: Vec::new(), enables: &[] }
    }
    /// Asks for extensions.
    pub fn enable(self, enables: &'static [&'static str]) -> Self {
        Self { enables, ..self }
    }
    /// Sets an `override`.
    pub fn with(mut self, name: &'static str, value: f64) -> Self {
        self.constants.push((name, value));
        self
    }
    /// Takes `instead` where `imported` is imported.
    pub fn substitute(mut self, imported: &'static str, instead: &'static str) -> Self {
        self.substitutions.push((imported, instead));
        self
    }
    /// Names the specialisation.
    pub fn key(&self) -> String {
        format!("{}/{} {:?} {:?}", self.module, self.entry, self.constants, self.substitutions)
    }
    /// The linked WGSL, constants baked, after the `enable` lines.
    ///
    /// # Errors
    /// [`Error::File`] naming the module: an import that does not exist, or lacks a name that is imported; a constant that is no
    /// `override`.
    pub fn source(&self) -> Result<String> {
        let mut source = link(self.module, &self.substitutions)?;
        for (name, value) in &self.constants {
            source = bake(&source, name, *value)
                .ok_or_else(|| Error::file(format!("shaders/{}.wgsl", self.module), format!("no `override {name}`")))?;
        }
        let enables = self.enables.iter().map(|name| format!("enable {name};\n"));
        Ok(enables.chain([source]).collect())
    }
}

/// Links a module with everything that it imports.
///
/// # Errors
/// [`Error::File`] naming the module: an import that does not exist, or lacks a name that is imported.
pub fn link(module: &str, substitutions: &[(&str, &str)]) -> Result<String> {
    let mut linked = Linked { substitutions, done: Vec::new(), out: String::new() };
    linked.add(module, None)?;
    Ok(linked.out)
}

/// Writes `override NAME: T = default;` as `const NAME: T = value;`.
fn bake(source: &str, name: &str, value: f64) -> Option<String> {
    let prefix = format!("override {name}: ");
    let line = source.lines().find(|l| l.starts_with(&prefix))?;
    let ty = line[prefix.len()..].split(' ').next()?;
    let text = match ty {
        "bool" => (value != 0.0).to_string(),
        "u32" => format!("{value}u"),
        _ => format!("{value:?}"),
    };
    Some(source.replace(line, &format!("const {name}: {ty} = {text};")))
}

struct Linked<'a> {
    substitutions: &'a [(&'a str, &'a str)],
    done: Vec<String>,
    out: String,
}

impl Linked<'_> {
    fn add(&mut self, module: &str, names: Option<&str>) -> Result<()> {
        let module = self.substitutions.iter().find(|(from, _)| *from == module).map_or(module, |(_, to)| to);
        let at = |reason: String| Error::file(format!("shaders/{module}.wgsl"), reason);
        let (_, source) =
            SHADERS.iter().find(|(name, _)| *name == module).ok_or_else(|| at("no such module".into()))?;
        for name in names.iter().flat_map(|n| n.split(',')).map(str::trim).filter(|n| !n.is_empty()) {
            if !defines(source, name) {
                return Err(at(format!("does not define `{name}`")));
            }
        }
        if self.done.iter().any(|d| d == module) {
            return Ok(());
        }
        self.done.push(module.into());
        let mut body = String::new();
        for line in source.lines() {
            match line.strip_prefix("import package::").and_then(|l| l.strip_suffix(';')) {
                Some(import) => {
                    let (path, names) = import.rsplit_once("::").ok_or_else(|| at(format!("cannot read `{line}`")))?;
                    self.add(&path.replace("::", "/"), Some(names.trim_matches(['{', '}'])))?;
                }
                None => {
                    body.push_str(line);
                    body.push('\n');
                }
            }
        }
        self.out.push_str(&body);
        Ok(())
    }
}

/// Whether a module declares `name` at its top level.
fn defines(source: &str, name: &str) -> bool {
    source.lines().any(|line| {
        let declared = ["fn ", "const ", "override ", "struct ", "alias ", "var<workgroup> "];
        let rest = declared.iter().find_map(|d| line.strip_prefix(d));
        rest.is_some_and(|r| r.split(|c: char| !c.is_alphanumeric() && c != '_').next() == Some(name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_module_is_linked_once_and_before_its_user() {
        let source = link("rmsnorm", &[]).unwrap();
        assert_eq!(source.matches("fn sum_across").count(), 1);
        assert!(source.find("fn sum_across") < source.find("fn rmsnorm_fwd"));
        assert!(!source.contains("import "));
    }

    #[test]
    fn a_missing_module_is_named() {
        assert_eq!(link("nothing", &[]).unwrap_err().to_string(), "shaders/nothing.wgsl: no such module");
        let error = link("matmul", &[("shared/weight", "shared/reduce")]).unwrap_err().to_string();
        assert!(error.starts_with("shaders/shared/reduce.wgsl: does not define `"), "{error}");
    }

    #[test]
    fn substitution_takes_the_other_module() {
        let source = link("matmul", &[("shared/weight", "shared/weight_bf16")]).unwrap();
        assert!(source.contains("weights: array<u32>;") && !source.contains("weights: array<f32>;"));
    }
}
