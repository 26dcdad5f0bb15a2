//! Table of the fastest variant per class of shapes, measured by `jointwise tune` or shipped. All variants of a class give bit-identical
//! results, so a wrong or stale entry costs time only.

use std::collections::BTreeMap;

use super::Variant;

/// Fastest variants by class. A class is a name that a kernel family gives to similar shapes.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Tuning {
    /// Fastest variant by class; `None` is the baseline.
    fastest: BTreeMap<String, Option<Variant>>,
}

/// Tables measured on known devices, by a lower-case part of the device's name.
const SHIPPED: &str = include_str!("tuning.json");

impl Tuning {
    /// Returns the shipped table of a device; empty if there is none.
    pub fn shipped(device: &str) -> Self {
        let families: BTreeMap<String, Self> = serde_json::from_str(SHIPPED).unwrap_or_default();
        let device = device.to_lowercase();
        families.into_iter().find(|(family, _)| device.contains(family)).map(|f| f.1).unwrap_or_default()
    }

    /// Returns the fastest variant of a class, if the class was measured and the variant is among `candidates`.
    pub fn fastest(&self, class: &str, candidates: &[Option<Variant>]) -> Option<Option<Variant>> {
        self.fastest.get(class).copied().filter(|v| candidates.contains(v))
    }

    /// Stores the measured fastest variant of a class.
    pub fn set(&mut self, class: String, fastest: Option<Variant>) {
        self.fastest.insert(class, fastest);
    }

    /// Adds the entries of `other`, which replace existing ones.
    pub fn merge(&mut self, other: Self) {
        self.fastest.extend(other.fastest);
    }

    /// Returns classes with their fastest variants (`None`: the baseline), in the order of the classes' names.
    pub fn entries(&self) -> impl Iterator<Item = (&str, Option<Variant>)> {
        self.fastest.iter().map(|(class, &variant)| (class.as_str(), variant))
    }

    /// Returns the number of classes.
    pub fn len(&self) -> usize {
        self.fastest.len()
    }

    /// Returns whether the table has no classes.
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
