//! Shader linker: imports in WESL's syntax, over sources that are compiled into the program.
//!
//! `import package::shared::reduce::{sum};` puts `shaders/shared/reduce.wgsl` before the importing module, once. A variant substitutes one
//! module for another that defines the same names (`shared/weight` by `shared/weight_bf16`), and gives `override`s their values. The linker
//! writes `override`s as `const`s, because naga accepts an `override` as the size of a workgroup array but not of a private one, and
//! attention keeps a row of a head in private memory. There is no `#ifdef`.

use crate::error::{Error, Result};

macro_rules! shaders {
    ($($name:literal),* $(,)?) => {
        /// Modules of `shaders/`: (path without extension, source).
        pub const SHADERS: &[(&str, &str)] = &[$(($name, include_str!(concat!("../../shaders/", $name, ".wgsl")))),*];
    };
}

shaders![
    "activation",
    "adamw",
    "add",
    "attention",
    "attention_coop",
    "attention_delta_rows",
    "attention_sinks",
    "attention_split_f16",
    "attention_lanes",
    "attention_tiles",
    "causal_conv",
    "ceiling",
    "column_sum",
    "column_sum_rows",
    "columns",
    "conv_gates",
    "delta_gates",
    "delta_rule",
    "delta_rule_scan",
    "delta_rule_step",
    "dropout",
    "embedding",
    "embedding_rows",
    "expert_bias",
    "expert_rows",
    "gated_rmsnorm",
    "gather",
    "gather_rows",
    "global_norm",
    "global_norm_rows",
    "l2norm",
    "layernorm",
    "layernorm_rows",
    "logprob",
    "logprob_rows",
    "matmul",
    "matmul_coop",
    "matmul_cpu",
    "matmul_lanes",
    "matmul_absmax",
    "matmul_tiles",
    "objective",
    "output_gate",
    "pack",
    "rmsnorm",
    "rmsnorm_rows",
    "rope",
    "router",
    "sample",
    "shared/column_blocks",
    "shared/column_sum_params",
    "shared/delta_rule",
    "shared/embedding_params",
    "shared/epilogue",
    "shared/epilogue_none",
    "shared/fragment16",
    "shared/fragment8",
    "shared/gather_params",
    "shared/global_norm_params",
    "shared/grid",
    "shared/head_split_f16",
    "shared/head_vec4s",
    "shared/head_values",
    "shared/lanes",
    "shared/layernorm_params",
    "shared/logits",
    "shared/exponents",
    "shared/moments",
    "shared/moments_8bit",
    "shared/nf4_lookup",
    "shared/nf4_lookup_workgroup",
    "shared/param",
    "shared/param_bf16",
    "shared/philox",
    "shared/product",
    "shared/product_tile",
    "shared/product_tile_experts",
    "shared/reduce",
    "shared/rmsnorm_params",
    "shared/row_sums",
    "shared/row_vec4s",
    "shared/scores",
    "shared/sigmoid",
    "shared/split_f16",
    "shared/low_rank",
    "shared/low_rank_none",
    "shared/value_f32",
    "shared/value_vec4",
    "shared/weight",
    "shared/weight_bf16",
    "shared/weight_int8",
    "shared/weight_base",
    "shared/weight_nf4",
];

/// Entry point with its specialisation.
#[derive(Debug, Clone, PartialEq)]
pub struct Shader {
    /// Module: a name in [`SHADERS`].
    pub module: &'static str,
    /// Entry point, `<op>_fwd` or `<op>_bwd_<wrt>`.
    pub entry: &'static str,
    /// Values of the module's `override`s.
    pub constants: Vec<(&'static str, f64)>,
    /// Replaced modules: (imported, used instead).
    pub substitutions: Vec<(&'static str, &'static str)>,
    /// Unrolled loops: (constant that bounds them, its value).
    pub unrolled: Vec<(&'static str, usize)>,
    /// WGSL extensions that the device must support. The linker writes their `enable` lines, so the files omit them.
    pub enables: &'static [&'static str],
}

impl Shader {
    /// Creates a shader without constants, substitutions, unrolled loops or extensions.
    pub fn new(module: &'static str, entry: &'static str) -> Self {
        Self { module, entry, constants: Vec::new(), substitutions: Vec::new(), unrolled: Vec::new(), enables: &[] }
    }
    /// Sets the WGSL extensions.
    pub fn enable(self, enables: &'static [&'static str]) -> Self {
        Self { enables, ..self }
    }
    /// Sets an `override`.
    pub fn with(mut self, name: &'static str, value: f64) -> Self {
        self.constants.push((name, value));
        self
    }
    /// Replaces the imported module `imported` by `instead`.
    pub fn substitute(mut self, imported: &'static str, instead: &'static str) -> Self {
        self.substitutions.push((imported, instead));
        self
    }
    /// Unrolls every `for (var i = 0u; i < BOUND; i++)` of the module `times` times. A private array that is indexed only by constants may
    /// stay in registers. BOUND must be a constant with the value `times`.
    pub fn unroll(mut self, bound: &'static str, times: usize) -> Self {
        self.unrolled.push((bound, times));
        self
    }
    /// Returns the specialisation's key in the pipeline cache.
    pub fn key(&self) -> String {
        let Self { module, entry, constants, substitutions, unrolled, enables } = self;
        format!("{module}/{entry} {constants:?} {substitutions:?} {unrolled:?} {enables:?}")
    }
    /// Returns the linked WGSL with its constants replaced by values, behind the `enable` lines.
    ///
    /// # Errors
    /// [`Error::File`] naming the module: for an import that does not exist or lacks an imported name, for a constant that is not an
    /// `override`, or where no loop has the bound of an unrolled loop.
    pub fn source(&self) -> Result<String> {
        let mut source = link(self.module, &self.substitutions)?;
        for (name, value) in &self.constants {
            source = bake(&source, name, *value)
                .ok_or_else(|| Error::file(format!("shaders/{}.wgsl", self.module), format!("no `override {name}`")))?;
        }
        for (bound, times) in &self.unrolled {
            source = unroll(&source, bound, *times)
                .ok_or_else(|| Error::file(format!("shaders/{}.wgsl", self.module), format!("no loop to {bound}")))?;
        }
        let enables = self.enables.iter().map(|name| format!("enable {name};\n"));
        Ok(enables.chain([source]).collect())
    }
}

/// Links a module with everything that it imports.
///
/// # Errors
/// [`Error::File`] naming the module, for an import that does not exist or lacks an imported name.
pub fn link(module: &str, substitutions: &[(&str, &str)]) -> Result<String> {
    let mut linked = LinkedModule { substitutions, done: Vec::new(), out: String::new() };
    linked.add(module, None)?;
    Ok(linked.out)
}

/// Replaces `override NAME: T = default;` by `const NAME: T = value;`.
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

/// Unrolls each `for (var i = 0u; i < BOUND; i++) {` into one block per value of i, in which i is a constant. A loop ends at the next brace
/// with the loop's indentation. Loops must not be nested.
fn unroll(source: &str, bound: &str, times: usize) -> Option<String> {
    let mut out = String::new();
    let mut lines = source.lines();
    let mut found = false;
    while let Some(line) = lines.next() {
        let counter = line.trim_start().strip_prefix("for (var ").and_then(|rest| {
            let name = rest.split(' ').next()?;
            (rest == format!("{name} = 0u; {name} < {bound}; {name}++) {{")).then_some(name)
        });
        let Some(counter) = counter else {
            out.push_str(line);
            out.push('\n');
            continue;
        };
        found = true;
        let end = format!("{}}}", &line[..line.len() - line.trim_start().len()]);
        let body: Vec<&str> = lines.by_ref().take_while(|line| **line != end).collect();
        for i in 0..times {
            out.push_str(&format!("{{\nconst {counter} = {i}u;\n{}\n}}\n", body.join("\n")));
        }
    }
    found.then_some(out)
}

struct LinkedModule<'a> {
    substitutions: &'a [(&'a str, &'a str)],
    done: Vec<String>,
    out: String,
}

impl LinkedModule<'_> {
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

/// Returns whether a module declares `name` at its top level.
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
    fn loops_to_a_bound_are_written_out() {
        let source = "    for (var d = 0u; d < N; d++) {\n        if d > 0u {\n            x[d] += 1.0;\n        }\n    }\nafter;\n";
        let body = "        if d > 0u {\n            x[d] += 1.0;\n        }";
        let block = |d: usize| format!("{{\nconst d = {d}u;\n{body}\n}}\n");
        assert_eq!(unroll(source, "N", 2).unwrap(), block(0) + &block(1) + "after;\n");
        assert_eq!(unroll(source, "M", 2), None);
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
