//! The configuration: INI text -> [`Config`], or every problem of it with file and line.
//!
//! Dangers this guards against: a typo that is silently ignored (an unknown key is an error, with
//! the word that was meant); a daemon started, or reloaded, on half a configuration (there is a
//! [`Config`] only when nothing at all is wrong); a log, socket or journal below the mount, where the
//! daemon would wait for itself; two workers on the same directory of the same mirror.
//!
//! [`settings`] is the table of what there is; [`values`] checks one value, [`text`] finds keys and
//! their lines, `load` puts them together, [`problem`] words what is wrong. Loading reads files and
//! never writes.

pub mod bandwidth;
mod load;
pub mod problem;
pub mod settings;
pub mod text;
pub mod values;

pub use problem::{ConfigError, Fault, Problem};
pub use settings::{Absent, Apply, SETTINGS, Section, Setting, example};

use crate::exclude::Exclude;
use bandwidth::Bandwidth;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the configuration is when nobody says otherwise.
pub const DEFAULT_FILE: &str = "/etc/proxyfs/proxyfs.ini";

/// Everything that can be set, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The file it came from, absolute.
    pub file: PathBuf,
    /// The directory whose changes are mirrored.
    pub source: PathBuf,
    /// Where it is mounted: the source itself, or unrelated to it.
    pub mount_point: PathBuf,
    /// Where the journal is kept; outside of the source and the mount.
    pub state_dir: PathBuf,
    /// Where the pid file and the control socket are; outside of the source and the mount.
    pub run_dir: PathBuf,
    /// Where messages go; none: standard error.
    pub log_file: Option<PathBuf>,
    /// Which messages are written.
    pub log_level: log::LevelFilter,
    /// Threads that serve the mount, 1 to 32.
    pub threads: usize,
    /// An open file is logged after so long without a write.
    pub flush_after: Duration,
    /// An open file is logged at the latest so long after its first unlogged write; not less than
    /// `flush_after`.
    pub flush_max: Duration,
    /// What is not mirrored.
    pub exclude: Exclude,
    /// How much may be deleted within a minute before mirrors are paused.
    pub max_delete: MaxDelete,
    /// The program that is run for whatever is worth a mail.
    pub on_event: Option<PathBuf>,
    /// Who is told, and how.
    pub mail: MailConfig,
    /// Whether the source is scanned at the start for what the log does not know.
    pub scan_on_start: bool,
    /// The log takes no more bytes on the disk: a mirror that would need more needs a sync.
    pub log_limit: u64,
    /// In which order changes become visible on mirrors that say nothing else.
    pub order: Order,
    /// The mirrors, those of the main file first, then those of `mirrors.d` by name.
    pub mirrors: Vec<MirrorConfig>,
    /// What is allowed but probably not meant, a line each.
    pub warnings: Vec<String>,
}

/// Who is told of what needs a person, and how.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MailConfig {
    /// Who gets the mails; empty: there is no section `[mail]`, and nobody does.
    pub to: Vec<String>,
    /// The sender; none: proxyfs at this host's name.
    pub from: Option<String>,
    /// The mail server and its port; none: `sendmail` is set.
    pub smtp: Option<(String, Option<u16>)>,
    /// How the connection to it is protected.
    pub tls: Tls,
    /// A further certificate that vouches for the server's.
    pub ca_file: Option<PathBuf>,
    /// The name to log in with.
    pub user: Option<String>,
    /// The file whose first line is the password; set where `user` is.
    pub password_file: Option<PathBuf>,
    /// The program that takes a mail on its standard input; none: `smtp` is set.
    pub sendmail: Option<PathBuf>,
    /// A mirror that is out of reach, or behind, for so long is worth a mail; at least 1 s.
    pub alert_after: Duration,
    /// Within this time at most three mails are sent; at least 1 s.
    pub digest: Duration,
}

/// How much may be deleted within a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MaxDelete {
    /// Anything.
    #[default]
    Off,
    /// So many files and directories, 1 at least.
    Count(u64),
    /// So many in a hundred of what was there, 1 to 99.
    Percent(u8),
}

impl fmt::Display for MaxDelete {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MaxDelete::Off => f.write_str("off"),
            MaxDelete::Count(n) => write!(f, "{n}"),
            MaxDelete::Percent(n) => write!(f, "{n}%"),
        }
    }
}

/// How a connection is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tls {
    /// By STARTTLS, which the server must offer.
    #[default]
    StartTls,
    /// By TLS from the first byte.
    FromTheStart,
    /// Not at all.
    None,
}

/// One mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorConfig {
    /// Its name: 1 to 64 letters, digits, `-`, `_`, `.`, unique.
    pub name: String,
    /// Host name or address, an IPv6 one without brackets.
    pub host: String,
    /// Port of its SSH server.
    pub port: u16,
    /// The account.
    pub user: String,
    /// The directory: absolute, or relative to the login directory (`.` is that itself). No `..`.
    pub path: String,
    /// How to log in.
    pub login: Login,
    /// The file whose first line is the keys' passphrase.
    pub passphrase_file: Option<PathBuf>,
    /// Where to look for its host key; files that do not exist are skipped.
    pub known_hosts: Vec<PathBuf>,
    /// How it is made like the source when the journal does not know it yet.
    pub first_sync: FirstSync,
    /// In which order changes become visible; none, as for all, is filled in when all is read.
    pub order: Option<Order>,
    /// Whether numeric owner and group are carried over.
    pub preserve_owner: bool,
    /// Whether files of which parts changed are replaced in one step.
    pub atomic_updates: bool,
    /// Whether files are on the disk there before they are seen.
    pub fsync: bool,
    /// Whether what is sent is compressed.
    pub compression: bool,
    /// How fast it may be sent to.
    pub bandwidth_limit: Bandwidth,
    /// Limit for connecting and logging in, at least 1 s.
    pub connect_timeout: Duration,
    /// Limit for the answer to a request, at least 1 s.
    pub io_timeout: Duration,
    /// First pause before connecting again.
    pub backoff_min: Duration,
    /// Longest pause; not less than `backoff_min`.
    pub backoff_max: Duration,
}

/// How to log in on a mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// With these private key files, which the administrator named: one that is missing is an error.
    Keys(Vec<PathBuf>),
    /// With those of these files that exist (`id_ed25519` and so on below `~/.ssh`).
    UsualKeys(Vec<PathBuf>),
    /// With the keys of ssh-agent.
    Agent,
}

/// In which order changes become visible on a mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// As they happened.
    #[default]
    Strict,
    /// As they happened where they are related; others pass a file that is being sent.
    Relaxed,
}

/// What is done first with a mirror that is new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FirstSync {
    /// Its directory is made like the source; what only the mirror has is kept and told.
    #[default]
    Keep,
    /// Its directory is made like the source; what only the mirror has is deleted.
    Delete,
    /// It holds a copy that was made by other means: it gets what changes from here on.
    None,
}

/// What the command line says instead of the file (`run SOURCE MOUNT_POINT`). Relative paths are
/// taken from the working directory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Overrides {
    /// Instead of `source`.
    pub source: Option<PathBuf>,
    /// Instead of `mount_point`.
    pub mount_point: Option<PathBuf>,
}

impl Config {
    /// Reads the file at `path` and those of its [`Config::mirrors_directory`].
    ///
    /// # Errors
    /// All problems that were found, each with its file and line: see [`Fault`].
    pub fn load(path: &Path, overrides: Overrides) -> Result<Config, ConfigError> {
        load::load(path, &overrides)
    }

    /// `run_dir` of a file that may have mistakes elsewhere; none: it cannot be read.
    pub fn run_dir_of(file: &Path) -> Option<PathBuf> {
        load::run_dir_of(file)
    }

    /// Where the files of single mirrors are: `mirrors.d` beside `proxyfs.ini`. Beside a file of another name, `NAME.ini`, it is
    /// `NAME.mirrors.d`, so that the daemons of several trees (`/etc/proxyfs/NAME.ini`) do not take each other's mirrors.
    pub fn mirrors_directory(file: &Path) -> PathBuf {
        let name = match file.file_stem().and_then(|s| s.to_str()) {
            None | Some("proxyfs") => "mirrors.d".to_string(),
            Some(other) => format!("{other}.mirrors.d"),
        };
        file.with_file_name(name)
    }

    /// The mirror of that name.
    pub fn mirror(&self, name: &str) -> Option<&MirrorConfig> {
        self.mirrors.iter().find(|m| m.name == name)
    }

    /// What the table of settings fills in.
    fn blank(file: PathBuf) -> Config {
        Config {
            file,
            source: PathBuf::new(),
            mount_point: PathBuf::new(),
            state_dir: PathBuf::new(),
            run_dir: PathBuf::new(),
            log_file: None,
            log_level: log::LevelFilter::Off,
            threads: 0,
            flush_after: Duration::ZERO,
            flush_max: Duration::ZERO,
            exclude: Exclude::default(),
            max_delete: MaxDelete::Off,
            order: Order::Strict,
            on_event: None,
            mail: MailConfig::default(),
            scan_on_start: true,
            log_limit: 0,
            mirrors: Vec::new(),
            warnings: Vec::new(),
        }
    }
}

impl MirrorConfig {
    /// A mirror with these settings, and the defaults of all others; what must be set may be left out, and is
    /// blank then.
    ///
    /// # Errors
    /// One line: a value is bad.
    pub fn of(name: &str, pairs: &[(&str, String)]) -> Result<MirrorConfig, String> {
        values::mirror_name(name)?;
        let mut mirror = MirrorConfig::blank(name.to_string());
        for setting in SETTINGS {
            let Apply::Mirror(apply) = setting.apply else {
                continue;
            };
            let given = pairs.iter().find(|(key, _)| *key == setting.name);
            let value = match (given, setting.absent) {
                (Some((_, value)), _) => value,
                (None, Absent::Default(value)) => value,
                (None, Absent::Required(_) | Absent::Unset(_)) => continue,
            };
            apply(&mut mirror, value)
                .map_err(|why| format!("bad {} `{value}`: {why}", setting.name))?;
        }
        Ok(mirror)
    }

    /// What the table of settings fills in.
    fn blank(name: String) -> MirrorConfig {
        MirrorConfig {
            name,
            host: String::new(),
            port: 0,
            user: String::new(),
            path: String::new(),
            login: settings::usual_login(),
            passphrase_file: None,
            known_hosts: Vec::new(),
            first_sync: FirstSync::default(),
            order: None,
            preserve_owner: false,
            atomic_updates: false,
            fsync: false,
            compression: false,
            bandwidth_limit: Bandwidth::default(),
            connect_timeout: Duration::ZERO,
            io_timeout: Duration::ZERO,
            backoff_min: Duration::ZERO,
            backoff_max: Duration::ZERO,
        }
    }
}
