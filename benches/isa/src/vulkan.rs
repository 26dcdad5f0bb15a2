//! A Vulkan device that makes pipelines and tells how it compiled them. It is never given work.

use std::ffi::{CStr, CString, c_char};

use ash::{khr, vk};

use crate::spirv::SpirvModule;

/// Device of a driver on a drm-shim.
pub struct ShimDevice {
    // Must outlive the handles that were made with it.
    _entry: ash::Entry,
    device: ash::Device,
    executables: khr::pipeline_executable_properties::Device,
    /// Edges of square cooperative matrices with f16 operands and f32 sums.
    pub cooperative_edges: Vec<u32>,
    /// Name of the GPU that the shim pretends to be.
    pub name: String,
    /// Driver's version, such as `Mesa 26.1.6-1~bpo13+1`.
    pub driver: String,
}

/// Pipeline as the driver compiled it.
pub struct CompiledPipeline {
    /// Numbers by the driver's own names.
    pub statistics: Vec<(String, f64)>,
    /// Texts by the driver's own names: the listing and intermediate forms.
    pub texts: Vec<(String, String)>,
}

fn string(chars: &[c_char]) -> String {
    // SAFETY: Vulkan's fixed arrays of characters end with a zero.
    unsafe { CStr::from_ptr(chars.as_ptr()) }.to_string_lossy().into_owned()
}

fn words(error: vk::Result) -> String {
    error.to_string()
}

impl ShimDevice {
    /// Opens the only device that the loader finds.
    pub fn open() -> Result<Self, String> {
        // SAFETY: structures are filled as Vulkan asks, and every handle is used while its parent lives.
        unsafe {
            let entry = ash::Entry::load().map_err(|e| e.to_string())?;
            let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_3);
            let create = vk::InstanceCreateInfo::default().application_info(&application);
            let instance = entry.create_instance(&create, None).map_err(words)?;
            let physical = *instance.enumerate_physical_devices().map_err(words)?.first().ok_or("no device answers")?;
            let mut about_driver = vk::PhysicalDeviceDriverProperties::default();
            let mut about = vk::PhysicalDeviceProperties2::default().push_next(&mut about_driver);
            instance.get_physical_device_properties2(physical, &mut about);
            let name = string(&about.properties.device_name);
            let driver = string(&about_driver.driver_info);

            let there = instance.enumerate_device_extension_properties(physical).map_err(words)?;
            let has = |name: &CStr| there.iter().any(|e| e.extension_name_as_c_str() == Ok(name));
            let (has_matrices, has_robustness) = (has(khr::cooperative_matrix::NAME), has(ash::ext::robustness2::NAME));
            let mut extensions = vec![khr::pipeline_executable_properties::NAME.as_ptr()];
            if !has(khr::pipeline_executable_properties::NAME) {
                return Err(format!("{name} does not tell how it compiles"));
            }
            if has_matrices {
                extensions.push(khr::cooperative_matrix::NAME.as_ptr());
            }
            // wgpu-hal enables robustBufferAccess and robustBufferAccess2 wherever they are: code of buffer accesses depends on them.
            if has_robustness {
                extensions.push(ash::ext::robustness2::NAME.as_ptr());
            }
            let mut vulkan_1_1 = vk::PhysicalDeviceVulkan11Features::default();
            let mut vulkan_1_2 = vk::PhysicalDeviceVulkan12Features::default();
            let mut vulkan_1_3 = vk::PhysicalDeviceVulkan13Features::default();
            let mut executables = vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default();
            let mut matrices = vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default();
            let mut robustness = vk::PhysicalDeviceRobustness2FeaturesEXT::default();
            let mut features = vk::PhysicalDeviceFeatures2::default()
                .push_next(&mut vulkan_1_1)
                .push_next(&mut vulkan_1_2)
                .push_next(&mut vulkan_1_3)
                .push_next(&mut executables);
            if has_matrices {
                features = features.push_next(&mut matrices);
            }
            if has_robustness {
                features = features.push_next(&mut robustness);
            }
            instance.get_physical_device_features2(physical, &mut features);
            features.features = vk::PhysicalDeviceFeatures::default()
                .robust_buffer_access(true)
                .shader_int16(features.features.shader_int16 != 0)
                .shader_int64(features.features.shader_int64 != 0);
            let queue = [vk::DeviceQueueCreateInfo::default().queue_family_index(0).queue_priorities(&[1.0])];
            let create = vk::DeviceCreateInfo::default()
                .queue_create_infos(&queue)
                .enabled_extension_names(&extensions)
                .push_next(&mut features);
            let device = instance.create_device(physical, &create, None).map_err(words)?;
            let cooperative_edges = if has_matrices {
                let loader = khr::cooperative_matrix::Instance::new(&entry, &instance);
                let all = loader.get_physical_device_cooperative_matrix_properties(physical).map_err(words)?;
                let is_taken = |p: &&vk::CooperativeMatrixPropertiesKHR| {
                    p.m_size == p.n_size
                        && p.m_size == p.k_size
                        && p.a_type == vk::ComponentTypeKHR::FLOAT16
                        && p.c_type == vk::ComponentTypeKHR::FLOAT32
                };
                all.iter().filter(is_taken).map(|p| p.m_size).collect()
            } else {
                Vec::new()
            };
            let executables = khr::pipeline_executable_properties::Device::new(&instance, &device);
            Ok(Self { _entry: entry, device, executables, cooperative_edges, name, driver })
        }
    }

    /// Makes a pipeline as wgpu-hal does, and reads what the driver tells.
    pub fn compile(&self, module: &SpirvModule) -> Result<CompiledPipeline, String> {
        let bindings: Vec<_> = module
            .bindings
            .iter()
            .zip(0..)
            .map(|(&is_uniform, binding)| {
                let kind =
                    if is_uniform { vk::DescriptorType::UNIFORM_BUFFER } else { vk::DescriptorType::STORAGE_BUFFER };
                vk::DescriptorSetLayoutBinding::default()
                    .binding(binding)
                    .descriptor_type(kind)
                    .descriptor_count(1)
                    .stage_flags(vk::ShaderStageFlags::COMPUTE)
            })
            .collect();
        let entry = CString::new(module.entry.as_str()).map_err(|e| e.to_string())?;
        // SAFETY: as in `open`. A pipeline that fails leaves its parts until the process ends, which makes a few hundred at most.
        unsafe {
            let code = vk::ShaderModuleCreateInfo::default().code(&module.words);
            let shader = self.device.create_shader_module(&code, None).map_err(words)?;
            let set = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
            let sets = [self.device.create_descriptor_set_layout(&set, None).map_err(words)?];
            let layout = vk::PipelineLayoutCreateInfo::default().set_layouts(&sets);
            let layout = self.device.create_pipeline_layout(&layout, None).map_err(words)?;
            let stage = vk::PipelineShaderStageCreateInfo::default()
                .flags(vk::PipelineShaderStageCreateFlags::ALLOW_VARYING_SUBGROUP_SIZE)
                .stage(vk::ShaderStageFlags::COMPUTE)
                .module(shader)
                .name(&entry);
            let captured = vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR
                | vk::PipelineCreateFlags::CAPTURE_INTERNAL_REPRESENTATIONS_KHR;
            let create = vk::ComputePipelineCreateInfo::default().flags(captured).stage(stage).layout(layout);
            let made = self.device.create_compute_pipelines(vk::PipelineCache::null(), &[create], None);
            let pipeline = made.map_err(|(_, error)| words(error))?[0];
            let compiled = self.read(pipeline);
            self.device.destroy_pipeline(pipeline, None);
            self.device.destroy_pipeline_layout(layout, None);
            self.device.destroy_descriptor_set_layout(sets[0], None);
            self.device.destroy_shader_module(shader, None);
            compiled
        }
    }

    fn read(&self, pipeline: vk::Pipeline) -> Result<CompiledPipeline, String> {
        let of_pipeline = vk::PipelineInfoKHR::default().pipeline(pipeline);
        // SAFETY: the pipeline lives, and was made with both flags that capture.
        unsafe {
            let all = self.executables.get_pipeline_executable_properties(&of_pipeline).map_err(words)?;
            // Intel's driver compiles one executable per SIMD width that fits, and runs the last, which is the widest.
            let last = (all.len() as u32).checked_sub(1).ok_or("the driver tells of no executable")?;
            let info = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline).executable_index(last);
            let statistics = self.executables.get_pipeline_executable_statistics(&info).map_err(words)?;
            let number = |s: &vk::PipelineExecutableStatisticKHR<'_>| match s.format {
                vk::PipelineExecutableStatisticFormatKHR::BOOL32 => f64::from(s.value.b32),
                vk::PipelineExecutableStatisticFormatKHR::INT64 => s.value.i64 as f64,
                vk::PipelineExecutableStatisticFormatKHR::UINT64 => s.value.u64 as f64,
                _ => s.value.f64,
            };
            let statistics = statistics.iter().map(|s| (string(&s.name), number(s))).collect();
            // Asked three times: for the number of texts, for their sizes, for the texts. ash has no wrapper for the last.
            let ask = self.executables.fp().get_pipeline_executable_internal_representations_khr;
            let device = self.device.handle();
            let mut n = 0;
            ask(device, &info, &mut n, std::ptr::null_mut()).result().map_err(words)?;
            let mut forms = vec![vk::PipelineExecutableInternalRepresentationKHR::default(); n as usize];
            ask(device, &info, &mut n, forms.as_mut_ptr()).result().map_err(words)?;
            let mut bytes: Vec<Vec<u8>> = forms.iter().map(|form| vec![0; form.data_size]).collect();
            for (form, bytes) in forms.iter_mut().zip(&mut bytes) {
                form.p_data = bytes.as_mut_ptr().cast();
            }
            ask(device, &info, &mut n, forms.as_mut_ptr()).result().map_err(words)?;
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_string();
            let texts = forms.iter().zip(&bytes).map(|(form, bytes)| (string(&form.name), text(bytes))).collect();
            Ok(CompiledPipeline { statistics, texts })
        }
    }
}
