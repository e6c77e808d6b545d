//! What the journal keeps of the paths on a mirror that are to be made like the source.
//!
//! The column `walked` holds how far the repair of one is, and where what was below it has gone. The danger is a note
//! that an older program takes for something else: it takes what is no path for a repair that is not begun, and begins
//! it, which is never wrong. So what was added later is no path.

use crate::change::{RelPath, Scope, Seq};

/// A path on a mirror that has to be made like the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mend {
    /// Which.
    pub path: RelPath,
    /// How much of it.
    pub scope: Scope,
    /// Its own bytes are sent, if it is a file, whatever it looks like there.
    pub resend: bool,
    /// What is there before.
    pub trust: Trust,
    /// How far it is.
    pub walked: Walked,
    /// What was below it is below this path now, as the log tells. So what the mirror has, and the source has not, is
    /// only the mirror's if there is nothing by its name below this path.
    pub moved: Option<RelPath>,
    /// Up to this change the log is not replayed on what is walked.
    pub seen: Option<Seq>,
    /// Why it could not be done so far.
    pub error: Option<String>,
    /// How often it could not.
    pub attempts: u32,
    /// When it is tried again: milliseconds since 1970.
    pub next_try: Option<i64>,
}

impl Mend {
    /// One that is not begun, of a path that may be anything there.
    pub fn new(path: RelPath, scope: Scope) -> Mend {
        Mend {
            path,
            scope,
            resend: false,
            trust: Trust::Nothing,
            walked: Walked::Nothing,
            moved: None,
            seen: None,
            error: None,
            attempts: 0,
            next_try: None,
        }
    }

    /// For the column `walked`.
    pub(super) fn progress(&self) -> Option<Vec<u8>> {
        let walked = self.walked.to_blob();
        let Some(moved) = &self.moved else {
            return walked;
        };
        let begun = [u8::from(walked.is_some())];
        let walked = walked.unwrap_or_default();
        Some([b"/", moved.as_bytes(), b"\0", &begun, &walked].concat())
    }
}

/// What is known of a path that is to be repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trust {
    /// It may be anything: no row of the log is replayed on it.
    Nothing,
    /// As far as is known it is what the log says: rows are replayed where the repair has not yet been.
    Log,
    /// It is new there. What the log says of it is found when it is sent.
    Blank,
}

impl Trust {
    pub(super) fn number(self) -> u8 {
        match self {
            Trust::Nothing => 0,
            Trust::Log => 1,
            Trust::Blank => 2,
        }
    }

    pub(super) fn of_number(number: u8) -> Trust {
        match number {
            1 => Trust::Log,
            2 => Trust::Blank,
            _ => Trust::Nothing,
        }
    }
}

/// How far the repair of a tree is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Walked {
    /// It is not begun.
    Nothing,
    /// Up to here, in the order of the walk.
    Upto(Reached),
    /// All of it.
    All,
}

/// How far a walk has come: the entries of a directory, and all that comes before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// The directory.
    pub dir: RelPath,
    /// Only its entries up to this name, in the order of the names' bytes; none: all of them.
    pub name: Option<Box<[u8]>>,
}

/// All of it. No path is like that.
const ALL: &[u8] = b"/";

impl Walked {
    fn to_blob(&self) -> Option<Vec<u8>> {
        match self {
            Walked::Nothing => None,
            Walked::Upto(Reached { dir, name: None }) => Some(dir.as_bytes().to_vec()),
            Walked::Upto(Reached {
                dir,
                name: Some(name),
            }) => Some([dir.as_bytes(), b"\0", name].concat()),
            Walked::All => Some(ALL.to_vec()),
        }
    }

    fn of_blob(blob: Option<&[u8]>) -> Walked {
        let Some(blob) = blob else {
            return Walked::Nothing;
        };
        if blob == ALL {
            return Walked::All;
        }
        let mut parts = blob.splitn(2, |byte| *byte == 0);
        let dir = RelPath::new(parts.next().unwrap_or_default());
        let name = parts.next().map(Into::into);
        // What is no path was never put in: it is begun anew.
        dir.map_or(Walked::Nothing, |dir| Walked::Upto(Reached { dir, name }))
    }
}

/// What the column `walked` tells: where what was below has gone, and how far it is.
pub(super) fn progress_of(blob: Option<&[u8]>) -> (Option<RelPath>, Walked) {
    let moved = blob.and_then(|blob| {
        let mut parts = blob.strip_prefix(b"/")?.splitn(2, |byte| *byte == 0);
        let moved = RelPath::new(parts.next()?).ok()?;
        let (begun, walked) = parts.next()?.split_first()?;
        Some((moved, Some(walked).filter(|_| *begun != 0)))
    });
    match moved {
        Some((moved, walked)) => (Some(moved), Walked::of_blob(walked)),
        None => (None, Walked::of_blob(blob)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_a_repair_is_comes_back_as_it_went_in() {
        let path = |s: &str| RelPath::new(s.as_bytes()).unwrap();
        let upto = |dir: &str, name: Option<&[u8]>| {
            Walked::Upto(Reached {
                dir: path(dir),
                name: name.map(Into::into),
            })
        };
        let all = [
            Walked::Nothing,
            Walked::All,
            upto("", None),
            upto("a/b", None),
            upto("", Some(b"x")),
            upto("a/b", Some(b"\xff\n")),
        ];
        for walked in all {
            for moved in [None, Some(path("c/d"))] {
                let mend = Mend {
                    walked: walked.clone(),
                    moved,
                    ..Mend::new(path("m"), Scope::TREE)
                };
                let blob = mend.progress();
                let back = progress_of(blob.as_deref());
                assert_eq!(back, (mend.moved.clone(), walked.clone()));
                // A program that knows nothing of names and moves begins such a one anew.
                let is_new = mend.moved.is_some()
                    || matches!(&walked, Walked::Upto(Reached { name: Some(_), .. }));
                let is_path = |blob: Vec<u8>| blob == ALL || RelPath::new(&blob).is_ok();
                assert_eq!(blob.is_none_or(is_path), !is_new);
            }
        }
    }
}
