//! Where things are on a mirror: the tree, and ProxyFS's own directory in its root.

use super::resume::Staged;
use crate::change::{RelPath, Seq};

/// Name of ProxyFS's own directory, in the root of the source and of each mirror.
pub const PRIVATE_DIR: &str = ".proxyfs";

/// Where things are on a mirror.
#[derive(Clone, Debug)]
pub struct Place {
    base: Vec<u8>,
}

impl Place {
    /// `base` is the mirror's directory, absolute or relative to the login directory.
    pub fn new(base: &[u8]) -> Place {
        let end = base.iter().rposition(|b| *b != b'/').map_or(1, |i| i + 1);
        Place {
            base: base[..end.min(base.len())].to_vec(),
        }
    }

    /// The same by a way in of its own: see `fence.rs`.
    pub(super) fn by(&self, way: &str) -> Place {
        // With the dot it is a directory, not the link, for who does not follow links.
        Place {
            base: [&self.way(way.as_bytes())[..], b"/."].concat(),
        }
    }

    /// Where the link is that is such a way.
    pub(super) fn way(&self, name: &[u8]) -> Vec<u8> {
        self.below(&[PRIVATE_DIR.as_bytes(), b"/", name].concat())
    }

    /// The mirror's directory itself.
    pub fn base(&self) -> Vec<u8> {
        self.base.clone()
    }

    /// A path of the source, on the mirror.
    pub fn path(&self, path: &RelPath) -> Vec<u8> {
        if path.is_root() {
            self.base()
        } else {
            self.below(path.as_bytes())
        }
    }

    /// ProxyFS's own directory.
    pub fn private_dir(&self) -> Vec<u8> {
        self.below(PRIVATE_DIR.as_bytes())
    }

    /// Where files are made ready.
    pub fn stage_dir(&self) -> Vec<u8> {
        self.below(b".proxyfs/stage")
    }

    /// Where the file of one change is made ready.
    pub fn stage(&self, seq: Seq) -> Vec<u8> {
        self.below(format!(".proxyfs/stage/{seq}").as_bytes())
    }

    /// The same of a file whose version is told.
    pub fn staged(&self, staged: Staged) -> Vec<u8> {
        self.below(format!(".proxyfs/stage/{}", staged.name()).as_bytes())
    }

    /// The directory that tells how far an exchange is.
    pub fn exchange(&self, seq: Seq) -> Vec<u8> {
        self.below(format!(".proxyfs/exchange-{seq}").as_bytes())
    }

    /// The marker.
    pub fn position(&self) -> Vec<u8> {
        self.below(b".proxyfs/position")
    }

    /// Where a marker is made.
    pub fn new_position(&self) -> Vec<u8> {
        self.below(b".proxyfs/position.new")
    }

    /// A file that is written to see whether any can be.
    pub fn probe(&self) -> Vec<u8> {
        self.below(b".proxyfs/probe")
    }

    fn below(&self, rest: &[u8]) -> Vec<u8> {
        let mut path = self.base.clone();
        if path.last() != Some(&b'/') {
            path.push(b'/');
        }
        path.extend_from_slice(rest);
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(s: &str) -> RelPath {
        RelPath::new(s.as_bytes()).unwrap()
    }

    #[test]
    fn paths_on_the_mirror_start_at_its_base() {
        let place = Place::new(b"/srv/www/");
        assert_eq!(place.path(&path("a/b")), b"/srv/www/a/b");
        assert_eq!(place.path(&RelPath::root()), b"/srv/www");
        assert_eq!(Place::new(b"/").path(&path("a")), b"/a");
        let place = Place::new(b"www");
        assert_eq!(place.stage(7), b"www/.proxyfs/stage/7");
        let staged = Staged {
            seq: 7,
            version: Some(255),
        };
        assert_eq!(place.staged(staged), b"www/.proxyfs/stage/7-0000000000ff");
        let way = Place::new(b"/").by("way-1");
        assert_eq!(way.path(&RelPath::root()), b"/.proxyfs/way-1/.");
        assert_eq!(way.path(&path("a")), b"/.proxyfs/way-1/./a");
    }
}
