//! A thousand connections that fail, in every way that they can, leave nothing behind in the daemon.

use super::PATIENCE;
use crate::support::daemon::Daemon;
use crate::support::relay::Relay;
use crate::support::sshd::Sshd;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A server that breaks off at once, after its banner, or in the middle of nonsense, in turns.
struct Rude {
    port: u16,
    served: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Rude {
    fn start() -> Rude {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (served, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (count, ended) = (Arc::clone(&served), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            for socket in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(mut socket) = socket else { continue };
                // What fails here is what is wanted: nothing is expected of the connection.
                match count.fetch_add(1, Ordering::SeqCst) % 4 {
                    0 => {}
                    1 => drop(socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")),
                    2 => {
                        let _ = socket.write_all(b"SSH-2.0-OpenSSH_9.2\r\n");
                        let _ = socket.read(&mut [0; 4096]);
                    }
                    _ => {
                        let _ = socket.write_all(b"SSH-2.0-rude\r\n");
                        let _ =
                            socket.write_all(&[0, 0, 0, 12, 99, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
                        let _ = socket.read(&mut [0; 4096]);
                    }
                }
            }
        });
        Rude {
            port,
            served,
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Rude {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Descriptors and threads of the daemon, the fewest of a few looks: some come and go with each connection.
fn fewest(daemon: &Daemon) -> (usize, usize) {
    let count = |what: &str| {
        let dir = format!("/proc/{}/{what}", daemon.pid());
        fs::read_dir(dir).unwrap().count()
    };
    let looks = (0..50).map(|_| {
        std::thread::sleep(Duration::from_millis(2));
        (count("fd"), count("task"))
    });
    looks.fold((usize::MAX, usize::MAX), |least, now| {
        (least.0.min(now.0), least.1.min(now.1))
    })
}

#[test]
fn a_thousand_reconnects_leave_no_thread_and_no_descriptor_behind() {
    const CONNECTIONS: u64 = 1000;
    const SESSIONS: u64 = 25;
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), Duration::ZERO);
    let rude = Rude::start();
    let mut daemon = Daemon::new();
    let quick = "\nbackoff_min = 10ms\nbackoff_max = 10ms";
    for (name, port) in [("rude", rude.port), ("cut", relay.port())] {
        daemon.add_mirror_at(name, &sshd, port, "");
    }
    let ini = daemon.ini_mut();
    *ini = ini
        .replace("\nbackoff_min = 50ms\nbackoff_max = 500ms", quick)
        .replace("log_level = debug", "log_level = error");
    daemon.write_ini();
    daemon.start();
    let deadline = Instant::now() + 2 * PATIENCE;
    let (mut sessions, mut first) = (0, None);
    while sessions < SESSIONS || rude.served.load(Ordering::SeqCst) < CONNECTIONS {
        assert!(Instant::now() < deadline, "{sessions}, {:?}", rude.served);
        if daemon.mirror("cut")["state"] == "synced" {
            // Counted while it is connected, as at the end. By now the mount knows all three files, and keeps a
            // descriptor of each.
            if sessions == 6 {
                first = Some(fewest(&daemon));
            }
            // With a file on its way, on several lanes as may be.
            let name = format!("f{}", sessions % 3);
            fs::write(daemon.source().join(name), vec![7; 300_000]).unwrap();
            relay.cut();
            sessions += 1;
        }
    }
    daemon.wait_for_mirror("cut", |m| m["state"] == "synced");
    let (first, last) = (first.unwrap(), fewest(&daemon));
    assert!(last.0 <= first.0 + 2, "descriptors: {first:?}, {last:?}");
    assert!(last.1 <= first.1 + 1, "threads: {first:?}, {last:?}");
}
