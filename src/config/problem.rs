//! What can be wrong with a configuration: each problem one line with its file and line number,
//! and, where a word was nearly right, the word that was probably meant.

use std::fmt;
use std::path::PathBuf;

/// All problems of a configuration, at least one.
///
/// Shown one a line, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(pub Vec<Problem>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// One problem and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// The line, counted from 1; none where the problem is the file as a whole.
    pub line: Option<usize>,
    /// What is wrong.
    pub fault: Fault,
}

/// What is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The file is not there.
    Missing,
    /// The file, or the directory of mirrors, cannot be read; the text is the system's reason.
    Unreadable(String),
    /// The file is no INI at this line; the text says what is expected.
    NotIni(String),
    /// A key stands before the first section.
    OutsideSection {
        /// The key.
        key: String,
    },
    /// A section that is not known, or not allowed in this file.
    UnknownSection {
        /// Its name as written.
        name: String,
        /// What to write instead.
        advice: String,
    },
    /// A section that is there a second time.
    DuplicateSection {
        /// Its name.
        name: String,
        /// Where it was first: `line 7`, or `FILE:7` in another file.
        first: String,
    },
    /// A `[mirror NAME]` whose name is not allowed; the text says what is.
    BadMirrorName {
        /// The name as written.
        name: String,
        /// What is allowed.
        why: String,
    },
    /// A key that is not known in its section.
    UnknownKey {
        /// The key as written.
        key: String,
        /// The section it is in.
        section: String,
        /// What to write instead.
        advice: String,
    },
    /// A key that its section has twice.
    DuplicateKey {
        /// The key.
        key: String,
        /// The line it was first on.
        first: usize,
    },
    /// A value that is not allowed.
    BadValue {
        /// The key.
        key: String,
        /// The value as written.
        value: String,
        /// What is allowed, with an example.
        why: String,
    },
    /// A key that its section must have.
    MissingKey {
        /// The key.
        key: &'static str,
        /// The section that lacks it.
        section: String,
        /// A value to show how it is written.
        example: &'static str,
    },
    /// Values that are good one by one but not together; the text says why and what to do.
    Conflict(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        match self.line {
            Some(line) => write!(f, "{file}:{line}: {}", self.fault),
            None => write!(f, "{file}: {}", self.fault),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Missing => f.write_str(
                "there is no such file: create it from proxyfs.ini.example, or name another with \
                 --config FILE",
            ),
            Fault::Unreadable(why) => write!(f, "cannot be read: {why}"),
            Fault::NotIni(why) => write!(f, "{why}"),
            Fault::OutsideSection { key } => write!(
                f,
                "the key `{key}` stands before any section: write [proxyfs] above it"
            ),
            Fault::UnknownSection { name, advice } => {
                write!(f, "unknown section `[{name}]`: {advice}")
            }
            Fault::DuplicateSection { name, first } => write!(
                f,
                "the section `[{name}]` is there twice, first at {first}: keep one of them"
            ),
            Fault::BadMirrorName { name, why } => write!(f, "bad mirror name `{name}`: {why}"),
            Fault::UnknownKey {
                key,
                section,
                advice,
            } => write!(f, "unknown key `{key}` in [{section}]: {advice}"),
            Fault::DuplicateKey { key, first } => write!(
                f,
                "the key `{key}` is there twice, first at line {first}: keep one of them"
            ),
            Fault::BadValue { key, value, why } => {
                write!(f, "bad value `{value}` for `{key}`: {why}")
            }
            Fault::MissingKey {
                key,
                section,
                example,
            } => write!(
                f,
                "`{key}` is missing in [{section}]: add a line such as `{key} = {example}`"
            ),
            Fault::Conflict(why) => f.write_str(why),
        }
    }
}

/// Advice for an unknown word: the near miss among `known`, or the list of what there is.
pub fn advice(word: &str, known: &[&str]) -> String {
    match nearest(word, known) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => format!("known are {}", known.join(", ")),
    }
}

/// The known word that `word` was probably meant to be: at most a third of its letters wrong (one
/// for words of up to five letters), whatever their case, and `-` for `_`.
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let plain = word.to_lowercase().replace('-', "_");
    let allowed = (plain.chars().count() / 3).max(1);
    known
        .iter()
        .map(|k| (distance(&plain, k), *k))
        .filter(|(d, _)| *d <= allowed)
        .min_by_key(|(d, _)| *d)
        .map(|(_, k)| k)
}

/// How many letters must be added, dropped, replaced, or swapped with their neighbour to make `b` of
/// `a` (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let differs = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (last[j] + 1).min(row[j - 1] + 1).min(last[j - 1] + differs);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_added_dropped_replaced_and_swapped_count_one_each() {
        for (a, b, expected) in [
            ("", "", 0),
            ("source", "source", 0),
            ("sorce", "source", 1),
            ("soucre", "source", 1),
            ("sources", "source", 1),
            ("sauce", "source", 2),
            ("", "abc", 3),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
            assert_eq!(distance(b, a), expected, "{b} {a}");
        }
    }

    #[test]
    fn only_a_near_miss_gets_a_suggestion() {
        let known = ["source", "mount_point", "port"];
        assert_eq!(nearest("sorce", &known), Some("source"));
        assert_eq!(nearest("Source", &known), Some("source"));
        assert_eq!(nearest("mount-point", &known), Some("mount_point"));
        assert_eq!(nearest("mountpoint", &known), Some("mount_point"));
        assert_eq!(nearest("colour", &known), None);
        assert_eq!(
            advice("colour", &known),
            "known are source, mount_point, port"
        );
    }
}
