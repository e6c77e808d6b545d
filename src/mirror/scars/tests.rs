//! What rows and repairs do to scars.

use super::*;

fn path(s: &str) -> RelPath {
    RelPath::new(s.as_bytes()).unwrap()
}

fn rename(a: &str, b: &str) -> Change {
    Change::Rename {
        from: path(a),
        to: path(b),
    }
}

fn unlink(s: &str) -> Change {
    Change::Unlink { path: path(s) }
}

fn scarred(s: &str) -> Scars {
    let mut scars = Scars::new(Vec::new(), Duration::from_secs(1), false);
    scars.add(Mend::new(path(s), Scope::ENTRY), 5);
    scars
}

fn paths(scars: &Scars) -> Vec<String> {
    scars.all.keys().map(|key| key.0.to_string()).collect()
}

#[test]
fn what_has_to_do_with_a_scar_becomes_one() {
    let mut scars = scarred("d");
    assert!(!scars.take_up(&unlink("e"), 6));
    assert!(scars.take_up(&rename("d/x", "y"), 6) && scars.take_up(&unlink("y"), 7));
    assert_eq!(paths(&scars), ["d", "d/x", "y"]);
    assert_eq!(scars.since(), Some(5));
}

#[test]
fn what_is_at_a_scar_and_below_is_unknown_until_it_is_repaired() {
    let mut scars = scarred("a/b");
    assert!(scars.leaves_unknown(&path("a/b")));
    assert!(!scars.leaves_unknown(&path("a")));
    let due: Vec<_> = scars
        .due()
        .map(|m| (m.path.clone(), m.scope.depth))
        .collect();
    due.iter().for_each(|key| scars.repaired(key, 10, 12));
    assert!(!scars.leaves_unknown(&path("a/b")));
}

#[test]
fn a_repair_that_is_recorded_makes_its_path_one() {
    let mut scars = Scars::new(Vec::new(), Duration::from_secs(1), false);
    let (path, scope) = (path("d"), crate::change::Scope::TREE);
    assert!(scars.take_up(&Change::Repair { path, scope }, 5));
    assert!(scars.take_up(&unlink("d/x"), 6));
    assert_eq!(paths(&scars), ["d"], "it is below");
    assert!(scars.take_up(&rename("d/y", "z"), 7));
    assert_eq!(paths(&scars), ["d", "d/y", "z"]);
}

/// Its predecessor was moved away and nobody has seen it: what was in that one is there yet.
#[test]
fn a_directory_made_where_names_are_compared_is_compared_with_all_that_is_in_it() {
    let mkdir = Change::Mkdir {
        path: path("a"),
        mode: 0o755,
        owner: crate::change::Owner { uid: 0, gid: 0 },
    };
    let mut scars = Scars::new(Vec::new(), Duration::from_secs(1), false);
    let (path, scope) = (RelPath::root(), Scope::NAMES);
    assert!(scars.take_up(&Change::Repair { path, scope }, 5));
    assert!(scars.take_up(&mkdir, 6));
    let all: Vec<(String, Depth)> = scars.all.keys().map(|k| (k.0.to_string(), k.1)).collect();
    assert_eq!(
        all,
        [
            ("/".to_string(), Depth::Names),
            ("a".to_string(), Depth::Tree)
        ]
    );
    // But a sync keeps what only the mirror has.
    let sync = Mend {
        trust: Trust::Log,
        ..Mend::new(RelPath::root(), Scope::TREE)
    };
    let mut scars = Scars::new(vec![sync], Duration::from_secs(1), false);
    assert!(!scars.take_up(&mkdir, 6));
}

#[test]
fn a_move_above_moves_it_and_is_replayed() {
    let mut scars = scarred("d/x");
    assert!(!scars.take_up(&rename("d", "e"), 6));
    scars.follow(&rename("d", "e"), 6);
    assert_eq!(paths(&scars), ["e/x"]);
    assert!(!scars.take_up(&unlink("d/x"), 7));
    // But a directory is not removed while it may hold what is to go.
    assert!(scars.take_up(&Change::Rmdir { path: path("e") }, 8));
}

#[test]
fn it_is_healed_when_the_mirror_has_passed_the_repair_and_nothing_came_meanwhile() {
    let mut scars = scarred("f");
    assert!(!scars.are_due(8, 9) && scars.are_due(9, 12));
    let key = (path("f"), Depth::Entry);
    scars.repaired(&key, 10, 12);
    assert!(scars.take_up(&unlink("f"), 10), "covered");
    scars.heal(11);
    assert!(!scars.is_empty());
    assert!(
        scars.take_up(&unlink("f"), 11),
        "recorded while it was at work"
    );
    scars.heal(12);
    assert!(!scars.is_empty() && scars.has_due());
    scars.repaired(&key, 12, 12);
    scars.heal(12);
    assert!(scars.is_empty());
    assert_eq!(scars.news(), (vec![], vec![key]));
}

#[test]
fn a_file_in_doubt_is_compared_with_its_directory() {
    let mut scars = Scars::new(Vec::new(), Duration::from_secs(1), false);
    let bytes = Scope {
        bytes: true,
        ..Scope::ENTRY
    };
    for (s, scope) in [("d", Scope::NAMES), ("d/a", bytes), ("d/b", Scope::ENTRY)] {
        let path = path(s);
        assert!(scars.take_up(&Change::Repair { path, scope }, 5));
    }
    let resends = |s: &str| scars.resends(&path(s));
    assert_eq!(
        resends("d/a"),
        Some((true, false)),
        "the same size and time do not do"
    );
    assert_eq!(
        (resends("d/b"), resends("d/c")),
        (Some((false, false)), None)
    );
}
