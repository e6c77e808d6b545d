//! Which paths are not mirrored: patterns as in gitignore(5), the last one that matches decides.
//!
//! Written here rather than taken from a crate: it is a page of code, works on bytes (names need not be
//! UTF-8), and the crates that do it bring a regular expression engine and a dozen others along.
//!
//! The danger is a border that depends on more than the path: the log, the repair of a mirror and a
//! comparison would draw it differently. So [`Exclude::excludes`] looks at nothing but the path and whether
//! it is a directory, and what is below an excluded directory is excluded, whatever the patterns say.

use crate::change::RelPath;
use std::fmt;

/// The patterns of the setting `exclude`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exclude {
    patterns: Vec<Pattern>,
}

#[derive(Clone, PartialEq, Eq)]
struct Pattern {
    text: String,
    /// `!`: what it matches is mirrored after all.
    negated: bool,
    /// It ends with `/`: it matches directories only.
    directory: bool,
    /// It has a `/` before its end: it begins at the root. Else it is for names at any depth.
    anchored: bool,
    parts: Vec<Part>,
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// As [`Exclude::parse`] reads it.
impl fmt::Display for Exclude {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<&str> = self.patterns.iter().map(|p| &*p.text).collect();
        f.write_str(&all.join(", "))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// `**`: any number of directories.
    Any,
    Name(Vec<Token>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    One(u32),
    /// `?`
    Some,
    /// `*`
    Many,
    /// `[a-z]`, or `[!a-z]`.
    Set(bool, Vec<(u32, u32)>),
}

/// A name as numbers: characters, and each byte that is not UTF-8 as a number behind all characters.
fn codes(name: &[u8]) -> Vec<u32> {
    let mut codes = Vec::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        codes.extend(chunk.valid().chars().map(u32::from));
        codes.extend(chunk.invalid().iter().map(|b| 0x11_0000 + u32::from(*b)));
    }
    codes
}

impl Exclude {
    /// Reads patterns with commas between (a comma in a pattern is written `\,`).
    ///
    /// # Errors
    /// What is wrong with which pattern.
    pub fn parse(text: &str) -> Result<Exclude, String> {
        let mut patterns = Vec::new();
        for one in split(text).into_iter().map(str::trim) {
            patterns.push(Pattern::parse(one).map_err(|why| format!("`{one}`: {why}"))?);
        }
        Ok(Exclude { patterns })
    }

    /// Whether nothing is excluded.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether the path, a directory or not, is excluded; the root never is.
    pub fn excludes(&self, path: &RelPath, is_directory: bool) -> bool {
        if self.is_empty() || path.is_root() {
            return false;
        }
        let parts: Vec<_> = path.as_bytes().split(|b| *b == b'/').map(codes).collect();
        (1..=parts.len()).any(|depth| {
            let directory = is_directory || depth < parts.len();
            let decides = |p: &&Pattern| p.matches(&parts[..depth], directory);
            self.patterns
                .iter()
                .rfind(decides)
                .is_some_and(|p| !p.negated)
        })
    }

    /// Whether entries below a directory may be excluded at one of these paths and not at the other; false
    /// only if they surely are not.
    pub fn may_differ_below(&self, one: &RelPath, other: &RelPath) -> bool {
        self.patterns
            .iter()
            .any(|p| p.may_match_below(one) || p.may_match_below(other))
    }
}

/// At commas without a backslash before them.
fn split(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (i, c) in text.char_indices() {
        if c == ',' && !escaped {
            parts.push(&text[start..i]);
            start = i + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    parts.push(&text[start..]);
    parts
}

impl Pattern {
    fn parse(text: &str) -> Result<Pattern, String> {
        let (negated, rest) = match text.strip_prefix('!') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (directory, rest) = match rest.strip_suffix('/') {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let anchored = rest.contains('/');
        let rest = rest.strip_prefix('/').unwrap_or(rest);
        if rest.is_empty() {
            return Err("a pattern must name something, such as *.tmp or /cache/".into());
        }
        let parts: Result<Vec<_>, String> = rest.split('/').map(part).collect();
        Ok(Pattern {
            text: text.into(),
            negated,
            directory,
            anchored,
            parts: parts?,
        })
    }

    fn matches(&self, path: &[Vec<u32>], is_directory: bool) -> bool {
        if self.directory && !is_directory {
            return false;
        }
        match (self.anchored, path.last()) {
            (true, _) => matches_parts(&self.parts, path),
            (false, Some(name)) => matches_parts(&self.parts, std::slice::from_ref(name)),
            (false, None) => false,
        }
    }

    /// Whether what lies below `dir` depends on where `dir` is.
    fn may_match_below(&self, dir: &RelPath) -> bool {
        if !self.anchored {
            return false;
        }
        let names = dir.as_bytes().split(|b| *b == b'/').map(codes);
        for (part, name) in self.parts.iter().zip(names) {
            match part {
                Part::Any => return true,
                Part::Name(tokens) if matches_name(tokens, &name) => {}
                Part::Name(_) => return false,
            }
        }
        true
    }
}

fn part(text: &str) -> Result<Part, String> {
    match text {
        "**" => Ok(Part::Any),
        "" | "." | ".." => Err("no part of a pattern may be empty, \".\" or \"..\"".into()),
        _ => {
            let mut tokens = Vec::new();
            let mut chars = text.chars().map(u32::from).peekable();
            while let Some(c) = chars.next() {
                tokens.push(match char::from_u32(c) {
                    Some('*') => Token::Many,
                    Some('?') => Token::Some,
                    Some('\\') => Token::One(chars.next().ok_or("nothing follows the last \\")?),
                    Some('[') => set(&mut chars)?,
                    _ => Token::One(c),
                });
            }
            Ok(Part::Name(tokens))
        }
    }
}

fn set(chars: &mut std::iter::Peekable<impl Iterator<Item = u32>>) -> Result<Token, String> {
    let is = |c: Option<&u32>, what: char| c == Some(&u32::from(what));
    let negated = is(chars.peek(), '!') || is(chars.peek(), '^');
    if negated {
        chars.next();
    }
    let mut ranges = Vec::new();
    loop {
        let open = "a [ has no ]; write \\[ for a bracket itself";
        let mut from = chars.next().ok_or(open)?;
        // Directly behind the bracket it stands for itself.
        if from == u32::from(']') && !ranges.is_empty() {
            return Ok(Token::Set(negated, ranges));
        }
        if from == u32::from('\\') {
            from = chars.next().ok_or(open)?;
        }
        let mut to = from;
        if is(chars.peek(), '-') {
            chars.next();
            if is(chars.peek(), ']') {
                ranges.push((u32::from('-'), u32::from('-')));
            } else {
                to = chars.next().ok_or(open)?;
                if to == u32::from('\\') {
                    to = chars.next().ok_or(open)?;
                }
            }
        }
        ranges.push((from, to));
    }
}

fn matches_parts(parts: &[Part], path: &[Vec<u32>]) -> bool {
    match (parts, path) {
        ([], _) => path.is_empty(),
        ([Part::Any], _) => !path.is_empty(),
        ([Part::Any, rest @ ..], _) => (0..=path.len()).any(|i| matches_parts(rest, &path[i..])),
        ([Part::Name(_), ..], []) => false,
        ([Part::Name(tokens), rest @ ..], [name, below @ ..]) => {
            matches_name(tokens, name) && matches_parts(rest, below)
        }
    }
}

/// One name, going back to the last `*` where it does not go on.
fn matches_name(tokens: &[Token], name: &[u32]) -> bool {
    let (mut t, mut n) = (0, 0);
    let mut star = None;
    while n < name.len() {
        let fits = match tokens.get(t) {
            Some(Token::One(c)) => *c == name[n],
            Some(Token::Some) => true,
            Some(Token::Set(negated, ranges)) => {
                ranges.iter().any(|r| r.0 <= name[n] && name[n] <= r.1) != *negated
            }
            Some(Token::Many) => {
                star = Some((t, n));
                t += 1;
                continue;
            }
            None => false,
        };
        if fits {
            (t, n) = (t + 1, n + 1);
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            (t, n) = (at + 1, from + 1);
        } else {
            return false;
        }
    }
    tokens[t..].iter().all(|token| *token == Token::Many)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excludes(patterns: &str, path: &[u8]) -> bool {
        let (path, directory) = match path.strip_suffix(b"/") {
            Some(path) => (path, true),
            None => (path, false),
        };
        let path = RelPath::new(path).unwrap();
        Exclude::parse(patterns).unwrap().excludes(&path, directory)
    }

    #[test]
    fn patterns_match_as_gitignore_says() {
        for (patterns, excluded, included) in [
            (
                "*.tmp",
                &["a.tmp", "d/a.tmp", ".tmp", "d.tmp/x"][..],
                &["a.tmpx", "tmp", "a.tmp.gz"][..],
            ),
            (
                "cache/",
                &["cache/", "cache/x", "d/cache/x/y"],
                &["cache", "d/cache", "caches/"],
            ),
            ("/cache", &["cache", "cache/x"], &["d/cache", "caches"]),
            ("a/b", &["a/b", "a/b/c"], &["x/a/b", "a", "b"]),
            ("a/*", &["a/b", "a/b/c"], &["a/", "x/a/b"]),
            ("a/*.c", &["a/x.c"], &["a/b/x.c"]),
            ("**/x", &["x", "a/x", "a/b/x"], &["ax"]),
            ("a/**", &["a/x", "a/b/x"], &["a/", "b/a/x"]),
            ("a/**/z", &["a/z", "a/b/z", "a/b/c/z"], &["a/zz", "z"]),
            ("**", &["a", "a/b"], &[]),
            ("f?o", &["foo", "f.o"], &["fo", "fooo"]),
            ("[a-c]x", &["ax", "cx"], &["dx", "x"]),
            ("[!a-c]x", &["dx"], &["ax", "x"]),
            ("[]-]x", &["]x", "-x"], &["ax"]),
            (
                r"\*x, \!y, a\,b",
                &["*x", "!y", "a,b"],
                &["ax", "y", "a", "b"],
            ),
            ("*.log, !keep.log", &["a.log"], &["keep.log", "d/keep.log"]),
            ("!keep.log, *.log", &["keep.log"], &[]),
            ("/d/, !/d/keep", &["d/keep"], &[]),
            ("/d/*, !/d/keep", &["d/x"], &["d/keep", "d/keep/x"]),
            ("a*b*c", &["abc", "aXbXbc", "abcbc"], &["ab", "acb"]),
            ("*ä?", &["xäü", "äx"], &["ä"]),
            (" *.bak , x y ", &["a.bak", "x y"], &["x", "y"]),
        ] {
            for path in excluded {
                assert!(
                    excludes(patterns, path.as_bytes()),
                    "{patterns} excludes {path}"
                );
            }
            for path in included {
                assert!(
                    !excludes(patterns, path.as_bytes()),
                    "{patterns} spares {path}"
                );
            }
        }
    }

    #[test]
    fn names_need_not_be_utf_8() {
        assert!(excludes("*.tmp", b"caf\xe9.tmp"));
        assert!(excludes("caf?.tmp", b"caf\xe9.tmp"));
        assert!(!excludes("caf\u{e9}.tmp", b"caf\xe9.tmp"));
        assert!(excludes("?\u{e9}", b"\xff\xc3\xa9"));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for text in [
            "", "/", "!", "a,,b", "[a", "a\\", "a//b", "../x", "!/", "a/./b",
        ] {
            assert!(Exclude::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_root_is_never_excluded() {
        assert!(
            !Exclude::parse("*")
                .unwrap()
                .excludes(&RelPath::root(), true)
        );
        assert!(Exclude::default().is_empty());
    }

    #[test]
    fn only_anchored_patterns_make_a_difference_below_a_moved_directory() {
        let differ = |patterns: &str, one: &str, other: &str| {
            let path = |p: &str| RelPath::new(p.as_bytes()).unwrap();
            Exclude::parse(patterns)
                .unwrap()
                .may_differ_below(&path(one), &path(other))
        };
        assert!(!differ("*.tmp, cache/", "a", "b"));
        assert!(!differ("/a/cache/", "b", "c"));
        assert!(differ("/a/cache/", "b", "a"));
        assert!(differ("/a/cache/", "a", "x/y"));
        assert!(differ("/a/*/x/cache", "a/b", "c"));
        assert!(differ("**/x/y", "a", "b"));
        assert!(differ("a/**/z", "a/b/c/d", "e"));
        assert!(!differ("a/**/z", "b", "e"));
    }
}
