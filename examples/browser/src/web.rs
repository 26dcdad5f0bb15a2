//! [`Tab`] for JavaScript. Settings and results are JSON; an error is its text.

use jointwise::model::tensor_file::Content;
use js_sys::{Function, Uint8Array};
use serde::de::DeserializeOwned;
use wasm_bindgen::prelude::*;

use crate::card;
use crate::tab::{self, Files, Tab};

#[wasm_bindgen]
extern "C" {
    /// A file that a worker reads at once: a Blob, or a handle of the origin's private files.
    pub type Readable;
    #[wasm_bindgen(method, getter)]
    fn size(this: &Readable) -> f64;
    #[wasm_bindgen(method, catch, js_name = readAt)]
    fn read_at(this: &Readable, offset: f64, length: u32) -> Result<Uint8Array, JsValue>;

    #[wasm_bindgen(js_namespace = console, js_name = error)]
    fn console_error(text: &str);
}

impl Content for Readable {
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

/// An `Error`; its name is `GpuError` where the device failed, which then does nothing more.
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

/// A panic is our bug: it is told in the console before the worker ends.
#[wasm_bindgen(start)]
pub fn start() {
    std::panic::set_hook(Box::new(|info| console_error(&info.to_string())));
}

fn weights(names: Vec<String>, contents: Vec<Readable>) -> Vec<(String, Box<dyn Content>)> {
    names.into_iter().zip(contents).map(|(name, content)| (name, Box::new(content) as Box<dyn Content>)).collect()
}

/// See [`Tab`].
#[wasm_bindgen]
pub struct Engine {
    tab: Tab,
    off: Vec<&'static str>,
}

#[wasm_bindgen]
impl Engine {
    /// Opens the device.
    pub async fn open() -> Js<Engine> {
        let (tab, off) = Tab::open().await.map_err(failed)?;
        Ok(Self { tab, off })
    }

    /// The device, as JSON.
    pub fn caps(&self) -> Js<String> {
        let caps = self.tab.gpu().caps();
        json(&serde_json::json!({
            "name": caps.name, "driver": caps.driver, "backend": caps.backend,
            "max_binding_bytes": caps.max_binding_bytes, "workgroup_bytes": caps.workgroup_bytes,
            "max_workgroups": caps.max_workgroups, "subgroup": caps.subgroup, "f16": caps.f16, "timestamps": caps.timestamps,
            "variants": caps.variants.iter().map(|v| v.name()).collect::<Vec<_>>(), "switched_off": self.off,
        }))
    }

    /// Memory by setting, as JSON.
    pub fn plan(&self, config: &str, names: Vec<String>, contents: Vec<Readable>, settings: &str) -> Js<String> {
        json(&self.tab.plan(config, weights(names, contents), &parse(settings)?).map_err(failed)?)
    }

    /// Puts a model on the device. Gives notes, as JSON. `side_names` and `side` are its configuration and tokenizer files, `names` and
    /// `contents` its weights.
    pub fn load(
        &mut self,
        name: String,
        side_names: Vec<String>,
        side: Vec<Uint8Array>,
        names: Vec<String>,
        contents: Vec<Readable>,
        settings: &str,
    ) -> Js<String> {
        let side = side_names.into_iter().zip(side.iter().map(Uint8Array::to_vec)).collect();
        let files = Files { name, side, weights: weights(names, contents) };
        json(&self.tab.load(files, &parse(settings)?).map_err(failed)?)
    }

    /// Instructions for the demo model.
    pub fn demo_prompts(seed: u32, n: u32) -> Vec<String> {
        Tab::demo_prompts(seed.into(), n as usize)
    }

    /// Preferences for it, as JSONL.
    pub fn demo_preferences(seed: u32, n: u32) -> Js<String> {
        Tab::demo_preferences(seed.into(), n as usize).map_err(failed)
    }

    /// A file of rows (JSON lines, a list, CSV, TSV) as JSON lines.
    pub fn read_rows(name: &str, bytes: &[u8]) -> Js<String> {
        Tab::read_rows(name, bytes).map_err(failed)
    }

    /// Names of all kernels.
    pub fn kernels() -> Vec<String> {
        card::kernels().into_iter().map(String::from).collect()
    }

    /// What the device can do at most, as JSON.
    pub async fn ceilings(&self) -> Js<String> {
        json(&card::ceilings(self.tab.gpu()).await.map_err(failed)?)
    }

    /// At most so many cases of a kernel, with their errors, as JSON.
    pub async fn cases(&self, kernel: &str, most: u32) -> Js<String> {
        json(&card::cases(self.tab.gpu(), kernel, most as usize).await.map_err(failed)?)
    }

    /// A kernel verified and timed, as JSON.
    pub async fn bench(&self, kernel: &str, ceilings: &str) -> Js<String> {
        json(&card::measure(self.tab.gpu(), kernel, &parse(ceilings)?).await.map_err(failed)?)
    }

    /// The run's `report.html`; `lines` as JSON, `started` in seconds since 1970.
    pub fn report(&self, lines: &str, started: f64) -> Js<String> {
        self.tab.report(parse(lines)?, started).map_err(failed)
    }

    /// Responses; `on_text(prompt, text)` as they grow.
    pub async fn sample(&self, instructions: Vec<String>, settings: &str, on_text: Function) -> Js<Vec<String>> {
        let settings = parse(settings)?;
        let mut tell = |prompt: usize, text: &str| {
            let _ = on_text.call2(&JsValue::NULL, &JsValue::from_f64(prompt as f64), &JsValue::from_str(text));
        };
        self.tab.sample(&instructions, &settings, &mut tell).await.map_err(failed)
    }

    /// Begins a run, or goes on with one.
    pub async fn begin(
        &mut self,
        jsonl: &str,
        settings: &str,
        state: Option<String>,
        arena: Option<Vec<u8>>,
    ) -> Js<String> {
        let kept = state.zip(arena).map(|(state, arena)| tab::Kept { state, arena });
        self.tab.begin(jsonl, parse(settings)?, kept.as_ref()).await.map_err(failed)
    }

    /// A step's metrics as JSON; nothing when all are done.
    pub async fn step(&mut self) -> Js<Option<String>> {
        self.tab.step().await.map_err(failed)?.map(|line| json(&line)).transpose()
    }

    /// The run's state.
    pub async fn state(&self) -> Js<Kept> {
        let tab::Kept { state, arena } = self.tab.state().await.map_err(failed)?;
        Ok(Kept { state, arena })
    }

    /// The adapter's files.
    pub async fn adapter(&self) -> Js<Vec<File>> {
        let files = self.tab.adapter().await.map_err(failed)?;
        Ok(files.into_iter().map(|(name, bytes)| File { name: name.into(), bytes }).collect())
    }

    /// Tokens with their log-probabilities, as JSON.
    pub async fn score(&self, instruction: &str, response: &str, template: &str) -> Js<String> {
        json(&self.tab.score(instruction, response, template).await.map_err(failed)?)
    }
}

/// What a run goes on from.
#[wasm_bindgen(getter_with_clone)]
pub struct Kept {
    /// JSON.
    pub state: String,
    /// safetensors.
    pub arena: Vec<u8>,
}

/// A file to take home.
#[wasm_bindgen(getter_with_clone)]
pub struct File {
    /// Its name.
    pub name: String,
    /// Its content.
    pub bytes: Vec<u8>,
}
