//! Listings that the kernel keeps, and that must never be old ones.

use super::*;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::Path;

fn names(dir: &Path) -> BTreeSet<OsString> {
    let entries = fs::read_dir(dir).unwrap();
    entries.map(|e| e.unwrap().file_name()).collect()
}

#[test]
fn a_listing_is_kept_but_never_shown_after_a_change() {
    let m = TestMount::new();
    let (dir, other) = (m.path("dir"), m.path("other"));
    fs::create_dir(&dir).unwrap();
    fs::create_dir(&other).unwrap();
    for n in 0..300 {
        File::create(dir.join(format!("file{n}"))).unwrap();
    }
    let kept_and_true = |what: &str| {
        for (mount, below) in [(&dir, "dir"), (&other, "other")] {
            let below = names(&m.source(below));
            // The first one asks us, the second one is the kernel's own.
            assert_eq!(names(mount), below, "after {what}");
            assert_eq!(names(mount), below, "once more after {what}");
        }
    };
    kept_and_true("making");
    fs::write(dir.join("new"), "new").unwrap();
    kept_and_true("a new file");
    fs::remove_file(dir.join("file7")).unwrap();
    kept_and_true("an unlink");
    fs::rename(dir.join("file8"), other.join("file8")).unwrap();
    kept_and_true("a rename from one to the other");
    fs::rename(dir.join("file9"), dir.join("file10")).unwrap();
    kept_and_true("a rename over another one");
    fs::hard_link(dir.join("file11"), other.join("link")).unwrap();
    kept_and_true("a link");
    std::os::unix::fs::symlink("new", other.join("symlink")).unwrap();
    kept_and_true("a symbolic link");
    fs::create_dir(other.join("sub")).unwrap();
    kept_and_true("a directory");
    fs::remove_dir(other.join("sub")).unwrap();
    kept_and_true("an rmdir");
}

#[test]
fn a_listing_that_is_under_way_goes_on_when_the_directory_changes() {
    let m = TestMount::new();
    let dir = m.path("dir");
    fs::create_dir(&dir).unwrap();
    for n in 0..2000 {
        File::create(dir.join(format!("stays{n}"))).unwrap();
    }
    // The kernel has it, and one who reads it from there is in its middle.
    assert_eq!(names(&dir).len(), 2000);
    let mut under_way = fs::read_dir(&dir).unwrap();
    let mut seen: Vec<OsString> = Vec::new();
    seen.extend(under_way.by_ref().take(50).map(|e| e.unwrap().file_name()));
    for n in 0..100 {
        File::create(dir.join(format!("comes{n}"))).unwrap();
    }
    assert_eq!(names(&dir).len(), 2100);
    seen.extend(under_way.map(|e| e.unwrap().file_name()));
    let stays = |name: &&OsString| name.to_string_lossy().starts_with("stays");
    let stayed: Vec<_> = seen.iter().filter(stays).collect();
    assert_eq!(stayed.len(), 2000, "each once");
    assert_eq!(stayed.iter().collect::<BTreeSet<_>>().len(), 2000);
}
