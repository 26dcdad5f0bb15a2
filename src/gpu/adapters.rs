//! Adapters of the machine: their order, their names, and what their drivers report.

use std::path::PathBuf;

use crate::error::{Error, Result};

/// Value of `--device`: best device, an index into [`list_devices`], or a part of one of its lines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// First device that opens: discrete GPUs come first, then integrated ones, then CPUs.
    #[default]
    Best,
    /// Position in [`list_devices`].
    Index(usize),
    /// Device of a rank among those of its machine: the ranks share out the devices of the best one's kind and backend in turn.
    LocalRank(usize),
    /// Positions in [`list_devices`] by the rank on its machine: one for each rank there.
    EachRank(Vec<usize>),
    /// Part of `name (backend)`, in any case: `4070`, `vulkan`, `4070 (dx12)`.
    Name(String),
}

impl DeviceChoice {
    /// Parses a number as an index, several numbers with commas as those of ranks, and anything else as a name.
    pub fn parse(text: &str) -> Self {
        let numbers: Option<Vec<usize>> = text.split(',').map(|part| part.trim().parse().ok()).collect();
        match numbers.as_deref() {
            Some([index]) => Self::Index(*index),
            Some(several) => Self::EachRank(several.into()),
            None => Self::Name(text.into()),
        }
    }

    /// Returns the device of a rank among those of its machine, where ranks share out the devices.
    ///
    /// # Errors
    /// [`Error::Flag`] where a list names fewer devices.
    pub fn of_rank(&self, local_rank: usize) -> Result<Self> {
        match self {
            Self::Best => Ok(Self::LocalRank(local_rank)),
            Self::EachRank(list) => list.get(local_rank).map(|&index| Self::Index(index)).ok_or_else(|| {
                let (n, ranks) = (list.len(), local_rank + 1);
                Error::flag("device", format!("lists {n} devices, and this machine has {ranks} ranks or more"))
            }),
            other => Ok(other.clone()),
        }
    }

    /// Returns the positions of the devices to try to open, in order. Only [`Self::Best`] gives more than one.
    ///
    /// # Errors
    /// [`Error::Device`] where there is no device; it says what to install. [`Error::Flag`] where none matches; it lists the devices.
    pub(super) fn candidates(&self, all: &[DeviceSummary]) -> Result<Vec<usize>> {
        if all.is_empty() {
            return Err(Error::Device(no_device(std::env::consts::OS)));
        }
        let (found, asked) = match self {
            Self::Best => return Ok((0..all.len()).collect()),
            Self::LocalRank(rank) => {
                let is_shared = |d: &&DeviceSummary| d.kind == all[0].kind && d.backend == all[0].backend;
                let shared: Vec<usize> = all.iter().filter(is_shared).map(|d| d.index).collect();
                return Ok(vec![shared[rank % shared.len()]]);
            }
            Self::EachRank(list) => {
                let reason = format!("lists {} devices for the ranks of `mpirun`, and this is one process", list.len());
                return Err(Error::flag("device", reason));
            }
            Self::Index(index) => ((*index < all.len()).then_some(*index), index.to_string()),
            Self::Name(part) => {
                let part = part.to_lowercase();
                (all.iter().position(|d| d.title().to_lowercase().contains(&part)), part)
            }
        };
        let lines = || all.iter().map(|d| format!("{}: {}", d.index, d.title())).collect::<Vec<_>>().join(", ");
        let reason = || Error::flag("device", format!("{asked}: no such device; choose from {}", lines()));
        Ok(vec![found.ok_or_else(reason)?])
    }
}

/// Device, as [`list_devices`] lists it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct DeviceSummary {
    /// Number that `--device` takes.
    pub index: usize,
    /// Adapter's name.
    pub name: String,
    /// Backend: `vulkan`, `metal`, `dx12` or `webgpu`.
    pub backend: String,
    /// Kind of adapter: `DiscreteGpu`, `IntegratedGpu`, `VirtualGpu`, `Cpu` or `Other`.
    pub kind: String,
    /// Driver's name and version; on DX12 with the shader compiler.
    pub driver: String,
}

impl DeviceSummary {
    /// Returns the device's name and backend, because one GPU may be listed under several backends.
    pub fn title(&self) -> String {
        format!("{} ({})", self.name, self.backend)
    }
}

/// Compiler of HLSL for DX12. wgpu by default loads the first `dxcompiler.dll` on the search path, whoever put it there. If that file is
/// damaged or too old, no DX12 device can be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
enum HlslCompiler {
    /// `d3dcompiler_47.dll`, which is part of Windows: shader model 5.1, no f16, no subgroups.
    Fxc,
    /// `dxcompiler.dll` at a path.
    Dxc(PathBuf),
    /// DXC linked into the program: feature `static-dxc`, as the released programs have it.
    BuiltInDxc,
}

/// Whether DXC is linked into the program. wgpu links it on x86-64 Windows with Microsoft's linker, nowhere else.
const HAS_BUILT_IN_DXC: bool =
    cfg!(all(feature = "static-dxc", windows, target_env = "msvc", not(target_arch = "aarch64")));

impl HlslCompiler {
    /// Returns the compilers to try: the one that WGPU_DX12_COMPILER names (`fxc`, or `dxc` from the search path), else DXC where it lies
    /// in the program's folder, else the DXC that is built in; FXC last.
    fn candidates(asked: Option<&str>, beside: Option<PathBuf>, has_built_in: bool) -> Vec<Self> {
        let built_in = has_built_in.then_some(Self::BuiltInDxc);
        let (dxc, built_in) = match asked.map(str::to_lowercase).as_deref() {
            Some("fxc") => (None, None),
            Some("dxc" | "dynamicdxc") => (Some(beside.unwrap_or_else(|| DXC.into())), built_in),
            Some("staticdxc") if has_built_in => (None, built_in),
            _ => (beside, built_in),
        };
        dxc.map(Self::Dxc).into_iter().chain(built_in).chain([Self::Fxc]).collect()
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Fxc => "FXC",
            Self::Dxc(_) => "DXC",
            Self::BuiltInDxc => "the built-in DXC",
        }
    }

    fn for_wgpu(&self) -> wgpu::Dx12Compiler {
        match self {
            Self::Fxc => wgpu::Dx12Compiler::Fxc,
            Self::Dxc(path) => wgpu::Dx12Compiler::DynamicDxc { dxc_path: path.to_string_lossy().into_owned() },
            Self::BuiltInDxc => wgpu::Dx12Compiler::StaticDxc,
        }
    }
}

const DXC: &str = "dxcompiler.dll";

fn dxc_beside_program() -> Option<PathBuf> {
    let dll = std::env::current_exe().ok()?.with_file_name(DXC);
    dll.is_file().then_some(dll)
}

/// Adapters of the machine, the best first.
pub(super) struct FoundAdapters {
    pub all: Vec<wgpu::Adapter>,
    /// Summary of each adapter.
    pub summaries: Vec<DeviceSummary>,
    /// Messages for the user.
    pub notes: Vec<String>,
}

impl FoundAdapters {
    /// Lists the adapters of every backend of the system.
    pub async fn find() -> Self {
        let asked = std::env::var("WGPU_DX12_COMPILER").ok();
        let mut compilers = HlslCompiler::candidates(asked.as_deref(), dxc_beside_program(), HAS_BUILT_IN_DXC);
        if !cfg!(windows) {
            // Without DX12 no HLSL compiler is used, so the choice does not matter.
            compilers = vec![HlslCompiler::Fxc];
        }
        let mut notes = Vec::new();
        let mut found = (Vec::new(), HlslCompiler::Fxc);
        for compiler in compilers {
            found = (enumerate(&compiler).await, compiler);
            if found.0.iter().any(|a| a.get_info().backend == wgpu::Backend::Dx12) {
                break;
            }
            if let HlslCompiler::Dxc(path) = &found.1 {
                let next = if HAS_BUILT_IN_DXC { HlslCompiler::BuiltInDxc } else { HlslCompiler::Fxc };
                notes.push(format!(
                    "{} cannot be used: DX12's shaders are compiled by {}",
                    path.display(),
                    next.name()
                ));
            }
        }
        let (mut all, compiler) = found;
        if !all.iter().any(|a| a.get_info().backend == wgpu::Backend::Dx12) {
            notes.clear();
        }
        all.sort_by_key(|a| rank(&a.get_info()));
        let summaries = all.iter().enumerate().map(|(index, a)| summary(index, a.get_info(), &compiler)).collect();
        Self { all, summaries, notes }
    }
}

/// Returns the sort key of an adapter: discrete before integrated before software. Vulkan comes before DX12, since it caches compiled
/// shaders and may have cooperative matrices.
fn rank(info: &wgpu::AdapterInfo) -> (u8, u8) {
    let kind = match info.device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    };
    (kind, u8::from(info.backend == wgpu::Backend::Dx12))
}

fn summary(index: usize, info: wgpu::AdapterInfo, compiler: &HlslCompiler) -> DeviceSummary {
    let mut driver = format!("{} {}", info.driver, info.driver_info).trim().to_string();
    if info.backend == wgpu::Backend::Dx12 {
        driver = format!("{driver}, shaders by {}", compiler.name()).trim_start_matches(", ").into();
    }
    DeviceSummary {
        index,
        backend: info.backend.to_string(),
        kind: format!("{:?}", info.device_type),
        driver,
        name: info.name,
    }
}

async fn enumerate(compiler: &HlslCompiler) -> Vec<wgpu::Adapter> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends =
        wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12 | wgpu::Backends::BROWSER_WEBGPU;
    descriptor.backend_options.dx12.shader_compiler = compiler.for_wgpu();
    let instance = wgpu::Instance::new(descriptor);
    #[cfg(not(target_arch = "wasm32"))]
    {
        instance.enumerate_adapters(wgpu::Backends::all()).await
    }
    #[cfg(target_arch = "wasm32")]
    {
        let options = wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        };
        instance.request_adapter(&options).await.into_iter().collect()
    }
}

/// Returns the machine's devices, the best first.
pub async fn list_devices() -> Vec<DeviceSummary> {
    FoundAdapters::find().await.summaries
}

/// Returns the device that a choice would open first.
///
/// # Errors
/// [`Error::Device`] where there is no device; [`Error::Flag`] where none matches.
pub async fn choose_device(choice: &DeviceChoice) -> Result<DeviceSummary> {
    let mut all = list_devices().await;
    let first = choice.candidates(&all)?[0];
    Ok(all.swap_remove(first))
}

fn no_device(os: &str) -> String {
    let advice = match os {
        "windows" => {
            "install the driver of your GPU from its maker (NVIDIA, AMD or Intel); Windows 10 and later bring DX12 with it"
        }
        "macos" => "Metal comes with macOS 10.13 and later; a virtual machine may have none",
        _ => {
            "install your GPU's Vulkan driver; without a GPU, the software one works: \
             apt install mesa-vulkan-drivers libvulkan1"
        }
    };
    format!("no GPU found: no Vulkan, Metal, DX12 or WebGPU device answers; {advice}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices() -> Vec<DeviceSummary> {
        let of = |(index, (name, backend)): (usize, (&str, &str))| DeviceSummary {
            index,
            name: name.into(),
            backend: backend.into(),
            kind: "DiscreteGpu".into(),
            driver: String::new(),
        };
        let all = [("RTX 4070", "vulkan"), ("RTX 4070", "dx12"), ("UHD 770", "vulkan"), ("Basic Render", "dx12")];
        all.into_iter().enumerate().map(of).collect()
    }

    #[test]
    fn a_device_is_chosen_by_number_name_or_backend() {
        let all = devices();
        let found = |text: &str| DeviceChoice::parse(text).candidates(&all).unwrap();
        assert_eq!(found("2"), [2]);
        assert_eq!(found("uhd"), [2]);
        assert_eq!(found("rtx 4070"), [0]);
        assert_eq!(found("Vulkan"), [0]);
        assert_eq!(found("dx12"), [1]);
        assert_eq!(found("4070 (dx12)"), [1]);
        assert_eq!(DeviceChoice::Best.candidates(&all).unwrap(), [0, 1, 2, 3]);
        // Not the same GPU by another backend, and no slower kind.
        let mut all_kinds = devices();
        all_kinds[3].backend = "vulkan".into();
        all_kinds[3].kind = "Cpu".into();
        let of_rank = |rank| DeviceChoice::LocalRank(rank).candidates(&all_kinds).unwrap();
        assert_eq!([0, 1, 2, 3].map(of_rank), [[0], [2], [0], [2]]);
        assert_eq!(DeviceChoice::parse("1, 0"), DeviceChoice::EachRank(vec![1, 0]));
        let (listed, alone) = (DeviceChoice::parse("2,0"), DeviceChoice::parse("uhd"));
        assert_eq!([0, 1].map(|rank| listed.of_rank(rank).unwrap()), [2, 0].map(DeviceChoice::Index));
        assert!(listed.of_rank(2).unwrap_err().to_string().contains("lists 2 devices"));
        assert!(listed.candidates(&all).unwrap_err().to_string().contains("this is one process"));
        assert_eq!(DeviceChoice::Best.of_rank(3).unwrap(), DeviceChoice::LocalRank(3));
        assert_eq!(alone.of_rank(3).unwrap(), alone);
        // A title has a comma, too.
        assert!(matches!(DeviceChoice::parse("llvmpipe (LLVM 15.0.6, 256 bits)"), DeviceChoice::Name(_)));
        for unknown in ["4", "metal"] {
            let error = DeviceChoice::parse(unknown).candidates(&all).unwrap_err().to_string();
            assert!(error.starts_with(&format!("--device: {unknown}: no such device")), "{error}");
            assert!(error.contains("0: RTX 4070 (vulkan), 1: RTX 4070 (dx12), 2: UHD 770 (vulkan)"), "{error}");
        }
        let none = DeviceChoice::Best.candidates(&[]).unwrap_err();
        assert!(none.to_string().starts_with("no GPU found") && none.exit_status() == 1, "{none}");
    }

    #[test]
    fn each_system_gets_its_own_advice() {
        assert!(no_device("linux").contains("apt install mesa-vulkan-drivers"));
        for os in ["windows", "macos"] {
            assert!(!no_device(os).contains("apt"), "{os}");
        }
    }

    #[test]
    fn dxc_is_taken_from_beside_the_program_or_where_it_is_asked_for() {
        let beside = || Some(PathBuf::from("C:/jointwise/dxcompiler.dll"));
        let dxc = |path: &str| HlslCompiler::Dxc(path.into());
        let of = |asked, beside| HlslCompiler::candidates(asked, beside, false);
        assert_eq!(of(None, None), [HlslCompiler::Fxc]);
        assert_eq!(of(None, beside()), [dxc("C:/jointwise/dxcompiler.dll"), HlslCompiler::Fxc]);
        assert_eq!(of(Some("FXC"), beside()), [HlslCompiler::Fxc]);
        assert_eq!(of(Some("dxc"), None), [dxc("dxcompiler.dll"), HlslCompiler::Fxc]);
        // A compiler that is not built into the program.
        assert_eq!(of(Some("staticdxc"), None), [HlslCompiler::Fxc]);
        let released = |asked, beside| HlslCompiler::candidates(asked, beside, true);
        let built_in = || HlslCompiler::BuiltInDxc;
        assert_eq!(released(None, None), [built_in(), HlslCompiler::Fxc]);
        assert_eq!(released(None, beside()), [dxc("C:/jointwise/dxcompiler.dll"), built_in(), HlslCompiler::Fxc]);
        assert_eq!(released(Some("staticdxc"), beside()), [built_in(), HlslCompiler::Fxc]);
        assert_eq!(released(Some("fxc"), beside()), [HlslCompiler::Fxc]);
    }
}
