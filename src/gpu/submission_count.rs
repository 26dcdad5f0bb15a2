//! Count of submissions that the device itself keeps. A driver may reset a ring and report its work as done although nothing ran. The
//! device's count is then below the host's; every readback compares the two counts. An increment costs one dispatch of one invocation per
//! submission, and no waiting.

use std::sync::Mutex;

const SHADER: &str = "
@group(0) @binding(0) var<storage, read_write> count: array<u32>;

@compute @workgroup_size(1)
fn count_submission() {
    count[0] += 1u;
}
";

pub(super) struct SubmissionCount {
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
    on_device: wgpu::Buffer,
    on_host: Mutex<u32>,
}

impl SubmissionCount {
    pub fn new(device: &wgpu::Device) -> Self {
        let label = Some("count_submission");
        let source = wgpu::ShaderSource::Wgsl(SHADER.into());
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label, source });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label,
            layout: None,
            module: &module,
            entry_point: label,
            compilation_options: Default::default(),
            cache: None,
        });
        let on_device = device.create_buffer(&wgpu::BufferDescriptor {
            label,
            size: 256,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &[wgpu::BindGroupEntry { binding: 0, resource: on_device.as_entire_binding() }],
        });
        Self { pipeline, group, on_device, on_host: Mutex::new(0) }
    }

    /// Encodes the increment of the device's count.
    pub fn encode(&self, encoder: &mut wgpu::CommandEncoder) {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.group, &[]);
        pass.dispatch_workgroups(1, 1, 1);
    }

    /// Encodes a copy of the device's count into a buffer.
    pub fn copy(&self, encoder: &mut wgpu::CommandEncoder, to: &wgpu::Buffer, offset: u64) {
        encoder.copy_buffer_to_buffer(&self.on_device, 0, to, offset, 4);
    }

    /// Counts a submission, calls `submit` and returns the submission's number. The lock keeps the queue in the order of numbers when
    /// several threads submit.
    pub fn submit<T>(&self, submit: impl FnOnce() -> T) -> (T, u32) {
        let mut number = self.on_host.lock().unwrap_or_else(|e| e.into_inner());
        *number = number.wrapping_add(1);
        (submit(), *number)
    }
}
