//! Measured size of the subgroups that a driver chooses for cooperative matrices. AMD's have 32 or 64 invocations, Intel's 8 to 32; Metal
//! reports no size, and wgpu cannot request one. matmul_coop.wgsl and attention_coop.wgsl are specialised for a size, so the size is
//! measured. The probe multiplies fragments, because a driver's choice depends on what a shader does. The self-test at start-up then checks
//! the kernels with that size.

use super::open_device::OpenDevice;
use super::{Gpu, Slot};
use crate::error::{Error, Result};

/// Invocations per workgroup of the probe: four subgroups of the largest size.
const LANES: u32 = 256;
/// Smallest number of subgroups per workgroup of the cooperative-matrix kernels.
const SUBGROUPS: u32 = 4;

/// Probe shader: multiplies ones, so that `found` becomes `[invocations per subgroup, subgroups, EDGE]`.
const PROBE: &str = "
enable f16;
enable wgpu_cooperative_matrix;

@group(0) @binding(0) var<storage, read_write> found: array<u32>;

var<workgroup> ones: array<f16, EDGE * EDGE>;
var<workgroup> sums: array<f32, EDGE * EDGE>;

@compute @workgroup_size(LANES)
fn probe(
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_size) size: u32,
    @builtin(num_subgroups) n: u32,
) {
    for (var i = lane; i < EDGE * EDGE; i += LANES) {
        ones[i] = f16(1.0);
    }
    workgroupBarrier();
    let left = coopLoadT<coop_matEDGExEDGE<f16, A>>(&ones[0], EDGE);
    let right = coopLoadT<coop_matEDGExEDGE<f16, B>>(&ones[0], EDGE);
    let product = coopMultiplyAdd(left, right, coop_matEDGExEDGE<f32, C>());
    coopStoreT(product, &sums[0], EDGE);
    workgroupBarrier();
    if lane == 0u {
        found[0] = size;
        found[1] = n;
        found[2] = u32(sums[0]);
    }
}
";

fn source(edge: u32) -> String {
    PROBE
        .replace("matEDGExEDGE", &format!("mat{edge}x{edge}"))
        .replace("EDGE", &format!("{edge}u"))
        .replace("LANES", &format!("{LANES}u"))
}

/// Returns the subgroup size that the probe found, if the workgroup was divided into whole subgroups and the product is right.
fn size(found: &[u32], edge: u32) -> Option<u32> {
    let [size, n, product] = *found else { return None };
    (size.is_power_of_two() && size * n == LANES && size * SUBGROUPS <= LANES && product == edge).then_some(size)
}

impl Gpu {
    /// Replaces the subgroup size of cooperative matrices by the measured size, on devices where the driver chooses the size.
    ///
    /// # Errors
    /// [`Error::Flag`] where no size is found; [`Error::Gpu`].
    pub(super) async fn with_measured_subgroups(mut self) -> Result<Self> {
        let varies = self.caps.subgroup.is_some_and(|(least, most)| least != most);
        let Some(edge) = self.caps.cooperative.filter(|_| varies).map(|c| c.edge) else { return Ok(self) };
        let found = self.probe_subgroups(edge).await?;
        let Some(measured) = size(&found, edge) else {
            let reason =
                format!("subgroups of {} have no size of their own ({found:?}): choose highest", self.caps.name);
            return Err(Error::flag("matmul-precision", reason));
        };
        self.caps.cooperative = self.caps.cooperative.map(|c| super::CooperativeMatrix { subgroup: measured, ..c });
        Ok(self)
    }

    /// Runs the probe and returns its `found` array; empty where the probe does not compile.
    async fn probe_subgroups(&self, edge: u32) -> Result<Vec<u32>> {
        let Some(live) = &self.live else { return Ok(Vec::new()) };
        let found = self.upload(&[0_u32; 3]);
        let scopes =
            [wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::Validation].map(|f| live.device.push_error_scope(f));
        dispatch_probe(live, &source(edge), &found);
        for scope in scopes.into_iter().rev() {
            if scope.pop().await.is_some() {
                return Ok(Vec::new());
            }
        }
        Ok(self.read(&[&found]).await?.concat())
    }
}

fn dispatch_probe(live: &OpenDevice, source: &str, found: &Slot) {
    let module = live.device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: Some("subgroups"),
        source: wgpu::ShaderSource::Wgsl(source.into()),
    });
    let pipeline = live.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some("subgroups"),
        layout: None,
        module: &module,
        entry_point: Some("probe"),
        compilation_options: Default::default(),
        cache: None,
    });
    let Some((buffer, offset, size)) = found.binding() else { return };
    let bytes = wgpu::BufferBinding { buffer: &buffer, offset, size: std::num::NonZeroU64::new(size) };
    let group = live.device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some("subgroups"),
        layout: &pipeline.get_bind_group_layout(0),
        entries: &[wgpu::BindGroupEntry { binding: 0, resource: wgpu::BindingResource::Buffer(bytes) }],
    });
    let mut encoder = live.device.create_command_encoder(&Default::default());
    let mut pass = encoder.begin_compute_pass(&Default::default());
    pass.set_pipeline(&pipeline);
    pass.set_bind_group(0, &group, &[]);
    pass.dispatch_workgroups(1, 1, 1);
    drop(pass);
    // This submission is not counted, because it is refused if the shader is.
    live.queue.submit([encoder.finish()]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{DeviceChoice, MatmulPrecision};

    #[test]
    fn the_probe_becomes_spirv_and_msl() {
        use naga::valid::{Capabilities, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};
        for edge in [8, 16] {
            let capabilities = Capabilities::SHADER_FLOAT16 | Capabilities::COOPERATIVE_MATRIX | Capabilities::SUBGROUP;
            let options = naga::front::wgsl::Options { parse_doc_comments: false, capabilities };
            let text = source(edge);
            let module = naga::front::wgsl::Frontend::new_with_options(options).parse(&text);
            let module = module.unwrap_or_else(|e| panic!("{}", e.emit_to_string(&text)));
            let mut validator = Validator::new(ValidationFlags::all(), capabilities);
            validator.subgroup_operations(SubgroupOperationSet::all()).subgroup_stages(ShaderStages::COMPUTE);
            let info = validator.validate(&module).unwrap_or_else(|e| panic!("{}", e.emit_to_string(&text)));
            let spirv = naga::back::spv::Options { lang_version: (1, 3), ..Default::default() };
            assert!(naga::back::spv::write_vec(&module, &info, &spirv, None).unwrap().len() > 100);
            if edge == 8 {
                let msl = naga::back::msl::Options {
                    lang_version: (2, 4),
                    fake_missing_bindings: true,
                    ..Default::default()
                };
                naga::back::msl::write_string(&module, &info, &msl, &Default::default()).unwrap();
            }
        }
    }

    #[test]
    fn only_whole_subgroups_count() {
        assert_eq!(size(&[32, 8, 16], 16), Some(32));
        assert_eq!(size(&[64, 4, 16], 16), Some(64));
        // Some lanes unused; size zero; wrong product; no answer.
        for found in [&[32, 4, 16][..], &[0, 0, 16], &[128, 2, 16], &[32, 8, 0], &[]] {
            assert_eq!(size(found, 16), None, "{found:?}");
        }
    }

    /// Lavapipe has one subgroup size, which must be the measured one (Mesa 26; elsewhere there are no cooperative matrices).
    #[test]
    fn the_measured_size_is_what_the_driver_says() {
        let open = |precision| pollster::block_on(Gpu::open_for(&DeviceChoice::Best, precision)).unwrap();
        if open(MatmulPrecision::Highest).caps.cooperative.is_none() {
            println!("no cooperative matrices: skipped");
            return;
        }
        let mut gpu = open(MatmulPrecision::High);
        let told = gpu.caps.subgroup.unwrap();
        if told.0 != told.1 {
            return;
        }
        // Makes the size appear to vary.
        gpu.caps.subgroup = Some((told.0, 2 * told.0));
        gpu.caps.cooperative = gpu.caps.cooperative.map(|c| crate::gpu::CooperativeMatrix { subgroup: 1, ..c });
        let gpu = pollster::block_on(gpu.with_measured_subgroups()).unwrap();
        assert_eq!(gpu.caps.cooperative.unwrap().subgroup, told.0);
        // A shader that does not compile is not a failure of the device.
        assert!(pollster::block_on(gpu.probe_subgroups(3)).unwrap().is_empty());
        gpu.check().unwrap();
    }
}
