//! Shares of the rows that ranks score with the reference.

/// Largest number of rows per rank that are scored before the scores are exchanged.
pub const ROWS_PER_ROUND: usize = 512;

/// Deals rows to ranks, the same on every rank. `stored` tells of each rank which rows it has in its store: such a row is the first of those
/// ranks', and the others are dealt out in turn. Returns each row's rank.
pub fn deal(stored: &[Vec<bool>]) -> Vec<usize> {
    let n_rows = stored.first().map_or(0, Vec::len);
    let mut turn = 0..;
    let mut next = || turn.next().unwrap_or(0) % stored.len();
    let rank_of = |row: usize| stored.iter().position(|of_rank| of_rank.get(row) == Some(&true));
    (0..n_rows).map(|row| rank_of(row).unwrap_or_else(&mut next)).collect()
}

#[cfg(test)]
mod tests {
    use super::deal;

    #[test]
    fn a_row_is_of_the_rank_that_knows_it() {
        let none = vec![false; 5];
        assert_eq!(deal(&[none.clone(), none.clone()]), [0, 1, 0, 1, 0]);
        let some = vec![true, false, false, true, false];
        assert_eq!(deal(&[none.clone(), some.clone(), none.clone()]), [1, 0, 1, 1, 2]);
        assert_eq!(deal(&[vec![true; 5], some]), [0; 5]);
        assert!(deal(&[]).is_empty());
    }
}
