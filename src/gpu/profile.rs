//! Time on the device by kernel, from timestamp queries.

use std::collections::BTreeMap;

/// Device time by kernel label (the part before `/`).
#[derive(Debug, Clone, Default)]
pub struct Profile {
    by_kernel: BTreeMap<String, (usize, f64)>,
}

impl Profile {
    pub(super) fn add(&mut self, label: &str, time_us: f64) {
        let kernel = label.split('/').next().unwrap_or(label);
        let entry = self.by_kernel.entry(kernel.into()).or_default();
        entry.0 += 1;
        entry.1 += time_us;
    }

    /// (kernel, dispatches, total time in µs), the longest first.
    pub fn rows(&self) -> Vec<(String, usize, f64)> {
        let mut rows: Vec<_> = self.by_kernel.iter().map(|(k, &(n, us))| (k.clone(), n, us)).collect();
        rows.sort_by(|a, b| b.2.total_cmp(&a.2));
        rows
    }

    /// A table for a terminal.
    pub fn table(&self) -> String {
        let total: f64 = self.by_kernel.values().map(|v| v.1).sum();
        let mut out = format!("{:<28} {:>10} {:>12} {:>6}\n", "kernel", "dispatches", "time_us", "%");
        for (kernel, n, us) in self.rows() {
            out += &format!("{kernel:<28} {n:>10} {us:>12.0} {:>6.1}\n", 100.0 * us / total.max(1e-9));
        }
        out
    }
}
