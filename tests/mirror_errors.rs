//! What goes wrong with a mirror: each trouble told in one clear line, in `status` and in the log; nobody else
//! disturbed by it; and over when it is put right.
#![allow(clippy::unwrap_used)]

use super::support::daemon::{Daemon, PATIENCE};
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

#[track_caller]
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
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
    let head = format!(
        "mirror {name}: {}\n",
        state.to_uppercase().replace('-', " ")
    );
    let part = text.split_once(&head).expect(&text).1;
    let part = part.split("\nmirror ").next().unwrap();
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

#[test]
fn a_host_key_that_is_not_to_be_trusted_stops_its_mirror_until_it_is() {
    let sshd = Sshd::start();
    let right = fs::read_to_string(sshd.known_hosts_path()).unwrap();
    let stranger = sshd.file("stranger");
    keygen(&stranger, "ed25519", "");
    let host = format!("[127.0.0.1]:{}", sshd.port());
    let files = [
        ("unknown", String::new()),
        ("changed", format!("{host} {}\n", public_of(&stranger))),
        ("revoked", format!("{right}@revoked {right}")),
    ];
    let mut daemon = Daemon::new();
    add(&mut daemon, "good", &sshd, &[]);
    let file = |name: &str| sshd.file(&format!("known_{name}"));
    for (name, text) in &files {
        fs::write(file(name), text).unwrap();
        let path = file(name).display().to_string();
        let changes = never_by_itself(&[("known_hosts", &path)]);
        add(&mut daemon, name, &sshd, &changes);
    }
    daemon.start();
    let at = |name: &str, line| format!("at {}:{line}", file(name).display());
    told(
        &daemon,
        "unknown",
        "stopped",
        "is unknown and shows the ssh-ed25519 key SHA256:",
    );
    // The line that makes it known.
    let line = format!("\"{host} {}\"", public_of(&sshd.file("host_ed25519")));
    told(&daemon, "unknown", "stopped", &line);
    told(&daemon, "changed", "stopped", &at("changed", 1));
    told(
        &daemon,
        "revoked",
        "stopped",
        &format!("which is revoked {}", at("revoked", 2)),
    );
    nobody_else_is_disturbed(&daemon, &sshd);
    waiting_is_vain(&daemon, "changed", "somebody may be in between");
    let names = ["unknown", "changed", "revoked"];
    for name in names {
        fs::write(file(name), &right).unwrap();
    }
    resume(&daemon, &names);
    everything_arrives(&daemon, &sshd, &["good", "unknown", "changed", "revoked"]);
    daemon.stop();
}

#[test]
fn a_key_that_does_not_open_stops_its_mirror_until_it_does() {
    let sshd = Sshd::start();
    let wrong = sshd.file("wrong_key");
    keygen(&wrong, "ed25519", "");
    let wrong = wrong.display().to_string();
    let missing = sshd.file("missing_key").display().to_string();
    let mut daemon = Daemon::new();
    add(&mut daemon, "good", &sshd, &[]);
    // This one is tried again by itself.
    add(&mut daemon, "wrong", &sshd, &[("key", &wrong)]);
    let changes = never_by_itself(&[("key", &missing)]);
    add(&mut daemon, "missing", &sshd, &changes);
    let open = sshd.file("open_key");
    fs::copy(sshd.key_path(), &open).unwrap();
    fs::set_permissions(&open, Permissions::from_mode(0o644)).unwrap();
    let open = open.display().to_string();
    let changes = never_by_itself(&[("key", &open)]);
    add(&mut daemon, "open", &sshd, &changes);
    daemon.start();
    let refused = format!("refuses the login of root with {wrong}: add the public key to");
    told(&daemon, "wrong", "stopped", &refused);
    told(
        &daemon,
        "missing",
        "stopped",
        "missing_key does not exist: make one",
    );
    told(&daemon, "open", "stopped", &format!("chmod 600 {open}"));
    nobody_else_is_disturbed(&daemon, &sshd);
    waiting_is_vain(&daemon, "missing", "does not exist");

    let mut allowed = fs::read_to_string(sshd.file("authorized_keys")).unwrap();
    writeln!(allowed, "{}", public_of(Path::new(&wrong))).unwrap();
    fs::write(sshd.file("authorized_keys"), allowed).unwrap();
    fs::copy(sshd.key_path(), &missing).unwrap();
    fs::set_permissions(&open, Permissions::from_mode(0o600)).unwrap();
    resume(&daemon, &["missing", "open"]);
    daemon.wait_for_mirror("wrong", |m| m["state"] == "synced");
    everything_arrives(&daemon, &sshd, &["good", "wrong", "missing", "open"]);
    daemon.stop();
}

#[test]
fn a_host_that_cannot_be_reached_is_tried_until_it_can() {
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), Duration::ZERO);
    relay.refuse(true);
    let known = known_anywhere(&sshd);
    let mut daemon = Daemon::new();
    add(&mut daemon, "good", &sshd, &[]);
    let port = relay.port().to_string();
    let changes = [("port", port.as_str()), ("known_hosts", &known)];
    add(&mut daemon, "refused", &sshd, &changes);
    add(
        &mut daemon,
        "nowhere",
        &sshd,
        &[("host", "web2.invalid"), ("known_hosts", &known)],
    );
    daemon.start();
    told(
        &daemon,
        "refused",
        "retrying",
        "refuses the connection: check that sshd runs there",
    );
    told(
        &daemon,
        "nowhere",
        "retrying",
        "the name cannot be resolved (",
    );
    nobody_else_is_disturbed(&daemon, &sshd);
    let waited = daemon.run(&["wait", "refused", "--timeout", "0"]);
    assert_eq!(waited.status.code(), Some(1));

    relay.refuse(false);
    daemon.wait_for_mirror("refused", |m| m["state"] == "synced");
    let log = daemon.log();
    assert!(
        log.contains("mirror refused: connected to 127.0.0.1, recovered after "),
        "{log}"
    );
    *daemon.ini_mut() = daemon.ini_mut().replace("web2.invalid", "127.0.0.1");
    daemon.write_ini();
    assert_eq!(daemon.ok(&["reload"]), "mirror nowhere changed\n");
    everything_arrives(&daemon, &sshd, &["good", "refused", "nowhere"]);
    daemon.stop();
}

#[test]
fn a_directory_that_is_not_as_it_must_be_stops_its_mirror_until_it_is() {
    let sshd = Sshd::builder().ordinary_user().start();
    let mut daemon = Daemon::new();
    let names = ["missing", "file", "foreign"];
    for name in ["good", "missing", "file", "foreign"] {
        let changes: &[_] = if name == "good" { &[] } else { &NEVER };
        add(&mut daemon, name, &sshd, changes);
    }
    let [missing, file, foreign] = names.map(|n| base(&sshd, n));
    fs::remove_dir(&missing).unwrap();
    fs::remove_dir(&file).unwrap();
    fs::write(&file, "no directory").unwrap();
    chown(&foreign, Some(0), Some(0)).unwrap();
    daemon.start();
    let at = |path: &Path, words: &str| format!("{} {words}", path.display());
    told(
        &daemon,
        "missing",
        "stopped",
        &at(&missing, "does not exist: create it there"),
    );
    told(
        &daemon,
        "file",
        "stopped",
        &at(&file, "is not a directory: correct"),
    );
    let words = at(
        &foreign,
        "is not writable for the login user (permission denied): chown it",
    );
    told(&daemon, "foreign", "stopped", &words);
    nobody_else_is_disturbed(&daemon, &sshd);
    assert!(!missing.exists(), "a missing directory is never made");
    assert_eq!(fs::read_to_string(&file).unwrap(), "no directory");
    assert_eq!(fs::read_dir(&foreign).unwrap().count(), 0);

    fs::remove_file(&file).unwrap();
    fs::remove_dir(&foreign).unwrap();
    for name in names {
        base(&sshd, name);
    }
    resume(&daemon, &names);
    everything_arrives(&daemon, &sshd, &["good", "missing", "file", "foreign"]);
    daemon.stop();
}

/// Changes the configuration of a server and starts it again.
fn reconfigure(sshd: &mut Sshd, from: &str, to: &str) {
    let file = sshd.file("sshd_config");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(&file, text.replace(from, to)).unwrap();
    sshd.restart();
}

#[test]
fn a_server_without_sftp_stops_its_mirror_until_it_has_it() {
    let good = Sshd::start();
    let mut bare = Sshd::builder()
        .no_sftp()
        .line("Subsystem none /bin/false")
        .start();
    let mut garbage = Sshd::builder()
        .sftp_script("echo Welcome to web2; sleep 1")
        .start();
    let mut daemon = Daemon::new();
    add(&mut daemon, "good", &good, &[]);
    add(&mut daemon, "bare", &bare, &NEVER);
    add(&mut daemon, "garbage", &garbage, &[]);
    daemon.start();
    told(&daemon, "bare", "stopped", "offers root no SFTP (");
    told(
        &daemon,
        "garbage",
        "stopped",
        "offers root no SFTP (it says \"Welcome to web2\")",
    );
    nobody_else_is_disturbed(&daemon, &good);
    reconfigure(
        &mut bare,
        "Subsystem none /bin/false",
        "Subsystem sftp internal-sftp",
    );
    let script = format!("Subsystem sftp {}", garbage.file("server").display());
    reconfigure(&mut garbage, &script, "Subsystem sftp internal-sftp");
    resume(&daemon, &["bare"]);
    daemon.wait_for_mirror("garbage", |m| m["state"] == "synced");
    daemon.wait();
    assert_same(&daemon.source(), &base(&good, "good"));
    assert_same(&daemon.source(), &base(&bare, "bare"));
    assert_same(&daemon.source(), &base(&garbage, "garbage"));
    daemon.stop();
}

#[test]
fn a_server_that_cannot_do_what_is_needed_is_told_by_what_it_lacks() {
    let mut sshd = Sshd::start();
    let whole = "Subsystem sftp internal-sftp";
    let mut daemon = Daemon::new();
    add(&mut daemon, "m", &sshd, &NEVER);
    for (denied, lacks) in [
        ("posix-rename", "posix-rename@openssh.com"),
        ("hardlink", "hardlink@openssh.com"),
    ] {
        let part = format!("{whole} -P {denied}");
        reconfigure(&mut sshd, whole, &part);
        daemon.start();
        let words = format!("the server does not offer {lacks}: use OpenSSH's sftp-server");
        told(&daemon, "m", "stopped", &words);
        fs::write(daemon.source().join(denied), "waits").unwrap();
        reconfigure(&mut sshd, &part, whole);
        resume(&daemon, &["m"]);
        everything_arrives(&daemon, &sshd, &["m"]);
        daemon.stop();
    }
}

#[test]
fn a_port_that_is_no_ssh_server_is_told_from_a_broken_one() {
    let sshd = Sshd::start();
    let port = Port::reserve();
    let listener = port.listen();
    let web_server = std::thread::spawn(move || {
        use std::io::Write;
        let (mut client, _) = listener.accept().unwrap();
        client
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .unwrap();
    });
    let mut daemon = Daemon::new();
    add(&mut daemon, "good", &sshd, &[]);
    let number = port.number().to_string();
    add(
        &mut daemon,
        "web",
        &sshd,
        &never_by_itself(&[("port", &number)]),
    );
    daemon.start();
    let words = "is no SSH server (it says \"HTTP/1.1 400 Bad Request\"): correct the setting port";
    told(&daemon, "web", "stopped", words);
    web_server.join().unwrap();
    nobody_else_is_disturbed(&daemon, &sshd);
    let ini = daemon.ini_mut();
    *ini = ini.replace(
        &format!("port = {number}"),
        &format!("port = {}", sshd.port()),
    );
    daemon.write_ini();
    daemon.ok(&["reload"]);
    everything_arrives(&daemon, &sshd, &["good", "web"]);
    daemon.stop();
}

#[test]
fn a_server_that_goes_away_is_said_to_have_closed_the_connection() {
    let mut sshd = Sshd::start();
    let mut daemon = Daemon::new();
    add(&mut daemon, "m", &sshd, &[]);
    daemon.start();
    fs::write(daemon.source().join("first"), "all is well").unwrap();
    everything_arrives(&daemon, &sshd, &["m"]);
    sshd.stop();
    daemon.wait_for_mirror("m", |m| m["state"] == "retrying");
    fs::write(daemon.source().join("file"), "meanwhile").unwrap();
    told(&daemon, "m", "retrying", "refuses the connection");
    let log = daemon.log();
    assert!(
        log.contains("mirror m: connection lost: the server closed the connection"),
        "{log}"
    );
    sshd.restart();
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.stop();
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
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn a_mirror_whose_disk_is_full_loses_nothing_and_shows_nothing_half() {
    let sshd = Sshd::start();
    let disk = Tmpfs::mount(base(&sshd, "full"), "size=1m,mode=0755");
    let mut daemon = Daemon::new();
    add(&mut daemon, "good", &sshd, &[]);
    // Tried again by itself.
    add(&mut daemon, "full", &sshd, &[]);
    daemon.start();
    let (www, full) = (daemon.source(), base(&sshd, "full"));
    fs::write(www.join("old"), vec![1; 400_000]).unwrap();
    daemon.wait();
    fs::write(www.join("small"), "fits").unwrap();
    fs::write(www.join("old"), vec![2; 800_000]).unwrap();
    fs::write(www.join("big"), vec![3; 3_000_000]).unwrap();
    fs::rename(www.join("small"), www.join("after")).unwrap();
    told(&daemon, "full", "stopped", "content old");
    told(
        &daemon,
        "full",
        "stopped",
        "see that the mirror's disk is not full",
    );
    nobody_else_is_disturbed(&daemon, &sshd);
    waiting_is_vain(&daemon, "full", "not full");
    // As it was before the change that does not fit: whole.
    assert_eq!(fs::read(full.join("old")).unwrap(), vec![1; 400_000]);
    assert!(!full.join("big").exists() && !full.join("after").exists());
    assert_eq!(fs::read_to_string(full.join("small")).unwrap(), "fits");

    disk.resize("size=16m");
    daemon.wait_for_mirror("full", |m| m["state"] == "synced");
    everything_arrives(&daemon, &sshd, &["good", "full"]);
    assert_eq!(
        fs::read_dir(full.join(".proxyfs/stage")).unwrap().count(),
        0
    );
    daemon.stop();
}

#[test]
fn a_disk_that_is_full_from_the_beginning_is_not_called_one_without_rights() {
    let sshd = Sshd::start();
    // One for its root, and none for anything else.
    let disk = Tmpfs::mount(base(&sshd, "full"), "nr_inodes=1,mode=0755");
    let mut daemon = Daemon::new();
    add(&mut daemon, "full", &sshd, &NEVER);
    daemon.start();
    told(&daemon, "full", "stopped", "see that its disk is not full");
    fs::write(daemon.source().join("file"), "later").unwrap();
    disk.resize("nr_inodes=1000");
    resume(&daemon, &["full"]);
    everything_arrives(&daemon, &sshd, &["full"]);
    daemon.stop();
}

#[test]
fn a_line_that_falls_silent_is_noticed_and_what_it_held_up_arrives() {
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), Duration::ZERO);
    let known = known_anywhere(&sshd);
    let port = relay.port().to_string();
    let mut daemon = Daemon::new();
    add(&mut daemon, "good", &sshd, &[]);
    let changes = [
        ("port", port.as_str()),
        ("known_hosts", &known),
        ("io_timeout", "1s"),
        ("connect_timeout", "1s"),
    ];
    add(&mut daemon, "m", &sshd, &changes);
    daemon.start();
    fs::write(daemon.source().join("first"), "all is well").unwrap();
    everything_arrives(&daemon, &sshd, &["m"]);
    relay.hold();
    nobody_else_is_disturbed(&daemon, &sshd);
    daemon.wait_for_mirror("m", |m| m["state"] == "retrying");
    let log = daemon.log();
    assert!(
        log.contains("mirror m: the server did not answer for 1 s"),
        "{log}"
    );
    told(&daemon, "m", "retrying", "did not answer within 1 s while");
    relay.resume();
    everything_arrives(&daemon, &sshd, &["good", "m"]);
    daemon.stop();
}

#[test]
fn a_daemon_ends_in_time_though_a_line_is_silent() {
    let sshd = Sshd::start();
    let known = known_anywhere(&sshd);
    let mut daemon = Daemon::new();
    // One falls silent in the middle of its work, one is so from the beginning.
    let relays = ["m", "late"].map(|name| {
        let relay = Relay::start(sshd.port(), Duration::ZERO);
        let port = relay.port().to_string();
        let changes = [
            ("port", port.as_str()),
            ("known_hosts", &known),
            ("io_timeout", "10m"),
            ("connect_timeout", "10m"),
        ];
        add(&mut daemon, name, &sshd, &changes);
        relay
    });
    relays[1].hold();
    daemon.start();
    daemon.wait_for_mirror("m", |m| m["state"] == "synced");
    wait_until("the other one connects", || relays[1].connections() > 0);
    relays[0].hold();
    for n in 0..100 {
        fs::write(daemon.source().join(n.to_string()), vec![0; 10_000]).unwrap();
    }
    let asked = Instant::now();
    daemon.stop();
    // Ten seconds are promised; the rest is for a busy machine.
    assert!(
        asked.elapsed() < Duration::from_secs(30),
        "{:?}",
        asked.elapsed()
    );
    relays.iter().for_each(Relay::resume);
    daemon.start();
    everything_arrives(&daemon, &sshd, &["m", "late"]);
    daemon.stop();
}

#[test]
fn an_ordinary_user_gets_into_what_modes_of_the_source_keep_it_out_of() {
    let sshd = Sshd::builder().ordinary_user().start();
    let mut daemon = Daemon::new();
    add(&mut daemon, "m", &sshd, &NEVER);
    daemon.start();
    let (www, mirror) = (daemon.source(), base(&sshd, "m"));
    let set = |path: &str, mode| {
        fs::set_permissions(www.join(path), Permissions::from_mode(mode)).unwrap()
    };
    fs::create_dir_all(www.join("shut/inner")).unwrap();
    fs::create_dir(www.join("dark")).unwrap();
    for file in ["shut/inner/gone", "linked", "dark/file"] {
        fs::write(www.join(file), "first").unwrap();
    }
    fs::hard_link(www.join("linked"), www.join("shut/twin")).unwrap();
    set("linked", 0o444);
    set("dark/file", 0o000);
    for (dir, mode) in [("shut/inner", 0o555), ("shut", 0o555), ("dark", 0o000)] {
        set(dir, mode);
    }
    everything_arrives(&daemon, &sshd, &["m"]);
    // root may do here what the user may not do there.
    fs::write(www.join("shut/inner/new"), "into a directory that is shut").unwrap();
    fs::create_dir(www.join("shut/inner/below")).unwrap();
    symlink("new", www.join("shut/inner/link")).unwrap();
    fs::remove_file(www.join("shut/inner/gone")).unwrap();
    fs::write(
        www.join("linked"),
        "a read-only file with two names, written again",
    )
    .unwrap();
    fs::write(www.join("dark/file"), "second").unwrap();
    fs::write(www.join("dark/other"), "second").unwrap();
    everything_arrives(&daemon, &sshd, &["m"]);
    let mode = |path: &str| fs::metadata(mirror.join(path)).unwrap().mode() & 0o7777;
    assert_eq!(
        [
            "shut",
            "shut/inner",
            "dark",
            "linked",
            "shut/twin",
            "dark/file"
        ]
        .map(mode),
        [0o555, 0o555, 0o000, 0o444, 0o444, 0o000]
    );
    // A directory that moves, and one that goes.
    fs::rename(www.join("shut/inner"), www.join("dark/inner")).unwrap();
    fs::remove_dir_all(www.join("shut")).unwrap();
    fs::write(www.join("linked"), "one name is left").unwrap();
    everything_arrives(&daemon, &sshd, &["m"]);
    let owner = fs::metadata(mirror.join("dark/inner/new")).unwrap().uid();
    assert_eq!(owner, ids_of(ORDINARY_USER).0);
    assert_eq!(differences(&www, &mirror, false), [""; 0]);
    daemon.stop();
}
