//! Which variant is the fastest for which shapes: measured by `jointwise tune`, or shipped. All variants of an entry give the same bits, so
//! an entry that is bad, stale or of another device costs time, and nothing else.

use std::collections::BTreeMap;

use super::Variant;

/// The fastest variants by class of shapes; a class is a family's own name for shapes that are alike.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Tuning {
    /// `None`: the baseline.
    fastest: BTreeMap<String, Option<Variant>>,
}

/// What was measured before, by a part of the device's name, in lower case.
const SHIPPED: &str = include_str!("tuning.json");

impl Tuning {
    /// What the program knows of a device without having measured it.
    pub fn shipped(device: &str) -> Self {
        let families: BTreeMap<String, Self> = serde_json::from_str(SHIPPED).unwrap_or_default();
        let device = device.to_lowercase();
        families.into_iter().find(|(family, _)| device.contains(family)).map(|f| f.1).unwrap_or_default()
    }

    /// The fastest of `candidates`, if one of them was found to be that.
    pub fn fastest(&self, class: &str, candidates: &[Option<Variant>]) -> Option<Option<Variant>> {
        self.fastest.get(class).copied().filter(|v| candidates.contains(v))
    }

    /// What was measured.
    pub fn set(&mut self, class: String, fastest: Option<Variant>) {
        self.fastest.insert(class, fastest);
    }

    /// Takes another's entries over its own.
    pub fn merge(&mut self, other: Self) {
        self.fastest.extend(other.fastest);
    }

    /// Classes.
    pub fn len(&self) -> usize {
        self.fastest.len()
    }

    /// Nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.fastest.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_table_is_read_and_only_a_candidate_is_given() {
        let families: BTreeMap<String, Tuning> = serde_json::from_str(SHIPPED).unwrap();
        assert!(families.keys().all(|name| *name == name.to_lowercase()), "{families:?}");
        let mut tuning = Tuning::default();
        tuning.set("a".into(), Some(Variant::Tiles64));
        tuning.set("b".into(), None);
        let both = [None, Some(Variant::Tiles64)];
        assert_eq!(tuning.fastest("a", &both), Some(Some(Variant::Tiles64)));
        assert_eq!(tuning.fastest("b", &both), Some(None));
        assert_eq!(tuning.fastest("a", &[None, Some(Variant::Cpu)]), None, "stale");
        assert_eq!(tuning.fastest("c", &both), None);
    }
}
