//! Named points between two steps: where a test may look, or have the daemon die, as `kill -9` or a power cut would.
//!
//! A point stands wherever an order of two steps is promised: between a local effect and its record, between a note
//! and the disk, between a request and the note that it is done. In a program that is built for use
//! (`--release`) a point is nothing at all; in one that is built for tests it calls what the thread's test has
//! asked for, if anything.

/// The daemon is at this point.
#[inline(always)]
pub fn point(name: &'static str) {
    #[cfg(debug_assertions)]
    hook::reached(name);
    #[cfg(not(debug_assertions))]
    let _ = name;
}

/// Whether a rule is kept here: always, but where a test breaks it to show that this is found. Where a rule's name
/// stands in the code, that is what keeps it.
#[inline(always)]
pub fn keeps(rule: &'static str) -> bool {
    #[cfg(debug_assertions)]
    return hook::keeps(rule);
    #[cfg(not(debug_assertions))]
    {
        let _ = rule;
        true
    }
}

#[cfg(debug_assertions)]
pub use hook::{break_rule, watch};

#[cfg(debug_assertions)]
mod hook {
    use std::cell::Cell;
    use std::path::PathBuf;
    use std::sync::OnceLock;

    type Hook = Box<dyn FnMut(&'static str)>;

    thread_local! {
        static HOOK: Cell<Option<Hook>> = const { Cell::new(None) };
        static BROKEN: Cell<&'static str> = const { Cell::new("") };
    }

    /// From now on this thread's daemon does not keep the rule; none: it keeps all.
    pub fn break_rule(rule: Option<&'static str>) {
        BROKEN.set(rule.unwrap_or_default());
    }

    pub(super) fn keeps(rule: &'static str) -> bool {
        BROKEN.get() != rule
    }

    /// `NAME=FILE`: the thread that comes to that point while there is such a file removes it, and dies by a panic. So a
    /// test lets a thread of the real program die, once.
    const DIE: &str = "PROXYFS_DIE_AT";

    fn die_if_asked(name: &'static str) {
        static ASKED: OnceLock<Option<(String, PathBuf)>> = OnceLock::new();
        let asked = ASKED.get_or_init(|| {
            let asked = std::env::var(DIE).ok()?;
            let (name, file) = asked.split_once('=')?;
            Some((name.to_string(), file.into()))
        });
        if let Some((_, file)) = asked.as_ref().filter(|asked| asked.0 == name)
            && std::fs::remove_file(file).is_ok()
        {
            panic!("{DIE} says so");
        }
    }

    /// Has `hook` called at every point that this thread comes to; none: nothing any more. If it unwinds, which
    /// is how a test lets the daemon die, it is not called again: the dead reach no point.
    pub fn watch(hook: Option<Hook>) {
        HOOK.set(hook);
    }

    pub(super) fn reached(name: &'static str) {
        die_if_asked(name);
        // A point within the hook is none.
        if let Some(mut hook) = HOOK.take() {
            hook(name);
            HOOK.set(Some(hook));
        }
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    #[test]
    fn all_rules_are_kept_but_the_one_that_is_broken() {
        super::break_rule(Some("J3"));
        assert!(!super::keeps("J3") && super::keeps("J4"));
        super::break_rule(None);
        assert!(super::keeps("J3"));
    }

    #[test]
    fn a_point_tells_who_watches_and_the_dead_reach_none() {
        let seen = Rc::new(RefCell::new(Vec::new()));
        super::point("before");
        let told = Rc::clone(&seen);
        super::watch(Some(Box::new(move |name| {
            told.borrow_mut().push(name);
            if name == "second" {
                std::panic::resume_unwind(Box::new(()));
            }
        })));
        super::point("first");
        let died = std::panic::catch_unwind(|| super::point("second"));
        super::point("third");
        assert!(died.is_err());
        assert_eq!(*seen.borrow(), ["first", "second"]);
    }
}
