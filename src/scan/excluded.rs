//! What was excluded before and is not any more.
//!
//! The danger: what changed while it was excluded is in no log, and mirrors lack it for ever. So the journal remembers what is
//! excluded, and if that is another thing at the start, the walk has each path that was excluded and is not any
//! more compared with the mirrors. Killed before the walk is through, the next start must look for it too, and for
//! what was excluded meanwhile: so all that was is kept, a line each, until it is.

use crate::exclude::Exclude;
use crate::journal::{Journal, JournalError};

/// The key of [`Journal::meta`] for it.
const EXCLUDED: &str = "excluded";

/// Says what was excluded before, as long as mirrors may lack something of it; notes what is excluded now.
///
/// # Errors
/// The journal's.
pub fn before(journal: &Journal, now: &Exclude) -> Result<Vec<Exclude>, JournalError> {
    let text = journal.meta(EXCLUDED)?;
    let mut lines: Vec<&str> = text.as_deref().unwrap_or_default().lines().collect();
    let now_text = now.to_string();
    if text.as_deref() == Some(&now_text) {
        return Ok(Vec::new());
    }
    let earlier: Vec<Exclude> = lines
        .iter()
        .filter_map(|line| Exclude::parse(line).ok())
        .filter(|exclude| exclude != now)
        .collect();
    if earlier.is_empty() {
        journal.set_meta(EXCLUDED, &now_text)?;
        return Ok(earlier);
    }
    if !lines.contains(&now_text.as_str()) {
        lines.push(&now_text);
    }
    journal.set_meta(EXCLUDED, &lines.join("\n"))?;
    Ok(earlier)
}

/// The walk is through: nothing else is owed.
///
/// # Errors
/// The journal's.
pub(super) fn is_found(journal: &Journal, now: &Exclude) -> Result<(), JournalError> {
    journal.set_meta(EXCLUDED, &now.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn all_that_was_excluded_is_kept_until_a_walk_is_through() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        let of = |text: &str| Exclude::parse(text).unwrap();
        let nothing = Exclude::default();
        let (a, b) = (of("*.a, !b\\,.a"), of("/b/"));
        assert_eq!(before(&journal, &a).unwrap(), []);
        assert_eq!(before(&journal, &a).unwrap(), []);
        assert_eq!(before(&journal, &b).unwrap(), [a.clone()]);
        assert_eq!(before(&journal, &nothing).unwrap(), [a.clone(), b.clone()]);
        assert_eq!(before(&journal, &a).unwrap(), [b]);
        is_found(&journal, &a).unwrap();
        assert_eq!(before(&journal, &a).unwrap(), []);
        assert_eq!(before(&journal, &nothing).unwrap(), [a]);
    }
}
