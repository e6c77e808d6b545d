//! proxyfs(8) and proxyfs.ini(5), in the man macros of groff_man(7).

use super::{arguments, commands, value_name};
use crate::cli::CONFIG_VARIABLE;
use crate::config::{Absent, DEFAULT_FILE, SETTINGS, Setting};
use clap::{Arg, Command};
use std::fmt::Write;

/// Columns of a page's source.
const SOURCE_WIDTH: usize = 78;

/// A page under construction.
struct Page(String);

impl Page {
    fn new(title: &str, section: u8, date: &str) -> Page {
        let version = env!("CARGO_PKG_VERSION");
        Page(format!(
            ".\\\" Made by `proxyfs pages` from the tables of commands and settings.\n\
             .TH {title} {section} {date} \"ProxyFS {version}\" \"System Administration\"\n\
             .nh\n.ad l\n"
        ))
    }

    /// A line of requests, as it is.
    fn raw(&mut self, line: &str) {
        self.0 += line;
        self.0.push('\n');
    }

    fn head(&mut self, title: &str) {
        self.raw(&format!(".SH {}", title.to_uppercase()));
    }

    /// Paragraphs with empty lines between. `` `word` `` is set in bold.
    fn text(&mut self, text: &str) {
        for (i, paragraph) in text.trim().split("\n\n").enumerate() {
            if i > 0 || !self.after_head() {
                self.raw(".PP");
            }
            self.words(paragraph);
        }
    }

    fn after_head(&self) -> bool {
        let last = self.0.lines().last();
        last.is_none_or(|l| l.starts_with(".SH") || l.starts_with(".SS"))
    }

    fn words(&mut self, text: &str) {
        let mut line = String::new();
        for (i, part) in text.split('`').enumerate() {
            match i % 2 {
                0 => line += &escape(part),
                _ => line += &format!("\\fB{}\\fR", escape(part)),
            }
        }
        let mut column = 0;
        for word in line.split_whitespace() {
            if column > 0 && column + 1 + word.len() > SOURCE_WIDTH {
                self.0.push('\n');
                column = 0;
            }
            match column {
                // At the beginning of a line these are requests.
                0 if word.starts_with(['.', '\'']) => self.0 += "\\&",
                0 => {}
                _ => self.0.push(' '),
            }
            self.0 += word;
            column += 1 + word.len();
        }
        self.0.push('\n');
    }

    /// What is explained, and its explanation, which may have paragraphs.
    fn item(&mut self, tag: &str, text: &str) {
        self.raw(".TP");
        self.raw(tag);
        for (i, paragraph) in text.trim().split("\n\n").enumerate() {
            if i > 0 {
                self.raw(".sp");
            }
            self.words(paragraph);
        }
    }

    fn example(&mut self, lines: &str) {
        self.raw(if self.after_head() { ".nf" } else { ".PP\n.nf" });
        self.raw(".RS 4");
        for line in lines.lines() {
            match line.is_empty() {
                true => self.raw(".sp"),
                false => self.raw(&format!("\\&{}", escape(line))),
            }
        }
        self.raw(".RE\n.fi");
    }
}

/// Text that roff prints as it is, and that can be copied from the page into a shell.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '\\' => escaped += "\\e",
            '-' => escaped += "\\-",
            '\'' => escaped += "\\(aq",
            '`' => escaped += "\\(ga",
            '^' => escaped += "\\(ha",
            '~' => escaped += "\\(ti",
            c => escaped.push(c),
        }
    }
    escaped
}

fn bold(text: &str) -> String {
    format!("\\fB{}\\fR", escape(text))
}

fn slanted(text: &str) -> String {
    format!("\\fI{}\\fR", escape(text))
}

/// An option, with what stands for its value.
fn option(argument: &Arg) -> String {
    let long = bold(&format!("--{}", argument.get_long().unwrap_or_default()));
    match argument.get_action().takes_values() {
        true => format!("{long} {}", slanted(&value_name(argument))),
        false => long,
    }
}

/// proxyfs(8).
pub(super) fn command_page(program: &Command, date: &str) -> String {
    let mut page = Page::new("PROXYFS", 8, date);
    page.head("Name");
    page.words("proxyfs - mirrors a directory live, in order, to any number of hosts over SFTP");
    page.head("Synopsis");
    page.raw("\\fBproxyfs\\fR \\fICOMMAND\\fR [\\fIARGUMENT\\fR ...] [\\fB\\-\\-config\\fR \\fIFILE\\fR]");
    page.head("Description");
    page.text(
        "The daemon, `proxyfs run`, mounts a directory, the source, over itself or elsewhere. A change made through the \
         mount is done in the source at once and recorded in a log. It is then carried out on every mirror over SFTP: within \
         moments when the mirror is there, later when it is not. The application waits for the local disk and the log, \
         never for a mirror.\n\n\
         A mirror is any account with SFTP. Nothing is installed there. Changes become visible on it in the order in which \
         they were made; a new or rewritten file appears whole or not at all.\n\n\
         All other commands ask the running daemon over its socket, or read its log where it is down. They are for root, \
         and for the user that runs the daemon.",
    );
    page.head("Commands");
    for command in commands(program) {
        one_command(&mut page, command);
    }
    page.head("Options");
    page.item(
        &format!("{} {}", bold("--config"), slanted("FILE")),
        &format!("The configuration, for every command. Else `${CONFIG_VARIABLE}` names it, else it is {DEFAULT_FILE}."),
    );
    page.item(
        &format!("{}, {}", bold("-h"), bold("--help")),
        "Print help: of a command with it, of all of them else.",
    );
    page.item(
        &format!("{}, {}", bold("-V"), bold("--version")),
        "Print the version.",
    );
    page.head("Exit status");
    page.item(&bold("0"), "Done.");
    page.item(
        &bold("1"),
        "It could not be done, or what was asked is not so.",
    );
    page.item(
        &bold("2"),
        "The command line or the configuration is wrong.",
    );
    if program.find_subcommand("check").is_some() {
        page.text("`check` has those of a monitoring plugin instead; see there.");
    }
    page.head("Signals");
    page.item(
        &format!("{}, {}", bold("SIGTERM"), bold("SIGINT")),
        "End the daemon in good order: who has files open is served for some seconds, what was written is recorded, the mount is \
         taken away. What the mirrors have not got by then is sent after the next start.",
    );
    page.item(
        &bold("SIGHUP"),
        "Read the configuration again, and reopen the log file.",
    );
    page.head("Environment");
    page.item(&bold(CONFIG_VARIABLE), "Names the configuration.");
    page.item(
        &bold("NOTIFY_SOCKET"),
        "Set by systemd: where the daemon says that the mount can be used (see sd_notify(3)).",
    );
    page.head("Files");
    for (file, what) in [
        (DEFAULT_FILE, "The configuration; see proxyfs.ini(5)."),
        (
            "/etc/proxyfs/mirrors.d/NAME.ini",
            "A section [mirror NAME] in a file of its own.",
        ),
        (
            "/var/lib/proxyfs",
            "`state_dir`: the log of changes and how far each mirror is. Not to be lost, and to lie on a local disk.",
        ),
        (
            "/run/proxyfs",
            "`run_dir`: proxyfs.pid, written when the mount can be used, and proxyfs.sock.",
        ),
        (
            "SOURCE/.proxyfs/id",
            "Tells that this is the source that the log belongs to, and not the empty mount point of its disk. The mount hides it.",
        ),
        (
            "PATH/.proxyfs on a mirror",
            "Files on their way, and the marker that says how far this mirror is. Leave it alone.",
        ),
    ] {
        page.item(&slanted(file), what);
    }
    page.head("Examples");
    page.text("A deployment that goes on when the mirrors have it:");
    page.example("tar xf site.tar -C /srv/www && proxyfs wait --timeout 600");
    page.text("Which mirrors are behind, for a script:");
    page.example(
        "proxyfs status --json |\n    jq -r '.mirrors[] | select(.state != \"synced\").name'",
    );
    page.head("See also");
    page.raw("\\fBproxyfs.ini\\fR(5), \\fBmount.proxyfs\\fR(8), \\fBsftp\\fR(1), \\fBsshd_config\\fR(5), \\fBfuse\\fR(4)");
    page.0
}

fn one_command(page: &mut Page, command: &Command) {
    let mut tag = bold(command.get_name());
    let (places, options): (Vec<&Arg>, _) = arguments(command).partition(|a| a.is_positional());
    let (required, optional): (Vec<&Arg>, _) =
        places.into_iter().partition(|a| a.is_required_set());
    for argument in required {
        tag += &format!(" {}", slanted(&value_name(argument)));
    }
    if !optional.is_empty() {
        let names: Vec<String> = optional.iter().map(|a| slanted(&value_name(a))).collect();
        tag += &format!(" [{}]", names.join(" "));
    }
    for argument in options {
        tag += &format!(" [{}]", option(argument));
    }
    let about = command.get_long_about().or(command.get_about());
    let mut about = about.map(ToString::to_string).unwrap_or_default();
    // clap leaves the full stop of a first line out.
    let end = about.find("\n\n").unwrap_or(about.len());
    if !about[..end].ends_with(['.', ':', '?']) {
        about.insert(end, '.');
    }
    page.item(&tag, &about);
    let mut explained = arguments(command)
        .filter(|a| a.get_help().is_some())
        .peekable();
    if explained.peek().is_some() {
        page.raw(".RS");
        for argument in explained {
            let tag = match argument.is_positional() {
                true => slanted(&value_name(argument)),
                false => option(argument),
            };
            let help = argument.get_long_help().or(argument.get_help());
            page.item(
                &tag,
                &format!(
                    "{}.",
                    help.map(ToString::to_string)
                        .unwrap_or_default()
                        .trim_end_matches('.')
                ),
            );
        }
        page.raw(".RE");
    }
    let after = command.get_after_long_help().or(command.get_after_help());
    let after = after.map(ToString::to_string).unwrap_or_default();
    if !after.is_empty() {
        page.raw(".RS\n.sp");
        for (i, line) in after.lines().enumerate() {
            if i > 0 {
                page.raw(".br");
            }
            page.raw(&format!("\\&{}", escape(line)));
        }
        page.raw(".RE");
    }
}

/// The section that a setting belongs to, as it is written.
fn section(setting: &Setting) -> &'static str {
    setting.section().head()
}

/// proxyfs.ini(5).
pub(super) fn settings_page(date: &str) -> String {
    let mut page = Page::new("PROXYFS.INI", 5, date);
    page.head("Name");
    page.words("proxyfs.ini - the configuration of proxyfs(8)");
    page.head("Synopsis");
    page.words(&format!("{DEFAULT_FILE}, /etc/proxyfs/mirrors.d/NAME.ini"));
    page.head("Description");
    page.text(
        "Sections in brackets, and below them lines `name = value`. A comment is a line of its own that begins with # or ;. \
         Durations have a unit: `500ms`, `5s`, `10m`, `2h`, `1d`.\n\n\
         There is one section [proxyfs], one [mail] where somebody is to be told, and one [mirror NAME] for each mirror. A mirror may have a file of its own \
         instead, `mirrors.d/NAME.ini` in the directory of proxyfs.ini. (Beside a configuration of another name, `TREE.ini`, \
         it is `TREE.mirrors.d/NAME.ini`: each tree has its own mirrors.) NAME is up to you: letters, digits, `-`, `_`, `.`.\n\n\
         An unknown section or name, a bad value or one that is given twice is an error, and nothing is started or changed \
         then. `proxyfs check-config` shows every problem with its line; `proxyfs reload` has the daemon read the file again.",
    );
    let mut sections: Vec<&str> = SETTINGS.iter().map(section).collect();
    sections.dedup();
    page.head("Settings");
    for name in sections {
        page.raw(&format!(".SS {}", escape(name)));
        for setting in SETTINGS.iter().filter(|s| section(s) == name) {
            let mut help = setting.help.to_string();
            match setting.absent {
                Absent::Required(example) => {
                    let _ = write!(help, "\n\nIt must be given. Example: `{example}`");
                }
                Absent::Default(value) => {
                    let _ = write!(help, "\n\nDefault: `{value}`");
                }
                Absent::Unset(example) => {
                    let _ = write!(help, "\n\nExample: `{example}`");
                }
            }
            page.item(&bold(setting.name), &help);
        }
    }
    page.head("Example");
    page.example(
        "[proxyfs]\n\
         source = /srv/www\n\
         mount_point = /srv/www\n\
         \n\
         [mirror web2]\n\
         host = web2.example.com\n\
         user = mirror\n\
         path = /www\n\
         key = /etc/proxyfs/id_ed25519\n\
         known_hosts = /etc/proxyfs/known_hosts",
    );
    page.head("See also");
    page.raw("\\fBproxyfs\\fR(8), \\fBmount.proxyfs\\fR(8)");
    page.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_is_taken_for_a_request() {
        let mut page = Page(".SH A\n".into());
        page.text(".gitignore\n\n'quoted' a\\b `--x` -y");
        assert_eq!(
            page.0,
            ".SH A\n\\&.gitignore\n.PP\n\\(aqquoted\\(aq a\\eb \\fB\\-\\-x\\fR \\-y\n"
        );
    }

    #[test]
    fn every_command_and_setting_has_its_place() {
        let program = super::super::program();
        let page = command_page(&program, "2026-11-24");
        for command in commands(&program) {
            let tag = format!(".TP\n{}", bold(command.get_name()));
            assert!(page.contains(&tag), "{tag}");
        }
        assert!(!page.contains("\\fBpages\\fR"), "it is hidden");
        let page = settings_page("2026-11-24");
        for setting in SETTINGS {
            let tag = format!(".TP\n{}\n", bold(setting.name));
            assert!(page.contains(&tag), "{tag}");
        }
        assert!(page.contains(".SS [mirror NAME]\n"));
    }
}
