//! `bandwidth_limit`: so many bytes a second and no more, over all lanes of a mirror, and changed while it works.
#![allow(clippy::unwrap_used)]

use super::support::daemon::{Daemon, PATIENCE};
use super::support::relay::Relay;
use super::support::sshd::Sshd;
use super::support::tree::assert_same;
use proxyfs::sftp::session::{Abort, Start, connect_asking};
use proxyfs::sftp::{Attrs, OpenMode, Remote, Reply, Request};
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;

#[test]
fn all_lanes_together_keep_to_the_rate() {
    const LANES: usize = 3;
    let sshd = Sshd::start();
    let start = Start {
        first: &[],
        far_lanes: 1,
        rate: Some(Arc::new(|| Some(MIB as u64))),
    };
    let (mut sftp, _) = connect_asking(&sshd.target(), &Abort::new(), &start).unwrap();
    sftp.want_lanes(LANES);
    let deadline = Instant::now() + PATIENCE;
    while sftp.lanes() < LANES {
        assert!(Instant::now() < deadline);
        sftp.pump(Duration::from_secs(1), None).unwrap();
    }
    for lane in 0..LANES {
        let path = sshd.base().join(format!("f{lane}"));
        let open = Request::Open {
            path: path.into_os_string().into_encoded_bytes(),
            mode: OpenMode::Create,
            attrs: Attrs::default(),
        };
        sftp.send_on(lane, open);
    }
    let mut handles = Vec::new();
    while handles.len() < LANES {
        assert!(Instant::now() < deadline);
        sftp.pump(Duration::from_secs(1), None).unwrap();
        while let Some((ticket, reply)) = sftp.reply() {
            let Reply::Handle(handle) = reply else {
                panic!("{reply:?}");
            };
            handles.push((usize::from(ticket.lane), handle));
        }
    }
    let begun = Instant::now();
    let before = sftp.traffic().0;
    for (lane, handle) in &handles {
        for n in 0..32 {
            let write = Request::Write {
                handle: handle.clone(),
                offset: n * 32 * 1024,
                data: vec![7; 32 * 1024],
            };
            sftp.send_on(*lane, write);
        }
    }
    let mut half = None;
    while sftp.outstanding() > 0 {
        assert!(Instant::now() < deadline, "no replies");
        sftp.pump(Duration::from_secs(1), None).unwrap();
        while sftp.reply().is_some() {}
        let sent = (sftp.traffic().0 - before) as usize;
        if half.is_none() && sent >= LANES * MIB / 2 {
            half = Some(begun.elapsed());
        }
    }
    // 3 MiB: 3 s. Late is the machine's fault, early is ours.
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(2700), "{took:?}");
    assert!(half.unwrap() > Duration::from_millis(1300), "{half:?}");
    for lane in 0..LANES {
        let there = fs::read(sshd.base().join(format!("f{lane}"))).unwrap();
        assert_eq!(there, vec![7; MIB]);
    }
}

#[test]
fn a_reload_changes_the_limit_of_a_file_that_is_on_its_way_on_the_same_connection() {
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), Duration::ZERO);
    let mut daemon = Daemon::new();
    daemon.add_mirror_at("m", &sshd, relay.port(), "bandwidth_limit = 200k");
    daemon.start();
    daemon.wait_for_mirror("m", |m| m["state"] == "synced");
    let (before, begun) = (relay.bytes_up(), Instant::now());
    fs::write(daemon.source().join("film"), vec![7; 8 * MIB]).unwrap();
    std::thread::sleep(Duration::from_secs(2)); // this is what is measured
    let sent = (relay.bytes_up() - before) as f64;
    let rate = sent / begun.elapsed().as_secs_f64() / 1024.0;
    // A tenth of a second's worth may have been saved up, and a packet is finished that was begun.
    assert!((20.0..240.0).contains(&rate), "{rate} KiB a second");
    let limit = daemon.ini_mut();
    *limit = limit.replace("limit = 200k", "limit = 0:00 off, 12:00 off");
    daemon.write_ini();
    assert_eq!(daemon.ok(&["reload"]), "mirror m has another limit\n");
    let reloaded = Instant::now();
    daemon.wait();
    // At 200k it would be 35 s more.
    assert!(reloaded.elapsed() < Duration::from_secs(25));
    assert_eq!(relay.connections(), 1);
    assert_same(&daemon.source(), &sshd.base());
    assert_eq!(daemon.ok(&["reload"]), "no mirror changed\n");
}
