//! Learning-rate schedules, as in transformers.

use std::f64::consts::PI;

/// Final rate of [`LrSchedulerType::Polynomial`].
pub const POLYNOMIAL_END: f64 = 1e-7;
/// Number of steps after which [`LrSchedulerType::InverseSqrt`] without warm-up has fallen to 1/√2 of the highest rate.
const INVERSE_SQRT_TIMESCALE: usize = 10_000;

/// Shape of a learning-rate schedule after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrSchedulerType {
    /// Falls to 0 in a straight line.
    Linear,
    /// Falls to 0 along half a cosine.
    Cosine,
    /// Falls to 0 along half a cosine, and starts again from the highest rate, [`LrSchedule::num_cycles`] times in all.
    CosineWithRestarts,
    /// Falls to [`POLYNOMIAL_END`] in a straight line (power 1, the default in transformers).
    Polynomial,
    /// Is the highest rate · √(t/(t + n)) after n steps, where t is the length of the warm-up, or 10,000 without warm-up.
    InverseSqrt,
    /// Stays at the highest rate.
    Constant,
    /// Like [`LrSchedulerType::Constant`], under another name from transformers. In this program both have a warm-up.
    ConstantWithWarmup,
}

impl LrSchedulerType {
    /// All shapes.
    pub const ALL: [Self; 7] = [
        Self::Linear,
        Self::Cosine,
        Self::CosineWithRestarts,
        Self::Polynomial,
        Self::InverseSqrt,
        Self::Constant,
        Self::ConstantWithWarmup,
    ];

    /// Returns the name on the command line, which is the name in transformers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Cosine => "cosine",
            Self::CosineWithRestarts => "cosine_with_restarts",
            Self::Polynomial => "polynomial",
            Self::InverseSqrt => "inverse_sqrt",
            Self::Constant => "constant",
            Self::ConstantWithWarmup => "constant_with_warmup",
        }
    }
}

/// Learning-rate schedule of a run.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LrSchedule {
    /// Highest rate.
    pub learning_rate: f64,
    /// Shape after the warm-up.
    pub shape: LrSchedulerType,
    /// Number of warm-up steps, from 0 to the highest rate.
    pub warmup_steps: usize,
    /// Number of steps of the run.
    pub max_steps: usize,
    /// Number of half cosines of [`LrSchedulerType::CosineWithRestarts`].
    pub num_cycles: usize,
}

impl LrSchedule {
    /// Returns the learning rate of a step, counted from 0. The first step of a warm-up has rate 0.
    pub fn rate(&self, step: usize) -> f64 {
        let factor = if step < self.warmup_steps {
            step as f64 / self.warmup_steps as f64
        } else {
            self.factor_after_warmup(step - self.warmup_steps)
        };
        self.learning_rate * factor
    }

    /// Returns the fraction of the highest rate, `steps` steps after the warm-up.
    fn factor_after_warmup(&self, steps: usize) -> f64 {
        let length = self.max_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let done = steps as f64 / length;
        match self.shape {
            LrSchedulerType::Constant | LrSchedulerType::ConstantWithWarmup => 1.0,
            LrSchedulerType::Linear => (1.0 - done).max(0.0),
            LrSchedulerType::Cosine => (0.5 * (1.0 + (PI * done).cos())).max(0.0),
            LrSchedulerType::CosineWithRestarts if done >= 1.0 => 0.0,
            LrSchedulerType::CosineWithRestarts => {
                let of_cycle = (self.num_cycles as f64 * done).fract();
                (0.5 * (1.0 + (PI * of_cycle).cos())).max(0.0)
            }
            LrSchedulerType::Polynomial => {
                let end = POLYNOMIAL_END / self.learning_rate;
                end + (1.0 - end) * (1.0 - done).max(0.0)
            }
            LrSchedulerType::InverseSqrt => {
                let timescale = if self.warmup_steps > 0 { self.warmup_steps } else { INVERSE_SQRT_TIMESCALE } as f64;
                (timescale / (timescale + steps as f64)).sqrt()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warms_up_from_zero_and_ends_at_zero() {
        let s = LrSchedule {
            learning_rate: 1e-3,
            shape: LrSchedulerType::Cosine,
            warmup_steps: 2,
            max_steps: 10,
            num_cycles: 1,
        };
        let got: Vec<f64> = [0, 1, 2, 6, 10].iter().map(|&i| s.rate(i)).collect();
        for (got, want) in got.iter().zip([0.0, 5e-4, 1e-3, 5e-4, 0.0]) {
            assert!((got - want).abs() < 1e-18, "{got} {want}");
        }
        let linear = LrSchedule { shape: LrSchedulerType::Linear, ..s };
        assert!((linear.rate(6) - 5e-4).abs() < 1e-18);
        assert_eq!(LrSchedule { shape: LrSchedulerType::Constant, ..s }.rate(9), 1e-3);
    }

    /// Compares with the rates of every scheduler in transformers 5.24 (tests/data/trl/schedules.py).
    #[test]
    fn rates_are_those_of_transformers() {
        let all: Vec<serde_json::Value> =
            serde_json::from_str(include_str!("../../tests/data/trl/schedules.json")).expect("the fixture");
        assert!(all.len() >= 3 * LrSchedulerType::ALL.len());
        for case in all {
            let schedule: LrSchedule = serde_json::from_value(case["schedule"].clone()).expect("a schedule");
            for (step, want) in case["rates"].as_array().expect("rates").iter().enumerate() {
                let (got, want) = (schedule.rate(step), want.as_f64().expect("a rate"));
                assert!((got - want).abs() <= 1e-12 * schedule.learning_rate, "{schedule:?} {step}: {got} {want}");
            }
        }
    }

    #[test]
    fn names_are_those_of_settings() {
        for shape in LrSchedulerType::ALL {
            assert_eq!(serde_json::to_value(shape).ok(), Some(shape.name().into()));
        }
    }
}
