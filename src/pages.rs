//! The man pages and the completion of shells, made from the table of commands (`cli`) and the table of settings
//! (`config`): what is not written twice cannot differ. `make install` and `make deb` have the program itself write them
//! (`proxyfs pages DIRECTORY`, which no help lists), so there is nothing to keep up to date in the repository.
//!
//! Danger: a text with a character that roff or a shell takes for its own breaks the page or, worse, the
//! administrator's prompt. So every text goes through the one function that escapes it for its language, and tests
//! read the results with `mandoc`, `man` and the shells themselves.

mod completion;
mod man;

use crate::cli::Arguments;
use clap::{Arg, Command, CommandFactory, ValueHint};
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Writes all pages below `directory`: `proxyfs.8`, `proxyfs.ini.5`, `proxyfs.bash`, `_proxyfs`, `proxyfs.fish`. It is made if
/// it is not there; files of these names are replaced.
///
/// # Errors
/// A file cannot be written; the message names it.
pub fn write(directory: &Path) -> io::Result<()> {
    let name = |path: &Path, why: io::Error| {
        io::Error::new(why.kind(), format!("{}: {why}", path.display()))
    };
    std::fs::create_dir_all(directory).map_err(|why| name(directory, why))?;
    let program = program();
    let date = date(now());
    for (file, text) in [
        ("proxyfs.8", man::command_page(&program, &date)),
        ("proxyfs.ini.5", man::settings_page(&date)),
        ("proxyfs.bash", completion::bash(&program)),
        ("_proxyfs", completion::zsh(&program)),
        ("proxyfs.fish", completion::fish(&program)),
    ] {
        let path = directory.join(file);
        std::fs::write(&path, text).map_err(|why| name(&path, why))?;
    }
    Ok(())
}

fn program() -> Command {
    let mut program = Arguments::command();
    program.build();
    program
}

/// The commands that help lists.
fn commands(program: &Command) -> impl Iterator<Item = &Command> {
    program.get_subcommands().filter(|c| !c.is_hide_set())
}

/// A command's own arguments: not those that every command has.
fn arguments(command: &Command) -> impl Iterator<Item = &Arg> {
    let own = |a: &&Arg| !matches!(a.get_id().as_str(), "config" | "help" | "version");
    command
        .get_arguments()
        .filter(own)
        .filter(|a| !a.is_hide_set())
}

/// What stands for an argument's value: `FILE`.
fn value_name(argument: &Arg) -> String {
    let names = argument.get_value_names().unwrap_or_default();
    names
        .iter()
        .map(|n| n.as_str())
        .collect::<Vec<_>>()
        .join(" ")
}

/// What a shell can offer for a value.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Offer {
    /// The names of the mirrors.
    Mirrors,
    Files,
    Directories,
    Hosts,
    /// One of these.
    Words(Vec<String>),
    Nothing,
}

fn offer(argument: &Arg) -> Offer {
    let words = argument.get_possible_values();
    let option = argument.get_long().is_some();
    if !words.is_empty() {
        return Offer::Words(words.iter().map(|w| w.get_name().to_string()).collect());
    }
    match (argument.get_value_hint(), value_name(argument).as_str()) {
        (_, "NAME" | "MIRROR") if !option => Offer::Mirrors,
        (_, "SOURCE" | "MOUNT_POINT") => Offer::Directories,
        (_, "HOST") => Offer::Hosts,
        (_, "KEY" | "FILE") => Offer::Files,
        (ValueHint::AnyPath | ValueHint::FilePath, _) => Offer::Files,
        _ => Offer::Nothing,
    }
}

/// Seconds since 1970: of the build, where it is to be reproducible
/// (<https://reproducible-builds.org/specs/source-date-epoch/>).
fn now() -> u64 {
    let given = std::env::var("SOURCE_DATE_EPOCH").ok();
    given.and_then(|s| s.parse().ok()).unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(0, |d| d.as_secs())
    })
}

/// The date of that second as `2026-11-24`, UTC.
fn date(seconds: u64) -> String {
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let (mut year, mut month, mut day) = (1970, 1, seconds / 86400);
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < days {
            break;
        }
        day -= days;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, wanted) in [
            (0, "1970-01-01"),
            (951_782_399, "2000-02-28"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (1_735_689_599, "2024-12-31"),
            (1_795_478_400, "2026-11-24"),
            (4_107_542_400, "2100-03-01"),
        ] {
            assert_eq!(date(seconds), wanted, "{seconds}");
        }
    }

    #[test]
    fn what_a_shell_offers_is_what_the_argument_takes() {
        let program = program();
        let found = |command: &str, argument: &str| {
            let command = program.find_subcommand(command).expect(command);
            let mut all = command.get_arguments();
            offer(all.find(|a| a.get_id() == argument).expect(argument))
        };
        assert_eq!(found("pause", "name"), Offer::Mirrors);
        assert_eq!(found("tasks", "mirror"), Offer::Mirrors);
        assert_eq!(found("tasks", "limit"), Offer::Nothing);
        assert_eq!(found("run", "source"), Offer::Directories);
        assert_eq!(found("status", "config"), Offer::Files);
    }
}
