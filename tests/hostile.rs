//! Mirrors that mean harm, or that are broken: what they say may stop them, and nobody else.
#![allow(clippy::unwrap_used)]

use super::support::daemon::Daemon;
use super::support::sshd::Sshd;
use super::support::tree::assert_same;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

/// Stands before OpenSSH's sftp-server and changes its answers to READDIR.
const LIAR: &str = r#"
import struct, subprocess, sys, threading
mode = sys.argv[1]
server = subprocess.Popen(['/usr/lib/openssh/sftp-server'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
asked = set()
def packets(file):
    while True:
        head = file.read(4)
        if len(head) < 4: return
        yield file.read(struct.unpack('>I', head)[0])
def upwards():
    for p in packets(sys.stdin.buffer):
        if p[0] == 12: asked.add(p[1:5])
        server.stdin.write(struct.pack('>I', len(p)) + p)
        server.stdin.flush()
    server.stdin.close()
threading.Thread(target=upwards, daemon=True).start()
def text(b): return struct.pack('>I', len(b)) + b
def entry(n): return text(n) + text(b'?') + struct.pack('>II', 4, 0o100644)
odd = [b'..', b'.', b'', b'a/b', b'../../outside', b'/etc/passwd', b'nul\0name', b'x' * 5000, b'1-..',
       b'7-../../../../outside', b'exchange-..', b'exchange-0/../../outside', b'..\\outside', b'\xff\xfe']
for p in packets(server.stdout):
    length = None
    if p[1:5] in asked and p[0] in (101, 104):
        asked.discard(p[1:5])
        if mode == 'odd' and p[0] == 104:
            count = struct.unpack('>I', p[5:9])[0]
            p = p[:5] + struct.pack('>I', count + len(odd)) + p[9:] + b''.join(map(entry, odd))
        if mode == 'endless':
            p = b'\x68' + p[1:5] + struct.pack('>I', 50) + b''.join(entry(b'%d' % i + b'y' * 4000) for i in range(50))
        if mode == 'many':
            p = b'\x68' + p[1:5] + struct.pack('>I', 0xffffffff)
        if mode == 'huge':
            length = 0x7fffffff
    sys.stdout.buffer.write(struct.pack('>I', len(p) if length is None else length) + p)
    sys.stdout.buffer.flush()
"#;

fn liar(mode: &str) -> Sshd {
    // The program comes as an argument, since its standard input is the client.
    let program = LIAR.replace('\'', "'\\''");
    Sshd::builder()
        .sftp_script(&format!("exec /usr/bin/python3 -c '{program}' {mode}"))
        .start()
}

/// The daemon's memory, in KiB.
fn memory(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Something beside the mirror's directory that nobody may touch.
fn outside(sshd: &Sshd) -> std::path::PathBuf {
    let outside = sshd.base().parent().unwrap().join("outside");
    fs::write(&outside, "not yours").unwrap();
    outside
}

fn untouched(outside: &Path) {
    assert_eq!(fs::read_to_string(outside).unwrap(), "not yours");
}

#[test]
fn odd_names_in_listings_lead_nowhere() {
    let sshd = liar("odd");
    let outside = outside(&sshd);
    let mut daemon = Daemon::new();
    daemon.add_mirror("m", &sshd);
    daemon.start();
    let www = daemon.source();
    fs::create_dir_all(www.join("dir/sub")).unwrap();
    fs::write(www.join("dir/sub/file"), "one").unwrap();
    daemon.wait();
    // A repair reads listings; so does each start of a session.
    fs::remove_dir_all(sshd.base().join("dir")).unwrap();
    fs::write(www.join("dir/sub/other"), "two").unwrap();
    fs::rename(www.join("dir/sub"), www.join("moved")).unwrap();
    daemon.wait();
    assert_same(&www, &sshd.base());
    daemon.stop();
    daemon.start();
    fs::write(www.join("later"), "three").unwrap();
    daemon.wait();
    assert_same(&www, &sshd.base());
    untouched(&outside);
    assert_eq!(
        fs::read_dir(&www).unwrap().count(),
        3,
        "nothing came back from there"
    );
    daemon.stop();
}

#[test]
fn answers_without_end_or_measure_stop_their_mirror_and_no_other() {
    let good = Sshd::start();
    for (mode, told) in [
        ("endless", "its list of what is in .proxyfs has no end"),
        ("many", "does not speak SFTP properly"),
        ("huge", "does not speak SFTP properly"),
    ] {
        let bad = liar(mode);
        // It has been a mirror before, so that there is something to list.
        fs::create_dir_all(bad.base().join(".proxyfs/stage")).unwrap();
        let mut daemon = Daemon::new();
        daemon.add_mirror("bad", &bad);
        daemon.add_mirror("good", &good);
        let there = format!("path = {}\n", good.base().display());
        let own = good.base().join(mode);
        fs::create_dir(&own).unwrap();
        *daemon.ini_mut() = daemon
            .ini_mut()
            .replace(&there, &format!("path = {}\n", own.display()));
        daemon.write_ini();
        daemon.start();
        let state = daemon.wait_for_mirror("bad", |m| m["last_error"].is_string());
        let error = state["last_error"].as_str().unwrap();
        assert!(error.contains(told), "{mode}: {error}");
        fs::write(daemon.source().join("file"), mode).unwrap();
        daemon.ok(&["wait", "good", "--timeout", "60"]);
        assert_eq!(fs::read_to_string(own.join("file")).unwrap(), mode);
        assert!(
            memory(&daemon) < 400 << 10,
            "{mode}: {} KiB",
            memory(&daemon)
        );
        daemon.stop();
    }
}

#[test]
fn our_own_directory_is_never_a_way_to_somewhere_else() {
    for name in [".proxyfs", ".proxyfs/stage"] {
        let sshd = Sshd::start();
        let outside = sshd.base().parent().unwrap().join("outside");
        fs::create_dir(&outside).unwrap();
        if name.contains('/') {
            fs::create_dir(sshd.base().join(".proxyfs")).unwrap();
        }
        symlink(&outside, sshd.base().join(name)).unwrap();
        let mut daemon = Daemon::new();
        daemon.add_mirror("m", &sshd);
        daemon.start();
        fs::write(daemon.source().join("file"), "new").unwrap();
        let state = daemon.wait_for_mirror("m", |m| m["state"] == "stopped");
        assert!(state["last_error"].is_string(), "{state:#}");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{name}");
        // Put right, it goes on.
        fs::remove_file(sshd.base().join(name)).unwrap();
        daemon.ok(&["try-again", "m"]);
        daemon.wait();
        assert_same(&daemon.source(), &sshd.base());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{name}");
        daemon.stop();
    }
}
