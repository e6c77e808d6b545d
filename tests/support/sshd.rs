//! A private OpenSSH server on a loopback port of its own: own keys, own configuration, own mirror
//! directory, all in one temporary directory; gone when dropped, and with the test program however
//! that ends.
//!
//! Needs its neighbour `relay` for the port (benchmarks include both by path).

#![allow(clippy::unwrap_used)]

use super::relay::Port;
use proxyfs::sftp::session::{Login, Target};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The ordinary user that mirrors are run as; made when it is missing, and left.
pub const ORDINARY_USER: &str = "proxyfs-test";

pub struct SshdBuilder {
    user: &'static str,
    lines: Vec<String>,
    host_keys: Vec<&'static str>,
    known: Option<Vec<&'static str>>,
    wrong_host_key: bool,
    subsystem: Option<String>,
}

impl SshdBuilder {
    /// Log in as an ordinary user rather than as root.
    pub fn ordinary_user(mut self) -> Self {
        self.user = ORDINARY_USER;
        self
    }

    /// One more line of sshd_config. It wins over ours.
    pub fn line(mut self, line: &str) -> Self {
        self.lines.push(line.to_string());
        self
    }

    /// Types of host keys, as `ssh-keygen -t` has them, instead of one of ed25519.
    pub fn host_keys(mut self, kinds: &[&'static str]) -> Self {
        self.host_keys = kinds.to_vec();
        self
    }

    /// Only the host keys of these types are in the known_hosts file.
    pub fn known(mut self, kinds: &[&'static str]) -> Self {
        self.known = Some(kinds.to_vec());
        self
    }

    /// The known_hosts file has another key for the host.
    pub fn wrong_host_key(mut self) -> Self {
        self.wrong_host_key = true;
        self
    }

    pub fn no_sftp(mut self) -> Self {
        self.subsystem = None;
        self
    }

    /// A shell script that is run as the SFTP server.
    pub fn sftp_script(mut self, script: &str) -> Self {
        self.subsystem = Some(script.to_string());
        self
    }

    pub fn start(self) -> Sshd {
        Sshd::build(self)
    }
}

pub struct Sshd {
    dir: tempfile::TempDir,
    port: Port,
    user: &'static str,
    child: Option<Child>,
}

impl Sshd {
    /// Root's, with all in order.
    pub fn start() -> Sshd {
        Sshd::builder().start()
    }

    pub fn builder() -> SshdBuilder {
        SshdBuilder {
            user: "root",
            lines: Vec::new(),
            host_keys: vec!["ed25519"],
            known: None,
            wrong_host_key: false,
            subsystem: Some("internal-sftp".to_string()),
        }
    }

    fn build(builder: SshdBuilder) -> Sshd {
        // sshd's privilege separation directory, which its init script makes.
        fs::create_dir_all("/run/sshd").unwrap();
        if builder.user == ORDINARY_USER {
            make_ordinary_user();
        }
        let dir = tempfile::Builder::new()
            .prefix("proxyfs-sshd-")
            .tempdir()
            .unwrap();
        // The user reads authorized_keys and reaches the mirror directory through it.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let sshd = Sshd {
            dir,
            port: Port::reserve(),
            user: builder.user,
            child: None,
        };
        fs::create_dir(sshd.base()).unwrap();
        if builder.user != "root" {
            let (uid, gid) = ids_of(builder.user);
            chown(sshd.base(), Some(uid), Some(gid)).unwrap();
        }
        keygen(&sshd.key_path(), "ed25519", "");
        fs::copy(sshd.file("id_ed25519.pub"), sshd.file("authorized_keys")).unwrap();
        let mut known = String::new();
        for kind in &builder.host_keys {
            let path = sshd.file(&format!("host_{kind}"));
            keygen(&path, kind, "");
            if builder.known.as_ref().is_none_or(|k| k.contains(kind)) {
                let public = match builder.wrong_host_key {
                    true => {
                        let other = sshd.file(&format!("other_{kind}"));
                        keygen(&other, kind, "");
                        public_of(&other)
                    }
                    false => public_of(&path),
                };
                // With the port, and without it for relays on ports of their own.
                known.push_str(&format!("[127.0.0.1]:{},127.0.0.1 {public}\n", sshd.port()));
            }
        }
        fs::write(sshd.known_hosts_path(), known).unwrap();
        fs::write(sshd.file("sshd_config"), sshd.config(&builder)).unwrap();
        let mut sshd = sshd;
        sshd.restart();
        sshd
    }

    fn config(&self, builder: &SshdBuilder) -> String {
        let mut text = builder.lines.join("\n");
        let dir = self.dir.path().display();
        text.push_str(&format!(
            "\nPort {}\nListenAddress 127.0.0.1\nPidFile {dir}/sshd.pid\n\
             AuthorizedKeysFile {dir}/authorized_keys\nStrictModes no\nUsePAM no\nUseDNS no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n\
             PrintMotd no\nMaxStartups 100\nMaxSessions 10\nLogLevel VERBOSE\n",
            self.port()
        ));
        // Tests come by too often, and some break off on purpose.
        if knows_penalties() {
            text.push_str("PerSourcePenalties no\n");
        }
        for kind in &builder.host_keys {
            text.push_str(&format!("HostKey {dir}/host_{kind}\n"));
        }
        match builder.subsystem.as_deref() {
            None => {}
            Some("internal-sftp") => text.push_str("Subsystem sftp internal-sftp\n"),
            Some(script) => {
                let path = self.file("server");
                fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
                fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
                text.push_str(&format!("Subsystem sftp {}\n", path.display()));
            }
        }
        text
    }

    /// Starts it (again), on the same port. The server lives as long as the calling thread at most.
    pub fn restart(&mut self) {
        self.kill();
        let log = File::create(self.file("log")).unwrap();
        let mut command = Command::new("/usr/sbin/sshd");
        command
            .args(["-D", "-e", "-f"])
            .arg(self.file("sshd_config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        die_with_us(&mut command);
        self.child = Some(command.spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.log().contains("Server listening on") {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "sshd does not start: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the listener and all its sessions.
    pub fn stop(&mut self) {
        self.end("TERM");
    }

    /// The same as `stop`, with kill -9.
    pub fn kill(&mut self) {
        self.end("KILL");
    }

    fn end(&mut self, signal: &str) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let listener = child.id();
        // Stopped first, so that no session starts while they are being counted.
        send_signal("STOP", &[listener]);
        let mut sessions = descendants(listener);
        send_signal(signal, &sessions);
        send_signal("KILL", &[listener]);
        let _ = child.wait();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !sessions.is_empty() {
            sessions.retain(|pid| is_sshd(*pid));
            if Instant::now() > deadline {
                send_signal("KILL", &sessions);
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    pub fn user(&self) -> &'static str {
        self.user
    }

    /// The mirror directory: empty at first, the user's.
    pub fn base(&self) -> PathBuf {
        self.file("mirror")
    }

    /// The private key that the server lets in.
    pub fn key_path(&self) -> PathBuf {
        self.file("id_ed25519")
    }

    pub fn known_hosts_path(&self) -> PathBuf {
        self.file("known_hosts")
    }

    /// A path for a file beside the server's.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What sshd has logged since it was started.
    pub fn log(&self) -> String {
        fs::read_to_string(self.file("log")).unwrap_or_default()
    }

    /// Makes a key of this type and lets it in: its path.
    pub fn add_key(&self, kind: &str, passphrase: &str) -> PathBuf {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = self.file(&format!("id_{kind}_{number}"));
        keygen(&path, kind, passphrase);
        let mut keys = fs::read_to_string(self.file("authorized_keys")).unwrap();
        keys.push_str(&public_of(&path));
        keys.push('\n');
        fs::write(self.file("authorized_keys"), keys).unwrap();
        path
    }

    /// How to connect to it, with generous times.
    pub fn target(&self) -> Target {
        Target {
            host: "127.0.0.1".to_string(),
            port: self.port(),
            user: self.user.to_string(),
            login: Login::Keys {
                files: vec![self.key_path()],
                passphrase: None,
            },
            known_hosts: vec![self.known_hosts_path()],
            compression: false,
            connect_timeout: Duration::from_secs(60),
            io_timeout: Duration::from_secs(60),
        }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The child gets SIGKILL when the thread that starts it ends, however that comes.
pub fn die_with_us(command: &mut Command) {
    let parent = std::process::id();
    // SAFETY: between fork and exec only prctl, getppid and _exit are called, which are
    // async-signal-safe and touch no memory of ours.
    unsafe {
        command.pre_exec(move || {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if libc::getppid() as u32 != parent {
                libc::_exit(1);
            }
            Ok(())
        });
    }
}

/// Makes a key pair at `path` and `path`.pub.
pub fn keygen(path: &Path, kind: &str, passphrase: &str) {
    let made = Command::new("ssh-keygen")
        .args([
            "-q",
            "-t",
            kind,
            "-N",
            passphrase,
            "-C",
            "proxyfs-test",
            "-f",
        ])
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
}

/// Type and key of a public key file, without the comment.
pub fn public_of(private: &Path) -> String {
    let text = fs::read_to_string(private.with_extension("pub")).unwrap();
    let fields: Vec<&str> = text.split_whitespace().take(2).collect();
    fields.join(" ")
}

fn make_ordinary_user() {
    // Two programs may do so at a time; a directory can be locked without leaving a file.
    let lock = File::open(std::env::temp_dir()).unwrap();
    lock.lock().unwrap();
    let there = || {
        let found = Command::new("getent")
            .args(["passwd", ORDINARY_USER])
            .output();
        found.unwrap().status.success()
    };
    if !there() {
        // "*" is no password, but unlike "!" not a locked account, which sshd refuses.
        let made = Command::new("useradd")
            .args(["--system", "--no-create-home", "--home-dir", "/nonexistent"])
            .args([
                "--shell",
                "/bin/sh",
                "--password",
                "*",
                "--user-group",
                ORDINARY_USER,
            ])
            .output()
            .unwrap();
        assert!(there(), "{made:?}");
    }
}

/// Whether this sshd shuts out who fails too often (OpenSSH 9.8 and newer); an older one does not start with
/// a setting that it does not know.
fn knows_penalties() -> bool {
    static KNOWS: LazyLock<bool> = LazyLock::new(|| {
        let version = Command::new("ssh").arg("-V").output().unwrap().stderr;
        let version = String::from_utf8_lossy(&version).into_owned();
        let number = version.trim_start_matches("OpenSSH_");
        let mut parts = number.split(|c: char| !c.is_ascii_digit());
        let mut part = || parts.next().and_then(|p| p.parse::<u32>().ok());
        let version = (part().unwrap(), part().unwrap());
        version >= (9, 8)
    });
    *KNOWS
}

/// User and group id.
pub fn ids_of(user: &str) -> (u32, u32) {
    let found = Command::new("getent")
        .args(["passwd", user])
        .output()
        .unwrap();
    let line = String::from_utf8(found.stdout).unwrap();
    let fields: Vec<&str> = line.trim().split(':').collect();
    (fields[2].parse().unwrap(), fields[3].parse().unwrap())
}

fn send_signal(signal: &str, pids: &[u32]) {
    if !pids.is_empty() {
        let _ = Command::new("kill")
            .args(["-s", signal])
            .args(pids.iter().map(u32::to_string))
            .stderr(Stdio::null())
            .status();
    }
}

fn descendants(of: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut parents = vec![of];
    while let Some(parent) = parents.pop() {
        let path = format!("/proc/{parent}/task/{parent}/children");
        for child in fs::read_to_string(path)
            .unwrap_or_default()
            .split_whitespace()
        {
            if let Ok(child) = child.parse() {
                found.push(child);
                parents.push(child);
            }
        }
    }
    found
}

/// Whether the process is there still and not only a name that waits for its parent.
fn is_sshd(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z "))
}
