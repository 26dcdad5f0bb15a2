//! Keys that each query sees, as the shaders read them: key ranges of queries, and ranges of tiles (`shaders/shared/scores.wgsl`).

use super::attention_impl::AttentionImpl;
use super::segment_tiles::{TileKeyRanges, over_positions};
use crate::gpu::{Gpu, Slot};
use crate::kernels::packed_batch::PackedBatch;

/// Head size and sliding window of a layer's attention, which decide how its keys are walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WindowedHeads {
    /// E, the size of a head.
    pub head_dim: usize,
    /// Sliding window.
    pub window: Option<usize>,
}

/// Keys that each query sees, on the device: a table per window and head size of a model's layers.
#[derive(Debug)]
pub struct SegmentTable {
    tables: Vec<WindowRanges>,
    pub(super) t: usize,
}

/// Table for the layers of one window and head size.
#[derive(Debug)]
pub(super) struct WindowRanges {
    heads: WindowedHeads,
    /// Implementation whose tiles the table has.
    pub implementation: AttentionImpl,
    /// Vec4s of u32: key ranges of each query, key ranges of each tile of queries, query ranges of each tile of keys.
    pub vec4s: Slot,
    /// Index of the first tile of keys among the vec4s.
    pub key_tiles: usize,
    /// Number of tiles of queries, and of tiles of keys.
    pub groups: [usize; 2],
    /// Number of visible pairs of a query and a key.
    pub pairs: u64,
}

impl SegmentTable {
    /// Builds the tables for training. Queries and keys are the batch's tokens; heads are laid out as in
    /// [`super::AttentionConfig::packed`].
    pub fn of_batch(gpu: &Gpu, batch: &PackedBatch, heads: &[WindowedHeads]) -> Self {
        let (caps, longest) = (gpu.caps(), longest(&batch.ranges));
        let choose = |head_dim| AttentionImpl::choose(caps, &caps.variants, caps.matmul_precision, head_dim, longest);
        let with_impl = heads.iter().map(|&heads| (heads, choose(heads.head_dim))).collect::<Vec<_>>();
        Self::new(gpu, &batch.ranges, &batch.positions, &with_impl, true)
    }

    /// Builds the tables for generation, where `ranges` index a KV cache. A tile is one query, because queries of different sequences see
    /// different keys.
    pub fn of_cache(gpu: &Gpu, ranges: &[[u32; 4]], positions: &[u32], heads: &[WindowedHeads]) -> Self {
        let rows = heads.iter().map(|&heads| (heads, AttentionImpl::Rows(1))).collect::<Vec<_>>();
        Self::new(gpu, ranges, positions, &rows, false)
    }

    pub(super) fn new(
        gpu: &Gpu,
        ranges: &[[u32; 4]],
        positions: &[u32],
        heads: &[(WindowedHeads, AttentionImpl)],
        keys_are_queries: bool,
    ) -> Self {
        let t = ranges.len();
        let table = |&(heads, implementation): &(WindowedHeads, AttentionImpl)| {
            let window = heads.window;
            let visible = key_ranges(ranges, positions, window);
            let pairs = visible.iter().map(|v| u64::from(v[1] - v[0] + v[3] - v[2])).sum();
            let [queries, keys] = implementation.tiles();
            let TileKeyRanges { of_queries, of_keys, groups } = match implementation {
                AttentionImpl::Coop(_) => over_positions(ranges, positions, window, [queries, keys]),
                _ => {
                    let of_keys = if keys_are_queries { over_queries(&visible, keys) } else { Vec::new() };
                    let groups = [t.div_ceil(queries), of_keys.len()];
                    TileKeyRanges { of_queries: over_keys(&visible, queries), of_keys, groups }
                }
            };
            let key_tiles = t + of_queries.len();
            let vec4s = gpu.upload([visible, of_queries, of_keys].concat().as_flattened());
            WindowRanges { heads, implementation, vec4s, key_tiles, groups, pairs }
        };
        Self { tables: heads.iter().map(table).collect(), t }
    }

    /// Returns the table for layers of a window and a head size.
    pub(super) fn table(&self, heads: WindowedHeads) -> &WindowRanges {
        let found = self.tables.iter().find(|t| t.heads == heads);
        found.expect("segments are made for every window and head size of the model")
    }
}

/// Returns the largest number of keys that a query sees, without windows.
pub(super) fn longest(ranges: &[[u32; 4]]) -> usize {
    ranges.iter().map(|r| (r[1] - r[0] + r[3] - r[2]) as usize).max().unwrap_or(0)
}

/// Returns the keys that each query sees: its ranges, without keys at a distance of the window or more. A query's own range ends with the
/// query itself; a prefix starts at position 0.
fn key_ranges(ranges: &[[u32; 4]], positions: &[u32], window: Option<usize>) -> Vec<[u32; 4]> {
    let keys = |(&[prefix, prefix_end, own, own_end], &position): (&[u32; 4], &u32)| match window {
        None => [prefix, prefix_end, own, own_end],
        Some(window) => {
            let window = window as u32;
            let nearest = (position + 1).saturating_sub(window);
            [prefix_end.min(prefix + nearest), prefix_end, own.max(own_end.saturating_sub(window)), own_end]
        }
    };
    ranges.iter().zip(positions).map(keys).collect()
}

/// Returns for each tile of queries two ranges that contain every key that one of its queries sees.
fn over_keys(visible: &[[u32; 4]], tile: usize) -> Vec<[u32; 4]> {
    let both = |v: &[u32; 4]| [[v[0], v[1]], [v[2], v[3]]];
    visible.chunks(tile).map(|queries| two_parts(queries.iter().flat_map(both).collect())).collect()
}

/// Returns for each tile of keys two ranges that contain every query that sees one of its keys.
fn over_queries(visible: &[[u32; 4]], tile: usize) -> Vec<[u32; 4]> {
    let mut runs: Vec<Vec<[u32; 2]>> = vec![Vec::new(); visible.len().div_ceil(tile)];
    for (i, keys) in (0..).zip(visible) {
        for part in [[keys[0], keys[1]], [keys[2], keys[3]]].into_iter().filter(|p| p[0] < p[1]) {
            for runs in &mut runs[part[0] as usize / tile..(part[1] as usize).div_ceil(tile)] {
                match runs.last_mut() {
                    Some(run) if run[1] >= i => run[1] = i + 1,
                    _ => runs.push([i, i + 1]),
                }
            }
        }
    }
    runs.into_iter().map(two_parts).collect()
}

/// Merges ranges into two that contain all of them, and that leave out the widest gap.
fn two_parts(mut ranges: Vec<[u32; 2]>) -> [u32; 4] {
    ranges.retain(|r| r[0] < r[1]);
    ranges.sort_unstable();
    let Some(&[first, mut end]) = ranges.first() else { return [0; 4] };
    let mut gap = [0, 0];
    for [start, stop] in ranges {
        if start > end && start - end > gap[1] - gap[0] {
            gap = [end, start];
        }
        end = end.max(stop);
    }
    if gap[1] == 0 { [first, end, end, end] } else { [first, gap[0], gap[1], end] }
}

#[cfg(test)]
mod tests {
    use super::super::cases::segments;
    use super::*;

    fn pairs(tile_ranges: &[[u32; 4]], tile: usize) -> usize {
        tile_ranges.iter().map(|w| tile * (w[1] - w[0] + w[3] - w[2]) as usize).sum()
    }

    /// Returns whether query i sees key j, by definition: positions of keys are looked up.
    fn sees(batch: &PackedBatch, window: Option<usize>, i: usize, j: usize) -> bool {
        let r = batch.ranges[i].map(|x| x as usize);
        let in_range = (r[0]..r[1]).contains(&j) || (r[2]..r[3]).contains(&j);
        in_range && window.is_none_or(|w| ((batch.positions[i] - batch.positions[j]) as usize) < w)
    }

    fn holds(ranges: &[u32; 4], x: usize) -> bool {
        let r = ranges.map(|x| x as usize);
        (r[0]..r[1]).contains(&x) || (r[2]..r[3]).contains(&x)
    }

    #[test]
    fn views_are_what_is_seen_and_walks_hold_them() {
        let batch = segments(&[(9, &[5, 14]), (0, &[7]), (3, &[1, 2])]);
        let t = batch.ranges.len();
        let all = || (0..t).flat_map(|i| (0..t).map(move |j| (i, j)));
        let mut seen_by_window = Vec::new();
        for window in [None, Some(1), Some(4), Some(11), Some(100)] {
            let visible = key_ranges(&batch.ranges, &batch.positions, window);
            let seen: Vec<_> = all().filter(|&(i, j)| sees(&batch, window, i, j)).collect();
            assert_eq!(all().filter(|&(i, j)| holds(&visible[i], j)).collect::<Vec<_>>(), seen, "{window:?}");
            for tile in [1, 4, 7, 64] {
                let (keys, queries) = (over_keys(&visible, tile), over_queries(&visible, tile));
                assert_eq!((keys.len(), queries.len()), (t.div_ceil(tile), t.div_ceil(tile)));
                for ranges in keys.iter().chain(&queries) {
                    assert!(ranges.is_sorted() && ranges[3] as usize <= t, "{window:?} {tile}: {ranges:?}");
                }
                assert!(seen.iter().all(|&(i, j)| holds(&keys[i / tile], j)), "{window:?} {tile}");
                assert!(seen.iter().all(|&(i, j)| holds(&queries[j / tile], i)), "{window:?} {tile}");
                // Ranges that end one row early miss a visible pair.
                let short = |tile_ranges: &[[u32; 4]]| -> Vec<_> {
                    tile_ranges.iter().map(|&[a, b, c, d]| [a, b.min(d - 1), c.min(d - 1), d - 1]).collect()
                };
                let (keys, queries) = (short(&keys), short(&queries));
                assert!(!seen.iter().all(|&(i, j)| holds(&keys[i / tile], j)), "{window:?} {tile}");
                assert!(!seen.iter().all(|&(i, j)| holds(&queries[j / tile], i)), "{window:?} {tile}");
            }
            // With tiles of one row and at most one gap, a tile's ranges are the query's key ranges.
            assert_eq!(pairs(&over_keys(&visible, 1), 1), seen.len(), "{window:?}");
            seen_by_window.push(seen.len());
        }
        assert!(seen_by_window[1..].is_sorted() && seen_by_window[1] == t && seen_by_window[4] == seen_by_window[0]);
    }

    /// A window shortens the tiles' ranges, and so does leaving out the other branch of a pair.
    #[test]
    fn walks_are_short() {
        let (t, tile, window) = (2048, 64, 256);
        let batch = segments(&[(0, &[t])]);
        let covered = |batch: &PackedBatch, window| {
            let visible = key_ranges(&batch.ranges, &batch.positions, window);
            [pairs(&over_keys(&visible, tile), tile), pairs(&over_queries(&visible, tile), tile)]
        };
        // A tile's last query sees all keys before it, or the `window` last ones.
        assert_eq!(covered(&batch, None), [t * (t + tile) / 2; 2]);
        assert!(covered(&batch, Some(window)).iter().all(|&n| n < t * (window + tile) && n > t * window * 7 / 8));
        // Two branches of 512 behind a prefix of 1024: tiles of the second branch leave out the first.
        let pair = segments(&[(t / 2, &[t / 4, t / 4])]);
        let [keys, queries] = covered(&pair, None);
        assert_eq!(keys, t * (t + tile) / 2 - (t / 4) * (t / 4));
        assert_eq!(queries, keys);
    }
}
