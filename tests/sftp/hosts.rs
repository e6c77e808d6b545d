//! Who a server is, and who we are to it.

use super::{ask, refusal, session};
use crate::support::sshd::{Sshd, die_with_us, keygen, public_of};
use proxyfs::sftp::session::{
    Abort, ConnectError, KeyProblem, Login, Secret, Target, fingerprint, host_key,
};
use proxyfs::sftp::{Reply, Request};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn keys(file: &Path, passphrase: Option<&str>) -> Login {
    Login::Keys {
        files: vec![file.to_path_buf()],
        passphrase: passphrase.map(Secret::new),
    }
}

fn known_hosts(sshd: &Sshd, text: &str) -> Target {
    let path = sshd.file("other_known_hosts");
    fs::write(&path, text).unwrap();
    let mut target = sshd.target();
    target.known_hosts = vec![path];
    target
}

fn works(target: &Target) {
    let path = b".".to_vec();
    let reply = ask(&mut session(target), Request::Realpath { path });
    assert!(matches!(reply, Reply::Names(_)), "{reply:?}");
}

fn problem(e: ConnectError) -> KeyProblem {
    assert!(!e.is_connection());
    match e {
        ConnectError::Key { problem, .. } => problem,
        other => panic!("{other}"),
    }
}

fn shown_by_ssh_keygen(key: &Path) -> String {
    let shown = Command::new("ssh-keygen").arg("-lf").arg(key).output();
    let shown = String::from_utf8(shown.unwrap().stdout).unwrap();
    shown.split(' ').nth(1).unwrap().to_string()
}

#[test]
fn an_unknown_host_is_refused_with_its_fingerprint_and_the_line_that_makes_it_known() {
    let sshd = Sshd::start();
    let target = known_hosts(&sshd, "# nothing\n");
    let e = refusal(&target);
    assert!(!e.is_connection());
    let real = shown_by_ssh_keygen(&sshd.file("host_ed25519.pub"));
    assert!(e.to_string().contains(&real), "{e}");
    let ConnectError::UnknownHostKey { line, key, .. } = &e else {
        panic!("{e}");
    };
    assert_eq!(fingerprint(key), real);
    assert!(e.to_string().contains(line));
    works(&known_hosts(&sshd, line));

    let mut target = target;
    target.known_hosts = vec![sshd.file("missing")];
    assert!(matches!(
        refusal(&target),
        ConnectError::UnknownHostKey { .. }
    ));
}

#[test]
fn a_host_key_can_be_fetched_without_a_login() {
    let sshd = Sshd::start();
    let mut target = sshd.target();
    target.known_hosts.clear();
    target.login = keys(Path::new("/nonexistent"), None);
    let key = host_key(&target, &Abort::new()).unwrap();
    assert_eq!(key.kind(), "ssh-ed25519");
    let real = shown_by_ssh_keygen(&sshd.file("host_ed25519.pub"));
    assert_eq!(key.fingerprint(), real);
    works(&known_hosts(&sshd, &key.line(&target.host, target.port)));
}

#[test]
fn a_changed_host_key_is_refused() {
    let sshd = Sshd::builder().wrong_host_key().start();
    let e = refusal(&sshd.target());
    assert!(matches!(e, ConnectError::ChangedHostKey { .. }), "{e}");
    assert!(!e.is_connection());
    assert!(e.to_string().contains("known_hosts:1"), "{e}");
    assert!(!sshd.log().contains("Accepted publickey"));
}

#[test]
fn a_revoked_host_key_is_refused_although_it_is_known() {
    let sshd = Sshd::start();
    let key = public_of(&sshd.file("host_ed25519"));
    let text = format!("[127.0.0.1]:{} {key}\n@revoked * {key}\n", sshd.port());
    let e = refusal(&known_hosts(&sshd, &text));
    assert!(matches!(e, ConnectError::RevokedHostKey { .. }), "{e}");
    assert!(!e.is_connection());
}

#[test]
fn hashed_and_wildcard_lines_make_a_host_known_also_behind_a_bad_line() {
    let sshd = Sshd::start();
    let hashed = sshd.file("hashed");
    fs::copy(sshd.known_hosts_path(), &hashed).unwrap();
    let done = Command::new("ssh-keygen")
        .args(["-H", "-f"])
        .arg(&hashed)
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    let text = fs::read_to_string(&hashed).unwrap();
    assert!(text.starts_with("|1|"), "{text}");
    works(&known_hosts(&sshd, &format!("rubbish\n{text}")));

    let key = public_of(&sshd.file("host_ed25519"));
    works(&known_hosts(&sshd, &format!("[127.0.0.*]:* {key}\n")));
    let e = refusal(&known_hosts(
        &sshd,
        &format!("!*:{},[127.0.0.*]:* {key}\n", sshd.port()),
    ));
    assert!(matches!(e, ConnectError::UnknownHostKey { .. }), "{e}");
}

#[test]
fn of_several_host_keys_the_one_that_is_known_is_asked_for() {
    for known in ["rsa", "ecdsa", "ed25519"] {
        let sshd = Sshd::builder()
            .host_keys(&["ed25519", "ecdsa", "rsa"])
            .known(&[known])
            .start();
        let sftp = session(&sshd.target());
        assert!(sftp.host_key().kind().contains(known));
    }
}

#[test]
fn a_known_hosts_file_that_cannot_be_read_is_not_passed_over() {
    let sshd = Sshd::start();
    let mut target = sshd.target();
    target.known_hosts.push(sshd.base());
    let e = refusal(&target);
    assert!(
        matches!(e, ConnectError::KnownHostsUnreadable { .. }),
        "{e}"
    );
}

#[test]
fn all_kinds_of_keys_log_in_encrypted_or_not() {
    let sshd = Sshd::start();
    for kind in ["ed25519", "rsa", "ecdsa"] {
        for passphrase in ["", "open sesame"] {
            let file = sshd.add_key(kind, passphrase);
            let mut target = sshd.target();
            target.login = keys(&file, Some("open sesame\n"));
            works(&target);
        }
    }
    // PEM's own formats, as older ssh-keygens wrote them.
    for kind in ["rsa", "ecdsa"] {
        for passphrase in ["", "open sesame"] {
            let file = sshd.add_key(
                kind,
                if passphrase.is_empty() {
                    ""
                } else {
                    "first one"
                },
            );
            let done = Command::new("ssh-keygen")
                .args(["-q", "-p", "-m", "PEM", "-N", passphrase, "-P"])
                .arg(if passphrase.is_empty() {
                    ""
                } else {
                    "first one"
                })
                .arg("-f")
                .arg(&file)
                .stdin(Stdio::null())
                .output()
                .unwrap();
            assert!(done.status.success(), "{done:?}");
            assert!(!fs::read_to_string(&file).unwrap().contains("OPENSSH"));
            let mut target = sshd.target();
            target.login = keys(&file, Some("open sesame"));
            works(&target);
            fs::remove_file(&file).unwrap();
        }
    }
}

#[test]
fn a_key_file_that_cannot_be_used_is_told_from_a_login_that_is_refused() {
    let sshd = Sshd::start();
    let with = |login: Login| {
        let mut target = sshd.target();
        target.login = login;
        refusal(&target)
    };
    for kind in ["ed25519", "rsa", "ecdsa"] {
        let encrypted = sshd.add_key(kind, "open sesame");
        let e = with(keys(&encrypted, Some("wrong")));
        assert_eq!(problem(e), KeyProblem::PassphraseWrong, "{kind}");
        let e = with(keys(&encrypted, None));
        assert_eq!(problem(e), KeyProblem::PassphraseMissing);
    }
    let e = with(keys(&sshd.file("none"), None));
    assert_eq!(problem(e), KeyProblem::Missing);
    let e = with(keys(&sshd.base(), None));
    assert!(matches!(problem(e), KeyProblem::Unreadable(_)));
    let e = with(keys(&sshd.file("id_ed25519.pub"), None));
    assert_eq!(problem(e), KeyProblem::Public);
    let text = fs::read_to_string(sshd.key_path()).unwrap();
    let broken = sshd.file("broken");
    fs::write(&broken, text.replace("b3BlbnNzaC1rZXk", "b3BlbnNzaC1rZXj")).unwrap();
    assert!(matches!(
        problem(with(keys(&broken, None))),
        KeyProblem::Unusable(_)
    ));
    let open = sshd.file("open");
    fs::write(&open, text).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(problem(with(keys(&open, None))), KeyProblem::TooOpen(0o644));

    let stranger = sshd.file("stranger");
    keygen(&stranger, "ed25519", "");
    let e = with(keys(&stranger, None));
    assert!(matches!(e, ConnectError::LoginRefused { .. }), "{e}");
    assert!(!e.is_connection());
    assert!(e.to_string().contains("stranger"), "{e}");
}

#[test]
fn key_after_key_is_tried_and_none_spoils_the_next() {
    let sshd = Sshd::builder().line("MaxAuthTries 1").start();
    let mut files = vec![sshd.file("missing")];
    for n in 0..3 {
        let stranger = sshd.file(&format!("stranger{n}"));
        keygen(&stranger, ["ed25519", "rsa", "ecdsa"][n], "");
        files.push(stranger);
    }
    files.push(sshd.key_path());
    let mut target = sshd.target();
    let passphrase = None;
    target.login = Login::Keys { files, passphrase };
    works(&target);
}

/// An ssh-agent of our own.
struct Agent {
    child: Child,
    socket: PathBuf,
}

impl Agent {
    fn start(socket: PathBuf) -> Agent {
        let mut command = Command::new("ssh-agent");
        command.arg("-D").arg("-a").arg(&socket);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        die_with_us(&mut command);
        let child = command.spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while !socket.exists() {
            assert!(Instant::now() < deadline, "ssh-agent does not start");
            std::thread::sleep(Duration::from_millis(5));
        }
        Agent { child, socket }
    }

    fn add(&self, key: &Path) {
        let added = Command::new("ssh-add")
            .arg(key)
            .env("SSH_AUTH_SOCK", &self.socket)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(added.status.success(), "{added:?}");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_keys_of_an_agent_are_tried_one_after_the_other() {
    let sshd = Sshd::start();
    let agent = Agent::start(sshd.file("agent"));
    let mut target = sshd.target();
    target.login = Login::Agent {
        socket: Some(agent.socket.clone()),
    };
    let e = refusal(&target);
    assert!(matches!(e, ConnectError::Agent { .. }), "{e}");

    let stranger = sshd.file("stranger");
    keygen(&stranger, "ed25519", "");
    agent.add(&stranger);
    let e = refusal(&target);
    assert!(matches!(e, ConnectError::LoginRefused { .. }), "{e}");

    agent.add(&sshd.add_key("rsa", ""));
    works(&target);

    drop(agent);
    let e = refusal(&target);
    assert!(matches!(e, ConnectError::Agent { .. }), "{e}");
    assert!(!e.is_connection());
}

#[test]
fn a_server_without_sftp_is_a_matter_for_a_person() {
    let sshd = Sshd::builder().no_sftp().start();
    let e = refusal(&sshd.target());
    assert!(matches!(e, ConnectError::NoSftp { .. }), "{e}");
    assert!(!e.is_connection());
}

#[test]
fn an_account_that_is_closed_with_a_message_is_a_matter_for_a_person() {
    for script in [
        "echo This account is currently not available.; exit 1",
        "exit 1",
        "echo no",
    ] {
        let sshd = Sshd::builder().sftp_script(script).start();
        let e = refusal(&sshd.target());
        assert!(matches!(e, ConnectError::NoSftp { .. }), "{script}: {e}");
        assert!(!e.is_connection());
        if script.starts_with("echo This") {
            assert!(e.to_string().contains("currently not available"), "{e}");
        }
    }
}

#[test]
fn a_server_of_another_sftp_version_is_refused() {
    let script = r"printf '\0\0\0\005\002\0\0\0\002'; cat >/dev/null";
    let sshd = Sshd::builder().sftp_script(script).start();
    let e = refusal(&sshd.target());
    assert!(
        matches!(e, ConnectError::WrongVersion { version: 2, .. }),
        "{e}"
    );
}

#[test]
fn a_server_without_a_common_algorithm_is_a_matter_for_a_person() {
    let sshd = Sshd::builder()
        .line("KexAlgorithms sntrup761x25519-sha512@openssh.com")
        .start();
    let e = refusal(&sshd.target());
    assert!(matches!(e, ConnectError::NoAgreement { .. }), "{e}");
    assert!(!e.is_connection());
}
