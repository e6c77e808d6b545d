//! A real mail server on a loopback port of its own (Debian's python3-aiosmtpd), with TLS and login, and the
//! mails that it got.
#![allow(clippy::unwrap_used)]

use super::daemon::PATIENCE;
use super::relay::Port;
use super::sshd::die_with_us;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What the server wants before it takes a mail.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wants {
    Nothing,
    StartTlsAndLogin,
    TlsAndLogin,
}

/// The name and the password that it knows.
pub const LOGIN: (&str, &str) = ("watchman", "sesame+öffne=dich");

/// A mail server that is to be started, runs, or was stopped.
pub struct Smtpd {
    dir: tempfile::TempDir,
    port: Port,
    wants: Wants,
    child: Option<Child>,
}

impl Smtpd {
    /// One that does not run yet: its port refuses connections.
    pub fn new(wants: Wants) -> Smtpd {
        let dir = tempfile::tempdir().unwrap();
        let smtpd = Smtpd {
            dir,
            port: Port::reserve(),
            wants,
            child: None,
        };
        fs::write(smtpd.file("password"), format!("{}\n", LOGIN.1)).unwrap();
        if wants != Wants::Nothing {
            let made = Command::new("openssl")
                .args(
                    "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
                        .split(' '),
                )
                .args([
                    "-subj",
                    "/CN=mail.test",
                    "-addext",
                    "subjectAltName=IP:127.0.0.1",
                ])
                .arg("-keyout")
                .arg(smtpd.file("key.pem"))
                .arg("-out")
                .arg(smtpd.file("cert.pem"))
                .output()
                .expect("openssl is missing");
            assert!(made.status.success(), "{made:?}");
        }
        smtpd
    }

    /// A running one.
    pub fn start(wants: Wants) -> Smtpd {
        let mut smtpd = Smtpd::new(wants);
        smtpd.run();
        smtpd
    }

    /// Starts it, and waits until it takes mails.
    pub fn run(&mut self) {
        let _ = fs::remove_file(self.file("ready"));
        // Debian's own Python, which has Debian's packages.
        let mut command = Command::new("/usr/bin/python3");
        command
            .arg(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/support/smtpd.py"
            ))
            .arg(self.dir.path())
            .arg(self.port.number().to_string())
            .stdin(Stdio::null())
            .stderr(fs::File::create(self.file("stderr")).unwrap());
        match self.wants {
            Wants::Nothing => command.arg("none"),
            Wants::StartTlsAndLogin => command.arg("starttls"),
            Wants::TlsAndLogin => command.arg("tls"),
        };
        if self.wants != Wants::Nothing {
            command.arg(self.file("cert.pem")).arg(self.file("key.pem"));
            command.env("LOGIN", format!("{}:{}", LOGIN.0, LOGIN.1));
        }
        die_with_us(&mut command);
        let mut child = command.spawn().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while !self.file("ready").exists() {
            let said = || fs::read_to_string(self.file("stderr")).unwrap_or_default();
            assert!(child.try_wait().unwrap().is_none(), "{}", said());
            assert!(Instant::now() < deadline, "it does not start: {}", said());
            std::thread::sleep(Duration::from_millis(10));
        }
        self.child = Some(child);
    }

    /// The section `[mail]` that uses it, with more lines.
    pub fn ini(&self, lines: &str) -> String {
        let port = self.port.number();
        let mut ini = format!(
            "\n[mail]\nto = admin@mail.test, Night Shift <night@mail.test>\n\
             from = proxyfs@web1.test\nsmtp = 127.0.0.1:{port}\n{lines}\n"
        );
        match self.wants {
            Wants::Nothing => ini += "tls = none\n",
            Wants::StartTlsAndLogin => {}
            Wants::TlsAndLogin => ini += "tls = tls\n",
        }
        if self.wants != Wants::Nothing {
            let (ca, password) = (self.file("cert.pem"), self.file("password"));
            ini += &format!(
                "ca_file = {}\nuser = {}\npassword_file = {}\n",
                ca.display(),
                LOGIN.0,
                password.display()
            );
        }
        ini
    }

    /// A file of its own: `password`, `cert.pem`, `refuse`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The mails that it got so far, in order.
    pub fn mails(&self) -> Vec<Value> {
        let all = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|e| e.unwrap().path());
        let mut all: Vec<_> = all
            .filter(|p| p.extension().is_some_and(|e| e == "json"))
            .collect();
        all.sort();
        let read = |p| serde_json::from_slice(&fs::read(p).unwrap()).unwrap();
        all.into_iter().map(read).collect()
    }

    /// Waits for mail number `n` (from 1 on); gives its subject and its text, white space squeezed.
    #[track_caller]
    pub fn wait_for(&self, n: usize) -> (String, String) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(mail) = self.mails().get(n - 1) {
                let body = mail["body"].as_str().unwrap();
                let squeezed = body.split_whitespace().collect::<Vec<_>>().join(" ");
                return (mail["subject"].as_str().unwrap().to_string(), squeezed);
            }
            assert!(
                Instant::now() < deadline,
                "mail {n} does not come: {:#?}",
                self.mails()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Smtpd {
    fn drop(&mut self) {
        self.stop();
    }
}
