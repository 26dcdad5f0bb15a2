//! `quantization_config` of config.json: how a checkpoint's weights are quantised.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Field of config.json.
const FIELD: &str = "quantization_config";

/// Method by which the files' weights were quantised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QuantMethod {
    /// FP8 (E4M3) with a scale per tensor, per row or per block: DeepSeek's and Qwen's `fp8`, Mistral's, `fbgemm_fp8`, and `compressed-tensors` with
    /// the format `float-quantized`.
    Fp8 {
        /// Rows and columns that share a scale, where scales are of blocks.
        blocks: Option<[usize; 2]>,
    },
    /// Four bits by bitsandbytes.
    Bnb4bit,
    /// MXFP4, as gpt-oss has its experts.
    Mxfp4 {
        /// `modules_to_not_convert`: modules that are not quantised.
        kept: Vec<String>,
    },
}

impl QuantMethod {
    /// Takes the quantisation out of a configuration's text. Returns the method, and the text without it; `None` where the weights are not quantised.
    /// `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Field`] naming a method that is not read.
    pub fn take(path: &Path, text: &str) -> Result<Option<(Self, String)>> {
        // What is malformed is told by the reader of configurations.
        let Ok(Value::Object(mut config)) = serde_json::from_str(text) else { return Ok(None) };
        let mut found = take_from(&mut config);
        if let Some(Value::Object(text)) = config.get_mut("text_config") {
            let inner = take_from(text);
            found = found.or(inner);
        }
        let Some(settings) = found else { return Ok(None) };
        let method = Self::of(&settings).map_err(|reason| Error::field(path, FIELD, reason))?;
        Ok(Some((method, Value::Object(config).to_string())))
    }

    fn of(settings: &Value) -> Result<Self, String> {
        let text = |name: &str| settings.get(name).and_then(Value::as_str);
        let is_on = |name: &str| settings.get(name) == Some(&Value::Bool(true));
        let read =
            "fp8, fbgemm_fp8, compressed-tensors (float-quantized), bitsandbytes (load_in_4bit) and mxfp4 are read";
        let method = match text("quant_method") {
            Some("fp8" | "fbgemm_fp8") => Self::Fp8 { blocks: blocks(&settings["weight_block_size"])? },
            Some("mxfp4") => Self::Mxfp4 { kept: names(settings, "modules_to_not_convert")? },
            Some("compressed-tensors") => match text("format") {
                Some("float-quantized") => {
                    Self::Fp8 { blocks: blocks(&settings["config_groups"]["group_0"]["weights"]["block_structure"])? }
                }
                format => {
                    let format = format.unwrap_or("none");
                    return Err(format!("compressed-tensors with the format {format} is not read: {read}"));
                }
            },
            Some("bitsandbytes") | None if is_on("load_in_4bit") || is_on("_load_in_4bit") => Self::Bnb4bit,
            Some("bitsandbytes") => return Err(format!("bitsandbytes with 8 bits is not read: {read}")),
            Some(other) => {
                return Err(format!("weights quantised by {other} are not read: {read}; take the bf16 weights"));
            }
            None => return Err(format!("has no quant_method: {read}")),
        };
        match text("bnb_4bit_quant_type") {
            Some(kind) if method == Self::Bnb4bit && kind != "nf4" => {
                Err(format!("bnb_4bit_quant_type is {kind}, and nf4 alone is read"))
            }
            _ => Ok(method),
        }
    }
}

/// Reads the size of blocks: two numbers, or nothing.
fn blocks(value: &Value) -> Result<Option<[usize; 2]>, String> {
    if value.is_null() {
        return Ok(None);
    }
    let number = |i: usize| value.get(i)?.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0);
    match (number(0), number(1), value.get(2)) {
        (Some(rows), Some(columns), None) => Ok(Some([rows, columns])),
        _ => Err(format!("the size of blocks is {value}, and two positive numbers are expected")),
    }
}

/// Reads a list of names; none where the field is absent or null.
fn names(settings: &Value, field: &str) -> Result<Vec<String>, String> {
    let Some(value) = settings.get(field).filter(|value| !value.is_null()) else { return Ok(Vec::new()) };
    let names = value.as_array().and_then(|list| list.iter().map(|name| name.as_str().map(String::from)).collect());
    names.ok_or_else(|| format!("{field}: expected a list of names, found {value}"))
}

/// Takes the field out of an object; `None` where it is absent or null.
fn take_from(config: &mut Map<String, Value>) -> Option<Value> {
    config.remove(FIELD).filter(|value| !value.is_null())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn take(text: &str) -> Result<Option<(QuantMethod, String)>> {
        QuantMethod::take(Path::new("config.json"), text)
    }

    #[test]
    fn methods_are_known_by_their_names() {
        assert_eq!(take(r#"{"a": 1, "quantization_config": null}"#).unwrap(), None);
        let (method, rest) =
            take(r#"{"a": 1, "quantization_config": {"quant_method": "fp8"}, "b": 2}"#).unwrap().unwrap();
        assert_eq!((method, rest.as_str()), (QuantMethod::Fp8 { blocks: None }, r#"{"a":1,"b":2}"#));
        let blocks = r#"{"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 64]}}"#;
        assert_eq!(take(blocks).unwrap().unwrap().0, QuantMethod::Fp8 { blocks: Some([128, 64]) });
        let wrapped = r#"{"text_config": {"c": 3, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true}}}"#;
        let (method, rest) = take(wrapped).unwrap().unwrap();
        assert_eq!((method, rest.as_str()), (QuantMethod::Bnb4bit, r#"{"text_config":{"c":3}}"#));
        let experts = r#"{"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}"#;
        assert_eq!(take(experts).unwrap().unwrap().0, QuantMethod::Mxfp4 { kept: vec!["lm_head".into()] });
        let bare = r#"{"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": null}}"#;
        assert_eq!(take(bare).unwrap().unwrap().0, QuantMethod::Mxfp4 { kept: Vec::new() });
        for (settings, part) in [
            (r#"{"quant_method": "gptq", "bits": 4}"#, "by gptq are not read"),
            (r#"{"quant_method": "compressed-tensors", "format": "pack-quantized"}"#, "pack-quantized"),
            (r#"{"quant_method": "bitsandbytes", "load_in_8bit": true}"#, "8 bits"),
            (r#"{"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "fp4"}"#, "is fp4"),
            (r#"{"bits": 4}"#, "has no quant_method"),
            (r#"{"quant_method": "mxfp4", "modules_to_not_convert": "x"}"#, "expected a list of names, found \"x\""),
            (r#"{"quant_method": "fp8", "weight_block_size": [128, 0]}"#, "[128,0]"),
        ] {
            let error = take(&format!(r#"{{"quantization_config": {settings}}}"#)).unwrap_err().to_string();
            assert!(
                error.contains("config.json") && error.contains("quantization_config") && error.contains(part),
                "{error}"
            );
        }
    }
}
