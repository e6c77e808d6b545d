//! `sync` at the terminal: asks for it, and shows how far it is until it is over.

use super::{ANSWER_WITHIN, Failure, ask, print, tell};
use proxyfs::config::Config;
use proxyfs::control::ControlRequest;
use proxyfs::status::show::{bytes, count, duration, visible};
use proxyfs::status::{MirrorState, MirrorStatus, Status, SyncStatus};
use serde_json::Value;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often it is asked how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How often a line is written where the output is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(30);

/// So many characters of a line are shown.
const WIDTH: usize = 79;

/// Has a mirror made like the source, and waits for it.
pub(super) fn sync(
    config: &Config,
    name: String,
    delete: bool,
    checksum: bool,
) -> Result<(), Failure> {
    let request = ControlRequest::Sync {
        mirror: name.clone(),
        delete,
        checksum,
    };
    tell(config, &request)?;
    let mut line = Line::default();
    loop {
        std::thread::sleep(LOOK_EVERY);
        let mirror = mirror(config, &name)?;
        let sync = mirror.sync.clone().unwrap_or_default();
        if !sync.running {
            line.clear();
            print(&told(&name, &sync, delete))?;
            if mirror.parked_ops > 0 {
                let why = mirror.last_error.unwrap_or_default();
                return Err(Failure::new(format!(
                    "not all of it could be made like the source: {why}"
                )));
            }
            return Ok(());
        }
        if let Some(why) = stands(&mirror) {
            line.clear();
            return Err(Failure::new(why));
        }
        line.show(&far(&mirror, &sync));
    }
}

/// Compares a mirror with the source, and lists the differences.
pub(super) fn verify(
    config: &Config,
    name: String,
    checksum: bool,
    json: bool,
) -> Result<(), Failure> {
    let request = ControlRequest::Verify {
        mirror: name.clone(),
        checksum,
    };
    let mut line = Line::default();
    let answer = std::thread::scope(|all| {
        let asked = all.spawn(|| ask(config, &request, None));
        while !asked.is_finished() {
            std::thread::sleep(LOOK_EVERY);
            let verify = mirror(config, &name).ok().and_then(|mirror| mirror.verify);
            if let Some(verify) = verify {
                let at = visible(&verify.at);
                let read = match verify.bytes {
                    0 => String::new(),
                    n => format!(", {} read", bytes(n)),
                };
                line.show(&format!("{} compared{read}  {at}", count(verify.entries)));
            }
        }
        line.clear();
        asked.join()
    });
    let answer = answer
        .map_err(|_| Failure::new("the comparison failed: see the daemon's log"))?
        .map_err(Failure::new)?;
    let number = |field: &str| answer.get(field).and_then(Value::as_u64).unwrap_or(0);
    let none = Vec::new();
    let differences = answer["differences"].as_array().unwrap_or(&none);
    let all = differences.len() as u64 + number("further");
    if json {
        print(&format!("{answer:#}\n"))?;
    } else {
        let mut out = String::new();
        for difference in differences {
            let text = |field: &str| difference[field].as_str().unwrap_or_default();
            out += &format!("{:<11} {}\n", text("what"), visible(text("path")));
        }
        if number("further") > 0 {
            out += &format!("... and {} more\n", count(number("further")));
        }
        if all == 0 {
            let compared = count(number("compared"));
            out += &format!("mirror {name} is like the source: {compared} entries compared\n");
        }
        print(&out)?;
    }
    match all {
        0 => Ok(()),
        1 => Err(Failure::new(format!(
            "1 difference: `proxyfs sync {name}` puts it right"
        ))),
        n => Err(Failure::new(format!(
            "{} differences: `proxyfs sync {name}` puts them right",
            count(n)
        ))),
    }
}

/// The mirror's status.
fn mirror(config: &Config, name: &str) -> Result<MirrorStatus, Failure> {
    let answer = ask(config, &ControlRequest::Status, Some(ANSWER_WITHIN)).map_err(Failure::new)?;
    let status = Status::from_json(&answer).map_err(Failure::new)?;
    let found = status.mirrors.into_iter().find(|m| m.name == name);
    found.ok_or_else(|| Failure::new(format!("mirror {name} is not configured any more")))
}

/// Why it does not go on, if it does not by itself.
fn stands(mirror: &MirrorStatus) -> Option<String> {
    let name = &mirror.name;
    match mirror.state {
        MirrorState::Paused => Some(format!(
            "mirror {name} is paused: the sync begins when `proxyfs resume {name}` lets it go on"
        )),
        MirrorState::Stopped | MirrorState::NeedsSync => Some(format!(
            "mirror {name} is {}: {}; the sync goes on by itself when that is put right",
            mirror.state.name(),
            mirror.last_error.as_deref().unwrap_or("see its log")
        )),
        MirrorState::Synced | MirrorState::Syncing | MirrorState::Retrying => None,
    }
}

/// How far it is, in a line.
fn far(mirror: &MirrorStatus, sync: &SyncStatus) -> String {
    if mirror.state == MirrorState::Retrying {
        let why = mirror.last_error.as_deref().unwrap_or_default();
        return format!("not reached, tried again: {}", visible(why));
    }
    let mut text = format!(
        "{:>3} %  {} compared, {} sent ({}, {}/s)",
        sync.percent,
        count(sync.entries),
        count(sync.sent),
        bytes(sync.bytes),
        bytes(mirror.bytes_per_second),
    );
    if let Some(eta) = sync.eta_seconds {
        text += &format!(", about {} left", duration(eta));
    }
    if !sync.at.is_empty() {
        text += &format!("  {}", visible(&sync.at));
    }
    text
}

/// What was done.
fn told(name: &str, sync: &SyncStatus, delete: bool) -> String {
    let mut text = format!(
        "mirror {name} is like the source: {} entries compared, {} sent ({}), {} changed in mode or owner, {} removed\n",
        count(sync.entries),
        count(sync.sent),
        bytes(sync.bytes),
        count(sync.set),
        count(sync.removed),
    );
    if sync.extras > 0 && !delete {
        text += &format!(
            "{} only the mirror has are kept (the daemon's log names them); --delete removes them\n",
            match sync.extras {
                1 => "1 entry that".to_string(),
                n => format!("{} entries that", count(n)),
            }
        );
    }
    text
}

/// One line of the terminal that is written again and again.
#[derive(Default)]
struct Line {
    length: usize,
    at: Option<Instant>,
}

impl Line {
    fn show(&mut self, text: &str) {
        let text: String = text.chars().take(WIDTH).collect();
        let mut out = std::io::stderr();
        if out.is_terminal() {
            let length = text.chars().count();
            let blank = " ".repeat(self.length.saturating_sub(length));
            // Nothing is lost if it can't be shown.
            let _ = write!(out, "\r{text}{blank}");
            let _ = out.flush();
            self.length = length;
        } else if self.at.is_none_or(|at| at.elapsed() >= LINE_EVERY) {
            let _ = writeln!(out, "{text}");
            self.at = Some(Instant::now());
        }
    }

    fn clear(&mut self) {
        if self.length > 0 {
            let mut out = std::io::stderr();
            let _ = write!(out, "\r{}\r", " ".repeat(self.length));
            self.length = 0;
        }
    }
}
