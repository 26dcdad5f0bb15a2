//! The loop of a listing that multiplies the most, and its instructions by class.

use std::collections::HashMap;

use crate::assembly::{Line, Memory, Operation, Wait};

/// Instructions that multiply, within which a wait for a load sees nearly all of its latency: of memory, of workgroup memory.
const HIDES: [usize; 2] = [128, 16];

/// Counts of a loop's instructions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HotLoop {
    /// Multiply-adds of one lane.
    pub multiply_adds: usize,
    /// Instructions that hold them.
    pub multiply_instructions: usize,
    /// Instructions that multiply matrices.
    pub matrix: usize,
    /// Other vector instructions.
    pub vector: usize,
    /// Loads from memory.
    pub memory_loads: usize,
    /// Loads from workgroup memory.
    pub workgroup_loads: usize,
    /// Waits for memory with nothing behind them.
    pub memory_waits: usize,
    /// Waits for workgroup memory with nothing behind them.
    pub workgroup_waits: usize,
}

impl HotLoop {
    /// Returns how much the loop multiplies, to compare loops.
    fn work(&self) -> usize {
        self.multiply_instructions + 64 * self.matrix
    }
}

/// Loads under way of one kind of memory, in the order in which they began.
#[derive(Default)]
struct LoadQueue {
    /// Number of each load, and the multiplications before it.
    under_way: Vec<(usize, usize)>,
    n_begun: usize,
    /// Loads with smaller numbers had begun at the last wait that was counted: they came with it.
    n_seen: usize,
}

impl LoadQueue {
    fn begin(&mut self, multiplied: usize) {
        self.under_way.push((self.n_begun, multiplied));
        self.n_begun += 1;
    }

    /// Waits until `left` loads are under way. Returns whether the wait has nothing behind it.
    fn wait(&mut self, left: usize, multiplied: usize, hides: usize) -> bool {
        let n_done = self.under_way.len().saturating_sub(left);
        let Some((number, before)) = self.under_way.drain(..n_done).next_back() else { return false };
        let is_bare = number >= self.n_seen && multiplied - before < hides;
        if is_bare {
            self.n_seen = self.n_begun;
        }
        is_bare
    }
}

fn count(lines: &[Line]) -> HotLoop {
    let mut counted = HotLoop::default();
    let mut queues: [LoadQueue; 2] = Default::default();
    let multiplied = |counted: &HotLoop| counted.multiply_instructions + counted.matrix;
    for line in lines {
        let Line::Instruction { operation, waits, .. } = line else {
            // Another block: which loads are under way depends on the way here.
            queues.iter_mut().for_each(|queue| queue.under_way.clear());
            continue;
        };
        for Wait { memory, left } in waits {
            let which = *memory as usize;
            let is_bare = queues[which].wait(*left, multiplied(&counted), HIDES[which]);
            match memory {
                Memory::Device => counted.memory_waits += usize::from(is_bare),
                Memory::Workgroup => counted.workgroup_waits += usize::from(is_bare),
            }
        }
        match *operation {
            Operation::Multiply(n) => {
                counted.multiply_adds += n;
                counted.multiply_instructions += 1;
            }
            Operation::Matrix => counted.matrix += 1,
            Operation::Vector => counted.vector += 1,
            Operation::Load(Memory::Device) => {
                counted.memory_loads += 1;
                queues[Memory::Device as usize].begin(multiplied(&counted));
            }
            Operation::Load(Memory::Workgroup) => {
                counted.workgroup_loads += 1;
                queues[Memory::Workgroup as usize].begin(multiplied(&counted));
            }
            Operation::Other => {}
        }
    }
    counted
}

/// Finds the innermost loop that multiplies the most; of loops that do not multiply, the one that loads the most. A loop is what lies between a label and
/// the last branch back to it; it is innermost where no loop inside multiplies.
pub fn find(lines: &[Line]) -> Option<HotLoop> {
    let mut labels = HashMap::new();
    let mut ends: HashMap<usize, usize> = HashMap::new();
    for (i, line) in lines.iter().enumerate() {
        match line {
            Line::Label(name) => drop(labels.insert(name.as_str(), i)),
            Line::Instruction { target: Some(target), .. } => {
                if let Some(&begin) = labels.get(target.as_str()) {
                    ends.insert(begin, i);
                }
            }
            Line::Instruction { .. } => {}
        }
    }
    let mut loops: Vec<(usize, usize, HotLoop)> =
        ends.into_iter().map(|(begin, end)| (begin, end, count(&lines[begin..=end]))).collect();
    loops.sort_by_key(|(begin, end, _)| (*begin, *end));
    let has_inner = |outer: &(usize, usize, HotLoop)| {
        loops.iter().any(|inner| {
            let is_other = (inner.0, inner.1) != (outer.0, outer.1);
            is_other && inner.0 >= outer.0 && inner.1 <= outer.1 && inner.2.work() > 0
        })
    };
    let innermost = loops.iter().filter(|l| !has_inner(l)).map(|l| l.2.clone());
    innermost.max_by_key(|l| (l.work(), l.memory_loads + l.workgroup_loads, l.vector))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assembly::Vendor;

    /// Two loops, the inner one unrolled: a load from memory that is waited for at once, one behind 130 multiplications.
    #[test]
    fn a_wait_counts_where_too_little_was_multiplied_behind_the_load() {
        let fma = "\tv_fma_f32 v0, v1, v2, v0\n";
        let text = format!(
            "BB0:\n\ts_mov_b32 s0, 0\nBB1:\n\tv_add_f32 v1, v2, v3\nBB2:\n\tbuffer_load_b128 v[4:7], v8, s[0:3], 0 offen\n\ts_waitcnt vmcnt(0)\n\
             \tbuffer_load_b128 v[4:7], v8, s[0:3], 0 offen\n\tds_load_b128 v[4:7], v8\n{}\ts_waitcnt vmcnt(0) lgkmcnt(0)\n\
             \tds_load_2addr_b64 v[4:7], v8 offset0:1\n\ts_waitcnt lgkmcnt(0)\n\tv_mov_b32 v0, v1\n\ts_cbranch_scc1 BB2\nBB3:\n\ts_cbranch_scc1 BB1\n",
            fma.repeat(130)
        );
        let found = find(&Vendor::Amd.parse(&text)).unwrap();
        let expected = HotLoop {
            multiply_adds: 130,
            multiply_instructions: 130,
            vector: 1,
            memory_loads: 2,
            workgroup_loads: 2,
            memory_waits: 1,
            workgroup_waits: 1,
            ..HotLoop::default()
        };
        assert_eq!(found, expected);
        // With 120 multiplications behind it, the second load is seen too.
        let text = text.replacen(&fma.repeat(10), "", 1);
        assert_eq!(find(&Vendor::Amd.parse(&text)).unwrap().memory_waits, 2);
        assert_eq!(find(&Vendor::Amd.parse("BB0:\n\ts_endpgm\n")), None);
    }

    #[test]
    fn loads_that_began_before_a_wait_come_with_it() {
        let mut queue = LoadQueue::default();
        (0..3).for_each(|_| queue.begin(0));
        assert!(queue.wait(2, 0, 128));
        assert!(!queue.wait(1, 4, 128) && !queue.wait(0, 8, 128));
        assert!(!queue.wait(0, 8, 128), "nothing is under way");
        queue.begin(8);
        assert!(queue.wait(0, 9, 128));
    }
}
