//! A program on a terminal of its own: what it writes is read, what a person would type is typed.
#![allow(clippy::unwrap_used)]

use super::daemon::PATIENCE;
use super::sshd::die_with_us;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

pub struct Pty {
    screen: File,
    child: Child,
    /// All that was written so far.
    pub seen: String,
    bytes: Vec<u8>,
    /// Up to here it was waited for.
    passed: usize,
}

impl Pty {
    /// Starts the program on a terminal of 80 columns and 24 rows.
    pub fn spawn(mut command: Command) -> Pty {
        let (mut master, mut slave) = (-1, -1);
        let size = libc::winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: both descriptors and the size are ours to be written and read; the rest may be null.
        let made = unsafe {
            libc::openpty(
                &mut master,
                &mut slave,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                &size,
            )
        };
        assert_eq!(made, 0, "no pty: {}", std::io::Error::last_os_error());
        // SAFETY: openpty has just made them, and nobody else has them.
        let (master, slave) =
            unsafe { (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
        rustix::io::fcntl_setfd(&master, rustix::io::FdFlags::CLOEXEC).unwrap();
        for (name, value) in [("TERM", Some("xterm")), ("NO_COLOR", None)] {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
            .stdin(Stdio::from(slave.try_clone().unwrap()))
            .stdout(Stdio::from(slave.try_clone().unwrap()))
            .stderr(Stdio::from(slave));
        die_with_us(&mut command);
        // SAFETY: setsid and ioctl are async-signal-safe and touch no memory of ours.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        Pty {
            screen: File::from(master),
            child: command.spawn().unwrap(),
            seen: String::new(),
            bytes: Vec::new(),
            passed: 0,
        }
    }

    /// Types this.
    pub fn keys(&mut self, keys: &str) {
        self.screen.write_all(keys.as_bytes()).unwrap();
    }

    /// Reads what is there within a moment; false at the end.
    fn read(&mut self) -> bool {
        let moment = Timespec {
            tv_sec: 0,
            tv_nsec: 100_000_000,
        };
        let ready = poll(
            &mut [PollFd::new(&self.screen, PollFlags::IN)],
            Some(&moment),
        );
        if ready.is_ok_and(|n| n == 0) {
            return true;
        }
        let mut buffer = [0; 4096];
        // EIO: nobody has the other end open any more.
        let Ok(n @ 1..) = self.screen.read(&mut buffer) else {
            return false;
        };
        self.bytes.extend_from_slice(&buffer[..n]);
        self.seen = String::from_utf8_lossy(&self.bytes).into_owned();
        true
    }

    /// Waits until this has been written, behind what was waited for before; gives what came in between.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut open = true;
        loop {
            let new = &self.seen[self.passed..];
            if let Some(at) = new.find(text) {
                let before = new[..at].to_string();
                self.passed += at + text.len();
                return before;
            }
            assert!(
                open && Instant::now() < deadline,
                "{text:?} is not in {:?}",
                &self.seen[self.passed..]
            );
            open = self.read();
        }
    }

    /// Waits for the end of the program.
    #[track_caller]
    pub fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        while self.read() {
            assert!(
                Instant::now() < deadline,
                "it does not end: {:?}",
                self.seen
            );
        }
        self.child.wait().unwrap()
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
