//! A ring of fixed size that keeps the latest of what is put into it.

/// Keeps the last so many items and counts the others. Its memory is taken at once, and touched as it is used.
#[derive(Debug)]
pub(crate) struct Ring<T> {
    items: Vec<T>,
    capacity: usize,
    /// Items ever put in.
    count: u64,
}

impl<T: Copy> Ring<T> {
    /// An empty ring for so many items, a power of two.
    pub(crate) fn new(capacity: usize) -> Self {
        assert!(capacity.is_power_of_two(), "positions are masked");
        Self { items: Vec::with_capacity(capacity), capacity, count: 0 }
    }

    /// Puts an item in, in place of the oldest one if there is no more room. Never allocates.
    #[inline]
    pub(crate) fn push(&mut self, item: T) {
        let at = self.count as usize & (self.capacity - 1);
        match self.items.get_mut(at) {
            Some(oldest) => *oldest = item,
            None => self.items.push(item),
        }
        self.count += 1;
    }

    /// Items ever put in.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Items that had to make room for later ones.
    pub(crate) fn dropped(&self) -> u64 {
        self.count - self.items.len() as u64
    }

    /// What is still there, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        // Until it is full, nothing lies behind the next item.
        let oldest = (self.count as usize & (self.capacity - 1)).min(self.items.len());
        let (newer, older) = self.items.split_at(oldest);
        older.iter().chain(newer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_kept_in_order() {
        for count in 0..50u64 {
            let mut ring = Ring::new(8);
            let memory = ring.items.as_ptr();
            (0..count).for_each(|n| ring.push(n));
            let want: Vec<u64> = (count.saturating_sub(8)..count).collect();
            assert_eq!(ring.iter().copied().collect::<Vec<_>>(), want);
            assert_eq!((ring.count(), ring.dropped()), (count, count.saturating_sub(8)));
            assert_eq!(ring.items.as_ptr(), memory, "never moved, so never allocated anew");
        }
    }
}
