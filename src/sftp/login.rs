//! With what to log in: key files and ssh-agent, and what a person has to repair about a key file.
//!
//! The danger: libssh2 says "unable to extract public key" to a wrong passphrase, a public key, a
//! PuTTY key and an empty file alike. So a key file is looked at before it is used, and each of
//! these gets its own words. A private key that others can read is refused, as ssh does.

use super::base64;
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A text that is not shown: not by `Debug`, not in a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps `text`; a line end behind it, as files have it, is no part of it.
    pub fn new(text: &str) -> Secret {
        Secret(text.trim_end_matches(['\r', '\n']).to_string())
    }

    /// The text itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(...)")
    }
}

/// How to log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// With private keys from files (OpenSSH's and PEM's formats; Ed25519, ECDSA, RSA), one after
    /// the other.
    Keys {
        /// The files.
        files: Vec<PathBuf>,
        /// What those are encrypted with that are.
        passphrase: Option<Secret>,
    },
    /// With the keys that an ssh-agent holds, one after the other.
    Agent {
        /// Its socket; none: what `SSH_AUTH_SOCK` says.
        socket: Option<PathBuf>,
    },
}

/// What is wrong with a key file. A person has to repair it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyProblem {
    /// It is not there.
    Missing,
    /// It cannot be read; the text is the system's reason.
    Unreadable(String),
    /// Others than its owner may read or write it; these are its permission bits.
    TooOpen(u32),
    /// It is encrypted and there is no passphrase.
    PassphraseMissing,
    /// It is encrypted and the passphrase does not open it.
    PassphraseWrong,
    /// It holds a public key.
    Public,
    /// It is PuTTY's.
    Putty,
    /// Its key is of a type that we cannot use.
    UnsupportedType(String),
    /// It is no private key, or a broken one; the text is libssh2's reason.
    Unusable(String),
}

impl KeyProblem {
    /// One line: what it is and what to do.
    pub(super) fn tell(&self, path: &Path, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = path.display();
        match self {
            KeyProblem::Missing => write!(
                f,
                "the key file {path} does not exist: make one with \"ssh-keygen -t ed25519 -f {path}\", or correct the setting key"
            ),
            KeyProblem::Unreadable(why) => write!(
                f,
                "the key file {path} cannot be read ({why}): check its owner and permissions"
            ),
            KeyProblem::TooOpen(mode) => write!(
                f,
                "the key file {path} has permissions {mode:04o}, so that others can read it: \"chmod 600 {path}\""
            ),
            KeyProblem::PassphraseMissing => write!(
                f,
                "the key file {path} is encrypted: give its passphrase, use ssh-agent, or remove the passphrase with \"ssh-keygen -p -f {path}\""
            ),
            KeyProblem::PassphraseWrong => {
                write!(
                    f,
                    "the passphrase does not open the key file {path}: correct it"
                )
            }
            KeyProblem::Public => write!(
                f,
                "{path} is a public key: give the private one, which is usually called the same without .pub"
            ),
            KeyProblem::Putty => write!(
                f,
                "the key file {path} is in PuTTY's format: convert it with \"puttygen {path} -O private-openssh -o NEW\""
            ),
            KeyProblem::UnsupportedType(kind) => write!(
                f,
                "the key file {path} holds a key of type {kind}, which cannot be used: make one with \"ssh-keygen -t ed25519\""
            ),
            KeyProblem::Unusable(why) => write!(
                f,
                "the key file {path} cannot be used ({why}): check that it is a whole private key"
            ),
        }
    }
}

/// A private key file that was read and looked at.
pub(super) struct KeyFile {
    pub(super) path: PathBuf,
    pub(super) text: Secret,
    pub(super) encrypted: bool,
}

impl KeyFile {
    /// Reads the file and refuses what cannot work.
    pub(super) fn read(path: &Path, passphrase: Option<&Secret>) -> Result<KeyFile, KeyProblem> {
        let unreadable = |e: io::Error| match e.kind() {
            io::ErrorKind::NotFound => KeyProblem::Missing,
            _ => KeyProblem::Unreadable(e.to_string()),
        };
        let mode = std::fs::metadata(path).map_err(unreadable)?.mode() & 0o7777;
        let bytes = std::fs::read(path).map_err(unreadable)?;
        let Ok(text) = String::from_utf8(bytes) else {
            return Err(KeyProblem::Unusable("it is not text".to_string()));
        };
        let encrypted = inspect(&text)?;
        if mode & 0o077 != 0 {
            return Err(KeyProblem::TooOpen(mode));
        }
        if encrypted && passphrase.is_none_or(|p| p.reveal().is_empty()) {
            return Err(KeyProblem::PassphraseMissing);
        }
        Ok(KeyFile {
            path: path.to_path_buf(),
            text: Secret(text),
            encrypted,
        })
    }
}

/// Whether the private key in `text` is encrypted.
fn inspect(text: &str) -> Result<bool, KeyProblem> {
    let first = text.trim_start().lines().next().unwrap_or("").trim_end();
    match first {
        "-----BEGIN OPENSSH PRIVATE KEY-----" => inspect_openssh(text),
        "-----BEGIN ENCRYPTED PRIVATE KEY-----" => Ok(true),
        "-----BEGIN PRIVATE KEY-----" => Ok(false),
        "-----BEGIN RSA PRIVATE KEY-----" | "-----BEGIN EC PRIVATE KEY-----" => Ok(text
            .lines()
            .any(|l| l.starts_with("Proc-Type: 4,ENCRYPTED"))),
        "-----BEGIN DSA PRIVATE KEY-----" => Err(KeyProblem::UnsupportedType("DSA".to_string())),
        _ if first.starts_with("PuTTY-User-Key-File-") => Err(KeyProblem::Putty),
        _ if first.starts_with("ssh-")
            || first.starts_with("ecdsa-")
            || first.starts_with("sk-")
            || first.contains("PUBLIC KEY-----") =>
        {
            Err(KeyProblem::Public)
        }
        _ => Err(KeyProblem::Unusable("it is no private key".to_string())),
    }
}

/// OpenSSH's PROTOCOL.key: magic, cipher, key derivation and its options, number of keys, the public
/// key.
fn inspect_openssh(text: &str) -> Result<bool, KeyProblem> {
    let broken = || KeyProblem::Unusable("it is broken".to_string());
    let body: String = text
        .trim()
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with("-----"))
        .collect();
    let bytes = base64::decode(body.as_bytes()).ok_or_else(broken)?;
    let mut rest = bytes.strip_prefix(b"openssh-key-v1\0").ok_or_else(broken)?;
    let cipher = string(&mut rest).ok_or_else(broken)?;
    string(&mut rest).ok_or_else(broken)?;
    string(&mut rest).ok_or_else(broken)?;
    rest = rest.get(4..).ok_or_else(broken)?;
    let mut public = string(&mut rest).ok_or_else(broken)?;
    let kind = string(&mut public).ok_or_else(broken)?;
    match kind {
        b"ssh-ed25519"
        | b"ssh-rsa"
        | b"ecdsa-sha2-nistp256"
        | b"ecdsa-sha2-nistp384"
        | b"ecdsa-sha2-nistp521" => Ok(cipher != b"none"),
        other => Err(KeyProblem::UnsupportedType(
            String::from_utf8_lossy(other).escape_debug().to_string(),
        )),
    }
}

fn string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, behind) = rest.split_first_chunk::<4>()?;
    let (head, behind) = behind.split_at_checked(u32::from_be_bytes(*len) as usize)?;
    *rest = behind;
    Some(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn openssh(cipher: &str, kind: &str) -> String {
        let mut bytes = b"openssh-key-v1\0".to_vec();
        let mut put = |s: &[u8]| {
            bytes.extend_from_slice(&(s.len() as u32).to_be_bytes());
            bytes.extend_from_slice(s);
        };
        put(cipher.as_bytes());
        put(b"kdf");
        put(b"options");
        bytes.extend_from_slice(&1u32.to_be_bytes());
        let mut public = (kind.len() as u32).to_be_bytes().to_vec();
        public.extend_from_slice(kind.as_bytes());
        bytes.extend_from_slice(&(public.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&public);
        format!(
            "-----BEGIN OPENSSH PRIVATE KEY-----\n{}\n-----END OPENSSH PRIVATE KEY-----\n",
            base64::encode(&bytes)
        )
    }

    #[test]
    fn a_key_file_is_told_by_what_is_in_it() {
        assert_eq!(inspect(&openssh("none", "ssh-ed25519")), Ok(false));
        assert_eq!(inspect(&openssh("aes256-ctr", "ssh-rsa")), Ok(true));
        let sk = "sk-ssh-ed25519@openssh.com";
        assert_eq!(
            inspect(&openssh("none", sk)),
            Err(KeyProblem::UnsupportedType(sk.to_string()))
        );
        assert_eq!(inspect("ssh-ed25519 AAAA me@here"), Err(KeyProblem::Public));
        assert_eq!(
            inspect("PuTTY-User-Key-File-3: ssh-ed25519"),
            Err(KeyProblem::Putty)
        );
        for broken in [
            "",
            "hello",
            "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----",
            "-----BEGIN OPENSSH PRIVATE KEY-----",
        ] {
            assert!(matches!(inspect(broken), Err(KeyProblem::Unusable(_))));
        }
        let encrypted = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n";
        assert_eq!(inspect(encrypted), Ok(true));
    }

    #[test]
    fn a_secret_is_not_shown() {
        let secret = Secret::new("open sesame\r\n");
        assert_eq!(secret.reveal(), "open sesame");
        assert!(!format!("{secret:?}").contains("sesame"));
    }
}
