//! The order in which a tree is walked: a directory's own entries, then its directories by name, each with all that
//! is below before the next.

use crate::change::RelPath;
use std::cmp::Ordering;

/// Which of two directories is walked first. (Not the order of the paths' bytes: `a-b` lies behind `a/b`.)
pub fn walk_order(a: &RelPath, b: &RelPath) -> Ordering {
    parts(a).cmp(parts(b))
}

fn parts(path: &RelPath) -> impl Iterator<Item = &[u8]> {
    let bytes = path.as_bytes();
    bytes.split(|b| *b == b'/').filter(|part| !part.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_below_a_directory_comes_before_its_neighbour() {
        let path = |s: &str| RelPath::new(s.as_bytes()).unwrap();
        let mut all = ["b", "a-b", "a/b", "a/b/c", "a", "", "a.", "a/a"].map(path);
        all.sort_by(walk_order);
        let shown = all.map(|p| p.to_string());
        assert_eq!(shown, ["/", "a", "a/a", "a/b", "a/b/c", "a-b", "a.", "b"]);
    }
}
