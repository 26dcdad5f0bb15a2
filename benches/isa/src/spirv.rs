//! SPIR-V as wgpu-hal 30 gives it to a Vulkan driver for a trusted module whose workgroup memory is not zeroed: naga with wgpu-hal's options.
//! With another wgpu, compare `vulkan/adapter.rs` and `vulkan/device.rs` of wgpu-hal, and the driver's own dump (`MESA_SPIRV_DUMP_PATH`).

use naga::back::spv;
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};

/// Entry point in SPIR-V.
pub struct SpirvModule {
    /// The module's words.
    pub words: Vec<u32>,
    /// Name of the entry point.
    pub entry: String,
    /// Whether each binding is a uniform buffer, else a storage buffer. wgpu-hal numbers the bindings that are used from 0.
    pub bindings: Vec<bool>,
}

/// Capabilities of SPIR-V that every device here has.
const CAPABILITIES: [spv::Capability; 15] = [
    spv::Capability::Shader,
    spv::Capability::Matrix,
    spv::Capability::Int8,
    spv::Capability::Float16,
    spv::Capability::GroupNonUniform,
    spv::Capability::GroupNonUniformVote,
    spv::Capability::GroupNonUniformArithmetic,
    spv::Capability::GroupNonUniformBallot,
    spv::Capability::GroupNonUniformShuffle,
    spv::Capability::GroupNonUniformShuffleRelative,
    spv::Capability::GroupNonUniformQuad,
    spv::Capability::DotProductKHR,
    spv::Capability::DotProductInputAllKHR,
    spv::Capability::DotProductInput4x8BitKHR,
    spv::Capability::DotProductInput4x8BitPackedKHR,
];

/// Translates an entry point of linked WGSL.
pub fn translate(wgsl: &str, entry: &str) -> Result<SpirvModule, String> {
    let has_matrices = wgsl.contains("enable wgpu_cooperative_matrix;");
    let mut allowed = Capabilities::SUBGROUP
        | Capabilities::SHADER_FLOAT16
        | Capabilities::SHADER_FLOAT16_IN_FLOAT32
        | Capabilities::default();
    let mut capabilities = CAPABILITIES.to_vec();
    if has_matrices {
        allowed |= Capabilities::COOPERATIVE_MATRIX;
        capabilities.extend([spv::Capability::CooperativeMatrixKHR, spv::Capability::VulkanMemoryModel]);
    }
    let options = naga::front::wgsl::Options { parse_doc_comments: false, capabilities: allowed };
    let parsed = naga::front::wgsl::Frontend::new_with_options(options).parse(wgsl);
    let module = parsed.map_err(|e| e.emit_to_string(wgsl))?;
    let mut validator = Validator::new(ValidationFlags::all(), allowed);
    validator.subgroup_operations(SubgroupOperationSet::all()).subgroup_stages(ShaderStages::COMPUTE);
    let info = validator.validate(&module).map_err(|e| e.emit_to_string(wgsl))?;
    let stage = naga::ShaderStage::Compute;
    let chosen = Some((stage, entry));
    let (module, info) = naga::back::pipeline_constants::process_overrides(&module, &info, chosen, &Default::default())
        .map_err(|e| e.to_string())?;
    let index = module.entry_points.iter().position(|e| e.name == entry).ok_or("there is no such entry point")?;
    let uses = info.get_entry_point(index);
    let mut used: Vec<(naga::ResourceBinding, bool)> = module
        .global_variables
        .iter()
        .filter(|(handle, _)| !uses[*handle].is_empty())
        .filter_map(|(_, v)| v.binding.map(|binding| (binding, v.space == naga::AddressSpace::Uniform)))
        .collect();
    used.sort_by_key(|(binding, _)| *binding);
    let numbered = |(i, (binding, _)): (usize, &(naga::ResourceBinding, bool))| {
        let target = spv::BindingInfo { descriptor_set: binding.group, binding: i as u32, binding_array_size: None };
        (*binding, target)
    };
    let unchecked = BoundsCheckPolicy::Unchecked;
    let options = spv::Options {
        lang_version: (1, 6),
        flags: spv::WriterFlags::LABEL_VARYINGS | spv::WriterFlags::FORCE_POINT_SIZE,
        capabilities: Some(capabilities.into_iter().collect()),
        bounds_check_policies: BoundsCheckPolicies {
            index: unchecked,
            buffer: unchecked,
            image_load: unchecked,
            binding_array: unchecked,
        },
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: false,
        emit_int_div_checks: false,
        use_storage_input_output_16: true,
        binding_map: used.iter().enumerate().map(numbered).collect(),
        ..Default::default()
    };
    let pipeline = spv::PipelineOptions { shader_stage: stage, entry_point: entry.into() };
    let words = spv::write_vec(&module, &info, &options, Some(&pipeline)).map_err(|e| e.to_string())?;
    Ok(SpirvModule {
        words,
        entry: entry.into(),
        bindings: used.into_iter().map(|(_, is_uniform)| is_uniform).collect(),
    })
}
