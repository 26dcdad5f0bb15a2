//! Devices and plans: choosing an adapter, opening it, and its capabilities.

use std::sync::{Arc, Mutex};

use super::adapters::{DeviceChoice, DeviceSummary, FoundAdapters};
use super::blocks::{BLOCK_BYTES, HOST_VISIBLE_BLOCK_BYTES};
use super::device_facts::DeviceFacts;
use super::device_memory::DeviceMemory;
use super::failure::catch_panic;
use super::memory::MemoryPool;
use super::open_device::{OnWait, OpenDevice};
use super::precision::MatmulPrecision;
use super::tuning::Tuning;
use super::variant::Variant;
use crate::error::{Error, Result};

/// Capabilities of a device, as far as kernels need them. Variants are chosen by these alone.
#[derive(Debug, Clone, PartialEq)]
pub struct Caps {
    /// Adapter's name.
    pub name: String,
    /// Backend: `vulkan`, `metal`, `dx12`, `webgpu`, ...
    pub backend: String,
    /// Driver's name and version; on DX12 with the shader compiler.
    pub driver: String,
    /// Whether the adapter is a software implementation.
    pub is_cpu: bool,
    /// Implementations beside the baseline that kernels may choose.
    pub variants: Vec<Variant>,
    /// Fastest of these variants per class of shapes, where they were measured.
    pub tuning: Tuning,
    /// Largest storage binding, at most 2 GiB.
    pub max_binding_bytes: u64,
    /// Alignment of a binding's offset, at least 256.
    pub binding_alignment_bytes: u64,
    /// Largest number of workgroups per dimension, at most 65,535.
    pub max_workgroups: u32,
    /// Workgroup memory of a kernel.
    pub workgroup_bytes: u32,
    /// Smallest and largest subgroup size, where the feature exists.
    pub subgroup: Option<(u32, u32)>,
    /// Whether shaders may use f16.
    pub f16: bool,
    /// Cooperative matrices with f16 operands and f32 sums.
    pub cooperative: Option<CooperativeMatrix>,
    /// Precision of matrix products: below the highest only with cooperative matrices.
    pub matmul_precision: MatmulPrecision,
    /// Whether passes can have timestamps.
    pub timestamps: bool,
    /// Memory of the device, where its driver reports it. `None` for CPUs, whose drivers invent a size.
    pub memory_bytes: Option<u64>,
    /// Memory that other programs had left when the device was opened, where its driver reports it.
    pub free_memory_bytes: Option<u64>,
    /// Size in bytes of a block of memory, which is shared by all buffers that fit into it.
    pub memory_block_bytes: u64,
}

/// Cooperative matrices: fragments that the invocations of a subgroup multiply together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct CooperativeMatrix {
    /// Rows and columns of a fragment: 8 or 16.
    pub edge: u32,
    /// Invocations per subgroup: the smallest size, until [`Gpu::open_for`] measures it for a precision that needs it.
    pub subgroup: u32,
}

impl Caps {
    /// Returns WebGPU's guaranteed minimum, which baseline kernels need and planning without a device assumes.
    pub fn baseline() -> Self {
        Self {
            name: "baseline".into(),
            backend: "none".into(),
            driver: String::new(),
            is_cpu: false,
            variants: Variant::default_for(false, 0),
            tuning: Tuning::default(),
            max_binding_bytes: 128 << 20,
            binding_alignment_bytes: 256,
            max_workgroups: 65_535,
            workgroup_bytes: 16 << 10,
            subgroup: None,
            f16: false,
            cooperative: None,
            matmul_precision: MatmulPrecision::Highest,
            timestamps: false,
            memory_bytes: None,
            free_memory_bytes: None,
            memory_block_bytes: BLOCK_BYTES,
        }
    }

    fn new(adapter: &wgpu::Adapter, summary: &DeviceSummary) -> Self {
        let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
        let is_cpu = info.device_type == wgpu::DeviceType::Cpu;
        let memory = DeviceMemory::of_adapter(adapter);
        let is_host_visible = memory.is_some_and(|memory| memory.is_host_visible);
        let memory = memory.filter(|_| !is_cpu);
        Self {
            is_cpu,
            variants: Variant::default_for(is_cpu, info.vendor),
            tuning: Tuning::shipped(&info.name),
            backend: summary.backend.clone(),
            driver: summary.driver.clone(),
            // wgpu reports bindings up to 2⁶⁴ on some devices; kernels index with u32.
            max_binding_bytes: limits.max_storage_buffer_binding_size.min(limits.max_buffer_size).min(2 << 30),
            binding_alignment_bytes: u64::from(limits.min_storage_buffer_offset_alignment).max(256),
            max_workgroups: limits.max_compute_workgroups_per_dimension.min(65_535),
            workgroup_bytes: limits.max_compute_workgroup_storage_size,
            subgroup: features
                .contains(wgpu::Features::SUBGROUP)
                .then_some((info.subgroup_min_size, info.subgroup_max_size)),
            f16: features.contains(wgpu::Features::SHADER_F16),
            cooperative: cooperative(adapter),
            matmul_precision: MatmulPrecision::Highest,
            timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
            memory_bytes: memory.map(|memory| memory.total),
            free_memory_bytes: memory.and_then(|memory| memory.free),
            memory_block_bytes: if is_host_visible { HOST_VISIBLE_BLOCK_BYTES } else { BLOCK_BYTES },
            name: info.name,
        }
    }

    /// Returns these capabilities with another precision of matrix products.
    ///
    /// # Errors
    /// [`Error::Flag`] for a precision below the highest where there are no cooperative matrices.
    pub fn with_precision(self, precision: MatmulPrecision) -> Result<Self> {
        if precision != MatmulPrecision::Highest && self.cooperative.is_none() {
            let reason = format!("{}: {} has no cooperative matrices; choose highest", precision.name(), self.name);
            return Err(Error::flag("matmul-precision", reason));
        }
        Ok(Self { matmul_precision: precision, ..self })
    }

    /// Returns whether matmul variants copy a weight into f32 first.
    pub fn unpacks_weights(&self) -> bool {
        self.variants.iter().any(|v| matches!(v, Variant::Cpu | Variant::Lanes))
    }

    /// Returns whether a workgroup of 8 is one subgroup, as [`Variant::Lanes`] needs.
    pub fn has_lanes(&self) -> bool {
        self.subgroup.is_some_and(|(least, _)| least >= 8)
    }
}

/// Returns the largest supported fragment, if the device meets the requirements of matmul_coop.wgsl: f16, workgroup memory, and subgroups.
/// A workgroup is four or eight subgroups, whose size wgpu cannot request. Where the size varies, the driver's choice is measured
/// ([`Gpu::with_measured_subgroups`]).
fn cooperative(adapter: &wgpu::Adapter) -> Option<CooperativeMatrix> {
    let needed = wgpu::Features::SUBGROUP | wgpu::Features::SHADER_F16 | COOPERATIVE;
    let too_little = adapter.limits().max_compute_workgroup_storage_size < COOPERATIVE_WORKGROUP_BYTES;
    if !adapter.features().contains(needed) || too_little {
        return None;
    }
    let subgroup = adapter.get_info().subgroup_min_size;
    let all = adapter.cooperative_matrix_properties();
    let fits = |edge: &u32| {
        all.iter().any(|p| {
            (p.m_size, p.n_size, p.k_size) == (*edge, *edge, *edge)
                && p.ab_type == wgpu::CooperativeScalarType::F16
                && p.cr_type == wgpu::CooperativeScalarType::F32
        })
    };
    [16, 8].into_iter().find(fits).map(|edge| CooperativeMatrix { edge, subgroup })
}

const COOPERATIVE: wgpu::Features = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
/// Workgroup memory of matmul_coop.wgsl: tiles of 128 of the split form, and a 16×16 fragment for each of eight subgroups.
const COOPERATIVE_WORKGROUP_BYTES: u32 = 32 << 10;

/// Device, or a plan that only counts bytes. One program runs on both.
///
/// # Examples
/// ```
/// let gpu = jointwise::Gpu::open_best()?;
/// println!("{} ({})", gpu.caps().name, gpu.caps().driver);
/// # Ok::<(), jointwise::Error>(())
/// ```
pub struct Gpu {
    pub(super) live: Option<OpenDevice>,
    pub(super) caps: Caps,
    pub(super) pool: Arc<MemoryPool>,
    pub(super) pipelines: super::pipelines::PipelineCache,
    pub(super) bind_groups: Mutex<super::submit::BindGroups>,
    pub(super) uniforms: Mutex<Option<wgpu::Buffer>>,
    pub(super) budget: Mutex<super::submission_budget::SubmissionBudget>,
    pub(super) profile: Mutex<Option<super::KernelProfile>>,
    notes: Vec<String>,
    facts: Option<DeviceFacts>,
}

/// Opens the first candidate that can be opened. Returns it with the reasons why earlier candidates could not be opened.
///
/// # Errors
/// [`Error::Device`] with all reasons where no candidate opens; any other error of a candidate is returned at once.
async fn first_opened<C, T>(
    candidates: impl IntoIterator<Item = C>,
    open: impl AsyncFn(C) -> Result<T>,
) -> Result<(T, Vec<String>)> {
    let mut failed: Vec<String> = Vec::new();
    for candidate in candidates {
        match open(candidate).await {
            Ok(opened) => {
                let notes = failed
                    .into_iter()
                    .map(|reason| format!("{reason}: the next device is taken (--device chooses one)"));
                return Ok((opened, notes.collect()));
            }
            Err(Error::Device(reason)) => failed.push(reason),
            Err(other) => return Err(other),
        }
    }
    Err(Error::Device(failed.join("; ")))
}

/// Lists the other devices that `--device` accepts, for the case that the chosen ones cannot be opened.
fn other_devices(all: &[DeviceSummary], chosen: &[usize]) -> String {
    let others = all.iter().filter(|d| !chosen.contains(&d.index)).map(|d| format!("{}: {}", d.index, d.title()));
    let others: Vec<String> = others.collect();
    match others.is_empty() {
        true => "there is no other device: its driver may need an update, or a moment after a crash".into(),
        false => format!("--device takes another: {}", others.join(", ")),
    }
}

impl Gpu {
    /// Opens a device with the precision that JOINTWISE_MATMUL_PRECISION names, else with the highest.
    ///
    /// # Errors
    /// Fails like [`Self::open_for`]; also [`Error::Flag`] where the variable is not a precision's name.
    pub async fn open(choice: &DeviceChoice) -> Result<Self> {
        let precision = std::env::var("JOINTWISE_MATMUL_PRECISION")
            .map_or(Ok(MatmulPrecision::Highest), |name| MatmulPrecision::parse(&name))?;
        Self::open_for(choice, precision).await
    }

    /// Opens the first of the chosen devices that can be opened.
    ///
    /// # Errors
    /// [`Error::Device`] where there is no device (it says what to install), or where none can be opened (it gives the reasons and lists
    /// other devices). [`Error::Flag`] where no device matches the choice (it lists the devices), where JOINTWISE_VARIANT is not a
    /// variant's name, or where the precision needs cooperative matrices and the device has none.
    pub async fn open_for(choice: &DeviceChoice, precision: MatmulPrecision) -> Result<Self> {
        let FoundAdapters { all, summaries, mut notes } = FoundAdapters::find().await;
        let chosen = choice.candidates(&summaries)?;
        let candidates = chosen.iter().map(|&i| (&all[i], &summaries[i]));
        let open = async |(adapter, summary)| Self::open_adapter(adapter, summary, precision).await;
        let (mut gpu, failed) = first_opened(candidates, open).await.map_err(|error| match error {
            Error::Device(reason) => Error::Device(format!("{reason}; {}", other_devices(&summaries, &chosen))),
            other => other,
        })?;
        notes.extend(failed);
        gpu.notes = notes;
        Ok(gpu)
    }

    async fn open_adapter(
        adapter: &wgpu::Adapter,
        summary: &DeviceSummary,
        precision: MatmulPrecision,
    ) -> Result<Self> {
        let mut caps = Caps::new(adapter, summary).with_precision(precision)?;
        if let Ok(names) = std::env::var("JOINTWISE_VARIANT") {
            caps.variants = Variant::parse_list(&names)?;
        }
        let mut wanted = wgpu::Features::TIMESTAMP_QUERY
            | wgpu::Features::SHADER_F16
            | wgpu::Features::SUBGROUP
            | wgpu::Features::PIPELINE_CACHE;
        let mut experimental_features = wgpu::ExperimentalFeatures::disabled();
        if precision != MatmulPrecision::Highest {
            wanted |= COOPERATIVE;
            // SAFETY: wgpu's implementation is experimental; matmul_coop.wgsl follows its rules, and is checked before it is used.
            experimental_features = unsafe { wgpu::ExperimentalFeatures::enabled() };
        }
        let required_features = adapter.features() & wanted;
        let facts = DeviceFacts::new(adapter, wanted | COOPERATIVE, required_features);
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("jointwise"),
            required_features,
            required_limits: adapter.limits(),
            experimental_features,
            // The first block has the same size as the last, so that sizes do not grow.
            memory_hints: wgpu::MemoryHints::Manual { suballocated_device_memory_block_size: BLOCK_BYTES..BLOCK_BYTES },
            ..Default::default()
        };
        let closed = |reason: String| Error::Device(format!("{} cannot be opened: {reason}", summary.title()));
        let asked = catch_panic(|| adapter.request_device(&descriptor))
            .map_err(|panic| closed(format!("it makes no pipeline ({panic})")))?;
        let (device, queue) = asked.await.map_err(|e| closed(e.to_string()))?;
        let has_cache = adapter.features().contains(wgpu::Features::PIPELINE_CACHE);
        let cache_name = wgpu::util::pipeline_cache_key(&adapter.get_info()).filter(|_| has_cache);
        let live = OpenDevice::new(device, queue, cache_name, summary.title()).map_err(closed)?;
        let gpu = Self { facts: Some(facts), ..Self::new(Some(live), caps) };
        if precision == MatmulPrecision::Highest { Ok(gpu) } else { gpu.with_measured_subgroups().await }
    }

    /// Creates a plan without a device: allocations are counted, recordings are discarded. Its [`super::Ledger`] is the memory plan.
    pub fn plan(caps: Caps) -> Self {
        Self::new(None, caps)
    }

    fn new(live: Option<OpenDevice>, caps: Caps) -> Self {
        Self {
            live,
            pool: Arc::new(MemoryPool::new(caps.memory_block_bytes)),
            caps,
            pipelines: super::pipelines::PipelineCache::default(),
            bind_groups: Mutex::default(),
            uniforms: Mutex::default(),
            budget: Mutex::default(),
            profile: Mutex::default(),
            notes: Vec::new(),
            facts: None,
        }
    }

    /// Returns this device with `variants` as the only implementations besides the baseline.
    #[must_use]
    pub fn with_variants(self, variants: Vec<Variant>) -> Self {
        Self { caps: Caps { variants, ..self.caps }, ..self }
    }

    /// Returns this device as if it had no timestamps, as many browsers' devices.
    #[must_use]
    pub fn without_timestamps(self) -> Self {
        Self { caps: Caps { timestamps: false, ..self.caps }, ..self }
    }

    /// Returns this device with the entries of `tuning` added to its table of fastest variants.
    #[must_use]
    pub fn with_tuning(mut self, tuning: Tuning) -> Self {
        self.caps.tuning.merge(tuning);
        self
    }

    /// Returns this device with bindings of at most `bytes`.
    #[must_use]
    pub fn with_max_binding(mut self, bytes: u64) -> Self {
        self.caps.max_binding_bytes = bytes.min(self.caps.max_binding_bytes);
        self
    }

    /// Returns this device with an assumed speed, in floating-point operations per second, of kernels that were not measured. The speed
    /// determines the sizes of submissions and of parts of dispatches.
    #[must_use]
    pub fn with_expected_speed(self, flops_per_second: f64) -> Self {
        self.budget.lock().unwrap_or_else(|e| e.into_inner()).begin_with(flops_per_second);
        self
    }

    /// Returns messages for the user about how the device was opened.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Returns what bug reports need beside the capabilities; `None` for a plan.
    pub fn facts(&self) -> Option<&DeviceFacts> {
        self.facts.as_ref()
    }

    /// Returns the device's capabilities.
    pub fn caps(&self) -> &Caps {
        &self.caps
    }

    /// Returns whether this is a plan, without a device.
    pub fn is_plan(&self) -> bool {
        self.live.is_none()
    }

    /// Returns the bytes on the device, by role.
    pub fn ledger(&self) -> super::Ledger {
        self.pool.ledger()
    }

    /// Sets or removes the callback for waits of a minute without progress.
    pub fn on_wait(&self, tell: Option<OnWait>) {
        if let Some(live) = &self.live {
            live.set_on_wait(tell);
        }
    }

    /// Returns an error for the first failure that the device reported outside a call.
    ///
    /// # Errors
    /// [`Error::DeviceLost`]; [`Error::OutOfMemory`] with the refused allocation; [`Error::Gpu`] with the driver's message.
    pub fn check(&self) -> Result<()> {
        let Some(live) = &self.live else { return Ok(()) };
        live.failure.get().map_or(Ok(()), |failure| Err(failure.error(&live.title)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The second of three devices opens, and the third is not tried.
    #[test]
    fn the_next_device_is_taken_where_one_cannot_be_opened() {
        let open = async |i: usize| match i {
            0 => Err(Error::Device("RTX (dx12) cannot be opened: driver too old".into())),
            1 => Ok("UHD"),
            _ => panic!("asked"),
        };
        let (opened, notes) = pollster::block_on(first_opened(0..3, open)).unwrap();
        assert_eq!(opened, "UHD");
        assert_eq!(
            notes,
            ["RTX (dx12) cannot be opened: driver too old: the next device is taken (--device chooses one)"]
        );
        // A first candidate that opens needs no note. An error that is not the device's is returned at once. All reasons are given where
        // none opens.
        assert_eq!(pollster::block_on(first_opened(1..3, open)).unwrap(), ("UHD", Vec::new()));
        let flag = async |_| Err::<(), _>(Error::flag("matmul-precision", "no"));
        assert!(matches!(pollster::block_on(first_opened(0..3, flag)), Err(Error::Flag { .. })));
        let none = async |i: usize| Err::<(), _>(Error::Device(format!("device {i}")));
        assert_eq!(pollster::block_on(first_opened(0..2, none)).unwrap_err().to_string(), "device 0; device 1");
    }
}
