//! A hash of several byte strings.

use sha2::{Digest, Sha256};

/// Computes the SHA-256 of byte strings and their lengths, in hexadecimal.
pub fn parts_hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().iter().map(|b| format!("{b:02x}")).collect()
}
