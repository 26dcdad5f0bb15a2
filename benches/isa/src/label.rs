//! Short names of pipelines for the table.

use jointwise::gpu::Shader;

/// Names a pipeline: entry point, product, substituted modules, constants. Two pipelines of the registry have two names.
pub fn label(shader: &Shader) -> String {
    let constant = |name: &str| shader.constants.iter().find(|(n, _)| *n == name).map(|(_, value)| *value);
    let mut words = vec![shader.entry.to_string()];
    let mut told = Vec::new();
    if shader.module == "matmul_tiles"
        && let Some(tile) = constant("TILE")
    {
        words = vec![format!("matmul_tiles{tile}")];
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use jointwise::kernels::REGISTRY;

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
