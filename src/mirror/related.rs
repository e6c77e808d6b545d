//! Which paths are under way: tells in time that grows with a path's depth, not with how many there
//! are, whether any of them is a given path, lies above it or below it.

use crate::change::RelPath;
use std::collections::HashMap;

/// A bag of paths.
#[derive(Default)]
pub(super) struct PathIndex {
    /// How often each path is in the bag.
    here: HashMap<Vec<u8>, u32>,
    /// For each directory, how many paths in the bag lie below it.
    below: HashMap<Vec<u8>, u32>,
}

impl PathIndex {
    /// Puts a path in.
    pub fn insert(&mut self, path: &RelPath) {
        *self.here.entry(path.as_bytes().to_vec()).or_default() += 1;
        for above in path.ancestors() {
            *self.below.entry(above.to_vec()).or_default() += 1;
        }
    }

    /// Takes a path out that was put in.
    pub fn remove(&mut self, path: &RelPath) {
        let less = |bag: &mut HashMap<Vec<u8>, u32>, key: &[u8]| {
            if let Some(count) = bag.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    bag.remove(key);
                }
            }
        };
        less(&mut self.here, path.as_bytes());
        for above in path.ancestors() {
            less(&mut self.below, above);
        }
    }

    /// Whether a path in the bag is `path`, lies above it or below it.
    pub fn touches(&self, path: &RelPath) -> bool {
        self.touches_but(path, 0)
    }

    /// The same, but for `own` times that `path` itself is in the bag.
    pub fn touches_but(&self, path: &RelPath, own: u32) -> bool {
        self.here.get(path.as_bytes()).is_some_and(|n| *n > own)
            || self.below.contains_key(path.as_bytes())
            || path.ancestors().any(|above| self.here.contains_key(above))
    }

    /// Whether a path in the bag is `path` or lies below it.
    pub fn reaches_into(&self, path: &RelPath) -> bool {
        self.here.contains_key(path.as_bytes()) || self.below.contains_key(path.as_bytes())
    }

    /// Whether a path in the bag is `path` or lies above it.
    pub fn reaches_over(&self, path: &RelPath) -> bool {
        self.here.contains_key(path.as_bytes())
            || path.ancestors().any(|above| self.here.contains_key(above))
    }

    /// Whether nothing is in the bag.
    pub fn is_empty(&self) -> bool {
        self.here.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_path() -> impl Strategy<Value = RelPath> {
        prop::collection::vec("[ab]{1,2}", 0..4)
            .prop_map(|p| RelPath::new(p.join("/").as_bytes()).unwrap())
    }

    proptest! {
        #[test]
        fn the_index_agrees_with_looking_at_every_path(
            paths in prop::collection::vec((any_path(), any::<bool>()), 0..12), asked in any_path()
        ) {
            let mut index = PathIndex::default();
            for (path, _) in &paths {
                index.insert(path);
            }
            for (path, _) in paths.iter().filter(|p| p.1) {
                index.remove(path);
            }
            let left: Vec<&RelPath> = paths.iter().filter(|p| !p.1).map(|p| &p.0).collect();
            prop_assert_eq!(index.touches(&asked), left.iter().any(|p| p.is_related(&asked)));
            prop_assert_eq!(index.is_empty(), left.is_empty());
            let into = left.iter().any(|p| p.is_at_or_below(&asked));
            prop_assert_eq!(index.reaches_into(&asked), into);
            let over = left.iter().any(|p| asked.is_at_or_below(p));
            prop_assert_eq!(index.reaches_over(&asked), over);
            let own = left.iter().filter(|p| **p == &asked).count() as u32;
            let others = left.iter().any(|p| p.is_related(&asked) && **p != asked);
            prop_assert_eq!(index.touches_but(&asked, own), others);
        }
    }
}
