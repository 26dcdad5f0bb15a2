//! Similarity of instructions, for RPO (arXiv 2402.10958). RPO uses a sentence encoder; this program uses the model's own input embeddings
//! instead. An instruction's prompt embedding is the mean of its tokens' input embeddings (template included), less the mean over all
//! instructions of the data, scaled to length 1. Without that subtraction, all embeddings would nearly coincide: instructions share the
//! template, and embeddings of language models lie in a cone (arXiv 1909.00512). With it, unlike instructions have cosines around 0, and
//! identical ones 1, as with RPO's encoder. Input embeddings cost a look-up; hidden states would cost a forward pass, and lie in a narrower
//! cone.

use std::collections::BTreeMap;

use crate::data::batch::{Example, Sequence};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::kernels::attention::SegmentTable;
use crate::kernels::packed_batch::PackedBatch;
use crate::model::decoder::{Decoder, TokenSlots};

/// Returns the mean embedding (D) over all instructions of the data, without keeping the single embeddings.
///
/// # Errors
/// [`crate::Error::Gpu`].
pub async fn mean_instruction(
    gpu: &Gpu,
    decoder: &Decoder,
    examples: &[Example],
    max_tokens: usize,
) -> Result<Vec<f64>> {
    let examples: Vec<&Example> = examples.iter().collect();
    let n = examples.iter().map(|e| e.sequences.len()).sum::<usize>() as f64;
    let mut mean = vec![0.0; decoder.description.d_model];
    embedded(gpu, decoder, &examples, max_tokens, &mut |vector| {
        mean.iter_mut().zip(vector).for_each(|(m, x)| *m += x / n);
    })
    .await?;
    Ok(mean)
}

/// Computes the prompt embeddings (D), of length 1, of the instructions of each example's sequences. An instruction equal to the mean of
/// all has an embedding of zeros, because it has no direction.
///
/// # Errors
/// [`crate::Error::Gpu`].
pub async fn prompt_embeddings(
    gpu: &Gpu,
    decoder: &Decoder,
    examples: &[&Example],
    mean: &[f64],
    max_tokens: usize,
) -> Result<Vec<[Vec<f32>; 2]>> {
    let mut found = Vec::new();
    embedded(gpu, decoder, examples, max_tokens, &mut |vector| found.push(direction(vector, mean))).await?;
    let mut rest = found.into_iter();
    let two =
        |e: &&Example| [0, 1].map(|side| if side < e.sequences.len() { rest.next() } else { None }.unwrap_or_default());
    Ok(examples.iter().map(two).collect())
}

/// Number of examples whose tokens are looked up together.
const TOGETHER: usize = 1024;

/// Passes the mean embedding (D) of each instruction's tokens to `each`, in order. Each distinct token of a group of examples is looked up
/// once.
async fn embedded(
    gpu: &Gpu,
    decoder: &Decoder,
    examples: &[&Example],
    max_tokens: usize,
    each: &mut dyn FnMut(&[f64]),
) -> Result<()> {
    let width = decoder.description.d_model;
    let has_positions = decoder.position_embedding.is_some();
    let instruction = |s: &Sequence| {
        let ids = s.ids[..s.response_start.max(1).min(s.ids.len())].iter().zip(0..);
        ids.map(|(&id, position)| (id, if has_positions { position } else { 0 })).collect::<Vec<PromptPlace>>()
    };
    for some in examples.chunks(TOGETHER) {
        let instructions: Vec<Vec<PromptPlace>> = some.iter().flat_map(|e| &e.sequences).map(instruction).collect();
        let mut rows: BTreeMap<PromptPlace, usize> = instructions.iter().flatten().map(|&place| (place, 0)).collect();
        rows.values_mut().enumerate().for_each(|(row, at)| *at = row);
        let table = look_up(gpu, decoder, &rows.keys().copied().collect::<Vec<_>>(), max_tokens).await?;
        let mut before: Option<(&[PromptPlace], Vec<f64>)> = None;
        for places in &instructions {
            // The sides of a pair often share their instruction.
            let known = before.take().filter(|(same, _)| same == places);
            let mean = known.map_or_else(
                || {
                    let (mut mean, n) = (vec![0.0; width], places.len() as f64);
                    for place in places {
                        let values = &table[rows[place] * width..][..width];
                        mean.iter_mut().zip(values).for_each(|(m, &x)| *m += f64::from(x) / n);
                    }
                    mean
                },
                |(_, mean)| mean,
            );
            each(&mean);
            before = Some((places, mean));
        }
    }
    Ok(())
}

/// Token id and position; the position is 0 where positions are not learned.
type PromptPlace = (u32, u32);

/// Looks up the embeddings (n, D) of tokens at their positions.
async fn look_up(gpu: &Gpu, decoder: &Decoder, places: &[PromptPlace], max_tokens: usize) -> Result<Vec<f32>> {
    let (d, mut table) = (&decoder.description, Vec::new());
    for some in places.chunks(max_tokens.max(1)) {
        let (ids, positions): (Vec<u32>, Vec<u32>) = some.iter().copied().unzip();
        let row = Example { row: 0, sequences: vec![Sequence::new(ids.clone(), 1)], desirable: None };
        let segments = SegmentTable::of_batch(gpu, &PackedBatch::pack(&[&row], false), &d.windowed_heads());
        let mut rec = gpu.record();
        decoder.put_trained_tokens(&mut rec, true);
        let embedded =
            decoder.embed(&mut rec, &TokenSlots::new(gpu, d, &ids, &positions, &vec![1; ids.len()], segments, None));
        rec.submit();
        table.extend(gpu.read::<f32>(&[&embedded]).await?.concat());
    }
    Ok(table)
}

/// Smallest length of a difference, relative to the vector's length. A smaller difference is a rounding error.
const NOTHING: f64 = 1e-9;

/// Returns a vector less the mean, scaled to length 1; zeros where the difference is a rounding error.
fn direction(vector: &[f64], mean: &[f64]) -> Vec<f32> {
    let length = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    let away: Vec<f64> = vector.iter().zip(mean).map(|(x, m)| x - m).collect();
    let scale = if length(&away) > NOTHING * length(vector) { 1.0 / length(&away) } else { 0.0 };
    away.iter().map(|x| (x * scale) as f32).collect()
}

/// Returns the cosines (rows, columns) of prompt embeddings; 1 where either is zero.
pub fn cosines(rows: &[&[f32]], columns: &[&[f32]]) -> Vec<f64> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let cosine = |a: &[f32], b: &[f32]| {
        let lengths = (dot(a, a) * dot(b, b)).sqrt();
        if lengths > 0.0 { dot(a, b) / lengths } else { 1.0 }
    };
    rows.iter().flat_map(|row| columns.iter().map(|column| cosine(row, column))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_one_whatever_all_have_in_common() {
        let vectors = [[10.0, 1.0], [10.0, 0.0], [10.0, 1.0], [10.0, 0.0]];
        let directions: Vec<_> = vectors.iter().map(|v| direction(v, &[10.0, 0.5])).collect();
        let all: Vec<&[f32]> = directions.iter().map(Vec::as_slice).collect();
        let cosines = cosines(&all[..2], &all[2..]);
        assert!(cosines.iter().zip([1.0, -1.0, -1.0, 1.0]).all(|(a, b)| (a - b).abs() < 1e-7), "{cosines:?}");
    }

    #[test]
    fn one_instruction_has_no_direction_and_is_itself() {
        let mean: Vec<f64> = [0.1, 0.7, -0.3].map(|x| x / 3.0 + x / 3.0 + x / 3.0).into();
        let none = direction(&[0.1, 0.7, -0.3], &mean);
        assert!(none.iter().all(|x| *x == 0.0), "{none:?}");
        assert_eq!(cosines(&[&none], &[&none, &[]]), [1.0, 1.0]);
    }
}
