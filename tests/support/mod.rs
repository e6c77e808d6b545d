//! What the tests stand on: servers, relays, mounts, daemons and trees, each cleaned up when dropped.
#![allow(dead_code)]

pub mod daemon;
pub mod disks;
pub mod fake_server;
pub mod load;
pub mod mounts;
pub mod pty;
pub mod random;
pub mod relay;
pub mod smtpd;
pub mod sshd;
pub mod tree;
pub mod user;
