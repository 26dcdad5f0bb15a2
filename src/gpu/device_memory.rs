//! Memory of a device as its driver reports it: the total, and the part that is free.

/// Memory of a device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DeviceMemory {
    pub total: u64,
    /// Free memory now; `None` where the driver does not report it.
    pub free: Option<u64>,
    /// Whether buffers get memory that the host can access too, which Vulkan reports for integrated devices and CPUs.
    pub is_host_visible: bool,
}

impl DeviceMemory {
    /// Computes the free memory from the total, the driver's budget for this program, and the memory that the program uses. Some drivers
    /// report a budget above the total.
    #[cfg_attr(
        all(any(target_os = "macos", target_arch = "wasm32"), not(test)),
        expect(dead_code, reason = "Metal gives no budget")
    )]
    fn from_budget(total: u64, budget: u64, used: u64) -> Self {
        let free = (budget > 0).then(|| budget.min(total).saturating_sub(used));
        Self { total, free, is_host_visible: false }
    }

    /// Returns the adapter's memory as its backend reports it, or `None` on WebGPU. Vulkan: the largest device-local heap, and its budget.
    /// DX12: dedicated memory, plus shared system memory on integrated devices. Metal: the recommended working-set size.
    pub fn of_adapter(adapter: &wgpu::Adapter) -> Option<Self> {
        match adapter.get_info().backend {
            #[cfg(any(target_os = "linux", target_os = "windows", target_os = "android"))]
            wgpu::Backend::Vulkan => vulkan(adapter),
            #[cfg(windows)]
            wgpu::Backend::Dx12 => {
                // SAFETY: the raw handle lives as long as this reference, and is only queried.
                let hal = unsafe { adapter.as_hal::<wgpu::hal::api::Dx12>() }?;
                let raw = hal.as_raw();
                let about = unsafe { raw.GetDesc1() }.ok()?;
                let is_integrated = adapter.get_info().device_type == wgpu::DeviceType::IntegratedGpu;
                let shared = if is_integrated { about.SharedSystemMemory } else { 0 };
                let total = (about.DedicatedVideoMemory + shared) as u64;
                // Queries the first node's local segment; both parameters are 0.
                let mut now = Default::default();
                let asked = unsafe { raw.QueryVideoMemoryInfo(0, Default::default(), &mut now) };
                let [budget, used] = if asked.is_ok() { [now.Budget, now.CurrentUsage] } else { [0; 2] };
                Some(Self::from_budget(total, budget, used))
            }
            #[cfg(target_os = "macos")]
            wgpu::Backend::Metal => {
                use objc2_metal::MTLDevice as _;
                // SAFETY: the raw handle lives as long as this reference, and is only queried for properties.
                let metal = unsafe { adapter.as_hal::<wgpu::hal::api::Metal>() }?;
                let total = metal.raw_device().recommendedMaxWorkingSetSize();
                let free = Some(total.saturating_sub(metal.raw_device().currentAllocatedSize() as u64));
                Some(Self { total, free, is_host_visible: false })
            }
            _ => None,
        }
    }
}

#[cfg(any(target_os = "linux", target_os = "windows", target_os = "android"))]
fn vulkan(adapter: &wgpu::Adapter) -> Option<DeviceMemory> {
    use ash::vk;
    // SAFETY: the raw handles live as long as this reference, and are only queried for properties.
    let hal = unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }?;
    let (instance, device) = (hal.shared_instance().raw_instance(), hal.raw_physical_device());
    let has_budget = hal.shared_instance().instance_api_version() >= vk::API_VERSION_1_1
        && hal.physical_device_capabilities().supports_extension(ash::ext::memory_budget::NAME);
    let mut budgets = vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
    let memory = if has_budget {
        let mut all = vk::PhysicalDeviceMemoryProperties2::default().push_next(&mut budgets);
        // SAFETY: as above; the extension that defines the chained struct is supported.
        unsafe { instance.get_physical_device_memory_properties2(device, &mut all) };
        all.memory_properties
    } else {
        // SAFETY: as above.
        unsafe { instance.get_physical_device_memory_properties(device) }
    };
    let heaps = memory.memory_heaps_as_slice().iter().enumerate();
    let local = heaps.filter(|(_, heap)| heap.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL));
    let (at, heap) = local.max_by_key(|(_, heap)| heap.size)?;
    // gpu-allocator takes the first memory type that is local to the device.
    let mut types = memory.memory_types_as_slice().iter().map(|kind| kind.property_flags);
    let taken = types.find(|flags| flags.contains(vk::MemoryPropertyFlags::DEVICE_LOCAL));
    let is_host_visible = taken.is_some_and(|flags| flags.contains(vk::MemoryPropertyFlags::HOST_VISIBLE));
    let found = DeviceMemory::from_budget(heap.size, budgets.heap_budget[at], budgets.heap_usage[at]);
    Some(DeviceMemory { is_host_visible, ..found })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_bounded_by_the_heap_and_less_what_is_used() {
        let free = |total, budget, used| DeviceMemory::from_budget(total, budget, used).free;
        assert_eq!(free(8, 6, 1), Some(5));
        assert_eq!(free(8, 12, 1), Some(7), "a driver that gives more than there is");
        assert_eq!(free(8, 3, 4), Some(0));
        assert_eq!(free(8, 0, 0), None, "a driver without budgets");
    }
}
