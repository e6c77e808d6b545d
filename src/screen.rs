//! What the screen can, and pictures that are drawn anew in place.
//!
//! The dangers: a script that gets escape sequences for text, and a terminal that is left without a cursor or
//! without echo. So colours and redrawing are for terminals only (and colours not where NO_COLOR says no),
//! and whatever ends the drawing, a signal too, comes by the one place that puts the terminal right.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGWINCH};
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Columns of a screen of which nothing is known. Wider lines are hard to read, so no more are used anyway.
const WIDTH: usize = 80;

/// How often a picture is drawn anew.
const EVERY: Duration = Duration::from_secs(1);

/// How the screen looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Columns.
    pub width: usize,
    /// Whether colours are wanted.
    pub colour: bool,
}

impl Default for Look {
    /// 80 columns, no colours.
    fn default() -> Look {
        Look {
            width: WIDTH,
            colour: false,
        }
    }
}

/// A colour of a terminal's own palette.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Colour {
    None,
    Red,
    Green,
    Yellow,
    Cyan,
}

impl Look {
    /// What standard output can.
    pub fn of_stdout() -> Look {
        let out = io::stdout();
        if !out.is_terminal() {
            return Look::default();
        }
        let set = |name| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|t| t == "dumb");
        let columns = tcgetwinsize(&out).map_or(0, |size| size.ws_col);
        Look {
            width: match usize::from(columns) {
                0 => WIDTH,
                columns => columns.clamp(40, WIDTH),
            },
            colour: !set("NO_COLOR") && !dumb,
        }
    }

    /// The text in this colour.
    pub fn paint(&self, colour: Colour, text: &str) -> String {
        let code = match colour {
            _ if !self.colour || text.is_empty() => return text.to_string(),
            Colour::None => return text.to_string(),
            Colour::Red => 31,
            Colour::Green => 32,
            Colour::Yellow => 33,
            Colour::Cyan => 36,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// Draws what `picture` gives, and again every second, until the reader has enough: `q`, Ctrl-C or another
/// signal, or the end of standard output. On a terminal each takes the place of the one before, and the last one
/// stays; elsewhere they follow one another.
///
/// # Errors
/// What `picture` fails with, or writing.
pub fn watch<E: From<io::Error>>(
    mut picture: impl FnMut(&Look) -> Result<String, E>,
) -> Result<(), E> {
    let (mut woken, wake) = UnixStream::pair()?;
    woken.set_nonblocking(true)?;
    let mut registered = Vec::new();
    for signal in [SIGINT, SIGTERM, SIGHUP, SIGWINCH] {
        registered.push(signal_hook::low_level::pipe::register(
            signal,
            wake.try_clone()?,
        )?);
    }
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        registered.push(signal_hook::flag::register(signal, Arc::clone(&ended))?);
    }
    let on_screen = io::stdout().is_terminal();
    let result = if on_screen {
        let quiet = Quiet::new()?;
        let drawn = redraw(&mut picture, &mut woken, &ended);
        drop(quiet);
        match drawn {
            Ok(last) => print(&last).map_err(E::from),
            Err(why) => Err(why),
        }
    } else {
        follow(&mut picture, &mut woken, &ended)
    };
    for id in registered {
        signal_hook::low_level::unregister(id);
    }
    result
}

/// Pictures in place; returns the last one.
fn redraw<E: From<io::Error>>(
    picture: &mut impl FnMut(&Look) -> Result<String, E>,
    woken: &mut UnixStream,
    ended: &AtomicBool,
) -> Result<String, E> {
    loop {
        // Without the last column: what clears the rest of a full line would take its last letter.
        let look = Look::of_stdout();
        let text = picture(&Look {
            width: look.width - 1,
            ..look
        })?;
        let rows = tcgetwinsize(io::stdout()).map_or(0, |size| usize::from(size.ws_row));
        print(&frame(&text, if rows == 0 { 24 } else { rows }))?;
        if pause(woken, true) == Pause::Quit || ended.load(Ordering::SeqCst) {
            return Ok(text);
        }
    }
}

/// Pictures one after another, with a blank line between those of several lines.
fn follow<E: From<io::Error>>(
    picture: &mut impl FnMut(&Look) -> Result<String, E>,
    woken: &mut UnixStream,
    ended: &AtomicBool,
) -> Result<(), E> {
    loop {
        let mut text = picture(&Look::default())?;
        if text.lines().count() > 1 {
            text.push('\n');
        }
        match print(&text) {
            Err(why) if why.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            done => done?,
        }
        pause(woken, false);
        if ended.load(Ordering::SeqCst) {
            return Ok(());
        }
    }
}

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// The bytes that draw `text` on a screen of so many rows, over whatever is there: each line is drawn and what is
/// left of an older one behind it cleared, so that nothing flickers.
fn frame(text: &str, rows: usize) -> String {
    let room = rows.saturating_sub(1).max(1);
    let mut lines: Vec<&str> = text.lines().collect();
    let more = format!(
        "... {} more lines: see `proxyfs status`",
        lines.len().saturating_sub(room)
    );
    if lines.len() > room {
        lines.truncate(room.saturating_sub(1));
        lines.push(&more);
    }
    let mut out = "\x1b[H".to_string();
    for line in lines {
        out += line;
        out += "\x1b[K\r\n";
    }
    out += "\x1b[J\x1b[2mq ends\x1b[0m";
    out
}

#[derive(PartialEq, Eq)]
enum Pause {
    Over,
    Quit,
}

/// Waits until it is time for the next picture, for a signal, or for the key that ends.
fn pause(woken: &mut UnixStream, keys: bool) -> Pause {
    let limit = Timespec {
        tv_sec: EVERY.as_secs() as i64,
        tv_nsec: 0,
    };
    let stdin = io::stdin();
    let mut waiting = vec![PollFd::new(&*woken, PollFlags::IN)];
    if keys && stdin.is_terminal() {
        waiting.push(PollFd::new(&stdin, PollFlags::IN));
    }
    // Interrupted is as good as woken: the caller looks what there is.
    let _ = poll(&mut waiting, Some(&limit));
    let typed = waiting.get(1).is_some_and(|fd| !fd.revents().is_empty());
    drop(waiting);
    // What woke us, all of it.
    let mut buffer = [0; 64];
    while woken.read(&mut buffer).is_ok_and(|n| n > 0) {}
    if typed {
        return match rustix::io::read(&stdin, &mut buffer) {
            Ok(n) if buffer[..n].iter().any(|b| matches!(b, b'q' | b'Q' | 4)) => Pause::Quit,
            Ok(0) | Err(_) => Pause::Quit, // the terminal has gone
            Ok(_) => Pause::Over,
        };
    }
    Pause::Over
}

/// The terminal while a picture is on it: another page, no cursor, no echo of what is typed. Dropping it puts all
/// that right.
struct Quiet(Option<Termios>);

impl Quiet {
    fn new() -> io::Result<Quiet> {
        let before = io::stdin().is_terminal().then(|| tcgetattr(io::stdin()));
        let before = before.transpose()?;
        if let Some(mut now) = before.clone() {
            now.local_modes
                .remove(LocalModes::ECHO | LocalModes::ICANON);
            tcsetattr(io::stdin(), OptionalActions::Now, &now)?;
        }
        let quiet = Quiet(before);
        // Another page, no cursor, and lines that are too long are cut.
        print("\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J")?;
        Ok(quiet)
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let _ = print("\x1b[?7h\x1b[?25h\x1b[?1049l");
        if let Some(before) = &self.0 {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_that_is_too_high_says_so_and_ends_with_the_screen() {
        let text = (0..30).map(|n| format!("line {n}\n")).collect::<String>();
        let drawn = frame(&text, 24);
        assert_eq!(drawn.matches("\r\n").count(), 23);
        assert!(
            drawn.contains("line 21\x1b[K\r\n... 7 more lines"),
            "{drawn}"
        );
        assert!(!frame("a\nb\n", 24).contains("more"));
    }

    #[test]
    fn without_colours_nothing_is_added() {
        let plain = Look::default();
        assert_eq!(plain.paint(Colour::Red, "x"), "x");
        let look = Look {
            colour: true,
            ..plain
        };
        assert_eq!(look.paint(Colour::Red, "x"), "\x1b[31mx\x1b[0m");
        assert_eq!(look.paint(Colour::None, "x"), "x");
    }
}
