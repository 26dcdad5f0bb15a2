//! Parameters and moments, which are the same on every rank.

use std::io::sink;
use std::path::Path;

use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::model::weights::WeightArena;
use crate::ranks::Ranks;
use crate::train::checksum::HashedWriter;
use crate::train::state::{encode, read_groups, slots};

/// Replaces the parameters and moments of every rank by rank 0's.
///
/// # Errors
/// [`Error::Gpu`].
pub async fn send_state(gpu: &Gpu, arena: &WeightArena, ranks: Ranks) -> Result<()> {
    if !ranks.are_several() {
        return Ok(());
    }
    for group in read_groups(&slots(arena)) {
        let read = if ranks.is_first() { Some(gpu.read::<u32>(group).await?) } else { None };
        for (i, slot) in group.iter().enumerate() {
            let mut words = read.as_ref().map_or_else(|| vec![0; slot.len()], |read| read[i].clone());
            ranks.broadcast_bytes(bytemuck::cast_slice_mut(&mut words));
            if !ranks.is_first() {
                gpu.write(slot, &words);
            }
        }
    }
    Ok(())
}

/// Checks that all ranks have the same parameters and moments, by checksums.
///
/// # Errors
/// [`Error::RanksDiffer`] naming the ranks that have others than rank 0; [`Error::Gpu`].
pub async fn check_same_state(gpu: &Gpu, arena: &WeightArena, step: usize, ranks: Ranks) -> Result<()> {
    if !ranks.are_several() {
        return Ok(());
    }
    let mut hashed = HashedWriter::new(sink());
    encode(gpu, arena, Path::new("training state"), &mut hashed).await?;
    let all = ranks.gather(hashed.finish().1.to_string())?;
    match others(&all) {
        None => Ok(()),
        Some(others) => {
            let reason = format!(
                "rank {others} has other parameters or moments than rank 0, so the ranks would train different models: a device, or memory, computes wrongly; --resume goes on from the last checkpoint"
            );
            Err(Error::RanksDiffer { step, reason })
        }
    }
}

/// Lists the ranks whose checksum is not rank 0's; `None` where all are the same.
fn others(checksums: &[String]) -> Option<String> {
    let differs = |rank: &usize| checksums[*rank] != checksums[0];
    let all: Vec<String> = (0..checksums.len()).filter(differs).map(|rank| rank.to_string()).collect();
    (!all.is_empty()).then(|| all.join(", "))
}

#[cfg(test)]
mod tests {
    use super::others;

    #[test]
    fn ranks_with_another_state_are_named() {
        let of = |sums: &[&str]| others(&sums.iter().map(|sum| sum.to_string()).collect::<Vec<_>>());
        assert_eq!(of(&["a"]), None);
        assert_eq!(of(&["a", "a", "a"]), None);
        assert_eq!(of(&["a", "b", "a", "c"]).as_deref(), Some("1, 3"));
    }
}
