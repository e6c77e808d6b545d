//! Maps from numbers: nodes and handles. Each request looks into several of them, and the standard library's
//! hash takes longer there than the look itself.
//!
//! Who makes files may choose among inode numbers, and could make all of them fall on one place if he knew the hash: so
//! each map has a random factor of its own. High and low half of the product are folded, so that numbers in
//! a row, and those of one block of inodes, spread over all bits.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

/// A map whose keys are numbers.
pub type Numbered<V> = HashMap<u64, V, Multiply>;

/// Makes the hashers of one map.
#[derive(Clone)]
pub struct Multiply(u64);

impl Default for Multiply {
    fn default() -> Multiply {
        Multiply(RandomState::new().hash_one(0) | 1)
    }
}

impl BuildHasher for Multiply {
    type Hasher = Product;

    fn build_hasher(&self) -> Product {
        Product {
            factor: self.0,
            hash: 0,
        }
    }
}

/// A hash of numbers.
pub struct Product {
    factor: u64,
    hash: u64,
}

impl Hasher for Product {
    fn finish(&self) -> u64 {
        self.hash
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|b| self.write_u64(u64::from(*b)));
    }

    fn write_u64(&mut self, number: u64) {
        let product = u128::from(self.hash ^ number) * u128::from(self.factor);
        self.hash = (product >> 64) as u64 ^ product as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn numbers_in_a_row_and_numbers_far_apart_spread_over_all_bits() {
        for step in [1, 2, 16, 256, 8192, 1 << 20, 1 << 32, 1 << 40] {
            let maker = Multiply::default();
            let hashes = (1..=4096_u64).map(|n| maker.hash_one(n * step));
            // The map takes its place from the lower bits and tells entries there apart by the upper seven.
            let (mut low, mut high) = (HashSet::new(), HashSet::new());
            for hash in hashes {
                low.insert(hash % 8192);
                high.insert(hash >> 57);
            }
            assert!(low.len() > 1024, "step {step}: {} places", low.len());
            assert!(high.len() > 32, "step {step}: {} upper bits", high.len());
        }
    }
}
