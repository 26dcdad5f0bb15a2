//! The Vulkan layer that lets devices fail (tests/faults/layer.c).

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;

/// Name of the layer.
pub const LAYER: &str = "VK_LAYER_JOINTWISE_FAULTS";

/// Compiles the layer into a folder, which `VK_LAYER_PATH` then names.
///
/// # Errors
/// The reason why it cannot be compiled here: no C compiler, or no headers.
pub fn compile(dir: &Path) -> Result<(), String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/layer.c");
    let library = dir.join("libfaults.so");
    let mut compiler = Command::new("cc");
    // The loader closes it with an instance: its counts go over all of them.
    compiler.args(["-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-Wl,-z,nodelete", "-o"]);
    compiler.arg(&library).arg(source).arg("-lpthread");
    let said = compiler.output().map_err(|e| format!("cc, a C compiler, does not start: {e}"))?;
    if !said.status.success() {
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(text.contains("vulkan/"), "the layer does not compile: {text}");
        return Err("Vulkan's headers are missing (libvulkan-dev)".into());
    }
    let manifest = json!({"file_format_version": "1.2.0", "layer": {
        "name": LAYER, "type": "GLOBAL", "library_path": library, "api_version": "1.3.0", "implementation_version": "1",
        "description": "Lets devices fail",
    }});
    fs::write(dir.join("faults.json"), manifest.to_string()).expect("a manifest");
    Ok(())
}
