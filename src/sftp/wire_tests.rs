//! Tests of [`super`]: a small server's half of the protocol on the other side.

use super::*;
use proptest::prelude::*;

const EXPECTS: [Expect; 6] = [
    Expect::Status,
    Expect::Handle,
    Expect::Data(1000),
    Expect::Attrs,
    Expect::Names,
    Expect::OneName,
];

fn packet(kind: u8, id: u32, fill: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut out = Vec::new();
    let mut w = Writer(&mut out);
    w.head(kind, id);
    fill(&mut w);
    out
}

/// What a server makes of a request's packet: the reverse of `encode`.
fn decode_request(packet: &[u8]) -> Result<(u32, Request), Malformed> {
    let mut r = Reader(packet);
    let kind = r.u8("type")?;
    let id = r.u32("id")?;
    fn path(r: &mut Reader) -> Result<Vec<u8>, Malformed> {
        Ok(r.bytes("path")?.to_vec())
    }
    fn handle(r: &mut Reader) -> Result<Handle, Malformed> {
        Ok(Handle(r.bytes("handle")?.into()))
    }
    let r = &mut r;
    let request = match kind {
        kind::OPEN => {
            let path = path(r)?;
            let mode = match r.u32("flags")? {
                0x01 => OpenMode::Read,
                0x02 => OpenMode::Update,
                0x1a => OpenMode::Create,
                0x2a => OpenMode::CreateNew,
                other => panic!("flags {other:#x}"),
            };
            let attrs = r.attrs()?;
            Request::Open { path, mode, attrs }
        }
        kind::CLOSE => Request::Close { handle: handle(r)? },
        kind::READ => Request::Read {
            handle: handle(r)?,
            offset: r.u64("offset")?,
            len: r.u32("len")?,
        },
        kind::WRITE => Request::Write {
            handle: handle(r)?,
            offset: r.u64("offset")?,
            data: r.bytes("data")?.to_vec(),
        },
        kind::LSTAT => Request::Lstat { path: path(r)? },
        kind::STAT => Request::Stat { path: path(r)? },
        kind::FSTAT => Request::Fstat { handle: handle(r)? },
        kind::SETSTAT => Request::Setstat {
            path: path(r)?,
            attrs: r.attrs()?,
        },
        kind::FSETSTAT => Request::Fsetstat {
            handle: handle(r)?,
            attrs: r.attrs()?,
        },
        kind::OPENDIR => Request::Opendir { path: path(r)? },
        kind::READDIR => Request::Readdir { handle: handle(r)? },
        kind::REMOVE => Request::Remove { path: path(r)? },
        kind::MKDIR => Request::Mkdir {
            path: path(r)?,
            attrs: r.attrs()?,
        },
        kind::RMDIR => Request::Rmdir { path: path(r)? },
        kind::REALPATH => Request::Realpath { path: path(r)? },
        kind::READLINK => Request::Readlink { path: path(r)? },
        kind::SYMLINK => Request::Symlink {
            target: path(r)?,
            link: path(r)?,
        },
        kind::RENAME => Request::Rename {
            from: path(r)?,
            to: path(r)?,
        },
        kind::EXTENDED => match r.bytes("extension")? {
            b"posix-rename@openssh.com" => Request::PosixRename {
                from: path(r)?,
                to: path(r)?,
            },
            b"hardlink@openssh.com" => Request::Hardlink {
                from: path(r)?,
                to: path(r)?,
            },
            b"fsync@openssh.com" => Request::Fsync { handle: handle(r)? },
            b"lsetstat@openssh.com" => Request::Lsetstat {
                path: path(r)?,
                attrs: r.attrs()?,
            },
            b"statvfs@openssh.com" => Request::Statvfs { path: path(r)? },
            other => panic!("extension {other:?}"),
        },
        other => panic!("type {other}"),
    };
    assert!(r.0.is_empty(), "bytes are left over");
    Ok((id, request))
}

fn encode_reply(id: u32, reply: &Reply) -> Vec<u8> {
    match reply {
        Reply::Ok => packet(kind::STATUS, id, |w| {
            w.u32(0).bytes(b"Success").bytes(b"en");
        }),
        Reply::Status(status) => packet(kind::STATUS, id, |w| {
            w.u32(status.code)
                .bytes(status.message.as_bytes())
                .bytes(b"");
        }),
        Reply::Handle(handle) => packet(kind::HANDLE, id, |w| {
            w.bytes(&handle.0);
        }),
        Reply::Data(data) => packet(kind::DATA, id, |w| {
            w.bytes(data);
        }),
        Reply::Names(names) => packet(kind::NAME, id, |w| {
            w.u32(names.len() as u32);
            for name in names {
                let links = name.links.map_or("long".to_string(), |n| n.to_string());
                let long = format!("-rw-r--r--    {links} user form");
                w.bytes(&name.name).bytes(long.as_bytes());
                w.attrs(&name.attrs);
            }
        }),
        Reply::Attrs(attrs) => packet(kind::ATTRS, id, |w| {
            w.attrs(attrs);
        }),
    }
}

fn any_path() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..100)
}

fn any_handle() -> impl Strategy<Value = Handle> {
    prop::collection::vec(any::<u8>(), 0..=MAX_HANDLE).prop_map(|b| Handle(b.into()))
}

fn any_attrs() -> impl Strategy<Value = Attrs> {
    any::<(
        Option<u64>,
        Option<(u32, u32)>,
        Option<u32>,
        Option<(u32, u32)>,
    )>()
    .prop_map(|(size, owner, mode, times)| Attrs {
        size,
        owner,
        mode,
        times,
    })
}

fn any_request() -> impl Strategy<Value = Request> {
    let mode = prop_oneof![
        Just(OpenMode::Read),
        Just(OpenMode::Update),
        Just(OpenMode::Create),
        Just(OpenMode::CreateNew)
    ];
    let parts = (any_path(), any_path(), any_handle(), any_attrs(), mode);
    (0..22u8, parts, any::<(u64, u32)>()).prop_map(
        |(which, (path, to, handle, attrs, mode), (offset, len))| {
            let from = path.clone();
            match which {
                0 => Request::Open { path, mode, attrs },
                1 => Request::Close { handle },
                2 => Request::Read {
                    handle,
                    offset,
                    len,
                },
                3 => Request::Write {
                    handle,
                    offset,
                    data: path,
                },
                4 => Request::Lstat { path },
                5 => Request::Stat { path },
                6 => Request::Fstat { handle },
                7 => Request::Setstat { path, attrs },
                8 => Request::Fsetstat { handle, attrs },
                9 => Request::Opendir { path },
                10 => Request::Readdir { handle },
                11 => Request::Remove { path },
                12 => Request::Mkdir { path, attrs },
                13 => Request::Rmdir { path },
                14 => Request::Realpath { path },
                15 => Request::Readlink { path },
                16 => Request::Symlink {
                    target: path,
                    link: to,
                },
                17 => Request::Rename { from, to },
                18 => Request::PosixRename { from, to },
                19 => Request::Hardlink { from, to },
                20 => Request::Fsync { handle },
                21 => Request::Statvfs { path },
                _ => Request::Lsetstat { path, attrs },
            }
        },
    )
}

fn any_reply() -> impl Strategy<Value = (Expect, Reply)> {
    let name = (any_path(), any_attrs(), any::<Option<u32>>())
        .prop_map(|(name, attrs, links)| Name { name, attrs, links });
    let status = (1u32..40, "[a-zäöü ]{0,200}");
    prop_oneof![
        Just((Expect::Status, Reply::Ok)),
        status.prop_map(|(code, message)| {
            (Expect::Handle, Reply::Status(Status { code, message }))
        }),
        any_handle().prop_map(|h| (Expect::Handle, Reply::Handle(h))),
        prop::collection::vec(any::<u8>(), 1..1000)
            .prop_map(|d| (Expect::Data(1000), Reply::Data(d))),
        prop::collection::vec(name, 1..20).prop_map(|n| (Expect::Names, Reply::Names(n))),
        any_attrs().prop_map(|a| (Expect::Attrs, Reply::Attrs(a))),
    ]
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 100u8..106) {
        let _ = frame(&bytes);
        let _ = reply_id(&bytes);
        let _ = decode_limits(&bytes);
        let _ = Version::decode(&bytes);
        let mut typed = vec![kind];
        typed.extend_from_slice(&bytes);
        for expect in EXPECTS {
            let _ = decode(&bytes, expect);
            let _ = decode(&typed, expect);
        }
    }

    #[test]
    fn a_server_reads_the_request_that_was_written(id: u32, request in any_request()) {
        let mut out = b"before".to_vec();
        encode(id, &request, &mut out).unwrap();
        let bytes = &out[6..];
        prop_assert_eq!(frame(bytes), Ok(Some(bytes.len())));
        prop_assert_eq!(decode_request(&bytes[4..]), Ok((id, request)));
    }

    #[test]
    fn a_reply_is_read_as_it_was_written((expect, reply) in any_reply(), id: u32) {
        let bytes = encode_reply(id, &reply);
        prop_assert_eq!(reply_id(&bytes), Ok(id));
        prop_assert_eq!(decode(&bytes, expect), Ok(reply));
    }

    /// STATUS alone may be cut short: behind its code (old servers), and within its language tag.
    #[test]
    fn a_reply_that_is_cut_anywhere_is_malformed((expect, reply) in any_reply(), at in any::<prop::sample::Index>()) {
        let bytes = encode_reply(7, &reply);
        let cut = &bytes[..at.index(bytes.len())];
        if !matches!(reply, Reply::Ok | Reply::Status(_)) {
            prop_assert!(matches!(decode(cut, expect), Err(Malformed::Short(_) | Malformed::Count(_))));
        }
    }
}

#[test]
fn a_reply_of_the_wrong_type_is_malformed() {
    let replies = [
        encode_reply(1, &Reply::Handle(Handle(b"h"[..].into()))),
        encode_reply(1, &Reply::Data(b"d".to_vec())),
        encode_reply(1, &Reply::Attrs(Attrs::default())),
        encode_reply(
            1,
            &Reply::Names(vec![Name {
                name: b"n".to_vec(),
                attrs: Attrs::default(),
                links: None,
            }]),
        ),
    ];
    let own = [
        &[Expect::Handle][..],
        &[Expect::Data(1000)],
        &[Expect::Attrs],
        &[Expect::Names, Expect::OneName],
    ];
    for (reply, own) in replies.iter().zip(own) {
        for expect in EXPECTS {
            let fits = own.contains(&expect);
            let decoded = decode(reply, expect);
            assert_eq!(decoded.is_ok(), fits, "{reply:?} as {expect:?}");
            if !fits {
                assert!(matches!(decoded, Err(Malformed::Type { .. })));
            }
        }
    }
    for expect in EXPECTS {
        let ok = decode(&encode_reply(1, &Reply::Ok), expect);
        assert_eq!(ok.is_ok(), expect == Expect::Status);
    }
}

#[test]
fn a_count_that_the_packet_cannot_hold_is_refused_before_anything_is_allocated() {
    let lie = packet(kind::NAME, 1, |w| {
        w.u32(u32::MAX);
    });
    assert_eq!(decode(&lie, Expect::Names), Err(Malformed::Count(u32::MAX)));
    let lie = packet(kind::ATTRS, 1, |w| {
        w.u32(attr_flag::EXTENDED).u32(u32::MAX);
    });
    assert_eq!(
        decode(&lie, Expect::Attrs),
        Err(Malformed::Short("attributes"))
    );
}

#[test]
fn lengths_out_of_bounds_are_told_from_the_first_four_bytes() {
    assert_eq!(frame(&[0, 0, 0]), Ok(None));
    assert_eq!(frame(&[0, 0, 0, 0]), Err(Malformed::Length([0; 4])));
    assert_eq!(frame(&[0, 4, 0, 0]), Ok(None));
    assert_eq!(frame(&[0, 4, 0, 1]), Err(Malformed::Length([0, 4, 0, 1])));
    assert_eq!(frame(&[0, 0, 0, 1, 9, 0]), Ok(Some(5)));
    let text = frame(b"This account is not available").unwrap_err();
    assert!(text.to_string().contains("\"This\""), "{text}");
}

#[test]
fn more_data_than_was_asked_for_is_malformed_and_none_is_the_end_of_the_file() {
    let data = encode_reply(1, &Reply::Data(vec![0; 11]));
    assert_eq!(
        decode(&data, Expect::Data(10)),
        Err(Malformed::TooMuchData {
            asked: 10,
            came: 11
        })
    );
    let none = encode_reply(1, &Reply::Data(Vec::new()));
    let eof = Reply::Status(end_of_file());
    assert_eq!(decode(&none, Expect::Data(10)), Ok(eof.clone()));
    let none = encode_reply(1, &Reply::Names(Vec::new()));
    assert_eq!(decode(&none, Expect::Names), Ok(eof));
    assert_eq!(decode(&none, Expect::OneName), Err(Malformed::Count(0)));
}

#[test]
fn handles_and_messages_are_bounded() {
    let long = encode_reply(1, &Reply::Handle(Handle(vec![0; 257].into())));
    assert_eq!(
        decode(&long, Expect::Handle),
        Err(Malformed::HandleLength(257))
    );
    let message = format!("a\x1b[31m{}", "ü".repeat(5000));
    let status = encode_reply(1, &Reply::Status(Status { code: 4, message }));
    let Ok(Reply::Status(status)) = decode(&status, Expect::Status) else {
        panic!("no status");
    };
    assert_eq!(status.message.chars().count(), MAX_MESSAGE);
    assert!(status.message.starts_with("a\u{fffd}[31mü"));
}

#[test]
fn a_status_without_a_message_is_taken() {
    let bare = packet(kind::STATUS, 1, |w| {
        w.u32(4);
    });
    let Ok(Reply::Status(status)) = decode(&bare, Expect::Status) else {
        panic!("no status");
    };
    assert_eq!((status.code, status.message.as_str()), (4, ""));
}

#[test]
fn a_request_that_no_packet_holds_is_refused_and_leaves_nothing_behind() {
    let mut out = b"before".to_vec();
    let path = vec![b'a'; MAX_PACKET];
    assert_eq!(encode(1, &Request::Stat { path }, &mut out), Err(TooLong));
    assert_eq!(out, b"before");
    let handle = Handle(vec![0; 256].into());
    let data = vec![0; MAX_DATA as usize];
    let write = Request::Write {
        handle,
        offset: 0,
        data,
    };
    assert_eq!(encode(1, &write, &mut out), Ok(()));
}

#[test]
fn version_and_limits_are_read() {
    let mut bytes = vec![kind::VERSION, 0, 0, 0, 3];
    let mut w = Writer(&mut bytes);
    w.bytes(b"posix-rename@openssh.com").bytes(b"1");
    w.bytes(b"statvfs@openssh.com").bytes(b"1");
    let version = Version::decode(&bytes).unwrap();
    assert_eq!(version.version, 3);
    assert!(version.offers(extension::POSIX_RENAME));
    assert!(
        !version.offers(extension::STATVFS),
        "only version 2 is known"
    );
    assert!(!version.offers(extension::HARDLINK));
    bytes.pop();
    assert_eq!(Version::decode(&bytes), Err(Malformed::Short("extension")));

    let mut init = Vec::new();
    encode_init(&mut init);
    assert_eq!(init, [0, 0, 0, 5, 1, 0, 0, 0, 3]);

    let mut question = Vec::new();
    encode_limits(9, &mut question);
    assert_eq!(frame(&question), Ok(Some(question.len())));
    let mut r = Reader(&question[4..]);
    assert_eq!(r.u8(""), Ok(kind::EXTENDED));
    assert_eq!(r.u32(""), Ok(9));
    assert_eq!(r.bytes(""), Ok(&b"limits@openssh.com"[..]));
    assert!(r.0.is_empty());

    let answer = packet(kind::EXTENDED_REPLY, 9, |w| {
        w.u64(1).u64(2).u64(3).u64(4);
    });
    let limits = Limits {
        packet: 1,
        read: 2,
        write: 3,
        handles: 4,
    };
    assert_eq!(decode_limits(&answer), Ok(Some(limits)));
    assert_eq!(
        decode_limits(&answer[..20]),
        Err(Malformed::Short("limits"))
    );
}

#[test]
fn free_space_is_read_and_a_short_answer_is_none() {
    let numbers: [u64; 11] = [4096, 512, 1000, 400, 300, 50, 20, 10, 7, 1, 255];
    let data = numbers.map(u64::to_be_bytes).concat();
    let mut packet_of = packet(kind::EXTENDED_REPLY, 9, |_| {});
    packet_of.extend_from_slice(&data);
    let reply = decode(&packet_of, Expect::Space).unwrap();
    assert_eq!(reply, Reply::Data(data.clone()));
    let space = Space::read(&data).unwrap();
    assert_eq!((space.free, space.all), (300 * 512, 1000 * 512));
    assert_eq!((space.files_free, space.read_only), (Some(10), true));
    assert_eq!(Space::read(&data[..60]), None);
}
