//! Scores of rows, stored on disk as they are computed. A pass that was stopped continues where it ended, and another run over the same
//! rows finds the scores.
//!
//! A store is a folder for one model on one device. Each run appends to a file of its own, so that concurrent runs do not disturb each
//! other; opening a store reads all files. A file is a list of records of fixed length: a row's key, its scores, and a checksum of both. A
//! truncated or damaged record is ignored without affecting the others.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::data::batch::Example;
use crate::error::{Error, Result};
use crate::model::folder::read_regular;

/// Log-prob sums over instruction and over response of each of a row's sequences; zeros where there is no second sequence. Both objectives'
/// scores follow from them.
pub type SideSums = [[f64; 2]; 2];

/// Key of a row: a hash of its sequences' tokens and boundaries, and of LD-DPO's weight where its sums have one. The row's place in the data,
/// and other rows, do not affect it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RowKey([u8; KEY_BYTES]);

const KEY_BYTES: usize = 16;
const SUMS_BYTES: usize = size_of::<SideSums>();
const CHECK_BYTES: usize = 8;
const RECORD_BYTES: usize = KEY_BYTES + SUMS_BYTES + CHECK_BYTES;
/// File name extension of a store's files.
const EXTENSION: &str = "scores";
/// Largest size of a file, in bytes: enough for hundreds of millions of rows.
const MAX_BYTES: u64 = 1 << 34;

impl RowKey {
    /// Computes the key of an example's row, whose sums have the weight `tail_weight` on the response tokens past the length of the pair's
    /// shorter response.
    pub fn new(example: &Example, tail_weight: f64) -> Self {
        let mut hash = Sha256::new();
        let mut number = |n: usize| hash.update((n as u64).to_le_bytes());
        for sequence in &example.sequences {
            [sequence.ids.len(), sequence.response_start, sequence.between.len()].into_iter().for_each(&mut number);
            sequence.between.iter().flat_map(|range| [range.start, range.end]).for_each(&mut number);
        }
        example.sequences.iter().for_each(|sequence| hash.update(bytemuck::cast_slice(&sequence.ids)));
        if tail_weight != 1.0 {
            hash.update(tail_weight.to_le_bytes());
        }
        Self(first_bytes(&hash.finalize()))
    }
}

fn first_bytes<const N: usize>(bytes: &[u8]) -> [u8; N] {
    std::array::from_fn(|i| bytes[i])
}

fn record(key: RowKey, sums: SideSums) -> [u8; RECORD_BYTES] {
    let mut record = [0; RECORD_BYTES];
    record[..KEY_BYTES].copy_from_slice(&key.0);
    let bytes = sums.as_flattened().iter().flat_map(|sum| sum.to_le_bytes());
    record[KEY_BYTES..].iter_mut().zip(bytes).for_each(|(to, byte)| *to = byte);
    let check = Sha256::digest(&record[..KEY_BYTES + SUMS_BYTES]);
    record[KEY_BYTES + SUMS_BYTES..].copy_from_slice(&check[..CHECK_BYTES]);
    record
}

/// Parses a record; `None` where it is damaged.
fn parse(bytes: &[u8]) -> Option<(RowKey, SideSums)> {
    let mut numbers = bytes[KEY_BYTES..].chunks_exact(size_of::<f64>()).map(|b| f64::from_le_bytes(first_bytes(b)));
    let mut next = || numbers.next().unwrap_or_default();
    let sums = [[next(), next()], [next(), next()]];
    let key = RowKey(first_bytes(bytes));
    (record(key, sums) == bytes).then_some((key, sums))
}

/// Store of scores: those that were read, and the file for new ones.
#[derive(Debug)]
pub struct ScoreStore {
    dir: PathBuf,
    known: HashMap<RowKey, SideSums>,
    file: Option<File>,
    has_failed: bool,
}

impl ScoreStore {
    /// Opens a folder of scores. Files that cannot be read are ignored: their rows are only scored again.
    pub fn open(dir: &Path) -> Self {
        let mut known = HashMap::new();
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|e| e == EXTENSION)
                && let Ok(bytes) = read_regular(&path, MAX_BYTES)
            {
                known.extend(bytes.chunks_exact(RECORD_BYTES).filter_map(parse));
            }
        }
        Self { dir: dir.into(), known, file: None, has_failed: false }
    }

    /// Returns a row's scores; `None` where they are not known.
    pub fn get(&self, key: RowKey) -> Option<SideSums> {
        self.known.get(&key).copied()
    }

    /// Stores scores in one write; they are on disk when this returns.
    ///
    /// # Errors
    /// [`Error::File`], once. After a failure nothing more is written, since half a record may be at the file's end.
    pub fn append(&mut self, rows: &[(RowKey, SideSums)]) -> Result<()> {
        self.known.extend(rows.iter().copied());
        if self.has_failed {
            return Ok(());
        }
        let bytes: Vec<u8> = rows.iter().flat_map(|&(key, sums)| record(key, sums)).collect();
        let written = self.file().and_then(|mut file| file.write_all(&bytes));
        self.has_failed = written.is_err();
        written.map_err(|e| Error::file(&self.dir, e))
    }

    /// Returns this run's own file, and creates it at the first write.
    fn file(&mut self) -> std::io::Result<&File> {
        if self.file.is_none() {
            fs::create_dir_all(&self.dir)?;
            let now = web_time::SystemTime::now().duration_since(web_time::UNIX_EPOCH).unwrap_or_default();
            let name = format!("{}-{}.{EXTENSION}", std::process::id(), now.as_nanos());
            let file = OpenOptions::new().append(true).create_new(true).open(self.dir.join(name))?;
            self.file = Some(file);
        }
        self.file.as_ref().ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::batch::Sequence;

    fn row(ids: [&[u32]; 2], response_start: usize) -> Example {
        let sequence = |ids: &[u32]| Sequence::new(ids.to_vec(), response_start);
        Example { row: 0, sequences: ids.map(sequence).into(), desirable: None }
    }

    #[test]
    fn a_row_is_named_by_its_tokens_and_boundaries_alone() {
        let one = row([&[1, 2, 3], &[1, 4]], 1);
        let mut others = vec![
            row([&[1, 2, 3], &[1, 5]], 1),
            row([&[1, 2], &[3, 1, 4]], 1),
            row([&[1, 2, 3], &[1, 4]], 2),
            row([&[1, 4], &[1, 2, 3]], 1),
        ];
        others.push(Example { sequences: one.sequences[..1].into(), ..one.clone() });
        others.push(one.clone());
        others[5].sequences[0].between.push(1..2);
        let key_of_one = RowKey::new(&one, 1.0);
        let mut keys: Vec<RowKey> = others.iter().map(|other| RowKey::new(other, 1.0)).collect();
        keys.extend([0.0, 0.5].map(|weight| RowKey::new(&one, weight)));
        assert!((0..keys.len()).all(|i| keys[..i].iter().all(|key| *key != keys[i]) && keys[i] != key_of_one));
        assert_eq!(RowKey::new(&Example { row: 9, desirable: Some(true), ..one.clone() }, 1.0), key_of_one);
    }

    #[test]
    fn scores_are_kept_bit_by_bit_and_damage_costs_a_row() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("a/b");
        let rows: Vec<(RowKey, SideSums)> = (0..5_u8)
            .map(|i| (RowKey([i; KEY_BYTES]), [[-1.0 / f64::from(i + 3), f64::MIN_POSITIVE], [-0.0, f64::from(i)]]))
            .collect();
        let bits = |sums: SideSums| sums.map(|side| side.map(f64::to_bits));
        let known = |keys: &[usize]| {
            let store = ScoreStore::open(&dir);
            assert_eq!(store.known.len(), keys.len());
            keys.iter().for_each(|&i| assert_eq!(store.get(rows[i].0).map(bits), Some(bits(rows[i].1)), "row {i}"));
        };
        known(&[]);
        let mut first = ScoreStore::open(&dir);
        first.append(&rows[..2]).unwrap();
        // A second run beside the first.
        let mut second = ScoreStore::open(&dir);
        assert!(second.get(rows[1].0).is_some() && second.get(rows[2].0).is_none());
        second.append(&rows[2..4]).unwrap();
        first.append(&rows[4..]).unwrap();
        assert!(first.get(rows[4].0).is_some(), "it knows what it keeps");
        known(&[0, 1, 2, 3, 4]);

        let mut files: Vec<PathBuf> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort_by_key(|path| fs::metadata(path).unwrap().len());
        assert_eq!(files.len(), 2);
        let whole = fs::read(&files[1]).unwrap();
        assert_eq!(whole.len(), 3 * RECORD_BYTES);
        // The file is truncated in the middle of the third record.
        fs::write(&files[1], &whole[..2 * RECORD_BYTES + 9]).unwrap();
        known(&[0, 1, 2, 3]);
        for bit in 0..RECORD_BYTES * 8 {
            let mut bytes = whole.clone();
            bytes[RECORD_BYTES + bit / 8] ^= 1 << (bit % 8);
            fs::write(&files[1], &bytes).unwrap();
            known(&[0, 2, 3, 4]);
        }
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_told_once() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut store = ScoreStore::open(&file.path().join("scores"));
        let row = (RowKey([1; KEY_BYTES]), [[1.0; 2]; 2]);
        assert!(store.append(&[row]).is_err());
        assert!(store.append(&[row]).is_ok() && store.get(row.0) == Some(row.1));
    }
}
