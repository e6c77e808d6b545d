//! What else brings files to another host, on the same line, to the same server, with the same key.

use crate::rig::{Rig, go_on};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// ssh's options: nothing of this user's or this machine's.
fn options(rig: &Rig) -> Vec<String> {
    let known = rig.sshd.known_hosts_path();
    let mut all = vec![
        "-F".to_string(),
        "none".to_string(),
        "-i".to_string(),
        rig.sshd.key_path().display().to_string(),
    ];
    for option in [
        "IdentitiesOnly=yes".to_string(),
        "IdentityAgent=none".to_string(),
        "BatchMode=yes".to_string(),
        "StrictHostKeyChecking=yes".to_string(),
        // The relay's port is no host of its own.
        "HostKeyAlias=127.0.0.1".to_string(),
        format!("UserKnownHostsFile={}", known.display()),
        "LogLevel=ERROR".to_string(),
    ] {
        all.extend(["-o".to_string(), option]);
    }
    all
}

fn host(rig: &Rig) -> String {
    format!("{}@127.0.0.1", rig.sshd.user())
}

fn timed(command: &mut Command) -> Duration {
    go_on();
    let start = Instant::now();
    let output = command.stdin(Stdio::null()).output().unwrap();
    let took = start.elapsed();
    go_on();
    assert!(output.status.success(), "{command:?}: {output:?}");
    took
}

/// `rsync -a` of `from` into `to` on the server.
pub fn rsync(rig: &Rig, from: &Path, to: &Path) -> Duration {
    rsync_by(rig, &["-a"], from, to)
}

/// `rsync -a --inplace`, which sends what changed of a file that is there.
pub fn rsync_in_place(rig: &Rig, from: &Path, to: &Path) -> Duration {
    rsync_by(rig, &["-a", "--inplace"], from, to)
}

fn rsync_by(rig: &Rig, how: &[&str], from: &Path, to: &Path) -> Duration {
    let port = rig.relay.port().to_string();
    let shell = [
        vec!["ssh".to_string(), "-p".to_string(), port],
        options(rig),
    ]
    .concat();
    timed(
        Command::new("rsync")
            .args(how)
            .args(["-e", &shell.join(" ")])
            .arg(from)
            .arg(format!("{}:{}", host(rig), to.display())),
    )
}

/// `scp` of one file.
pub fn scp(rig: &Rig, from: &Path, to: &Path) -> Duration {
    timed(
        Command::new("scp")
            .args(["-q", "-P", &rig.relay.port().to_string()])
            .args(options(rig))
            .arg(from)
            .arg(format!("{}:{}", host(rig), to.display())),
    )
}

/// What rsync pays before its first word: an ssh that runs nothing.
pub fn connect(rig: &Rig) -> Duration {
    timed(
        Command::new("ssh")
            .args(["-p", &rig.relay.port().to_string()])
            .args(options(rig))
            .args([host(rig), "true".to_string()]),
    )
}
