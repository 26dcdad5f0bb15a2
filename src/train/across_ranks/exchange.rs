//! Sums of gradients over all ranks, exchanged while the backward pass of the last micro-batch still runs.

use std::collections::VecDeque;
use std::time::Duration;

use web_time::Instant;

use crate::error::{Error, Result};
use crate::gpu::{Gpu, PendingRead, Slot};
use crate::model::decoder::Decoder;
use crate::ranks::{BackgroundSums, Ranks, ReduceDtype};

/// Largest number of reads from the device that have been begun and not taken. More would hold the host's memory, and gain nothing.
const MOST_READS: usize = 8;

/// Cost of a step's exchange of gradients.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ExchangeCost {
    /// Bytes of gradients that this rank sent.
    pub bytes: u64,
    /// Seconds in which this rank exchanged and added up gradients.
    pub seconds: f64,
    /// Seconds of them that the step waited for, after the device had computed its gradients.
    pub waited: f64,
    /// Seconds from the submission of the last micro-batch until the device had computed its gradients.
    pub computed: f64,
}

/// Smallest ratio of two ranks' times to compute gradients that is worth a note.
const NOTABLE: f64 = 1.5;

/// Says which rank takes longest to compute its gradients, by the seconds of each rank; `None` where all take about as long.
pub fn slowest_rank(seconds: &[f64]) -> Option<String> {
    let by_time = |a: &(usize, &f64), b: &(usize, &f64)| a.1.total_cmp(b.1);
    let (slowest, most) = seconds.iter().enumerate().max_by(by_time)?;
    let (fastest, least) = seconds.iter().enumerate().min_by(by_time)?;
    (*most > NOTABLE * least).then(|| {
        format!(
            "rank {slowest} is the slowest: it computes the gradients of its last micro-batch in {most:.2} s, rank {fastest} in {least:.2} s, and waits"
        )
    })
}

/// Divides the gradients into sections of at most [`Gpu::MOST_IN_FLIGHT`] values, in the order in which a backward pass completes them: the layers from
/// the last to the first, then the embeddings. The order is the same on every rank.
pub fn sections(decoder: &Decoder) -> Vec<Vec<Slot>> {
    let mut weights = decoder.trained_weights();
    assert_eq!(weights.len(), decoder.arena.tensors.len(), "a trained tensor would not be exchanged");
    weights.sort_by_key(|weight| completion(&weight.spec.name));
    let gradients = weights.iter().flat_map(|weight| &weight.parts).filter_map(|part| part.d_w.as_ref());
    divide(gradients, Gpu::MOST_IN_FLIGHT)
}

/// Place of a tensor in a backward pass: the head and the last norm, the layers from the last to the first, the embeddings.
fn completion(name: &str) -> (u8, std::cmp::Reverse<usize>) {
    let parts: Vec<&str> = name.split('.').collect();
    let layer = parts.windows(2).find_map(|pair| {
        let is_list = matches!(pair[0], "layers" | "h" | "blocks");
        pair[1].parse().ok().filter(|_: &usize| is_list)
    });
    // Gemma 4's inputs of all layers, too, come from the embeddings.
    let embeds = ["embed", "wte", "wpe", "per_layer_"].iter().any(|part| name.contains(part));
    let group = match layer {
        Some(_) => 1,
        None if embeds => 2,
        None => 0,
    };
    (group, std::cmp::Reverse(layer.unwrap_or(0)))
}

/// Divides slots into sections of at most `most` values; a longer slot is divided.
fn divide<'s>(slots: impl Iterator<Item = &'s Slot>, most: usize) -> Vec<Vec<Slot>> {
    let mut all: Vec<Vec<Slot>> = Vec::new();
    let mut room = 0;
    for slot in slots {
        let mut at = 0;
        while at < slot.len() {
            if room == 0 {
                all.push(Vec::new());
                room = most;
            }
            let n = room.min(slot.len() - at);
            all.last_mut().into_iter().for_each(|section| section.push(slot.slice_unaligned(at, n)));
            at += n;
            room -= n;
        }
    }
    all
}

/// Exchange of a step's gradients that is under way. The device's work is submitted meanwhile, and nothing else of [`Ranks`] is called.
pub struct GradientExchange<'g> {
    gpu: &'g Gpu,
    sections: Vec<Vec<Slot>>,
    ranks: Ranks,
    dtype: ReduceDtype,
    sums: BackgroundSums,
    reads: VecDeque<PendingRead>,
    /// Numbers of sections whose reads were begun, whose values were sent, and whose sums are back on the device.
    begun: usize,
    sent: usize,
    written: usize,
    /// Times at which the exchange began, and at which the last of this rank's gradients were read.
    began: Instant,
    read: Instant,
    is_finite: bool,
    failed: Option<Error>,
}

impl<'g> GradientExchange<'g> {
    /// Begins the exchange of the gradients in `sections`.
    pub fn begin(gpu: &'g Gpu, sections: Vec<Vec<Slot>>, ranks: Ranks, dtype: ReduceDtype) -> Self {
        Self {
            gpu,
            sections,
            ranks,
            dtype,
            sums: ranks.begin_sums(dtype),
            reads: VecDeque::new(),
            begun: 0,
            sent: 0,
            written: 0,
            began: Instant::now(),
            read: Instant::now(),
            is_finite: true,
            failed: None,
        }
    }

    /// Begins to exchange the next section, which nothing that is submitted later changes. Sections that have arrived are passed on.
    pub fn next_is_final(&mut self) {
        if let Err(error) = self.begin_read().and_then(|()| self.pass_on(MOST_READS)) {
            self.failed.get_or_insert(error);
        }
    }

    fn begin_read(&mut self) -> Result<()> {
        if self.failed.is_none() && self.is_finite {
            self.reads.push_back(self.gpu.begin_read(&self.sections[self.begun])?);
            self.begun += 1;
        }
        Ok(())
    }

    /// Sends the sections that have arrived, and writes the sums that are done. Waits until at most `most` reads are left.
    fn pass_on(&mut self, most: usize) -> Result<()> {
        while self.is_finite
            && let Some(read) = self.reads.pop_front_if(|read| read.has_arrived() || self.begun - self.sent > most)
        {
            let values = self.gpu.finish_read::<f32>(read)?;
            self.read = Instant::now();
            self.is_finite = values.iter().all(|value| value.is_finite());
            if self.is_finite {
                self.sums.add(values);
                self.sent += 1;
            }
        }
        while let Some(sums) = self.sums.try_next() {
            self.write(&sums);
        }
        Ok(())
    }

    fn write(&mut self, sums: &[f32]) {
        let mut rest = sums;
        for slot in &self.sections[self.written] {
            let (values, more) = rest.split_at(slot.len());
            self.gpu.write(slot, values);
            rest = more;
        }
        self.written += 1;
    }

    /// Completes the exchange, so that the device has the sums. Returns what it cost; `None`, without an exchange of the rest, where a gradient of this
    /// rank is not finite.
    ///
    /// # Errors
    /// [`Error::Gpu`]; [`Error::DeviceLost`].
    pub fn finish(mut self) -> Result<Option<ExchangeCost>> {
        while self.begun < self.sections.len() && self.is_finite && self.failed.is_none() {
            self.next_is_final();
        }
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.pass_on(0)?;
        if !self.is_finite {
            return Ok(None);
        }
        while self.written < self.sections.len() {
            let Some(sums) = self.sums.wait_next() else {
                return Err(Error::Gpu("the sum of gradients ended early".into()));
            };
            self.write(&sums);
        }
        let n = |section: &Vec<Slot>| section.iter().map(Slot::len).sum();
        let bytes = self.sections.iter().map(|section| self.ranks.sum_bytes(n(section), self.dtype)).sum();
        let seconds: Duration = self.sums.end();
        Ok(Some(ExchangeCost {
            bytes,
            seconds: seconds.as_secs_f64(),
            waited: self.read.elapsed().as_secs_f64(),
            computed: self.read.duration_since(self.began).as_secs_f64(),
        }))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::gpu::{Caps, Role};

    #[test]
    fn a_backward_pass_completes_the_last_layer_first() {
        let mut names = [
            "model.embed_tokens.weight",
            "model.layers.0.mlp.up_proj.weight",
            "model.layers.2.mlp.up_proj.weight",
            "model.layers.10.mlp.up_proj.weight",
            "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight",
            "model.norm.weight",
            "lm_head.weight",
            "transformer.h.3.attn.c_attn.weight",
            "transformer.wte.weight",
            "model.language_model.per_layer_model_projection.weight",
        ];
        names.sort_by_key(|name| completion(name));
        assert_eq!(names[..2], ["model.norm.weight", "lm_head.weight"]);
        assert_eq!(names[2..7].iter().map(|name| completion(name).1.0).collect::<Vec<_>>(), [10, 3, 2, 1, 0]);
        assert_eq!(names[7..9], ["model.embed_tokens.weight", "transformer.wte.weight"]);
    }

    #[test]
    fn a_slow_rank_is_named() {
        assert_eq!(slowest_rank(&[1.0, 1.4, 1.2]), None);
        let said = slowest_rank(&[0.5, 2.0, 1.0]).unwrap();
        assert!(said.starts_with("rank 1 is the slowest") && said.contains("2.00 s, rank 0 in 0.50 s"), "{said}");
        assert_eq!(slowest_rank(&[]), None);
    }

    /// A single rank's sums are its own values.
    #[test]
    fn sums_come_back_to_their_places() {
        let gpu = pollster::block_on(Gpu::open(&crate::gpu::DeviceChoice::Best)).unwrap();
        let page = gpu.alloc_persistent(Role::Grads, 1000);
        let values: Vec<f32> = (0..1000).map(|i| i as f32).collect();
        gpu.write(&page, &values);
        let parts = [page.slice_unaligned(3, 500), page.slice_unaligned(600, 300)];
        let begin = || GradientExchange::begin(&gpu, divide(parts.iter(), 70), Ranks::alone(), ReduceDtype::F32);
        let mut exchange = begin();
        (0..5).for_each(|_| exchange.next_is_final());
        assert_eq!(exchange.finish().unwrap().unwrap().bytes, 0);
        let read = || pollster::block_on(gpu.read::<f32>(&[&page])).unwrap().concat();
        assert_eq!(read(), values);
        // Other sums go to the parts alone, in their order.
        let mut exchange = begin();
        let sections = exchange.sections.iter().map(|section| section.iter().map(Slot::len).sum::<usize>());
        let mut next = 2000..;
        for n in sections.collect::<Vec<_>>() {
            exchange.write(&next.by_ref().take(n).map(|i| i as f32).collect::<Vec<f32>>());
        }
        let mut expected = values.clone();
        let places = (3..503).chain(600..900);
        places.zip(2000..).for_each(|(place, sum)| expected[place] = sum as f32);
        assert_eq!(read(), expected);
        gpu.write(&page.slice_unaligned(899, 1), &[f32::NAN]);
        assert_eq!(begin().finish().unwrap(), None);
        // Behind the parts, nothing is looked at.
        gpu.write(&page.slice_unaligned(899, 2), &[899.0, f32::NAN]);
        assert!(begin().finish().unwrap().is_some());
    }

    #[test]
    fn sections_have_every_value_once() {
        let gpu = Gpu::plan(Caps::baseline());
        let slots = [30, 70, 250, 1].map(|len| gpu.alloc_persistent(Role::Grads, len));
        let lens: Vec<Vec<usize>> =
            divide(slots.iter(), 100).iter().map(|section| section.iter().map(Slot::len).collect()).collect();
        assert_eq!(lens, [vec![30, 70], vec![100], vec![100], vec![50, 1]]);
        assert!(divide([].iter(), 100).is_empty());
    }
}
