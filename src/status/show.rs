//! Tasks for people, in 80 columns, and how sizes, durations and names are written on any screen.

use super::Task;
use std::fmt::Write;

/// Columns of a screen.
const WIDTH: usize = 80;

/// Where an error begins below its task.
const INDENT: usize = 13;

/// Tasks for people, a line each, and the error of a parked one below it. `more` tells how many are
/// not in the list.
pub fn tasks_table(tasks: &[Task], more: u64) -> String {
    if tasks.is_empty() && more == 0 {
        return "no open tasks\n".to_string();
    }
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "{:>10} {:<12} {:>6} {:>9} task",
        "change", "mirror", "age", "size"
    );
    for task in tasks {
        let mut what = format!("{} {}", visible(&task.verb), visible(&task.path));
        if let Some(second) = &task.second_path {
            let arrow = if task.verb == "exchange" { "<->" } else { "->" };
            let _ = write!(what, " {arrow} {}", visible(second));
        }
        let size = match task.bytes {
            0 => String::new(),
            n => bytes(n),
        };
        let head = format!(
            "{:>10} {:<12} {:>6} {size:>9} ",
            task.seq,
            shorten(&visible(&task.mirror), 12),
            duration(task.age_seconds),
        );
        let room = WIDTH.saturating_sub(head.chars().count());
        let _ = writeln!(out, "{head}{}", shorten(&what, room));
        if let Some(error) = &task.error {
            for part in wrap(&format!("parked: {}", visible(error)), WIDTH - INDENT) {
                let _ = writeln!(out, "{:INDENT$}{part}", "");
            }
        }
    }
    if more > 0 {
        let _ = writeln!(out, "... and {} more", count(more));
    }
    out
}

/// A size for people: `0 B`, `999 B`, `1.0 KiB`, `1.5 GiB`: three figures, rounded down.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let power = (n.ilog2() / 10) as usize;
    let unit = 1u64 << (10 * power);
    let tenths = (u128::from(n) * 10 / u128::from(unit)) as u64;
    let name = UNITS[power - 1];
    if tenths < 1000 {
        format!("{}.{} {name}", tenths / 10, tenths % 10)
    } else {
        format!("{} {name}", tenths / 10)
    }
}

/// A duration in seconds for people: its two largest units, `0s`, `59s`, `2m05s`, `3h07m`, `2d03h`.
pub fn duration(seconds: u64) -> String {
    let (m, h, d) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{m}m{:02}s", seconds % 60),
        3600..86_400 => format!("{h}h{:02}m", m % 60),
        86_400..8_640_000 => format!("{d}d{:02}h", h % 24),
        _ => format!("{d}d"),
    }
}

/// A number with a thin mark between thousands: `1,234,567`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// So many changes, in words.
pub fn changes(n: u64) -> String {
    let word = if n == 1 { "change" } else { "changes" };
    format!("{} {word}", count(n))
}

/// The text without what could play tricks on a terminal: control characters, line ends, and marks
/// that turn the direction of text are shown as `\u{1b}`.
pub fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let tricky = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
            || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{61c}');
        if c.is_control() || tricky {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// The text in at most `width` characters, with an ellipsis for what is cut out of its middle.
pub(super) fn shorten(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_string();
    }
    let kept = width.saturating_sub(3);
    let front = kept / 2;
    let mut out: String = text.chars().take(front).collect();
    out.push_str("...");
    out.extend(text.chars().skip(length - (kept - front)));
    out
}

/// The text in lines of at most `width` characters, broken at spaces where there are any.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut column = 0;
    for word in text.split(' ').filter(|w| !w.is_empty()) {
        let mut rest: Vec<char> = word.chars().collect();
        if column > 0 && column + 1 + rest.len() > width {
            lines.push(String::new());
            column = 0;
        }
        while !rest.is_empty() {
            let last = lines.len() - 1;
            if column > 0 {
                lines[last].push(' ');
                column += 1;
            }
            let fitting = rest.len().min(width - column);
            lines[last].extend(rest.drain(..fitting));
            column += fitting;
            if !rest.is_empty() {
                lines.push(String::new());
                column = 0;
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tasks_have_a_line_each_and_parked_ones_their_error() {
        let task = |seq, verb: &str, second: Option<&str>| Task {
            seq,
            mirror: "web2".into(),
            verb: verb.into(),
            path: "a/b".into(),
            second_path: second.map(str::to_string),
            bytes: 4096,
            age_seconds: 61,
            error: None,
        };
        let mut parked = task(9, "rename", Some("c"));
        parked.error = Some("permission denied".into());
        parked.bytes = 0;
        let table = tasks_table(&[task(8, "content", None), parked], 1000);
        let expected = "    change mirror          age      size task
         8 web2          1m01s   4.0 KiB content a/b
         9 web2          1m01s           rename a/b -> c
             parked: permission denied
... and 1,000 more
";
        assert_eq!(table, expected);
        assert_eq!(tasks_table(&[], 0), "no open tasks\n");
    }

    #[test]
    fn sizes_durations_and_counts_read_well() {
        for (n, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (200 << 10, "200 KiB"),
            ((1 << 20) - 1, "1023 KiB"),
            (3 << 40, "3.0 TiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(bytes(n), text, "{n}");
        }
        for (n, text) in [
            (0, "0s"),
            (59, "59s"),
            (125, "2m05s"),
            (11_220, "3h07m"),
            (183_600, "2d03h"),
            (8_640_000, "100d"),
        ] {
            assert_eq!(duration(n), text, "{n}");
        }
        assert_eq!(
            [count(0), count(999), count(1000), count(1_234_567)],
            ["0", "999", "1,000", "1,234,567"]
        );
    }

    proptest! {
        /// Wrapping loses no letter.
        #[test]
        fn wrapped_lines_hold_the_whole_text(text in "[a-c ]{0,60}", width in 1usize..12) {
            let lines = wrap(&text, width);
            prop_assert!(lines.iter().all(|l| l.chars().count() <= width));
            let letters = |s: &str| s.replace(' ', "");
            prop_assert_eq!(letters(&lines.concat()), letters(&text));
        }
    }
}
