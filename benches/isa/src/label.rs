//! Short names of pipelines for the table.

use jointwise::gpu::Shader;

use crate::assembly::Vendor;

/// Names a pipeline: entry point, product, substituted modules, constants. Two pipelines of the registry have two names.
pub fn label(shader: &Shader) -> String {
    let constant = |name: &str| shader.constants.iter().find(|(n, _)| *n == name).map(|(_, value)| *value);
    let mut words = vec![shader.entry.to_string()];
    let mut told = Vec::new();
    if shader.module == "matmul_tiles"
        && let Some(tile) = constant("TILE")
    {
        words = vec![format!("matmul_tiles{tile}{}", if is_wide(shader) { "wide" } else { "" })];
        told.extend(["TILE", "ROW_VEC4S", "COLUMN_VEC4S"]);
    }
    if let (Some(a), Some(b)) = (constant("A_TRANSPOSED"), constant("B_TRANSPOSED")) {
        words.push(
            if a != 0.0 {
                "dw"
            } else if b != 0.0 {
                "fwd"
            } else {
                "dx"
            }
            .into(),
        );
        told.extend(["A_TRANSPOSED", "B_TRANSPOSED"]);
    }
    for (from, to) in &shader.substitutions {
        let end = to.strip_prefix(from).unwrap_or(to);
        words.push(end.trim_start_matches("shared/").trim_start_matches('_').into());
    }
    if shader.module.starts_with("matmul") && !shader.substitutions.iter().any(|(from, _)| *from == "shared/weight") {
        words.push("f32".into());
    }
    let others = shader.constants.iter().filter(|(name, _)| !told.contains(name));
    words.extend(others.map(|(name, value)| format!("{}={value}", name.to_lowercase())));
    words.extend(shader.unrolled.iter().map(|(bound, times)| format!("{}×{times}", bound.to_lowercase())));
    words.join(" ").replace('|', "/")
}

/// Tells whether a product's tiles are those of the variants `tiles64wide` and `tiles128wide`.
fn is_wide(shader: &Shader) -> bool {
    let constant = |name: &str| shader.constants.iter().find(|(n, _)| *n == name).map(|(_, value)| *value);
    let per_invocation = constant("ROW_VEC4S").zip(constant("COLUMN_VEC4S")).map(|(rows, columns)| rows * columns);
    [(Some(64.0), Some(4.0)), (Some(128.0), Some(8.0))].contains(&(constant("TILE"), per_invocation))
}

/// Returns the invocations per subgroup that the project's kernels for cooperative matrices are given on a vendor's GPUs.
fn subgroup_size(vendor: Vendor) -> f64 {
    if vendor == Vendor::Amd { 64.0 } else { 32.0 }
}

/// Tells whether a GPU of the vendor may be given a pipeline: wide tiles are not for Intel, `flashnarrow` is for Intel alone,
/// `attention_coop` has pipelines for each size of subgroups, and delta rules with workgroups of one row are for CPUs.
pub fn is_for(shader: &Shader, vendor: Vendor) -> bool {
    let constant = |name: &str| shader.constants.iter().find(|(n, _)| *n == name).map(|(_, value)| *value);
    let is_narrow = constant("ROWS") == Some(8.0) && constant("SLICE").is_some_and(|slice| slice <= 4.0);
    match shader.module {
        "matmul_tiles" => vendor != Vendor::Intel || !is_wide(shader),
        "delta_rule" | "delta_rule_scan" => constant("Y") != Some(1.0),
        "attention_tiles" => (vendor == Vendor::Intel) == is_narrow,
        "attention_coop" => {
            constant("LANES").zip(constant("SUBGROUPS")).is_none_or(|(lanes, n)| lanes / n == subgroup_size(vendor))
        }
        _ => true,
    }
}

/// GPUs that have rows for products and attention only: each has a sibling with all rows.
const SIBLINGS: [&str; 3] = ["navi21", "gfx1201", "mtl"];

/// Entry points whose work is a small part of any step.
const SMALL: [&str; 4] = ["gather_scatter", "logprob_finish", "logprob_squares", "global_norm_total"];

/// Names the row of a GPU's table that a pipeline is in; `None` where it is only in the sums. Of two pipelines of a row, the later one of
/// the registry is shown: the variant `rows` instead of the baseline, NF4's tables in workgroup memory instead of in memory. The name has
/// no sizes of tiles or workgroups, so that figures before and after a change of these are compared.
pub fn row(shader: &Shader, gpu: &str, vendor: Vendor) -> Option<String> {
    let constant = |name: &str| shader.constants.iter().find(|(n, _)| *n == name).map(|(_, value)| *value);
    let is = |name: &str, value: f64| constant(name).is_none_or(|v| v == value);
    let has = |end: &str| shader.substitutions.iter().any(|(_, to)| to.ends_with(end));
    let is_plain = is("SOFTCAP", 0.0) && is("SQUARES", 0.0) && is("KIND", 0.0) && !has("/epilogue");
    let format = shader
        .substitutions
        .iter()
        .find(|(from, _)| *from == "shared/weight")
        .map_or("f32", |(_, to)| to.strip_prefix("shared/weight").unwrap_or(to).trim_start_matches('_'));
    let pass = match (constant("A_TRANSPOSED"), constant("B_TRANSPOSED")) {
        (Some(0.0), Some(0.0)) => "dx",
        (Some(0.0), Some(_)) => "fwd",
        _ => "dw",
    };
    let e = constant("E").unwrap_or_default();
    let precision = if constant("SPLIT") == Some(1.0) { "high" } else { "medium" };
    let subgroup = subgroup_size(vendor);
    let name = match shader.module {
        "matmul_tiles" => {
            let tile = constant("TILE")?;
            let lora = if has("/low_rank") { " with LoRA" } else { "" };
            let is_common = match tile {
                128.0 => lora.is_empty() || ["bf16", "nf4"].contains(&format),
                _ => lora.is_empty() && pass == "fwd" && ["f32", "bf16"].contains(&format),
            };
            let wide = if is_wide(shader) { "wide" } else { "" };
            is_common.then(|| format!("matmul_tiles{tile}{wide} {pass} {format}{lora}"))
        }
        "matmul_coop" => {
            let is_common = [("fwd", "bf16"), ("dx", "bf16"), ("fwd", "nf4"), ("dw", "f32")].contains(&(pass, format));
            (is_common && is("LANES", 4.0 * subgroup)).then(|| format!("matmul_coop {pass} {format} {precision}"))
        }
        "attention_tiles" => {
            // Where registers are few, keys and values have kernels of their own.
            let of = match (constant("OF_KEYS"), constant("OF_VALUES")) {
                (Some(_), _) => " values",
                (_, Some(_)) => " keys",
                _ => "",
            };
            (e >= 64.0).then(|| format!("{} e={e}{of}", shader.entry))
        }
        "attention_coop" => {
            [64.0, 128.0].contains(&e).then(|| format!("{} e={e} {precision}", shader.entry))
        }
        "attention"
        | "matmul"
        | "matmul_absmax"
        | "attention_split_f16"
        | "objective"
        | "ceiling"
        | "pack"
        | "sample" => None,
        _ if SMALL.contains(&shader.entry) => None,
        // Rows of 576 (RMSNorm) and 768 values (LayerNorm).
        _ if !is("VEC4S", 144.0) && !is("VEC4S", 192.0) => None,
        _ => {
            let bf16 = if has("_bf16") { " bf16" } else { "" };
            let eight_bits = if has("_8bit") { " 8bit" } else { "" };
            Some(format!("{}{bf16}{eight_bits}", shader.entry.replace("_rows", "")))
        }
    };
    let is_heavy = shader.module.starts_with("matmul") || shader.module.starts_with("attention");
    name.filter(|_| is_plain && (is_heavy || !SIBLINGS.contains(&gpu)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use jointwise::kernels::REGISTRY;

    #[test]
    fn rows_are_of_plain_pipelines() {
        let all: Vec<Shader> = REGISTRY.iter().flat_map(|kernel| kernel.variants()).collect();
        let rows = |gpu: &str, vendor| -> Vec<String> {
            let mut rows: Vec<String> = all.iter().filter_map(|s| row(s, gpu, vendor)).collect();
            rows.sort();
            rows.dedup();
            rows
        };
        let navi31 = rows("navi31", Vendor::Amd);
        for name in [
            "matmul_tiles128 dx nf4",
            "attention_tiles_bwd_kv e=128",
            "matmul_coop fwd bf16 high",
            "rmsnorm_fwd",
            "adamw bf16 8bit",
        ] {
            assert!(navi31.iter().any(|row| row == name), "{name}: {navi31:#?}");
        }
        assert!((50..160).contains(&navi31.len()), "{}", navi31.len());
        assert!(rows("navi21", Vendor::Amd).len() < navi31.len() - 20);
    }

    #[test]
    fn every_pipeline_has_a_name_of_its_own() {
        let mut keys: BTreeMap<String, String> = BTreeMap::new();
        for shader in REGISTRY.iter().flat_map(|kernel| kernel.variants()) {
            let known = keys.entry(label(&shader)).or_insert_with(|| shader.key());
            assert_eq!(*known, shader.key());
        }
        assert!(keys.len() > 200, "{}", keys.len());
        assert!(
            keys.contains_key("matmul_tiles128 fwd weight_bf16")
                || keys.keys().any(|k| k.starts_with("matmul_tiles128 fwd bf16")),
            "{keys:?}"
        );
    }
}
