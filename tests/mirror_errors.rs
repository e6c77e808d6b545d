//! What goes wrong with a mirror: each trouble told in one clear line, in `status` and in the log; nobody else
//! disturbed by it; and over when it is put right.
#![allow(clippy::unwrap_used)]

mod directory;
mod reaching;

use super::support::daemon::Daemon;
use super::support::mounts::wait_until;
use super::support::relay::{Port, Relay};
use super::support::sshd::{ORDINARY_USER, Sshd, ids_of, keygen, public_of};
use super::support::tree::{assert_same, differences};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use std::fmt::Write;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The directory of a mirror: one of several on a server, made and given to the login user.
pub fn base(sshd: &Sshd, name: &str) -> PathBuf {
    let path = sshd.base().join(name);
    if !path.exists() {
        fs::create_dir(&path).unwrap();
        let (uid, gid) = ids_of(sshd.user());
        chown(&path, Some(uid), Some(gid)).unwrap();
    }
    path
}

/// Adds a mirror that is tried again at once and for ever, but for what `changes` say.
pub fn add(daemon: &mut Daemon, name: &str, sshd: &Sshd, changes: &[(&str, &str)]) {
    let mut settings = vec![
        ("host", "127.0.0.1".to_string()),
        ("port", sshd.port().to_string()),
        ("user", sshd.user().to_string()),
        ("path", base(sshd, name).display().to_string()),
        ("key", sshd.key_path().display().to_string()),
        ("known_hosts", sshd.known_hosts_path().display().to_string()),
        ("backoff_min", "50ms".to_string()),
        ("backoff_max", "500ms".to_string()),
    ];
    for (key, value) in changes {
        settings.retain(|(k, _)| k != key);
        settings.push((key, value.to_string()));
    }
    let ini = daemon.ini_mut();
    write!(ini, "\n[mirror {name}]\n").unwrap();
    for (key, value) in settings {
        writeln!(ini, "{key} = {value}").unwrap();
    }
    daemon.write_ini();
}

/// A known_hosts file that knows the server at whatever port.
pub fn known_anywhere(sshd: &Sshd) -> String {
    let line = fs::read_to_string(sshd.known_hosts_path()).unwrap();
    let path = sshd.file("known_anywhere");
    fs::write(&path, format!("* {}", line.split_once(' ').unwrap().1)).unwrap();
    path.display().to_string()
}

/// So long that nothing is tried again by itself while a test lasts.
pub const NEVER: [(&str, &str); 2] = [("backoff_min", "1h"), ("backoff_max", "1h")];

pub fn never_by_itself<'a>(changes: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [&NEVER[..], changes].concat()
}

/// Waits until a mirror is in that state with an error that has these words, and checks that an
/// administrator finds it wherever they look.
#[track_caller]
pub fn told(daemon: &Daemon, name: &str, state: &str, words: &str) {
    let says = |m: &serde_json::Value| m["last_error"].as_str().is_some_and(|e| e.contains(words));
    let mirror = daemon.wait_for_mirror(name, |m| m["state"] == state && says(m));
    let error = mirror["last_error"].as_str().unwrap();
    assert!(!error.contains('\n'), "{error}");
    assert!(mirror["retry_in_seconds"].is_u64(), "{mirror:#}");
    let text = daemon.ok(&["status"]);
    let row = format!("{name} {} ", state.to_uppercase().replace('-', " "));
    let words = |l: &str| l.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.lines().any(|l| words(l).starts_with(&row)), "{text}");
    let part = text.split_once(&format!("\n\n{name}: ")).expect(&text).1;
    let part = part.split("\n\n").next().unwrap();
    let squeezed = |s: &str| s.split_whitespace().collect::<String>();
    assert!(squeezed(part).contains(&squeezed(error)), "{text}\n{error}");
    let log = daemon.log();
    let line = format!("mirror {name}: {error} (");
    let logged = |l: &str| l.contains("[WARN ]") && l.contains(&line);
    assert!(log.lines().any(logged), "not in the log: {line}\n{log}");
}

/// The mount works at once, and the mirror `good` gets everything.
#[track_caller]
pub fn nobody_else_is_disturbed(daemon: &Daemon, sshd: &Sshd) {
    let www = daemon.source();
    fs::create_dir_all(www.join("dir")).unwrap();
    fs::write(www.join("dir/file"), "made while a mirror was in trouble").unwrap();
    let read = fs::read_to_string(www.join("dir/file")).unwrap();
    assert_eq!(read, "made while a mirror was in trouble");
    daemon.ok(&["wait", "good", "--timeout", "60"]);
    assert_same(&www, &base(sshd, "good"));
    assert_eq!(daemon.mirror("good")["state"], "synced");
}

/// `wait` on a mirror that a person has to see to fails at once, with the reason.
#[track_caller]
pub fn waiting_is_vain(daemon: &Daemon, name: &str, words: &str) {
    let waited = daemon.run(&["wait", name, "--timeout", "60"]);
    let said = String::from_utf8(waited.stderr).unwrap();
    assert_eq!(waited.status.code(), Some(1), "{said}");
    assert!(
        said.starts_with(&format!("proxyfs: mirror {name} is ")),
        "{said}"
    );
    assert!(
        said.contains(words) && !said.contains("after 60 s"),
        "{said}"
    );
}

/// All is right again: every mirror gets everything.
#[track_caller]
pub fn everything_arrives(daemon: &Daemon, sshd: &Sshd, names: &[&str]) {
    daemon.wait();
    for name in names {
        // With nothing to be sent, it may not be connected by now.
        let mirror = daemon.wait_for_mirror(name, |m| m["state"] == "synced");
        assert!(mirror["last_error"].is_null(), "{mirror:#}");
        assert_same(&daemon.source(), &base(sshd, name));
    }
}

pub fn resume(daemon: &Daemon, names: &[&str]) {
    for name in names {
        assert_eq!(daemon.ok(&["resume", name]), "");
    }
}

/// Changes the configuration of a server and starts it again.
fn reconfigure(sshd: &mut Sshd, from: &str, to: &str) {
    let file = sshd.file("sshd_config");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(&file, text.replace(from, to)).unwrap();
    sshd.restart();
}

/// A file system of its own and a bounded size; gone when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(path: PathBuf, size: &str) -> Tmpfs {
        let size = std::ffi::CString::new(size).unwrap();
        mount(
            "proxyfs-test",
            &path,
            "tmpfs",
            MountFlags::empty(),
            size.as_c_str(),
        )
        .unwrap();
        Tmpfs(path)
    }

    fn resize(&self, size: &str) {
        mount_remount(&self.0, MountFlags::empty(), size).unwrap();
    }

    fn read_only(&self, flag: bool) {
        let flags = match flag {
            true => MountFlags::RDONLY,
            false => MountFlags::empty(),
        };
        // The server may be about to write.
        wait_until("the remount", || mount_remount(&self.0, flags, "").is_ok());
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}
