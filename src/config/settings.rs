//! The one table of settings: what the parser accepts, what the example file shows and what help
//! texts say all come from [`SETTINGS`]. A new setting is one entry here and one field of
//! [`Config`] or [`MirrorConfig`].

use super::bandwidth::Bandwidth;
use super::values::{self, Refusal};
use super::{Config, Login, MailConfig, MirrorConfig, Tls};
use crate::exclude::Exclude;
use std::fmt::Write;
use std::time::Duration;

/// One setting.
pub struct Setting {
    /// The key, as it is written in the file.
    pub name: &'static str,
    /// What holds where the file has no such key.
    pub absent: Absent,
    /// For people: what it does, in one or a few sentences.
    pub help: &'static str,
    /// Checks a value and puts it in its place; also says which kind of section the key is for.
    pub apply: Apply,
}

/// What holds where a setting is not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absent {
    /// It must be given; the text is an example.
    Required(&'static str),
    /// This text is taken, as if it stood in the file.
    Default(&'static str),
    /// It has no value then (its help says what that means); the text is an example.
    Unset(&'static str),
}

/// Where a setting belongs, and how its value gets there.
#[derive(Clone, Copy)]
pub enum Apply {
    /// A key of `[proxyfs]`.
    Proxyfs(fn(&mut Config, &str) -> Result<(), Refusal>),
    /// A key of `[mail]`.
    Mail(fn(&mut MailConfig, &str) -> Result<(), Refusal>),
    /// A key of a `[mirror NAME]`.
    Mirror(fn(&mut MirrorConfig, &str) -> Result<(), Refusal>),
}

/// The kinds of sections, in the order of the example file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// `[proxyfs]`.
    Proxyfs,
    /// `[mail]`.
    Mail,
    /// `[mirror NAME]`, one for each mirror.
    Mirror,
}

impl Section {
    /// Its head line, as it is written in the file.
    pub fn head(self) -> &'static str {
        match self {
            Section::Proxyfs => "[proxyfs]",
            Section::Mail => "[mail]",
            Section::Mirror => "[mirror NAME]",
        }
    }
}

impl Setting {
    /// The section that the key belongs to.
    pub fn section(&self) -> Section {
        match self.apply {
            Apply::Proxyfs(_) => Section::Proxyfs,
            Apply::Mail(_) => Section::Mail,
            Apply::Mirror(_) => Section::Mirror,
        }
    }
}

/// More threads do not help (each takes a 16 MiB buffer).
const MOST_THREADS: usize = 32;
const SHORTEST: Duration = Duration::from_millis(10);
/// Less is no log.
const LEAST_LOG: u64 = 256 << 10;
const SECOND: Duration = Duration::from_secs(1);

/// The keys that are tried where a mirror names none: those of OpenSSH, best first.
const USUAL_KEYS: &str = "~/.ssh/id_ed25519, ~/.ssh/id_ecdsa, ~/.ssh/id_rsa";

/// All settings, in the order of the example file.
pub const SETTINGS: &[Setting] = &[
    Setting {
        name: "source",
        absent: Absent::Required("/srv/www"),
        help: "The directory whose content the mirrors get: an absolute path.",
        apply: Apply::Proxyfs(|c, v| set(&mut c.source, values::local_path(v))),
    },
    Setting {
        name: "mount_point",
        absent: Absent::Required("/srv/www"),
        help: "Where applications see it. The source itself is the recommended place: nothing can \
               bypass the log then, and no application changes its paths. Else a directory \
               outside of the source.",
        apply: Apply::Proxyfs(|c, v| set(&mut c.mount_point, values::local_path(v))),
    },
    Setting {
        name: "state_dir",
        absent: Absent::Default("/var/lib/proxyfs"),
        help: "Where the log of changes is kept. It must survive reboots and lie outside of the \
               source and the mount point.",
        apply: Apply::Proxyfs(|c, v| set(&mut c.state_dir, values::local_path(v))),
    },
    Setting {
        name: "run_dir",
        absent: Absent::Default("/run/proxyfs"),
        help: "Where the pid file and the socket for commands are, outside of the source and the \
               mount point.",
        apply: Apply::Proxyfs(|c, v| set(&mut c.run_dir, values::local_path(v))),
    },
    Setting {
        name: "log_file",
        absent: Absent::Unset("/var/log/proxyfs.log"),
        help: "The file for messages. Not set: they go to the standard error output, which \
               systemd's journal keeps.",
        apply: Apply::Proxyfs(|c, v| set(&mut c.log_file, values::local_path(v).map(Some))),
    },
    Setting {
        name: "log_level",
        absent: Absent::Default("info"),
        help: "How much is told: error, warn, info, debug or trace.",
        apply: Apply::Proxyfs(|c, v| set(&mut c.log_level, values::log_level(v))),
    },
    Setting {
        name: "threads",
        absent: Absent::Default("2"),
        help: "How many threads serve the mount, 1 to 32. Each takes up to 16 MiB.",
        apply: Apply::Proxyfs(|c, v| set(&mut c.threads, values::number(v, 1, MOST_THREADS))),
    },
    Setting {
        name: "flush_after",
        absent: Absent::Default("5s"),
        help: "A file that stays open is sent when it was not written to for so long.",
        apply: Apply::Proxyfs(|c, v| set(&mut c.flush_after, values::duration(v, SHORTEST))),
    },
    Setting {
        name: "flush_max",
        absent: Absent::Default("10m"),
        help: "A file that stays open and is written to all the time is sent so often.",
        apply: Apply::Proxyfs(|c, v| set(&mut c.flush_max, values::duration(v, SHORTEST))),
    },
    Setting {
        name: "exclude",
        absent: Absent::Unset("*.tmp, !important.tmp, /cache/"),
        help: "What is not mirrored: patterns as in .gitignore, with commas between; the last one that \
               matches decides. A name without a slash counts at any depth, one with a slash begins at \
               the source; a slash at the end is for directories only. What is below an excluded \
               directory is excluded. Not set: nothing.",
        apply: Apply::Proxyfs(|c, v| set(&mut c.exclude, Exclude::parse(v))),
    },
    Setting {
        name: "order",
        absent: Absent::Default("strict"),
        help: "In which order changes become visible on mirrors: strict, as they happened; or relaxed, \
               where those that have nothing to do with it pass a file that is still being sent.",
        apply: Apply::Proxyfs(|c, v| set(&mut c.order, values::order(v))),
    },
    Setting {
        name: "max_delete",
        absent: Absent::Default("off"),
        help: "How many files and directories may be deleted within a minute: a number, or a part of all \
               that there are, such as 20% (ten may always be). Before a mirror carries out more it is \
               paused, and `proxyfs resume` lets them through. off: any number.",
        apply: Apply::Proxyfs(|c, v| set(&mut c.max_delete, values::max_delete(v))),
    },
    Setting {
        name: "scan_on_start",
        absent: Absent::Default("yes"),
        help: "Whether the source is walked at each start for what was changed while the daemon was not \
               running, or killed, yes or no. The mount does not wait for it. Without it such changes \
               reach no mirror.",
        apply: Apply::Proxyfs(|c, v| set(&mut c.scan_on_start, values::yes_or_no(v))),
    },
    Setting {
        name: "log_limit",
        absent: Absent::Default("2G"),
        help: "How much the log of changes may take on the disk, with the unit k, M or G. A mirror that is so far \
               behind that the log would outgrow it drops out of the log, and is compared with the whole source \
               when it is back. So does one for which the disk of `state_dir` would be filled.",
        apply: Apply::Proxyfs(|c, v| set(&mut c.log_limit, values::size(v, LEAST_LOG))),
    },
    Setting {
        name: "on_event",
        absent: Absent::Unset("/usr/local/sbin/page-me"),
        help: "A program that is run for whatever is worth a mail, with the event in its environment \
               (PROXYFS_EVENT, PROXYFS_MIRROR and so on). It has 30 s. Not set: none.",
        apply: Apply::Proxyfs(|c, v| set(&mut c.on_event, values::local_path(v).map(Some))),
    },
    Setting {
        name: "to",
        absent: Absent::Required("admin@example.com"),
        help: "Who gets the mails: one address or several, separated by commas.",
        apply: Apply::Mail(|m, v| set(&mut m.to, values::mail_addresses(v))),
    },
    Setting {
        name: "from",
        absent: Absent::Unset("proxyfs@web1.example.com"),
        help: "The sender. Not set: proxyfs at this host's name.",
        apply: Apply::Mail(|m, v| set(&mut m.from, values::mail_address(v).map(Some))),
    },
    Setting {
        name: "smtp",
        absent: Absent::Unset("mail.example.com:587"),
        help: "The mail server, with its port if that is not 587 (465 with `tls = tls`, 25 with \
               `tls = none`). Not set: `sendmail` says how mails are sent.",
        apply: Apply::Mail(|m, v| set(&mut m.smtp, values::host_and_port(v).map(Some))),
    },
    Setting {
        name: "tls",
        absent: Absent::Default("starttls"),
        help: "How the connection to it is protected: starttls (and never without), tls (from the \
               first byte) or none.",
        apply: Apply::Mail(|m, v| set(&mut m.tls, tls(v))),
    },
    Setting {
        name: "ca_file",
        absent: Absent::Unset("/etc/proxyfs/mail-ca.pem"),
        help: "A certificate in PEM form that vouches for the mail server's, besides the system's own.",
        apply: Apply::Mail(|m, v| set(&mut m.ca_file, values::local_path(v).map(Some))),
    },
    Setting {
        name: "user",
        absent: Absent::Unset("proxyfs@example.com"),
        help: "The name to log in with there. Not set: no login.",
        apply: Apply::Mail(|m, v| set(&mut m.user, values::word(v).map(Some))),
    },
    Setting {
        name: "password_file",
        absent: Absent::Unset("/etc/proxyfs/mail-password"),
        help: "The file whose first line is the password. It is read anew for each mail.",
        apply: Apply::Mail(|m, v| set(&mut m.password_file, values::local_path(v).map(Some))),
    },
    Setting {
        name: "sendmail",
        absent: Absent::Unset("/usr/sbin/sendmail"),
        help: "The program that takes a mail on its standard input, where this host sends mails by itself. \
               Not set: they go to `smtp`.",
        apply: Apply::Mail(|m, v| set(&mut m.sendmail, values::local_path(v).map(Some))),
    },
    Setting {
        name: "alert_after",
        absent: Absent::Default("15m"),
        help: "A mirror that cannot be reached, or is behind, for so long is worth a mail. What a person \
               has to put right is mailed at once.",
        apply: Apply::Mail(|m, v| set(&mut m.alert_after, values::duration(v, SECOND))),
    },
    Setting {
        name: "digest",
        absent: Absent::Default("1h"),
        help: "At most three mails are sent within this time; what happens then is gathered in the next one.",
        apply: Apply::Mail(|m, v| set(&mut m.digest, values::duration(v, SECOND))),
    },
    Setting {
        name: "host",
        absent: Absent::Required("web2.example.com"),
        help: "The mirror's name or IP address.",
        apply: Apply::Mirror(|m, v| set(&mut m.host, values::host(v))),
    },
    Setting {
        name: "port",
        absent: Absent::Default("22"),
        help: "The port of its SSH server.",
        apply: Apply::Mirror(|m, v| set(&mut m.port, values::number(v, 1, u16::MAX))),
    },
    Setting {
        name: "user",
        absent: Absent::Required("www-data"),
        help: "The account there. It needs SFTP and nothing else.",
        apply: Apply::Mirror(|m, v| set(&mut m.user, values::user(v))),
    },
    Setting {
        name: "path",
        absent: Absent::Required("/srv/www"),
        help: "The directory there that becomes like the source: an absolute path, or one that \
               begins in the login directory. It must exist.",
        apply: Apply::Mirror(|m, v| set(&mut m.path, values::remote_path(v))),
    },
    Setting {
        name: "key",
        absent: Absent::Unset("/root/.ssh/id_ed25519"),
        help: "The file of the private key to log in with (several are separated by commas), or \
               `agent` for the keys of ssh-agent. Not set: those of ~/.ssh/id_ed25519, \
               ~/.ssh/id_ecdsa and ~/.ssh/id_rsa that exist.",
        apply: Apply::Mirror(|m, v| set(&mut m.login, login(v))),
    },
    Setting {
        name: "passphrase_file",
        absent: Absent::Unset("/etc/proxyfs/passphrase"),
        help: "The file whose first line is the passphrase of the key. Not set: the key has none.",
        apply: Apply::Mirror(|m, v| set(&mut m.passphrase_file, values::local_path(v).map(Some))),
    },
    Setting {
        name: "known_hosts",
        absent: Absent::Default("~/.ssh/known_hosts, /etc/ssh/ssh_known_hosts"),
        help: "The files that hold the host keys of mirrors, separated by commas. A mirror whose \
               key is in none of them is not connected to.",
        apply: Apply::Mirror(|m, v| set(&mut m.known_hosts, values::local_paths(v))),
    },
    Setting {
        name: "first_sync",
        absent: Absent::Default("keep"),
        help: "What is done when this mirror is new: keep makes its directory like the source and keeps \
               what only it has; delete deletes that; none takes it for a copy that you made.",
        apply: Apply::Mirror(|m, v| set(&mut m.first_sync, values::first_sync(v))),
    },
    Setting {
        name: "order",
        absent: Absent::Unset("relaxed"),
        help: "The same for this mirror. Not set: as in [proxyfs].",
        apply: Apply::Mirror(|m, v| set(&mut m.order, values::order(v).map(Some))),
    },
    Setting {
        name: "preserve_owner",
        absent: Absent::Default("no"),
        help: "Whether files get the numeric owner and group that they have in the source, yes or \
               no. The account must be root then.",
        apply: Apply::Mirror(|m, v| set(&mut m.preserve_owner, values::yes_or_no(v))),
    },
    Setting {
        name: "atomic_updates",
        absent: Absent::Default("no"),
        help: "Whether a big file of which little changed is copied on the mirror, changed there out \
               of sight, and put in its place whole, yes or no. Else it is changed where it stands.",
        apply: Apply::Mirror(|m, v| set(&mut m.atomic_updates, values::yes_or_no(v))),
    },
    Setting {
        name: "fsync",
        absent: Absent::Default("no"),
        help: "Whether each file is on the mirror's disk before it is seen there, yes or no, so that \
               a power failure there leaves none half written. It takes time, and uploads that were \
               cut start again.",
        apply: Apply::Mirror(|m, v| set(&mut m.fsync, values::yes_or_no(v))),
    },
    Setting {
        name: "compression",
        absent: Absent::Default("no"),
        help: "Whether what is sent is compressed, yes or no. Text becomes about 60% of its size, no \
               less (libssh2 counts letters, it does not look for repetitions); images and films \
               only cost time.",
        apply: Apply::Mirror(|m, v| set(&mut m.compression, values::yes_or_no(v))),
    },
    Setting {
        name: "bandwidth_limit",
        absent: Absent::Default("off"),
        help: "How many bytes a second may be sent to it, with the unit k, M or G, such as 2M, or \
               off; or a timetable in local time, such as 08:00 2M, 19:00 off. A reload changes it \
               without a new connection.",
        apply: Apply::Mirror(|m, v| set(&mut m.bandwidth_limit, Bandwidth::parse(v))),
    },
    Setting {
        name: "connect_timeout",
        absent: Absent::Default("15s"),
        help: "How long connecting and logging in may take.",
        apply: Apply::Mirror(|m, v| set(&mut m.connect_timeout, values::duration(v, SECOND))),
    },
    Setting {
        name: "io_timeout",
        absent: Absent::Default("30s"),
        help: "A connection on which a request is not answered for so long is given up.",
        apply: Apply::Mirror(|m, v| set(&mut m.io_timeout, values::duration(v, SECOND))),
    },
    Setting {
        name: "backoff_min",
        absent: Absent::Default("1s"),
        help: "How long to wait before connecting again, at first. It doubles each time.",
        apply: Apply::Mirror(|m, v| set(&mut m.backoff_min, values::duration(v, SHORTEST))),
    },
    Setting {
        name: "backoff_max",
        absent: Absent::Default("5m"),
        help: "How long to wait before connecting again, at most.",
        apply: Apply::Mirror(|m, v| set(&mut m.backoff_max, values::duration(v, SHORTEST))),
    },
];

/// What [`MirrorConfig::login`] is where no `key` is given.
pub(super) fn usual_login() -> Login {
    Login::UsualKeys(values::local_paths(USUAL_KEYS).unwrap_or_default())
}

fn login(text: &str) -> Result<Login, Refusal> {
    if text == "agent" {
        return Ok(Login::Agent);
    }
    let files = values::local_paths(text)
        .map_err(|why| format!("{why}; or write `agent` for the keys of ssh-agent"))?;
    Ok(Login::Keys(files))
}

fn tls(text: &str) -> Result<Tls, Refusal> {
    match text {
        "starttls" => Ok(Tls::StartTls),
        "tls" => Ok(Tls::FromTheStart),
        "none" => Ok(Tls::None),
        _ => Err("it must be starttls, tls or none".to_string()),
    }
}

fn set<T>(place: &mut T, value: Result<T, Refusal>) -> Result<(), Refusal> {
    *place = value?;
    Ok(())
}

/// The text of `proxyfs.ini.example`: every setting with its help. What must be set is; the rest is
/// commented out and shows the default, or an example where there is none. All of `[mail]` is commented out.
pub fn example() -> String {
    let mut text = String::new();
    for line in [
        "# ProxyFS: /etc/proxyfs/proxyfs.ini",
        "#",
        "# A line with # in front shows what holds without it (where the text above it says",
        "# \"Not set\": an example). A comment stands on a line of its own. Durations have a unit:",
        "# 500ms, 5s, 10m, 2h, 1d. Check your changes with `proxyfs check-config`.",
        "",
        "[proxyfs]",
    ] {
        text.push_str(line);
        text.push('\n');
    }
    let of = |section| SETTINGS.iter().filter(move |s| s.section() == section);
    of(Section::Proxyfs).for_each(|s| show(s, &mut text));
    for line in [
        "",
        "# Who is told when something needs a person, and how. Without this section nobody is. Try",
        "# it with `proxyfs test-mail`.",
        "#[mail]",
    ] {
        text.push_str(line);
        text.push('\n');
    }
    of(Section::Mail).for_each(|s| show(s, &mut text));
    for line in [
        "",
        "# One such section for each mirror, here or in a file of its own: mirrors.d/NAME.ini beside",
        "# proxyfs.ini (beside a TREE.ini: TREE.mirrors.d/NAME.ini). NAME is up to you: letters, digits,",
        "# `-`, `_`, `.`.",
        "[mirror web2]",
    ] {
        text.push_str(line);
        text.push('\n');
    }
    of(Section::Mirror).for_each(|s| show(s, &mut text));
    text
}

fn show(setting: &Setting, text: &mut String) {
    let mut column = usize::MAX;
    for word in setting.help.split_whitespace() {
        let width = word.chars().count() + 1;
        if column.saturating_add(width) > 92 {
            text.push_str("\n#");
            column = 1;
        }
        text.push(' ');
        text.push_str(word);
        column += width;
    }
    let (mark, value) = match setting.absent {
        Absent::Required(value) if setting.section() != Section::Mail => ("", value),
        Absent::Required(value) | Absent::Default(value) | Absent::Unset(value) => ("#", value),
    };
    // Writing to a String cannot fail.
    let _ = write!(text, "\n{mark}{} = {value}\n", setting.name);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_and_every_example_is_accepted() {
        for setting in SETTINGS {
            let (Absent::Required(text) | Absent::Default(text) | Absent::Unset(text)) =
                setting.absent;
            let accepted = match setting.apply {
                Apply::Proxyfs(apply) => apply(&mut Config::blank("x.ini".into()), text),
                Apply::Mail(apply) => apply(&mut MailConfig::default(), text),
                Apply::Mirror(apply) => apply(&mut MirrorConfig::blank("web2".into()), text),
            };
            assert_eq!(accepted, Ok(()), "{} = {text}", setting.name);
        }
    }

    #[test]
    fn no_setting_takes_an_empty_value() {
        for setting in SETTINGS {
            let refused = match setting.apply {
                Apply::Proxyfs(apply) => apply(&mut Config::blank("x.ini".into()), ""),
                Apply::Mail(apply) => apply(&mut MailConfig::default(), ""),
                Apply::Mirror(apply) => apply(&mut MirrorConfig::blank("web2".into()), ""),
            };
            assert!(refused.is_err(), "{}", setting.name);
        }
    }

    #[test]
    fn no_two_settings_of_a_section_share_a_name() {
        let mut names: Vec<_> = SETTINGS.iter().map(|s| (s.section(), s.name)).collect();
        names.sort();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn the_example_fits_the_screen() {
        let text = example();
        assert!(text.lines().all(|l| l.chars().count() <= 96), "{text}");
    }
}
