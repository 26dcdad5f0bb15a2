//! Encoding of a recording's commands into submissions, whose sizes [`super::submission_budget`] chooses.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use web_time::Instant;

use super::failure::{DeviceFailure, refused};
use super::memory::Slot;
use super::open_device::OpenDevice;
use super::pipelines::Pipeline;
use super::record::{RecordedCommand, RecordedDispatch, Recording};
use super::submission_budget::{SubmissionBudget, grid_parts};

/// Cache of bind groups. A step with the same shapes as the step before finds all of its bind groups here.
#[derive(Default)]
pub(super) struct BindGroups {
    /// Bind groups by pipeline, uniform buffer and offset, and bindings.
    known: HashMap<(usize, wgpu::Buffer, u64, Vec<BoundBuffer>), wgpu::BindGroup>,
    /// Count of freed buffers when the bind groups were created. If it changes, the cache is cleared, because bind groups keep their
    /// buffers alive.
    freed_buffers: u64,
}

/// Buffer, offset and size in bytes.
type BoundBuffer = (wgpu::Buffer, u64, u64);

/// Largest number of cached bind groups, enough for batches of several lengths.
const MOST_GROUPS: usize = 16_384;

/// Buffer of a recording's uniforms.
pub(super) struct UniformBuffer(wgpu::Buffer);

/// Describes a submission by its first dispatch: "matmul_fwd/L3 and 17 more dispatches".
fn running(commands: &[RecordedCommand]) -> String {
    let mut labels =
        commands.iter().filter_map(|c| if let RecordedCommand::Dispatch(d) = c { Some(&d.label) } else { None });
    match (labels.next(), labels.count()) {
        (None, _) => "copies".into(),
        (Some(label), 0) => label.clone(),
        (Some(label), more) => format!("{label} and {more} more dispatches"),
    }
}

impl Recording<'_> {
    /// Encodes and submits all commands, without waiting for them.
    pub fn submit(self) {
        self.submit_watched(&[], &mut |_| ());
    }

    /// Encodes and submits all commands like [`Self::submit`]. Calls `passed` with the index of each group of slots once no command that is left uses the
    /// groups up to this one, in order; not where the device has failed. No two groups overlap.
    pub fn submit_watched(mut self, groups: &[Vec<Slot>], passed: &mut dyn FnMut(usize)) {
        let Some(live) = &self.gpu.live else { return };
        if live.failure.is_set() || self.commands.is_empty() && groups.is_empty() {
            return;
        }
        if let Err(error) = self.gpu.pipelines.compile(live, &self.distinct()) {
            // A shader that does not link is a bug in this program; a test links every variant.
            live.failure.set(DeviceFailure::Refused(error.to_string()));
        }
        // If a kernel or a buffer is missing, other dispatches would read values that were never computed.
        if live.failure.is_set() {
            return;
        }
        self.split_long();
        let stops = self.last_uses(groups);
        // Locked until everything is submitted, because recordings of two threads must not share the buffer's contents.
        let mut kept = self.gpu.uniforms.lock().unwrap_or_else(|e| e.into_inner());
        let uniforms = self.uniform_buffer(live, &mut kept);
        if self.gpu.caps.is_cpu {
            self.run_first(live, &uniforms);
        }
        if self.gpu.profile.lock().unwrap_or_else(|e| e.into_inner()).is_some() {
            self.submit_profiled(live, &uniforms);
            return (0..groups.len()).for_each(passed);
        }
        let mut budget = self.gpu.budget.lock().unwrap_or_else(|e| e.into_inner());
        self.submit_parts(live, &uniforms, &mut budget, &stops, passed);
    }

    /// Encodes and submits all commands, in submissions of the usual size. Calls `passed` with the index of each of `stops` once this many commands are
    /// submitted; they ascend.
    pub(super) fn submit_parts(
        &self,
        live: &OpenDevice,
        uniforms: &UniformBuffer,
        budget: &mut SubmissionBudget,
        stops: &[usize],
        passed: &mut dyn FnMut(usize),
    ) {
        let (mut done, mut stop) = (0, 0);
        loop {
            while stops.get(stop).is_some_and(|&end| end <= done) {
                passed(stop);
                stop += 1;
            }
            let commands = &self.commands[done..];
            if commands.is_empty() {
                return;
            }
            let most = stops.get(stop).map_or(usize::MAX, |end| end - done);
            let (n, expected) = budget.next_submission(commands, most);
            let now = &commands[..n];
            let mut encoder = live.device.create_command_encoder(&Default::default());
            self.encode(live, uniforms, &mut encoder, now);
            let Some(submitted) = live.submit(encoder, None, || running(now)) else { return };
            budget.queued(live, submitted.index, expected);
            done += n;
        }
    }

    /// Returns the number of commands up to the last one that uses each group of slots, or a group before it.
    #[expect(clippy::mutable_key_type, reason = "wgpu compares and hashes a buffer by its identity")]
    fn last_uses(&self, groups: &[Vec<Slot>]) -> Vec<usize> {
        let mut places: HashMap<wgpu::Buffer, Vec<(std::ops::Range<u64>, usize)>> = HashMap::new();
        for (group, slots) in groups.iter().enumerate() {
            for (buffer, offset, bytes) in slots.iter().filter_map(Slot::binding) {
                places.entry(buffer).or_default().push((offset..offset + bytes, group));
            }
        }
        places.values_mut().for_each(|ranges| ranges.sort_by_key(|(range, _)| range.start));
        let mut last = vec![0; groups.len()];
        let mut uses = |command: usize, (buffer, offset, bytes): &BoundBuffer| {
            let Some(ranges) = places.get(buffer) else { return };
            let begun = ranges.partition_point(|(range, _)| range.end <= *offset);
            let overlapping = ranges[begun..].iter().take_while(|(range, _)| range.start < offset + bytes);
            overlapping.for_each(|(_, group)| last[*group] = command + 1);
        };
        for (i, command) in self.commands.iter().enumerate() {
            match command {
                RecordedCommand::Dispatch(d) => d.bindings.iter().for_each(|bound| uses(i, bound)),
                RecordedCommand::Clear(buffer, offset, bytes) => uses(i, &(buffer.clone(), *offset, *bytes)),
                RecordedCommand::Copy { from, to, bytes } => {
                    [from, to].into_iter().for_each(|(buffer, offset)| uses(i, &(buffer.clone(), *offset, *bytes)));
                }
            }
        }
        let mut most = 0;
        last.iter_mut().for_each(|end| {
            most = most.max(*end);
            *end = most;
        });
        last
    }

    /// Replaces each dispatch that would take too long, or whose grid is too large, by several parts.
    pub(super) fn split_long(&mut self) {
        let budget = self.gpu.budget.lock().unwrap_or_else(|e| e.into_inner());
        let limit = self.gpu.caps.max_workgroups;
        let commands = Vec::with_capacity(self.commands.len());
        for command in std::mem::replace(&mut self.commands, commands) {
            let parts = match &command {
                RecordedCommand::Dispatch(d) if d.is_splittable => grid_parts(d.grid, budget.n_parts(d), limit),
                _ => Vec::new(),
            };
            let RecordedCommand::Dispatch(whole) = &command else {
                self.commands.push(command);
                continue;
            };
            if parts.len() < 2 {
                self.commands.push(command);
                continue;
            }
            let (start, size) = (whole.uniform.0 as usize, whole.uniform.1 as usize);
            for part in &parts {
                let offset = self.uniforms.len().next_multiple_of(256);
                self.uniforms.resize(offset, 0);
                self.uniforms.extend_from_within(start..start + size);
                self.uniforms[offset..offset + 8].copy_from_slice(bytemuck::bytes_of(&part.first));
                let uniform = (offset as u64, whole.uniform.1);
                let work = whole.work / parts.len() as u64;
                self.commands.push(RecordedCommand::Dispatch(RecordedDispatch {
                    uniform,
                    grid: part.grid,
                    work,
                    ..whole.clone()
                }));
            }
        }
    }

    /// Returns the pipelines of all dispatches, each once, in the order of their first use.
    pub(super) fn distinct(&self) -> Vec<Arc<Pipeline>> {
        let mut all: Vec<Arc<Pipeline>> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        for command in &self.commands {
            if let RecordedCommand::Dispatch(d) = command
                && seen.insert(Arc::as_ptr(&d.pipeline))
            {
                all.push(d.pipeline.clone());
            }
        }
        all
    }

    /// Dispatches each new kernel with an empty grid, and reports progress. CPU drivers translate a kernel at its first dispatch, which may
    /// take seconds over all kernels.
    pub(super) fn run_first(&self, live: &OpenDevice, uniforms: &UniformBuffer) {
        let mut new: Vec<&RecordedDispatch> = Vec::new();
        for command in &self.commands {
            if let RecordedCommand::Dispatch(d) = command
                && !d.pipeline.ran.swap(true, Ordering::Relaxed)
            {
                new.push(d);
            }
        }
        for (i, dispatch) in new.iter().enumerate() {
            let mut encoder = live.device.create_command_encoder(&Default::default());
            self.encode_dispatch(
                live,
                uniforms,
                &mut encoder.begin_compute_pass(&Default::default()),
                dispatch,
                [0; 3],
            );
            let submitted = live.submit(encoder, None, || format!("the first run of {}", dispatch.label));
            if submitted.is_none() || !live.wait(None) {
                return;
            }
            self.gpu.pipelines.progress(i + 1, new.len());
        }
    }

    pub(super) fn uniform_buffer(&self, live: &OpenDevice, kept: &mut Option<wgpu::Buffer>) -> UniformBuffer {
        let need = self.uniforms.len().max(4096) as u64;
        let buffer = match kept.take() {
            Some(buffer) if buffer.size() >= need => buffer,
            _ => {
                let descriptor = wgpu::BufferDescriptor {
                    label: Some("uniforms"),
                    size: need.next_power_of_two(),
                    usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                };
                live.create_buffer(&descriptor, || refused("uniforms", descriptor.size, self.gpu.ledger().total()))
            }
        };
        live.queue.write_buffer(&buffer, 0, &self.uniforms);
        live.failure.name_refusal(|| refused("uniforms", need, self.gpu.ledger().total()));
        *kept = Some(buffer.clone());
        UniformBuffer(buffer)
    }

    /// Submits one pass per dispatch, with a timestamp before and after it. Submissions have the usual size, and each one is waited for.
    fn submit_profiled(&self, live: &OpenDevice, uniforms: &UniformBuffer) {
        const CHUNK: usize = 1024;
        let mut budget = self.gpu.budget.lock().unwrap_or_else(|e| e.into_inner());
        let period_ns = f64::from(live.queue.get_timestamp_period());
        let size = 2 * CHUNK as u64 * 8;
        let buffer = |usage| {
            let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
            live.create_buffer(&descriptor, || refused("timestamps", size, self.gpu.ledger().total()))
        };
        let queries = live.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: None,
            ty: wgpu::QueryType::Timestamp,
            count: 2 * CHUNK as u32,
        });
        let mut commands = self.commands.as_slice();
        while !commands.is_empty() {
            let (n, expected) = budget.next_submission(commands, CHUNK);
            let (chunk, later) = commands.split_at(n);
            commands = later;
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
                    RecordedCommand::Dispatch(d) => {
                        self.encode_dispatch(live, uniforms, &mut encoder.begin_compute_pass(&descriptor), d, d.grid);
                    }
                    _ => self.encode(live, uniforms, &mut encoder, std::slice::from_ref(command)),
                }
            }
            encoder.resolve_query_set(&queries, 0..2 * chunk.len() as u32, &resolved, 0);
            encoder.copy_buffer_to_buffer(&resolved, 0, &staging, 0, size);
            let began = Instant::now();
            if live.submit(encoder, None, || running(chunk)).is_none() {
                return;
            }
            staging.map_async(wgpu::MapMode::Read, .., |_| {});
            if !live.wait(None) {
                return;
            }
            budget.took(&expected, began.elapsed().as_secs_f64());
            let Ok(view) = staging.get_mapped_range(..) else { return };
            let ticks: &[u64] = bytemuck::cast_slice(&view);
            if let Some(profile) = &mut *self.gpu.profile.lock().unwrap_or_else(|e| e.into_inner()) {
                for (command, tick) in chunk.iter().zip(ticks.chunks(2)) {
                    if let RecordedCommand::Dispatch(d) = command {
                        profile.add(&d.label, tick[1].saturating_sub(tick[0]) as f64 * period_ns / 1e3);
                    }
                }
            }
        }
    }

    pub(super) fn encode(
        &self,
        live: &OpenDevice,
        uniforms: &UniformBuffer,
        encoder: &mut wgpu::CommandEncoder,
        commands: &[RecordedCommand],
    ) {
        let is_dispatch = |c: &RecordedCommand| matches!(c, RecordedCommand::Dispatch(_));
        for run in commands.chunk_by(|a, b| is_dispatch(a) == is_dispatch(b)) {
            if is_dispatch(&run[0]) {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                for command in run {
                    if let RecordedCommand::Dispatch(d) = command {
                        self.encode_dispatch(live, uniforms, &mut pass, d, d.grid);
                    }
                }
                continue;
            }
            for command in run {
                match command {
                    RecordedCommand::Clear(raw, offset, bytes) => encoder.clear_buffer(raw, *offset, Some(*bytes)),
                    RecordedCommand::Copy { from, to, bytes } => {
                        encoder.copy_buffer_to_buffer(&from.0, from.1, &to.0, to.1, *bytes);
                    }
                    RecordedCommand::Dispatch(_) => {}
                }
            }
        }
    }

    pub(super) fn encode_dispatch(
        &self,
        live: &OpenDevice,
        uniforms: &UniformBuffer,
        pass: &mut wgpu::ComputePass<'_>,
        dispatch: &RecordedDispatch,
        grid: [u32; 3],
    ) {
        let Some(compiled) = dispatch.pipeline.compiled() else { return };
        let make = || {
            let range = |buffer, offset, size| {
                let size = std::num::NonZeroU64::new(size);
                wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size })
            };
            let (offset, size) = dispatch.uniform;
            let uniform = wgpu::BindGroupEntry { binding: 0, resource: range(&uniforms.0, offset, size) };
            let slots = dispatch.bindings.iter().enumerate().map(|(i, (raw, offset, size))| wgpu::BindGroupEntry {
                binding: i as u32 + 1,
                resource: range(raw, *offset, *size),
            });
            live.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(&dispatch.label),
                layout: &compiled.layout,
                entries: &std::iter::once(uniform).chain(slots).collect::<Vec<_>>(),
            })
        };
        let group = if dispatch.is_lasting {
            let freed_buffers = self.gpu.pool.freed_buffers();
            let mut groups = self.gpu.bind_groups.lock().unwrap_or_else(|e| e.into_inner());
            if groups.freed_buffers != freed_buffers || groups.known.len() >= MOST_GROUPS {
                *groups = BindGroups { known: HashMap::new(), freed_buffers };
            }
            let pipeline = Arc::as_ptr(&dispatch.pipeline) as usize;
            let key = (pipeline, uniforms.0.clone(), dispatch.uniform.0, dispatch.bindings.clone());
            groups.known.entry(key).or_insert_with(make).clone()
        } else {
            make()
        };
        pass.set_pipeline(&compiled.raw);
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups(grid[0], grid[1], grid[2]);
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::super::{DeviceChoice, Gpu, Role};
    use super::*;

    #[test]
    fn groups_pass_once_nothing_more_uses_them() {
        let gpu = pollster::block_on(Gpu::open(&DeviceChoice::Best)).unwrap();
        let [page, other] = [256, 64].map(|len| gpu.alloc_persistent(Role::Grads, len));
        let [a, b, c] = [0, 64, 128].map(|at| page.slice(at, 64));
        let record = || {
            let mut rec = gpu.record();
            rec.clear(&a);
            rec.copy(&other, &c);
            rec.copy(&a, &other);
            rec.clear(&b);
            rec
        };
        let last = |groups: &[&[&Slot]]| {
            let groups: Vec<Vec<Slot>> =
                groups.iter().map(|group| group.iter().map(|&slot| slot.clone()).collect()).collect();
            record().last_uses(&groups)
        };
        assert_eq!(last(&[&[&c], &[&a], &[&other], &[&b]]), [2, 3, 3, 4]);
        // A group waits for those before it, and a slot that nothing uses waits for nothing.
        assert_eq!(last(&[&[&b], &[&c]]), [4, 4]);
        assert_eq!(last(&[&[&page.slice(192, 64)], &[&c, &a]]), [0, 3]);
        let mut passed = Vec::new();
        record().submit_watched(&[vec![c], vec![a], vec![b]], &mut |i| passed.push(i));
        assert_eq!(passed, [0, 1, 2]);
    }
}
