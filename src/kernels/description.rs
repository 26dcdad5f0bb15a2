//! Descriptions of kernels for people who read them: formulas, source files, workgroups.

use super::{Kernel, REGISTRY};
use crate::error::{Error, Result};
use crate::gpu::{Shader, module_head};

/// Description of a kernel that a device runs.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct KernelDescription {
    /// Family: the stem of the main WGSL file and of the Rust file.
    pub family: &'static str,
    /// Formulas of the family: the comment at the head of its main WGSL file.
    pub formula: String,
    /// Comment at the head of this kernel's own WGSL file, where it is another file; else empty.
    pub about: String,
    /// WGSL file, relative to the repository.
    pub shader_file: String,
    /// Rust file with launchers, f64 twin and cases, relative to the repository.
    pub rust_file: String,
    /// Invocations of a workgroup along x, y and z.
    pub workgroup_size: [u32; 3],
    /// WGSL as it is given to the device.
    pub wgsl: String,
}

/// Returns the family that a module of `shaders/` belongs to.
pub fn family_of(module: &str) -> Option<&'static dyn Kernel> {
    REGISTRY.iter().copied().find(|kernel| kernel.modules().contains(&module))
}

impl KernelDescription {
    /// Describes a shader of a family.
    ///
    /// # Errors
    /// Fails like [`Shader::workgroup_size`]; [`Error::File`] for a module of no family.
    pub fn new(shader: &Shader) -> Result<Self> {
        let shader_file = format!("shaders/{}.wgsl", shader.module);
        let family = family_of(shader.module).ok_or_else(|| Error::file(&shader_file, "belongs to no family"))?.name();
        let head = |module| module_head(module).unwrap_or_default();
        Ok(Self {
            family,
            formula: head(family),
            about: if family == shader.module { String::new() } else { head(shader.module) },
            rust_file: format!("src/kernels/{family}.rs"),
            shader_file,
            workgroup_size: shader.workgroup_size()?,
            wgsl: shader.source()?,
        })
    }
}
