//! Recording of commands. Launchers append commands to a recording, and [`Recording::submit`] encodes them for wgpu.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::pipelines::Pipeline;
use super::{Gpu, Shader, Slot, Variant};

#[derive(Clone)]
pub(super) struct RecordedDispatch {
    pub pipeline: Arc<Pipeline>,
    pub entry: &'static str,
    pub label: String,
    /// Offset and size of the uniform, in bytes.
    pub uniform: (u64, u64),
    /// Buffer, offset and size in bytes, per binding.
    pub bindings: Vec<(wgpu::Buffer, u64, u64)>,
    /// Whether all bindings outlive the recording, so that their bind group can be reused.
    pub is_lasting: bool,
    pub grid: [u32; 3],
    /// Whether the grid may be split: the uniform then begins with the part's first workgroup.
    pub is_splittable: bool,
    /// Estimated cost: the larger of the floating-point operations and the bound elements.
    pub work: u64,
    /// Bytes and operations, as counted for [`Recording::launches`].
    pub counted: DispatchWork,
    /// Index in [`Recording::launches`]. Parts of a split dispatch have the index of the whole.
    pub launch: usize,
}

pub(super) enum RecordedCommand {
    Dispatch(RecordedDispatch),
    Clear(wgpu::Buffer, u64, u64),
    Copy { from: (wgpu::Buffer, u64), to: (wgpu::Buffer, u64), bytes: u64 },
}

/// Work of a dispatch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DispatchWork {
    /// Bytes read and written, each element once.
    pub bytes: u64,
    /// Floating-point operations, a multiply-add counting two.
    pub flops: u64,
}

/// Work that a launcher counts for a dispatch.
#[derive(Debug, Clone, Copy)]
pub struct CountedWork {
    flops: u64,
    /// `None`: all that is bound, each tensor once.
    bytes: Option<u64>,
}

impl CountedWork {
    /// Counts floating-point operations and bytes, for a dispatch that reads or writes only parts of what it binds.
    pub fn new(flops: u64, bytes: u64) -> Self {
        Self { flops, bytes: Some(bytes) }
    }
}

/// Counts floating-point operations, for a dispatch that reads or writes all that it binds.
impl From<u64> for CountedWork {
    fn from(flops: u64) -> Self {
        Self { flops, bytes: None }
    }
}

/// Launch of a kernel, as a recording holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordedLaunch {
    /// Entry point with its specialisation.
    pub shader: Shader,
    /// Scope that was set when the launch was recorded, such as `L3` for layer 3; empty outside of a scope.
    pub scope: String,
    /// Workgroups along x, y and z.
    pub workgroups: [u32; 3],
    /// Bytes and floating-point operations, as the launcher counts them.
    pub work: DispatchWork,
}

/// Number of dispatches by entry point and work.
pub type PlannedWork = BTreeMap<(&'static str, DispatchWork), usize>;

/// Recording of dispatches, clears and copies, which run in order.
pub struct Recording<'g> {
    pub(super) gpu: &'g Gpu,
    pub(super) commands: Vec<RecordedCommand>,
    pub(super) uniforms: Vec<u8>,
    variants: &'g [Variant],
    scope: String,
    dispatches: usize,
    flops: u64,
    planned: PlannedWork,
    pub(super) n_launches: usize,
}

/// Computes a grid for `n` invocations. It has two dimensions where one would be too long. The shader computes its index with
/// `shared/grid`.
pub fn grid_1d(n: usize, workgroup: usize) -> [u32; 3] {
    let groups = n.div_ceil(workgroup).max(1);
    let x = groups.min(32_768);
    [x as u32, groups.div_ceil(x) as u32, 1]
}

/// Returns the size in bytes of a uniform of [`Recording::dispatch_in_parts`], whose WGSL struct begins with `first_group`.
pub const fn uniform_bytes_in_parts<P>() -> usize {
    (size_of::<[u32; 2]>() + size_of::<P>()).next_multiple_of(align_of::<u64>())
}

impl Gpu {
    /// Creates an empty recording.
    pub fn record(&self) -> Recording<'_> {
        Recording {
            gpu: self,
            commands: Vec::new(),
            uniforms: Vec::new(),
            variants: &self.caps.variants,
            scope: String::new(),
            dispatches: 0,
            flops: 0,
            planned: PlannedWork::new(),
            n_launches: 0,
        }
    }

    /// Starts measuring device times. Dispatches become slower, because each one gets its own pass. Without timestamp queries, this has no
    /// effect.
    pub fn start_profile(&self) {
        if self.caps.timestamps {
            *self.profile.lock().unwrap_or_else(|e| e.into_inner()) = Some(super::KernelProfile::default());
        }
    }

    /// Stops measuring device times, and returns them.
    pub fn end_profile(&self) -> Option<super::KernelProfile> {
        self.profile.lock().unwrap_or_else(|e| e.into_inner()).take()
    }
}

impl<'g> Recording<'g> {
    /// Returns the device that runs the recording.
    pub fn gpu(&self) -> &'g Gpu {
        self.gpu
    }
    /// Returns the variants that launchers may choose.
    pub fn variants(&self) -> &'g [Variant] {
        self.variants
    }
    /// Records what `record` appends with these variants instead of the device's, for tests and benchmarks of one implementation.
    pub fn with_variants<T>(&mut self, variants: &'static [Variant], record: impl FnOnce(&mut Self) -> T) -> T {
        let before = std::mem::replace(&mut self.variants, variants);
        let recorded = record(self);
        self.variants = before;
        recorded
    }
    /// Appends `/scope` to the labels of later dispatches.
    pub fn scope(&mut self, scope: impl Into<String>) {
        self.scope = scope.into();
    }
    /// Returns the number of dispatches recorded so far.
    pub fn dispatches(&self) -> usize {
        self.dispatches
    }
    /// Returns the floating-point operations recorded so far, as the launchers count them.
    pub fn flops(&self) -> u64 {
        self.flops
    }
    /// Returns the dispatches by their work, where the device only counts (see [`Gpu::plan`]); empty on other devices.
    pub fn planned_work(&self) -> &PlannedWork {
        &self.planned
    }

    /// Returns the number of [`Self::launches`] so far.
    pub fn n_launches(&self) -> usize {
        self.n_launches
    }
    /// Returns the launches in the order in which they run; empty where the device only counts. Launches without workgroups are left out.
    pub fn launches(&self) -> Vec<RecordedLaunch> {
        let mut all: Vec<RecordedLaunch> = Vec::with_capacity(self.n_launches);
        for command in &self.commands {
            if let RecordedCommand::Dispatch(d) = command {
                let scope = d.label.split_once('/').map_or("", |(_, scope)| scope).into();
                let shader = d.pipeline.shader().clone();
                all.push(RecordedLaunch { shader, scope, workgroups: d.grid, work: d.counted });
            }
        }
        all
    }

    /// Appends a dispatch. Binding 0 is `params`; the slots follow in order. A grid that contains a zero runs nothing.
    pub fn dispatch<P: bytemuck::Pod>(
        &mut self,
        shader: &Shader,
        params: &P,
        slots: &[&Slot],
        grid: [u32; 3],
        work: impl Into<CountedWork>,
    ) {
        let limit = self.gpu.caps.max_workgroups;
        assert!(grid.iter().all(|&g| g <= limit), "{}: grid {grid:?}", shader.entry);
        self.append(shader, &[bytemuck::bytes_of(params)], slots, grid, work.into(), false);
    }

    /// Appends a dispatch that may be split into parts of its grid, so workgroups must not depend on each other. The uniform consists of
    /// `first_group: vec2<u32>`, which the shader adds to its `workgroup_id`, and then `params`. The grid's two dimensions may be of any
    /// size.
    pub fn dispatch_in_parts<P: bytemuck::Pod>(
        &mut self,
        shader: &Shader,
        params: &P,
        slots: &[&Slot],
        grid: [u32; 2],
        work: impl Into<CountedWork>,
    ) {
        let params = [bytemuck::bytes_of(&[0_u32; 2]), bytemuck::bytes_of(params)];
        self.append(shader, &params, slots, [grid[0], grid[1], 1], work.into(), true);
    }

    fn append(
        &mut self,
        shader: &Shader,
        params: &[&[u8]],
        slots: &[&Slot],
        grid: [u32; 3],
        CountedWork { flops, bytes }: CountedWork,
        is_splittable: bool,
    ) {
        self.dispatches += 1;
        self.flops += flops;
        if grid.contains(&0) {
            return;
        }
        let is_first = |i: usize| !slots[..i].iter().any(|&before| std::ptr::eq(before, slots[i]));
        let of_bound = || (0..slots.len()).filter(|&i| is_first(i)).map(|i| slots[i].bytes()).sum();
        let counted = DispatchWork { bytes: bytes.unwrap_or_else(of_bound), flops };
        let pipeline = self.gpu.pipelines.get(shader);
        if self.gpu.live.is_none() {
            *self.planned.entry((shader.entry, counted)).or_default() += 1;
            return;
        }
        let offset = self.uniforms.len().next_multiple_of(256);
        self.uniforms.resize(offset, 0);
        params.iter().for_each(|bytes| self.uniforms.extend_from_slice(bytes));
        self.uniforms.resize(self.uniforms.len().next_multiple_of(16), 0);
        let size = (self.uniforms.len() - offset) as u64;
        let label =
            if self.scope.is_empty() { shader.entry.into() } else { format!("{}/{}", shader.entry, self.scope) };
        let n_bound: usize = slots.iter().map(|slot| slot.len()).sum();
        self.commands.push(RecordedCommand::Dispatch(RecordedDispatch {
            pipeline,
            entry: shader.entry,
            label,
            uniform: (offset as u64, size),
            bindings: slots.iter().filter_map(|s| s.binding()).collect(),
            is_lasting: slots.iter().all(|s| s.is_lasting()),
            grid,
            is_splittable,
            work: flops.max(n_bound as u64),
            counted,
            launch: self.n_launches,
        }));
        self.n_launches += 1;
    }

    /// Fills a slot with zeros.
    pub fn clear(&mut self, slot: &Slot) {
        if let Some((raw, offset, _)) = slot.binding() {
            self.commands.push(RecordedCommand::Clear(raw, offset, slot.bytes()));
        }
    }

    /// Copies all of `from` to the beginning of `to`.
    pub fn copy(&mut self, from: &Slot, to: &Slot) {
        assert!(from.len() <= to.len(), "copy {from:?} into {to:?}");
        if let (Some(a), Some(b)) = (from.binding(), to.binding()) {
            self.commands.push(RecordedCommand::Copy { from: (a.0, a.1), to: (b.0, b.1), bytes: from.bytes() });
        }
    }
}
