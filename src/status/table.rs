//! The status for people: a table with a line a mirror, and below it what there is to tell of those that are not
//! simply fine: why, since when, and what to do about it.
//!
//! The reader may have been woken at night, on a terminal of 80 columns, or on none: so the table alone
//! tells which mirror it is, no line is longer than the screen, colours only repeat what the words
//! say, and nothing of an error is cut away.

use super::show::{bytes, changes, count, duration, shorten, visible, wrap};
use super::{AlarmStatus, MirrorState, MirrorStatus, Status, SyncStatus};
use crate::screen::{Colour, Look};
use std::fmt::{self, Write};

/// Where the values of a mirror's lines begin.
const INDENT: usize = 13;

/// Columns of a progress bar.
const BAR: usize = 30;

/// Kinds of alarms that have words of their own here.
const READ_ONLY: &str = "read-only";
const NOT_STARTED: &str = "not-started";

/// The longest name that the table shows whole.
const NAME: usize = 18;

impl fmt::Display for Status {
    /// As on a screen of 80 columns without colours.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&screen(self, &Look::default()))
    }
}

/// The status on a screen that looks like this.
pub fn screen(status: &Status, look: &Look) -> String {
    let mut page = Page {
        look: *look,
        text: String::new(),
    };
    page.head(status);
    page.table(status);
    for mirror in &status.mirrors {
        let of_it = |a: &&AlarmStatus| a.mirror.as_ref() == Some(&mirror.name);
        let since = status.alarms.iter().filter(of_it).map(|a| a.seconds).max();
        page.details(mirror, status.pid.is_some(), since);
    }
    page.text
}

/// What is to be done about a mirror's state, if anything is.
pub(super) fn advice(mirror: &MirrorStatus, daemon_runs: bool) -> Option<String> {
    let name = visible(&mirror.name);
    if !daemon_runs {
        return None; // the first thing to do is said at the top
    }
    match mirror.state {
        MirrorState::Retrying => Some(format!(
            "nothing, if that passes: it is tried again by itself; at once with `proxyfs try-again {name}`"
        )),
        MirrorState::Paused if mirror.held => Some(format!(
            "if it was meant: `proxyfs resume {name}` lets it through; if not, copy what was deleted back from that \
             mirror first"
        )),
        MirrorState::Paused => Some(format!("`proxyfs resume {name}` lets it go on")),
        MirrorState::Stopped => Some(format!(
            "put that right, then `proxyfs try-again {name}`; `proxyfs doctor {name}` tries all that it needs"
        )),
        MirrorState::NeedsSync => Some(format!(
            "if its disk is not mounted there, mount it, then `proxyfs try-again {name}`; else `proxyfs sync \
             {name}` makes it like the source"
        )),
        MirrorState::Synced | MirrorState::Syncing if mirror.parked_ops > 0 => {
            Some(format!("put that right, then `proxyfs try-again {name}`"))
        }
        MirrorState::Synced | MirrorState::Syncing => None,
    }
}

/// The state as the table shows it, and its colour.
fn state(mirror: &MirrorStatus, daemon_runs: bool) -> (&'static str, Colour) {
    match mirror.state {
        // Nobody is at work on it, which is no fault of the mirror's.
        MirrorState::Stopped if !daemon_runs => ("stopped", Colour::None),
        MirrorState::Synced => ("synced", Colour::Green),
        MirrorState::Syncing => ("syncing", Colour::Cyan),
        MirrorState::Retrying => ("RETRYING", Colour::Yellow),
        MirrorState::Paused if mirror.held => ("HELD BACK", Colour::Red),
        MirrorState::Paused => ("paused", Colour::Yellow),
        MirrorState::Stopped => ("STOPPED", Colour::Red),
        MirrorState::NeedsSync => ("NEEDS SYNC", Colour::Red),
    }
}

struct Page {
    look: Look,
    text: String,
}

impl Page {
    /// One line, cut in its middle where it is too long.
    fn line(&mut self, head: &str, value: &str, colour: Colour) {
        let room = self.look.width.saturating_sub(head.chars().count());
        let value = self.look.paint(colour, &shorten(value, room));
        self.text += &format!("{head}{value}\n");
    }

    /// As many lines as it takes.
    fn wrapped(&mut self, head: &str, value: &str, colour: Colour) {
        let mut head = head.to_string();
        for part in wrap(value, self.look.width.saturating_sub(INDENT).max(20)) {
            let part = self.look.paint(colour, &part);
            self.text += &format!("{head:<INDENT$}{part}\n");
            head.clear();
        }
    }

    fn head(&mut self, status: &Status) {
        match status.pid {
            Some(pid) if status.stopping => {
                let text = format!("stopping, pid {pid}: gone within seconds");
                self.line("proxyfs   ", &text, Colour::Yellow);
            }
            Some(pid) => self.line("proxyfs   ", &format!("running, pid {pid}"), Colour::None),
            None => self.line(
                "proxyfs   ",
                "NOT RUNNING: start it with `proxyfs run` or its service",
                Colour::Red,
            ),
        }
        let (source, mount) = (visible(&status.source), visible(&status.mount_point));
        let place = match status.source == status.mount_point {
            true => format!("{source} (over itself)"),
            false => format!("{source} at {mount}"),
        };
        self.line("mount     ", &place, Colour::None);
        let log = format!(
            "{} so far, {} on disk",
            changes(status.last_seq),
            bytes(status.log_bytes)
        );
        self.line("log       ", &log, Colour::None);
        let wrong = status.alarms.iter().filter(|a| a.mirror.is_none());
        for alarm in wrong.filter(|a| a.kind != READ_ONLY) {
            let what = match (alarm.kind.as_str(), status.pid) {
                (NOT_STARTED, None) => "it does not start",
                (NOT_STARTED, Some(_)) => continue,
                ("journal", _) => "the log cannot be tidied up",
                (kind, _) => kind,
            };
            let (since, why) = (duration(alarm.seconds), visible(&alarm.reason));
            self.shout(&format!("WRONG: {what}, for {since}: {why}"));
        }
        if status.read_only {
            let alarm = status.alarms.iter().find(|a| a.kind == READ_ONLY);
            let since = alarm.map(|a| format!(", for {}", duration(a.seconds)));
            let why = status.read_only_reason.as_deref();
            self.shout(&format!(
                "READ-ONLY{}: the mount refuses changes, since they cannot be recorded: {}. It goes on by itself when \
                 they can.",
                since.unwrap_or_default(),
                visible(why.unwrap_or("is the disk of state_dir full?"))
            ));
        }
        if let Some(mail) = status.mail.as_ref().filter(|m| m.last_error.is_some()) {
            let text = format!(
                "MAIL: {} news cannot be mailed, for {}: {}",
                mail.waiting,
                duration(mail.failing_seconds.unwrap_or(0)),
                visible(mail.last_error.as_deref().unwrap_or_default())
            );
            self.shout(&text);
        }
        self.text.push('\n');
    }

    /// What nobody must miss.
    fn shout(&mut self, text: &str) {
        for part in wrap(text, self.look.width) {
            self.line("", &part, Colour::Red);
        }
    }

    fn table(&mut self, status: &Status) {
        if status.mirrors.is_empty() {
            self.text += "no mirrors are configured: `proxyfs add-mirror` adds one\n";
            return;
        }
        let names = status.mirrors.iter().map(|m| visible(&m.name));
        let width = names.map(|n| n.chars().count()).max().unwrap_or(0);
        let width = width.clamp(6, NAME);
        let mut row = |name: &str, state: (&str, Colour), cells: [String; 5]| {
            let [pending, size, oldest, rate, left] = cells;
            // Padded before it is painted: a terminal does not count what paints.
            let state = self.look.paint(state.1, &format!("{:<10}", state.0));
            let line = format!(
                "{name:<width$}  {state} {pending:>10} {size:>9} {oldest:>7} {rate:>11} {left:>7}"
            );
            self.text += line.trim_end();
            self.text.push('\n');
        };
        let titles = ["PENDING", "BYTES", "OLDEST", "RATE", "LEFT"].map(str::to_string);
        row("MIRROR", ("STATE", Colour::None), titles);
        for mirror in &status.mirrors {
            let dash = || "-".to_string();
            let mut cells = std::array::from_fn(|_| dash());
            if mirror.pending_ops > 0 {
                cells[0] = count(mirror.pending_ops);
                cells[1] = bytes(mirror.pending_bytes);
                cells[2] = mirror.oldest_pending_seconds.map_or_else(dash, duration);
            }
            if mirror.state == MirrorState::Syncing {
                cells[3] = format!("{}/s", bytes(mirror.bytes_per_second));
                let sync = mirror.sync.as_ref().filter(|s| s.running);
                let left = sync.map_or(mirror.eta_seconds, |s| s.eta_seconds);
                cells[4] = left.map_or_else(dash, duration);
            }
            let name = shorten(&visible(&mirror.name), NAME);
            row(&name, state(mirror, status.pid.is_some()), cells);
        }
    }

    /// A mirror that is being made like the source, or compared with it.
    fn work(&mut self, what: &str, work: &SyncStatus) {
        let bar = draw_bar(work.percent);
        self.line(&row_head(what), &bar, Colour::Cyan);
        let mut text = format!("{} entries compared", count(work.entries));
        for (n, word) in [
            (work.sent, "sent"),
            (work.set, "set right"),
            (work.removed, "removed"),
        ] {
            if n > 0 {
                let _ = write!(text, ", {} {word}", count(n));
            }
            if n > 0 && word == "sent" {
                let _ = write!(text, " ({})", bytes(work.bytes));
            }
        }
        self.line(&row_head(""), &text, Colour::None);
        if !work.at.is_empty() {
            self.line(
                &row_head(""),
                &format!("at {}", visible(&work.at)),
                Colour::None,
            );
        }
    }

    /// What there is to tell of a mirror beyond its line in the table; nothing if it is simply fine. `since`: for how many
    /// seconds something has been wrong with it.
    fn details(&mut self, mirror: &MirrorStatus, daemon_runs: bool, since: Option<u64>) {
        let todo = advice(mirror, daemon_runs);
        let works = [("sync", &mirror.sync), ("verify", &mirror.verify)];
        let works = works.map(|(what, work)| (what, work.as_ref().filter(|w| w.running)));
        let extras = mirror.sync.as_ref().map_or(0, |s| s.extras);
        let under_way =
            mirror.state == MirrorState::Syncing && mirror.pending_ops > mirror.parked_ops;
        // A sync has a bar of its own.
        let bar = mirror
            .progress_percent
            .filter(|_| under_way && works[0].1.is_none());
        let quiet = todo.is_none()
            && bar.is_none()
            && works.iter().all(|(_, w)| w.is_none())
            && extras == 0
            && mirror.last_error.is_none()
            && mirror.current.is_none()
            && mirror.parked_ops == 0
            && mirror.unsupported.is_empty();
        if quiet {
            return;
        }
        let port = match mirror.port {
            22 => String::new(),
            other => format!(", port {other}"),
        };
        let place = format!(
            "{}: {}@{}:{}{port}",
            visible(&mirror.name),
            visible(&mirror.user),
            visible(&mirror.host),
            visible(&mirror.path)
        );
        self.text.push('\n');
        self.line("", &place, Colour::None);
        if let Some(percent) = bar {
            self.line(
                &row_head("done"),
                &draw_bar(u64::from(percent)),
                Colour::Cyan,
            );
        }
        for (what, work) in works {
            if let Some(work) = work {
                self.work(what, work);
            }
        }
        if let Some(current) = &mirror.current {
            self.line(&row_head("now"), &visible(current), Colour::None);
        }
        if extras > 0 {
            let text = format!(
                "{} that only this mirror has: `proxyfs verify {}` lists them",
                count(extras),
                visible(&mirror.name)
            );
            self.wrapped("  extras", &text, Colour::None);
        }
        if mirror.parked_ops > 0 {
            let text = format!(
                "{}, failed, waiting for you: see `proxyfs tasks {}`",
                changes(mirror.parked_ops),
                visible(&mirror.name)
            );
            self.wrapped("  parked", &text, Colour::Yellow);
        }
        if let Some(error) = &mirror.last_error {
            let colour = match mirror.state {
                MirrorState::Stopped | MirrorState::NeedsSync if daemon_runs => Colour::Red,
                _ => Colour::Yellow,
            };
            self.wrapped("  last error", &visible(error), colour);
        }
        if let Some(seconds) = since {
            let text = format!("{} ago", duration(seconds));
            self.line(&row_head("since"), &text, Colour::None);
        }
        if let Some(todo) = &todo {
            self.wrapped("  to do", todo, Colour::None);
        }
        if let Some(seconds) = mirror.retry_in_seconds {
            let text = format!("in {}", duration(seconds));
            self.line(&row_head("next try"), &text, Colour::None);
        }
        if !mirror.unsupported.is_empty() {
            let all = visible(&mirror.unsupported.join(", "));
            self.wrapped("  lacks", &all, Colour::None);
        }
    }
}

/// A progress bar.
fn draw_bar(percent: u64) -> String {
    let done = BAR * percent.min(100) as usize / 100;
    let tip = if done < BAR { ">" } else { "" };
    let bar = format!("{}{tip}", "=".repeat(done));
    format!("[{bar:<BAR$}] {percent} %")
}

fn row_head(name: &str) -> String {
    let mut head = String::new();
    // Writing to a String cannot fail.
    let _ = write!(head, "  {name:<0$}", INDENT - 2);
    head
}

#[cfg(test)]
mod tests {
    use super::super::Task;
    use super::super::show::tasks_table;
    use super::*;
    use proptest::prelude::*;

    fn mirror(name: &str, state: MirrorState) -> MirrorStatus {
        MirrorStatus {
            name: name.into(),
            host: format!("{name}.example.com"),
            port: 22,
            user: "www-data".into(),
            path: "/srv/www".into(),
            state,
            ..MirrorStatus::default()
        }
    }

    fn night() -> Status {
        Status {
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
                        "web3.example.com refuses the connection: check that sshd runs there and that the \
                         port is right"
                            .into(),
                    ),
                    retry_in_seconds: Some(42),
                    port: 2222,
                    ..mirror("web3", MirrorState::Retrying)
                },
                MirrorStatus {
                    pending_ops: 2,
                    pending_bytes: 1 << 20,
                    oldest_pending_seconds: Some(61),
                    bytes_per_second: 1 << 18,
                    eta_seconds: Some(4),
                    progress_percent: Some(42),
                    current: Some("content videos/a.mp4 (38 %)".into()),
                    unsupported: vec!["times of symlinks".into()],
                    ..mirror("web4", MirrorState::Syncing)
                },
                MirrorStatus {
                    parked_ops: 1,
                    pending_ops: 1,
                    last_error: Some("change 7 (chmod a) was refused: permission denied".into()),
                    ..mirror("web5", MirrorState::Synced)
                },
                MirrorStatus {
                    sync: Some(SyncStatus {
                        running: true,
                        entries: 12_345,
                        sent: 56,
                        bytes: 3 << 20,
                        set: 2,
                        at: "img/2024".into(),
                        percent: 50,
                        eta_seconds: Some(185),
                        ..SyncStatus::default()
                    }),
                    ..mirror("web6", MirrorState::Syncing)
                },
                MirrorStatus {
                    sync: Some(SyncStatus {
                        extras: 3,
                        ..SyncStatus::default()
                    }),
                    ..mirror("web7", MirrorState::Synced)
                },
            ],
            ..Status::default()
        }
    }

    #[test]
    fn a_screen_tells_what_is_wrong_since_when_and_what_comes_next() {
        let expected = "\
proxyfs   running, pid 4711
mount     /srv/www (over itself)
log       1,234,567 changes so far, 3.0 MiB on disk

MIRROR  STATE         PENDING     BYTES  OLDEST        RATE    LEFT
web2    synced              -         -       -           -       -
web3    RETRYING        1,200   5.0 GiB   3h07m           -       -
web4    syncing             2   1.0 MiB   1m01s   256 KiB/s      4s
web5    synced              1       0 B       -           -       -
web6    syncing             -         -       -       0 B/s   3m05s
web7    synced              -         -       -           -       -

web3: www-data@web3.example.com:/srv/www, port 2222
  last error web3.example.com refuses the connection: check that sshd runs there
             and that the port is right
  to do      nothing, if that passes: it is tried again by itself; at once with
             `proxyfs try-again web3`
  next try   in 42s

web4: www-data@web4.example.com:/srv/www
  done       [============>                 ] 42 %
  now        content videos/a.mp4 (38 %)
  lacks      times of symlinks

web5: www-data@web5.example.com:/srv/www
  parked     1 change, failed, waiting for you: see `proxyfs tasks web5`
  last error change 7 (chmod a) was refused: permission denied
  to do      put that right, then `proxyfs try-again web5`

web6: www-data@web6.example.com:/srv/www
  sync       [===============>              ] 50 %
             12,345 entries compared, 56 sent (3.0 MiB), 2 set right
             at img/2024

web7: www-data@web7.example.com:/srv/www
  extras     3 that only this mirror has: `proxyfs verify web7` lists them
";
        assert_eq!(night().to_string(), expected);
    }

    #[test]
    fn colours_repeat_what_the_words_say_and_take_no_room() {
        let look = Look {
            width: 80,
            colour: true,
        };
        let painted = screen(&night(), &look);
        assert!(
            painted.contains("\x1b[33mRETRYING  \x1b[0m      1,200"),
            "{painted}"
        );
        let mut bare = String::new();
        let mut rest = painted.as_str();
        while let Some((before, behind)) = rest.split_once('\x1b') {
            bare += before;
            rest = behind.split_once('m').unwrap().1;
        }
        bare += rest;
        let lines = |s: &str| -> Vec<String> { s.lines().map(|l| l.trim_end().into()).collect() };
        assert_eq!(lines(&bare), lines(&night().to_string()));
    }

    #[test]
    fn a_daemon_that_is_down_or_read_only_is_said_first() {
        let down = Status::default().to_string();
        assert!(
            down.starts_with("proxyfs   NOT RUNNING: start it"),
            "{down}"
        );
        assert!(down.contains("no mirrors are configured"), "{down}");
        let full = Status {
            read_only: true,
            pid: Some(1),
            ..Status::default()
        };
        assert!(full.to_string().contains("\nREAD-ONLY: "), "{full}");
        let mut down = night();
        down.pid = None;
        down.mirrors.truncate(1);
        down.mirrors[0].state = MirrorState::Stopped;
        let down = down.to_string();
        assert!(down.contains("\nweb2    stopped "), "{down}");
    }

    #[test]
    fn what_is_wrong_is_said_with_since_when() {
        let alarm = |kind: &str, mirror: Option<&str>, reason: &str| AlarmStatus {
            kind: kind.into(),
            mirror: mirror.map(str::to_string),
            seconds: 273_600,
            reason: reason.into(),
        };
        let mut status = night();
        status.alarms = vec![
            alarm("unreachable", Some("web3"), "refused"),
            alarm("journal", None, "the disk fails"),
        ];
        let shown = status.to_string();
        assert!(
            shown.contains("\nWRONG: the log cannot be tidied up, for 3d04h: the disk fails\n"),
            "{shown}"
        );
        assert_eq!(
            shown.matches("\n  since      3d04h ago\n").count(),
            1,
            "{shown}"
        );
        status.read_only = true;
        status.read_only_reason = Some("the disk is full".into());
        status.alarms = vec![alarm("read-only", None, "the disk is full")];
        let shown = status.to_string();
        assert!(
            shown.contains("\nREAD-ONLY, for 3d04h: the mount refuses changes, since they cannot be recorded:\nthe disk is full. "),
            "{shown}"
        );
        status.pid = None;
        status.alarms = vec![alarm("not-started", None, "the source is empty")];
        let shown = status.to_string();
        assert!(
            shown.contains("\nWRONG: it does not start, for 3d04h: the source is empty\n"),
            "{shown}"
        );
    }

    #[test]
    fn a_mirror_held_before_a_mass_deletion_is_not_just_paused() {
        let held = MirrorStatus {
            held: true,
            ..mirror("m", MirrorState::Paused)
        };
        let todo = advice(&held, true).unwrap();
        assert!(
            todo.contains("if not, copy what was deleted back"),
            "{todo}"
        );
        let status = Status {
            pid: Some(1),
            mirrors: vec![held],
            ..Status::default()
        };
        assert!(
            status.to_string().contains("\nm       HELD BACK "),
            "{status}"
        );
    }

    #[test]
    fn every_state_that_needs_a_person_says_what_to_do() {
        for state in MirrorState::ALL {
            let todo = advice(&mirror("m", state), true);
            let fine = matches!(state, MirrorState::Synced | MirrorState::Syncing);
            assert_eq!(todo.is_none(), fine, "{state}");
            assert_eq!(advice(&mirror("m", state), false), None);
        }
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
            one.last_error = Some(text.clone());
            one.unsupported = vec![text.clone()];
            one.parked_ops = 1;
            let task = Task {
                mirror: text.clone(), verb: "rename".into(), path: text.clone(),
                second_path: Some(text.clone()), error: Some(text), ..Task::default()
            };
            let status = Status { pid: Some(1), mirrors: vec![one], ..Status::default() };
            for shown in [status.to_string(), tasks_table(&[task], 0)] {
                for line in shown.lines() {
                    prop_assert!(line.chars().count() <= 80, "{}", line);
                    prop_assert!(!line.contains(|c: char| c.is_control() || c == '\u{202e}'), "{:?}", line);
                }
            }
        }
    }
}
