//! Status and tasks for people, in 80 columns: first what an administrator woken at night needs
//! (which mirror, since when, why, when it is tried again), then the rest.

use super::{MirrorState, MirrorStatus, Status, Task};
use std::fmt::{self, Write};

/// Columns of a screen.
const WIDTH: usize = 80;

/// Where the values of a mirror's lines begin.
const INDENT: usize = 13;

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => writeln!(f, "daemon: running, pid {pid}")?,
            None => writeln!(f, "daemon: not running (start it with `proxyfs run`)")?,
        }
        line(f, "mount: ", &place(self))?;
        writeln!(
            f,
            "log: {} so far, {} on disk",
            changes(self.last_seq),
            bytes(self.log_bytes)
        )?;
        if self.read_only {
            writeln!(
                f,
                "READ-ONLY: changes cannot be recorded, so the mount refuses them.\n           \
                 Is the disk of state_dir full?"
            )?;
        }
        if let Some(mail) = self.mail.as_ref().filter(|m| m.last_error.is_some()) {
            let text = format!(
                "{} news cannot be mailed, for {}: {}",
                mail.waiting,
                duration(mail.failing_seconds.unwrap_or(0)),
                visible(mail.last_error.as_deref().unwrap_or_default())
            );
            let mut head = "MAIL: ";
            for part in wrap(&text, WIDTH - head.len()) {
                writeln!(f, "{head}{part}")?;
                head = "      ";
            }
        }
        if self.mirrors.is_empty() {
            writeln!(f, "\nno mirrors are configured")?;
        }
        for mirror in &self.mirrors {
            write!(f, "\n{mirror}")?;
        }
        Ok(())
    }
}

fn place(status: &Status) -> String {
    if status.source == status.mount_point {
        format!("{} (over itself)", visible(&status.source))
    } else {
        format!(
            "{} at {}",
            visible(&status.source),
            visible(&status.mount_point)
        )
    }
}

impl fmt::Display for MirrorStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            MirrorState::Synced => "synced",
            MirrorState::Syncing => "syncing",
            MirrorState::Retrying => "RETRYING",
            MirrorState::Paused => "paused",
            MirrorState::Stopped => "STOPPED",
            MirrorState::NeedsSync => "NEEDS SYNC",
        };
        line(f, "mirror ", &format!("{}: {state}", visible(&self.name)))?;
        let port = match self.port {
            22 => String::new(),
            other => format!(", port {other}"),
        };
        self.row(
            f,
            "at",
            &format!(
                "{}@{}:{}{port}",
                visible(&self.user),
                visible(&self.host),
                visible(&self.path)
            ),
        )?;
        if self.pending_ops > 0 {
            let mut pending = format!(
                "{}, {}",
                changes(self.pending_ops),
                bytes(self.pending_bytes)
            );
            if let Some(age) = self.oldest_pending_seconds {
                let _ = write!(pending, ", the oldest {} old", duration(age));
            }
            self.row(f, "pending", &pending)?;
        }
        if self.state == MirrorState::Syncing {
            let mut rate = format!("{}/s", bytes(self.bytes_per_second));
            if let Some(eta) = self.eta_seconds {
                let _ = write!(rate, ", done in about {}", duration(eta));
            }
            self.row(f, "rate", &rate)?;
        }
        if let Some(current) = &self.current {
            self.row(f, "now", &visible(current))?;
        }
        if self.parked_ops > 0 {
            let text = format!(
                "{}, failed, waiting for you: see `proxyfs tasks {}`",
                changes(self.parked_ops),
                visible(&self.name)
            );
            self.wrapped(f, "parked", &text)?;
        }
        if let Some(error) = &self.last_error {
            self.wrapped(f, "last error", &visible(error))?;
        }
        if let Some(seconds) = self.retry_in_seconds {
            self.row(f, "next try", &format!("in {}", duration(seconds)))?;
        }
        if !self.unsupported.is_empty() {
            self.wrapped(f, "lacks", &visible(&self.unsupported.join(", ")))?;
        }
        Ok(())
    }
}

impl MirrorStatus {
    /// One line, cut in its middle where it is too long.
    fn row(&self, f: &mut fmt::Formatter<'_>, name: &str, value: &str) -> fmt::Result {
        line(f, &format!("  {name:<0$}", INDENT - 2), value)
    }

    /// As many lines as it takes: nothing of an error is cut away.
    fn wrapped(&self, f: &mut fmt::Formatter<'_>, name: &str, value: &str) -> fmt::Result {
        let mut head = format!("  {name}");
        for part in wrap(value, WIDTH - INDENT) {
            writeln!(f, "{head:<INDENT$}{part}")?;
            head.clear();
        }
        Ok(())
    }
}

fn line(f: &mut fmt::Formatter<'_>, head: &str, value: &str) -> fmt::Result {
    let room = WIDTH.saturating_sub(head.chars().count());
    writeln!(f, "{head}{}", shorten(value, room))
}

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

fn changes(n: u64) -> String {
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
fn shorten(text: &str, width: usize) -> String {
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

    fn mirror(name: &str, state: MirrorState) -> MirrorStatus {
        MirrorStatus {
            name: name.into(),
            host: "web2.example.com".into(),
            port: 22,
            user: "www-data".into(),
            path: "/srv/www".into(),
            state,
            ..MirrorStatus::default()
        }
    }

    #[test]
    fn a_screen_tells_what_is_wrong_since_when_and_what_comes_next() {
        let status = Status {
            source: "/srv/www".into(),
            mount_point: "/srv/www".into(),
            pid: Some(4711),
            last_seq: 1_234_567,
            log_bytes: 3 << 20,
            mirrors: vec![
                mirror("web2", MirrorState::Synced),
                MirrorStatus {
                    pending_ops: 1200,
                    pending_bytes: 5 << 30,
                    oldest_pending_seconds: Some(11_220),
                    last_error: Some(
                        "cannot connect to web3.example.com port 2222: Connection refused: is the SSH server \
                         running there, and is the port right?"
                            .into(),
                    ),
                    retry_in_seconds: Some(42),
                    parked_ops: 1,
                    port: 2222,
                    ..mirror("web3", MirrorState::Retrying)
                },
                MirrorStatus {
                    pending_ops: 2,
                    pending_bytes: 1 << 20,
                    bytes_per_second: 1 << 18,
                    eta_seconds: Some(4),
                    current: Some("content videos/a.mp4".into()),
                    ..mirror("web4", MirrorState::Syncing)
                },
            ],
            ..Status::default()
        };
        let expected = "\
daemon: running, pid 4711
mount: /srv/www (over itself)
log: 1,234,567 changes so far, 3.0 MiB on disk

mirror web2: synced
  at         www-data@web2.example.com:/srv/www

mirror web3: RETRYING
  at         www-data@web2.example.com:/srv/www, port 2222
  pending    1,200 changes, 5.0 GiB, the oldest 3h07m old
  parked     1 change, failed, waiting for you: see `proxyfs tasks web3`
  last error cannot connect to web3.example.com port 2222: Connection refused:
             is the SSH server running there, and is the port right?
  next try   in 42s

mirror web4: syncing
  at         www-data@web2.example.com:/srv/www
  pending    2 changes, 1.0 MiB
  rate       256 KiB/s, done in about 4s
  now        content videos/a.mp4
";
        assert_eq!(status.to_string(), expected);
    }

    #[test]
    fn a_daemon_that_is_down_or_read_only_is_said_first() {
        let down = Status::default().to_string();
        assert!(down.starts_with("daemon: not running"), "{down}");
        assert!(down.contains("no mirrors are configured"), "{down}");
        let full = Status {
            read_only: true,
            ..Status::default()
        };
        assert!(full.to_string().contains("\nREAD-ONLY: "), "{full}");
    }

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
        /// Whatever names and messages hold: no line is longer than the screen, none can begin a
        /// line of its own or send the terminal an escape sequence.
        #[test]
        fn hostile_text_stays_inside_its_line(text in "[\\PC\\x00-\\x1f\u{202e}\u{9b} ]{0,200}") {
            let mut one = mirror("m", MirrorState::Retrying);
            for place in [&mut one.name, &mut one.host, &mut one.user, &mut one.path] {
                *place = text.clone();
            }
            one.current = Some(text.clone());
            let lines = one.to_string().lines().count();
            prop_assert_eq!(lines, 3);
            one.last_error = Some(text.clone());
            one.unsupported = vec![text.clone()];
            one.parked_ops = 1;
            let task = Task {
                mirror: text.clone(), verb: "rename".into(), path: text.clone(),
                second_path: Some(text.clone()), error: Some(text), ..Task::default()
            };
            for shown in [one.to_string(), tasks_table(&[task], 0)] {
                for line in shown.lines() {
                    prop_assert!(line.chars().count() <= WIDTH, "{}", line);
                    prop_assert!(!line.contains(|c: char| c.is_control() || c == '\u{202e}'), "{:?}", line);
                }
            }
        }

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
