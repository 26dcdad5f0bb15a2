//! Learning rates, as transformers' schedulers have them.

use std::f64::consts::PI;

/// Shape after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// To 0 in a straight line.
    Linear,
    /// To 0 along half a cosine.
    Cosine,
    /// As it is.
    Constant,
}

/// A schedule.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Schedule {
    /// Highest rate.
    pub learning_rate: f64,
    /// After the warm-up.
    pub shape: Shape,
    /// Steps from 0 to the highest rate.
    pub warmup_steps: usize,
    /// Steps in all.
    pub max_steps: usize,
}

impl Schedule {
    /// The rate of a step, from 0: the first step of a warm-up has 0.
    pub fn rate(&self, step: usize) -> f64 {
        let factor = if step < self.warmup_steps {
            step as f64 / self.warmup_steps as f64
        } else {
            let length = self.max_steps.saturating_sub(self.warmup_steps).max(1) as f64;
            let done = (step - self.warmup_steps) as f64 / length;
            match self.shape {
                Shape::Constant => 1.0,
                Shape::Linear => (1.0 - done).max(0.0),
                Shape::Cosine => (0.5 * (1.0 + (PI * done).cos())).max(0.0),
            }
        };
        self.learning_rate * factor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warms_up_from_zero_and_ends_at_zero() {
        let s = Schedule { learning_rate: 1e-3, shape: Shape::Cosine, warmup_steps: 2, max_steps: 10 };
        let got: Vec<f64> = [0, 1, 2, 6, 10].iter().map(|&i| s.rate(i)).collect();
        for (got, want) in got.iter().zip([0.0, 5e-4, 1e-3, 5e-4, 0.0]) {
            assert!((got - want).abs() < 1e-18, "{got} {want}");
        }
        let linear = Schedule { shape: Shape::Linear, ..s };
        assert!((linear.rate(6) - 5e-4).abs() < 1e-18);
        assert_eq!(Schedule { shape: Shape::Constant, ..s }.rate(9), 1e-3);
    }
}
