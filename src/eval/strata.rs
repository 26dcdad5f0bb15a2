//! Joint pairs drawn from conditional preferences: both sides preferred, both rejected, or one of each (PAPER section 5).

use std::collections::HashSet;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, json};

use crate::data::comparisons::{Comparison, ComparisonKind, Side, place};
use crate::data::rows::{Instruction, PromptResponse, Row, RowContent, SourceLocation};
use crate::error::{Error, Result};
use crate::rng::Rng;

/// Stratum of a comparison: whether each side was chosen or rejected in its conditional preference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stratum {
    /// Both sides were preferred.
    BothChosen,
    /// Both sides were rejected.
    BothRejected,
    /// One side was preferred, the other rejected.
    Mixed,
    /// Both sides answer one instruction: a conditional comparison.
    Conditional,
    /// The conditional preferences are not known.
    Other,
}

impl Stratum {
    /// Strata from which pairs can be drawn.
    pub const DRAWN: [Stratum; 3] = [Self::BothChosen, Self::BothRejected, Self::Mixed];
    /// All strata, in the order of tables.
    pub const ALL: [Stratum; 5] = [Self::BothChosen, Self::BothRejected, Self::Mixed, Self::Conditional, Self::Other];

    /// Returns the stratum's name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::BothChosen => "both_chosen",
            Self::BothRejected => "both_rejected",
            Self::Mixed => "mixed",
            Self::Conditional => "conditional",
            Self::Other => "other",
        }
    }

    /// Returns the stratum's name in words.
    pub fn title(self) -> &'static str {
        match self {
            Self::BothChosen => "both chosen",
            Self::BothRejected => "both rejected",
            Self::Mixed => "one of each",
            Self::Conditional => "same instruction",
            Self::Other => "not known",
        }
    }
}

/// Conditional preference to draw from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConditionalPreference {
    /// I, the instruction.
    pub instruction: String,
    /// Responses: preferred, rejected.
    pub responses: [String; 2],
    /// Location of the row: "prefs.jsonl:12".
    pub source: String,
}

impl ConditionalPreference {
    /// Creates a conditional preference from a row.
    ///
    /// # Errors
    /// [`crate::Error::Line`] for a row whose instructions differ, or are conversations.
    pub fn from_row(row: &Row) -> Result<Self> {
        let RowContent::Preference { chosen, rejected } = &row.content else {
            return Err(row.place.error("the row holds one text, not a preference"));
        };
        if chosen.instruction != rejected.instruction {
            return Err(row.place.error(
                "its two instructions differ: joint pairs are drawn from preferences between responses to one",
            ));
        }
        let instruction = match &chosen.instruction {
            Instruction::Plain(instruction) => instruction,
            Instruction::Chat(_) => {
                return Err(row.place.error("its instruction is a conversation: judges are asked about texts"));
            }
            Instruction::Verbatim(_) => {
                return Err(row
                    .place
                    .error("its sides are whole texts: judges are asked about an instruction and responses"));
            }
        };
        let response = |text: &PromptResponse| text.response.plain().map_err(|reason| row.place.error(reason));
        let file = row.place.path.file_name().map_or_else(Default::default, |n| n.to_string_lossy().into_owned());
        Ok(Self {
            instruction: instruction.clone(),
            responses: [response(chosen)?, response(rejected)?],
            source: SourceLocation { path: Path::new(&file).into(), ..row.place.clone() }.to_string(),
        })
    }
}

/// Index of a preference, and of one of its sides (0: preferred).
type SideRef = (usize, usize);

/// Queue of preferences in random order. Each one comes up once before any comes up again.
struct ShuffledQueue {
    items: Vec<usize>,
    at: usize,
}

impl ShuffledQueue {
    fn new(n: usize, rng: &mut Rng) -> Self {
        let mut queue = Self { items: (0..n).collect(), at: 0 };
        rng.shuffle(&mut queue.items);
        queue
    }

    /// Takes the next preference that is wanted; those before it stay in the queue. Returns `None` where none is left in this round or the
    /// next.
    fn take(&mut self, rng: &mut Rng, wanted: impl Fn(usize) -> bool) -> Option<usize> {
        for _ in 0..2 {
            if let Some(found) = (self.at..self.items.len()).find(|&i| wanted(self.items[i])) {
                let item = self.items[found];
                self.items.copy_within(self.at..found, self.at + 1);
                self.items[self.at] = item;
                self.at += 1;
                return Some(item);
            }
            if self.at < self.items.len() {
                // Preferences left over from this round come first in the next one.
                self.items.rotate_left(self.at);
                let left = self.items.len() - self.at;
                rng.shuffle(&mut self.items[left..]);
            } else {
                rng.shuffle(&mut self.items);
            }
            self.at = 0;
        }
        None
    }
}

/// Draws `n` joint pairs from the `strata` in rotation, so that their numbers differ by at most one. In every other mixed pair, the
/// preferred side comes first. The instructions of a pair differ, no pair occurs twice, and within a stratum preferences are used as evenly
/// as this allows. The location of pair i is line i + 1 of `path`.
///
/// # Errors
/// [`Error::Flag`] where the preferences do not allow as many pairs, or where a stratum is named twice.
pub fn draw(
    preferences: &[ConditionalPreference],
    strata: &[Stratum],
    n: usize,
    seed: u64,
    path: &std::path::Path,
) -> Result<Vec<Comparison>> {
    if strata.iter().collect::<HashSet<_>>().len() < strata.len() {
        return Err(Error::flag("strata", "must name none twice"));
    }
    let mut rng = Rng::new(seed, 11);
    let mut samplers: Vec<StratumSampler> = strata
        .iter()
        .map(|&stratum| StratumSampler {
            stratum,
            preferences,
            queue: ShuffledQueue::new(preferences.len(), &mut rng),
            seen: HashSet::new(),
        })
        .collect();
    // No capacity is reserved for `n`, because the preferences may allow far fewer pairs.
    let mut rows = Vec::new();
    for i in 0..n {
        let of = i % strata.len();
        let sampler = &mut samplers[of];
        let Some(pair) = sampler.next(&mut rng) else {
            let reason = format!(
                "{n} pairs need {} of {}: {} preferences hold {}",
                (n - of).div_ceil(strata.len()),
                sampler.stratum.title(),
                preferences.len(),
                sampler.seen.len()
            );
            return Err(Error::flag("pairs", reason));
        };
        rows.push(row(preferences, sampler.stratum, pair, path, i + 1));
    }
    Ok(rows)
}

/// Sampler of the pairs of one stratum. Both sides come from one queue, so as long as there are enough preferences, each is used in one
/// pair only, and pairs are independent.
struct StratumSampler<'p> {
    stratum: Stratum,
    preferences: &'p [ConditionalPreference],
    queue: ShuffledQueue,
    /// Pairs drawn so far, as indices: of mixed pairs with the preferred side first, of others with the smaller index first.
    seen: HashSet<(usize, usize)>,
}

impl StratumSampler<'_> {
    fn may(&self, a: usize, b: usize) -> bool {
        let fresh = match self.stratum {
            Stratum::Mixed => !self.seen.contains(&(a, b)),
            _ => !self.seen.contains(&(a.min(b), a.max(b))),
        };
        fresh && self.preferences[a].instruction != self.preferences[b].instruction
    }

    fn next(&mut self, rng: &mut Rng) -> Option<[SideRef; 2]> {
        let mixed = self.stratum == Stratum::Mixed;
        let mut refused = HashSet::new();
        let (a, b) = loop {
            let a = self.queue.take(rng, |a| !refused.contains(&a))?;
            let mut queue = std::mem::replace(&mut self.queue, ShuffledQueue { items: Vec::new(), at: 0 });
            let b = queue.take(rng, |b| self.may(a, b));
            self.queue = queue;
            match b {
                Some(b) => break (a, b),
                None => refused.insert(a),
            };
        };
        self.seen.insert(if mixed { (a, b) } else { (a.min(b), a.max(b)) });
        let n = self.seen.len();
        Some(match self.stratum {
            Stratum::BothRejected => [(a, 1), (b, 1)],
            Stratum::Mixed if n.is_multiple_of(2) => [(b, 1), (a, 0)],
            Stratum::Mixed => [(a, 0), (b, 1)],
            _ => [(a, 0), (b, 0)],
        })
    }
}

fn row(
    preferences: &[ConditionalPreference],
    stratum: Stratum,
    pair: [SideRef; 2],
    path: &std::path::Path,
    line: usize,
) -> Comparison {
    let side = |(preference, side): SideRef| {
        let from: &ConditionalPreference = &preferences[preference];
        Side { instruction: from.instruction.clone(), response: from.responses[side].clone() }
    };
    let mut more = Map::new();
    more.insert("stratum".into(), json!(stratum));
    for (i, (preference, side)) in pair.into_iter().enumerate() {
        more.insert(format!("chosen_{i}"), json!(side == 0));
        more.insert(format!("source_{i}"), json!(preferences[preference].source));
    }
    Comparison { place: place(path.into(), line), mode: ComparisonKind::Pair, sides: pair.map(side), more }
}
