//! The rules of the house, checked by reading `src/`: which room may import what, where `unsafe` may
//! stand, how long a file may be. A comment or a string that only speaks of a crate is no import.
#![allow(clippy::unwrap_used)]

use std::path::Path;

/// Files with more lines than this are two rooms.
const LONGEST_FILE: usize = 700;

/// Where `unsafe` may stand: one file a side. (The network side needs it for one system call only,
/// `open_by_handle_at(2)`: ssh2 and rustix are safe. What time it is on the wall is one more.)
const UNSAFE_FILES: [&str; 3] = ["local/sys.rs", "mirror/source.rs", "mirror/clock.rs"];

/// Crates that only some rooms may use: the crate, and the rooms as [`is_in`] takes them.
const CRATES: [(&str, &[&str]); 4] = [
    ("fuser", &["mount"]),
    ("rusqlite", &["journal"]),
    ("ssh2", &["sftp/session", "sftp/channel"]),
    ("lettre", &["alarm"]),
];

/// Rooms that must not import another: who, and whom.
const WALLS: [(&str, &str); 2] = [("local", "mirror"), ("sftp", "journal")];

/// Who may import `daemon`. (`asking` is a part of `main`.)
const DAEMON_USERS: [&str; 3] = ["main", "asking", "daemon"];

/// A word or a sign of the code, and its line.
#[derive(Debug, PartialEq)]
struct Token {
    text: String,
    line: usize,
}

/// Whether `file` (relative to `src/`) is the room's own file or one in its directory.
fn is_in(file: &str, room: &str) -> bool {
    file == format!("{room}.rs") || file.starts_with(&format!("{room}/"))
}

/// The words and signs of a Rust file, without comments, strings and characters.
fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut found = Vec::new();
    let (mut i, mut line) = (0, 1);
    while i < chars.len() {
        let start = i;
        let c = chars[i];
        if c == '/' && at(i + 1) == '/' {
            while i < chars.len() && chars[i] != '\n' {
                i += 1;
            }
        } else if c == '/' && at(i + 1) == '*' {
            let mut depth = 0;
            loop {
                match (at(i), at(i + 1)) {
                    ('/', '*') => (depth, i) = (depth + 1, i + 2),
                    ('*', '/') => (depth, i) = (depth - 1, i + 2),
                    _ => i += 1,
                }
                if depth == 0 || i >= chars.len() {
                    break;
                }
            }
        } else if c == '"' {
            i = behind_string(&chars, i);
        } else if c == '\'' {
            // A character, or else a lifetime, which is a sign and a word.
            if at(i + 1) == '\\' {
                i += 3;
                while i < chars.len() && chars[i] != '\'' {
                    i += 1;
                }
                i += 1;
            } else if at(i + 2) == '\'' {
                i += 3;
            } else {
                i += 1;
            }
        } else if c.is_alphanumeric() || c == '_' {
            while at(i).is_alphanumeric() || at(i) == '_' {
                i += 1;
            }
            let word: String = chars[start..i].iter().collect();
            let hashes = chars[i..].iter().take_while(|c| **c == '#').count();
            if matches!(word.as_str(), "r" | "br" | "cr") && at(i + hashes) == '"' {
                i += hashes + 1;
                while i < chars.len() && !ends_raw(&chars, i, hashes) {
                    i += 1;
                }
                i += 1 + hashes;
            } else {
                found.push(Token { text: word, line });
            }
        } else {
            i += 1;
            if c == ':' && at(i) == ':' {
                i += 1;
            }
            if !c.is_whitespace() {
                let text = chars[start..i].iter().collect();
                found.push(Token { text, line });
            }
        }
        let passed = &chars[start..i.min(chars.len())];
        line += passed.iter().filter(|c| **c == '\n').count();
    }
    found
}

fn behind_string(chars: &[char], start: usize) -> usize {
    let mut i = start + 1;
    while i < chars.len() && chars[i] != '"' {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

fn ends_raw(chars: &[char], i: usize, hashes: usize) -> bool {
    chars[i] == '"' && chars[i + 1..].iter().take_while(|c| **c == '#').count() >= hashes
}

/// Every path in the code (`a::b::c`), those in the braces of a `use` written out, and its line.
fn paths(tokens: &[Token]) -> Vec<(Vec<String>, usize)> {
    let mut found = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        i = match is_word(&tokens[i].text) {
            true => one_path(tokens, i, &[], &mut found),
            false => i + 1,
        };
    }
    found
}

fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphanumeric() || c == '_')
}

/// Reads the path at `i` with `prefix` before it; returns where it ends.
fn one_path(
    tokens: &[Token],
    mut i: usize,
    prefix: &[String],
    found: &mut Vec<(Vec<String>, usize)>,
) -> usize {
    let mut path = prefix.to_vec();
    let line = tokens[i].line;
    let sign = |i: usize| tokens.get(i).map_or("", |t| t.text.as_str());
    while is_word(sign(i)) {
        path.push(tokens[i].text.clone());
        if sign(i + 1) != "::" {
            found.push((path, line));
            return i + 1;
        }
        i += 2;
    }
    if sign(i) == "{" {
        i += 1;
        while i < tokens.len() && sign(i) != "}" {
            i = match is_word(sign(i)) || sign(i) == "{" {
                true => one_path(tokens, i, &path, found),
                false => i + 1,
            };
        }
        return i + 1;
    }
    found.push((path, line));
    i + 1
}

/// The room of this crate that a path leads to, if it begins at the crate's root or above.
fn room_of(path: &[String]) -> Option<&str> {
    let first = path.first()?.as_str();
    if !matches!(first, "crate" | "super" | "self" | "proxyfs") {
        return None;
    }
    let at_root = |part: &&String| matches!(part.as_str(), "crate" | "super" | "self" | "proxyfs");
    path.iter().find(|part| !at_root(part)).map(String::as_str)
}

/// What breaks a rule in `file`, whose text is `text`: `src/FILE:LINE: why`, a line each.
fn faults(file: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut fault = |line: usize, why: String| found.push(format!("src/{file}:{line}: {why}"));
    if !text.starts_with("//!") {
        fault(
            1,
            "the file does not begin with `//!`: say what it does".into(),
        );
    }
    let lines = text.lines().count();
    if lines > LONGEST_FILE {
        let why = format!("{lines} lines are more than {LONGEST_FILE}: split the file by topic");
        fault(LONGEST_FILE + 1, why);
    }
    let tokens = tokens(text);
    for token in &tokens {
        if token.text == "unsafe" && !UNSAFE_FILES.contains(&file) {
            let why = format!("`unsafe` is allowed only in {}", UNSAFE_FILES.join(", "));
            fault(token.line, why);
        }
        for (name, rooms) in CRATES {
            if token.text == name && !rooms.iter().any(|room| is_in(file, room)) {
                let why = format!("`{name}` is for {} only", rooms.join(" and "));
                fault(token.line, why);
            }
        }
    }
    for (path, line) in paths(&tokens) {
        let Some(room) = room_of(&path) else { continue };
        for (who, whom) in WALLS {
            if is_in(file, who) && room == whom {
                fault(line, format!("`{who}` must not import `{whom}`"));
            }
        }
        if room == "daemon" && !DAEMON_USERS.iter().any(|user| is_in(file, user)) {
            fault(line, "only `main` imports `daemon`".into());
        }
    }
    found
}

/// All files below `directory`, as paths relative to it.
fn files_below(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let relative = path.strip_prefix(directory).unwrap();
                found.push(relative.to_str().unwrap().to_string());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn the_rooms_keep_to_the_rules_of_the_house() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = files_below(&src);
    assert!(files.iter().any(|f| f == "config/values.rs"), "{files:?}");
    let mut all = Vec::new();
    for file in &files {
        all.extend(faults(
            file,
            &std::fs::read_to_string(src.join(file)).unwrap(),
        ));
    }
    assert!(all.is_empty(), "\n{}\n", all.join("\n"));
}

/// What stands between backquotes in a Markdown text, code blocks left out.
fn quoted(text: &str) -> Vec<&str> {
    let prose = text.split("\n```").step_by(2);
    prose
        .flat_map(|p| p.split('`').skip(1).step_by(2))
        .collect()
}

#[test]
fn every_file_and_test_that_the_architecture_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let mut sources = String::new();
    for directory in ["src", "tests"] {
        for file in files_below(&root.join(directory)) {
            sources += &std::fs::read_to_string(root.join(directory).join(file)).unwrap();
        }
    }
    let (mut files, mut tests) = (0, 0);
    for name in quoted(&text) {
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if name.starts_with("src/") || name.starts_with("tests/") {
            assert!(root.join(name).is_file(), "there is no file {name}");
            files += 1;
        } else if name.chars().all(is_name) && name.matches('_').count() >= 3 {
            let test = format!("fn {name}(");
            assert!(sources.contains(&test), "there is no test {name}");
            tests += 1;
        }
    }
    assert!(files > 40 && tests > 30, "{files} files, {tests} tests");
}

/// What is wrong with that code in that file, apart from its head.
fn wrong(file: &str, code: &str) -> Vec<String> {
    faults(file, &format!("//! Head.\n{code}"))
}

#[test]
fn the_checker_finds_each_kind_of_fault_with_its_line() {
    for (file, code, expected) in [
        (
            "local.rs",
            "\nuse fuser::Session;",
            "src/local.rs:3: `fuser` is for mount only",
        ),
        (
            "mirror/plan.rs",
            "fn f() { rusqlite::open() }",
            "src/mirror/plan.rs:2: `rusqlite` is for journal only",
        ),
        (
            "sftp.rs",
            "use ssh2::Channel;",
            "src/sftp.rs:2: `ssh2` is for sftp/session and sftp/channel only",
        ),
        (
            "sftp/wire.rs",
            "use ::ssh2 as s;",
            "src/sftp/wire.rs:2: `ssh2` is for sftp/session and sftp/channel only",
        ),
        (
            "mirror.rs",
            "extern crate lettre;",
            "src/mirror.rs:2: `lettre` is for alarm only",
        ),
        (
            "mirror.rs",
            "unsafe fn f() {}",
            "src/mirror.rs:2: `unsafe` is allowed only in local/sys.rs, mirror/source.rs, mirror/clock.rs",
        ),
        (
            "local/scan.rs",
            "use crate::mirror::plan;",
            "src/local/scan.rs:2: `local` must not import `mirror`",
        ),
        (
            "local.rs",
            "use crate::{\n    change::Seq,\n    mirror,\n};",
            "src/local.rs:4: `local` must not import `mirror`",
        ),
        (
            "local.rs",
            "use {crate::{change::{Seq, Change}, mirror::{self}}};",
            "src/local.rs:2: `local` must not import `mirror`",
        ),
        (
            "local/a/b.rs",
            "use super::super::super::mirror;",
            "src/local/a/b.rs:2: `local` must not import `mirror`",
        ),
        (
            "local.rs",
            "fn f() { super::mirror::go() }",
            "src/local.rs:2: `local` must not import `mirror`",
        ),
        (
            "sftp/wire.rs",
            "use crate::journal::*;",
            "src/sftp/wire.rs:2: `sftp` must not import `journal`",
        ),
        (
            "cli.rs",
            "fn f() { crate::daemon::run() }",
            "src/cli.rs:2: only `main` imports `daemon`",
        ),
        (
            "console.rs",
            "use proxyfs::daemon;",
            "src/console.rs:2: only `main` imports `daemon`",
        ),
    ] {
        assert_eq!(wrong(file, code), [expected], "{code}");
    }
    assert_eq!(
        faults("a.rs", "fn f() {}\n"),
        ["src/a.rs:1: the file does not begin with `//!`: say what it does"]
    );
    assert_eq!(
        faults("a.rs", &"//!\n".repeat(701)),
        ["src/a.rs:701: 701 lines are more than 700: split the file by topic"]
    );
    assert_eq!(faults("a.rs", &"//!\n".repeat(700)), [""; 0]);
}

#[test]
fn the_checker_lets_pass_what_is_allowed() {
    for (file, code) in [
        ("mount.rs", "use fuser::Session;"),
        ("mount/reply.rs", "use fuser::Reply;"),
        ("journal/rows.rs", "use rusqlite::Row;"),
        ("sftp/session.rs", "use ssh2::Session;"),
        ("sftp/session/keys.rs", "use ssh2::KnownHosts;"),
        ("local/sys.rs", "unsafe fn f() {}"),
        (
            "lib.rs",
            "pub mod daemon;\npub mod mirror;\n#![deny(unsafe_op_in_unsafe_fn)]",
        ),
        ("main.rs", "use proxyfs::daemon;"),
        ("daemon/signals.rs", "use crate::daemon::Running;"),
        ("mirror.rs", "use crate::local;"),
        (
            "local.rs",
            "struct Mirror; fn f(mirror: u8) { mirrors::x(); other::mirror(mirror) }",
        ),
    ] {
        assert_eq!(wrong(file, code), [""; 0], "{file}: {code}");
    }
}

#[test]
fn the_checker_reads_code_and_neither_comments_nor_strings() {
    let code = r####"
        // unsafe and fuser
        /* rusqlite /* nested */ crate::mirror */
        /// crate::daemon
        fn f<'a>(x: &'a str) {
            let a = "unsafe \" fuser";
            let b = r#"ssh2 " unsafe"#;
            let c = br"\"; let d = ['"', '\'', '\\', '\u{22}'];
        }
        const E: &str = "
            lettre
        ";
    "####;
    assert_eq!(wrong("local.rs", code), [""; 0]);
    let behind = format!("{code}\nunsafe fn g() {{}}");
    let line = behind.lines().count() + 1;
    assert_eq!(
        wrong("local.rs", &behind),
        [format!(
            "src/local.rs:{line}: `unsafe` is allowed only in local/sys.rs, mirror/source.rs, mirror/clock.rs"
        )]
    );
}
