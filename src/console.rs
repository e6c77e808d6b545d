//! The console: the commands of the program at a prompt, with line editing, history and completion, under
//! their own names and under those of the first ProxyFS, whose admins have them in their fingers and scripts.
//!
//! A line is turned into the words of a command line and carried out by whoever opened the console, so that
//! there is one meaning of each command. The dangers: a first-generation name that means
//! something else than it did (`show_tasks 'host'` names a host, so a host is looked up and one that two
//! mirrors have is refused, not guessed), and a history that others may read (paths, hosts, accounts).

use crate::cli::Arguments;
use crate::status::show::wrap;
use clap::CommandFactory;
use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::Validator;
use rustyline::{Config, Context, Editor, Helper};
use std::fs::OpenOptions;
use std::io::{self, BufRead, IsTerminal, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// The prompt.
const PROMPT: &str = "proxyfs> ";

/// Name of the history file in `state_dir`, which is root's alone.
pub const HISTORY_FILE: &str = "console_history";

/// Columns of the screen that lists the commands.
const WIDTH: usize = 79;

/// How many lines are kept.
const KEPT: usize = 1000;

/// A first-generation command.
struct Old {
    name: &'static str,
    /// How it is written with what it takes.
    usage: &'static str,
    help: &'static str,
    /// The command that does it now; none: the console itself.
    now: Option<&'static str>,
    /// Whether its argument is the host of a mirror.
    takes_host: bool,
}

const OLD: [Old; 8] = [
    Old {
        name: "show_help",
        usage: "show_help",
        help: "shows this screen",
        now: None,
        takes_host: false,
    },
    Old {
        name: "show_status",
        usage: "show_status",
        help: "shows a status of your mirrors",
        now: Some("status"),
        takes_host: false,
    },
    Old {
        name: "show_tasks",
        usage: "show_tasks ['host']",
        help: "lists open tasks for all hosts, or for host",
        now: Some("tasks"),
        takes_host: true,
    },
    Old {
        name: "add_mirror",
        usage: "add_mirror 'host', 'user', 'path'",
        help: "tries a new mirror out and adds it",
        now: Some("add-mirror"),
        takes_host: false,
    },
    Old {
        name: "remove_mirror",
        usage: "remove_mirror 'host'",
        help: "removes the mirror from the configuration",
        now: Some("remove-mirror"),
        takes_host: true,
    },
    Old {
        name: "try_again",
        usage: "try_again 'host'",
        help: "triggers a retry of erroneous tasks on the host",
        now: Some("try-again"),
        takes_host: true,
    },
    Old {
        name: "kill_now",
        usage: "kill_now",
        help: "ends the daemon, gracefully",
        now: Some("stop"),
        takes_host: false,
    },
    Old {
        name: "quit",
        usage: "quit",
        help: "leaves the console; the daemon goes on",
        now: None,
        takes_host: false,
    },
];

/// Commands that make no sense at a prompt.
const NOT_HERE: [&str; 2] = ["run", "console"];

/// A configured mirror, as far as the console has to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub name: String,
    /// Its host.
    pub host: String,
}

/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Nothing,
    Help,
    Quit,
    /// The words of a command line, without the program's name.
    Command(Vec<String>),
}

/// Reads lines and has them carried out until `quit`, Ctrl-D or the end of the input. `mirrors` tells which mirrors
/// are configured at this moment; `act` carries out a command line, tells about its errors itself, and says whether
/// it went well. Without a terminal there is no prompt. Returns whether all went well.
///
/// # Errors
/// Reading the input. (A history that cannot be kept is a matter of one warning.)
pub fn run(
    history: Option<&Path>,
    mirrors: &mut dyn FnMut() -> Vec<Known>,
    act: &mut dyn FnMut(&[String]) -> bool,
) -> io::Result<bool> {
    let mut well = true;
    if !io::stdin().is_terminal() {
        for line in io::stdin().lock().lines() {
            match one(&line?, &mirrors(), act) {
                None => break,
                Some(done) => well &= done,
            }
        }
        return Ok(well);
    }
    let config = Config::builder()
        .max_history_size(KEPT)
        .and_then(|c| c.history_ignore_dups(true))
        .map_err(io::Error::other)?
        .history_ignore_space(true)
        .auto_add_history(true)
        // Lines that are pasted are lines, each carried out.
        .bracketed_paste(false)
        .completion_type(rustyline::CompletionType::List)
        .build();
    let mut editor: Editor<Names, FileHistory> =
        Editor::with_config(config).map_err(io::Error::other)?;
    if let Some(file) = history {
        match make_private(file) {
            // A history that cannot be read is an empty one.
            Ok(()) => drop(editor.load_history(file)),
            Err(why) => eprintln!(
                "proxyfs: the history is not kept: {}: {why}",
                file.display()
            ),
        }
    }
    println!("`show_help` lists the commands, Tab completes, `quit` or Ctrl-D leaves.");
    loop {
        editor.set_helper(Some(Names { mirrors: mirrors() }));
        let line = match editor.readline(PROMPT) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break,
            Err(why) => return Err(io::Error::other(why)),
        };
        if let Some(file) = history {
            let _ = editor.save_history(file);
        }
        match one(&line, &mirrors(), act) {
            None => break,
            Some(done) => well &= done,
        }
    }
    Ok(well)
}

/// Carries out one line; none: it was the last.
fn one(line: &str, mirrors: &[Known], act: &mut dyn FnMut(&[String]) -> bool) -> Option<bool> {
    match understand(line, mirrors) {
        Ok(Line::Nothing) => Some(true),
        Ok(Line::Quit) => None,
        Ok(Line::Help) => {
            let _ = io::stdout().write_all(help().as_bytes());
            Some(true)
        }
        Ok(Line::Command(words)) => Some(act(&words)),
        Err(why) => {
            eprintln!("proxyfs: {why}");
            Some(false)
        }
    }
}

/// The file, readable for its owner only; made if it is missing.
fn make_private(file: &Path) -> io::Result<()> {
    let opened = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(file)?;
    opened.set_permissions(std::fs::Permissions::from_mode(0o600))
}

fn understand(line: &str, mirrors: &[Known]) -> Result<Line, String> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(Line::Nothing);
    }
    let head: String = line
        .chars()
        .take_while(|c| c.is_alphanumeric() || matches!(c, '_' | '-'))
        .collect();
    let old = OLD.iter().find(|o| o.name == head);
    let words = words(line, old.is_some())?;
    let (Some(name), Some(rest)) = (words.first(), words.get(1..)) else {
        return Ok(Line::Nothing);
    };
    let Some(old) = old else {
        return match name.as_str() {
            "exit" => Ok(Line::Quit),
            "help" | "?" if rest.is_empty() => Ok(Line::Help),
            "help" => Ok(Line::Command(vec![rest[0].clone(), "--help".into()])),
            name if NOT_HERE.contains(&name) => Err(format!(
                "`{name}` is not for the console: give it to a shell"
            )),
            _ => Ok(Line::Command(words)),
        };
    };
    let Some(now) = old.now else {
        return Ok(if old.name == "quit" {
            Line::Quit
        } else {
            Line::Help
        });
    };
    let mut command = vec![now.to_string()];
    for word in rest {
        command.push(match old.takes_host && !word.starts_with('-') {
            true => mirror_at(word, mirrors)?,
            false => word.clone(),
        });
    }
    if old.name == "try_again" && rest.is_empty() {
        return Err(format!("which host? Write {}", old.usage));
    }
    Ok(Line::Command(command))
}

/// The name of the mirror that has this name or host. An unknown one is left to the command to complain about.
fn mirror_at(word: &str, mirrors: &[Known]) -> Result<String, String> {
    if mirrors.iter().any(|m| m.name == word) {
        return Ok(word.to_string());
    }
    let mut there = mirrors.iter().filter(|m| m.host.eq_ignore_ascii_case(word));
    match (there.next(), there.next()) {
        (Some(one), None) => Ok(one.name.clone()),
        (Some(one), Some(two)) => Err(format!(
            "{word} has several mirrors: say which by its name, `{}` or `{}`",
            one.name, two.name
        )),
        (None, _) => Ok(word.to_string()),
    }
}

/// The words of a line. Quotes keep spaces together; in the first ProxyFS's way of writing commas and
/// parentheses are between words too: `add_mirror('host', 'user', '/path')`.
fn words(line: &str, old: bool) -> Result<Vec<String>, String> {
    let mut found: Vec<String> = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in line.chars() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, ',' | '(' | ')' | ';') if old => found.extend(word.take()),
            (None, c) if c.is_whitespace() => found.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    if let Some(q) = quote {
        return Err(format!("a quote is not closed: add {q}"));
    }
    found.extend(word);
    Ok(found)
}

fn help() -> String {
    let mut lines = vec!["supported commands:".to_string()];
    let item = |lines: &mut Vec<String>, what: String| {
        for (i, part) in wrap(&what, WIDTH - 2).into_iter().enumerate() {
            lines.push(format!("{} {part}", if i == 0 { '*' } else { ' ' }));
        }
    };
    for old in &OLD {
        item(&mut lines, format!("{} - {}", old.usage, old.help));
    }
    lines.push("and those of `proxyfs` (`help NAME` tells more):".to_string());
    for command in Arguments::command().get_subcommands() {
        if is_here(command) {
            let about = command.get_about().map(ToString::to_string);
            item(
                &mut lines,
                format!("{} - {}", command.get_name(), about.unwrap_or_default()),
            );
        }
    }
    lines.push(String::new());
    lines.join("\n")
}

/// Whether it is one for a prompt.
fn is_here(command: &clap::Command) -> bool {
    !command.is_hide_set() && !NOT_HERE.contains(&command.get_name())
}

/// What can be completed: commands, options, mirrors.
struct Names {
    mirrors: Vec<Known>,
}

impl Names {
    /// What may stand where the cursor is, and where that begins.
    fn candidates(&self, line: &str) -> (usize, Vec<String>) {
        let start = line
            .rfind(|c: char| c.is_whitespace() || matches!(c, '\'' | '"' | ',' | '('))
            .map_or(0, |at| {
                at + line[at..].chars().next().map_or(1, char::len_utf8)
            });
        let begun = &line[start..];
        let before = line[..start].trim();
        let program = Arguments::command();
        let mut all: Vec<String> = Vec::new();
        let head = before.split_whitespace().next();
        match head.map(|h| h.split('(').next().unwrap_or(h)) {
            None => {
                let here = program.get_subcommands().filter(|c| is_here(c));
                let here = here.map(|c| c.get_name());
                let names = OLD
                    .iter()
                    .map(|o| o.name)
                    .chain(here)
                    .chain(["help", "exit"]);
                all.extend(names.map(str::to_string));
            }
            Some("help") => {
                let here = program.get_subcommands().filter(|c| is_here(c));
                all.extend(here.map(|c| c.get_name().to_string()));
            }
            Some(head) if begun.starts_with('-') => {
                let command = program.find_subcommand(head);
                let options = command.into_iter().flat_map(|c| c.get_arguments());
                all.extend(
                    options
                        .filter_map(|a| a.get_long())
                        .map(|l| format!("--{l}")),
                );
            }
            Some(head) => {
                let old = OLD.iter().find(|o| o.name == head);
                all.extend(self.mirrors.iter().map(|m| m.name.clone()));
                if old.is_some_and(|o| o.takes_host) {
                    all.extend(self.mirrors.iter().map(|m| m.host.clone()));
                }
            }
        }
        all.retain(|name| name.starts_with(begun));
        all.sort();
        all.dedup();
        (start, all)
    }
}

impl Completer for Names {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let (start, names) = self.candidates(&line[..position]);
        let quoted = line[..start]
            .ends_with(['\'', '"'])
            .then(|| line[..start].chars().last());
        let pair = |name: String| Pair {
            // A quote that was opened is closed, a bare word gets its space.
            replacement: match quoted.flatten() {
                Some(quote) => format!("{name}{quote}"),
                None => format!("{name} "),
            },
            display: name,
        };
        Ok((start, names.into_iter().map(pair).collect()))
    }
}

impl Hinter for Names {
    type Hint = String;
}
impl Highlighter for Names {}
impl Validator for Names {}
impl Helper for Names {}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Vec<Known> {
        [
            ("web2", "web2.example.com"),
            ("a", "two.example"),
            ("b", "two.example"),
        ]
        .map(|(name, host)| Known {
            name: name.into(),
            host: host.into(),
        })
        .into()
    }

    fn command(line: &str) -> String {
        match understand(line, &known()) {
            Ok(Line::Command(words)) => words.join("|"),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn the_commands_are_listed_in_lines_that_fit() {
        let text = help();
        assert!(text.ends_with("acting on it\n"), "{text}");
        assert!(text.lines().all(|l| l.chars().count() < 80), "{text}");
        assert!(text.contains("\n* test-mail - "), "{text}");
    }

    #[test]
    fn the_names_and_quoting_of_the_first_proxyfs_are_understood() {
        for (line, meant) in [
            ("show_status", "status"),
            ("show_tasks", "tasks"),
            ("show_tasks 'web2.example.com'", "tasks|web2"),
            ("show_tasks \"web2\"", "tasks|web2"),
            ("show_tasks('web2.example.com')", "tasks|web2"),
            ("show_tasks 'unknown'", "tasks|unknown"),
            ("try_again 'WEB2.example.com'", "try-again|web2"),
            (
                "add_mirror 'h.example', 'user', '/srv/my files'",
                "add-mirror|h.example|user|/srv/my files",
            ),
            ("add_mirror('h','u','/p')", "add-mirror|h|u|/p"),
            ("remove_mirror 'web2.example.com'", "remove-mirror|web2"),
            ("kill_now", "stop"),
            ("  kill_now ;", "stop"),
            ("status --json", "status|--json"),
            ("tasks web2 --limit 3", "tasks|web2|--limit|3"),
            ("add-mirror h u '/srv/a, b'", "add-mirror|h|u|/srv/a, b"),
            ("help tasks", "tasks|--help"),
            ("show_help", "Ok(Help)"),
            ("quit", "Ok(Quit)"),
            ("exit", "Ok(Quit)"),
            ("", "Ok(Nothing)"),
            ("# a remark", "Ok(Nothing)"),
        ] {
            assert_eq!(command(line), meant, "{line}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_told_and_not_guessed() {
        for (line, why) in [
            (
                "show_tasks 'two.example'",
                "several mirrors: say which by its name, `a` or `b`",
            ),
            ("show_tasks 'web2", "a quote is not closed: add '"),
            ("try_again", "which host? Write try_again 'host'"),
            ("run", "is not for the console"),
        ] {
            let told = understand(line, &known()).unwrap_err();
            assert!(told.contains(why), "{line}: {told}");
        }
    }

    #[test]
    fn tab_completes_commands_options_and_mirrors() {
        let names = Names { mirrors: known() };
        let all = |line: &str| names.candidates(line).1.join(" ");
        assert_eq!(all("show_"), "show_help show_status show_tasks");
        assert_eq!(all("try"), "try-again try_again");
        assert_eq!(all("pause w"), "web2");
        assert_eq!(all("show_tasks 'web2."), "web2.example.com");
        assert_eq!(all("status --j"), "--json");
        assert_eq!(all("help che"), "check check-config");
        assert_eq!(names.candidates("pause w").0, 6);
        assert_eq!(all("nonsense-"), "");
    }

    #[test]
    fn the_help_lists_every_command_of_both_generations() {
        let text = help();
        assert!(text.starts_with("supported commands:\n* show_help - shows this screen\n"));
        for command in Arguments::command().get_subcommands() {
            let line = format!("\n* {} - ", command.get_name());
            assert_eq!(text.contains(&line), is_here(command), "{line}");
        }
        for old in &OLD {
            let now = old.now;
            assert!(
                now.is_none_or(|n| text.contains(&format!("\n* {n} - "))),
                "{}",
                old.name
            );
        }
    }
}
