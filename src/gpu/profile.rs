//! Device time per kernel, from timestamp queries.

use std::collections::BTreeMap;

/// Device time by kernel label (the part before `/`).
#[derive(Debug, Clone, Default)]
pub struct KernelProfile {
    by_kernel: BTreeMap<String, (usize, f64)>,
}

impl KernelProfile {
    pub(super) fn add(&mut self, label: &str, time_us: f64) {
        let kernel = label.split('/').next().unwrap_or(label);
        let entry = self.by_kernel.entry(kernel.into()).or_default();
        entry.0 += 1;
        entry.1 += time_us;
    }

    /// Returns whether the device's timestamps measured anything. On some systems timestamps exist, but read zero (macOS 26).
    pub fn is_timed(&self) -> bool {
        self.by_kernel.values().any(|v| v.1 > 0.0)
    }

    /// Returns (kernel, dispatches, total time in µs) per kernel, the longest first; empty where timestamps read zero.
    pub fn rows(&self) -> Vec<(String, usize, f64)> {
        if !self.is_timed() {
            return Vec::new();
        }
        let mut rows: Vec<_> = self.by_kernel.iter().map(|(k, &(n, us))| (k.clone(), n, us)).collect();
        rows.sort_by(|a, b| b.2.total_cmp(&a.2));
        rows
    }

    /// Formats the times as a table for a terminal.
    pub fn table(&self) -> String {
        if !self.is_timed() {
            return "no kernel can be timed: the timestamps of this device read zero\n".into();
        }
        let total: f64 = self.by_kernel.values().map(|v| v.1).sum();
        let mut out = format!("{:<28} {:>10} {:>12} {:>6}\n", "kernel", "dispatches", "time_us", "%");
        for (kernel, n, us) in self.rows() {
            out += &format!("{kernel:<28} {n:>10} {us:>12.0} {:>6.1}\n", 100.0 * us / total.max(1e-9));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_that_read_zero_are_no_times() {
        let mut profile = KernelProfile::default();
        profile.add("add/L0", 0.0);
        profile.add("add/L1", 0.0);
        assert!(!profile.is_timed() && profile.rows().is_empty(), "{profile:?}");
        assert!(profile.table().contains("read zero"), "{}", profile.table());
        profile.add("add/L2", 2.5);
        assert_eq!(profile.rows(), [("add".into(), 3, 2.5)]);
        assert!(profile.table().contains("add"), "{}", profile.table());
    }
}
