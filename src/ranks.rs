//! Ranks of a run: processes that a launcher of MPI started together, such as `mpirun` or `srun`. Everything that passes between them passes
//! through here. Without the feature `mpi` there is one rank, and every exchange is nothing.

mod background_sums;
#[cfg(not(target_arch = "wasm32"))]
mod launcher;
/// The calls of MPI: the only file that names the library.
#[cfg_attr(not(feature = "mpi"), path = "ranks/world_of_one.rs")]
mod world;

use std::ops::Range;
#[cfg(not(target_arch = "wasm32"))]
use std::time::Duration;

use half::bf16;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use self::background_sums::BackgroundSums;
use self::world::Sendable;
use crate::error::{Error, Result};

/// Largest number of values that one rank adds up at a time.
const SLICE: usize = 1 << 18;
/// Largest number of bytes of a value that are sent at a time, or received from all ranks.
const MOST_BYTES: usize = 64 << 20;

/// Time in which rank 0 may tell an error that all ranks have, and end them.
#[cfg(not(target_arch = "wasm32"))]
const PRECEDENCE: Duration = Duration::from_secs(4);

/// Time in which the launcher takes over an error's message: MPICH's loses what a rank wrote just before its end.
#[cfg(not(target_arch = "wasm32"))]
const FORWARDING: Duration = Duration::from_millis(500);

/// Data type in which ranks exchange gradients.
///
/// # Examples
/// ```
/// use jointwise::{Recipe, ReduceDtype};
/// let recipe = Recipe { reduce_dtype: ReduceDtype::Bf16, ..Recipe::default() };
/// # assert!(recipe.settings().is_ok());
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReduceDtype {
    /// f32, exact.
    #[default]
    F32,
    /// bf16: each rank's gradients, and their sums, are rounded to the nearest. Sums are computed in f32. Nothing makes up for what rounding loses.
    Bf16,
}

impl ReduceDtype {
    /// All choices.
    pub const ALL: [Self; 2] = [Self::F32, Self::Bf16];

    /// Returns the data type's name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// Tells whether gradients are exchanged as they are.
    pub fn is_f32(&self) -> bool {
        *self == Self::F32
    }

    /// Returns the number of bytes of a value.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => size_of::<f32>(),
            Self::Bf16 => size_of::<bf16>(),
        }
    }
}

/// Rank of this process among those of its run.
///
/// # Examples
/// ```
/// use jointwise::Ranks;
/// let ranks = Ranks::alone();
/// assert_eq!((ranks.rank(), ranks.n()), (0, 1));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ranks {
    rank: usize,
    n: usize,
}

impl Default for Ranks {
    fn default() -> Self {
        Self::alone()
    }
}

impl Ranks {
    /// Returns the single rank of a run in one process.
    pub const fn alone() -> Self {
        Self { rank: 0, n: 1 }
    }

    /// Joins the ranks that the launcher started. A process without a launcher is alone, and MPI is not started.
    ///
    /// # Errors
    /// [`Error::Ranks`] where the launcher started several processes, and the program is built without MPI, or MPI knows of one process only: each
    /// would do all of the work alone.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn start() -> Result<Self> {
        let Some(launched) = launcher::Launched::find(&|name| std::env::var(name).ok()) else {
            return Ok(Self::alone());
        };
        match world::start() {
            Some((rank, n)) if launched.may_be(n) => Ok(Self { rank, n }),
            found => Err(Error::Ranks(launched.refusal(found.is_some()))),
        }
    }

    /// Waits on every rank but the first, before an error is told that all ranks may have: MPI is not started yet, and rank 0's end ends the others.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn give_precedence() {
        if launcher::rank(&|name| std::env::var(name).ok()).is_some_and(|rank| rank > 0) {
            std::thread::sleep(PRECEDENCE);
        }
    }

    /// Refuses to do work in several processes that is not divided among ranks.
    ///
    /// # Errors
    /// [`Error::Ranks`] where a launcher of MPI started several processes.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn refuse_several(command: &str) -> Result<()> {
        match launcher::Launched::find(&|name| std::env::var(name).ok()).filter(launcher::Launched::is_by_mpi) {
            Some(launched) => Err(Error::Ranks(launched.not_divided(command))),
            None => Ok(()),
        }
    }

    /// Returns the number of this rank, from 0.
    pub fn rank(self) -> usize {
        self.rank
    }

    /// Returns the number of ranks.
    pub fn n(self) -> usize {
        self.n
    }

    /// Tells whether this is rank 0, which alone writes files and reports.
    pub fn is_first(self) -> bool {
        self.rank == 0
    }

    /// Tells whether there is more than one rank.
    pub fn are_several(self) -> bool {
        self.n > 1
    }

    /// Tells whether this rank computes a micro-batch, by the micro-batch's number in its step. Micro-batches are dealt out in turn.
    pub fn owns(self, micro_batch: usize) -> bool {
        micro_batch % self.n == self.rank
    }

    /// Returns the positions, among `n` parts, of those that this rank does: neighbours, and one part more or less than another rank.
    pub fn block(self, n: usize) -> Range<usize> {
        self.rank * n / self.n..(self.rank + 1) * n / self.n
    }

    /// Deals out parts by their costs: each, the costliest first, to the rank with the least to do so far. Returns the positions of each rank's parts, in order.
    /// Parts of equal cost are dealt out in turn.
    pub fn deal(self, costs: &[u64]) -> Vec<Vec<usize>> {
        let mut parts: Vec<usize> = (0..costs.len()).collect();
        parts.sort_by_key(|&part| std::cmp::Reverse(costs[part]));
        let mut dealt: Vec<(u64, Vec<usize>)> = vec![(0, Vec::new()); self.n];
        for part in parts {
            if let Some((cost, own)) = dealt.iter_mut().min_by_key(|(cost, own)| (*cost, own.len())) {
                *cost += costs[part];
                own.push(part);
            }
        }
        let in_order = |(_, mut own): (u64, Vec<usize>)| {
            own.sort_unstable();
            own
        };
        dealt.into_iter().map(in_order).collect()
    }

    /// Returns the name of the machine that this rank runs on; an empty name for a single rank.
    pub fn host(self) -> String {
        if self.are_several() { world::host() } else { String::new() }
    }

    /// Returns the number of this rank among those of its machine: the launcher's, or counted from the names of machines of all ranks.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn local_rank(self, hosts: &[String]) -> usize {
        let same = |host: &&String| hosts.get(self.rank) == Some(*host);
        let counted = || hosts.iter().take(self.rank).filter(same).count();
        launcher::local_rank(&|name| std::env::var(name).ok()).unwrap_or_else(counted)
    }

    /// Replaces `values` by their sums over all ranks, which have equally many. The values of rank 0 come first in each sum, then those of rank 1, and so
    /// on, so that equal inputs give equal bits, on every rank.
    pub fn all_sum_in_rank_order(self, values: &mut [f32], dtype: ReduceDtype) {
        if !self.are_several() {
            return;
        }
        for chunk in values.chunks_mut(SLICE * self.n) {
            match dtype {
                ReduceDtype::F32 => self.sum_chunk(chunk, |value| value, |value| value),
                ReduceDtype::Bf16 => {
                    self.sum_chunk(chunk, |v| bf16::from_f32(v).to_bits(), |v| bf16::from_bits(v).to_f32())
                }
            }
        }
    }

    /// Sums a chunk: each rank adds up one slice of it, and then has the sums of the other slices from the other ranks.
    fn sum_chunk<T: Sendable + Copy + Default>(self, chunk: &mut [f32], pack: fn(f32) -> T, unpack: fn(T) -> f32) {
        let slice = chunk.len().div_ceil(self.n);
        let mut all: Vec<T> = chunk.iter().map(|&value| pack(value)).collect();
        all.resize(slice * self.n, T::default());
        let mut of_ranks = vec![T::default(); all.len()];
        world::all_to_all(&all, &mut of_ranks);
        let of_ranks: Vec<f32> = of_ranks.into_iter().map(unpack).collect();
        let sums: Vec<T> = add_in_order(&of_ranks, slice).into_iter().map(pack).collect();
        world::all_gather(&sums, &mut all);
        chunk.iter_mut().zip(all).for_each(|(value, sum)| *value = unpack(sum));
    }

    /// Returns the number of bytes that each rank sends to add up `n` values.
    pub fn sum_bytes(self, n: usize, dtype: ReduceDtype) -> u64 {
        let others = self.n.saturating_sub(1) as u64;
        2 * others * (n.div_ceil(self.n) * dtype.bytes()) as u64
    }

    /// Returns the values of all ranks, in order.
    ///
    /// # Errors
    /// [`Error::Ranks`] where a value cannot be read, because another program runs on a rank.
    pub fn gather<T: Serialize + DeserializeOwned>(self, value: T) -> Result<Vec<T>> {
        if !self.are_several() {
            return Ok(vec![value]);
        }
        let own = serde_json::to_vec(&value).map_err(unreadable)?;
        let mut lens = vec![0_u64; self.n];
        world::all_gather(&[own.len() as u64], &mut lens);
        let longest = lens.iter().max().map_or(0, |&n| n as usize);
        let mut padded = own;
        padded.resize(longest, 0);
        let mut of_ranks = vec![Vec::with_capacity(longest); self.n];
        for piece in padded.chunks(MOST_BYTES / self.n) {
            let mut all = vec![0_u8; piece.len() * self.n];
            world::all_gather(piece, &mut all);
            of_ranks
                .iter_mut()
                .zip(all.chunks(piece.len()))
                .for_each(|(of_rank, part)| of_rank.extend_from_slice(part));
        }
        let parse = |(bytes, &len): (&Vec<u8>, &u64)| serde_json::from_slice(&bytes[..len as usize]);
        of_ranks.iter().zip(&lens).map(parse).collect::<Result<_, _>>().map_err(unreadable)
    }

    /// Returns rank 0's value on every rank.
    ///
    /// # Errors
    /// Those of [`Self::gather`].
    pub fn broadcast<T: Serialize + DeserializeOwned>(self, value: T) -> Result<T> {
        if !self.are_several() {
            return Ok(value);
        }
        let mut bytes = serde_json::to_vec(&value).map_err(unreadable)?;
        let mut len = (bytes.len() as u64).to_le_bytes();
        world::broadcast(&mut len);
        bytes.resize(u64::from_le_bytes(len) as usize, 0);
        self.broadcast_bytes(&mut bytes);
        serde_json::from_slice(&bytes).map_err(unreadable)
    }

    /// Replaces bytes by rank 0's, which are equally many.
    pub fn broadcast_bytes(self, bytes: &mut [u8]) {
        if self.are_several() {
            bytes.chunks_mut(MOST_BYTES).for_each(world::broadcast);
        }
    }

    /// Tells whether any rank says yes.
    pub fn any(self, yes: bool) -> bool {
        if !self.are_several() {
            return yes;
        }
        let mut all = vec![0_u64; self.n];
        world::all_gather(&[u64::from(yes)], &mut all);
        all.iter().any(|&yes| yes != 0)
    }

    /// Waits until all ranks are here.
    pub fn barrier(self) {
        if self.are_several() {
            world::barrier();
        }
    }

    /// Waits, with hardly any load on the processor, until all ranks are here. Tells whether any rank says yes.
    pub fn meet(self, yes: bool) -> bool {
        if self.are_several() {
            world::wait();
        }
        self.any(yes)
    }

    /// Logs an error of this rank, and ends the processes of all ranks with its exit status. A single rank returns the status.
    pub fn fail(self, error: &Error) -> i32 {
        let status = error.exit_status();
        if self.are_several() {
            // An error of all ranks is rank 0's to tell, which ends the others meanwhile.
            #[cfg(not(target_arch = "wasm32"))]
            if !self.is_first() {
                std::thread::sleep(PRECEDENCE);
                log::set_max_level(log::LevelFilter::Info);
            }
            note!("error: rank {}: {error}", self.rank);
            #[cfg(not(target_arch = "wasm32"))]
            std::thread::sleep(FORWARDING);
            world::abort(status);
        } else {
            note!("error: {error}");
        }
        status
    }

    /// Leaves the ranks at the end of the program, after all ranks have come here. Every rank must do so; the launcher takes an end without it for a failure.
    pub fn finish(self) {
        self.meet(false);
        world::finish();
    }
}

/// Adds up the slices of all ranks, in order.
fn add_in_order(of_ranks: &[f32], slice: usize) -> Vec<f32> {
    let (first, others) = of_ranks.split_at(slice);
    let mut sums = first.to_vec();
    for values in others.chunks(slice) {
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    }
    sums
}

fn unreadable(error: serde_json::Error) -> Error {
    Error::Ranks(format!("ranks do not understand each other: {error}; every rank must run the same program"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn micro_batches_are_dealt_out_in_turn() {
        let of = |rank| (0..7).filter(|&k| Ranks { rank, n: 3 }.owns(k)).collect::<Vec<_>>();
        assert_eq!([of(0), of(1), of(2)], [vec![0, 3, 6], vec![1, 4], vec![2, 5]]);
        assert!((0..7).all(|k| Ranks::alone().owns(k)));
    }

    #[test]
    fn every_part_is_one_ranks() {
        for n_ranks in 1..5 {
            let ranks: Vec<Ranks> = (0..n_ranks).map(|rank| Ranks { rank, n: n_ranks }).collect();
            for n in 0..12 {
                let parts: Vec<usize> = ranks.iter().flat_map(|rank| rank.block(n)).collect();
                assert_eq!(parts, (0..n).collect::<Vec<_>>());
                assert!(ranks.iter().all(|rank| rank.block(n).len().abs_diff(n / n_ranks) <= 1));
            }
        }
        let deal = |costs: &[u64]| Ranks { rank: 0, n: 2 }.deal(costs);
        assert_eq!(deal(&[5; 5]), [vec![0, 2, 4], vec![1, 3]], "in turn");
        // Half of the data, then all of it, for each of two methods: no rank gets all the long ones.
        assert_eq!(deal(&[5, 10, 5, 10]), [vec![0, 1], vec![2, 3]]);
        assert_eq!(deal(&[1, 1, 1, 9]), [vec![3], vec![0, 1, 2]]);
        assert_eq!(Ranks::alone().deal(&[1, 2]), [vec![0, 1]]);
    }

    #[test]
    fn sums_have_the_order_of_ranks() {
        // (1e8 + 1) − 1e8 is 0 in f32, and 1e8 − 1e8 + 1 is 1.
        assert_eq!(add_in_order(&[1e8, 1e8, 1.0, -1e8, -1e8, 1.0], 2), [0.0, 1.0]);
    }
}
