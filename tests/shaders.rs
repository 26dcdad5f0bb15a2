//! Every shader, without a device: naga takes each variant to SPIR-V, MSL and HLSL, uniform layouts equal their Rust structs, the registry lists
//! all files. `.ci/check-hlsl` gives the HLSL to Microsoft's compilers.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use jointwise::gpu::{SHADERS, Shader};
use jointwise::kernels::REGISTRY;
use naga::back::{self, hlsl::ShaderModel};
use naga::valid::{self, Capabilities, ModuleInfo};

#[test]
fn the_registry_covers_every_shader() {
    let files = |dir: &str| -> BTreeSet<String> {
        let entries = std::fs::read_dir(dir).expect("shaders").map(|e| e.expect("entry").path());
        let wgsl = entries.filter(|p| p.extension().is_some_and(|e| e == "wgsl"));
        wgsl.map(|p| p.file_stem().expect("stem").to_string_lossy().into_owned()).collect()
    };
    let owned: BTreeSet<String> = REGISTRY.iter().flat_map(|k| k.modules()).map(|m| m.to_string()).collect();
    assert_eq!(owned, files(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders")));
    let shared: BTreeSet<String> =
        SHADERS.iter().filter_map(|(n, _)| n.strip_prefix("shared/")).map(String::from).collect();
    assert_eq!(shared, files(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/shared")));
}

/// What a shader asks of a device beyond WebGPU's baseline: subgroups, or what its `enable` lines say.
fn capabilities(shader: &Shader) -> Capabilities {
    let subgroups = shader.source().is_ok_and(|s| s.contains("subgroup"));
    // pack2x16float.
    let baseline = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    let enabled = match shader.enables {
        [] => baseline,
        ["f16", "wgpu_cooperative_matrix"] => {
            baseline | Capabilities::SHADER_FLOAT16 | Capabilities::COOPERATIVE_MATRIX
        }
        other => panic!("{}: {other:?}", shader.key()),
    };
    if subgroups { enabled | Capabilities::SUBGROUP } else { enabled }
}

fn parse(shader: &Shader) -> Result<naga::Module, String> {
    use naga::front::wgsl::{Frontend, Options};
    let source = shader.source().map_err(|e| e.to_string())?;
    let mut frontend =
        Frontend::new_with_options(Options { parse_doc_comments: false, capabilities: capabilities(shader) });
    frontend.parse(&source).map_err(|e| e.emit_to_string(&source))
}

/// A valid module, with its `override`s resolved.
fn resolved(shader: &Shader) -> Result<(naga::Module, ModuleInfo), String> {
    let module = parse(shader)?;
    let source = shader.source().map_err(|e| e.to_string())?;
    let caps = capabilities(shader);
    let subgroups = caps.contains(Capabilities::SUBGROUP);
    let info = valid::Validator::new(valid::ValidationFlags::all(), caps)
        .subgroup_operations(if subgroups { valid::SubgroupOperationSet::all() } else { Default::default() })
        .subgroup_stages(if subgroups { valid::ShaderStages::COMPUTE } else { valid::ShaderStages::empty() })
        .validate(&module)
        .map_err(|e| e.emit_to_string(&source))?;
    let entry = Some((naga::ShaderStage::Compute, shader.entry));
    let (module, info) = back::pipeline_constants::process_overrides(&module, &info, entry, &Default::default())
        .map_err(|e| e.to_string())?;
    Ok((module.into_owned(), info.into_owned()))
}

/// Returns the size of a workgroup by naga.
fn workgroup_size_by_naga(shader: &Shader) -> [u32; 3] {
    let (module, _) = resolved(shader).expect("a valid module");
    let entry = module.entry_points.iter().find(|entry| entry.name == shader.entry).expect("an entry point");
    entry.workgroup_size
}

#[test]
fn workgroup_sizes_are_those_of_naga() {
    let (mut n, mut sizes) = (0, BTreeSet::new());
    for shader in REGISTRY.iter().flat_map(|kernel| kernel.variants()) {
        let size = shader.workgroup_size().unwrap_or_else(|e| panic!("{}: {e}", shader.key()));
        assert_eq!(size, workgroup_size_by_naga(&shader), "{}", shader.key());
        n += 1;
        sizes.insert(size);
    }
    assert!(n > 100 && sizes.len() > 4, "{n} shaders with sizes {sizes:?}");
    // Another constant gives another size, which naga confirms.
    let narrow = Shader::new("add", "add").with("WG", 32.0);
    assert_eq!(narrow.workgroup_size().unwrap_or_default(), [32, 1, 1]);
    assert_eq!(workgroup_size_by_naga(&narrow), [32, 1, 1]);
}

/// Text of HLSL as wgpu's DX12 backend makes it of a shader without bounds checks, and the entry point's name in it.
fn hlsl(
    shader: &Shader,
    (module, info): &(naga::Module, ModuleInfo),
    model: ShaderModel,
) -> Result<(String, String), String> {
    let options = back::hlsl::Options {
        shader_model: model,
        fake_missing_bindings: true,
        special_constants_binding: Some(back::hlsl::BindTarget { register: 99, ..Default::default() }),
        zero_initialize_workgroup_memory: false,
        restrict_indexing: false,
        force_loop_bounding: false,
        ..Default::default()
    };
    let entry = Some((naga::ShaderStage::Compute, shader.entry.into()));
    let pipeline = back::hlsl::PipelineOptions { entry_point: entry };
    let mut text = String::new();
    let written = back::hlsl::Writer::new(&mut text, &options, &pipeline).write(module, info, None);
    let names = written.map_err(|e| e.to_string())?.entry_point_names;
    let name = names.into_iter().next().ok_or("no entry point")?.map_err(|e| e.to_string())?;
    Ok((text, name))
}

/// HLSL has no cooperative matrices.
fn has_hlsl(shader: &Shader) -> bool {
    !shader.enables.contains(&"wgpu_cooperative_matrix")
}

/// Bytes or words of each translation.
fn translate(shader: &Shader) -> Result<Vec<usize>, String> {
    let resolved = resolved(shader)?;
    let (module, info) = &resolved;
    let stage = naga::ShaderStage::Compute;
    let options = back::spv::PipelineOptions { shader_stage: stage, entry_point: shader.entry.into() };
    let spirv = back::spv::write_vec(
        module,
        info,
        &back::spv::Options { lang_version: (1, 3), ..Default::default() },
        Some(&options),
    )
    .map_err(|e| e.to_string())?;
    let mut sizes = vec![spirv.len()];
    // Metal has no fragments of 16×16, and naga would write down a type that does not exist.
    if shader.substitutions.iter().any(|(_, taken)| *taken == "shared/fragment16") {
        return Ok(sizes);
    }
    let options = back::msl::Options { lang_version: (2, 4), fake_missing_bindings: true, ..Default::default() };
    let (msl, _) = back::msl::write_string(module, info, &options, &Default::default()).map_err(|e| e.to_string())?;
    sizes.push(msl.len());
    if has_hlsl(shader) {
        sizes.push(hlsl(shader, &resolved, ShaderModel::V6_0)?.0.len());
    }
    Ok(sizes)
}

#[test]
fn every_variant_becomes_spirv_msl_and_hlsl() {
    let mut languages = BTreeSet::new();
    for kernel in REGISTRY {
        let variants = kernel.variants();
        assert!(!variants.is_empty(), "{}: no variants", kernel.name());
        for shader in variants {
            let sizes = translate(&shader).unwrap_or_else(|e| panic!("{}: {e}", shader.key()));
            assert!(sizes.iter().all(|&n| n > 100), "{}: {sizes:?}", shader.key());
            languages.insert(sizes.len());
            assert!(sizes.len() == 3 || ["attention_coop", "matmul_coop"].contains(&shader.module), "{}", shader.key());
        }
    }
    assert_eq!(languages, BTreeSet::from([1, 2, 3]));
    // The check can fail.
    let broken = Shader::new("rmsnorm", "rmsnorm_forward");
    assert!(translate(&broken).is_err());
}

/// Files NAME.MODEL.hlsl in the folder that JOINTWISE_HLSL names, and in list.tsv a line for each: file, entry point, shader.
#[test]
#[ignore = "writes files for .ci/check-hlsl"]
fn hlsl_for_microsofts_compilers() {
    let out = std::path::PathBuf::from(std::env::var_os("JOINTWISE_HLSL").expect("JOINTWISE_HLSL names a folder"));
    std::fs::create_dir_all(&out).expect("a folder");
    let mut list = String::new();
    let all = REGISTRY.iter().flat_map(|kernel| kernel.variants()).filter(has_hlsl);
    for (n, shader) in all.enumerate() {
        let resolved = resolved(&shader).unwrap_or_else(|e| panic!("{}: {e}", shader.key()));
        let models = [("5_1", ShaderModel::V5_1), ("6_0", ShaderModel::V6_0), ("6_6", ShaderModel::V6_6)];
        // Model 5.1 has no subgroups: wgpu says so, and no device is given such a shader.
        let subgroups = capabilities(&shader).contains(Capabilities::SUBGROUP);
        for (name, model) in models.into_iter().filter(|(name, _)| !(subgroups && *name == "5_1")) {
            let (text, entry) = hlsl(&shader, &resolved, model).unwrap_or_else(|e| panic!("{}: {e}", shader.key()));
            let file = format!("{n:03}.{name}.hlsl");
            std::fs::write(out.join(&file), text).expect("written");
            writeln!(list, "{file}\t{entry}\t{}", shader.key()).expect("a string");
        }
    }
    std::fs::write(out.join("list.tsv"), list).expect("written");
}

/// Shifts beside another operator without brackets: WGSL's grammar forbids them, which Tint (Chromium, Dawn) enforces and naga does not. Operators
/// stand between spaces here, the brackets of types do not.
fn bare_shifts(line: &str) -> bool {
    const SHIFTS: [&str; 2] = ["<<", ">>"];
    const OTHERS: [&str; 8] = ["+", "-", "*", "/", "%", "&", "|", "^"];
    // (operators, shifts) of each bracket that is open, the innermost last.
    let mut open = vec![(0, 0)];
    let code = line.split("//").next().unwrap_or_default();
    let spaced = ["(", ")", "[", "]", ",", ";"].iter().fold(code.to_string(), |s, c| s.replace(c, &format!(" {c} ")));
    for word in spaced.split_whitespace() {
        match word {
            "(" | "[" => open.push((0, 0)),
            ")" | "]" => drop(open.pop()),
            "," | ";" | "=" | "==" | "!=" | "<" | ">" | "<=" | ">=" | "&&" | "||" => {
                open.pop();
                open.push((0, 0));
            }
            _ => {
                let (is_shift, is_other) = (SHIFTS.contains(&word), OTHERS.contains(&word));
                let Some((operators, shifts)) = open.last_mut() else { return false };
                *operators += u32::from(is_shift || is_other);
                *shifts += u32::from(is_shift);
                if *shifts > 0 && *operators > 1 {
                    return true;
                }
            }
        }
    }
    false
}

#[test]
fn shifts_stand_in_brackets() {
    for (name, source) in SHADERS {
        for (i, line) in source.lines().enumerate() {
            assert!(!bare_shifts(line), "{name}:{}: {line}", i + 1);
        }
    }
    for refused in ["let x = (a + b) >> cut << cut;", "let x = a + 1u << b;", "f(1u << n | m);"] {
        assert!(bare_shifts(refused), "{refused}");
    }
    for fine in ["let x = ((a + b) >> cut) << cut;", "x[n >> 1u] + 1u", "a << 2u < b >> 1u", "f(1u << a, b + 1u)"] {
        assert!(!bare_shifts(fine), "{fine}");
    }
}

#[test]
fn uniform_layouts_equal_their_rust_structs() {
    for kernel in REGISTRY {
        let mut found = BTreeSet::new();
        for shader in kernel.variants() {
            let module = parse(&shader).expect("parsed");
            for (_, ty) in module.types.iter() {
                let naga::TypeInner::Struct { span, .. } = ty.inner else { continue };
                let name = ty.name.clone().unwrap_or_default();
                let uniform = kernel.uniforms().into_iter().find(|(n, _)| *n == name);
                if let Some((_, size)) = uniform {
                    assert_eq!(span as usize, size, "{}: {name}", kernel.name());
                    found.insert(name);
                }
            }
        }
        assert_eq!(found.len(), kernel.uniforms().len(), "{}: uniforms not in its WGSL", kernel.name());
    }
}
