//! Whether a server is the one that it should be: host keys and known_hosts files (sshd(8), section
//! SSH_KNOWN_HOSTS FILE FORMAT).
//!
//! The danger: a mistake here hands the tree, and write access for what is served from it, to
//! whoever answers at the address; a mistake to the other side stops a mirror for nothing. So nothing
//! is ever learnt by itself, a revoked key loses against any number of good lines, and a line that
//! is broken, or of a kind that we do not know, says nothing but does not hide the lines behind it.
//!
//! libssh2's own matcher knows no wildcards, no negation, no markers, and stops at a bad line;
//! therefore this one. Only the HMAC of hashed names is borrowed from it (see [`HashedName`]).

use super::base64;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Tells whether a hashed name of a line (`|1|salt|hash`) is the hash of a host's name.
pub type HashedName<'a> = &'a dyn Fn(&str, &str) -> bool;

/// A server's public host key.
#[derive(Clone, PartialEq, Eq)]
pub struct HostKey {
    blob: Box<[u8]>,
    sha256: Box<[u8; 32]>,
}

impl HostKey {
    /// `blob` is the key as it is on the wire (RFC 4253, section 6.6), `sha256` its hash.
    pub fn new(blob: Vec<u8>, sha256: [u8; 32]) -> HostKey {
        HostKey {
            blob: blob.into(),
            sha256: Box::new(sha256),
        }
    }

    /// The key as it is on the wire.
    pub fn blob(&self) -> &[u8] {
        &self.blob
    }

    /// The key's type: `ssh-ed25519`, `ssh-rsa`, ...
    pub fn kind(&self) -> &str {
        kind_of(&self.blob).unwrap_or("unknown")
    }

    /// As ssh-keygen shows it: `SHA256:` and the hash in base64.
    pub fn fingerprint(&self) -> String {
        format!("SHA256:{}", base64::encode_bare(&*self.sha256))
    }

    /// The line for a known_hosts file, without line end.
    pub fn line(&self, host: &str, port: u16) -> String {
        let name = host_name(host, port);
        format!("{name} {} {}", self.kind(), base64::encode(&self.blob))
    }
}

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind(), self.fingerprint())
    }
}

/// A host's name as known_hosts files have it: in brackets with its port, unless that is 22.
pub fn host_name(host: &str, port: u16) -> String {
    let host = host.to_lowercase();
    match port {
        22 => host,
        _ => format!("[{host}]:{port}"),
    }
}

/// Where a line stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// In which file.
    pub file: PathBuf,
    /// In which line of it, from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// What the known_hosts files say of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is the host's.
    Known,
    /// They do not tell of the host.
    Unknown,
    /// The host is to have another one, says this line.
    Changed(Place),
    /// It is not to be trusted any more, says this line.
    Revoked(Place),
}

/// A known_hosts file that is there and cannot be read: it could hold a revocation.
#[derive(Debug)]
pub struct Unreadable {
    /// Which.
    pub file: PathBuf,
    /// Why.
    pub cause: io::Error,
}

/// The lines of known_hosts files that concern one host.
#[derive(Debug, Default)]
pub struct KnownHosts {
    lines: Vec<Line>,
}

#[derive(Debug)]
struct Line {
    place: Place,
    revoked: bool,
    /// It names the host, but without the port where the port is not 22: it can vouch for a key, as
    /// with ssh, but not speak against one.
    portless: bool,
    blob: Vec<u8>,
}

impl KnownHosts {
    /// Reads the files. One that does not exist is empty.
    ///
    /// # Errors
    /// A file is there and cannot be read.
    pub fn read(
        files: &[PathBuf],
        host: &str,
        port: u16,
        hashed: HashedName<'_>,
    ) -> Result<KnownHosts, Unreadable> {
        let mut known = KnownHosts::default();
        for file in files {
            match std::fs::read(file) {
                Ok(text) => known.add(file, &text, host, port, hashed),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(cause) => {
                    let file = file.clone();
                    return Err(Unreadable { file, cause });
                }
            }
        }
        Ok(known)
    }

    fn add(&mut self, file: &Path, text: &[u8], host: &str, port: u16, hashed: HashedName<'_>) {
        let name = host_name(host, port);
        let bare = host_name(host, 22);
        for (i, line) in text.split(|b| *b == b'\n').enumerate() {
            let Some(parsed) = std::str::from_utf8(line).ok().and_then(parse) else {
                continue;
            };
            let exact = names_match(parsed.names, &name, hashed);
            if exact || names_match(parsed.names, &bare, hashed) {
                self.lines.push(Line {
                    place: Place {
                        file: file.to_path_buf(),
                        line: i + 1,
                    },
                    revoked: parsed.revoked,
                    portless: !exact,
                    blob: parsed.blob,
                });
            }
        }
    }

    /// The types of the keys that the host is known with.
    pub fn kinds(&self) -> Vec<&str> {
        let mut kinds = Vec::new();
        for line in self.lines.iter().filter(|l| !l.revoked) {
            if let Some(kind) = kind_of(&line.blob)
                && !kinds.contains(&kind)
            {
                kinds.push(kind);
            }
        }
        kinds
    }

    /// Judges the key that the host showed.
    ///
    /// A host that is known with keys of other types only has changed as well: it is asked for a
    /// known type first, so it would have shown that one if it had it.
    pub fn judge(&self, blob: &[u8]) -> Verdict {
        let same = |l: &&Line| l.blob == blob;
        if let Some(line) = self.lines.iter().filter(|l| l.revoked).find(same) {
            return Verdict::Revoked(line.place.clone());
        }
        let mut good = self.lines.iter().filter(|l| !l.revoked);
        if good.clone().any(|l| l.blob == blob) {
            return Verdict::Known;
        }
        match good.find(|l| !l.portless) {
            Some(line) => Verdict::Changed(line.place.clone()),
            None => Verdict::Unknown,
        }
    }
}

struct Parsed<'a> {
    revoked: bool,
    names: &'a str,
    blob: Vec<u8>,
}

/// None: a comment, a certificate authority, another thing that we do not know, or a broken line.
fn parse(line: &str) -> Option<Parsed<'_>> {
    let mut fields = line.split_ascii_whitespace();
    let mut names = fields.next()?;
    let revoked = names == "@revoked";
    if revoked {
        names = fields.next()?;
    }
    if names.starts_with('#') || names.starts_with('@') {
        return None;
    }
    let kind = fields.next()?;
    let blob = base64::decode(fields.next()?.as_bytes())?;
    (kind_of(&blob) == Some(kind)).then_some(Parsed {
        revoked,
        names,
        blob,
    })
}

/// The type of a public key: the first string in it.
fn kind_of(blob: &[u8]) -> Option<&str> {
    let (len, rest) = blob.split_first_chunk::<4>()?;
    let kind = rest.get(..u32::from_be_bytes(*len) as usize)?;
    let kind = std::str::from_utf8(kind).ok()?;
    kind.bytes().all(|b| b.is_ascii_graphic()).then_some(kind)
}

/// Whether `name` (in lower case) is meant by the names of a line.
fn names_match(names: &str, name: &str, hashed: HashedName<'_>) -> bool {
    if names.starts_with('|') {
        return hashed(names, name);
    }
    let mut found = false;
    for pattern in names.split(',') {
        match pattern.strip_prefix('!') {
            Some(not) if glob(not, name) => return false,
            Some(_) => {}
            None => found |= glob(pattern, name),
        }
    }
    found
}

/// `*` is any number of characters, `?` is one; upper and lower case are the same. Takes time
/// pattern x name at most, whatever the pattern.
fn glob(pattern: &str, name: &str) -> bool {
    let pattern = pattern.to_lowercase();
    let (p, n) = (pattern.as_bytes(), name.as_bytes());
    let (mut i, mut j) = (0, 0);
    // Where to take up again when a try fails: behind the last `*`, with one character more for it.
    let mut star: Option<(usize, usize)> = None;
    while j < n.len() {
        if i < p.len() && p[i] == b'*' {
            star = Some((i + 1, j));
            i += 1;
        } else if i < p.len() && (p[i] == b'?' || p[i] == n[j]) {
            i += 1;
            j += 1;
        } else if let Some((behind, at)) = star {
            star = Some((behind, at + 1));
            i = behind;
            j = at + 1;
        } else {
            return false;
        }
    }
    p[i..].iter().all(|b| *b == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(kind: &str, body: u8) -> Vec<u8> {
        let mut blob = (kind.len() as u32).to_be_bytes().to_vec();
        blob.extend_from_slice(kind.as_bytes());
        blob.extend_from_slice(&[body; 32]);
        blob
    }

    fn text(kind: &str, body: u8) -> String {
        format!("{kind} {}", base64::encode(&key(kind, body)))
    }

    fn read(text: &str, host: &str, port: u16) -> KnownHosts {
        let mut known = KnownHosts::default();
        let hashed = |line: &str, name: &str| line == format!("|1|{name}");
        known.add(Path::new("file"), text.as_bytes(), host, port, &hashed);
        known
    }

    fn judge(text: &str, host: &str, port: u16, blob: &[u8]) -> Verdict {
        read(text, host, port).judge(blob)
    }

    fn line(line: usize) -> Place {
        Place {
            file: "file".into(),
            line,
        }
    }

    #[test]
    fn names_match_as_ssh_matches_them() {
        let good = key("ssh-ed25519", 1);
        let key = text("ssh-ed25519", 1);
        for (names, host, port, known) in [
            ("example.org", "example.org", 22, true),
            ("example.org", "EXAMPLE.org", 22, true),
            ("Example.ORG", "example.org", 22, true),
            ("example.org", "example.com", 22, false),
            ("a,example.org,b", "example.org", 22, true),
            ("*.example.org", "www.example.org", 22, true),
            ("*.example.org", "example.org", 22, false),
            (
                "*.example.org,!www.example.org",
                "www.example.org",
                22,
                false,
            ),
            (
                "!www.example.org,*.example.org",
                "www.example.org",
                22,
                false,
            ),
            ("!www.example.org", "ftp.example.org", 22, false),
            ("192.0.2.?", "192.0.2.7", 22, true),
            ("192.0.2.?", "192.0.2.77", 22, false),
            ("[example.org]:2222", "example.org", 2222, true),
            ("[example.org]:2222", "example.org", 2223, false),
            ("[example.org]:2222", "example.org", 22, false),
            ("[*.org]:2222", "example.org", 2222, true),
            ("example.org", "example.org", 2222, true),
            ("::1", "::1", 22, true),
            ("[::1]:2222", "::1", 2222, true),
            ("|1|example.org", "example.org", 22, true),
            ("|1|[example.org]:2222", "example.org", 2222, true),
            ("|1|other", "example.org", 22, false),
            ("*", "example.org", 22, true),
            ("*a*b*c", "xxaxxbxxc", 22, true),
            ("*a*b*c", "xxaxxcxxb", 22, false),
        ] {
            let verdict = judge(&format!("{names} {key}"), host, port, &good);
            assert_eq!(
                verdict == Verdict::Known,
                known,
                "{names} for {host}:{port}"
            );
        }
    }

    #[test]
    fn another_key_under_the_hosts_name_is_a_changed_one() {
        let file = format!("other {0}\nhost {0}\n", text("ssh-ed25519", 1));
        let wrong = key("ssh-ed25519", 2);
        assert_eq!(judge(&file, "host", 22, &wrong), Verdict::Changed(line(2)));
        let wrong = key("ssh-rsa", 1);
        assert_eq!(judge(&file, "host", 22, &wrong), Verdict::Changed(line(2)));
        assert_eq!(judge(&file, "third", 22, &wrong), Verdict::Unknown);
    }

    #[test]
    fn any_of_several_keys_will_do() {
        let file = format!(
            "host {}\nhost {}\nhost {}\n",
            text("ssh-ed25519", 1),
            text("ssh-rsa", 1),
            text("ssh-rsa", 2)
        );
        assert_eq!(judge(&file, "host", 22, &key("ssh-rsa", 2)), Verdict::Known);
        assert_eq!(read(&file, "host", 22).kinds(), ["ssh-ed25519", "ssh-rsa"]);
    }

    #[test]
    fn a_line_without_the_port_vouches_but_does_not_speak_against() {
        let file = format!("host {}\n", text("ssh-ed25519", 1));
        let verdict = |body| judge(&file, "host", 2222, &key("ssh-ed25519", body));
        assert_eq!(verdict(1), Verdict::Known);
        assert_eq!(verdict(2), Verdict::Unknown);
    }

    #[test]
    fn a_revoked_key_is_refused_wherever_it_stands() {
        let key1 = text("ssh-ed25519", 1);
        for (file, at) in [
            (format!("host {key1}\n@revoked * {key1}\n"), 2),
            (format!("@revoked host {key1}\nhost {key1}\n"), 1),
        ] {
            let verdict = judge(&file, "host", 22, &key("ssh-ed25519", 1));
            assert_eq!(verdict, Verdict::Revoked(line(at)));
        }
        let file = format!("@revoked host {key1}\nhost {}\n", text("ssh-ed25519", 2));
        assert_eq!(
            judge(&file, "host", 22, &key("ssh-ed25519", 2)),
            Verdict::Known
        );
        let only = format!("@revoked host {key1}\n");
        assert_eq!(
            judge(&only, "host", 22, &key("ssh-ed25519", 2)),
            Verdict::Unknown
        );
    }

    #[test]
    fn bad_and_foreign_lines_do_not_lose_the_rest() {
        let good = text("ssh-ed25519", 1);
        let file = format!(
            "# comment\n\n   \nhost\nhost ssh-ed25519\nhost ssh-ed25519 !!!!\nhost ssh-rsa {}\n\
             host 1024 35 1234567890\n@cert-authority host {}\n@future host {}\n\u{1}\u{2}\n\
             host {good} a comment with spaces\r\n",
            base64::encode(&key("ssh-ed25519", 9)),
            text("ssh-ed25519", 3),
            text("ssh-ed25519", 4),
        );
        let mut bytes = b"\xff\xfe host junk\n".to_vec();
        bytes.extend_from_slice(file.as_bytes());
        let mut known = KnownHosts::default();
        known.add(Path::new("file"), &bytes, "host", 22, &|_, _| false);
        assert_eq!(known.lines.len(), 1);
        assert_eq!(known.judge(&key("ssh-ed25519", 1)), Verdict::Known);
        assert!(matches!(
            known.judge(&key("ssh-ed25519", 3)),
            Verdict::Changed(_)
        ));
    }

    #[test]
    fn a_missing_file_is_empty_and_an_unreadable_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        let read = |file: &Path| KnownHosts::read(&[file.into()], "host", 22, &|_, _| false);
        assert_eq!(read(&missing).unwrap().judge(b""), Verdict::Unknown);
        assert_eq!(read(dir.path()).unwrap_err().file, dir.path());
    }

    #[test]
    fn the_line_for_a_new_host_is_found_again() {
        let host_key = HostKey::new(key("ssh-ed25519", 1), [0; 32]);
        for port in [22, 2222] {
            let line = host_key.line("Example.org", port);
            let verdict = judge(&line, "example.org", port, host_key.blob());
            assert_eq!(verdict, Verdict::Known);
        }
        assert_eq!(host_key.fingerprint(), format!("SHA256:{}", "A".repeat(43)));
    }
}
