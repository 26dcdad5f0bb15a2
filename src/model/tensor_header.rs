//! Header of a safetensors file: names, types, shapes and places of its tensors. Sizes are u64 on every target, because a browser's
//! usize has 32 bits, and a model may have files of more than 4 GiB.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use safetensors::Dtype;
use serde::Deserialize;

/// Header as stored: a JSON object with an entry per tensor.
#[derive(Deserialize)]
struct StoredHeader {
    /// Texts about the file, which are not used.
    #[serde(rename = "__metadata__", default)]
    _metadata: Option<HashMap<String, String>>,
    #[serde(flatten)]
    tensors: BTreeMap<String, HeaderEntry>,
}

/// Tensor's entry in a header.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct HeaderEntry {
    /// Data type.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// First byte of the tensor, and the byte behind its last one, counted from the header's end.
    data_offsets: (u64, u64),
}

impl HeaderEntry {
    /// Returns the tensor's bytes, counted from the header's end.
    pub fn range(&self) -> Range<u64> {
        self.data_offsets.0..self.data_offsets.1
    }

    /// Computes the tensor's size in bytes from its shape and type. `None` where it overflows or is not a whole number of bytes.
    fn n_bytes(&self) -> Option<u64> {
        let n = self.shape.iter().try_fold(1_u64, |n, &dim| n.checked_mul(dim as u64))?;
        let bits = n.checked_mul(self.dtype.bitsize() as u64)?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }
}

/// Reads a header's JSON and checks it: tensors follow each other without gaps, and each has the size of its shape and type. Returns the
/// entries by name, and the number of bytes that the tensors take.
///
/// # Errors
/// Reason why the header is refused.
pub(super) fn read_header(json: &[u8]) -> Result<(BTreeMap<String, HeaderEntry>, u64), String> {
    let header: StoredHeader = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    let mut in_order: Vec<(&String, &HeaderEntry)> = header.tensors.iter().collect();
    in_order.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut end = 0;
    for (name, entry) in in_order {
        let range = entry.range();
        if range.start != end || range.end < range.start {
            let (from, to) = (range.start, range.end);
            return Err(format!("tensor `{name}` is at bytes {from} to {to}, the tensor before it ends at {end}"));
        }
        if entry.n_bytes() != Some(range.end - range.start) {
            let (dtype, shape, n) = (entry.dtype, &entry.shape, range.end - range.start);
            return Err(format!("tensor `{name}` has {n} bytes, which is not the size of {dtype:?} {shape:?}"));
        }
        end = range.end;
    }
    Ok((header.tensors, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(dtype: &str, shape: &[u64], from: u64, to: u64) -> String {
        format!(r#"{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{from},{to}]}}"#)
    }

    fn read(entries: &[(&str, String)]) -> Result<(Vec<String>, u64), String> {
        let entries: Vec<String> = entries.iter().map(|(name, entry)| format!(r#""{name}":{entry}"#)).collect();
        let (tensors, end) = read_header(format!("{{{}}}", entries.join(",")).as_bytes())?;
        Ok((tensors.into_keys().collect(), end))
    }

    /// Gemma 3 1B's embedding has 604 MB: more bits than a usize of 32 bits counts. The tensor behind it ends above 4 GiB.
    #[test]
    fn large_tensors_and_files_are_read() {
        let embedding = 262_144 * 1152 * 2;
        let large = 1 << 32;
        let entries = [
            ("b", entry("F32", &[1 << 15, 1 << 15], embedding, embedding + large)),
            ("a", entry("BF16", &[262_144, 1152], 0, embedding)),
            ("__metadata__", r#"{"format":"pt"}"#.into()),
            ("empty", entry("F32", &[0, 3], embedding + large, embedding + large)),
        ];
        assert_eq!(read(&entries), Ok((vec!["a".into(), "b".into(), "empty".into()], embedding + large)));
    }

    #[test]
    fn headers_that_do_not_fit_are_refused_with_the_tensor() {
        let first = ("a", entry("F32", &[2], 0, 8));
        let refused = |second: String, words: &str| {
            let error = read(&[first.clone(), ("b", second)]).unwrap_err();
            assert!(error.contains("`b`") && error.contains(words), "{error}");
        };
        refused(entry("F32", &[1], 12, 16), "at bytes 12 to 16, the tensor before it ends at 8");
        refused(entry("F32", &[1], 4, 8), "at bytes 4 to 8");
        refused(entry("F32", &[1], 8, 4), "at bytes 8 to 4");
        refused(entry("F32", &[2], 8, 12), "has 4 bytes, which is not the size of F32 [2]");
        refused(entry("F4", &[3], 8, 9), "has 1 bytes");
        refused(entry("F64", &[1 << 31, 1 << 31, 4], 8, 16), "has 8 bytes");
        assert!(read(&[("a", entry("F99", &[2], 0, 8))]).unwrap_err().contains("F99"));
        assert!(read(&[("a", entry("F32", &[2], 0, 8).replace('8', "-8"))]).is_err());
    }
}
