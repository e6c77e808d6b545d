//! Servers of connections that were given up and that carry out, later, what they were sent before: nothing of it is to
//! be seen on the mirror (P2). The same is played through at every request in `cuts.rs`.
#![allow(clippy::unwrap_used)]

use super::support::daemon::Daemon;
use super::support::mounts::wait_until;
use super::support::relay::Relay;
use super::support::sshd::Sshd;
use super::support::tree::assert_same;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const MIB: usize = 1 << 20;

/// Writes down its number and what it does, and goes on though nobody reads its answers any more.
const STUBBORN: &str = "dir=$(dirname \"$0\")\n\
    sh -c 'echo $$ >> '$dir'/pids; exec /usr/lib/openssh/sftp-server -e -l INFO 2>> '$dir'/done' \
    | { cat; cat > /dev/null; }";

/// Servers that are stopped. They go on at the end of the test however it ends.
struct Stopped(Vec<String>);

impl Stopped {
    fn all_of(sshd: &Sshd) -> Stopped {
        let pids = fs::read_to_string(sshd.file("pids")).unwrap();
        let stopped = Stopped(pids.lines().map(str::to_string).collect());
        stopped.signal("STOP");
        stopped
    }

    fn signal(&self, signal: &str) {
        let mut kill = Command::new("kill");
        let _ = kill
            .args(["-s", signal])
            .args(&self.0)
            .stderr(Stdio::null())
            .status();
    }

    /// Lets them do what they were told, to the end.
    fn go_on(self) {
        self.signal("CONT");
        let alive = |pid: &String| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.contains("(sftp-server)") && !stat.contains(") Z")
        };
        wait_until("the old servers to end", || !self.0.iter().any(alive));
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.signal("CONT");
    }
}

/// A mirror that has `name`, on a server that does not end with its connection.
fn with(name: &str, bytes: &[u8]) -> (Sshd, Relay, Daemon) {
    let sshd = Sshd::builder().sftp_script(STUBBORN).start();
    let relay = Relay::start(sshd.port(), Duration::ZERO);
    let mut daemon = Daemon::new();
    daemon.add_mirror_at("m", &sshd, relay.port(), "io_timeout = 2s");
    daemon.start();
    fs::write(daemon.source().join(name), bytes).unwrap();
    daemon.wait();
    (sshd, relay, daemon)
}

/// How often the servers were told to remove that file.
fn removals(sshd: &Sshd, name: &str) -> usize {
    let done = fs::read_to_string(sshd.file("done")).unwrap();
    let end = format!("/{name}\"");
    let removals = done.lines().filter(|line| line.contains("remove name"));
    removals.filter(|line| line.ends_with(&end)).count()
}

#[test]
fn what_an_old_server_removes_late_stays() {
    let (sshd, relay, daemon) = with("page", b"old");
    let page = daemon.source().join("page");
    let stopped = Stopped::all_of(&sshd);
    let before = relay.connections();
    fs::remove_file(&page).unwrap();
    // It is not answered, so the connection is given up, and the next one does it.
    wait_until("a new connection", || relay.connections() > before);
    daemon.wait();
    assert_eq!(removals(&sshd, "page"), 1);
    fs::write(&page, "new").unwrap();
    daemon.wait();
    stopped.go_on();
    assert_eq!(removals(&sshd, "page"), 2, "it was to come late");
    assert_same(&daemon.source(), &sshd.base());
    assert_eq!(fs::read(sshd.base().join("page")).unwrap(), b"new");
}

/// Writes a third of the film anew.
fn write_into(film: &Path, byte: u8) {
    let file = fs::OpenOptions::new().write(true).open(film).unwrap();
    file.write_all_at(&vec![byte; 3 * MIB], 0).unwrap();
}

#[test]
fn what_an_old_server_writes_late_into_a_file_that_it_has_open_is_not_seen() {
    let (sshd, relay, daemon) = with("film", &vec![1; 9 * MIB]);
    let film = daemon.source().join("film");
    relay.set_rate(MIB as u64);
    let (before, connections) = (relay.bytes_up(), relay.connections());
    write_into(&film, 2);
    wait_until("bytes", || relay.bytes_up() > before + MIB as u64);
    let stopped = Stopped::all_of(&sshd);
    wait_until("a new connection", || relay.connections() > connections);
    relay.set_rate(0);
    daemon.wait();
    write_into(&film, 3);
    daemon.wait();
    stopped.go_on();
    assert_same(&daemon.source(), &sshd.base());
}

#[test]
fn a_way_in_that_somebody_removes_is_missed_and_nothing_is_taken_for_done() {
    let (sshd, relay, daemon) = with("page", b"old");
    let private = sshd.base().join(".proxyfs");
    let ways = || {
        let names = fs::read_dir(&private)
            .unwrap()
            .map(|e| e.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.retain(|name| name.starts_with("way-"));
        names
    };
    let way = ways();
    assert_eq!(way.len(), 1);
    fs::remove_file(private.join(&way[0])).unwrap();
    // That there is no such file is success for a removal.
    fs::remove_file(daemon.source().join("page")).unwrap();
    daemon.wait();
    assert!(!sshd.base().join("page").exists());
    assert_same(&daemon.source(), &sshd.base());
    assert!(relay.connections() > 1);
    assert!(ways().len() == 1 && ways() != way);
}
