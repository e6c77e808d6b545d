//! Numbers from a seed, the same ones every time.

/// splitmix64 (Vigna): small, and every seed gives another sequence.
pub struct Random(pub u64);

impl Random {
    /// Any number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// True so often of a hundred times.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of them.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// The seeds of a test: what `PROXYFS_SEED` (one) or `PROXYFS_SEEDS` (how many) say, else the first
/// `count` and those that have found something before.
pub fn seeds(count: u64, kept: &[u64]) -> Vec<u64> {
    let number = |name| {
        std::env::var(name)
            .ok()
            .map(|s| s.parse::<u64>().expect(name))
    };
    match (number("PROXYFS_SEED"), number("PROXYFS_SEEDS")) {
        (Some(seed), _) => vec![seed],
        (None, Some(count)) => (0..count).collect(),
        (None, None) => (0..count).chain(kept.iter().copied()).collect(),
    }
}
