//! Facts about an opened adapter for bug reports: its kind, its limits beside WebGPU's guaranteed ones, its features.

/// Limit of an adapter, with the value that WebGPU guarantees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceLimit {
    /// wgpu's name.
    pub name: &'static str,
    /// Value that the adapter reports.
    pub value: u64,
    /// Value that WebGPU guarantees: at least this much, or for an alignment at most.
    pub guaranteed: u64,
}

/// Feature of an adapter that kernels or measurements use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFeature {
    /// wgpu's name.
    pub name: String,
    /// Whether the adapter has the feature.
    pub is_there: bool,
    /// Whether the device was opened with it.
    pub is_enabled: bool,
}

/// Facts about an adapter that kernels do not need, and bug reports do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceFacts {
    /// `DiscreteGpu`, `IntegratedGpu`, `VirtualGpu`, `Cpu`, `Other`.
    pub kind: String,
    /// PCI vendor and device in hexadecimal, such as `1002:744c`; zeros where the backend does not report them.
    pub pci_id: String,
    /// Limits of buffers, bindings and workgroups.
    pub limits: Vec<DeviceLimit>,
    /// Features that kernels or measurements use.
    pub features: Vec<DeviceFeature>,
    /// Names of the adapter's other features.
    pub other_features: Vec<String>,
    /// Shapes and types of cooperative matrices, such as `16x16x16 F16 to F32`.
    pub cooperative: Vec<String>,
}

impl DeviceFacts {
    pub(super) fn new(adapter: &wgpu::Adapter, used: wgpu::Features, enabled: wgpu::Features) -> Self {
        let (info, there) = (adapter.get_info(), adapter.features());
        let features = used.iter_names().map(|(name, feature)| DeviceFeature {
            name: name.into(),
            is_there: there.contains(feature),
            is_enabled: enabled.contains(feature),
        });
        let cooperative = adapter.cooperative_matrix_properties();
        let cooperative = cooperative
            .iter()
            .map(|p| format!("{}x{}x{} {:?} to {:?}", p.m_size, p.n_size, p.k_size, p.ab_type, p.cr_type));
        Self {
            kind: format!("{:?}", info.device_type),
            pci_id: format!("{:04x}:{:04x}", info.vendor, info.device),
            limits: limits(&adapter.limits(), &wgpu::Limits::default()),
            features: features.collect(),
            other_features: (there - used).iter_names().map(|(name, _)| name.into()).collect(),
            cooperative: cooperative.collect(),
        }
    }
}

fn limits(of_adapter: &wgpu::Limits, guaranteed: &wgpu::Limits) -> Vec<DeviceLimit> {
    macro_rules! listed {
        ($($name:ident),* $(,)?) => {
            vec![$(DeviceLimit {
                name: stringify!($name),
                value: of_adapter.$name.into(),
                guaranteed: guaranteed.$name.into(),
            }),*]
        };
    }
    listed![
        max_buffer_size,
        max_storage_buffer_binding_size,
        max_uniform_buffer_binding_size,
        min_storage_buffer_offset_alignment,
        min_uniform_buffer_offset_alignment,
        max_storage_buffers_per_shader_stage,
        max_uniform_buffers_per_shader_stage,
        max_bind_groups,
        max_bindings_per_bind_group,
        max_compute_workgroup_storage_size,
        max_compute_invocations_per_workgroup,
        max_compute_workgroup_size_x,
        max_compute_workgroup_size_y,
        max_compute_workgroup_size_z,
        max_compute_workgroups_per_dimension,
    ]
}

#[cfg(test)]
mod tests {
    use crate::gpu::{DeviceChoice, Gpu};

    #[test]
    fn a_device_has_facts_and_a_plan_has_none() {
        let gpu = pollster::block_on(Gpu::open(&DeviceChoice::Best)).unwrap();
        let facts = gpu.facts().unwrap();
        let binding = facts.limits.iter().find(|l| l.name == "max_storage_buffer_binding_size").unwrap();
        assert_eq!(binding.guaranteed, 128 << 20);
        assert!(binding.value >= gpu.caps().max_binding_bytes);
        let f16 = facts.features.iter().find(|f| f.name == "SHADER_F16").unwrap();
        assert_eq!(f16.is_there, gpu.caps().f16);
        assert!(facts.features.iter().all(|f| f.is_there || !f.is_enabled), "{facts:?}");
        assert!(!facts.other_features.contains(&"SHADER_F16".into()), "{facts:?}");
        assert_eq!(facts.kind == "Cpu", gpu.caps().is_cpu);
        assert!(Gpu::plan(gpu.caps().clone()).facts().is_none());
    }
}
