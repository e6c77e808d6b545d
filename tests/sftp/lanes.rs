//! Several channels of one session.

use super::{PATIENCE, path, session};
use crate::support::relay::Relay;
use crate::support::sshd::Sshd;
use proxyfs::sftp::session::{Abort, SftpSession, Start, connect_asking};
use proxyfs::sftp::{Attrs, OpenMode, Remote, Reply, Request, Ticket, code};
use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

/// Pumps until there are so many.
fn wait_for_lanes(sftp: &mut SftpSession, lanes: usize) {
    sftp.want_lanes(lanes);
    let deadline = Instant::now() + PATIENCE;
    while sftp.lanes() < lanes {
        assert!(Instant::now() < deadline, "{} lanes", sftp.lanes());
        sftp.pump(Duration::from_secs(1), None).unwrap();
    }
}

/// Sends one request on each lane and gives the replies.
fn on_each(sftp: &mut SftpSession, request: impl Fn(usize) -> Request) -> Vec<Reply> {
    let tickets: Vec<Ticket> = (0..sftp.lanes())
        .map(|lane| sftp.send_on(lane, request(lane)))
        .collect();
    let mut replies = HashMap::new();
    let deadline = Instant::now() + PATIENCE;
    while replies.len() < tickets.len() {
        assert!(Instant::now() < deadline, "no replies");
        sftp.pump(Duration::from_secs(1), None).unwrap();
        replies.extend(std::iter::from_fn(|| sftp.reply()));
    }
    tickets.iter().map(|t| replies.remove(t).unwrap()).collect()
}

#[test]
fn lanes_are_opened_while_others_work_and_each_has_its_own_handles() {
    let sshd = Sshd::start();
    let mut sftp = session(&sshd.target());
    assert_eq!(sftp.lanes(), 1);
    sftp.want_lanes(4);
    // What is under way meanwhile is answered as ever.
    let mut answered = 0;
    let deadline = Instant::now() + PATIENCE;
    while sftp.lanes() < 4 || answered < 50 {
        assert!(Instant::now() < deadline, "{} lanes", sftp.lanes());
        sftp.send(Request::Stat {
            path: path(&sshd, ""),
        });
        sftp.pump(Duration::from_secs(1), None).unwrap();
        while let Some((_, reply)) = sftp.reply() {
            assert!(matches!(reply, Reply::Attrs(_)), "{reply:?}");
            answered += 1;
        }
    }
    while sftp.outstanding() > 0 {
        sftp.pump(Duration::from_secs(1), None).unwrap();
        while sftp.reply().is_some() {}
    }
    // All four write into one file, each its part, again and again, more than the windows hold.
    fs::write(sshd.base().join("f"), "").unwrap();
    let handles = on_each(&mut sftp, |_| Request::Open {
        path: path(&sshd, "f"),
        mode: OpenMode::Update,
        attrs: Attrs::default(),
    });
    let handles: Vec<_> = handles
        .into_iter()
        .map(|reply| match reply {
            Reply::Handle(handle) => handle,
            other => panic!("{other:?}"),
        })
        .collect();
    const PART: usize = 4 << 20;
    const PIECE: usize = 32 << 10;
    for at in (0..PART).step_by(PIECE) {
        for (lane, handle) in handles.iter().enumerate() {
            let data = vec![b'a' + lane as u8; PIECE];
            sftp.send_on(
                lane,
                Request::Write {
                    handle: handle.clone(),
                    offset: (lane * PART + at) as u64,
                    data,
                },
            );
        }
    }
    assert_eq!(sftp.unacknowledged_on(3), PART);
    let deadline = Instant::now() + PATIENCE;
    while sftp.outstanding() > 0 {
        assert!(Instant::now() < deadline, "no replies");
        sftp.pump(Duration::from_secs(1), None).unwrap();
        while let Some((_, reply)) = sftp.reply() {
            assert_eq!(reply, Reply::Ok);
        }
    }
    assert_eq!(sftp.unacknowledged_bytes(), 0);
    let there = fs::read(sshd.base().join("f")).unwrap();
    assert_eq!(there.len(), 4 * PART);
    for lane in 0..4 {
        let part = &there[lane * PART..(lane + 1) * PART];
        assert!(part.iter().all(|b| *b == b'a' + lane as u8), "{lane}");
    }
}

#[test]
fn a_server_that_refuses_further_channels_is_served_with_those_it_gives() {
    for sessions in [1, 2] {
        let sshd = Sshd::builder()
            .line(&format!("MaxSessions {sessions}"))
            .start();
        let mut sftp = session(&sshd.target());
        wait_for_lanes(&mut sftp, sessions);
        sftp.want_lanes(4);
        // Long enough for every refusal to have come.
        for _ in 0..50 {
            let missing = on_each(&mut sftp, |_| Request::Lstat {
                path: path(&sshd, "missing"),
            });
            assert_eq!(missing.len(), sessions);
            for reply in missing {
                assert!(matches!(reply, Reply::Status(s) if s.code == code::NO_SUCH_FILE));
            }
        }
        let refused = "no more sessions";
        assert_eq!(sshd.log().matches(refused).count(), 1, "{}", sshd.log());
    }
}

#[test]
fn a_long_line_has_its_lanes_early_and_a_short_one_has_none_to_spare() {
    const RTT: Duration = Duration::from_millis(100);
    let sshd = Sshd::start();
    let start = Start {
        first: &[],
        far_lanes: 3,
        rate: None,
    };
    let (near, _) = connect_asking(&sshd.target(), &Abort::new(), &start).unwrap();
    if near.round_trip() < Duration::from_millis(5) {
        assert_eq!(near.lanes(), 1);
    }
    let relay = Relay::start(sshd.port(), RTT);
    let mut target = sshd.target();
    target.port = relay.port();
    let (mut far, _) = connect_asking(&target, &Abort::new(), &start).unwrap();
    assert!(far.round_trip() >= RTT);
    // While the first started SFTP the others were asked for.
    wait_for_lanes(&mut far, 3);
    let replies = on_each(&mut far, |_| Request::Stat {
        path: path(&sshd, ""),
    });
    assert!(replies.iter().all(|r| matches!(r, Reply::Attrs(_))));
}
