//! Cache of tokenised rows on disk, under keys that depend on everything that determines the tokens. The next start over the same rows
//! reads them back.
//!
//! A file consists of: a magic number; the length of a JSON header, and the header; arrays of u32 in little endian (locations, lengths,
//! examples, sequences, ranges between answers, ids); and BLAKE3 of all that. A file whose length or hash does not match is not used.

use std::fs::{self, File};
use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use blake3::Hasher;
use serde::{Deserialize, Serialize};

use super::batch::{Example, Sequence};
use super::dataset::{Dataset, OverflowNote, RowLocations};
use super::remarks::DataRemarks;
use crate::error::{Error, Result};
use crate::files::write_atomic;

/// First bytes of every file; the digit is the format's version.
const MAGIC: [u8; 8] = *b"jwtoken1";
/// File name extension of cached tokens.
const EXTENSION: &str = "tokens";
/// Largest size of all files of a folder together, in bytes. The least recently used files are removed first.
const MAX_FOLDER_BYTES: u64 = 16 << 30;
/// Largest size of a header, in bytes.
const MAX_HEADER_BYTES: u64 = 1 << 30;
/// Number of u32s per example: row, number of sequences, label.
const EXAMPLE_WORDS: usize = 3;
/// Number of u32s per sequence: ids, start of the response, ranges between answers.
const SEQUENCE_WORDS: usize = 3;
/// Number of u32s per row location.
const PLACE_WORDS: usize = 3;

/// Tokenised rows, and the messages about them, one line each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenisedRows {
    /// Tokenised data.
    pub data: Dataset,
    /// Messages that the first start printed.
    pub told: Vec<String>,
}

/// Header of a file: its contents other than numbers, and the arrays' lengths.
#[derive(Debug, Default, Serialize, Deserialize)]
struct StoreHeader {
    files: Vec<PathBuf>,
    notes: Vec<OverflowNote>,
    remarks: DataRemarks,
    told: Vec<String>,
    n_rows: usize,
    n_lengths: usize,
    n_examples: usize,
    n_sequences: usize,
    n_between: usize,
    n_ids: usize,
}

impl StoreHeader {
    /// Returns the number of u32s behind the header.
    fn n_words(&self) -> Option<usize> {
        let parts = [
            (self.n_rows, PLACE_WORDS),
            (self.n_lengths, 1),
            (self.n_examples, EXAMPLE_WORDS),
            (self.n_sequences, SEQUENCE_WORDS),
            (self.n_between, 2),
            (self.n_ids, 1),
        ];
        parts.iter().try_fold(0_usize, |sum, (n, words)| sum.checked_add(n.checked_mul(*words)?))
    }
}

/// Folder of cached tokens.
#[derive(Debug, Clone)]
pub struct TokenStore {
    dir: PathBuf,
}

impl TokenStore {
    /// Uses the folder `dir`, which is created at the first write.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    fn path(&self, key: &str) -> PathBuf {
        self.dir.join(key).with_extension(EXTENSION)
    }

    /// Reads the rows with this key; `None` where there are none.
    ///
    /// # Errors
    /// [`Error::File`] where the file is damaged.
    pub fn get(&self, key: &str) -> Result<Option<TokenisedRows>> {
        let path = self.path(key);
        let n_bytes = match fs::metadata(&path) {
            Ok(about) if about.is_file() => about.len(),
            Ok(_) => return Err(Error::file(&path, "kept tokens are no regular file")),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::file(&path, e)),
        };
        let file = File::open(&path).map_err(|e| Error::file(&path, e))?;
        // Records the time of the last use, by which files are removed.
        let _ = file.set_modified(SystemTime::now());
        let damaged = |reason: io::Error| Error::file(&path, format!("kept tokens are damaged ({reason})"));
        read(BufReader::with_capacity(1 << 20, file), n_bytes).map(Some).map_err(damaged)
    }

    /// Stores rows under this key, completely or not at all.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn put(&self, key: &str, rows: &TokenisedRows) -> Result<()> {
        let path = self.path(key);
        fs::create_dir_all(&self.dir).map_err(|e| Error::file(&self.dir, e))?;
        write_atomic(&path, |file| write(file, rows).map_err(|e| Error::file(&path, e)))?;
        self.make_room(&path);
        Ok(())
    }

    /// Removes the least recently used files that exceed the folder's limit, except `kept`. A file that cannot be removed is left.
    fn make_room(&self, kept: &Path) {
        let mut files: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if let Ok(about) = entry.metadata()
                && path.extension().is_some_and(|extension| extension == EXTENSION)
            {
                files.push((about.modified().unwrap_or(SystemTime::UNIX_EPOCH), about.len(), path));
            }
        }
        files.sort_by_key(|(used, ..)| std::cmp::Reverse(*used));
        let mut sum = 0;
        for (_, n_bytes, path) in files {
            sum += n_bytes;
            if sum > MAX_FOLDER_BYTES && path != kept {
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// Converts a number to the 32 bits that a file has for it.
fn word(n: usize) -> io::Result<u32> {
    u32::try_from(n).map_err(|_| io::Error::other("a number is beyond 32 bits"))
}

/// Writer that hashes the bytes passing through it.
struct HashedContent<W> {
    inner: W,
    hasher: Hasher,
}

impl<W: Write> HashedContent<W> {
    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.inner.write_all(bytes)
    }

    fn words(&mut self, words: &[u32]) -> io::Result<()> {
        if cfg!(target_endian = "little") {
            return self.bytes(bytemuck::cast_slice(words));
        }
        words.iter().try_for_each(|word| self.bytes(&word.to_le_bytes()))
    }
}

impl<R: Read> HashedContent<R> {
    fn read_bytes(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.inner.read_exact(bytes)?;
        self.hasher.update(bytes);
        Ok(())
    }

    fn read_words(&mut self, n: usize) -> io::Result<Vec<u32>> {
        let mut words = vec![0_u32; n];
        self.read_bytes(bytemuck::cast_slice_mut(&mut words))?;
        words.iter_mut().for_each(|word| *word = u32::from_le(*word));
        Ok(words)
    }
}

fn write(out: impl Write, TokenisedRows { data, told }: &TokenisedRows) -> io::Result<()> {
    let sequences = || data.examples.iter().flat_map(|example| &example.sequences);
    let header = StoreHeader {
        files: data.places.files.iter().map(|file| file.to_path_buf()).collect(),
        notes: data.notes.clone(),
        remarks: data.remarks.clone(),
        told: told.clone(),
        n_rows: data.places.len(),
        n_lengths: data.lengths.len(),
        n_examples: data.examples.len(),
        n_sequences: sequences().count(),
        n_between: sequences().map(|sequence| sequence.between.len()).sum(),
        n_ids: sequences().map(|sequence| sequence.ids.len()).sum(),
    };
    let header = serde_json::to_vec(&header)?;
    let mut out = HashedContent { inner: out, hasher: Hasher::new() };
    out.bytes(&MAGIC)?;
    out.bytes(&(header.len() as u64).to_le_bytes())?;
    out.bytes(&header)?;
    out.words(data.places.rows.as_flattened())?;
    out.words(&data.lengths)?;
    for example in &data.examples {
        let label = example.desirable.map_or(2, u32::from);
        out.words(&[word(example.row)?, word(example.sequences.len())?, label])?;
    }
    for sequence in sequences() {
        out.words(&[word(sequence.ids.len())?, word(sequence.response_start)?, word(sequence.between.len())?])?;
    }
    for range in sequences().flat_map(|sequence| &sequence.between) {
        out.words(&[word(range.start)?, word(range.end)?])?;
    }
    sequences().try_for_each(|sequence| out.words(&sequence.ids))?;
    let hash = out.hasher.finalize();
    out.inner.write_all(hash.as_bytes())?;
    out.inner.flush()
}

fn read(from: impl Read, n_bytes: u64) -> io::Result<TokenisedRows> {
    let wrong = |what: &str| io::Error::new(ErrorKind::InvalidData, what.to_string());
    let mut from = HashedContent { inner: from, hasher: Hasher::new() };
    let (mut magic, mut length) = ([0; MAGIC.len()], [0; 8]);
    from.read_bytes(&mut magic)?;
    from.read_bytes(&mut length)?;
    let n_header = u64::from_le_bytes(length);
    if magic != MAGIC || n_header > MAX_HEADER_BYTES.min(n_bytes) {
        return Err(wrong("another form"));
    }
    let mut header = vec![0; n_header as usize];
    from.read_bytes(&mut header)?;
    let header: StoreHeader = serde_json::from_slice(&header)?;
    let n_hash = blake3::OUT_LEN as u64;
    let before = MAGIC.len() as u64 + 8 + n_header + n_hash;
    let n_words = header.n_words().and_then(|n| (n as u64).checked_mul(4)?.checked_add(before));
    if n_words != Some(n_bytes) {
        return Err(wrong("another length"));
    }
    let places = from.read_words(header.n_rows * PLACE_WORDS)?;
    let lengths = from.read_words(header.n_lengths)?;
    let examples = from.read_words(header.n_examples * EXAMPLE_WORDS)?;
    let sequences = from.read_words(header.n_sequences * SEQUENCE_WORDS)?;
    let between = from.read_words(header.n_between * 2)?;
    let mut sequences = sequences.chunks_exact(SEQUENCE_WORDS);
    let mut between = between.chunks_exact(2).map(|range| range[0] as usize..range[1] as usize);
    let mut n_ids = header.n_ids;
    let mut next = || -> io::Result<Sequence> {
        let words = sequences.next().ok_or_else(|| wrong("too few sequences"))?;
        let n = words[0] as usize;
        n_ids = n_ids.checked_sub(n).ok_or_else(|| wrong("too few ids"))?;
        Ok(Sequence {
            ids: from.read_words(n)?,
            response_start: words[1] as usize,
            between: between.by_ref().take(words[2] as usize).collect(),
        })
    };
    let example = |words: &[u32]| {
        Ok::<_, io::Error>(Example {
            row: words[0] as usize,
            sequences: (0..words[1]).map(|_| next()).collect::<io::Result<_>>()?,
            desirable: [Some(false), Some(true)].get(words[2] as usize).copied().flatten(),
        })
    };
    let examples = examples.chunks_exact(EXAMPLE_WORDS).map(example).collect::<io::Result<_>>()?;
    let mut hash = [0; blake3::OUT_LEN];
    from.inner.read_exact(&mut hash)?;
    if from.hasher.finalize() != blake3::Hash::from_bytes(hash) {
        return Err(wrong("another checksum"));
    }
    let places = RowLocations {
        files: header.files.iter().map(|file| file.as_path().into()).collect(),
        rows: places.chunks_exact(PLACE_WORDS).map(|words| [words[0], words[1], words[2]]).collect(),
    };
    let data = Dataset { examples, places, notes: header.notes, lengths, remarks: header.remarks };
    Ok(TokenisedRows { data, told: header.told })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::data::dataset::OverflowAction;
    use crate::data::remarks::DataRemark;
    use crate::data::rows::SourceLocation;

    fn rows() -> TokenisedRows {
        let mut data = Dataset::default();
        let place = |line| SourceLocation {
            element: std::num::NonZeroU32::new(line as u32 - 1),
            ..SourceLocation::new(Path::new("a é"), line)
        };
        (1..4).for_each(|line| data.places.push(&place(line)));
        data.places.push(&SourceLocation::new(Path::new("b"), 7));
        let between = vec![3..4, 5..6];
        let sequence = |n: u32| Sequence {
            ids: (0..n).map(|i| i * 77_777).collect(),
            response_start: 2,
            between: between.clone(),
        };
        data.examples.push(Example { row: 0, sequences: vec![sequence(9), sequence(11)], desirable: None });
        data.examples.push(Example { row: 3, sequences: vec![Sequence::new(vec![5, 6], 1)], desirable: Some(false) });
        data.examples.push(Example {
            row: 4,
            sequences: vec![Sequence::new(vec![u32::MAX], 1)],
            desirable: Some(true),
        });
        data.notes.push(OverflowNote { row: 2, fate: OverflowAction::Dropped, reason: "too \"long\"".into() });
        data.lengths = vec![9, 11, 2, 1];
        data.remarks.add_row([DataRemark::SameSides, DataRemark::LeftOut("name".into())].into());
        TokenisedRows { data, told: vec!["note: one".into(), "two".into()] }
    }

    #[test]
    fn rows_come_back_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let store = TokenStore::new(dir.path().join("tokens"));
        assert_eq!(store.get("k").unwrap(), None);
        store.put("k", &rows()).unwrap();
        assert_eq!(store.get("k").unwrap(), Some(rows()));
        assert_eq!(store.get("other").unwrap(), None);
        assert_eq!(fs::read_dir(dir.path().join("tokens")).unwrap().count(), 1);
    }

    #[test]
    fn every_damage_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let store = TokenStore::new(dir.path().into());
        store.put("k", &rows()).unwrap();
        let whole = fs::read(store.path("k")).unwrap();
        let told = |bytes: &[u8]| {
            fs::write(store.path("k"), bytes).unwrap();
            store.get("k").map_err(|error| error.to_string())
        };
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            let error = told(&bytes).expect_err("a flipped bit");
            assert!(error.contains("k.tokens: kept tokens are damaged ("), "{error}");
        }
        for length in (0..whole.len()).step_by(7) {
            assert!(told(&whole[..length]).is_err(), "{length}");
        }
        assert!(told(&[&whole[..], b"x"].concat()).is_err());
        assert_eq!(told(&whole), Ok(Some(rows())));
    }
}
