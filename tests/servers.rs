//! Servers of other kinds: each gets a tree with every kind of change, or tells what it lacks.
#![allow(clippy::unwrap_used)]

use super::support::daemon::Daemon;
use super::support::mounts::wait_until;
use super::support::relay::Port;
use super::support::sshd::{Sshd, die_with_us, ids_of, keygen, public_of};
use super::support::tree::{differences, differences_of_bytes, differences_of_names};
use std::fs::{self, Permissions};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Makes every kind of change, in two rounds.
fn change_everything(daemon: &Daemon) {
    let www = daemon.source();
    fs::create_dir_all(www.join("dir/sub")).unwrap();
    for (file, size) in [
        ("small", 10),
        ("empty", 0),
        ("big", 300_000),
        ("dir/in", 40_000),
    ] {
        fs::write(www.join(file), vec![7; size]).unwrap();
    }
    symlink("dir/in", www.join("link")).unwrap();
    fs::hard_link(www.join("small"), www.join("dir/twin")).unwrap();
    fs::set_permissions(www.join("big"), Permissions::from_mode(0o640)).unwrap();
    daemon.wait();
    fs::write(www.join("small"), "both names show this").unwrap();
    fs::write(www.join("temporary"), "replaces").unwrap();
    fs::rename(www.join("temporary"), www.join("empty")).unwrap();
    fs::rename(www.join("dir"), www.join("moved")).unwrap();
    fs::remove_file(www.join("big")).unwrap();
    fs::remove_dir(www.join("moved/sub")).unwrap();
    fs::create_dir(www.join("dir")).unwrap();
    let (a, b) = (www.join("moved/in"), www.join("empty"));
    let (cwd, flags) = (rustix::fs::CWD, rustix::fs::RenameFlags::EXCHANGE);
    rustix::fs::renameat_with(cwd, a, cwd, b, flags).unwrap();
    daemon.wait();
}

fn section(name: &str, host: &(u16, &str), path: &Path, key: &Path, known: &Path) -> String {
    let (port, user) = host;
    format!(
        "\n[mirror {name}]\nhost = 127.0.0.1\nport = {port}\nuser = {user}\npath = {}\nkey = {}\n\
         known_hosts = {}\nbackoff_min = 50ms\nbackoff_max = 500ms\n",
        path.display(),
        key.display(),
        known.display()
    )
}

/// Every change arrives; symlinks' times but where the server can set them.
fn everything_arrives(daemon: &mut Daemon, mirror: &Path) {
    daemon.write_ini();
    daemon.start();
    change_everything(daemon);
    let lacks_link_times = daemon.mirror("m")["unsupported"]
        .to_string()
        .contains("symlinks");
    let mut lines = differences(&daemon.source(), mirror, false);
    lines.retain(|line| !(lacks_link_times && line.starts_with("link:")));
    assert_eq!(lines, [""; 0]);
    daemon.stop();
}

fn with_openssh(sshd: &Sshd) {
    let mut daemon = Daemon::new();
    daemon.add_mirror("m", sshd);
    everything_arrives(&mut daemon, &sshd.base());
}

#[test]
fn openssh_with_its_sftp_server_and_an_ordinary_user() {
    let program = "exec /usr/lib/openssh/sftp-server";
    with_openssh(&Sshd::builder().ordinary_user().sftp_script(program).start());
}

#[test]
fn openssh_that_denies_what_can_be_done_without() {
    for denied in [
        "lsetstat",
        "limits",
        "statvfs",
        "fsync",
        "copy-data",
        "lsetstat,limits,statvfs",
    ] {
        let program = format!("exec /usr/lib/openssh/sftp-server -P {denied}");
        with_openssh(&Sshd::builder().sftp_script(&program).start());
    }
}

/// A server that denies some requests gets everything that it can take, another way, and `status` says which.
fn another_way(denied: &str, told: &[&str], compare: impl Fn(&Path, &Path) -> Vec<String>) {
    let program = format!("exec /usr/lib/openssh/sftp-server -P {denied}");
    let sshd = Sshd::builder().sftp_script(&program).start();
    let mut daemon = Daemon::new();
    daemon.add_mirror("m", &sshd);
    daemon.start();
    change_everything(&daemon);
    assert_eq!(compare(&daemon.source(), &sshd.base()), [""; 0], "{denied}");
    let mirror = daemon.mirror("m");
    assert_eq!(mirror["parked_ops"], 0, "{mirror}");
    let unsupported = mirror["unsupported"].to_string();
    assert!(
        told.iter().all(|words| unsupported.contains(words)),
        "{unsupported}"
    );
    assert_eq!(told.is_empty(), unsupported == "[]", "{unsupported}");
    // The marker comes there too, and is known again.
    daemon.stop();
    // A repair brings it, in a session that does not know yet what is denied.
    fs::write(daemon.source().join("new"), "made meanwhile").unwrap();
    daemon.start();
    fs::write(daemon.source().join("small"), "again").unwrap();
    daemon.wait();
    assert_eq!(fs::read(sshd.base().join("small")).unwrap(), b"again");
    let new = fs::read(sshd.base().join("new")).unwrap();
    assert_eq!(new, b"made meanwhile");
    daemon.stop();
}

#[test]
fn openssh_that_does_not_replace_what_is_there() {
    let told = ["replacing in one step", "is missing for a moment"];
    another_way("posix-rename", &told, |here, there| {
        differences(here, there, false)
    });
}

#[test]
fn openssh_that_makes_no_hard_links() {
    for denied in ["hardlink", "hardlink,copy-data"] {
        let told = ["hard links", "each name is a file of its own"];
        another_way(denied, &told, |here, there| {
            let mut lines = differences_of_names(here, there);
            // What was written by the other name.
            lines.retain(|line| !line.starts_with("moved/twin:"));
            lines
        });
    }
}

#[test]
fn openssh_that_sets_no_attributes() {
    let all = |here: &Path, there: &Path| differences(here, there, false);
    another_way("fsetstat", &[], all);
    another_way(
        "setstat",
        &["denies setstat)", "of directories"],
        differences_of_bytes,
    );
    another_way(
        "setstat,fsetstat",
        &["setstat and fsetstat"],
        differences_of_bytes,
    );
}

#[test]
fn openssh_that_has_files_on_its_disk_and_one_that_cannot_tell() {
    for (denied, told) in [("statvfs", false), ("fsync", true)] {
        let program = format!("exec /usr/lib/openssh/sftp-server -P {denied}");
        let sshd = Sshd::builder().sftp_script(&program).start();
        let mut daemon = Daemon::new();
        daemon.add_mirror_at("m", &sshd, sshd.port(), "fsync = yes");
        daemon.start();
        change_everything(&daemon);
        let unsupported = daemon.mirror("m")["unsupported"].to_string();
        assert_eq!(
            unsupported.contains("fsync@openssh.com"),
            told,
            "{unsupported}"
        );
        assert_eq!(differences(&daemon.source(), &sshd.base(), false), [""; 0]);
    }
}

#[test]
fn openssh_that_shuts_the_user_in() {
    // Not below /tmp: all above must be writable for root alone.
    let jail = tempfile::Builder::new()
        .prefix("proxyfs-jail-")
        .tempdir_in("/run")
        .unwrap();
    fs::set_permissions(jail.path(), Permissions::from_mode(0o755)).unwrap();
    let mut sshd = Sshd::builder()
        .ordinary_user()
        .line(&format!(
            "ChrootDirectory {}\nForceCommand internal-sftp",
            jail.path().display()
        ))
        .start();
    let mirror = jail.path().join("mirror");
    fs::create_dir(&mirror).unwrap();
    let (uid, gid) = ids_of(sshd.user());
    chown(&mirror, Some(uid), Some(gid)).unwrap();
    let mut daemon = Daemon::new();
    let host = (sshd.port(), sshd.user());
    let (key, known) = (sshd.key_path(), sshd.known_hosts_path());
    *daemon.ini_mut() += &section("m", &host, Path::new("/mirror"), &key, &known);
    everything_arrives(&mut daemon, &mirror);
    sshd.stop();
}

/// A server that is not OpenSSH; ends with the test.
struct Other {
    dir: tempfile::TempDir,
    port: Port,
    child: Child,
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Other {
    /// Starts what `command` says, with keys made in a directory of its own, and waits until it listens.
    fn start(command: impl FnOnce(&Path, u16) -> Command) -> Other {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let port = Port::reserve();
        for key in ["host", "user"] {
            keygen(&dir.path().join(key), "rsa", "");
        }
        fs::create_dir(dir.path().join("mirror")).unwrap();
        let known = format!(
            "[127.0.0.1]:{} {}\n",
            port.number(),
            public_of(&dir.path().join("host"))
        );
        fs::write(dir.path().join("known_hosts"), known).unwrap();
        let mut command = command(dir.path(), port.number());
        let log = fs::File::create(dir.path().join("log")).unwrap();
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        die_with_us(&mut command);
        let child = command.spawn().unwrap();
        let other = Other { dir, port, child };
        wait_until("it listens", || {
            TcpStream::connect(("127.0.0.1", other.port.number())).is_ok()
        });
        other
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn gets_everything(&self) {
        let mut daemon = Daemon::new();
        let host = (self.port.number(), "root");
        let (mirror, key, known) = (
            self.file("mirror"),
            self.file("user"),
            self.file("known_hosts"),
        );
        *daemon.ini_mut() += &section("m", &host, &mirror, &key, &known);
        everything_arrives(&mut daemon, &mirror);
    }
}

/// Debian's python3-asyncssh.
const ASYNCSSH: &str = "
import asyncio, sys, asyncssh
async def main(dir, port):
    await asyncssh.listen('127.0.0.1', port, server_host_keys=[dir + '/host'], reuse_address=True,
                          authorized_client_keys=dir + '/user.pub', sftp_factory=True)
    await asyncio.Event().wait()
asyncio.run(main(sys.argv[1], int(sys.argv[2])))
";

#[test]
fn asyncssh() {
    let server = Other::start(|dir, port| {
        let mut command = Command::new("/usr/bin/python3");
        command
            .args(["-c", ASYNCSSH])
            .arg(dir)
            .arg(port.to_string());
        command
    });
    server.gets_everything();
}

/// Debian's proftpd-core and proftpd-mod-crypto.
#[test]
fn proftpd() {
    let server = Other::start(|dir, port| {
        let at = dir.display();
        let public = Command::new("ssh-keygen")
            .arg("-ef")
            .arg(dir.join("user.pub"))
            .output()
            .unwrap();
        fs::write(dir.join("authorized"), public.stdout).unwrap();
        let modules = "/usr/lib/proftpd";
        // Built in in Debian 12.
        let transfers = match Path::new(modules).join("mod_xfer.so").exists() {
            true => "LoadModule mod_xfer.c\n",
            false => "",
        };
        let config = format!(
            "ModulePath {modules}\n{transfers}LoadModule mod_sftp.c\nServerType standalone\nPort {port}\n\
             DefaultAddress 127.0.0.1\nSocketBindTight on\nUseIPv6 off\nUser root\nGroup root\n\
             RootLogin on\nUseFtpUsers off\nRequireValidShell off\nPidFile {at}/pid\nScoreboardFile {at}/scores\n\
             SystemLog {at}/system\nWtmpLog off\nTransferLog none\nAuthOrder mod_auth_unix.c\nUmask 000\n\
             AllowOverwrite on\n<IfModule mod_sftp.c>\nSFTPEngine on\nSFTPLog {at}/sftp\n\
             SFTPHostKey {at}/host\nSFTPAuthMethods publickey\n\
             SFTPAuthorizedUserKeys file:{at}/authorized\n</IfModule>\n"
        );
        fs::write(dir.join("conf"), config).unwrap();
        let mut command = Command::new("/usr/sbin/proftpd");
        command.args(["-n", "-q", "-c"]).arg(dir.join("conf"));
        command
    });
    server.gets_everything();
}
