//! Which algorithms a server offers: its KEXINIT (RFC 4253, section 7.1), which it sends in the clear.
//!
//! Only to explain a handshake that has failed. The danger is to make it worse: so it takes a bounded
//! time and a bounded number of bytes, trusts none of them, and says nothing where anything is odd.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// RFC 4253, section 6.1: every implementation must take packets of this size.
const MAX_PACKET: usize = 35_000;

/// Lines before the version, and the version.
const MAX_GREETING: usize = 8192;

const KEXINIT: u8 = 20;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Offers {
    pub(super) kex: Vec<String>,
    pub(super) host_keys: Vec<String>,
    pub(super) ciphers: Vec<String>,
}

impl Offers {
    /// None: it could not be learnt.
    pub(super) fn fetch(addr: SocketAddr, timeout: Duration) -> Option<Offers> {
        let deadline = Instant::now() + timeout;
        let mut peer = TcpStream::connect_timeout(&addr, timeout).ok()?;
        peer.set_write_timeout(Some(timeout)).ok()?;
        peer.write_all(b"SSH-2.0-proxyfs\r\n").ok()?;
        let mut bytes = Vec::new();
        let mut piece = [0; 4096];
        loop {
            if let Some(packet) = packet_behind_version(&bytes)? {
                return Offers::parse(packet);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            peer.set_read_timeout(Some(left.max(Duration::from_millis(1))))
                .ok()?;
            match peer.read(&mut piece).ok()? {
                0 => return None,
                n => bytes.extend_from_slice(&piece[..n]),
            }
        }
    }

    fn parse(packet: &[u8]) -> Option<Offers> {
        let (kind, rest) = packet.split_first()?;
        let (_cookie, mut rest) = rest.split_at_checked(16)?;
        let mut list = || {
            let (len, behind) = rest.split_first_chunk::<4>()?;
            let (names, behind) = behind.split_at_checked(u32::from_be_bytes(*len) as usize)?;
            rest = behind;
            let names = std::str::from_utf8(names).ok()?;
            let plain = names.bytes().all(|b| b.is_ascii_graphic());
            plain.then(|| names.split(',').map(str::to_string).collect())
        };
        let offers = Offers {
            kex: list()?,
            host_keys: list()?,
            ciphers: list()?,
        };
        (*kind == KEXINIT).then_some(offers)
    }
}

/// The payload of the first packet; the inner none: it is not all there yet; the outer: it never will.
fn packet_behind_version(bytes: &[u8]) -> Option<Option<&[u8]>> {
    let mut rest = bytes;
    loop {
        let Some(end) = rest.iter().position(|b| *b == b'\n') else {
            return (rest.len() <= MAX_GREETING && bytes.len() <= MAX_GREETING).then_some(None);
        };
        let line = &rest[..end];
        rest = &rest[end + 1..];
        if line.starts_with(b"SSH-") {
            break;
        }
    }
    let Some((head, body)) = rest.split_first_chunk::<5>() else {
        return Some(None);
    };
    let len = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let padding = usize::from(head[4]);
    // The length counts the byte that tells the padding, what is in the packet, and the padding.
    let inside = len.checked_sub(1 + padding)?;
    if len > MAX_PACKET {
        return None;
    }
    Some(body.get(..inside))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kexinit() -> Vec<u8> {
        let mut payload = vec![KEXINIT];
        payload.extend_from_slice(&[7; 16]);
        for names in ["a,b", "ssh-rsa", "c"] {
            payload.extend_from_slice(&(names.len() as u32).to_be_bytes());
            payload.extend_from_slice(names.as_bytes());
        }
        let mut bytes = b"hello\r\nSSH-2.0-test\r\n".to_vec();
        bytes.extend_from_slice(&(1 + payload.len() as u32 + 4).to_be_bytes());
        bytes.push(4);
        bytes.extend_from_slice(&payload);
        bytes.extend_from_slice(&[0; 4]);
        bytes
    }

    #[test]
    fn the_lists_are_found_behind_the_version() {
        let bytes = kexinit();
        let packet = packet_behind_version(&bytes).unwrap().unwrap();
        let offers = Offers::parse(packet).unwrap();
        assert_eq!(offers.kex, ["a", "b"]);
        assert_eq!(offers.host_keys, ["ssh-rsa"]);
        assert_eq!(offers.ciphers, ["c"]);
        for cut in 0..bytes.len() - 4 {
            assert_eq!(packet_behind_version(&bytes[..cut]), Some(None), "{cut}");
        }
        assert_eq!(packet_behind_version(&[b'x'; MAX_GREETING + 1]), None);
        assert_eq!(
            packet_behind_version(b"SSH-2.0-x\n\xff\xff\xff\xff\0"),
            None
        );
        assert_eq!(packet_behind_version(b"SSH-2.0-x\n\0\0\0\x01\x05"), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Offers::parse(&bytes);
            let mut greeted = b"SSH-2.0-x\n".to_vec();
            greeted.extend_from_slice(&bytes);
            let _ = packet_behind_version(&greeted);
        }
    }
}
