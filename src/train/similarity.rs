//! How alike instructions are, for RPO (arXiv 2402.10958), which takes a sentence encoder's word for it. Here the model itself is asked: an
//! instruction's direction is the mean of its tokens' input embeddings (template included), less the mean over all instructions of the data,
//! at length 1. Without that subtraction all would point nearly the same way: they share the template, and embeddings of language models lie in
//! a cone (arXiv 1909.00512). So unlike instructions have cosines around 0, and the same ones 1, as RPO's encoder has it. Input embeddings cost
//! a look-up; hidden states would cost a forward pass, and lie in the narrower cone.

use super::trainer::by_tokens;
use crate::data::batch::{Batch, Example, Sequence};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::kernels::attention::Segments;
use crate::model::decoder::{Decoder, Tokens};

/// Returns the mean (D) over all instructions of the data, of which nothing else is held.
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

/// Directions (D) of the instructions of each example's sequences, of length 1; of length 0 where it is `mean`, that of all the data, which has none.
///
/// # Errors
/// [`crate::Error::Gpu`].
pub async fn directions(
    gpu: &Gpu,
    decoder: &Decoder,
    examples: &[&Example],
    mean: &[f64],
    max_tokens: usize,
) -> Result<Vec<[Vec<f32>; 2]>> {
    let mut directions = Vec::new();
    embedded(gpu, decoder, examples, max_tokens, &mut |vector| directions.push(direction(&vector, mean))).await?;
    let mut rest = directions.into_iter();
    let two =
        |e: &&Example| [0, 1].map(|side| if side < e.sequences.len() { rest.next() } else { None }.unwrap_or_default());
    Ok(examples.iter().map(two).collect())
}

/// Keeps of an example the tokens before its responses: one at least.
fn instructions(example: &Example) -> Example {
    let instruction = |s: &Sequence| {
        let n = s.response_start.max(1).min(s.ids.len());
        Sequence::new(s.ids[..n].to_vec(), n)
    };
    Example { sequences: example.sequences.iter().map(instruction).collect(), ..*example }
}

/// Gives the mean (D) of the embeddings of each instruction, in order.
async fn embedded(
    gpu: &Gpu,
    decoder: &Decoder,
    examples: &[&Example],
    max_tokens: usize,
    each: &mut dyn FnMut(Vec<f64>),
) -> Result<()> {
    let d = &decoder.description;
    let examples: Vec<Example> = examples.iter().map(|e| instructions(e)).collect();
    for group in by_tokens(&examples.iter().collect::<Vec<_>>(), false, max_tokens) {
        let batch = Batch::pack(&group, false);
        let segments = Segments::of_batch(gpu, &batch, d.head_dim, &d.windows());
        let tokens = Tokens::new(gpu, d, &batch.ids, &batch.positions, segments);
        let mut rec = gpu.record();
        let embedded = decoder.embed(&mut rec, &tokens);
        rec.submit();
        let values = gpu.read::<f32>(&[&embedded]).await?.concat(); // (T, D)
        let mut first = 0;
        for sequence in group.iter().flat_map(|e| &e.sequences) {
            let n = sequence.ids.len();
            let mut mean = vec![0.0; d.d_model];
            for token in values[first * d.d_model..].chunks(d.d_model).take(n) {
                mean.iter_mut().zip(token).for_each(|(m, &x)| *m += f64::from(x) / n as f64);
            }
            each(mean);
            first += n;
        }
    }
    Ok(())
}

/// Below this part of a vector's length, what is left of it is rounding.
const NOTHING: f64 = 1e-9;

/// Returns a vector less the mean of all, at length 1 or 0.
fn direction(vector: &[f64], mean: &[f64]) -> Vec<f32> {
    let length = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    let away: Vec<f64> = vector.iter().zip(mean).map(|(x, m)| x - m).collect();
    let scale = if length(&away) > NOTHING * length(vector) { 1.0 / length(&away) } else { 0.0 };
    away.iter().map(|x| (x * scale) as f32).collect()
}

/// Cosines (rows, columns) of directions; 1 where either has no direction.
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
