//! Data types of tensors in a GGUF file, and the sizes of their blocks.

/// Data type of a tensor in a GGUF file that this program reads: plain numbers, or quantised blocks of a row (`ggml_type` in `ggml.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum GgmlType {
    /// float32.
    F32,
    /// float16.
    F16,
    /// bfloat16.
    Bf16,
    /// Blocks of 32: a scale, and 4 bits per element.
    Q4_0,
    /// Blocks of 32: a scale and a minimum, and 4 bits per element.
    Q4_1,
    /// Blocks of 32: a scale, and 5 bits per element.
    Q5_0,
    /// Blocks of 32: a scale and a minimum, and 5 bits per element.
    Q5_1,
    /// Blocks of 32: a scale, and 8 bits per element.
    Q8_0,
    /// Blocks of 256 with 8 scales and minima of 6 bits, and 4 bits per element.
    Q4K,
    /// Blocks of 256 with 8 scales and minima of 6 bits, and 5 bits per element.
    Q5K,
    /// Blocks of 256 with 16 scales of 8 bits, and 6 bits per element.
    Q6K,
}

/// Number, name, elements per block and bytes per block of each type.
const TYPES: [(GgmlType, u32, &str, usize, usize); 11] = [
    (GgmlType::F32, 0, "F32", 1, 4),
    (GgmlType::F16, 1, "F16", 1, 2),
    (GgmlType::Bf16, 30, "BF16", 1, 2),
    (GgmlType::Q4_0, 2, "Q4_0", 32, 18),
    (GgmlType::Q4_1, 3, "Q4_1", 32, 20),
    (GgmlType::Q5_0, 6, "Q5_0", 32, 22),
    (GgmlType::Q5_1, 7, "Q5_1", 32, 24),
    (GgmlType::Q8_0, 8, "Q8_0", 32, 34),
    (GgmlType::Q4K, 12, "Q4_K", 256, 144),
    (GgmlType::Q5K, 13, "Q5_K", 256, 176),
    (GgmlType::Q6K, 14, "Q6_K", 256, 210),
];

/// Names of the types that are not read, by their numbers.
const OTHERS: [(u32, &str); 20] = [
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (39, "MXFP4"),
];

impl GgmlType {
    fn entry(self) -> &'static (Self, u32, &'static str, usize, usize) {
        // Every variant has an entry.
        TYPES.iter().find(|entry| entry.0 == self).unwrap_or(&TYPES[0])
    }

    /// Returns the type of a number in a file.
    ///
    /// # Errors
    /// The reason for a type that is not read, with its name where it is known.
    pub fn from_number(number: u32) -> Result<Self, String> {
        if let Some(entry) = TYPES.iter().find(|entry| entry.1 == number) {
            return Ok(entry.0);
        }
        let name = OTHERS.iter().find(|(other, _)| *other == number).map_or("unknown", |(_, name)| name);
        let known: Vec<&str> = TYPES.iter().map(|entry| entry.2).collect();
        Err(format!("type {number} ({name}) is not supported ({} are)", known.join(", ")))
    }

    /// Returns the type's number in a file.
    pub fn number(self) -> u32 {
        self.entry().1
    }

    /// Returns ggml's name of the type.
    pub fn name(self) -> &'static str {
        self.entry().2
    }

    /// Returns the number of elements per block; 1 for plain numbers.
    pub fn block_len(self) -> usize {
        self.entry().3
    }

    /// Returns the number of bytes per block.
    pub fn block_bytes(self) -> usize {
        self.entry().4
    }

    /// Tells whether the type has blocks, whose elements are rounded.
    pub fn is_quantised(self) -> bool {
        self.block_len() > 1
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_types_and_others_are_refused_by_name() {
        for (kind, number, name, block_len, block_bytes) in TYPES {
            assert_eq!(GgmlType::from_number(number), Ok(kind));
            assert_eq!((kind.number(), kind.name()), (number, name));
            assert_eq!((kind.block_len(), kind.block_bytes()), (block_len, block_bytes));
        }
        let refused = |number| GgmlType::from_number(number).unwrap_err();
        assert!(refused(10).starts_with("type 10 (Q2_K) is not supported (F32, F16,"), "{}", refused(10));
        assert!(refused(u32::MAX).contains("4294967295 (unknown)"));
    }
}
