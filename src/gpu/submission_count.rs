//! A count of submissions that the device keeps itself. A driver may reset a ring and tell that its work was done, although nothing ran: the
//! device's count, which every readback brings along, is then smaller than the host's. An increment costs a dispatch of one invocation per
//! submission, and no wait.

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

    /// Appends the increment.
    pub fn encode(&self, encoder: &mut wgpu::CommandEncoder) {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.group, &[]);
        pass.dispatch_workgroups(1, 1, 1);
    }

    /// Copies the count.
    pub fn copy(&self, encoder: &mut wgpu::CommandEncoder, to: &wgpu::Buffer, offset: u64) {
        encoder.copy_buffer_to_buffer(&self.on_device, 0, to, offset, 4);
    }

    /// Calls `submit` with the next number: those of two threads reach the queue in their order.
    pub fn submit<T>(&self, submit: impl FnOnce() -> T) -> (T, u32) {
        let mut number = self.on_host.lock().unwrap_or_else(|e| e.into_inner());
        *number = number.wrapping_add(1);
        (submit(), *number)
    }
}
