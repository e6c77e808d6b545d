//! Tells systemd how the daemon is: one datagram to the socket that `NOTIFY_SOCKET` names (sd_notify(3)). Does nothing
//! where no such socket is named.
//!
//! Danger: what is ordered behind the service starts at READY. So it is said when the pid file is there and not before: the
//! mount can be used. Nothing here may stop the daemon or hold it up: a message that cannot be sent within a second is logged,
//! and left.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The variable that names the socket: a path, or behind `@` a name of Linux's abstract namespace.
pub const NOTIFY_VARIABLE: &str = "NOTIFY_SOCKET";

/// The mount can be used; or the configuration has been read again.
pub(super) fn ready(what: &str) {
    tell(&format!("READY=1\nSTATUS={what}"));
}

/// The configuration is being read again.
pub(super) fn reloading() {
    tell("RELOADING=1\nSTATUS=reading the configuration again");
}

/// The daemon is ending.
pub(super) fn stopping() {
    tell("STOPPING=1\nSTATUS=stopping");
}

fn tell(state: &str) {
    let Some(socket) = std::env::var_os(NOTIFY_VARIABLE).filter(|s| !s.is_empty()) else {
        return;
    };
    if let Err(why) = send(&socket, state) {
        log::warn!("systemd could not be told at {}: {why}", socket.display());
    }
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let from = UnixDatagram::unbound()?;
    from.set_write_timeout(Some(Duration::from_secs(1)))?;
    from.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 200];
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    #[test]
    fn a_socket_is_told_by_its_path_or_its_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), "READY=1").unwrap();
        assert_eq!(heard(&socket), "READY=1");

        let name = format!("proxyfs-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        send(OsStr::new(&format!("@{name}")), "STOPPING=1").unwrap();
        assert_eq!(heard(&socket), "STOPPING=1");
    }

    #[test]
    fn a_socket_that_is_gone_is_an_error_and_no_end() {
        let dir = tempfile::tempdir().unwrap();
        let error = send(dir.path().join("none").as_os_str(), "READY=1").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
