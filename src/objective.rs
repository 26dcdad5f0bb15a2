//! Losses as small functions from per-sequence scores to (loss, ∂loss/∂score), in f64. `shaders/objective.wgsl` computes the same
//! gradient on the device, and is tested against this.
//!
//! A loss is a sum of [`Term`]s, a term three choices: what is taken from a sequence ([`ScoreKind`]), what it is compared with ([`ScoreCoupling`]), and
//! the curve over the difference ([`LossFn`]). Host and device know these few parts alone; which of them a loss is made of stands once, in
//! [`Loss::terms`], as does its formula with its source.
//!
//! The losses of a micro-batch's rows are added up; the optimiser divides by the number of rows, once.

mod formulas;
mod goal;
mod loss;
mod mix;
mod modifier;

pub use formulas::FORMULA_LEGEND;
pub use goal::{SftLoss, TrainingLoss};
pub use loss::Loss;
pub use mix::LossMix;
pub use modifier::LossModifier;

pub use crate::kernels::objective::scores::{LossInputs, Objective, SequenceLogps, SequenceOutcome, cross_weights};
pub use crate::kernels::objective::term::{FDivergence, LossFn, ReferencePoint, ScoreCoupling, ScoreKind, Term};

use crate::error::{Error, Result};
use crate::validate::{not_negative, positive};
use modifier::check_modifiers;

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
    /// τ of [`Loss::Discopop`].
    #[serde(default = "discopop_tau", skip_serializing_if = "is_discopop_tau")]
    pub discopop_tau: f64,
    /// λ of [`Loss::Dpop`].
    #[serde(default = "dpop_lambda", skip_serializing_if = "is_dpop_lambda")]
    pub dpop_lambda: f64,
    /// α of [`Loss::Cpo`].
    #[serde(default = "cpo_alpha", skip_serializing_if = "is_cpo_alpha")]
    pub cpo_alpha: f64,
    /// λ_D of [`Loss::Kto`] and [`Loss::ApoZeroUnpaired`].
    pub desirable_weight: f64,
    /// λ_U of [`Loss::Kto`] and [`Loss::ApoZeroUnpaired`].
    pub undesirable_weight: f64,
    /// α of LD-DPO ([`LossModifier::LdAlpha`]); `None` without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ld_alpha: Option<f64>,
    /// Whether pairs are weighed as in WPO ([`LossModifier::Wpo`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wpo: bool,
    /// Divergence from the reference ([`LossModifier::FDivergence`]).
    #[serde(default, skip_serializing_if = "is_reverse_kl")]
    pub f_divergence: FDivergence,
    /// The reference scores are taken as zero.
    pub reference_free: bool,
}

// Settings that came later are written only where they differ from their defaults, so that earlier runs keep their fingerprints.
const DISCOPOP_TAU: f64 = 0.05;
const DPOP_LAMBDA: f64 = 50.0;
const CPO_ALPHA: f64 = 1.0;

fn discopop_tau() -> f64 {
    DISCOPOP_TAU
}
fn dpop_lambda() -> f64 {
    DPOP_LAMBDA
}
fn cpo_alpha() -> f64 {
    CPO_ALPHA
}
#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_discopop_tau(tau: &f64) -> bool {
    *tau == DISCOPOP_TAU
}
#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_dpop_lambda(lambda: &f64) -> bool {
    *lambda == DPOP_LAMBDA
}
#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_cpo_alpha(alpha: &f64) -> bool {
    *alpha == CPO_ALPHA
}
fn is_reverse_kl(divergence: &FDivergence) -> bool {
    *divergence == FDivergence::ReverseKl
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
            discopop_tau: DISCOPOP_TAU,
            dpop_lambda: DPOP_LAMBDA,
            cpo_alpha: CPO_ALPHA,
            desirable_weight: 1.0,
            undesirable_weight: 1.0,
            ld_alpha: None,
            wpo: false,
            f_divergence: FDivergence::ReverseKl,
            reference_free: false,
        }
    }
}

impl PreferenceLoss {
    /// # Errors
    /// [`Error::Flag`] for a value out of range, or one that the losses do not have.
    pub fn validate(&self) -> Result<()> {
        self.custom_terms.iter().try_for_each(|term| self.validate_term(term))?;
        positive("beta", self.beta)?;
        if !(0.0..0.5).contains(&self.label_smoothing) {
            return Err(Error::flag("label-smoothing", format!("{} is not in 0 .. 0.5", self.label_smoothing)));
        }
        if self.label_smoothing > 0.0 && !Loss::SMOOTHED.iter().any(|&loss| self.loss.has(loss)) {
            let those = Loss::SMOOTHED.map(Loss::name).join(", ");
            return Err(Error::flag("label-smoothing", format!("needs --loss {those}, not {}", self.loss)));
        }
        if self.label_smoothing == 0.0 && self.loss.has(Loss::ExoPair) {
            return Err(Error::flag("label-smoothing", "exo_pair needs a value above 0, such as 0.001, the paper's"));
        }
        check_modifiers(self)?;
        not_negative("simpo-gamma", self.simpo_gamma)?;
        positive("rpo-tau", self.rpo_tau)?;
        positive("discopop-tau", self.discopop_tau)?;
        not_negative("dpop-lambda", self.dpop_lambda)?;
        not_negative("cpo-alpha", self.cpo_alpha)?;
        positive("desirable-weight", self.desirable_weight)?;
        positive("undesirable-weight", self.undesirable_weight)
    }

    /// Checks a custom term.
    fn validate_term(&self, term: &Term) -> Result<()> {
        let wrong = |reason| Err(Error::flag("loss", reason));
        let numbers = [term.scale, term.offset, term.weights[0], term.weights[1], term.tail_weight, term.penalty];
        if numbers.iter().any(|x| !x.is_finite()) {
            return wrong("a custom term has a scale, an offset, a weight or a penalty that is not finite");
        }
        if term.referenced && term.scope != self.objective {
            return wrong("a custom term with a reference needs the run's objective as its scope");
        }
        if term.referenced && term.tail_weight != self.tail_weight() {
            return wrong("a custom term with a reference needs the run's ld_alpha as its tail_weight");
        }
        if term.is_weighted && !self.wpo {
            return wrong("a custom term with weighted pairs needs wpo");
        }
        let is_plain_sum = term.link == ScoreKind::Sum && term.divergence.is_reverse_kl();
        if term.coupling == ScoreCoupling::SortedMargins && !is_plain_sum {
            return wrong("a custom term over sorted margins takes scores as sums, without a divergence");
        }
        Ok(())
    }

    /// Returns the weight of the response tokens past the length of the pair's shorter response; 1 without LD-DPO.
    pub fn tail_weight(&self) -> f64 {
        self.ld_alpha.unwrap_or(1.0)
    }

    /// Tells whether a loss of the mix is the same under both objectives where a pair's sides have one instruction. A score that is not the
    /// log-ratio itself mixes the instruction's with the response's.
    pub fn is_same_for_one_instruction(&self, loss: Loss) -> bool {
        loss == Loss::Sft || loss.is_same_for_one_instruction() && self.f_divergence.is_reverse_kl()
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
        let is_single = |term: &Term| {
            let is_side = matches!(term.coupling, ScoreCoupling::Sides(shift) if shift != ReferencePoint::Opposite);
            is_side && !term.is_weighted && term.tail_weight == 1.0
        };
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

    /// Tells whether a row's loss depends on the rows that it is computed with: those of its micro-batch.
    pub fn compares_rows(&self) -> bool {
        let compares = |term: &Term| match term.coupling {
            ScoreCoupling::Own => false,
            ScoreCoupling::Sides(point) => point != ReferencePoint::Zero,
            ScoreCoupling::Sorted | ScoreCoupling::SortedMargins | ScoreCoupling::Cross => true,
        };
        [true, false].iter().any(|&paired| self.terms(paired).iter().any(compares))
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
    /// and ORPO's reward), or its sum (CPO's).
    pub fn reward(&self, sums: &SequenceLogps, reference: f64) -> f64 {
        let score = sums.weighted_score(self.objective, self.tail_weight());
        if self.compares_without_reference() {
            let is_sum = self.custom_terms.is_empty() && self.loss.has(Loss::Cpo);
            return self.beta * score / if is_sum { 1.0 } else { sums.n_scored(self.objective) as f64 };
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
        let other = Term {
            link: ScoreKind::LogOdds,
            coupling: ScoreCoupling::Cross,
            ..TrainingLoss::Sft(SftLoss::Nll).terms(true)[0]
        };
        assert!(!crate::kernels::objective::has_case(&other));
    }

    /// Three pairs, or six labelled rows.
    fn batch(paired: bool) -> (Vec<SequenceLogps>, LossInputs) {
        let sums = |instruction, response| SequenceLogps {
            instruction,
            response,
            n_instruction: 7,
            n_response: 4,
            response_tail: 0.4 * response,
            log_weight: 0.03 * response,
            response_p_logp: 0.0,
        };
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
        let mixes = ["sigmoid=0.5,rpo=2,sft=0.3,bco_shift=0.1", "sigmoid_norm=2,apo_down=0.5,sft=0.1"];
        let mixes = mixes.map(|mix| mix.parse().unwrap());
        for objective in [Objective::Jpo, Objective::Dpo] {
            for loss in Loss::ALL.map(LossMix::single).into_iter().chain(mixes) {
                for p in modified(&PreferenceLoss { objective, loss, ..PreferenceLoss::default() }) {
                    check_gradients(&p);
                }
            }
        }
    }

    /// Returns a loss with constants of its own, alone and with each modifier that it can have.
    fn modified(p: &PreferenceLoss) -> Vec<PreferenceLoss> {
        let label_smoothing = if Loss::SMOOTHED.iter().any(|&l| p.loss.has(l)) { 0.1 } else { 0.0 };
        let p =
            PreferenceLoss { label_smoothing, desirable_weight: 1.3, discopop_tau: 0.4, dpop_lambda: 3.0, ..p.clone() };
        let mut all = vec![
            p.clone(),
            PreferenceLoss { ld_alpha: Some(0.25), ..p.clone() },
            PreferenceLoss { wpo: true, ..p.clone() },
            PreferenceLoss { wpo: true, ld_alpha: Some(0.0), f_divergence: FDivergence::JensenShannon, ..p.clone() },
        ];
        let divergences = [FDivergence::ForwardKl, FDivergence::JensenShannon, FDivergence::Alpha(0.7)];
        all.extend(divergences.map(|f_divergence| PreferenceLoss { f_divergence, beta: 0.01, ..p.clone() }));
        all.retain(|p| p.validate().is_ok());
        all
    }

    #[test]
    fn modifiers_are_refused_with_the_reason() {
        for loss in Loss::ALL {
            let p = PreferenceLoss { loss: LossMix::single(loss), ..PreferenceLoss::default() };
            let p = PreferenceLoss { label_smoothing: if loss == Loss::ExoPair { 0.1 } else { 0.0 }, ..p };
            for modifier in LossModifier::ALL {
                let p = match modifier {
                    LossModifier::LdAlpha => PreferenceLoss { ld_alpha: Some(0.5), ..p.clone() },
                    LossModifier::Wpo => PreferenceLoss { wpo: true, ..p.clone() },
                    LossModifier::FDivergence => PreferenceLoss { f_divergence: FDivergence::ForwardKl, ..p.clone() },
                };
                let nothing = (loss == Loss::Sft).then_some("changes nothing");
                let said = p.validate().map_err(|error| error.to_string());
                match modifier.refusal(loss).or(nothing) {
                    None => assert_eq!(said, Ok(()), "{loss:?} {modifier:?}"),
                    Some(reason) => {
                        let said = said.unwrap_err();
                        assert!(said.contains(reason) && said.contains(modifier.flag()), "{loss:?}: {said}");
                    }
                }
            }
        }
        let refused = |p: PreferenceLoss, part: &str| {
            let said = p.validate().unwrap_err().to_string();
            assert!(said.contains(part), "{said}");
        };
        refused(PreferenceLoss { ld_alpha: Some(1.5), ..PreferenceLoss::default() }, "1.5 is not in 0 ..= 1");
        let diverging = PreferenceLoss { f_divergence: FDivergence::Alpha(0.5), ..PreferenceLoss::default() };
        refused(PreferenceLoss { reference_free: true, ..diverging }, "--reference-free");
        let exo = PreferenceLoss { loss: LossMix::single(Loss::ExoPair), ..PreferenceLoss::default() };
        refused(exo, "exo_pair needs a value above 0");
    }

    #[test]
    fn settings_that_came_later_are_not_written_where_they_are_defaults() {
        let p = PreferenceLoss::default();
        let text = serde_json::to_string(&p).unwrap();
        for later in ["ld_alpha", "wpo", "f_divergence", "discopop_tau", "dpop_lambda", "cpo_alpha"] {
            assert!(!text.contains(later), "{text}");
        }
        assert_eq!(serde_json::from_str::<PreferenceLoss>(&text).unwrap(), p);
        let other = PreferenceLoss { ld_alpha: Some(0.5), wpo: true, f_divergence: FDivergence::Alpha(0.3), ..p };
        let other = PreferenceLoss { discopop_tau: 1.0, dpop_lambda: 2.0, cpo_alpha: 0.5, ..other };
        let text = serde_json::to_string(&other).unwrap();
        assert_eq!(serde_json::from_str::<PreferenceLoss>(&text).unwrap(), other);
    }

    /// Compares the gradient by every sum with central differences.
    fn check_gradients(p: &PreferenceLoss) {
        for paired in [true, false].into_iter().filter(|&paired| paired || !p.needs_pairs()) {
            let (sums, known) = batch(paired);
            // What kto and bco_shift compare with is no function of the policy, for their gradients: it is held.
            let held = |sums: &[SequenceLogps]| {
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
            let outcomes = p.evaluate(&sums, &known);
            for (s, outcome) in outcomes.iter().enumerate() {
                let [instruction, response] = outcome.d_sums;
                for (part, got) in [instruction, response, outcome.d_tail].into_iter().enumerate() {
                    let step = 1e-5;
                    let moved = |by: f64| {
                        let mut moved = sums.clone();
                        let sums = &mut moved[s];
                        *[&mut sums.instruction, &mut sums.response, &mut sums.response_tail][part] += by;
                        held(&moved)
                    };
                    let want = (moved(step) - moved(-step)) / (2.0 * step);
                    // Differences of large losses lose digits.
                    let allowed = 1e-8 * want.abs().max(1.0) + 1e-11 * held(&sums).abs();
                    assert!((got - want).abs() < allowed, "{s} {part}: {got} {want}: {p:?}");
                }
            }
        }
    }

    #[test]
    fn at_the_reference_the_loss_is_ln_2_and_the_slope_half_beta() {
        let (sums, mut known) = batch(true);
        known.reference = sums.iter().map(|s| s.score(Objective::Jpo)).collect();
        for loss in [Loss::Sigmoid, Loss::Robust, Loss::SigmoidNorm, Loss::Dpop, Loss::AotUnpaired, Loss::Rpo] {
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

    /// Lemma D.1 of the paper, loss by loss: which ones are the same under both objectives where a pair has one instruction.
    #[test]
    fn losses_of_margins_are_the_same_for_one_instruction() {
        let (mut sums, known) = batch(true);
        for (s, sums) in sums.iter_mut().enumerate() {
            sums.instruction = [-30.0, -21.0, -12.0][s / 2];
        }
        // Reference scores of the instruction, which a pair's sides share, and of the response.
        let of_instruction = |s: usize| [-29.5, -22.5, -12.25][s / 2];
        let joint: Vec<f64> = known.reference.iter().enumerate().map(|(s, r)| 0.2 * r + of_instruction(s)).collect();
        let conditional: Vec<f64> = known.reference.iter().map(|r| 0.2 * r).collect();
        for loss in Loss::ALL {
            for p in modified(&PreferenceLoss { loss: LossMix::single(loss), ..PreferenceLoss::default() }) {
                let [jpo, dpo] =
                    [(Objective::Jpo, &joint), (Objective::Dpo, &conditional)].map(|(objective, reference)| {
                        let known = LossInputs { reference: reference.clone(), ..known.clone() };
                        PreferenceLoss { objective, ..p.clone() }.evaluate(&sums, &known)
                    });
                let apart = jpo.iter().zip(&dpo).map(|(a, b)| {
                    // The instruction's gradients cancel within a pair.
                    (a.loss - b.loss).abs() + (a.d_sums[1] - b.d_sums[1]).abs() + (a.d_tail - b.d_tail).abs()
                });
                let apart: f64 = apart.sum();
                assert_eq!(apart < 1e-9, p.is_same_for_one_instruction(loss), "{loss:?} {apart:.1e}: {p:?}");
            }
        }
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
        assert_eq!(
            said,
            "--label-smoothing: needs --loss sigmoid, robust, exo_pair, cpo, aot, aot_unpaired, not hinge"
        );
        let bad = PreferenceLoss { rpo_tau: 0.0, ..PreferenceLoss::default() };
        assert_eq!(bad.validate().unwrap_err().to_string(), "--rpo-tau: 0 is not above 0");
    }
}
