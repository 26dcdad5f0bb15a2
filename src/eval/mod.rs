//! Generation, judges, win rate, interplay.
pub mod generate;
pub mod tasks;
