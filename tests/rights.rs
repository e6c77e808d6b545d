//! What the daemon may do beyond what it needs, and what it tells that is nobody's business.
#![allow(clippy::unwrap_used)]

use super::support::daemon::Daemon;
use super::support::sshd::{ORDINARY_USER, Sshd, ids_of};
use super::support::tree::assert_same;
use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// chown, dac_override, dac_read_search, fowner, fsetid, kill, setgid, setuid, setpcap, sys_ptrace, sys_admin,
/// sys_resource, mknod, setfcap (capability.h).
const NEEDED: [u32; 14] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 19, 21, 24, 27, 31];

#[test]
fn the_daemon_keeps_only_the_rights_that_it_needs_and_all_works_with_them() {
    let sshd = Sshd::builder().ordinary_user().start();
    let mut daemon = Daemon::new();
    daemon.add_mirror("m", &sshd);
    daemon.start();
    let www = daemon.source();
    // Everybody's, so that the ordinary user gets there.
    fs::set_permissions(daemon.file(""), Permissions::from_mode(0o755)).unwrap();
    let (uid, gid) = ids_of(ORDINARY_USER);
    let shared = www.join("shared");
    fs::create_dir(&shared).unwrap();
    chown(&shared, None, Some(gid)).unwrap();
    fs::set_permissions(&shared, Permissions::from_mode(0o2777)).unwrap();
    let as_user = |script: &str| {
        let mut shell = Command::new("sh");
        shell
            .args(["-ec", script])
            .current_dir(&shared)
            .uid(uid)
            .gid(gid);
        let output = shell.output().unwrap();
        assert!(output.status.success(), "{script}: {output:?}");
    };
    as_user(
        "umask 022; echo mine > file; mkdir dir; ln -s file link; ln file twin; chmod 4755 file",
    );
    let made = fs::metadata(shared.join("file")).unwrap();
    assert_eq!(
        (made.uid(), made.gid(), made.mode() & 0o7777),
        (uid, gid, 0o4755)
    );
    // Root's matters: others' files that are closed to all, owners, set-id bits, devices, attributes.
    as_user("echo secret > closed; chmod 000 closed");
    assert_eq!(
        fs::read_to_string(shared.join("closed")).unwrap(),
        "secret\n"
    );
    fs::write(www.join("program"), "x").unwrap();
    chown(www.join("program"), Some(1234), Some(4321)).unwrap();
    fs::set_permissions(www.join("program"), Permissions::from_mode(0o6755)).unwrap();
    assert_eq!(
        fs::metadata(www.join("program")).unwrap().mode() & 0o7777,
        0o6755
    );
    let device = www.join("null");
    let made = Command::new("mknod")
        .arg(&device)
        .args(["c", "1", "3"])
        .status()
        .unwrap();
    assert!(made.success());
    assert!(fs::metadata(&device).unwrap().file_type().is_char_device());
    for (name, value) in [
        ("user.note", &b"x"[..]),
        ("trusted.note", b"x"),
        // cap_net_raw, as setcap writes it.
        (
            "security.capability",
            b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        ),
    ] {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(www.join("program"), name, value, flags)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    fs::write(www.join("big"), vec![7; 3 << 20]).unwrap();
    assert_eq!(fs::read(www.join("big")).unwrap(), vec![7; 3 << 20]);
    fs::remove_file(&device).unwrap();
    daemon.wait();
    assert_same(&www, &sshd.base());

    let needed = NEEDED.iter().fold(0u64, |all, bit| all | 1 << bit);
    let mut threads = 0;
    for thread in fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap() {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        for set in ["CapInh:", "CapPrm:", "CapEff:"] {
            let line = status.lines().find(|l| l.starts_with(set)).unwrap();
            let bits = u64::from_str_radix(line[set.len()..].trim(), 16).unwrap();
            assert_eq!(bits & !needed, 0, "{set} {bits:x} of {status}");
        }
        threads += 1;
    }
    assert!(threads > 4, "{threads}");
    daemon.stop();
}

#[test]
fn no_secret_is_in_the_log_the_status_or_the_process_list() {
    const SECRET: &str = "correct horse battery";
    let sshd = Sshd::start();
    let key = sshd.add_key("ed25519", SECRET);
    let mut daemon = Daemon::new();
    let passphrase = daemon.file("passphrase");
    fs::write(&passphrase, format!("{SECRET}\n")).unwrap();
    daemon.add_mirror_at(
        "m",
        &sshd,
        sshd.port(),
        &format!("passphrase_file = {}", passphrase.display()),
    );
    let usual = format!("key = {}\n", sshd.key_path().display());
    let ini = daemon.ini_mut();
    *ini = ini.replace(&usual, &format!("key = {}\n", key.display()));
    *ini = ini.replace("log_level = debug", "log_level = trace");
    daemon.write_ini();
    daemon.start();
    fs::write(daemon.source().join("file"), "there").unwrap();
    daemon.wait();
    // One that is wrong is told without being shown.
    fs::write(&passphrase, "wrong horse battery\n").unwrap();
    let doctor = daemon.run(&["doctor", "m"]);
    let told = String::from_utf8(doctor.stdout).unwrap();
    let squeezed = told.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        squeezed.contains("the passphrase does not open the key file"),
        "{told}"
    );
    let process = format!("/proc/{}", daemon.pid());
    for (place, text) in [
        ("log", daemon.log()),
        ("status", daemon.ok(&["status", "--json"])),
        ("doctor", told),
        (
            "cmdline",
            fs::read_to_string(format!("{process}/cmdline")).unwrap(),
        ),
        (
            "environment",
            fs::read_to_string(format!("{process}/environ")).unwrap(),
        ),
    ] {
        assert!(!text.contains("horse"), "{place}: {text}");
    }
    for name in ["state", "run"] {
        for entry in fs::read_dir(daemon.file(name)).unwrap() {
            let path = entry.unwrap().path();
            let bytes = fs::read(&path).unwrap_or_default();
            let found = bytes.windows(5).any(|w| w == b"horse");
            assert!(!found, "{}", path.display());
        }
    }
    daemon.stop();
}
