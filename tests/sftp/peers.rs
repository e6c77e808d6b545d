//! Peers that are away, silent, slow to die, or speak something else.

use super::{PATIENCE, ask, path, refusal, session};
use crate::support::relay::{Port, Relay};
use crate::support::sshd::Sshd;
use proxyfs::sftp::session::{Abort, ConnectError, Target, connect};
use proxyfs::sftp::{Attrs, OpenMode, Remote, Reply, Request, SessionError};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const ZERO: Duration = Duration::ZERO;

fn via(sshd: &Sshd, relay: &Relay) -> Target {
    let mut target = sshd.target();
    target.port = relay.port();
    target
}

/// Pumps until the session ends.
fn end_of(sftp: &mut dyn Remote) -> SessionError {
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "the session does not end");
        if let Err(e) = sftp.pump(Duration::from_secs(1), None) {
            assert_eq!(sftp.pump(ZERO, None), Err(e.clone()), "it stays dead");
            return e;
        }
        while sftp.reply().is_some() {}
    }
}

fn stat(sshd: &Sshd) -> Request {
    Request::Stat {
        path: path(sshd, ""),
    }
}

#[test]
fn a_closed_port_is_refused_and_tried_again() {
    let mut sshd = Sshd::start();
    sshd.stop();
    let e = refusal(&sshd.target());
    assert!(matches!(e, ConnectError::Refused { .. }), "{e}");
    assert!(e.is_connection());
    sshd.restart();
    session(&sshd.target());
}

#[test]
fn a_name_that_does_not_exist_is_a_matter_of_the_connection() {
    let sshd = Sshd::start();
    let mut target = sshd.target();
    target.host = "no-such-host.invalid".to_string();
    let e = refusal(&target);
    assert!(matches!(e, ConnectError::NameNotResolved { .. }), "{e}");
    assert!(e.is_connection());
}

#[test]
fn a_name_is_resolved_and_each_of_its_addresses_is_tried() {
    let sshd = Sshd::start();
    let mut target = sshd.target();
    target.host = "localhost".to_string();
    let key = std::fs::read_to_string(sshd.known_hosts_path()).unwrap();
    let line = key.replace("127.0.0.1", "localhost");
    std::fs::write(sshd.known_hosts_path(), line).unwrap();
    session(&target);
}

#[test]
fn a_port_that_accepts_and_says_nothing_is_given_up_in_time() {
    let sshd = Sshd::start();
    let port = Port::reserve();
    let _listener = port.listen();
    let mut target = sshd.target();
    target.port = port.number();
    target.connect_timeout = Duration::from_millis(300);
    let start = Instant::now();
    let e = refusal(&target);
    assert!(matches!(e, ConnectError::TimedOut { .. }), "{e}");
    assert!(e.is_connection());
    assert!(start.elapsed() < PATIENCE);
}

#[test]
fn a_server_that_falls_silent_at_any_point_of_the_start_is_given_up_in_time() {
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), ZERO);
    let before = relay.bytes_down();
    drop(session(&via(&sshd, &relay)));
    let all = relay.bytes_down() - before;
    for part in [1, 3, 5, 7, 9] {
        let relay = Relay::start(sshd.port(), Duration::from_millis(10));
        let mut target = via(&sshd, &relay);
        target.connect_timeout = Duration::from_millis(2000);
        let e = std::thread::scope(|scope| {
            scope.spawn(|| {
                let deadline = Instant::now() + PATIENCE;
                while relay.bytes_down() < all * part / 10 && Instant::now() < deadline {
                    std::thread::yield_now();
                }
                relay.hold();
            });
            connect(&target, &Abort::new())
        });
        // It may have come through before it was held.
        if let Err(e) = e {
            assert!(e.is_connection(), "{e}");
        }
    }
}

#[test]
fn a_server_that_falls_silent_while_requests_are_on_the_way_times_out() {
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), ZERO);
    let mut target = via(&sshd, &relay);
    target.io_timeout = Duration::from_millis(500);
    let mut sftp = session(&target);
    assert!(matches!(ask(&mut sftp, stat(&sshd)), Reply::Attrs(_)));
    relay.hold();
    sftp.send(stat(&sshd));
    let start = Instant::now();
    let e = end_of(&mut sftp);
    assert_eq!(e, SessionError::TimedOut(target.io_timeout));
    assert!(start.elapsed() >= target.io_timeout);
}

#[test]
fn a_peer_that_dies_while_nothing_is_on_the_way_is_found() {
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), ZERO);
    let mut target = via(&sshd, &relay);
    target.io_timeout = Duration::from_millis(500);
    let mut sftp = session(&target);
    assert!(matches!(ask(&mut sftp, stat(&sshd)), Reply::Attrs(_)));
    // Alive and idle for longer than it takes to be asked for a sign of life: not an error, and the
    // owner does not see the answer.
    let before = sftp.traffic();
    let deadline = Instant::now() + PATIENCE;
    while sftp.traffic() == before {
        assert!(Instant::now() < deadline, "no sign of life was asked for");
        sftp.pump(Duration::from_millis(200), None).unwrap();
        assert_eq!((sftp.reply(), sftp.outstanding()), (None, 0));
    }
    relay.hold();
    assert_eq!(end_of(&mut sftp), SessionError::TimedOut(target.io_timeout));
}

/// What is asked for may wait behind 1 MiB on a line of 300 kB/s: longer than the time-out, but never
/// silently.
#[test]
fn a_slow_line_is_not_taken_for_a_dead_one() {
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), Duration::from_millis(20));
    let mut target = via(&sshd, &relay);
    target.io_timeout = Duration::from_millis(2500);
    let mut sftp = session(&target);
    let opened = ask(
        &mut sftp,
        Request::Open {
            path: path(&sshd, "f"),
            mode: OpenMode::Create,
            attrs: Attrs::default(),
        },
    );
    let Reply::Handle(handle) = opened else {
        panic!("{opened:?}");
    };
    relay.set_rate(300_000);
    let mut replies = 0;
    for n in 0..48 {
        sftp.send(Request::Write {
            handle: handle.clone(),
            offset: n * 32 * 1024,
            data: vec![n as u8; 32 * 1024],
        });
    }
    let start = Instant::now();
    while replies < 48 {
        assert!(start.elapsed() < PATIENCE);
        sftp.pump(Duration::from_secs(1), None).unwrap();
        while let Some((_, reply)) = sftp.reply() {
            assert_eq!(reply, Reply::Ok);
            replies += 1;
        }
    }
    assert!(start.elapsed() > target.io_timeout, "the line was not slow");
}

#[test]
fn a_cut_connection_is_lost_and_a_new_one_works() {
    let mut sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), ZERO);
    let target = via(&sshd, &relay);
    let mut sftp = session(&target);
    sftp.send(stat(&sshd));
    relay.cut();
    assert!(matches!(end_of(&mut sftp), SessionError::Lost(_)));

    let mut sftp = session(&target);
    sshd.kill();
    assert!(matches!(end_of(&mut sftp), SessionError::Lost(_)));
    sshd.restart();

    let mut sftp = session(&target);
    assert!(matches!(ask(&mut sftp, stat(&sshd)), Reply::Attrs(_)));
    relay.refuse(true);
    let e = refusal(&target);
    assert!(matches!(e, ConnectError::Refused { .. }), "{e}");
    relay.refuse(false);
    session(&target);
}

#[test]
fn dropping_a_session_with_a_dead_peer_does_not_wait_for_it() {
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), ZERO);
    let mut target = via(&sshd, &relay);
    target.io_timeout = PATIENCE * 2;
    target.connect_timeout = PATIENCE * 2;
    let mut sftp = session(&target);
    relay.hold();
    for _ in 0..1000 {
        sftp.send(stat(&sshd));
    }
    sftp.pump(Duration::from_millis(100), None).unwrap();
    let start = Instant::now();
    drop(sftp);
    assert!(start.elapsed() < PATIENCE);
}

#[test]
fn an_abort_ends_a_session_at_once() {
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), ZERO);
    let abort = Abort::new();
    let mut target = via(&sshd, &relay);
    target.io_timeout = PATIENCE * 2;
    let mut sftp = connect(&target, &abort).unwrap();
    relay.hold();
    sftp.send(stat(&sshd));
    sftp.pump(ZERO, None).unwrap();
    let other = abort.clone();
    let aborter = std::thread::spawn(move || other.abort());
    let start = Instant::now();
    let e = sftp.pump(PATIENCE * 2, None).unwrap_err();
    assert!(
        matches!(&e, SessionError::Lost(why) if why.contains("abort")),
        "{e}"
    );
    assert!(start.elapsed() < PATIENCE);
    aborter.join().unwrap();
    relay.resume();
    let e = connect(&target, &abort).unwrap_err();
    assert!(matches!(e, ConnectError::Aborted { .. }), "{e}");
}

/// In the wait for the greeting, in the handshake, and in the wait for the TCP connection.
#[test]
fn an_abort_ends_a_connect_at_once() {
    let sshd = Sshd::start();
    let silent = Port::reserve();
    let _silent_listener = silent.listen();
    let greeter = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let greeter_port = greeter.local_addr().unwrap().port();
    let greeter = std::thread::spawn(move || {
        let (mut peer, _) = greeter.accept().unwrap();
        peer.write_all(b"SSH-2.0-Silent\r\n").unwrap();
        // Until the client goes.
        let _ = std::io::copy(&mut peer, &mut std::io::sink());
    });
    let (full, full_port, _queue) = full_listener();
    for port in [silent.number(), greeter_port, full_port] {
        let mut target = sshd.target();
        target.port = port;
        target.connect_timeout = PATIENCE * 2;
        let abort = Abort::new();
        let other = abort.clone();
        let start = Instant::now();
        let e = std::thread::scope(|scope| {
            let connecting = scope.spawn(|| connect(&target, &abort).unwrap_err());
            // Whether it comes before, in or behind the wait: it has to end.
            std::thread::sleep(Duration::from_millis(200));
            other.abort();
            connecting.join().unwrap()
        });
        assert!(matches!(e, ConnectError::Aborted { .. }), "{e}");
        assert!(start.elapsed() < PATIENCE);
    }
    greeter.join().unwrap();
    drop(full);
}

/// A listener that takes no further connection: the kernel drops the SYNs.
fn full_listener() -> (std::os::fd::OwnedFd, u16, Vec<TcpStream>) {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    rustix::net::bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    rustix::net::listen(&socket, 0).unwrap();
    let name = rustix::net::getsockname(&socket).unwrap();
    let addr = SocketAddr::try_from(name).unwrap();
    let mut queue = Vec::new();
    while let Ok(one) = TcpStream::connect_timeout(&addr, Duration::from_millis(300)) {
        queue.push(one);
    }
    (socket, addr.port(), queue)
}

#[test]
fn an_address_that_does_not_answer_is_given_up_in_time() {
    let sshd = Sshd::start();
    let (_full, port, _queue) = full_listener();
    let mut target = sshd.target();
    target.port = port;
    target.connect_timeout = Duration::from_millis(300);
    let e = refusal(&target);
    assert!(
        matches!(
            e,
            ConnectError::TimedOut {
                step: "connecting",
                ..
            }
        ),
        "{e}"
    );
    assert!(e.is_connection());
}

#[test]
fn a_port_that_speaks_something_else_is_told() {
    let sshd = Sshd::start();
    for (greeting, connection) in [
        (&b"220 mail.example.org ESMTP\r\n"[..], false),
        (b"Not allowed at this time\r\n", true),
        (b"Exceeded MaxStartups\r\n", true),
        (b"SSH", true),
        (b"", true),
        (
            b"SSH-2.0-x\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            true,
        ),
    ] {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut target = sshd.target();
        target.port = listener.local_addr().unwrap().port();
        let e = std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut peer, _) = listener.accept().unwrap();
                peer.write_all(greeting).unwrap();
            });
            refusal(&target)
        });
        assert_eq!(e.is_connection(), connection, "{e}");
        assert_eq!(matches!(e, ConnectError::NotSsh { .. }), !connection);
        let turned_away = greeting.starts_with(b"Not allowed") || greeting.starts_with(b"Exceeded");
        assert_eq!(
            matches!(e, ConnectError::TurnedAway { .. }),
            turned_away,
            "{e}"
        );
    }
    // For ever something else.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut target = sshd.target();
    target.port = listener.local_addr().unwrap().port();
    let flood = std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        while peer.write_all(b"spam, spam, spam\n").is_ok() {}
    });
    let e = refusal(&target);
    assert!(matches!(e, ConnectError::NotSsh { .. }), "{e}");
    flood.join().unwrap();
}

/// Servers that begin well and then send this.
#[test]
fn a_server_that_speaks_garbage_ends_the_session_with_a_protocol_error() {
    // VERSION, and an answer to what is asked in the same breath: such a thing is unknown here.
    const GREETING: &str = r"printf '\0\0\0\005\002\0\0\0\003';
        printf '\0\0\0\021\145\0\0\0\0\0\0\0\010\0\0\0\0\0\0\0\0'; head -c 40 >/dev/null;";
    for (garbage, told) in [
        (r"printf 'Connection will be closed'", "text"),
        (r"printf '\177\377\377\377xxxx'", "announced"),
        (r"printf '\0\0\0\0'", "announced"),
        (r"printf '\0\0\0\002\145\0'", "ends within"),
        // STATUS OK, to id 77, which was never asked.
        (
            r"printf '\0\0\0\021\145\0\0\0\115\0\0\0\0\0\0\0\0\0\0\0\0'",
            "not under way",
        ),
        // The same to STAT: OK without attributes.
        (
            r"printf '\0\0\0\021\145\0\0\0\001\0\0\0\0\0\0\0\0\0\0\0\0'",
            "OK",
        ),
        // HANDLE.
        (r"printf '\0\0\0\011\146\0\0\0\001\0\0\0\0'", "type 102"),
        // A good answer, twice.
        (
            r"printf '\0\0\0\011\151\0\0\0\001\0\0\0\0\0\0\0\011\151\0\0\0\001\0\0\0\0'",
            "not under way",
        ),
    ] {
        let script = format!("{GREETING} head -c 20 >/dev/null; {garbage}; cat >/dev/null");
        let sshd = Sshd::builder().sftp_script(&script).start();
        let mut sftp = session(&sshd.target());
        sftp.send(Request::Stat {
            path: b"/some/path".to_vec(),
        });
        match end_of(&mut sftp) {
            SessionError::Protocol(what) => assert!(what.contains(told), "{garbage}: {what}"),
            other => panic!("{garbage}: {other}"),
        }
    }
}

#[test]
fn a_wake_up_ends_a_pump_and_a_timeout_does_too() {
    let sshd = Sshd::start();
    let mut sftp = session(&sshd.target());
    let (reader, mut writer) = std::io::pipe().unwrap();
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(50));
            writer.write_all(b"x").unwrap();
        });
        sftp.pump(PATIENCE * 2, Some(reader.as_fd())).unwrap();
    });
    assert!(start.elapsed() < PATIENCE);
    let start = Instant::now();
    sftp.pump(Duration::from_millis(50), None).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(50));
    // Requests are on their way also when it is called only to look.
    sftp.send(stat(&sshd));
    let deadline = Instant::now() + PATIENCE;
    while sftp.reply().is_none() {
        assert!(Instant::now() < deadline);
        sftp.pump(ZERO, Some(reader.as_fd())).unwrap();
    }
}

/// In a program of its own, where nobody else opens files or starts threads.
#[test]
fn fifty_reconnects_leave_no_descriptor_and_no_thread() {
    const VARIABLE: &str = "PROXYFS_TEST_ALONE";
    const NAME: &str = "sftp::peers::fifty_reconnects_leave_no_descriptor_and_no_thread";
    if std::env::var_os(VARIABLE).is_none() {
        let alone = Command::new(std::env::current_exe().unwrap())
            .args([NAME, "--exact", "--nocapture"])
            .env(VARIABLE, "1")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&alone.stdout);
        assert!(
            alone.status.success() && said.contains("1 passed"),
            "{alone:?}"
        );
        return;
    }
    let sshd = Sshd::start();
    let mut refused = sshd.target();
    refused.known_hosts.clear();
    let abort = Abort::new();
    let count = |dir: &str| std::fs::read_dir(dir).unwrap().count();
    let counts = || (count("/proc/self/fd"), count("/proc/self/task"));
    let round = || {
        let mut sftp = connect(&sshd.target(), &abort).unwrap();
        assert!(matches!(ask(&mut sftp, stat(&sshd)), Reply::Attrs(_)));
        sftp.send(stat(&sshd));
        sftp.pump(ZERO, None).unwrap();
        drop(sftp);
        connect(&refused, &abort).unwrap_err();
    };
    round();
    let before = counts();
    for _ in 0..50 {
        round();
    }
    assert_eq!(counts(), before);
}

/// The ground that other tests stand on.
#[test]
fn the_relay_delays_every_byte_and_loses_none() {
    const RTT: Duration = Duration::from_millis(100);
    let echo = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let relay = Relay::start(echo.local_addr().unwrap().port(), RTT);
    let echoing = std::thread::spawn(move || {
        let (peer, _) = echo.accept().unwrap();
        std::io::copy(&mut &peer, &mut &peer).unwrap();
    });
    let mut near = TcpStream::connect((Ipv4Addr::LOCALHOST, relay.port())).unwrap();
    for n in 0..5 {
        let start = Instant::now();
        near.write_all(&[n]).unwrap();
        let mut back = [0];
        near.read_exact(&mut back).unwrap();
        assert_eq!(back, [n]);
        assert!(start.elapsed() >= RTT);
    }
    let data: Vec<u8> = (0..20_000_000u32).map(|n| (n % 251) as u8).collect();
    let mut back = Vec::new();
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            (&near).write_all(&data).unwrap();
            near.shutdown(Shutdown::Write).unwrap();
        });
        (&near).read_to_end(&mut back).unwrap();
    });
    println!("20 MB there and back in {:?}", start.elapsed());
    assert!(back == data);
    let all = data.len() as u64 + 5;
    assert_eq!((relay.bytes_up(), relay.bytes_down()), (all, all));
    echoing.join().unwrap();
}
