//! From files to a [`Config`]: which sections there may be, which keys they must have, and what
//! their values may not be together.
//!
//! Problems are collected, not returned at the first: an administrator repairs a file in one go.
//! What is missing or bad keeps its blank value meanwhile, and the checks across values leave such
//! alone, so that one mistake is reported once.

use super::problem::{self, ConfigError, Fault, Problem};
use super::text::{self, RawSection};
use super::values::{self, Refusal};
use super::{Absent, Apply, Config, Login, MirrorConfig, Overrides, SETTINGS, Section, Tls};
use std::collections::HashMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes that may be on the way before the answer to one request: a WRITE on each channel of a connection, twice.
const ALL_LANES: u64 = 2 * 4 * (32 << 10);

/// See [`Config::load`].
pub(super) fn load(path: &Path, overrides: &Overrides) -> Result<Config, ConfigError> {
    let file = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let mut loader = Loader::new(file);
    loader.main_file(overrides);
    loader.mirror_files();
    loader.check_paths();
    for mirror in &mut loader.config.mirrors {
        mirror.order.get_or_insert(loader.config.order);
    }
    loader.check_times();
    loader.check_mail();
    loader.check_mirrors();
    loader.check_secrets();
    let mut config = loader.config;
    if !loader.problems.is_empty() {
        let mut problems = loader.problems;
        problems.sort_by_key(|p| (p.file != config.file, p.file.clone(), p.line));
        return Err(ConfigError(problems));
    }
    if config.mirrors.is_empty() {
        let file = config.file.display();
        config.warnings.push(format!(
            "{file}: there is no mirror: add a section [mirror NAME] (see proxyfs.ini.example)"
        ));
    }
    Ok(config)
}

/// See [`Config::run_dir_of`].
pub(super) fn run_dir_of(file: &Path) -> Option<PathBuf> {
    let text = String::from_utf8_lossy(&std::fs::read(file).ok()?).into_owned();
    let written = text::find(&text, "proxyfs", "run_dir");
    let mut config = Config::blank(file.to_path_buf());
    for setting in SETTINGS.iter().filter(|s| s.name == "run_dir") {
        if let (Apply::Proxyfs(apply), Absent::Default(usual)) = (setting.apply, setting.absent) {
            apply(&mut config, written.as_deref().unwrap_or(usual)).ok()?;
        }
    }
    Some(config.run_dir)
}

/// Where a section or one of its keys stands.
#[derive(Clone)]
struct Place {
    file: PathBuf,
    line: Option<usize>,
    keys: HashMap<&'static str, usize>,
}

impl Place {
    /// The first of `keys` that the file has, else the section.
    fn of(&self, keys: &[&str]) -> Option<usize> {
        let found = keys.iter().find_map(|k| self.keys.get(k).copied());
        found.or(self.line)
    }
}

struct Loader {
    config: Config,
    /// Where `[proxyfs]` is.
    main: Place,
    /// Where `[mail]` is, if it is.
    mail: Option<Place>,
    /// Where each of `config.mirrors` is.
    places: Vec<Place>,
    problems: Vec<Problem>,
}

impl Loader {
    fn new(file: PathBuf) -> Loader {
        Loader {
            main: Place {
                file: file.clone(),
                line: None,
                keys: HashMap::new(),
            },
            config: Config::blank(file),
            mail: None,
            places: Vec::new(),
            problems: Vec::new(),
        }
    }

    fn problem(&mut self, file: &Path, line: Option<usize>, fault: Fault) {
        self.problems.push(Problem {
            file: file.to_path_buf(),
            line,
            fault,
        });
    }

    /// The sections of a file; none where that fails, which is a problem then.
    fn sections(&mut self, file: &Path) -> Option<Vec<RawSection>> {
        match std::fs::read(file) {
            Ok(bytes) => match text::read(file, &bytes) {
                Ok(sections) => return Some(sections),
                Err(problems) => self.problems.extend(problems),
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.problem(file, None, Fault::Missing);
            }
            Err(e) => self.problem(file, None, Fault::Unreadable(e.to_string())),
        }
        None
    }

    fn main_file(&mut self, overrides: &Overrides) {
        let file = self.config.file.clone();
        let Some(sections) = self.sections(&file) else {
            return;
        };
        let absent = |name: &str| RawSection {
            name: name.to_string(),
            line: 0,
            entries: Vec::new(),
        };
        let mut only = [absent("proxyfs"), absent("mail")];
        let mut mirrors = Vec::new();
        for section in sections {
            if let Some(place) = only.iter_mut().find(|s| s.name == section.name) {
                if place.line > 0 {
                    let fault = Fault::DuplicateSection {
                        name: section.name,
                        first: format!("line {}", place.line),
                    };
                    self.problem(&file, Some(section.line), fault);
                } else {
                    *place = section;
                }
            } else if let Some(name) = mirror_of(&section.name) {
                mirrors.push((name.to_string(), section));
            } else {
                let fault = Fault::UnknownSection {
                    advice: unknown_section(&section.name),
                    name: section.name,
                };
                self.problem(&file, Some(section.line), fault);
            }
        }
        let [main, mail] = only;
        self.main_section(&main, overrides);
        self.mail_section(&file, &mail);
        for (name, section) in mirrors {
            self.mirror_section(&file, &name, &section);
        }
    }

    fn main_section(&mut self, section: &RawSection, overrides: &Overrides) {
        let mut config = self.config.clone();
        let file = self.config.file.clone();
        let mut known = Vec::new();
        known.extend(overrides.source.as_ref().map(|_| "source"));
        known.extend(overrides.mount_point.as_ref().map(|_| "mount_point"));
        self.main = self.fill(
            &file,
            section,
            Section::Proxyfs,
            &known,
            |apply, value| match apply {
                Apply::Proxyfs(apply) => apply(&mut config, value),
                Apply::Mail(_) | Apply::Mirror(_) => Ok(()),
            },
        );
        if let Some(path) = &overrides.source {
            config.source = absolute(path);
        }
        if let Some(path) = &overrides.mount_point {
            config.mount_point = absolute(path);
        }
        self.config = config;
    }

    /// Where there is no such section nothing of it is required, and the times have their defaults all the same.
    fn mail_section(&mut self, file: &Path, section: &RawSection) {
        let mut mail = self.config.mail.clone();
        let known: &[&str] = if section.line > 0 { &[] } else { &["to"] };
        let place = self.fill(
            file,
            section,
            Section::Mail,
            known,
            |apply, value| match apply {
                Apply::Mail(apply) => apply(&mut mail, value),
                Apply::Proxyfs(_) | Apply::Mirror(_) => Ok(()),
            },
        );
        self.config.mail = mail;
        self.mail = Some(place).filter(|_| section.line > 0);
    }

    fn mirror_section(&mut self, file: &Path, name: &str, section: &RawSection) {
        if let Err(why) = values::mirror_name(name) {
            let name = name.to_string();
            return self.problem(file, Some(section.line), Fault::BadMirrorName { name, why });
        }
        let earlier = self.config.mirrors.iter().position(|m| m.name == name);
        if let Some(first) = earlier.map(|i| &self.places[i]) {
            let line = first.line.unwrap_or(1);
            let fault = Fault::DuplicateSection {
                name: section.name.clone(),
                first: if first.file == file {
                    format!("line {line}")
                } else {
                    format!("{}:{line}", first.file.display())
                },
            };
            return self.problem(file, Some(section.line), fault);
        }
        let mut mirror = MirrorConfig::blank(name.to_string());
        let place = self.fill(
            file,
            section,
            Section::Mirror,
            &[],
            |apply, value| match apply {
                Apply::Mirror(apply) => apply(&mut mirror, value),
                Apply::Proxyfs(_) | Apply::Mail(_) => Ok(()),
            },
        );
        self.config.mirrors.push(mirror);
        self.places.push(place);
    }

    /// Goes through the keys of one section, which is of that `kind`, and has `apply` take the values and defaults. Keys in `known` may be missing.
    fn fill(
        &mut self,
        file: &Path,
        section: &RawSection,
        kind: Section,
        known: &[&str],
        mut apply: impl FnMut(Apply, &str) -> Result<(), Refusal>,
    ) -> Place {
        let line = Some(section.line).filter(|l| *l > 0);
        let mut place = Place {
            file: file.to_path_buf(),
            line,
            keys: HashMap::new(),
        };
        let settings = || SETTINGS.iter().filter(|s| s.section() == kind);
        for setting in settings() {
            let Some(entry) = section.entries.iter().find(|e| e.key == setting.name) else {
                match setting.absent {
                    Absent::Unset(_) => {}
                    Absent::Required(_) if known.contains(&setting.name) => {}
                    Absent::Required(example) => {
                        let fault = Fault::MissingKey {
                            key: setting.name,
                            section: section.name.clone(),
                            example,
                        };
                        self.problem(file, line, fault);
                    }
                    Absent::Default(text) => {
                        let key = setting.name;
                        if let Err(why) = apply(setting.apply, text) {
                            let why = format!("the default of `{key}` does not fit here: {why}");
                            self.problem(file, line, Fault::Conflict(why));
                        }
                    }
                }
                continue;
            };
            place.keys.insert(setting.name, entry.line);
            if let Err(why) = apply(setting.apply, &entry.value) {
                let fault = Fault::BadValue {
                    key: entry.key.clone(),
                    value: entry.value.clone(),
                    why,
                };
                self.problem(file, Some(entry.line), fault);
            }
        }
        for entry in &section.entries {
            let key = entry.key.clone();
            match place.keys.iter().find(|(k, _)| **k == key) {
                None => {
                    let section = section.name.clone();
                    let names: Vec<&str> = settings().map(|s| s.name).collect();
                    let advice = unknown_key(&key, &names, kind);
                    let fault = Fault::UnknownKey {
                        key,
                        section,
                        advice,
                    };
                    self.problem(file, Some(entry.line), fault);
                }
                Some((_, first)) if *first != entry.line => {
                    let first = *first;
                    self.problem(file, Some(entry.line), Fault::DuplicateKey { key, first });
                }
                Some(_) => {}
            }
        }
        place
    }

    /// The files of [`Config::mirrors_directory`], by name. That the directory is missing is fine.
    fn mirror_files(&mut self) {
        let directory = Config::mirrors_directory(&self.config.file);
        let names = std::fs::read_dir(&directory)
            .and_then(|entries| entries.map(|e| e.map(|e| e.file_name())).collect());
        let mut names: Vec<_> = match names {
            Ok(names) => names,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return,
            Err(e) => {
                let fault = Fault::Unreadable(e.to_string());
                return self.problem(&directory, None, fault);
            }
        };
        names.sort();
        for name in names {
            let file = directory.join(&name);
            let shown = name.to_string_lossy();
            match name.to_str().and_then(|n| n.strip_suffix(".ini")) {
                _ if shown.starts_with('.') => {}
                Some(stem) => self.mirror_file(&file, stem),
                None => self.config.warnings.push(format!(
                    "{}: ignored, because its name does not end in .ini",
                    file.display()
                )),
            }
        }
    }

    fn mirror_file(&mut self, file: &Path, stem: &str) {
        let before = self.problems.len();
        let Some(sections) = self.sections(file) else {
            return;
        };
        let mut any = false;
        for section in sections {
            if mirror_of(&section.name) == Some(stem) {
                any = true;
                self.mirror_section(file, stem, &section);
            } else {
                let fault = Fault::UnknownSection {
                    name: section.name,
                    advice: format!("this file is for [mirror {stem}] only, as its name says"),
                };
                self.problem(file, Some(section.line), fault);
            }
        }
        if !any && self.problems.len() == before {
            let why = format!("there is no section [mirror {stem}]: add it, or remove the file");
            self.problem(file, None, Fault::Conflict(why));
        }
    }

    /// How the directories may lie to one another. Symbolic links are followed, as far as they exist.
    fn check_paths(&mut self) {
        let config = &self.config;
        if config.source.as_os_str().is_empty() || config.mount_point.as_os_str().is_empty() {
            return;
        }
        let (source, mount) = (resolve(&config.source), resolve(&config.mount_point));
        let mut conflicts = Vec::new();
        let nested = source != mount && (source.starts_with(&mount) || mount.starts_with(&source));
        if nested {
            let why = "mount_point and source must be the same directory, or neither inside the \
                       other: set mount_point to the source (recommended) or to a directory \
                       elsewhere";
            conflicts.push((&["mount_point", "source"][..], why.to_string()));
        }
        let kept = [
            ("state_dir", Some(&config.state_dir)),
            ("run_dir", Some(&config.run_dir)),
            ("log_file", config.log_file.as_ref()),
        ];
        for (key, path) in kept {
            let Some(path) = path.filter(|p| !p.as_os_str().is_empty()) else {
                continue;
            };
            let real = resolve(path);
            let around = [("source", &source), ("mount_point", &mount)];
            if let Some((outer, _)) = around.iter().find(|(_, o)| real.starts_with(o)) {
                let place = match key {
                    "state_dir" => &["state_dir", "source", "mount_point"][..],
                    "run_dir" => &["run_dir", "source", "mount_point"],
                    _ => &["log_file"],
                };
                conflicts.push((
                    place,
                    format!(
                        "{key} ({}) is inside {outer}, where ProxyFS would mirror its own files: \
                         choose a place outside",
                        path.display()
                    ),
                ));
            }
        }
        let file = self.config.file.clone();
        for (keys, why) in conflicts {
            let line = self.main.of(keys);
            self.problem(&file, line, Fault::Conflict(why));
        }
    }

    fn check_times(&mut self) {
        let mut conflicts = Vec::new();
        let mut ordered = |place: &Place, low: (&str, Duration), high: (&str, Duration)| {
            // Zero: the value is missing because of another problem.
            if low.1 > high.1 && !high.1.is_zero() {
                let why = format!(
                    "{} ({}) must not be longer than {} ({})",
                    low.0,
                    values::show_duration(low.1),
                    high.0,
                    values::show_duration(high.1)
                );
                conflicts.push((place.file.clone(), place.of(&[low.0, high.0]), why));
            }
        };
        let c = &self.config;
        ordered(
            &self.main,
            ("flush_after", c.flush_after),
            ("flush_max", c.flush_max),
        );
        for (mirror, place) in c.mirrors.iter().zip(&self.places) {
            ordered(
                place,
                ("backoff_min", mirror.backoff_min),
                ("backoff_max", mirror.backoff_max),
            );
        }
        for (mirror, place) in c.mirrors.iter().zip(&self.places) {
            let Some(rate) = mirror.bandwidth_limit.slowest() else {
                continue;
            };
            let turns = Duration::from_secs(ALL_LANES.div_ceil(rate));
            if turns > mirror.io_timeout && !mirror.io_timeout.is_zero() {
                let why = format!(
                    "at the slowest rate of bandwidth_limit an answer may take {}: set io_timeout to \
                     that at least",
                    values::show_duration(turns)
                );
                let line = place.of(&["bandwidth_limit", "io_timeout"]);
                conflicts.push((place.file.clone(), line, why));
            }
        }
        for (file, line, why) in conflicts {
            self.problem(&file, line, Fault::Conflict(why));
        }
    }

    fn check_mail(&mut self) {
        let (Some(place), mail) = (&self.mail, &self.config.mail) else {
            return;
        };
        let has = |key| place.keys.contains_key(key);
        let mut conflicts: Vec<(&[&str], &str)> = Vec::new();
        if has("smtp") && has("sendmail") {
            let why = "`smtp` and `sendmail` are two ways for the same mails: remove one of them";
            conflicts.push((&["sendmail"], why));
        }
        if !has("smtp") && !has("sendmail") {
            let why = "say how mails are sent: `smtp = HOST`, or `sendmail = /usr/sbin/sendmail` where \
                       this host sends mails by itself";
            conflicts.push((&[], why));
        }
        if has("user") != has("password_file") {
            let why = "`user` and `password_file` belong together: set both, or none where the mail \
                       server wants no login";
            conflicts.push((&["user", "password_file"], why));
        }
        let file = place.file.clone();
        let found = conflicts.into_iter();
        let found: Vec<_> = found.map(|(keys, why)| (place.of(keys), why)).collect();
        let user = place.of(&["user"]);
        if mail.user.is_some() && mail.tls == Tls::None {
            self.config.warnings.push(format!(
                "{}:{}: with `tls = none` the password is sent as it is: whoever hears the line has it",
                file.display(),
                user.unwrap_or(1)
            ));
        }
        for (line, why) in found {
            self.problem(&file, line, Fault::Conflict(why.to_string()));
        }
    }

    /// A file with a password that others may read, or a program that others may change or that is none, is told of, and
    /// used all the same.
    fn check_secrets(&mut self) {
        let mirrors = self.config.mirrors.iter();
        let secrets = mirrors.filter_map(|m| Some(("passphrase_file", m.passphrase_file.clone()?)));
        let mail = self.config.mail.password_file.clone();
        let mut open: Vec<_> = secrets
            .chain(mail.map(|file| ("password_file", file)))
            .filter(|(_, file)| {
                std::fs::metadata(file).is_ok_and(|found| found.mode() & 0o044 != 0)
            })
            .collect();
        open.sort();
        open.dedup();
        let programs = [
            ("on_event", &self.config.on_event),
            ("sendmail", &self.config.mail.sendmail),
        ];
        for (key, program) in programs {
            let Some(program) = program else { continue };
            let shown = program.display();
            let mode = std::fs::metadata(program).map(|found| found.mode());
            let warnings = &mut self.config.warnings;
            match mode {
                Err(why) => warnings.push(format!("{key} {shown} cannot be run: {why}")),
                Ok(mode) if mode & 0o111 == 0 => {
                    warnings.push(format!("{key} {shown} cannot be run: chmod +x {shown}"));
                }
                Ok(mode) if mode & 0o022 != 0 => warnings.push(format!(
                    "{key} {shown} is run as root, and may be written by others than its owner: chmod go-w {shown}"
                )),
                Ok(_) => {}
            }
        }
        self.config
            .warnings
            .extend(open.into_iter().map(|(key, file)| {
                let file = file.display();
                format!("{key} {file} may be read by others than its owner: chmod 600 {file}")
            }));
    }

    fn check_mirrors(&mut self) {
        let mut seen: HashMap<(String, u16, &str, &str), &str> = HashMap::new();
        let mut conflicts = Vec::new();
        for (mirror, place) in self.config.mirrors.iter().zip(&self.places) {
            if mirror.login == Login::Agent && mirror.passphrase_file.is_some() {
                let why = "passphrase_file is of no use with `key = agent`: remove it".to_string();
                conflicts.push((place.clone(), &["passphrase_file"][..], why));
            }
            if mirror.host.is_empty() || mirror.user.is_empty() || mirror.path.is_empty() {
                continue;
            }
            let host = mirror.host.to_lowercase();
            let target = (
                host,
                mirror.port,
                mirror.user.as_str(),
                mirror.path.as_str(),
            );
            if let Some(first) = seen.insert(target, &mirror.name) {
                let why = format!(
                    "the mirrors `{first}` and `{}` are the same directory ({}@{}:{}, port {}): \
                     remove one of them",
                    mirror.name, mirror.user, mirror.host, mirror.path, mirror.port
                );
                conflicts.push((place.clone(), &["path"], why));
            }
        }
        for (place, keys, why) in conflicts {
            self.problem(&place.file, place.of(keys), Fault::Conflict(why));
        }
    }
}

/// What to write instead of an unknown key: the near miss of this section, or the section where such
/// a key belongs.
fn unknown_key(key: &str, names: &[&str], kind: Section) -> String {
    let other = SETTINGS.iter().filter(|s| s.section() != kind);
    match other.into_iter().find(|s| s.name == key) {
        Some(other) => format!("it belongs into {}", other.section().head()),
        None => problem::advice(key, names),
    }
}

/// What to write instead of an unknown section.
fn unknown_section(name: &str) -> String {
    let (word, rest) = name.split_once(' ').unwrap_or((name, "NAME"));
    match problem::nearest(word, &["proxyfs", "mail", "mirror", "mirrors"]) {
        Some(one @ ("proxyfs" | "mail")) => format!("did you mean [{one}]?"),
        Some(_) => format!("did you mean [mirror {}]?", rest.trim()),
        None => "known are [proxyfs], [mail] and [mirror NAME]".to_string(),
    }
}

/// A path of the command line, from the root on.
fn absolute(path: &Path) -> PathBuf {
    values::tidy(&std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf()))
}

/// NAME of `mirror NAME`.
fn mirror_of(section: &str) -> Option<&str> {
    match section.split_once(char::is_whitespace) {
        Some(("mirror", name)) => Some(name.trim()),
        Some(_) => None,
        None => Some("").filter(|_| section == "mirror"),
    }
}

/// The path with the symbolic links of its existing part followed.
fn resolve(path: &Path) -> PathBuf {
    for above in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (above.canonicalize(), path.strip_prefix(above)) {
            return values::tidy(&real.join(rest));
        }
    }
    path.to_path_buf()
}
