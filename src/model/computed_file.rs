//! Safetensors files that exist in no place: their headers are made, and their tensors' bytes are computed when they are read.

use serde_json::{Map, Value, json};

/// Fills a slice with the bytes of a tensor from an offset on, given the tensor's number. The error is a reason.
pub(super) type TensorReader<'a> = dyn Fn(usize, u64, &mut [u8]) -> Result<(), String> + 'a;

/// Header and places of a file's tensors.
#[derive(Debug, Default)]
pub(super) struct ComputedFile {
    /// Length and JSON, as at the beginning of a safetensors file.
    header: Vec<u8>,
    /// Ends of the tensors, counted from the file's beginning, in the order of their bytes.
    ends: Vec<u64>,
}

/// Entry of a tensor in the header.
pub(super) struct ComputedTensor<'a> {
    pub name: &'a str,
    /// Data type as safetensors names it.
    pub dtype: &'a str,
    pub shape: &'a [usize],
    pub n_bytes: u64,
}

impl ComputedFile {
    /// Lays out tensors in their order; `None` where their sizes overflow.
    pub fn new<'a>(tensors: impl IntoIterator<Item = ComputedTensor<'a>>) -> Option<Self> {
        let (mut entries, mut ends, mut offset) = (Map::new(), Vec::new(), 0_u64);
        for ComputedTensor { name, dtype, shape, n_bytes } in tensors {
            let end = offset.checked_add(n_bytes)?;
            entries.insert(name.into(), json!({"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}));
            ends.push(end);
            offset = end;
        }
        let json = Value::Object(entries).to_string().into_bytes();
        let mut header = (json.len() as u64).to_le_bytes().to_vec();
        header.extend(json);
        let shift = header.len() as u64;
        ends.iter_mut().try_for_each(|end| {
            *end = end.checked_add(shift)?;
            Some(())
        })?;
        Some(Self { header, ends })
    }

    /// Returns the length in bytes.
    pub fn n_bytes(&self) -> u64 {
        self.ends.last().copied().unwrap_or(self.header.len() as u64)
    }

    /// Fills `into` with the bytes of the file from `offset` on. `read` fills a part with the bytes of a tensor, given its number and the place
    /// in it.
    ///
    /// # Errors
    /// "truncated" for a range beyond the end; errors of `read`.
    pub fn read_at(&self, offset: u64, into: &mut [u8], read: &TensorReader) -> Result<(), String> {
        let (mut at, mut into) = (offset, into);
        while !into.is_empty() {
            if at < self.header.len() as u64 {
                let from = &self.header[at as usize..];
                let (part, rest) = into.split_at_mut(from.len().min(into.len()));
                part.copy_from_slice(&from[..part.len()]);
                (at, into) = (at + part.len() as u64, rest);
                continue;
            }
            let tensor = self.ends.partition_point(|end| *end <= at);
            let end = *self.ends.get(tensor).ok_or("truncated")?;
            let start = if tensor == 0 { self.header.len() as u64 } else { self.ends[tensor - 1] };
            let length = (end - at).min(into.len() as u64) as usize;
            let (part, rest) = into.split_at_mut(length);
            read(tensor, at - start, part)?;
            (at, into) = (at + length as u64, rest);
        }
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::model::tensor_file::{TensorContent, TensorFile};

    /// Two tensors, whose bytes are their places.
    struct Places(ComputedFile);

    impl TensorContent for Places {
        fn n_bytes(&self) -> u64 {
            self.0.n_bytes()
        }
        fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), String> {
            self.0.read_at(offset, into, &|tensor, at, into| {
                into.iter_mut().zip(at..).for_each(|(byte, at)| *byte = 100 * tensor as u8 + at as u8);
                Ok(())
            })
        }
    }

    #[test]
    fn a_reader_finds_every_byte_whatever_it_asks_for() {
        let tensor = |name, shape| ComputedTensor { name, dtype: "U8", shape, n_bytes: 5 };
        let computed = || Places(ComputedFile::new([tensor("a", &[5]), tensor("b", &[1, 5])]).unwrap());
        let file = TensorFile::from_content("x", Box::new(computed())).unwrap();
        let bytes = |name: &str| file.bytes(&file.tensors()[name]).unwrap();
        assert_eq!((bytes("a"), bytes("b")), (vec![0, 1, 2, 3, 4], vec![100, 101, 102, 103, 104]));
        let places = computed();
        let mut whole = vec![0; places.n_bytes() as usize];
        places.read_at(0, &mut whole).unwrap();
        for n in 1..9 {
            let mut pieces = vec![0; whole.len()];
            pieces.chunks_mut(n).enumerate().for_each(|(i, part)| places.read_at((i * n) as u64, part).unwrap());
            assert_eq!(pieces, whole, "in pieces of {n}");
        }
        assert_eq!(places.read_at(places.n_bytes(), &mut [0]), Err("truncated".into()));
        let huge = |name| ComputedTensor { name, dtype: "U8", shape: &[], n_bytes: u64::MAX };
        assert!(ComputedFile::new([huge("a"), huge("b")]).is_none());
    }
}
