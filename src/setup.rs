//! Adding a mirror, and taking one away: from a few words to a file in `mirrors.d`.
//!
//! The dangers, and the order that answers them:
//!
//! * *A mirror that never works*, found out at night: all that the daemon will do there is tried before anything
//!   is saved (`doctor.rs`).
//! * *A host that is another*: the key is shown and a person, or `--accept-key`, has to say yes. What is known as
//!   changed or revoked is never accepted here.
//! * *A configuration that the daemon refuses*: the file appears whole (written aside, synced, renamed; names that begin
//!   with a dot are not read), then all is loaded as the daemon does it, and what is wrong takes the file away again.

use crate::config::{Config, FirstSync, MirrorConfig, Overrides};
use crate::doctor::{self, Report};
use crate::sftp::session::{ConnectError, HostKey, SftpSession};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A mirror as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Its name; none: made of the host's.
    pub name: Option<String>,
    /// Name or address.
    pub host: String,
    /// The account.
    pub user: String,
    /// The directory there.
    pub path: String,
    /// The port; none: 22.
    pub port: Option<u16>,
    /// The private key; none: that beside the configuration, or root's own.
    pub key: Option<PathBuf>,
    /// What is done first.
    pub first_sync: FirstSync,
}

/// A mirror that is to be added, checked as far as words can be.
#[derive(Debug)]
pub struct Plan {
    /// As the daemon will have it.
    pub mirror: MirrorConfig,
    /// The file that will say so.
    pub file: PathBuf,
    /// Its text.
    pub text: String,
    /// Where its host key is kept.
    pub known_hosts: PathBuf,
}

/// The directory of the configuration.
fn directory(config: &Config) -> &Path {
    config.file.parent().unwrap_or(Path::new("/"))
}

/// Turns a wish into a plan.
///
/// # Errors
/// One line: a word is wrong, or such a mirror is there already.
pub fn plan(config: &Config, wish: &Wish) -> Result<Plan, String> {
    let beside = directory(config);
    let name = match &wish.name {
        Some(name) => name.clone(),
        None => free_name(config, &wish.host)?,
    };
    let known_hosts = beside.join("known_hosts");
    let usual = beside.join("id_ed25519");
    let key = match &wish.key {
        Some(key) if key == Path::new("agent") => Some(key.clone()),
        Some(key) => {
            let key = std::path::absolute(key).map_err(|e| e.to_string())?;
            if !key.is_file() {
                return Err(format!(
                    "there is no key file {}: make one with \"ssh-keygen -t ed25519 -N '' -f {0}\"",
                    key.display()
                ));
            }
            Some(key)
        }
        None => usual.is_file().then_some(usual),
    };
    let mut pairs = vec![("host", wish.host.clone())];
    pairs.extend(wish.port.map(|p| ("port", p.to_string())));
    pairs.push(("user", wish.user.clone()));
    pairs.push(("path", wish.path.clone()));
    pairs.extend(key.map(|k| ("key", k.display().to_string())));
    pairs.push(("known_hosts", known_hosts.display().to_string()));
    let first = match wish.first_sync {
        FirstSync::Keep => None,
        FirstSync::Delete => Some("delete"),
        FirstSync::None => Some("none"),
    };
    pairs.extend(first.map(|f| ("first_sync", f.to_string())));
    let mut mirror = MirrorConfig::of(&name, &pairs)?;
    mirror.order.get_or_insert(config.order);
    for other in &config.mirrors {
        if other.name == name {
            return Err(format!(
                "there is a mirror {name} already ({}@{}:{}): give this one another --name",
                other.user, other.host, other.path
            ));
        }
        if (&other.host, other.port, &other.path) == (&mirror.host, mirror.port, &mirror.path) {
            return Err(format!(
                "the mirror {} has that directory already: two must not share one",
                other.name
            ));
        }
    }
    let mut text = format!("# Added by `proxyfs add-mirror`.\n[mirror {name}]\n");
    for (key, value) in &pairs {
        text += &format!("{key} = {}\n", quoted(value));
    }
    Ok(Plan {
        mirror,
        file: Config::mirrors_directory(&config.file).join(format!("{name}.ini")),
        text,
        known_hosts,
    })
}

/// The value as it can stand in the file: in quotes where it would be taken for a remark or a quoted one. (What
/// can't be written at all, [`save`] finds out.)
fn quoted(value: &str) -> String {
    let remark = value.contains(" #") || value.contains(" ;");
    if !remark && !value.starts_with(['"', '\'', '#', ';']) {
        return value.to_string();
    }
    match value.contains('"') {
        false => format!("\"{value}\""),
        true => format!("'{value}'"),
    }
}

/// A name for a mirror on that host that no other one has: the first part of the host's name, else the whole.
fn free_name(config: &Config, host: &str) -> Result<String, String> {
    let clean = |text: &str| -> String {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let text = text.trim_matches(|c| matches!(c, '[' | ']')).chars();
        let text: String = text.map(|c| if good(c) { c } else { '-' }).collect();
        text.trim_start_matches(['-', '.'])
            .chars()
            .take(64)
            .collect()
    };
    let whole = clean(host);
    let is_address = host.contains(':') || host.split('.').all(|p| p.parse::<u8>().is_ok());
    let short = match is_address {
        true => whole.clone(),
        false => clean(host.split('.').next().unwrap_or(host)),
    };
    let free = |name: &String| !name.is_empty() && config.mirror(name).is_none();
    [short, whole].into_iter().find(free).ok_or_else(|| {
        format!("a mirror with a name made of {host} is there already: give this one a --name")
    })
}

/// Reaches the mirror and logs in. A host that is not known yet is put to `ask`, with its key; if the answer is yes
/// its line is kept in `known_hosts`. None: that was bad, and is reported.
///
/// # Errors
/// The key was not accepted, or its line cannot be kept.
pub fn reach(
    plan: &Plan,
    report: &mut Report<'_>,
    ask: &mut dyn FnMut(&str, &HostKey) -> bool,
) -> Result<Option<SftpSession>, String> {
    // The files that root's ssh trusts count too: who logged in by hand has answered already.
    let mut mirror = plan.mirror.clone();
    let usual = MirrorConfig::of("x", &[]).map(|m| m.known_hosts);
    mirror.known_hosts.extend(usual.unwrap_or_default());
    let session = match doctor::connect(&mirror, report) {
        Ok(session) => session,
        Err(ConnectError::UnknownHostKey {
            host, key, line, ..
        }) => {
            if !ask(&host, &key) {
                return Err(format!(
                    "the key of {host} was not accepted: nothing was saved"
                ));
            }
            keep_line(&plan.known_hosts, &line).map_err(|why| cant_keep(plan, &why))?;
            // Asked once: whoever answers with another key now is not the one that was accepted.
            doctor::connect(&mirror, report).map_err(|why| why.to_string())?
        }
        Err(why) => return Err(why.to_string()),
    };
    if let Some(session) = &session {
        let line = session.host_key().line(&plan.mirror.host, plan.mirror.port);
        let known = fs::read_to_string(&plan.known_hosts).unwrap_or_default();
        if !known.lines().any(|l| l.trim() == line) {
            keep_line(&plan.known_hosts, &line).map_err(|why| cant_keep(plan, &why))?;
        }
    }
    Ok(session)
}

fn cant_keep(plan: &Plan, why: &io::Error) -> String {
    format!(
        "the host key cannot be kept in {}: {why}: be root, or use another configuration",
        plan.known_hosts.display()
    )
}

/// Adds a line to a known_hosts file: the whole file anew beside it, then in its place, so that nobody reads half.
fn keep_line(file: &Path, line: &str) -> io::Result<()> {
    let mut text = match fs::read(file) {
        Ok(text) => text,
        Err(why) if why.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(why) => return Err(why),
    };
    if text.last().is_some_and(|b| *b != b'\n') {
        text.push(b'\n');
    }
    text.extend_from_slice(line.as_bytes());
    text.push(b'\n');
    replace(file, &text, 0o644)
}

/// Puts a text in a file's place, on the disk before it can be seen.
fn replace(file: &Path, text: &[u8], mode: u32) -> io::Result<()> {
    let directory = file.parent().unwrap_or(Path::new("/"));
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let fresh = directory.join(format!(".{name}.new"));
    let _ = fs::remove_file(&fresh);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&fresh)
        .and_then(|mut new| {
            new.write_all(text)?;
            new.sync_all()
        })
        .and_then(|()| fs::rename(&fresh, file))
        .and_then(|()| File::open(directory)?.sync_all());
    written.inspect_err(|_| drop(fs::remove_file(&fresh)))
}

/// Writes the mirror's file and loads all as the daemon will.
///
/// # Errors
/// It cannot be written, or the configuration is wrong with it; then the file is not there.
pub fn save(plan: &Plan, config: &Config) -> Result<Config, String> {
    let cant = |why: io::Error| format!("{} cannot be written: {why}", plan.file.display());
    if let Some(directory) = plan.file.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .map_err(cant)?;
    }
    if plan.file.exists() {
        return Err(format!(
            "{} is there already: give the mirror another --name",
            plan.file.display()
        ));
    }
    replace(&plan.file, plan.text.as_bytes(), 0o600).map_err(cant)?;
    Config::load(&config.file, Overrides::default()).map_err(|why| {
        let _ = fs::remove_file(&plan.file);
        format!("the configuration would be wrong with it, so nothing was saved: {why}")
    })
}

/// The file that is a mirror's own.
///
/// # Errors
/// There is no such mirror, or it stands in the main file, which is the administrator's.
pub fn own_file(config: &Config, name: &str) -> Result<PathBuf, String> {
    if config.mirror(name).is_none() {
        let known: Vec<&str> = config.mirrors.iter().map(|m| m.name.as_str()).collect();
        return Err(match known.is_empty() {
            true => format!("there is no mirror {name:?}: none is configured"),
            false => format!(
                "there is no mirror {name:?}; configured: {}",
                known.join(", ")
            ),
        });
    }
    let file = directory(config)
        .join("mirrors.d")
        .join(format!("{name}.ini"));
    match file.is_file() {
        true => Ok(file),
        false => Err(format!(
            "the mirror {name} stands in {}: remove its section [mirror {name}] there, then `proxyfs reload`",
            config.file.display()
        )),
    }
}

/// Takes a mirror's file away, on the disk too.
///
/// # Errors
/// One line.
pub fn forget(file: &Path) -> Result<(), String> {
    let gone = fs::remove_file(file).and_then(|()| match file.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    });
    gone.map_err(|why| format!("{} cannot be removed: {why}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &Path) -> Config {
        let file = dir.join("proxyfs.ini");
        let text = "[proxyfs]\nsource = /srv/a\nmount_point = /srv/a\n\
                    [mirror web2]\nhost = web2.example.com\nuser = u\npath = /p\n";
        fs::write(&file, text).unwrap();
        Config::load(&file, Overrides::default()).unwrap_or_else(|e| panic!("{e}"))
    }

    fn wish(host: &str, path: &str) -> Wish {
        Wish {
            name: None,
            host: host.into(),
            user: "u".into(),
            path: path.into(),
            port: None,
            key: None,
            first_sync: FirstSync::Keep,
        }
    }

    #[test]
    fn a_mirror_gets_a_name_that_nobody_has() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        for (host, name) in [
            ("web3.example.com", "web3"),
            ("web2.example.org", "web2.example.org"),
            ("192.0.2.7", "192.0.2.7"),
            ("2001:db8::1", "2001-db8--1"),
        ] {
            assert_eq!(free_name(&config, host).unwrap(), name);
        }
        let plan = plan(&config, &wish("web3.example.com", "/srv/www")).unwrap();
        assert_eq!(plan.file, dir.path().join("mirrors.d/web3.ini"));
        assert_eq!((plan.mirror.port, plan.mirror.name.as_str()), (22, "web3"));
    }

    #[test]
    fn what_is_saved_is_what_was_planned_whatever_the_words_hold() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        for path in [
            "/srv/my files",
            "/srv/my # files",
            "/a#b;c",
            "/say \"hi\"",
            "/it's \\ here",
            "htdocs",
        ] {
            let mut wish = wish("h.example", path);
            wish.port = Some(2222);
            wish.first_sync = FirstSync::Delete;
            let plan = plan(&config, &wish).unwrap();
            let all = save(&plan, &config).unwrap();
            assert_eq!(all.mirror("h"), Some(&plan.mirror), "{}", plan.text);
            let file = own_file(&all, "h").unwrap();
            forget(&file).unwrap();
        }
        assert!(
            own_file(&config, "web2")
                .unwrap_err()
                .contains("[mirror web2]")
        );
        assert!(
            own_file(&config, "web9")
                .unwrap_err()
                .contains("configured: web2")
        );
    }

    #[test]
    fn words_that_cannot_be_right_are_refused_before_anything_is_tried() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        for (host, path, name, why) in [
            (
                "web2.example.com",
                "/p",
                Some("x"),
                "has that directory already",
            ),
            ("h", "/p", Some("web2"), "there is a mirror web2 already"),
            ("h", "/a/../b", None, "it must hold no `..`"),
            ("h h", "/a", None, "host"),
            ("h", "/a", Some("../x"), "a mirror's name"),
        ] {
            let mut wish = wish(host, path);
            wish.name = name.map(str::to_string);
            let told = plan(&config, &wish).unwrap_err();
            assert!(told.contains(why), "{told}");
        }
    }

    #[test]
    fn a_host_key_is_added_to_what_is_known_and_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("known_hosts");
        keep_line(&file, "a ssh-ed25519 AAAA").unwrap();
        fs::write(&file, "# mine\na ssh-ed25519 AAAA").unwrap();
        keep_line(&file, "b ssh-ed25519 BBBB").unwrap();
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!(text, "# mine\na ssh-ed25519 AAAA\nb ssh-ed25519 BBBB\n");
    }
}
