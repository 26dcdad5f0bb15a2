//! `--loss`: a loss, or several with weights.

use std::fmt;
use std::str::FromStr;

use super::Loss;

/// Losses with their weights: `sigmoid`, or `sigmoid=1,sft=0.2`. At least one weight is above 0.
///
/// # Examples
/// ```
/// use jointwise::{Loss, LossMix};
/// let mix = LossMix::single(Loss::Sigmoid).plus(Loss::Sft, 0.2);
/// assert_eq!("sigmoid=1,sft=0.2".parse(), Ok(mix));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct LossMix {
    /// Weights in the order of [`Loss::ALL`]; 0 leaves the loss out.
    weights: [f64; Loss::ALL.len()],
}

impl LossMix {
    /// Makes a mix of one loss, with weight 1.
    pub const fn single(loss: Loss) -> Self {
        let mut weights = [0.0; Loss::ALL.len()];
        weights[loss as usize] = 1.0;
        Self { weights }
    }

    /// Adds `weight` to a loss's weight.
    pub fn plus(mut self, loss: Loss, weight: f64) -> Self {
        self.weights[loss as usize] += weight;
        self
    }

    /// Iterates over the losses in the mix, with their weights.
    pub fn parts(&self) -> impl Iterator<Item = (Loss, f64)> + use<> {
        Loss::ALL.into_iter().zip(self.weights).filter(|(_, weight)| *weight > 0.0)
    }

    /// Tells whether the mix contains a loss.
    pub fn has(&self, loss: Loss) -> bool {
        self.weights[loss as usize] > 0.0
    }

    /// Tells whether a loss in the mix is undefined on single texts with a label.
    pub fn needs_pairs(&self) -> bool {
        self.parts().any(|(loss, _)| loss.needs_pairs())
    }
}

impl FromStr for LossMix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut mix = Self { weights: [0.0; Loss::ALL.len()] };
        for part in text.split(',') {
            let (name, weight) = part.split_once('=').unwrap_or((part, "1"));
            let loss = Loss::ALL.into_iter().find(|loss| loss.name() == name.trim()).ok_or_else(|| {
                let all = Loss::ALL.map(Loss::name).join(", ");
                format!("expected one of {all}; or several with weights, such as sigmoid=1,sft=0.2")
            })?;
            let value = weight.trim().parse::<f64>().ok();
            // As the device takes it.
            let value = value.filter(|w| *w > 0.0 && (*w as f32).is_normal());
            let value = value.ok_or_else(|| format!("the weight of {name}, `{weight}`, is not a number above 0"))?;
            if mix.has(loss) {
                return Err(format!("{name} is there twice"));
            }
            mix = mix.plus(loss, value);
        }
        Ok(mix)
    }
}

impl fmt::Display for LossMix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<(Loss, f64)> = self.parts().collect();
        if let [(loss, 1.0)] = parts.as_slice() {
            return f.write_str(loss.name());
        }
        let texts: Vec<String> = parts.iter().map(|(loss, weight)| format!("{}={weight}", loss.name())).collect();
        f.write_str(&texts.join(","))
    }
}

impl From<LossMix> for String {
    fn from(mix: LossMix) -> Self {
        mix.to_string()
    }
}

impl TryFrom<String> for LossMix {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_numbered_as_they_are_listed() {
        for (i, loss) in Loss::ALL.into_iter().enumerate() {
            assert_eq!(loss as usize, i);
            assert_eq!(loss.name().parse(), Ok(LossMix::single(loss)));
            assert_eq!(LossMix::single(loss).to_string(), loss.name());
        }
    }

    #[test]
    fn mixes_are_read_as_they_are_written() {
        let mix: LossMix = "sft = 0.25, sigmoid".parse().unwrap();
        assert_eq!(mix, LossMix::single(Loss::Sigmoid).plus(Loss::Sft, 0.25));
        assert_eq!(mix.to_string(), "sigmoid=1,sft=0.25");
        assert_eq!(mix.to_string().parse(), Ok(mix));
        assert_eq!("hinge=2".parse::<LossMix>().unwrap().to_string(), "hinge=2");
        let all = Loss::ALL.map(Loss::name).join(", ");
        for (text, reason) in [
            ("squared", format!("expected one of {all}; or several with weights, such as sigmoid=1,sft=0.2")),
            ("sigmoid=1,", format!("expected one of {all}; or several with weights, such as sigmoid=1,sft=0.2")),
            ("sigmoid=0", "the weight of sigmoid, `0`, is not a number above 0".into()),
            ("sigmoid=-1", "the weight of sigmoid, `-1`, is not a number above 0".into()),
            ("sigmoid=inf", "the weight of sigmoid, `inf`, is not a number above 0".into()),
            ("sigmoid=1e-50", "the weight of sigmoid, `1e-50`, is not a number above 0".into()),
            ("sigmoid=a", "the weight of sigmoid, `a`, is not a number above 0".into()),
            ("sigmoid=1,sigmoid=2", "sigmoid is there twice".into()),
        ] {
            assert_eq!(text.parse::<LossMix>().unwrap_err(), reason, "{text}");
        }
    }
}
