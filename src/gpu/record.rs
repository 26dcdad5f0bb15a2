//! A recording stands between the program and wgpu: launchers append to it, [`Recording::submit`] encodes it.
//!
//! Work is cut into submissions that stay far from a watchdog's limit (2 s on Windows): the cut adapts to the device's measured speed.

use std::sync::Arc;
use web_time::Instant;

use super::{Gpu, Shader, Slot};
use crate::error::{Error, Result};

/// A compiled entry point.
pub(super) struct Pipeline {
    raw: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
}

/// How much work goes into one submission.
pub(super) struct Pace {
    /// Floating-point operations a submission.
    budget_flops: u64,
}

/// A submission should take about this long.
const TARGET_SECONDS: f64 = 0.2;

impl Default for Pace {
    fn default() -> Self {
        Self { budget_flops: 20_000_000_000 }
    }
}

enum Command {
    Dispatch {
        pipeline: Arc<Pipeline>,
        label: String,
        uniform: (u64, u64),
        bindings: Vec<(wgpu::Buffer, u64, u64)>,
        grid: [u32; 3],
        flops: u64,
    },
    Clear(wgpu::Buffer, u64, u64),
    Copy {
        from: (wgpu::Buffer, u64),
        to: (wgpu::Buffer, u64),
        bytes: u64,
    },
}

/// Dispatches, clears and copies, in order.
pub struct Recording<'g> {
    gpu: &'g Gpu,
    commands: Vec<Command>,
    uniforms: Vec<u8>,
    scope: String,
    dispatches: usize,
    flops: u64,
}

/// Workgroups for `n` invocations of one dimension, spread over two dimensions where one is too small; the shader takes its index
/// from `shared/grid`.
pub fn grid_1d(n: usize, workgroup: usize) -> [u32; 3] {
    let groups = n.div_ceil(workgroup).max(1);
    let x = groups.min(32_768);
    [x as u32, groups.div_ceil(x) as u32, 1]
}

impl Gpu {
    /// An empty recording.
    pub fn record(&self) -> Recording<'_> {
        Recording {
            gpu: self,
            commands: Vec::new(),
            uniforms: Vec::new(),
            scope: String::new(),
            dispatches: 0,
            flops: 0,
        }
    }

    fn pipeline(&self, shader: &Shader) -> Result<Arc<Pipeline>> {
        let key = shader.key();
        let mut cache = self.pipelines.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(found) = cache.get(&key) {
            return Ok(found.clone());
        }
        let live = self.live.as_ref().ok_or_else(|| Error::Gpu("a plan has no pipelines".into()))?;
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(shader.module),
            source: wgpu::ShaderSource::Wgsl(shader.source()?.into()),
        };
        // SAFETY: every kernel guards its own indices and ends its own loops; the kernel tests run with checks on as well
        // (JOINTWISE_CHECKED=1), and a browser never lets them go.
        let module = if std::env::var_os("JOINTWISE_CHECKED").is_some() {
            live.device.create_shader_module(descriptor)
        } else {
            unsafe { live.device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) }
        };
        let raw = live.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(shader.entry),
            layout: None,
            module: &module,
            entry_point: Some(shader.entry),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &[],
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        });
        self.check()?;
        let layout = raw.get_bind_group_layout(0);
        let pipeline = Arc::new(Pipeline { raw, layout });
        cache.insert(key, pipeline.clone());
        Ok(pipeline)
    }

    /// Starts collecting device times (slower: a pass a dispatch). No effect without timestamp queries.
    pub fn start_profile(&self) {
        if self.caps.timestamps {
            *self.profile.lock().unwrap_or_else(|e| e.into_inner()) = Some(super::Profile::default());
        }
    }

    /// Ends collecting, and gives what was collected.
    pub fn end_profile(&self) -> Option<super::Profile> {
        self.profile.lock().unwrap_or_else(|e| e.into_inner()).take()
    }
}

impl<'g> Recording<'g> {
    /// The device.
    pub fn gpu(&self) -> &'g Gpu {
        self.gpu
    }
    /// Labels from now on end with `/scope`.
    pub fn scope(&mut self, scope: impl Into<String>) {
        self.scope = scope.into();
    }
    /// Dispatches recorded so far.
    pub fn dispatches(&self) -> usize {
        self.dispatches
    }
    /// Floating-point operations recorded so far, as the launchers count them.
    pub fn flops(&self) -> u64 {
        self.flops
    }

    /// Appends a dispatch. Binding 0 is `params`, the slots follow in order. A grid with a zero runs nothing.
    pub fn dispatch<P: bytemuck::Pod>(
        &mut self,
        shader: &Shader,
        params: &P,
        slots: &[&Slot],
        grid: [u32; 3],
        flops: u64,
    ) {
        self.dispatches += 1;
        self.flops += flops;
        if self.gpu.live.is_none() || grid.contains(&0) {
            return;
        }
        let limit = self.gpu.caps.max_workgroups;
        assert!(grid.iter().all(|&g| g <= limit), "{}: grid {grid:?}", shader.entry);
        let pipeline = match self.gpu.pipeline(shader) {
            Ok(pipeline) => pipeline,
            // A shader that does not compile is our bug, and every variant is validated by a test; a device that was lost meanwhile
            // is not: it is reported when the recording's results are read.
            Err(error) => {
                if let Some(live) = &self.gpu.live {
                    let text = format!("{}: {error}", shader.key());
                    live.failure.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(text);
                }
                return;
            }
        };
        let offset = self.uniforms.len().next_multiple_of(256);
        let bytes = bytemuck::bytes_of(params);
        self.uniforms.resize(offset, 0);
        self.uniforms.extend_from_slice(bytes);
        self.uniforms.resize(self.uniforms.len().next_multiple_of(16), 0);
        let size = (self.uniforms.len() - offset) as u64;
        let label =
            if self.scope.is_empty() { shader.entry.into() } else { format!("{}/{}", shader.entry, self.scope) };
        let bindings = slots.iter().filter_map(|s| s.binding()).collect();
        self.commands.push(Command::Dispatch {
            pipeline,
            label,
            uniform: (offset as u64, size),
            bindings,
            grid,
            flops,
        });
    }

    /// Zeros.
    pub fn clear(&mut self, slot: &Slot) {
        if let Some((raw, offset, bytes)) = slot.binding() {
            self.commands.push(Command::Clear(raw, offset, bytes));
        }
    }

    /// Copies the whole of `from`.
    pub fn copy(&mut self, from: &Slot, to: &Slot) {
        assert!(from.len() <= to.len(), "copy {from:?} into {to:?}");
        if let (Some(a), Some(b)) = (from.binding(), to.binding()) {
            self.commands.push(Command::Copy { from: (a.0, a.1), to: (b.0, b.1), bytes: a.2 });
        }
    }

    /// Encodes and submits everything; does not wait.
    pub fn submit(self) {
        let Some(live) = &self.gpu.live else { return };
        if self.commands.is_empty() {
            return;
        }
        // Held until everything is submitted: recordings of two threads must not share the buffer's contents.
        let mut kept = self.gpu.uniforms.lock().unwrap_or_else(|e| e.into_inner());
        let uniforms = self.uniform_buffer(live, &mut kept);
        if self.gpu.profile.lock().unwrap_or_else(|e| e.into_inner()).is_some() {
            return self.submit_profiled(live, &uniforms);
        }
        let budget = self.gpu.pace.lock().unwrap_or_else(|e| e.into_inner()).budget_flops;
        let mut commands = self.commands.as_slice();
        while !commands.is_empty() {
            let mut flops = 0;
            let n = commands.iter().take_while(|c| {
                let before = flops;
                flops += if let Command::Dispatch { flops, .. } = c { *flops } else { 0 };
                before < budget
            });
            let (now, later) = commands.split_at(n.count());
            let cut = !later.is_empty();
            let started = Instant::now();
            let mut encoder = live.device.create_command_encoder(&Default::default());
            encode(live, &uniforms, &mut encoder, now);
            live.queue.submit([encoder.finish()]);
            if cut {
                self.adapt(live, started, flops);
            }
            commands = later;
        }
    }

    /// Waits for a cut submission, and sets the next ones' size by how long it took.
    fn adapt(&self, live: &super::device::Live, started: Instant, flops: u64) {
        // In a browser poll returns at once, and there is nothing to learn.
        if cfg!(target_arch = "wasm32") || live.device.poll(wgpu::PollType::wait_indefinitely()).is_err() {
            return;
        }
        let seconds = started.elapsed().as_secs_f64().max(1e-4);
        let mut pace = self.gpu.pace.lock().unwrap_or_else(|e| e.into_inner());
        let wanted = flops as f64 * TARGET_SECONDS / seconds;
        let (low, high) = (pace.budget_flops as f64 / 4.0, pace.budget_flops as f64 * 4.0);
        pace.budget_flops = wanted.clamp(low, high).max(1e8) as u64;
    }

    fn uniform_buffer(&self, live: &super::device::Live, kept: &mut Option<wgpu::Buffer>) -> wgpu::Buffer {
        let need = self.uniforms.len().max(4096) as u64;
        let buffer = match kept.take() {
            Some(buffer) if buffer.size() >= need => buffer,
            _ => live.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("uniforms"),
                size: need.next_power_of_two(),
                usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            }),
        };
        live.queue.write_buffer(&buffer, 0, &self.uniforms);
        *kept = Some(buffer.clone());
        buffer
    }

    /// A pass a dispatch, with a timestamp on both sides.
    fn submit_profiled(&self, live: &super::device::Live, uniforms: &wgpu::Buffer) {
        const CHUNK: usize = 1024;
        let period_ns = f64::from(live.queue.get_timestamp_period());
        let size = 2 * CHUNK as u64 * 8;
        let buffer = |usage| {
            live.device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
        };
        let queries = live.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: None,
            ty: wgpu::QueryType::Timestamp,
            count: 2 * CHUNK as u32,
        });
        for chunk in self.commands.chunks(CHUNK) {
            let resolved = buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC);
            let staging = buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
            let mut encoder = live.device.create_command_encoder(&Default::default());
            for (i, command) in chunk.iter().enumerate() {
                let writes = wgpu::ComputePassTimestampWrites {
                    query_set: &queries,
                    beginning_of_pass_write_index: Some(2 * i as u32),
                    end_of_pass_write_index: Some(2 * i as u32 + 1),
                };
                let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes: Some(writes) };
                match command {
                    Command::Dispatch { .. } => {
                        encode_dispatch(live, uniforms, &mut encoder.begin_compute_pass(&descriptor), command);
                    }
                    _ => encode(live, uniforms, &mut encoder, std::slice::from_ref(command)),
                }
            }
            encoder.resolve_query_set(&queries, 0..2 * chunk.len() as u32, &resolved, 0);
            encoder.copy_buffer_to_buffer(&resolved, 0, &staging, 0, size);
            live.queue.submit([encoder.finish()]);
            staging.map_async(wgpu::MapMode::Read, .., |_| {});
            if live.device.poll(wgpu::PollType::wait_indefinitely()).is_err() {
                return;
            }
            let Ok(view) = staging.get_mapped_range(..) else { return };
            let ticks: &[u64] = bytemuck::cast_slice(&view);
            if let Some(profile) = &mut *self.gpu.profile.lock().unwrap_or_else(|e| e.into_inner()) {
                for (command, tick) in chunk.iter().zip(ticks.chunks(2)) {
                    if let Command::Dispatch { label, .. } = command {
                        profile.add(label, tick[1].saturating_sub(tick[0]) as f64 * period_ns / 1e3);
                    }
                }
            }
        }
    }
}

fn encode(
    live: &super::device::Live,
    uniforms: &wgpu::Buffer,
    encoder: &mut wgpu::CommandEncoder,
    commands: &[Command],
) {
    let is_dispatch = |c: &Command| matches!(c, Command::Dispatch { .. });
    for run in commands.chunk_by(|a, b| is_dispatch(a) == is_dispatch(b)) {
        if is_dispatch(&run[0]) {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            for command in run {
                encode_dispatch(live, uniforms, &mut pass, command);
            }
            continue;
        }
        for command in run {
            match command {
                Command::Clear(raw, offset, bytes) => encoder.clear_buffer(raw, *offset, Some(*bytes)),
                Command::Copy { from, to, bytes } => {
                    encoder.copy_buffer_to_buffer(&from.0, from.1, &to.0, to.1, *bytes);
                }
                Command::Dispatch { .. } => {}
            }
        }
    }
}

fn encode_dispatch(
    live: &super::device::Live,
    uniforms: &wgpu::Buffer,
    pass: &mut wgpu::ComputePass<'_>,
    command: &Command,
) {
    let Command::Dispatch { pipeline, label, uniform, bindings, grid, .. } = command else { return };
    let range = |buffer, offset, size| {
        wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size: std::num::NonZeroU64::new(size) })
    };
    let mut entries = vec![wgpu::BindGroupEntry { binding: 0, resource: range(uniforms, uniform.0, uniform.1) }];
    for (i, (raw, offset, size)) in bindings.iter().enumerate() {
        entries.push(wgpu::BindGroupEntry { binding: i as u32 + 1, resource: range(raw, *offset, *size) });
    }
    let group = live.device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some(label),
        layout: &pipeline.layout,
        entries: &entries,
    });
    pass.set_pipeline(&pipeline.raw);
    pass.set_bind_group(0, &group, &[]);
    pass.dispatch_workgroups(grid[0], grid[1], grid[2]);
}
