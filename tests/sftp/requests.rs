//! What is asked of a server, and how many questions are on the way at once.

use super::{PATIENCE, ask, ask_all, path, session};
use crate::support::relay::Relay;
use crate::support::sshd::Sshd;
use proxyfs::sftp::session::SftpSession;
use proxyfs::sftp::{Attrs, Handle, OpenMode, Remote, Reply, Request, Ticket, code};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

fn open(sftp: &mut SftpSession, path: Vec<u8>, mode: OpenMode) -> Handle {
    let attrs = Attrs::default();
    match ask(sftp, Request::Open { path, mode, attrs }) {
        Reply::Handle(handle) => handle,
        other => panic!("{other:?}"),
    }
}

fn attrs_of(reply: Reply) -> Attrs {
    match reply {
        Reply::Attrs(attrs) => attrs,
        other => panic!("{other:?}"),
    }
}

fn code_of(reply: Reply) -> u32 {
    match reply {
        Reply::Status(status) => status.code,
        other => panic!("{other:?}"),
    }
}

fn pattern(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Every request once, on a server in good order.
fn every_request(sshd: &Sshd) {
    let mut sftp = session(&sshd.target());
    let s = &mut sftp;
    let at = |name: &str| path(sshd, name);
    let local = |name: &str| sshd.base().join(name);
    let mode = |mode| Attrs {
        mode: Some(mode),
        ..Attrs::default()
    };

    let attrs = mode(0o750);
    let made = ask(
        s,
        Request::Mkdir {
            path: at("d"),
            attrs,
        },
    );
    assert_eq!(made, Reply::Ok);
    assert!(local("d").is_dir());

    let file = open(s, at("d/f"), OpenMode::CreateNew);
    let again = Request::Open {
        path: at("d/f"),
        mode: OpenMode::CreateNew,
        attrs,
    };
    assert_eq!(code_of(ask(s, again)), code::FAILURE);
    let write = Request::Write {
        handle: file.clone(),
        offset: 3,
        data: b"hello".to_vec(),
    };
    assert_eq!(ask(s, write), Reply::Ok);
    let times = Attrs {
        size: Some(7),
        mode: Some(0o640),
        times: Some((1_000_000_000, 4_000_000_000)),
        owner: None,
    };
    let set = Request::Fsetstat {
        handle: file.clone(),
        attrs: times,
    };
    assert_eq!(ask(s, set), Reply::Ok);
    let told = attrs_of(ask(
        s,
        Request::Fstat {
            handle: file.clone(),
        },
    ));
    assert_eq!((told.size, told.times), (Some(7), times.times));
    let synced = ask(
        s,
        Request::Fsync {
            handle: file.clone(),
        },
    );
    assert_eq!(synced, Reply::Ok);
    assert_eq!(
        ask(
            s,
            Request::Close {
                handle: file.clone()
            }
        ),
        Reply::Ok
    );
    assert_eq!(
        code_of(ask(s, Request::Close { handle: file })),
        code::NO_SUCH_FILE
    );
    assert_eq!(fs::read(local("d/f")).unwrap(), b"\0\0\0hell");
    let meta = fs::metadata(local("d/f")).unwrap();
    assert_eq!((meta.mtime(), meta.mode() & 0o7777), (4_000_000_000, 0o640));

    let file = open(s, at("d/f"), OpenMode::Update);
    assert_eq!(ask(s, Request::Close { handle: file }), Reply::Ok);
    assert_eq!(fs::metadata(local("d/f")).unwrap().len(), 7);

    let file = open(s, at("d/f"), OpenMode::Read);
    let read = |offset, len| Request::Read {
        handle: file.clone(),
        offset,
        len,
    };
    assert_eq!(ask(s, read(3, 100)), Reply::Data(b"hell".to_vec()));
    assert_eq!(code_of(ask(s, read(7, 100))), code::EOF);
    assert_eq!(ask(s, Request::Close { handle: file }), Reply::Ok);

    let (target, link) = (b"f".to_vec(), at("d/l"));
    assert_eq!(ask(s, Request::Symlink { target, link }), Reply::Ok);
    assert_eq!(fs::read_link(local("d/l")).unwrap().as_os_str(), "f");
    match ask(s, Request::Readlink { path: at("d/l") }) {
        Reply::Names(names) => assert_eq!(names[0].name, b"f"),
        other => panic!("{other:?}"),
    }
    let link_mode = attrs_of(ask(s, Request::Lstat { path: at("d/l") })).mode;
    assert_eq!(link_mode.unwrap() & libc::S_IFMT, libc::S_IFLNK);
    let file_mode = attrs_of(ask(s, Request::Stat { path: at("d/l") })).mode;
    assert_eq!(file_mode.unwrap() & libc::S_IFMT, libc::S_IFREG);
    let attrs = Attrs {
        times: Some((5, 6)),
        ..Attrs::default()
    };
    let set = Request::Lsetstat {
        path: at("d/l"),
        attrs,
    };
    assert_eq!(ask(s, set), Reply::Ok);
    assert_eq!(fs::symlink_metadata(local("d/l")).unwrap().mtime(), 6);
    assert_eq!(fs::metadata(local("d/l")).unwrap().mtime(), 4_000_000_000);
    let set = Request::Setstat {
        path: at("d/f"),
        attrs: mode(0o600),
    };
    assert_eq!(ask(s, set), Reply::Ok);
    assert_eq!(fs::metadata(local("d/f")).unwrap().mode() & 0o7777, 0o600);

    let (from, to) = (at("d/f"), at("d/g"));
    assert_eq!(ask(s, Request::Hardlink { from, to }), Reply::Ok);
    assert_eq!(fs::metadata(local("d/g")).unwrap().nlink(), 2);
    let (from, to) = (at("d/g"), at("d/l"));
    let refused = ask(
        s,
        Request::Rename {
            from: from.clone(),
            to: to.clone(),
        },
    );
    assert_eq!(code_of(refused), code::FAILURE, "RENAME does not replace");
    assert_eq!(ask(s, Request::PosixRename { from, to }), Reply::Ok);
    assert!(local("d/l").is_file() && !local("d/g").exists());
    let (from, to) = (at("d/f"), at("d/h"));
    assert_eq!(ask(s, Request::Rename { from, to }), Reply::Ok);

    let Reply::Handle(dir) = ask(s, Request::Opendir { path: at("d") }) else {
        panic!("no handle");
    };
    let mut names = Vec::new();
    loop {
        match ask(
            s,
            Request::Readdir {
                handle: dir.clone(),
            },
        ) {
            Reply::Names(more) => names.extend(more.into_iter().map(|n| n.name)),
            Reply::Status(status) => break assert_eq!(status.code, code::EOF),
            other => panic!("{other:?}"),
        }
    }
    names.sort();
    assert_eq!(names, [&b"."[..], b"..", b"h", b"l"]);
    assert_eq!(ask(s, Request::Close { handle: dir }), Reply::Ok);

    match ask(
        s,
        Request::Realpath {
            path: at("d/../d/."),
        },
    ) {
        Reply::Names(names) => assert_eq!(names[0].name, at("d")),
        other => panic!("{other:?}"),
    }
    let full = ask(s, Request::Rmdir { path: at("d") });
    assert_eq!(code_of(full), code::FAILURE);
    for name in ["d/h", "d/l"] {
        assert_eq!(ask(s, Request::Remove { path: at(name) }), Reply::Ok);
    }
    assert_eq!(ask(s, Request::Rmdir { path: at("d") }), Reply::Ok);
    let gone = ask(s, Request::Remove { path: at("d/h") });
    assert_eq!(code_of(gone), code::NO_SUCH_FILE);
    assert_eq!(fs::read_dir(sshd.base()).unwrap().count(), 0);
}

#[test]
fn every_request_does_its_work_as_root() {
    every_request(&Sshd::start());
}

#[test]
fn every_request_does_its_work_as_an_ordinary_user() {
    let sshd = Sshd::builder().ordinary_user().start();
    every_request(&sshd);
    fs::set_permissions(sshd.base(), fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::chown(sshd.base(), Some(0), Some(0)).unwrap();
    let attrs = Attrs::default();
    let path = path(&sshd, "x");
    let denied = ask(&mut session(&sshd.target()), Request::Mkdir { path, attrs });
    assert_eq!(code_of(denied), code::PERMISSION_DENIED);
}

#[test]
fn openssh_tells_its_features_and_limits() {
    let sshd = Sshd::start();
    let sftp = session(&sshd.target());
    let f = sftp.features();
    assert!(f.posix_rename && f.hardlink && f.fsync && f.lsetstat && f.statvfs && f.openssh);
    assert!(
        f.max_write >= 32 * 1024 && f.max_write <= 255 * 1024,
        "{f:?}"
    );
    assert!(f.max_read >= 32 * 1024 && f.max_read <= 255 * 1024, "{f:?}");
    assert!(f.max_handles.unwrap() > 10, "{f:?}");
    assert!(sftp.server().starts_with("SSH-2.0-OpenSSH_"));
}

#[test]
fn a_request_that_no_packet_holds_is_answered_here_and_harms_nobody() {
    let sshd = Sshd::start();
    let mut sftp = session(&sshd.target());
    let long = vec![b'a'; 300 * 1024];
    let dot = path(&sshd, "");
    let replies = ask_all(
        &mut sftp,
        vec![
            Request::Stat { path: dot.clone() },
            Request::Stat { path: long },
            Request::Stat { path: dot },
        ],
    );
    assert!(matches!(replies[0], Reply::Attrs(_)));
    assert_eq!(code_of(replies[1].clone()), code::BAD_MESSAGE);
    assert!(matches!(replies[2], Reply::Attrs(_)));
}

/// What is counted is rounds: one ends when all is answered that was on the way when it began. So
/// rounds are round trips, whatever time they take.
#[test]
fn a_thousand_files_need_far_fewer_than_a_thousand_round_trips() {
    const FILES: usize = 1000;
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), Duration::from_millis(50));
    let mut target = sshd.target();
    target.port = relay.port();
    let mut sftp = session(&target);
    let handles = sftp.features().max_handles.unwrap_or(64) as usize;
    let window = (handles / 2).min(256);
    let (mut opening, mut closing) = (HashMap::new(), HashSet::new());
    let (mut next, mut closed, mut most) = (0, 0, 0);
    let (mut rounds, mut last_of_round, mut latest) = (0, Ticket::default(), Ticket::default());
    let deadline = Instant::now() + PATIENCE;
    while closed < FILES {
        assert!(Instant::now() < deadline);
        while next < FILES && next - closed < window {
            latest = sftp.send(Request::Open {
                path: path(&sshd, &format!("f{next}")),
                mode: OpenMode::Create,
                attrs: Attrs::default(),
            });
            opening.insert(latest, next);
            next += 1;
        }
        most = most.max(sftp.outstanding());
        sftp.pump(Duration::from_secs(1), None).unwrap();
        while let Some((ticket, reply)) = sftp.reply() {
            if ticket >= last_of_round {
                rounds += 1;
                last_of_round = latest;
            }
            match reply {
                Reply::Handle(handle) => {
                    let data = pattern(100, opening[&ticket] as u32);
                    sftp.send(Request::Write {
                        handle: handle.clone(),
                        offset: 0,
                        data,
                    });
                    latest = sftp.send(Request::Close { handle });
                    closing.insert(latest);
                }
                Reply::Ok => closed += usize::from(closing.remove(&ticket)),
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(most >= window, "only {most} requests were in flight");
    assert!(rounds < 100, "{rounds} rounds");
    assert_eq!((sftp.outstanding(), sftp.unacknowledged_bytes()), (0, 0));
    for n in [0, 1, 499, 999] {
        let there = fs::read(sshd.base().join(format!("f{n}"))).unwrap();
        assert_eq!(there, pattern(100, n as u32));
    }
    assert_eq!(fs::read_dir(sshd.base()).unwrap().count(), FILES);
}

/// Uploads `data` with up to 8 MiB on the way, and reads it back.
fn there_and_back(sftp: &mut SftpSession, at: Vec<u8>, data: &[u8], piece: usize) -> Vec<u8> {
    const WINDOW: usize = 8 * 1024 * 1024;
    let handle = open(sftp, at.clone(), OpenMode::Create);
    let deadline = Instant::now() + PATIENCE * 2;
    let mut sent = 0;
    let before = sftp.traffic();
    while sent < data.len() || sftp.outstanding() > 0 {
        assert!(Instant::now() < deadline);
        while sent < data.len() && sftp.unacknowledged_bytes() < WINDOW {
            let end = data.len().min(sent + piece);
            sftp.send(Request::Write {
                handle: handle.clone(),
                offset: sent as u64,
                data: data[sent..end].to_vec(),
            });
            sent = end;
        }
        sftp.pump(Duration::from_secs(1), None).unwrap();
        while let Some((_, reply)) = sftp.reply() {
            assert_eq!(reply, Reply::Ok);
        }
    }
    let up = sftp.traffic().0 - before.0;
    assert!(up > data.len() as u64 && up < data.len() as u64 * 102 / 100);
    assert_eq!(ask(sftp, Request::Close { handle }), Reply::Ok);

    let handle = open(sftp, at, OpenMode::Read);
    let mut back = vec![0; data.len()];
    let (mut asked, mut asking) = (0, HashMap::new());
    while asked < data.len() || !asking.is_empty() {
        assert!(Instant::now() < deadline);
        while asked < data.len() && asking.len() < 100 {
            let len = piece.min(data.len() - asked);
            let ticket = sftp.send(Request::Read {
                handle: handle.clone(),
                offset: asked as u64,
                len: len as u32,
            });
            asking.insert(ticket, (asked, len));
            asked += len;
        }
        sftp.pump(Duration::from_secs(1), None).unwrap();
        while let Some((ticket, reply)) = sftp.reply() {
            let (from, len) = asking.remove(&ticket).unwrap();
            match reply {
                Reply::Data(data) if data.len() == len => {
                    back[from..from + len].copy_from_slice(&data);
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(ask(sftp, Request::Close { handle }), Reply::Ok);
    back
}

#[test]
fn a_big_file_arrives_whole_and_comes_back_whole() {
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), Duration::from_millis(20));
    let mut target = sshd.target();
    target.port = relay.port();
    for (name, piece, compression) in [
        ("small pieces", 32 * 1024, false),
        ("large pieces", 255 * 1024, false),
        ("compressed", 32 * 1024, true),
    ] {
        target.compression = compression;
        let mut sftp = session(&target);
        let mut data = pattern(20_000_001, 7);
        data[5_000_000..9_000_000].fill(0);
        let back = there_and_back(&mut sftp, path(&sshd, name), &data, piece);
        assert!(back == data, "{name}: what came back differs");
        let there = fs::read(sshd.base().join(name)).unwrap();
        assert!(there == data, "{name}: what is there differs");
    }
    let sent = relay.bytes_up();
    assert!(sent < 58_000_000, "{sent} bytes: nothing was compressed");
    assert!(sent > 40_000_000);
}

/// What the table of settings says of `compression`.
#[test]
fn compressed_text_is_sent_as_about_60_percent_of_it() {
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), Duration::ZERO);
    let mut target = sshd.target();
    target.port = relay.port();
    target.compression = true;
    let text = include_bytes!("../../README.md").repeat(20);
    there_and_back(&mut session(&target), path(&sshd, "text"), &text, 32 * 1024);
    let percent = relay.bytes_up() * 100 / text.len() as u64;
    assert!((50..70).contains(&percent), "{percent}%");
}

/// sshd asks for new keys every 2 MiB here, in the middle of requests of both directions.
#[test]
fn new_session_keys_in_the_middle_do_no_harm() {
    let sshd = Sshd::builder().line("RekeyLimit 2M").start();
    let mut sftp = session(&sshd.target());
    let data = pattern(20_000_001, 9);
    let back = there_and_back(&mut sftp, path(&sshd, "f"), &data, 32 * 1024);
    assert!(back == data);
    assert!(fs::read(sshd.base().join("f")).unwrap() == data);
}
