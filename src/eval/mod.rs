//! Evaluation: generation, judges, win rates, interplay.
pub mod acquire;
pub mod evaluate;
pub mod generate;
pub mod interplay;
pub mod journal;
pub mod judge;
pub mod statistics;
pub mod strata;
pub mod tasks;
pub mod unclear_answers;

/// Largest number of pairs that are drawn, and of rows that the demo's tasks make, because they are held in memory.
pub const MOST_ROWS: usize = 10_000_000;
