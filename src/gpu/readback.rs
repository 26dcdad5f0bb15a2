//! Reading of slots back to the host, through staging buffers.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use super::Gpu;
use super::failure::refused;
use super::memory::Slot;
use super::open_device::{OpenDevice, SubmittedWork};
use crate::error::{Error, Result};

/// Largest size of a staging buffer, in bytes.
const STAGING_BYTES: u64 = 4 << 20;

impl Gpu {
    /// Largest number of values that one [`Gpu::begin_read`] reads.
    pub const MOST_IN_FLIGHT: usize = STAGING_BYTES as usize / 8;

    /// Reads slots back, after everything submitted so far. Plans return zeros. A read larger than a binding, or than `STAGING_BYTES`,
    /// passes through a staging buffer in parts, because devices limit the size of buffers (DX12 to 2 GiB), and an array may consist of
    /// several slots of that size.
    ///
    /// # Errors
    /// Fails like [`Gpu::check`]; [`Error::DeviceLost`] also where earlier submissions have vanished.
    pub async fn read<T: bytemuck::Pod>(&self, slots: &[&Slot]) -> Result<Vec<Vec<T>>> {
        let mut out: Vec<Vec<T>> = slots.iter().map(|s| vec![T::zeroed(); s.len()]).collect();
        let Some(live) = &self.live else { return Ok(out) };
        let lens: Vec<usize> = slots.iter().map(|s| s.len()).collect();
        let most = (STAGING_BYTES.min(self.caps.max_binding_bytes) / 4) as usize;
        for parts in staged(&lens, most) {
            self.read_parts(live, slots, &parts, &mut out).await?;
        }
        Ok(out)
    }

    /// Reads parts that together fit one staging buffer.
    async fn read_parts<T: bytemuck::Pod>(
        &self,
        live: &OpenDevice,
        slots: &[&Slot],
        parts: &[(usize, Range<usize>)],
        out: &mut [Vec<T>],
    ) -> Result<()> {
        let pieces: Vec<Slot> =
            parts.iter().map(|(i, range)| slots[*i].slice_unaligned(range.start, range.len())).collect();
        let read = self.begin_staged(live, &pieces)?;
        if live.wait(None) {
            self.uploads_have_ended();
        }
        self.check()?;
        if cfg!(not(target_arch = "wasm32")) && !read.mapped.has_arrived() {
            return Err(not_mapped());
        }
        read.mapped.clone().await.map_err(Error::Gpu)?;
        let mut at = 0;
        read.take(self, live, |bytes| {
            for (i, range) in parts {
                let to: &mut [u8] = bytemuck::cast_slice_mut(&mut out[*i][range.clone()]);
                to.copy_from_slice(&bytes[at..at + to.len()]);
                at += to.len();
            }
        })
    }

    /// Begins to read slots back, after everything submitted so far, without waiting: together they are at most [`Gpu::MOST_IN_FLIGHT`] values.
    /// Plans read zeros.
    ///
    /// # Errors
    /// Those of [`Gpu::check`].
    pub fn begin_read(&self, slots: &[Slot]) -> Result<PendingRead> {
        let n_values = slots.iter().map(Slot::len).sum();
        assert!(n_values <= Self::MOST_IN_FLIGHT, "{n_values} values in one read");
        let staged = self.live.as_ref().map(|live| self.begin_staged(live, slots)).transpose()?;
        Ok(PendingRead { n_values, staged })
    }

    /// Waits for a read, and returns its values, those of the first slot first. Not for browsers, where nothing can be waited for.
    ///
    /// # Errors
    /// Those of [`Gpu::read`].
    pub fn finish_read<T: bytemuck::Pod>(&self, read: PendingRead) -> Result<Vec<T>> {
        let mut values = vec![T::zeroed(); read.n_values];
        if let (Some(live), Some(staged)) = (&self.live, read.staged) {
            live.wait(staged.submitted.as_ref().map(|submitted| submitted.index.clone()));
            self.check()?;
            staged.mapped.result().ok_or_else(not_mapped)?.map_err(Error::Gpu)?;
            staged.take(self, live, |bytes| bytemuck::cast_slice_mut(&mut values).copy_from_slice(bytes))?;
        }
        Ok(values)
    }

    /// Copies slots to a new staging buffer, and asks for it to be mapped.
    fn begin_staged(&self, live: &OpenDevice, slots: &[Slot]) -> Result<StagedRead> {
        let words: usize = slots.iter().map(Slot::len).sum();
        // The device's count of submissions follows the slots.
        let size = 4 * (words as u64 + 1);
        let descriptor = wgpu::BufferDescriptor {
            label: Some("readback"),
            size,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        };
        let staging = live.create_buffer(&descriptor, || refused("a readback", size, self.ledger().total()));
        self.check()?;
        let mut encoder = live.device.create_command_encoder(&Default::default());
        let mut at = 0;
        for (raw, offset, size) in slots.iter().filter_map(Slot::binding) {
            encoder.copy_buffer_to_buffer(&raw, offset, &staging, at, size);
            at += size;
        }
        let submitted = live.submit(encoder, Some((&staging, at)), || "readback".into());
        self.check()?;
        let mapped = MapFuture::default();
        let signal = mapped.clone();
        staging.map_async(wgpu::MapMode::Read, .., move |result| signal.arrive(result.map_err(|e| e.to_string())));
        Ok(StagedRead { staging, words, submitted, mapped })
    }
}

fn not_mapped() -> Error {
    Error::Gpu("a readback was not mapped, although the device has done everything".into())
}

/// Read of slots that was begun ([`Gpu::begin_read`]).
pub struct PendingRead {
    n_values: usize,
    /// `None` where the device only counts.
    staged: Option<StagedRead>,
}

impl PendingRead {
    /// Tells whether the values have arrived, so that [`Gpu::finish_read`] does not wait.
    pub fn has_arrived(&self) -> bool {
        self.staged.as_ref().is_none_or(|staged| staged.mapped.has_arrived())
    }
}

/// Staging buffer that is being mapped.
struct StagedRead {
    staging: wgpu::Buffer,
    words: usize,
    submitted: Option<SubmittedWork>,
    mapped: MapFuture,
}

impl StagedRead {
    /// Passes on the bytes of a read that was mapped.
    fn take(self, gpu: &Gpu, live: &OpenDevice, pass: impl FnOnce(&[u8])) -> Result<()> {
        gpu.check()?;
        let view = self.staging.get_mapped_range(..).map_err(|e| Error::Gpu(e.to_string()))?;
        let (bytes, count) = view.split_at(4 * self.words);
        let mut counted = [0_u32];
        bytemuck::cast_slice_mut(&mut counted).copy_from_slice(count);
        if let Some(submitted) = self.submitted {
            live.compare_count(submitted.number, counted[0]);
        }
        gpu.check()?;
        pass(bytes);
        Ok(())
    }
}

/// Divides slots of `lens` elements into groups of parts (slot, range of elements), with at most `most` elements per group. Returns at
/// least one group.
fn staged(lens: &[usize], most: usize) -> Vec<Vec<(usize, Range<usize>)>> {
    let mut groups = vec![Vec::new()];
    let mut left = most;
    for (i, &len) in lens.iter().enumerate() {
        let mut start = 0;
        while start < len {
            if left == 0 {
                groups.push(Vec::new());
                left = most;
            }
            let end = len.min(start + left);
            if let Some(group) = groups.last_mut() {
                group.push((i, start..end));
            }
            left -= end - start;
            start = end;
        }
    }
    groups
}

/// Future of a callback's result: the browser resolves it later, native code during `poll`.
#[derive(Clone, Default)]
struct MapFuture(Arc<Mutex<MapState>>);

#[derive(Default)]
struct MapState {
    result: Option<Result<(), String>>,
    waker: Option<std::task::Waker>,
}

impl MapFuture {
    fn arrive(&self, result: Result<(), String>) {
        let mut state = self.0.lock().unwrap_or_else(|e| e.into_inner());
        state.result = Some(result);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    /// Takes the result, where it has arrived.
    fn result(&self) -> Option<Result<(), String>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).result.take()
    }

    fn has_arrived(&self) -> bool {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).result.is_some()
    }
}

impl Future for MapFuture {
    type Output = Result<(), String>;
    fn poll(self: std::pin::Pin<&mut Self>, context: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        let mut state = self.0.lock().unwrap_or_else(|e| e.into_inner());
        match state.result.take() {
            Some(result) => std::task::Poll::Ready(result),
            None => {
                state.waker = Some(context.waker().clone());
                std::task::Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staging_buffers_hold_no_more_than_they_may() {
        assert_eq!(staged(&[3, 0, 4], 100), [vec![(0, 0..3), (2, 0..4)]]);
        assert_eq!(staged(&[5, 7], 4), [vec![(0, 0..4)], vec![(0, 4..5), (1, 0..3)], vec![(1, 3..7)]]);
        assert_eq!(staged(&[4, 4], 4), [vec![(0, 0..4)], vec![(1, 0..4)]]);
        // A read of no elements still waits for the device.
        assert_eq!(staged(&[0], 4), [vec![]]);
    }

    #[test]
    fn what_is_larger_than_a_staging_buffer_is_read_in_parts() {
        let gpu = pollster::block_on(Gpu::open(&crate::gpu::DeviceChoice::Best)).unwrap().with_max_binding(1024);
        let values: Vec<u32> = (0..1000).collect();
        let [all, few] = [&values[..], &values[..7]].map(|v| gpu.upload(v));
        let read = pollster::block_on(gpu.read::<u32>(&[&few, &all, &few, &all.slice_unaligned(3, 500)])).unwrap();
        assert_eq!(read, [&values[..7], &values, &values[..7], &values[3..503]]);
    }
}
