//! TensorBoard event files: TFRecord framing with a masked CRC-32C, and the few protobuf fields of a scalar, encoded without a library.

use super::metrics::{self, MetricsLine};
use crate::error::{Error, Result};
use crate::files::{machine_name, make_folder};
use std::io::Write;
use std::path::{Path, PathBuf};
use web_time::{SystemTime, UNIX_EPOCH};

/// Computes CRC-32C (Castagnoli), reflected polynomial 0x82f63b78.
pub fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut i = 0;
        while i < 256 {
            let mut c = i as u32;
            let mut bit = 0;
            while bit < 8 {
                c = if c & 1 == 1 { c >> 1 ^ 0x82f6_3b78 } else { c >> 1 };
                bit += 1;
            }
            table[i] = c;
            i += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc, &b| TABLE[usize::from(crc as u8 ^ b)] ^ crc >> 8)
}

/// Applies TFRecord's mask to a checksum, because a CRC of data that contains CRCs is weak.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Encodes a record, little-endian: length, checksum of the length, data, checksum of the data.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = length.to_vec();
    out.extend(masked(crc32c(&length)).to_le_bytes());
    out.extend(data);
    out.extend(masked(crc32c(data)).to_le_bytes());
    out
}

/// Protobuf message in wire format.
#[derive(Default)]
struct ProtoMessage(Vec<u8>);

impl ProtoMessage {
    fn varint(&mut self, mut value: u64) {
        while value > 0x7f {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
    fn key(&mut self, field: u64, wire_type: u64) {
        self.varint(field << 3 | wire_type);
    }
    fn integer(mut self, field: u64, value: u64) -> Self {
        self.key(field, 0);
        self.varint(value);
        self
    }
    fn double(mut self, field: u64, value: f64) -> Self {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
        self
    }
    fn float(mut self, field: u64, value: f32) -> Self {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
        self
    }
    fn bytes(mut self, field: u64, value: &[u8]) -> Self {
        self.key(field, 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
        self
    }
}

/// Encodes an `Event`: wall_time = 1, step = 2.
fn event(step: u64) -> ProtoMessage {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    ProtoMessage::default().double(1, now.as_secs_f64()).integer(2, step)
}

/// Returns a metric's tag in its group, as in transformers: `eval_loss` becomes `eval/loss`, `loss` becomes `train/loss`.
fn tag(name: &str) -> String {
    match name.strip_prefix("eval_") {
        Some(rest) => format!("eval/{rest}"),
        None => format!("train/{name}"),
    }
}

/// Event file in a log folder, opened for appending.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: std::fs::File,
}

impl EventWriter {
    /// Creates `events.out.tfevents.<time>.<host>.jointwise` in a folder, which is created too. A run that resumes after `last_step`
    /// records this, so that TensorBoard hides what the interrupted run logged beyond that step.
    pub fn create(folder: &Path, last_step: Option<u64>) -> Result<Self> {
        make_folder(folder)?;
        let mut time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        // TensorBoard reads files in the order of their names, so a second file in the same second takes the next second's name.
        let path = loop {
            let path = folder.join(format!("events.out.tfevents.{time:010}.{}.jointwise", machine_name()));
            if !path.exists() {
                break path;
            }
            time += 1;
        };
        let file = std::fs::File::create_new(&path).map_err(|e| Error::file(&path, e))?;
        let mut writer = Self { path, file };
        // file_version = 3.
        writer.write(&event(0).bytes(3, b"brain.Event:2"))?;
        if let Some(step) = last_step {
            // session_log = 7 with status = 1: START.
            writer.write(&event(step + 1).bytes(7, &ProtoMessage::default().integer(1, 1).0))?;
        }
        Ok(writer)
    }

    /// Logs a number under a tag; slashes form groups.
    pub fn scalar(&mut self, step: u64, tag: &str, value: f64) -> Result<()> {
        self.write(&event(step).bytes(5, &summary([(tag, value)]).0))
    }

    /// Logs every number of a line of `metrics.jsonl` under `train/` or `eval/`.
    pub fn line(&mut self, line: &MetricsLine) -> Result<()> {
        let named: Vec<(String, f64)> = (line.iter())
            .filter(|(name, _)| *name != "step")
            .filter_map(|(name, value)| Some((tag(name), value.as_f64()?)))
            .collect();
        let values = named.iter().map(|(tag, value)| (tag.as_str(), *value));
        self.write(&event(metrics::step(line).unwrap_or(0)).bytes(5, &summary(values).0))
    }

    /// Returns the file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn write(&mut self, event: &ProtoMessage) -> Result<()> {
        self.file.write_all(&record(&event.0)).map_err(|e| Error::file(&self.path, e))
    }
}

/// Encodes a `Summary`: value = 1, repeated; `Summary.Value`: tag = 1, simple_value = 2.
fn summary<'a>(values: impl IntoIterator<Item = (&'a str, f64)>) -> ProtoMessage {
    values.into_iter().fold(ProtoMessage::default(), |all, (tag, value)| {
        all.bytes(1, &ProtoMessage::default().bytes(1, tag.as_bytes()).float(2, value as f32).0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_equal_rfc_3720() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&rising), 0x46dd_794e);
        assert_eq!(crc32c(b""), 0);
    }

    #[test]
    fn varints_and_fields_equal_the_protobuf_guide() {
        assert_eq!(ProtoMessage::default().integer(1, 150).0, [0x08, 0x96, 0x01]);
        assert_eq!(ProtoMessage::default().bytes(2, b"testing").0, b"\x12\x07testing");
    }

    #[test]
    fn a_record_is_framed() {
        let record = record(b"abc");
        assert_eq!(record.len(), 8 + 4 + 3 + 4);
        assert_eq!(record[..8], 3u64.to_le_bytes());
        let stored = u32::from_le_bytes([record[15], record[16], record[17], record[18]]);
        assert_eq!(stored.wrapping_sub(0xa282_ead8).rotate_left(15), crc32c(b"abc"));
    }
}
