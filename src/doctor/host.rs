//! This host: what the daemon needs to run. Nothing is changed here, but that the source is tried.

use super::{LITTLE, Report};
use crate::config::Config;
use crate::local;
use crate::status::show::bytes;
use rustix::fs::StatVfsMountFlags;
use std::fs::OpenOptions;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Looks at this host: what the daemon needs to run. `daemon` is its process id if it runs.
pub fn examine_host(config: &Config, daemon: Option<u32>, report: &mut Report<'_>) {
    match daemon {
        Some(pid) => report.good("daemon", format!("running, pid {pid}")),
        None => report.note(
            "daemon",
            "not running: start it with `proxyfs run` or its service",
        ),
    }
    if config.warnings.is_empty() {
        report.good("config", config.file.display().to_string());
    }
    for warning in &config.warnings {
        report.note("config", warning.clone());
    }
    if !rustix::process::geteuid().is_root() {
        report.bad("user", "not root: the daemon and this check must be");
    }
    let kernel = rustix::system::uname();
    let release = kernel.release().to_string_lossy().into_owned();
    match version(&release) {
        Some(v) if v < (5, 11) => {
            report.bad("kernel", format!("{release}: 5.11 or newer is needed"))
        }
        Some(v) if v < (6, 9) => report.note(
            "kernel",
            format!("{release}: from 6.9 on it reads the source's files itself, which is faster"),
        ),
        _ => report.good("kernel", release),
    }
    match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => report.good("FUSE", "/dev/fuse can be used"),
        Err(why) => report.bad(
            "FUSE",
            format!("/dev/fuse: {why}: load the module (modprobe fuse), or allow the container to use it"),
        ),
    }
    source(config, daemon.is_some(), report);
    state_dir(&config.state_dir, report);
}

fn source(config: &Config, daemon_runs: bool, report: &mut Report<'_>) {
    let source = config.source.display();
    // While it is mounted over, what is below cannot be seen; and the daemon has seen it.
    if daemon_runs {
        return match std::fs::read_dir(&config.mount_point) {
            Ok(_) => report.good(
                "mount",
                format!("{} can be read", config.mount_point.display()),
            ),
            Err(why) => report.bad("mount", format!("{}: {why}", config.mount_point.display())),
        };
    }
    match local::try_source(&config.source) {
        Ok(()) => report.good("source", format!("{source} has what it takes")),
        Err(why) => report.bad("source", why.to_string()),
    }
    if !config.mount_point.is_dir() {
        let mount = config.mount_point.display();
        report.bad("mount", format!("{mount} is no directory: make it"));
    }
}

fn state_dir(directory: &Path, report: &mut Report<'_>) {
    const TMPFS: i64 = 0x0102_1994;
    let shown = directory.display();
    let Ok(found) = std::fs::metadata(directory) else {
        return report.note(
            "state_dir",
            format!("{shown} is not there yet: the daemon makes it"),
        );
    };
    if !found.is_dir() {
        return report.bad("state_dir", format!("{shown} is no directory"));
    }
    if found.mode() & 0o077 != 0 || found.uid() != 0 {
        return report.bad(
            "state_dir",
            format!("others may look into {shown}: chown root: {shown} && chmod 700 {shown}"),
        );
    }
    if rustix::fs::statfs(directory).is_ok_and(|s| s.f_type == TMPFS) {
        report.note(
            "state_dir",
            format!("{shown} is in memory (tmpfs): the log does not survive a reboot there"),
        );
    }
    match rustix::fs::statvfs(directory) {
        Ok(fs) if fs.f_flag.contains(StatVfsMountFlags::RDONLY) => {
            report.bad("state_dir", format!("{shown} is mounted read-only"));
        }
        Ok(fs) => {
            let free = fs.f_bavail.saturating_mul(fs.f_frsize);
            let text = format!("{shown}, {} free", bytes(free));
            match free < LITTLE {
                true => report.note("state_dir", text),
                false => report.good("state_dir", text),
            }
        }
        Err(why) => report.bad("state_dir", format!("{shown}: {why}")),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_of_a_kernel_tells_its_version() {
        assert_eq!(version("6.18.0-1-amd64"), Some((6, 18)));
        assert_eq!(version("5.10"), Some((5, 10)));
        assert_eq!(version("next"), None);
    }
}
