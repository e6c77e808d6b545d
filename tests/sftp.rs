//! The SFTP client against real OpenSSH servers, and against servers that are none.

#![allow(clippy::unwrap_used)]

mod hosts;
mod lanes;
mod leaks;
mod peers;
mod requests;

use crate::support::sshd::Sshd;
use proxyfs::sftp::session::{Abort, ConnectError, SftpSession, Target, connect};
use proxyfs::sftp::{Remote, Reply, Request, Ticket};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Longer than anything takes that works, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn session(target: &Target) -> SftpSession {
    connect(target, &Abort::new()).unwrap_or_else(|e| panic!("{e}"))
}

fn refusal(target: &Target) -> ConnectError {
    match connect(target, &Abort::new()) {
        Ok(session) => panic!("{session:?} was not refused"),
        Err(e) => {
            assert!(!e.to_string().contains('\n'), "{e}");
            e
        }
    }
}

/// Sends all and waits for all the replies, in the order of the requests.
fn ask_all(remote: &mut dyn Remote, requests: Vec<Request>) -> Vec<Reply> {
    let tickets: Vec<Ticket> = requests.into_iter().map(|r| remote.send(r)).collect();
    let mut replies = HashMap::new();
    let deadline = Instant::now() + PATIENCE;
    while replies.len() < tickets.len() {
        assert!(Instant::now() < deadline, "no replies");
        remote.pump(Duration::from_secs(1), None).unwrap();
        while let Some((ticket, reply)) = remote.reply() {
            assert!(tickets.contains(&ticket), "a reply to nobody");
            assert!(replies.insert(ticket, reply).is_none(), "two replies");
        }
    }
    assert_eq!(remote.outstanding(), 0);
    tickets.iter().map(|t| replies.remove(t).unwrap()).collect()
}

fn ask(remote: &mut dyn Remote, request: Request) -> Reply {
    ask_all(remote, vec![request]).remove(0)
}

fn path(sshd: &Sshd, name: &str) -> Vec<u8> {
    let mut path = sshd.base().into_os_string().into_encoded_bytes();
    if !name.is_empty() {
        path.push(b'/');
        path.extend_from_slice(name.as_bytes());
    }
    path
}
