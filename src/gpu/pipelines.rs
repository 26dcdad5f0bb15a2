//! Cache of compiled entry points. A recording only names entry points. Those not yet compiled are compiled in parallel at submission,
//! which reports progress. The result is cached on disk where the driver supports this (Vulkan), so that the next program starts faster.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use super::failure::{DeviceFailure, catch_panic};
use super::open_device::OpenDevice;
use super::{Gpu, Shader};
use crate::error::{Error, Result};
use crate::files::write_atomic;

/// Entry point, compiled or still to be compiled.
pub(super) struct Pipeline {
    shader: Shader,
    compiled: OnceLock<CompiledModule>,
    /// Whether the entry point was dispatched before, because CPU drivers translate to machine code at the first dispatch.
    pub ran: AtomicBool,
}

pub(super) struct CompiledModule {
    pub raw: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
}

impl Pipeline {
    /// Returns the compiled pipeline; `None` before compilation, or where compilation failed, which the device has then reported.
    pub fn compiled(&self) -> Option<&CompiledModule> {
        self.compiled.get()
    }
    pub fn is_compiled(&self) -> bool {
        self.compiled.get().is_some()
    }
    pub fn shader(&self) -> &Shader {
        &self.shader
    }
}

/// Progress callback (kernels compiled, kernels in all). It is called after each compiled kernel and, except in a browser, after each
/// second without one.
pub type OnCompile = Box<dyn Fn(usize, usize) + Send + Sync>;

/// Longest time between two calls of the progress callback.
#[cfg(not(target_arch = "wasm32"))]
const TICK: std::time::Duration = std::time::Duration::from_secs(1);

/// Pipelines of a device by shader key, and their cache on disk.
#[derive(Default)]
pub(super) struct PipelineCache {
    by_key: Mutex<HashMap<String, Arc<Pipeline>>>,
    on_compile: Mutex<Option<OnCompile>>,
    disk: Option<DiskCache>,
}

struct DiskCache {
    cache: wgpu::PipelineCache,
    path: PathBuf,
    is_stale: AtomicBool,
}

impl PipelineCache {
    pub fn get(&self, shader: &Shader) -> Arc<Pipeline> {
        let make = || Pipeline { shader: shader.clone(), compiled: OnceLock::new(), ran: AtomicBool::new(false) };
        let mut all = self.by_key.lock().unwrap_or_else(|e| e.into_inner());
        all.entry(shader.key()).or_insert_with(|| Arc::new(make())).clone()
    }

    /// Returns the shaders of all pipelines, in the order of their keys.
    pub fn shaders(&self) -> Vec<Shader> {
        let all = self.by_key.lock().unwrap_or_else(|e| e.into_inner());
        let by_key: std::collections::BTreeMap<&String, &Arc<Pipeline>> = all.iter().collect();
        by_key.values().map(|pipeline| pipeline.shader.clone()).collect()
    }

    pub fn progress(&self, done: usize, total: usize) {
        if let Some(tell) = &*self.on_compile.lock().unwrap_or_else(|e| e.into_inner()) {
            tell(done, total);
        }
    }

    /// Compiles the pipelines of `wanted` that are not compiled yet.
    pub fn compile(&self, live: &OpenDevice, wanted: &[Arc<Pipeline>]) -> Result<()> {
        let missing: Vec<&Arc<Pipeline>> = wanted.iter().filter(|p| !p.is_compiled()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let sources = missing.iter().map(|p| p.shader.source()).collect::<Result<Vec<_>>>()?;
        let one = |i: usize| {
            if live.failure.is_set() {
                return;
            }
            let (shader, cache) = (&missing[i].shader, self.disk.as_ref().map(|d| &d.cache));
            match catch_panic(|| compile(live, shader, &sources[i], cache)) {
                Ok(compiled) if !live.failure.is_set() => drop(missing[i].compiled.set(compiled)),
                Ok(_) => live.failure.name_refusal(|| format!("compiling kernel {}", shader.entry)),
                Err(panic) => {
                    live.failure
                        .set(DeviceFailure::Refused(format!("kernel {} cannot be compiled: {panic}", shader.entry)));
                }
            }
        };
        self.each(missing.len(), &one);
        if let Some(disk) = &self.disk {
            disk.is_stale.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    #[cfg(target_arch = "wasm32")]
    fn each(&self, n: usize, one: &dyn Fn(usize)) {
        for i in 0..n {
            one(i);
            self.progress(i + 1, n);
        }
    }

    /// Calls `one` for 0..n on all cores, and the progress callback on this thread.
    #[cfg(not(target_arch = "wasm32"))]
    fn each(&self, n: usize, one: &(dyn Fn(usize) + Sync)) {
        use std::sync::mpsc::RecvTimeoutError;
        let workers = std::thread::available_parallelism().map_or(1, usize::from).min(n);
        let next = std::sync::atomic::AtomicUsize::new(0);
        let (send, done) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            for _ in 0..workers {
                let (send, next) = (send.clone(), &next);
                scope.spawn(move || {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        if i >= n {
                            break;
                        }
                        one(i);
                        let _ = send.send(());
                    }
                });
            }
            drop(send);
            let mut n_done = 0;
            loop {
                match done.recv_timeout(TICK) {
                    Ok(()) => n_done += 1,
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => break,
                }
                self.progress(n_done, n);
            }
        });
    }

    /// Writes the driver's pipeline cache to disk. A failure is ignored, because the next program can recompile.
    fn save(&self) {
        let Some(disk) = self.disk.as_ref().filter(|d| d.is_stale.load(Ordering::Relaxed)) else { return };
        let Some(data) = disk.cache.get_data() else { return };
        let _ = write_atomic(&disk.path, |file| file.write_all(&data).map_err(|e| Error::file(&disk.path, e)));
    }
}

impl Drop for PipelineCache {
    fn drop(&mut self) {
        self.save();
    }
}

fn compile(live: &OpenDevice, shader: &Shader, source: &str, cache: Option<&wgpu::PipelineCache>) -> CompiledModule {
    let descriptor =
        wgpu::ShaderModuleDescriptor { label: Some(shader.module), source: wgpu::ShaderSource::Wgsl(source.into()) };
    // SAFETY: every kernel guards its own indices and ends its own loops; kernel tests have guards around each slot (`Gpu::with_guards`),
    // and a browser always checks. With JOINTWISE_CHECKED=1, wgpu adds its own checks of loops, and of arrays in private and workgroup
    // memory. For storage buffers, wgpu relies on the driver on Vulkan with robustBufferAccess2, where reads outside a buffer give zeros.
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
        cache,
    });
    let layout = raw.get_bind_group_layout(0);
    CompiledModule { raw, layout }
}

impl Gpu {
    /// Returns every shader that was recorded on this device so far, in the order of their keys. On a device that only counts
    /// ([`Gpu::plan`]), these are the shaders that the same program needs on a device.
    pub fn recorded_shaders(&self) -> Vec<Shader> {
        self.pipelines.shaders()
    }

    /// Caches compiled shaders in a folder, where the driver supports this. Must be called before anything is computed.
    pub fn keep_pipelines(&mut self, dir: &Path) {
        let Some((live, name)) = self.live.as_ref().and_then(|l| Some((l, l.cache_name.as_ref()?))) else { return };
        if std::fs::create_dir_all(dir).is_err() {
            return;
        }
        let path = dir.join(name);
        let data = std::fs::read(&path).ok();
        // SAFETY: the file is in this user's cache folder and written by `save`. wgpu checks its header, and the driver starts an empty
        // cache where it does not recognise the contents (`fallback`).
        let cache = unsafe {
            live.device.create_pipeline_cache(&wgpu::PipelineCacheDescriptor {
                label: None,
                data: data.as_deref(),
                fallback: true,
            })
        };
        self.pipelines.disk = Some(DiskCache { cache, path, is_stale: AtomicBool::new(false) });
    }

    /// Sets or removes the progress callback of compilation. It is also called at first dispatches, because CPU drivers compile then.
    pub fn on_compile(&self, tell: Option<OnCompile>) {
        *self.pipelines.on_compile.lock().unwrap_or_else(|e| e.into_inner()) = tell;
    }
}
