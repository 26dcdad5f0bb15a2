//! A note for runs that leave `--objective` out, although it matters while every row has one instruction.

use crate::data::batch::Example;
use crate::data::dataset::Dataset;
use crate::flags::ObjectiveArgs;
use crate::objective::{Loss, PreferenceLoss};

/// Returns a note that JPO, the default, is not DPO under these losses, where every row has one instruction and `--objective` was left out.
pub fn objective_note(args: &ObjectiveArgs, preference: Option<&PreferenceLoss>, data: &Dataset) -> Option<String> {
    let preference = preference.filter(|_| args.objective.is_none())?;
    let differing = |(loss, _): (Loss, f64)| (!preference.is_same_for_one_instruction(loss)).then(|| loss.name());
    let losses: Vec<&str> = preference.loss.parts().filter_map(differing).collect();
    if losses.is_empty() || !data.examples.iter().all(has_one_instruction) {
        return None;
    }
    Some(format!(
        "every row has one instruction, and {} is not the same under both objectives then: --objective jpo, the default, scores the instruction too; \
         TRL's is --objective dpo",
        losses.join(", ")
    ))
}

fn has_one_instruction(example: &Example) -> bool {
    match example.sequences.as_slice() {
        [chosen, rejected] => chosen.ids[..chosen.response_start] == rejected.ids[..rejected.response_start],
        _ => true,
    }
}
