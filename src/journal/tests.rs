//! Tests of the journal, on a real disk.

use super::codec::tests::any_change;
use super::upkeep::WAL_LIMIT;
use super::*;
use crate::change::{Extent, NodeId};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

fn path(s: &str) -> RelPath {
    RelPath::new(s.as_bytes()).unwrap()
}

fn unlink(s: &str) -> Change {
    Change::Unlink { path: path(s) }
}

fn content(s: &str, size: u64) -> Change {
    Change::Content {
        path: path(s),
        node: NodeId([1, 2, 3].into()),
        extent: Extent::Whole,
        size,
        linked: false,
    }
}

fn fresh() -> (tempfile::TempDir, Journal) {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    (dir, journal)
}

#[test]
fn changes_come_back_in_order_with_numbers_without_gaps() {
    let (_dir, journal) = fresh();
    let mut runner = TestRunner::deterministic();
    let changes: Vec<Change> = (0..300)
        .map(|_| any_change().new_tree(&mut runner).unwrap().current())
        .collect();
    for (i, change) in changes.iter().enumerate() {
        assert_eq!(journal.record(change), Ok(i as Seq + 1));
    }
    let reader = journal.reader().unwrap();
    let mut got = Vec::new();
    loop {
        let after = got.len() as Seq;
        let rows = reader.rows(after, 7).unwrap();
        if rows.is_empty() {
            break;
        }
        for row in rows {
            got.push(row.change);
            assert_eq!(row.seq, got.len() as Seq);
        }
    }
    assert_eq!(got, changes);
    assert_eq!(journal.head(), 300);
}

#[test]
fn a_restart_goes_on_with_the_next_number_and_each_mirrors_position() {
    let (dir, journal) = fresh();
    journal.add_mirror("m", true).unwrap();
    for _ in 0..5 {
        journal.record(&content("a", 10)).unwrap();
    }
    journal.announce("m", 4).unwrap();
    let progress = Progress {
        cursor: Some((3, 30)),
        touched: vec![path("d"), RelPath::root()],
        ghosts: vec![path("g")],
        ..Progress::default()
    };
    journal.advance("m", &progress).unwrap();
    journal.set_paused("m", true).unwrap();
    journal.set_last_error("m", Some("no route")).unwrap();
    drop(journal);

    let journal = Journal::open(dir.path()).unwrap();
    let position = journal.add_mirror("m", true).unwrap();
    assert_eq!(
        (position.cursor, position.sent_upto, position.paused),
        (3, 4, true)
    );
    assert_eq!(position.last_error.as_deref(), Some("no route"));
    assert_eq!(journal.record(&unlink("a")), Ok(6));
    let reader = journal.reader().unwrap();
    assert_eq!(reader.touched("m").unwrap(), [RelPath::root(), path("d")]);
    assert_eq!(reader.ghosts("m").unwrap(), [path("g")]);
    let backlog = reader.backlog("m").unwrap();
    assert_eq!((backlog.ops, backlog.bytes), (3, 20));
    let settled = Progress {
        settled: vec![path("d")],
        laid: vec![path("g")],
        ..Progress::default()
    };
    journal.advance("m", &settled).unwrap();
    assert_eq!(reader.touched("m").unwrap(), [RelPath::root()]);
    assert_eq!(reader.ghosts("m").unwrap(), []);
}

#[test]
fn rows_leave_when_every_mirror_has_them_and_never_before() {
    let (dir, journal) = fresh();
    journal.add_mirror("near", true).unwrap();
    journal.add_mirror("far", true).unwrap();
    for i in 0..5000 {
        journal.record(&unlink(&format!("f{i}"))).unwrap();
    }
    let at = |seq| Progress {
        cursor: Some((seq, 0)),
        ..Progress::default()
    };
    journal.advance("near", &at(5000)).unwrap();
    journal.advance("far", &at(4500)).unwrap();
    let reader = journal.reader().unwrap();
    // Nor before a checkpoint covers them.
    journal.cover(100);
    journal.maintain().unwrap();
    assert_eq!(reader.rows(0, 1).unwrap()[0].seq, 101);
    journal.cover(5000);
    journal.maintain().unwrap();
    let left = reader.rows(0, 10_000).unwrap();
    assert_eq!((left[0].seq, left.len()), (4501, 500));

    journal.advance("far", &at(5000)).unwrap();
    journal.maintain().unwrap();
    assert_eq!(
        reader.rows(0, 10_000).unwrap().len(),
        1,
        "the newest row keeps the count"
    );
    drop((reader, journal));
    let journal = Journal::open(dir.path()).unwrap();
    assert_eq!(journal.record(&unlink("next")), Ok(5001));
}

#[test]
fn a_new_mirror_starts_at_the_head() {
    let (_dir, journal) = fresh();
    journal.record(&content("a", 7)).unwrap();
    assert_eq!(journal.add_mirror("m", true).unwrap().cursor, 1);
    journal.record(&content("b", 5)).unwrap();
    assert_eq!(
        journal.mirror("m").unwrap().cursor,
        1,
        "asking again moves nothing"
    );
    assert_eq!(journal.reader().unwrap().backlog("m").unwrap().bytes, 5);
}

#[test]
fn a_mirror_that_comes_back_after_its_changes_were_dropped_is_known_to_lack_them() {
    let (_dir, journal) = fresh();
    journal.add_mirror("m", true).unwrap();
    for _ in 0..10 {
        journal.record(&unlink("a")).unwrap();
    }
    journal.cover(journal.head());
    journal.maintain().unwrap();
    assert_eq!(
        journal.add_mirror("m", true).unwrap().lacks,
        0,
        "its changes are kept"
    );
    journal.release_mirror("m");
    journal.maintain().unwrap();
    assert_eq!(journal.add_mirror("m", true).unwrap().lacks, 9);
    journal.copy_was_made("m").unwrap();
    let position = journal.mirror("m").unwrap();
    assert_eq!(
        (position.cursor, position.sent_upto, position.lacks),
        (10, 10, 0)
    );
    assert!(!position.adopted, "the copy has not been seen");
    journal.adopt_mirror("m").unwrap();
    assert!(journal.mirror("m").unwrap().adopted);
}

#[test]
fn what_is_in_the_log_may_be_in_a_copy_that_was_just_made() {
    let (_dir, journal) = fresh();
    journal.add_mirror("m", false).unwrap();
    for _ in 0..3 {
        journal.record(&content("f", 1)).unwrap();
    }
    journal.copy_was_made("m").unwrap();
    let position = journal.mirror("m").unwrap();
    assert_eq!((position.cursor, position.sent_upto), (0, 3));
    assert!(!position.adopted);
}

#[test]
fn sent_upto_never_goes_back() {
    let (_dir, journal) = fresh();
    journal.add_mirror("m", true).unwrap();
    journal.announce("m", 9).unwrap();
    journal.announce("m", 4).unwrap();
    assert_eq!(journal.mirror("m").unwrap().sent_upto, 9);
}

#[test]
fn a_journal_of_a_newer_program_is_refused_and_left_alone() {
    let (dir, journal) = fresh();
    drop(journal);
    let file = dir.path().join(FILE_NAME);
    let db = Connection::open(&file).unwrap();
    db.pragma_update(None, "user_version", SCHEMA_VERSION + 1)
        .unwrap();
    drop(db);
    let refused = |e: JournalError| {
        assert!(matches!(e, JournalError::TooNew { .. }), "{e}");
        assert!(e.to_string().contains("newer ProxyFS"), "{e}");
    };
    refused(Journal::open(dir.path()).err().unwrap());
    refused(Reader::open(dir.path()).err().unwrap());
}

#[test]
fn a_damaged_row_is_named() {
    let (_dir, journal) = fresh();
    journal.record(&unlink("a")).unwrap();
    journal
        .writer()
        .db
        .execute("UPDATE change SET kind = 99", [])
        .unwrap();
    let error = journal
        .reader()
        .unwrap()
        .rows(0, 10)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("row 1") && error.contains("unknown kind 99"),
        "{error}"
    );
}

#[test]
fn listeners_are_called_after_the_row_can_be_read() {
    let (_dir, journal) = fresh();
    let journal = Arc::new(journal);
    let seen = Arc::new(AtomicUsize::new(0));
    let reader = Mutex::new(journal.reader().unwrap());
    let count = Arc::clone(&seen);
    journal.listen(
        "m",
        Box::new(move || {
            let rows = reader.lock().unwrap().rows(0, 10).unwrap();
            count.store(rows.len(), Ordering::SeqCst);
        }),
    );
    journal.record(&unlink("a")).unwrap();
    assert_eq!(seen.load(Ordering::SeqCst), 1);
    journal.unlisten("m");
    journal.record(&unlink("b")).unwrap();
    assert_eq!(seen.load(Ordering::SeqCst), 1);
}

#[test]
fn a_failed_append_is_an_error_and_takes_no_number() {
    let (_dir, journal) = fresh();
    journal.record(&unlink("a")).unwrap();
    // As on a full disk: the database may not grow by a page.
    let pages: i64 = journal
        .writer()
        .db
        .pragma_query_value(None, "page_count", |r| r.get(0))
        .unwrap();
    journal
        .writer()
        .db
        .pragma_update(None, "max_page_count", pages)
        .unwrap();
    let big = Change::Symlink {
        path: path("s"),
        target: vec![b'x'; 100_000].into(),
        owner: crate::change::Owner { uid: 0, gid: 0 },
        times: crate::change::Times {
            atime: Default::default(),
            mtime: Default::default(),
        },
    };
    let error = journal.record(&big).unwrap_err().to_string();
    assert!(error.contains("the disk is full"), "{error}");
    assert_eq!(journal.head(), 1);
    assert_eq!(journal.record(&unlink("b")), Ok(2));
}

#[test]
fn a_wal_that_was_long_once_is_not_moved_again_for_a_few_changes() {
    let (_dir, journal) = fresh();
    while journal.wal.metadata().unwrap().len() <= 2 * WAL_LIMIT {
        journal.record(&unlink(&"x".repeat(4000))).unwrap();
    }
    assert!(journal.checkpoint_wal().unwrap());
    journal.record(&unlink("x")).unwrap();
    assert!(journal.wal.metadata().unwrap().len() > WAL_LIMIT);
    assert!(
        !journal.checkpoint_wal().unwrap(),
        "the next append would wait for the disk"
    );
}

#[test]
fn a_long_wal_is_moved_into_the_database_while_others_read_and_write() {
    let (_dir, journal) = fresh();
    journal.add_mirror("m", true).unwrap();
    let reader = journal.reader().unwrap();
    for round in 0..6 {
        for i in 0..3000 {
            journal
                .record(&content(&format!("a/rather/long/path/{round}/{i}"), 1))
                .unwrap();
        }
        journal.cover(journal.head());
        journal.maintain().unwrap();
        assert_eq!(reader.rows(0, 100_000).unwrap().len(), 3000 * (round + 1));
    }
    // 18,000 rows were some 70 MiB of WAL frames without it.
    assert!(journal.wal.metadata().unwrap().len() < 4 * WAL_LIMIT);
}

#[test]
fn appends_from_many_threads_take_one_number_each() {
    let (_dir, journal) = fresh();
    std::thread::scope(|all| {
        for t in 0..4 {
            let journal = &journal;
            all.spawn(move || {
                for i in 0..200 {
                    journal.record(&unlink(&format!("t{t}/{i}"))).unwrap();
                }
            });
        }
    });
    let rows = journal.reader().unwrap().rows(0, 1000).unwrap();
    assert_eq!(rows.len(), 800);
    for t in 0..4 {
        let own: Vec<String> = rows
            .iter()
            .map(|r| r.change.path().to_string())
            .filter(|p| p.starts_with(&format!("t{t}/")))
            .collect();
        let wanted: Vec<String> = (0..200).map(|i| format!("t{t}/{i}")).collect();
        assert_eq!(own, wanted);
    }
}

/// A journal as schema 1 wrote it opens for ever: later schemas migrate it.
#[test]
fn the_journal_of_schema_1_opens() {
    let dir = tempfile::tempdir().unwrap();
    let db = Connection::open(dir.path().join(FILE_NAME)).unwrap();
    db.execute_batch(include_str!("../../tests/fixtures/journal-1.sql"))
        .unwrap();
    drop(db);
    // Before the daemon migrates it, `status` reads it.
    let reader = Reader::open(dir.path()).unwrap();
    assert_eq!(reader.backlog("m").unwrap().ops, 7);
    drop(reader);
    let journal = Journal::open(dir.path()).unwrap();
    let rows = journal.reader().unwrap().rows(0, 100).unwrap();
    let told: Vec<String> = rows.iter().map(|r| r.change.to_string()).collect();
    assert_eq!(
        told,
        [
            "mkdir d",
            "content d/f",
            "attr d/f",
            "link d/f -> d/g",
            "rename d -> e",
            "symlink s",
            "exchange e/f <-> s",
            "unlink s",
            "rmdir e",
        ]
    );
    let m = journal.add_mirror("m", true).unwrap();
    assert_eq!((m.cursor, m.sent_upto, m.paused), (2, 5, true));
    assert_eq!(journal.reader().unwrap().parked("m", 9).unwrap(), []);
}

#[test]
fn the_journal_of_schema_2_opens() {
    let dir = tempfile::tempdir().unwrap();
    let db = Connection::open(dir.path().join(FILE_NAME)).unwrap();
    db.execute_batch(include_str!("../../tests/fixtures/journal-2.sql"))
        .unwrap();
    drop(db);
    let reader = Reader::open(dir.path()).unwrap();
    assert_eq!(reader.backlog("m").unwrap().ops, 9);
    drop(reader);
    let journal = Journal::open(dir.path()).unwrap();
    let reader = journal.reader().unwrap();
    let parked = reader.parked("m", 9).unwrap();
    assert_eq!(parked[0].row.change.to_string(), "unlink d/p");
    let mends = reader.repairs("m").unwrap();
    assert_eq!(mends[0].path.to_string(), "d");
    assert_eq!(mends[0].scope, crate::change::Scope::TREE);
    assert_eq!(journal.marker("m").unwrap(), (Some(1), Some(2)));
}

#[test]
fn what_is_parked_is_kept_whole_and_pending_until_it_is_done() {
    let (_dir, journal) = fresh();
    journal.add_mirror("m", true).unwrap();
    journal.record(&content("a", 100)).unwrap();
    journal.record(&unlink("b")).unwrap();
    journal.record(&content("c", 7)).unwrap();
    let reader = journal.reader().unwrap();
    let parked: Vec<Parked> = reader
        .rows(0, 2)
        .unwrap()
        .into_iter()
        .zip([Some("denied"), None])
        .map(|(row, error)| Parked {
            row: Row {
                cum_bytes: 0,
                ..row
            },
            error: error.map(str::to_string),
            attempts: 1,
            next_try: error.map(|_| 5),
        })
        .collect();
    let aside = Progress {
        cursor: Some((2, 100)),
        parked: parked.clone(),
        ..Progress::default()
    };
    journal.advance("m", &aside).unwrap();
    // Also when the log has dropped it.
    journal.cover(journal.head());
    journal.maintain().unwrap();
    assert_eq!(reader.rows(0, 9).unwrap().len(), 1);
    assert_eq!(reader.parked("m", 9).unwrap(), parked);
    assert_eq!(reader.mirror("m").unwrap().first_parked, Some(1));
    let backlog = reader.backlog("m").unwrap();
    assert_eq!((backlog.ops, backlog.bytes, backlog.parked), (3, 107, 1));
    assert_eq!(backlog.next_try, Some(5));
    let done = Progress {
        unparked: vec![1, 2],
        ..Progress::default()
    };
    journal.advance("m", &done).unwrap();
    assert_eq!(reader.parked("m", 9).unwrap(), []);
    assert_eq!(reader.backlog("m").unwrap().ops, 1);
}

#[test]
fn a_mirror_too_far_behind_drops_out_of_a_log_that_is_bounded() {
    let (_dir, journal) = fresh();
    journal.add_mirror("near", true).unwrap();
    journal.add_mirror("dead", true).unwrap();
    let at = |seq| Progress {
        cursor: Some((seq, 0)),
        ..Progress::default()
    };
    let limit = 1 << 20;
    let mut given_up = Vec::new();
    for round in 0..40 {
        for i in 0..250 {
            let name = format!("{round}/{i}/{}", "long".repeat(40));
            journal.record(&unlink(&name)).unwrap();
        }
        journal.advance("near", &at(journal.head())).unwrap();
        journal.cover(journal.head());
        given_up.extend(journal.bound(limit).unwrap());
        journal.maintain().unwrap();
    }
    assert_eq!(given_up, ["dead"], "and it is told once");
    assert!(journal.mirror("dead").unwrap().lacks > 0);
    assert_eq!(journal.mirror("near").unwrap().lacks, 0);
    // 10,000 rows of 200 bytes and more were recorded.
    let rows = journal.reader().unwrap().rows(0, 100_000).unwrap().len();
    assert!(rows < 5_000, "{rows} rows are left");
    // Nobody is given up while there is room.
    journal.add_mirror("new", true).unwrap();
    journal.record(&unlink("x")).unwrap();
    assert_eq!(journal.bound(limit).unwrap(), Vec::<String>::new());
    journal.maintain().unwrap();
    assert_eq!(journal.mirror("new").unwrap().lacks, 0);
}

#[test]
fn a_mirror_that_is_forgotten_is_not_held_when_its_name_comes_again() {
    let (_dir, journal) = fresh();
    journal.add_mirror("m", true).unwrap();
    journal.record(&unlink("a")).unwrap();
    journal.hold("m", "too many deletions").unwrap();
    journal.let_through("m").unwrap();
    journal.hold("m", "again").unwrap();
    journal.forget_mirror("m").unwrap();
    let m = journal.add_mirror("m", true).unwrap();
    assert!(!m.paused);
    assert_eq!(journal.held("m").unwrap(), None);
    assert_eq!(journal.through("m").unwrap(), 0);
}

/// Several look while it grows: the later one must not take the longer file that another has seen for one that was cut.
#[test]
fn a_journal_that_grows_while_several_look_is_not_taken_for_a_shorter_one() {
    let (_dir, journal) = fresh();
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) && journal.look().is_ok() {
                    std::thread::yield_now();
                }
            });
        }
        for n in 0..3000 {
            let _ = journal.record(&unlink(&n.to_string()));
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(journal.look(), Ok(()));
}
