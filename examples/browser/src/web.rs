//! JavaScript bindings of [`Tab`]. Settings and results are JSON. An error carries its text.

use jointwise::model::tensor_file::TensorContent;
use js_sys::{Function, Uint8Array};
use serde::de::DeserializeOwned;
use wasm_bindgen::prelude::*;

use crate::card;
use crate::saved;
use crate::tab::{Files, Tab};

#[wasm_bindgen]
extern "C" {
    /// File that a worker reads synchronously: a Blob, or a handle of the origin private file system.
    pub type Readable;
    #[wasm_bindgen(method, getter)]
    fn size(this: &Readable) -> f64;
    #[wasm_bindgen(method, catch, js_name = readAt)]
    fn read_at(this: &Readable, offset: f64, length: u32) -> Result<Uint8Array, JsValue>;

    #[wasm_bindgen(js_namespace = console, js_name = error)]
    fn console_error(text: &str);
}

impl TensorContent for Readable {
    fn n_bytes(&self) -> u64 {
        self.size() as u64
    }
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), String> {
        let bytes = self.read_at(offset as f64, into.len() as u32).map_err(|e| format!("{e:?}"))?;
        if bytes.length() as usize != into.len() {
            return Err("truncated".into());
        }
        bytes.copy_to(into);
        Ok(())
    }
}

type Js<T> = Result<T, JsValue>;

/// Converts an error to a JavaScript `Error`. Its name is `GpuError` if the device failed and cannot be used any more.
fn failed(error: jointwise::Error) -> JsValue {
    let told = js_sys::Error::new(&jointwise::error::one_line(&error.to_string()));
    use jointwise::Error::{DeviceLost, Gpu, OutOfMemory};
    if matches!(error, Gpu(_) | DeviceLost { .. } | OutOfMemory { .. }) {
        told.set_name("GpuError");
    }
    told.into()
}

fn parse<T: DeserializeOwned>(json: &str) -> Js<T> {
    serde_json::from_str(json).map_err(|e| JsValue::from_str(&format!("settings: {e}")))
}

fn json(value: &impl serde::Serialize) -> Js<String> {
    serde_json::to_string(value).map_err(|e| JsValue::from_str(&e.to_string()))
}

/// Installs a panic hook. A panic is a bug in the engine, so the hook prints it to the console before the worker ends.
#[wasm_bindgen(start)]
pub fn start() {
    std::panic::set_hook(Box::new(|info| console_error(&info.to_string())));
}

fn weights(names: Vec<String>, contents: Vec<Readable>) -> Vec<(String, Box<dyn TensorContent>)> {
    names.into_iter().zip(contents).map(|(name, content)| (name, Box::new(content) as Box<dyn TensorContent>)).collect()
}

/// JavaScript class around [`Tab`].
#[wasm_bindgen]
pub struct Engine {
    tab: Tab,
}

#[wasm_bindgen]
impl Engine {
    /// Opens the device. `checks` are the kernel checks that [`Self::checks`] returned on an earlier visit.
    pub async fn open(checks: Option<String>) -> Js<Engine> {
        // Checks that cannot be read are done again.
        let checks = checks.and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default();
        Ok(Self { tab: Tab::open(checks).await.map_err(failed)? })
    }

    /// Returns the kernel checks that were done, as JSON.
    pub fn checks(&self) -> Js<String> {
        json(self.tab.checks())
    }

    /// Returns whether a model is on the device.
    pub fn has_model(&self) -> bool {
        self.tab.has_model()
    }

    /// Returns the device's name, limits and features, as JSON.
    pub fn caps(&self) -> Js<String> {
        let caps = self.tab.gpu().caps();
        json(&serde_json::json!({
            "name": caps.name, "driver": caps.driver, "backend": caps.backend,
            "max_binding_bytes": caps.max_binding_bytes, "workgroup_bytes": caps.workgroup_bytes,
            "max_workgroups": caps.max_workgroups, "subgroup": caps.subgroup, "f16": caps.f16, "timestamps": caps.timestamps,
            "variants": caps.variants.iter().map(|v| v.name()).collect::<Vec<_>>(),
            "switched_off": self.tab.checks().wrong.iter().map(|v| v.name()).collect::<Vec<_>>(),
        }))
    }

    /// Returns whether a run is on the device.
    pub fn has_run(&self) -> bool {
        self.tab.has_run()
    }

    /// Estimates the memory for several settings, as JSON. See [`Tab::plan`].
    pub fn plan(&self, config: &str, names: Vec<String>, contents: Vec<Readable>, settings: &str) -> Js<String> {
        json(&self.tab.plan(config, weights(names, contents), &parse(settings)?).map_err(failed)?)
    }

    /// Loads a model onto the device. Returns notes, as JSON. `side_names` and `side` are its configuration and tokenizer files, `names` and
    /// `contents` its weights, and `base_dtype` the data type of frozen weights.
    pub async fn load(
        &mut self,
        name: String,
        side_names: Vec<String>,
        side: Vec<Uint8Array>,
        names: Vec<String>,
        contents: Vec<Readable>,
        base_dtype: &str,
    ) -> Js<String> {
        let base = parse(&format!("\"{base_dtype}\""))?;
        let side = side_names.into_iter().zip(side.iter().map(Uint8Array::to_vec)).collect();
        let files = Files { name, side, weights: weights(names, contents) };
        json(&self.tab.load(files, base).await.map_err(failed)?)
    }

    /// Returns instructions for the demo model.
    pub fn demo_prompts(seed: u32, n: u32) -> Vec<String> {
        Tab::demo_prompts(seed.into(), n as usize)
    }

    /// Generates preferences for the demo model, as JSONL.
    pub fn demo_preferences(seed: u32, n: u32) -> Js<String> {
        Tab::demo_preferences(seed.into(), n as usize).map_err(failed)
    }

    /// Converts a file of rows (JSON lines, a list, CSV, TSV) to JSON lines.
    pub fn read_rows(name: &str, bytes: &[u8]) -> Js<String> {
        Tab::read_rows(name, bytes).map_err(failed)
    }

    /// Returns the names of all kernels.
    pub fn kernels() -> Vec<String> {
        card::kernels().into_iter().map(String::from).collect()
    }

    /// Measures the device's peak rates. Returns them as JSON.
    pub async fn ceilings(&mut self) -> Js<String> {
        json(&card::ceilings(self.tab.bench_gpu()).await.map_err(failed)?)
    }

    /// Verifies at most `most` cases of a kernel. Returns their labels and errors, as JSON.
    pub async fn cases(&mut self, kernel: &str, most: u32) -> Js<String> {
        json(&card::cases(self.tab.bench_gpu(), kernel, most as usize).await.map_err(failed)?)
    }

    /// Verifies and times a kernel. Returns the result as JSON.
    pub async fn bench(&mut self, kernel: &str, ceilings: &str) -> Js<String> {
        json(&card::measure(self.tab.bench_gpu(), kernel, &parse(ceilings)?).await.map_err(failed)?)
    }

    /// Returns the kernels of a step with their launches, as JSON. See [`Tab::step_kernels`].
    pub async fn step_kernels(&mut self) -> Js<String> {
        json(&self.tab.step_kernels().await.map_err(failed)?)
    }

    /// Returns the kernels of a step with their launches, each timed for about `seconds`, as JSON. See [`Tab::time_step`].
    pub async fn time_step(&mut self, seconds: f64, ceilings: &str) -> Js<String> {
        json(&self.tab.time_step(seconds, &parse(ceilings)?).await.map_err(failed)?)
    }

    /// Returns the losses: name, formula, source, as JSON.
    pub fn losses() -> Js<String> {
        json(&crate::settings::losses())
    }

    /// Renders the run's `report.html`. `lines` is JSON, and `started` is in seconds since 1970.
    pub fn report(&self, lines: &str, started: f64) -> Js<String> {
        self.tab.report(parse(lines)?, started).map_err(failed)
    }

    /// Samples responses. Calls `on_text(prompt, text so far)` as each response grows.
    pub async fn sample(&mut self, instructions: Vec<String>, settings: &str, on_text: Function) -> Js<Vec<String>> {
        let settings = parse(settings)?;
        let mut tell = |prompt: usize, text: &str| {
            let _ = on_text.call2(&JsValue::NULL, &JsValue::from_f64(prompt as f64), &JsValue::from_str(text));
        };
        self.tab.sample(&instructions, &settings, &mut tell).await.map_err(failed)
    }

    /// Begins a run, or continues one from a saved state. Returns the rows that are not used whole, as JSON.
    pub async fn begin(
        &mut self,
        jsonl: &str,
        settings: &str,
        state: Option<String>,
        arena: Option<Vec<u8>>,
    ) -> Js<String> {
        let kept = state.zip(arena).map(|(state, arena)| saved::Kept { state, arena });
        json(&self.tab.begin(jsonl, parse(settings)?, kept.as_ref()).await.map_err(failed)?)
    }

    /// Runs one training step. Returns its metrics as JSON, or `undefined` after the last step.
    pub async fn step(&mut self) -> Js<Option<String>> {
        self.tab.step().await.map_err(failed)?.map(|line| json(&line)).transpose()
    }

    /// Returns the run's state.
    pub async fn state(&self) -> Js<Kept> {
        let saved::Kept { state, arena } = self.tab.state().await.map_err(failed)?;
        Ok(Kept { state, arena })
    }

    /// Returns the adapter's files.
    pub async fn adapter(&self) -> Js<Vec<File>> {
        let files = self.tab.adapter().await.map_err(failed)?;
        Ok(files.into_iter().map(|(name, bytes)| File { name: name.into(), bytes }).collect())
    }

    /// Returns the adapter's files and the report of a saved state, without a device. `lines` is JSON, and `started` is in seconds since 1970.
    pub fn saved_files(state: String, arena: Vec<u8>, settings: &str, lines: &str, started: f64) -> Js<Vec<File>> {
        let kept = saved::Kept { state, arena };
        let files = saved::saved_files(kept, &parse(settings)?, parse(lines)?, started).map_err(failed)?;
        Ok(files.into_iter().map(|(name, bytes)| File { name: name.into(), bytes }).collect())
    }

    /// Scores a text. Returns its tokens with their log-probabilities, as JSON.
    pub async fn score(&mut self, instruction: &str, response: &str, template: &str) -> Js<String> {
        json(&self.tab.score(instruction, response, template).await.map_err(failed)?)
    }
}

/// Saved state of a run, from which it can continue.
#[wasm_bindgen(getter_with_clone)]
pub struct Kept {
    /// JSON text with the run's step, token count and reference scores.
    pub state: String,
    /// Trained tensors and their moments, as safetensors.
    pub arena: Vec<u8>,
}

/// File to download.
#[wasm_bindgen(getter_with_clone)]
pub struct File {
    /// Name of the file.
    pub name: String,
    /// TensorContent of the file.
    pub bytes: Vec<u8>,
}
