//! Division of questions into groups that fit a forward pass. A group goes to the device as soon as it is full, before later questions are
//! tokenised.

/// Group that is being filled.
#[derive(Debug)]
pub struct TokenGroup<T> {
    items: Vec<T>,
    n_tokens: usize,
    most: usize,
}

impl<T> TokenGroup<T> {
    /// Creates an empty group of at most `most` tokens. A larger item is a group of its own.
    pub fn new(most: usize) -> Self {
        Self { items: Vec::new(), n_tokens: 0, most }
    }

    /// Adds an item of `n_tokens`. If it does not fit, it begins a new group, and the previous group is returned.
    pub fn push(&mut self, item: T, n_tokens: usize) -> Option<Vec<T>> {
        let is_full = !self.items.is_empty() && self.n_tokens + n_tokens > self.most;
        let full = is_full.then(|| self.take());
        self.n_tokens += n_tokens;
        self.items.push(item);
        full
    }

    /// Returns the items of the group, and empties it.
    pub fn take(&mut self) -> Vec<T> {
        self.n_tokens = 0;
        std::mem::take(&mut self.items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_given_as_soon_as_the_next_item_does_not_fit() {
        let mut group = TokenGroup::new(10);
        let full: Vec<Option<Vec<usize>>> = [4, 6, 1, 12, 3].into_iter().map(|n| group.push(n, n)).collect();
        assert_eq!(full, [None, None, Some(vec![4, 6]), Some(vec![1]), Some(vec![12])]);
        assert_eq!((group.take(), group.take()), (vec![3], vec![]));
    }
}
