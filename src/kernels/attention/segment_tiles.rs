//! Tiles of one segment each, with ranges of positions, for `attention_coop.wgsl`. Blocks therefore start at positions that depend neither
//! on what is packed beside a segment, nor on whether the segment's prefix is shared.

/// Tiles with the ranges of keys or queries that each of them needs, and the number of tiles per side.
pub(super) struct TileKeyRanges {
    pub of_queries: Vec<[u32; 4]>,
    pub of_keys: Vec<[u32; 4]>,
    pub groups: [usize; 2],
}

/// Rows of a segment: consecutive rows that see the same prefix, the segment's earlier rows, and themselves.
struct SegmentRows {
    start: u32,
    end: u32,
    prefix: [u32; 2],
    /// Position of the first row.
    position: u32,
}

impl SegmentRows {
    /// Returns the row where position 0 would be. Where that is below row 0, it wraps around, as the shader's sums do.
    fn origin(&self) -> u32 {
        self.start.wrapping_sub(self.position)
    }
    fn position_of(&self, row: u32) -> u32 {
        self.position + (row - self.start)
    }
    /// Returns each tile as (first row, row after the last).
    fn tiles(&self, rows: usize) -> impl Iterator<Item = [u32; 2]> {
        let (start, end) = (self.start, self.end);
        (start..end).step_by(rows).map(move |first| [first, end.min(first + rows as u32)])
    }
}

fn runs(ranges: &[[u32; 4]], positions: &[u32]) -> Vec<SegmentRows> {
    let mut all: Vec<SegmentRows> = Vec::new();
    for (row, (range, &position)) in (0..).zip(ranges.iter().zip(positions)) {
        let prefix = [range[0], range[1]];
        match all.last_mut() {
            Some(run) if run.prefix == prefix && run.start == range[2] => run.end = row + 1,
            _ => all.push(SegmentRows { start: row, end: row + 1, prefix, position }),
        }
    }
    all
}

/// Builds the tiles and their ranges, as vec4s. A tile of queries is two vec4s: (first row, number of rows, first position of its keys, end
/// position); (start of the prefix, length of the prefix, row of the segment's position 0, 0). A tile of keys is one vec4: first row,
/// number of rows, first and end index of its ranges of queries. These indices count all `vec4s` of the table, which begins with one vec4
/// for each of the `ranges.len()` queries. A range of queries is one vec4: row of position 0, first position, end position, 0.
pub(super) fn over_positions(
    ranges: &[[u32; 4]],
    positions: &[u32],
    window: Option<usize>,
    [queries, keys]: [usize; 2],
) -> TileKeyRanges {
    let runs = runs(ranges, positions);
    let mut of_queries = Vec::new();
    for run in &runs {
        for [first, end] in run.tiles(queries) {
            let seen = window.map_or(0, |w| (run.position_of(first) + 1).saturating_sub(w as u32));
            of_queries.push([first, end - first, seen, run.position_of(end)]);
            of_queries.push([run.prefix[0], run.prefix[1] - run.prefix[0], run.origin(), 0]);
        }
    }
    let tiles: Vec<(&SegmentRows, [u32; 2])> =
        runs.iter().flat_map(|run| run.tiles(keys).map(move |tile| (run, tile))).collect();
    let first_range = ranges.len() + of_queries.len() + tiles.len();
    let (mut of_keys, mut query_ranges) = (Vec::new(), Vec::new());
    for &(run, [first, end]) in &tiles {
        let begin = (first_range + query_ranges.len()) as u32;
        let farthest = window.map_or(u32::MAX, |w| (run.position_of(end) - 1).saturating_add(w as u32));
        let is_behind = |other: &&SegmentRows| (other.prefix[0]..other.prefix[1]).contains(&first);
        for behind in std::iter::once(run).chain(runs.iter().filter(is_behind)) {
            let from = behind.position.max(run.position_of(first));
            let to = behind.position_of(behind.end).min(farthest);
            if from < to {
                query_ranges.push([behind.origin(), from, to, 0]);
            }
        }
        of_keys.push([first, end - first, begin, (first_range + query_ranges.len()) as u32]);
    }
    let groups = [of_queries.len() / 2, of_keys.len()];
    of_keys.append(&mut query_ranges);
    TileKeyRanges { of_queries, of_keys, groups }
}

#[cfg(test)]
mod tests {
    use super::super::cases::segments;
    use super::*;

    /// The ranges contain every visible pair of a query and a key exactly once.
    #[test]
    fn walks_hold_what_is_seen() {
        let batch = segments(&[(9, &[5, 14]), (0, &[7]), (3, &[1, 2])]);
        let t = batch.ranges.len() as u32;
        for window in [None, Some(1), Some(4), Some(11), Some(100)] {
            let sees = |i: u32, j: u32| {
                let r = batch.ranges[i as usize];
                let in_range = (r[0]..r[1]).contains(&j) || (r[2]..r[3]).contains(&j);
                let position = |row: u32| batch.positions[row as usize];
                in_range && window.is_none_or(|w| ((position(i) - position(j)) as usize) < w)
            };
            for rows in [1, 4, 7, 64] {
                let tiles = over_positions(&batch.ranges, &batch.positions, window, [rows; 2]);
                let mut met = vec![[0; 2]; (t * t) as usize];
                for tile in tiles.of_queries.chunks(2) {
                    let ([first, n, begin, end], [prefix, n_prefix, own, _]) = (tile[0], tile[1]);
                    for p in begin..end {
                        let key = if p < n_prefix { prefix + p } else { own.wrapping_add(p) };
                        (first..first + n).for_each(|query| met[(query * t + key) as usize][0] += 1);
                    }
                }
                let before = t as usize + tiles.of_queries.len();
                for &[first, n, begin, end] in &tiles.of_keys[..tiles.groups[1]] {
                    for &[origin, from, to, _] in &tiles.of_keys[begin as usize - before..end as usize - before] {
                        for query in (from..to).map(|p| origin.wrapping_add(p)) {
                            (first..first + n).for_each(|key| met[(query * t + key) as usize][1] += 1);
                        }
                    }
                }
                let pairs = || (0..t).flat_map(|i| (0..t).map(move |j| (i, j)));
                for (i, j) in pairs() {
                    let met = met[(i * t + j) as usize];
                    let right = if sees(i, j) { met == [1; 2] } else { met.iter().all(|&n| n <= 1) };
                    assert!(right, "{window:?} {rows}: {i} {j}: {met:?}");
                }
                // Tiles of one row contain nothing but visible pairs.
                let covered = [0, 1].map(|side| met.iter().map(|n| n[side]).sum::<usize>());
                let seen = pairs().filter(|&(i, j)| sees(i, j)).count();
                assert!(covered.iter().all(|&n| if rows == 1 { n == seen } else { n > seen }), "{window:?} {rows}");
            }
        }
    }
}
