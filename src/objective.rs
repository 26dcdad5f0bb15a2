//! Losses as small functions from per-sequence scores to (loss, ∂loss/∂score), in f64. `shaders/objective.wgsl` computes the same
//! gradient on the device, and is tested against this.
//!
//! A loss is a sum of [`Term`]s, a term three choices: what is taken from a sequence ([`ScoreKind`]), what it is compared with ([`ScoreCoupling`]), and
//! the curve over the difference ([`LossFn`]). Host and device know these few parts alone; which of them a loss is made of stands once, in
//! [`Loss::terms`], as does its formula with its source.
//!
//! The losses of a micro-batch's rows are added up; the optimiser divides by the number of rows, once.

mod goal;
mod loss;
mod mix;

pub use goal::TrainingLoss;
pub use loss::Loss;
pub use mix::LossMix;

pub use crate::kernels::objective::scores::{LossInputs, Objective, SequenceLogps, SequenceOutcome, cross_weights};
pub use crate::kernels::objective::term::{LossFn, ReferencePoint, ScoreCoupling, ScoreKind, Term};

use crate::error::{Error, Result};
use crate::validate::{not_negative, positive};

/// A preference loss with its constants.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct PreferenceLoss {
    /// Objective that is trained: the rows and the score of a sequence.
    pub objective: Objective,
    /// One loss, or several with weights.
    pub loss: LossMix,
    /// Terms of a loss of one's own, which take the place of `loss`; none of a named loss. Their scales and offsets hold β and margins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub custom_terms: Vec<Term>,
    /// β; [`Loss::Orpo`]'s λ.
    pub beta: f64,
    /// ε of [`Loss::SMOOTHED`].
    pub label_smoothing: f64,
    /// γ of [`Loss::Simpo`].
    pub simpo_gamma: f64,
    /// τ of [`Loss::Rpo`].
    pub rpo_tau: f64,
    /// λ_D of [`Loss::Kto`].
    pub desirable_weight: f64,
    /// λ_U of [`Loss::Kto`].
    pub undesirable_weight: f64,
    /// The reference scores are taken as zero.
    pub reference_free: bool,
}

impl Default for PreferenceLoss {
    fn default() -> Self {
        Self {
            objective: Objective::Jpo,
            loss: LossMix::single(Loss::Sigmoid),
            custom_terms: Vec::new(),
            beta: 0.1,
            label_smoothing: 0.0,
            simpo_gamma: 0.5,
            rpo_tau: 0.5,
            desirable_weight: 1.0,
            undesirable_weight: 1.0,
            reference_free: false,
        }
    }
}

impl PreferenceLoss {
    /// # Errors
    /// [`Error::Flag`] for a value out of range, or one that the losses do not have.
    pub fn validate(&self) -> Result<()> {
        for term in &self.custom_terms {
            let numbers = [term.scale, term.offset, term.weights[0], term.weights[1]];
            if numbers.iter().any(|x| !x.is_finite()) {
                return Err(Error::flag("loss", "a custom term has a scale, an offset or a weight that is not finite"));
            }
            if term.referenced && term.scope != self.objective {
                return Err(Error::flag(
                    "loss",
                    "a custom term with a reference needs the run's objective as its scope",
                ));
            }
            if term.offset != 0.0 && matches!(term.coupling, ScoreCoupling::Sides(_)) {
                return Err(Error::flag("loss", "a custom term over single sequences has no offset"));
            }
        }
        positive("beta", self.beta)?;
        if !(0.0..0.5).contains(&self.label_smoothing) {
            return Err(Error::flag("label-smoothing", format!("{} is not in 0 .. 0.5", self.label_smoothing)));
        }
        if self.label_smoothing > 0.0 && !Loss::SMOOTHED.iter().any(|&loss| self.loss.has(loss)) {
            let those = Loss::SMOOTHED.map(Loss::name).join(", ");
            return Err(Error::flag("label-smoothing", format!("needs --loss {those}, not {}", self.loss)));
        }
        not_negative("simpo-gamma", self.simpo_gamma)?;
        positive("rpo-tau", self.rpo_tau)?;
        positive("desirable-weight", self.desirable_weight)?;
        positive("undesirable-weight", self.undesirable_weight)
    }

    /// Tells whether the losses or the rewards look at the reference's scores. Beside a likelihood alone, rewards do.
    pub fn needs_reference(&self) -> bool {
        !self.reference_free && !self.compares_without_reference()
    }

    /// Tells whether the losses compare sequences, and none of them looks at a reference.
    fn compares_without_reference(&self) -> bool {
        if !self.custom_terms.is_empty() {
            return self.custom_terms.iter().all(|term| !term.referenced);
        }
        let mut comparing = self.loss.parts().filter(|(loss, _)| *loss != Loss::Sft).peekable();
        comparing.peek().is_some() && comparing.all(|(loss, _)| loss.is_reference_free())
    }

    /// Tells whether the loss is undefined on single texts with a label.
    pub fn needs_pairs(&self) -> bool {
        let is_single =
            |term: &Term| matches!(term.coupling, ScoreCoupling::Sides(shift) if shift != ReferencePoint::Opposite);
        match self.custom_terms.is_empty() {
            true => self.loss.needs_pairs(),
            false => !self.custom_terms.iter().all(is_single),
        }
    }

    /// Tells whether the loss compares instructions with each other ([`ScoreCoupling::Cross`]).
    pub fn compares_instructions(&self) -> bool {
        match self.custom_terms.is_empty() {
            true => self.loss.has(Loss::Rpo),
            false => self.custom_terms.iter().any(|term| term.coupling == ScoreCoupling::Cross),
        }
    }

    /// The losses' terms, over rows that are pairs or not.
    pub fn terms(&self, paired: bool) -> Vec<Term> {
        if !self.custom_terms.is_empty() {
            return self.custom_terms.clone();
        }
        let weighted = |(loss, weight): (Loss, f64)| loss.terms(self, paired).into_iter().map(move |t| t.times(weight));
        self.loss.parts().flat_map(weighted).collect()
    }

    /// β·(log π − log π_ref); where the losses that compare sequences have no reference, β times the mean log-probability of a scored token (SimPO's
    /// reward).
    pub fn reward(&self, sums: &SequenceLogps, reference: f64) -> f64 {
        let score = sums.score(self.objective);
        if self.compares_without_reference() {
            return self.beta * score / sums.n_scored(self.objective) as f64;
        }
        self.beta * (score - if self.reference_free { 0.0 } else { reference })
    }

    /// Loss and gradient of each sequence of a micro-batch.
    pub fn evaluate(&self, sums: &[SequenceLogps], known: &LossInputs) -> Vec<SequenceOutcome> {
        let rewarded = |(s, &reference)| SequenceOutcome { reward: self.reward(s, reference), ..Default::default() };
        let mut outcomes: Vec<SequenceOutcome> = sums.iter().zip(&known.reference).map(rewarded).collect();
        for term in self.terms(known.paired) {
            term.add(sums, known, &mut outcomes);
        }
        outcomes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_are_tested_with_every_kind_of_term() {
        for loss in Loss::ALL {
            for paired in [true, false].into_iter().filter(|paired| *paired || !loss.needs_pairs()) {
                let p = PreferenceLoss { loss: LossMix::single(loss), ..PreferenceLoss::default() };
                assert!(p.terms(paired).iter().all(crate::kernels::objective::has_case), "{loss:?}");
            }
        }
        let other =
            Term { link: ScoreKind::LogOdds, coupling: ScoreCoupling::Cross, ..TrainingLoss::Sft.terms(true)[0] };
        assert!(!crate::kernels::objective::has_case(&other));
    }

    /// Three pairs, or six labelled rows.
    fn batch(paired: bool) -> (Vec<SequenceLogps>, LossInputs) {
        let sums = |instruction, response| SequenceLogps { instruction, response, n_instruction: 7, n_response: 4 };
        let reference = vec![-42.5, -38.0, -41.0, -27.0, -20.5, -39.7];
        let mut known = LossInputs { paired, ..LossInputs::pairs(reference) };
        known.cross = cross_weights(&[1.0, 0.3, -0.2, 0.3, 0.9, 0.1, 0.5, 0.5, 1.0], 3, 0.5);
        if !paired {
            known.desirable = [true, true, false, true, false, false].into();
        }
        let policy = [(-30.0, -11.0), (-25.0, -14.5), (-31.0, -9.0), (-21.0, -3.25), (-12.0, -8.0), (-33.0, -6.5)];
        (policy.map(|(i, r)| sums(i, r)).into(), known)
    }

    fn total(p: &PreferenceLoss, sums: &[SequenceLogps], known: &LossInputs) -> f64 {
        p.evaluate(sums, known).iter().map(|o| o.loss).sum()
    }

    #[test]
    fn gradients_equal_differences_of_the_summed_loss() {
        let mix = "sigmoid=0.5,rpo=2,sft=0.3,bco_pair=0.1".parse().unwrap();
        for objective in [Objective::Jpo, Objective::Dpo] {
            for loss in Loss::ALL.map(LossMix::single).into_iter().chain([mix]) {
                for paired in [true, false].into_iter().filter(|&paired| paired || !loss.needs_pairs()) {
                    let p = PreferenceLoss { objective, loss, ..PreferenceLoss::default() };
                    let smoothed = Loss::SMOOTHED.iter().any(|&l| loss.has(l));
                    let p = PreferenceLoss {
                        label_smoothing: if smoothed { 0.1 } else { 0.0 },
                        desirable_weight: 1.3,
                        ..p
                    };
                    p.validate().unwrap();
                    let (sums, known) = batch(paired);
                    // What kto and bco compare with is no function of the policy, for their gradients: it is held.
                    let held = |p: &PreferenceLoss, sums: &[SequenceLogps]| {
                        let shift_of = |t: &Term| t.shift(&batch(paired).0, &known);
                        let mut outcomes = vec![SequenceOutcome::default(); sums.len()];
                        for term in p.terms(paired) {
                            match term.coupling {
                                ScoreCoupling::Sides(ReferencePoint::Opposite) => term.add(sums, &known, &mut outcomes),
                                _ => term.add_from(sums, &known, shift_of(&term), &mut outcomes),
                            }
                        }
                        outcomes.iter().map(|o| o.loss).sum::<f64>()
                    };
                    let got = p.evaluate(&sums, &known);
                    for s in 0..6 {
                        for part in 0..2 {
                            let step = 1e-5;
                            let moved = |by: f64| {
                                let mut moved = sums.clone();
                                let sum = if part == 0 { &mut moved[s].instruction } else { &mut moved[s].response };
                                *sum += by;
                                held(&p, &moved)
                            };
                            let want = (moved(step) - moved(-step)) / (2.0 * step);
                            let got = got[s].d_sums[part];
                            assert!((got - want).abs() < 1e-8, "{objective:?} {loss} {s} {part}: {got} {want}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn at_the_reference_the_loss_is_ln_2_and_the_slope_half_beta() {
        let (sums, mut known) = batch(true);
        known.reference = sums.iter().map(|s| s.score(Objective::Jpo)).collect();
        for loss in [Loss::Sigmoid, Loss::Robust, Loss::AotUnpaired, Loss::Rpo] {
            let p = PreferenceLoss { loss: LossMix::single(loss), ..PreferenceLoss::default() };
            let losses = total(&p, &sums, &known);
            assert!((losses / 3.0 - std::f64::consts::LN_2).abs() < 1e-12, "{loss:?}");
        }
        for (s, o) in PreferenceLoss::default().evaluate(&sums, &known).iter().enumerate() {
            let want = if s % 2 == 0 { -0.05 } else { 0.05 };
            assert!((o.d_sums[0] - want).abs() < 1e-12 && o.d_sums[0] == o.d_sums[1] && o.reward == 0.0);
        }
        let ipo = PreferenceLoss { loss: LossMix::single(Loss::Ipo), ..PreferenceLoss::default() };
        assert!((total(&ipo, &sums, &known) / 3.0 - 1.0 / (4.0 * 0.01)).abs() < 1e-12);
    }

    #[test]
    fn kto_on_pairs_is_kto_on_their_sides() {
        let (sums, mut known) = batch(true);
        let p =
            PreferenceLoss { loss: LossMix::single(Loss::Kto), undesirable_weight: 0.7, ..PreferenceLoss::default() };
        let pairs = total(&p, &sums, &known) / 3.0;
        known.paired = false;
        let sides = total(&p, &sums, &known) / 6.0;
        assert!((pairs - sides).abs() < 1e-12, "{pairs} {sides}");
    }

    #[test]
    fn values_out_of_range_name_their_flag() {
        let bad = PreferenceLoss { beta: -1.0, ..PreferenceLoss::default() };
        assert_eq!(bad.validate().unwrap_err().to_string(), "--beta: -1 is not above 0");
        let bad = PreferenceLoss { label_smoothing: 0.7, ..PreferenceLoss::default() };
        assert!(bad.validate().unwrap_err().to_string().starts_with("--label-smoothing: 0.7"));
        let bad =
            PreferenceLoss { label_smoothing: 0.1, loss: LossMix::single(Loss::Hinge), ..PreferenceLoss::default() };
        let said = bad.validate().unwrap_err().to_string();
        assert_eq!(said, "--label-smoothing: needs --loss sigmoid, robust, aot_unpaired, not hinge");
        let bad = PreferenceLoss { rpo_tau: 0.0, ..PreferenceLoss::default() };
        assert_eq!(bad.validate().unwrap_err().to_string(), "--rpo-tau: 0 is not above 0");
    }
}
