//! The text of a file as sections and keys, each with its line.
//!
//! The values are read by the crate `ini`. It tells no lines, runs a line without `=` into the next
//! one, and lets a backslash join lines; any of these would put a mistake at the wrong place, or
//! hide it. So a scan goes first that takes only what is plainly one thing a line, and notes the
//! lines; what `ini` then finds must be the same keys in the same order.

use super::problem::{Fault, Problem};
use ini::{Ini, ParseOption};
use std::path::Path;

/// One section as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawSection {
    /// What stands between the brackets.
    pub name: String,
    /// Its line, from 1.
    pub line: usize,
    /// Its keys, in order.
    pub entries: Vec<RawEntry>,
}

/// One key as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawEntry {
    /// The key.
    pub key: String,
    /// The value, without quotation marks around it.
    pub value: String,
    /// Its line, from 1.
    pub line: usize,
}

enum Line<'a> {
    Nothing,
    Section(&'a str),
    Entry(&'a str, &'a str),
}

/// Reads the bytes of `file`: its sections in order, or all lines that are no INI.
pub fn read(file: &Path, bytes: &[u8]) -> Result<Vec<RawSection>, Vec<Problem>> {
    let problem = |line: usize, fault| Problem {
        file: file.to_path_buf(),
        line: Some(line),
        fault,
    };
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
        Err(e) => {
            let good = &bytes[..e.valid_up_to()];
            let line = 1 + good.iter().filter(|b| **b == b'\n').count();
            let why = "this line is not UTF-8 text: save the file as UTF-8";
            return Err(vec![problem(line, Fault::NotIni(why.to_string()))]);
        }
    };

    let mut sections: Vec<RawSection> = Vec::new();
    let mut problems = Vec::new();
    for (i, line) in text.lines().enumerate() {
        match scan(line.trim()) {
            Ok(Line::Nothing) => {}
            Ok(Line::Section(name)) => sections.push(RawSection {
                name: name.to_string(),
                line: i + 1,
                entries: Vec::new(),
            }),
            Ok(Line::Entry(key, value)) => match sections.last_mut() {
                Some(section) => section.entries.push(RawEntry {
                    key: key.to_string(),
                    value: value.to_string(),
                    line: i + 1,
                }),
                None => problems.push(problem(
                    i + 1,
                    Fault::OutsideSection {
                        key: key.to_string(),
                    },
                )),
            },
            Err(why) => problems.push(problem(i + 1, Fault::NotIni(why))),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    take_values(text, &mut sections)
        .map_err(|(line, why)| vec![problem(line, Fault::NotIni(why))])?;
    Ok(sections)
}

/// The value of a key, in a text whose other lines may be wrong.
pub fn find(text: &str, section: &str, key: &str) -> Option<String> {
    let mut here = false;
    for line in text.lines() {
        match scan(line.trim()) {
            Ok(Line::Section(name)) => here = name == section,
            Ok(Line::Entry(name, value)) if here && name == key => {
                return Some(value.trim_matches(['"', '\'']).to_string());
            }
            Ok(Line::Entry(..) | Line::Nothing) | Err(_) => {}
        }
    }
    None
}

/// What one line is, or what is expected there.
fn scan(line: &str) -> Result<Line<'_>, String> {
    if line.contains(|c: char| c.is_control() && c != '\t') {
        return Err(format!(
            "`{}` holds control characters: this is no INI file",
            shown(line)
        ));
    }
    if line.is_empty() || line.starts_with(['#', ';']) {
        return Ok(Line::Nothing);
    }
    if let Some(rest) = line.strip_prefix('[') {
        let name = rest.strip_suffix(']').map(str::trim);
        return match name {
            Some(name) if !name.is_empty() && !name.contains(['[', ']']) => Ok(Line::Section(name)),
            _ => Err(format!(
                "`{}` is no section: write [proxyfs] or [mirror NAME], and nothing behind it",
                shown(line)
            )),
        };
    }
    let Some((key, value)) = line.split_once(['=', ':']) else {
        return Err(format!(
            "`{}` is neither `key = value` nor `[section]` nor a comment (# in front)",
            shown(line)
        ));
    };
    let (key, value) = (key.trim(), value.trim());
    if key.is_empty() {
        return Err("there is no key in front of the `=`".to_string());
    }
    check_value(value)?;
    Ok(Line::Entry(key, value))
}

fn check_value(value: &str) -> Result<(), String> {
    if let Some(mark) = value.chars().next().filter(|c| matches!(c, '"' | '\'')) {
        let inner = value[1..].strip_suffix(mark);
        return match inner {
            Some(inner) if !inner.contains(mark) && !inner.contains('\\') => Ok(()),
            _ => Err(format!(
                "a value that begins with {mark} must end with it, and hold neither {mark} nor a \
                 backslash between"
            )),
        };
    }
    if value.ends_with('\\') {
        return Err("a value must not end with a backslash: write it on one line".to_string());
    }
    if value.contains(" #")
        || value.contains(" ;")
        || value.contains("\t#")
        || value.contains("\t;")
    {
        return Err(
            "a comment must stand on a line of its own (or, if it is part of the value, put \
             the value in quotation marks)"
                .to_string(),
        );
    }
    Ok(())
}

/// Puts the values as `ini` reads them in the places that the scan found.
fn take_values(text: &str, sections: &mut [RawSection]) -> Result<(), (usize, String)> {
    let trimmed: Vec<&str> = text.lines().map(str::trim).collect();
    let options = ParseOption {
        enabled_quote: true,
        enabled_escape: false,
        ..ParseOption::default()
    };
    let ini = Ini::load_from_str_opt(&trimmed.join("\n"), options)
        .map_err(|e| (e.line, format!("this is no INI file: {}", e.msg)))?;
    let mut found = ini
        .iter()
        .flat_map(|(_, properties)| properties.iter())
        .map(|(key, value)| (key.to_string(), value.to_string()));
    for entry in sections.iter_mut().flat_map(|s| s.entries.iter_mut()) {
        match found.next() {
            Some((key, value)) if key == entry.key => entry.value = value,
            _ => return Err((entry.line, "this line cannot be read as INI".to_string())),
        }
    }
    match found.next() {
        None => Ok(()),
        Some((key, _)) => Err((1, format!("the key `{key}` cannot be read as INI"))),
    }
}

/// At most 40 characters of a line, without control characters.
fn shown(line: &str) -> String {
    let visible = |c: char| if c.is_control() { '?' } else { c };
    let mut short: String = line.chars().take(40).map(visible).collect();
    if line.chars().nth(40).is_some() {
        short.push_str("...");
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sections(text: &str) -> Vec<RawSection> {
        read(Path::new("x.ini"), text.as_bytes()).unwrap()
    }

    fn first_problem(bytes: &[u8]) -> String {
        read(Path::new("x.ini"), bytes).unwrap_err()[0].to_string()
    }

    #[test]
    fn keys_have_their_lines_and_values_their_text() {
        let all = sections(
            "\u{feff}# top\r\n[proxyfs]\r\n\r\n  ; indented remark = no key\n  source = /srv/a b\nempty =\n\
             [mirror x]\nkey: '/a #1'\nkey = \"/b = c\"\npath = C:\\dir\n[mirror x]\nhost = h",
        );
        let flat: Vec<(usize, &str, &str)> = all
            .iter()
            .flat_map(|s| &s.entries)
            .map(|e| (e.line, e.key.as_str(), e.value.as_str()))
            .collect();
        assert_eq!(
            flat,
            [
                (5, "source", "/srv/a b"),
                (6, "empty", ""),
                (8, "key", "/a #1"),
                (9, "key", "/b = c"),
                (10, "path", "C:\\dir"),
                (12, "host", "h"),
            ]
        );
        let heads: Vec<(usize, &str)> = all.iter().map(|s| (s.line, s.name.as_str())).collect();
        assert_eq!(heads, [(2, "proxyfs"), (7, "mirror x"), (11, "mirror x")]);
    }

    #[test]
    fn what_is_no_ini_is_named_with_its_line() {
        for (text, expected) in [
            (
                "[proxyfs]\nsource /srv",
                "x.ini:2: `source /srv` is neither",
            ),
            ("[proxyfs\n", "x.ini:1: `[proxyfs` is no section"),
            (
                "[proxyfs] # main\n",
                "x.ini:1: `[proxyfs] # main` is no section",
            ),
            ("\n[]\n", "x.ini:2: `[]` is no section"),
            ("[a]\n= 5\n", "x.ini:2: there is no key"),
            ("[a]\nb = c \\\nd = e", "x.ini:2: a value must not end"),
            (
                "[a]\nb = \"c\nd = e\"",
                "x.ini:2: a value that begins with \"",
            ),
            ("[a]\nb = c # d", "x.ini:2: a comment must stand"),
            (
                "source = /srv\n",
                "x.ini:1: the key `source` stands before any section",
            ),
            (
                "\0\u{1}garbage",
                "x.ini:1: `??garbage` holds control characters",
            ),
        ] {
            let message = first_problem(text.as_bytes());
            assert!(message.starts_with(expected), "{text:?}: {message}");
        }
        let message = first_problem(b"[a]\nb = \xff\n");
        assert!(
            message.starts_with("x.ini:2: this line is not UTF-8"),
            "{message}"
        );
    }

    proptest! {
        /// Whatever the scan lets through, `ini` reads as the same keys with the same values: none
        /// is joined, split or moved to another line.
        #[test]
        fn the_scan_and_the_parser_agree(lines in prop::collection::vec(
            r#"(\[[a-z ]{0,4}\]|[a-z]{0,3}[ \t]?[=:][ \t]?["']?[a-z \\#;=:\[\]'"]{0,8}["']?|[ ]?[#;].{0,5}|.{0,6})"#, 0..8)
        ) {
            let text = format!("[s]\n{}", lines.join("\n"));
            if let Ok(sections) = read(Path::new("x.ini"), text.as_bytes()) {
                let all: Vec<&str> = text.lines().collect();
                for entry in sections.iter().flat_map(|s| &s.entries) {
                    let written = all[entry.line - 1].trim();
                    let value = written[entry.key.len()..].trim_start()[1..].trim();
                    let bare = match value.chars().next() {
                        Some('"' | '\'') => &value[1..value.len() - 1],
                        _ => value,
                    };
                    prop_assert!(written.starts_with(&entry.key));
                    prop_assert_eq!(&entry.value, bare, "in {:?}", text);
                }
            }
        }
    }
}
