//! Generation, judges, win rate, interplay.
pub mod acquire;
pub mod evaluate;
pub mod generate;
pub mod interplay;
pub mod journal;
pub mod judge;
pub mod statistics;
pub mod strata;
pub mod tasks;
