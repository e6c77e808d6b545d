//! What `status` shows, and what its JSON holds.

use super::*;

fn full() -> Status {
    Status {
        source: "/srv/www".into(),
        mount_point: "/srv/www".into(),
        pid: Some(4711),
        stopping: true,
        read_only: true,
        read_only_reason: Some("journal.db: the disk is full".into()),
        last_seq: 99,
        log_bytes: 4096,
        scan: Some(ScanStatus {
            running: true,
            entries: 3,
            expected: None,
            repairs: 1,
            seconds: 2,
        }),
        mirrors: MirrorState::ALL
            .into_iter()
            .map(|state| MirrorStatus {
                held: state == MirrorState::Paused,
                name: format!("m-{state}"),
                host: "h".into(),
                port: 22,
                user: "u".into(),
                path: "/p".into(),
                state,
                pending_ops: 1,
                pending_bytes: 2,
                parked_ops: 3,
                oldest_pending_seconds: Some(4),
                applied_seq: 5,
                bytes_per_second: 6,
                ops_per_second: 10,
                eta_seconds: Some(7),
                progress_percent: Some(9),
                current: Some("content a".into()),
                last_error: Some("connection lost".into()),
                retry_in_seconds: Some(8),
                unsupported: vec!["hardlink@openssh.com".into()],
                sync: Some(SyncStatus {
                    running: true,
                    eta_seconds: Some(9),
                    ..SyncStatus::default()
                }),
                verify: Some(SyncStatus::default()),
                totals: Totals {
                    sent_bytes: 1,
                    connections: 2,
                    failures: 3,
                },
            })
            .collect(),
        mail: Some(MailStatus {
            waiting: 1,
            last_error: Some("no route".into()),
            failing_seconds: Some(2),
            sent: 3,
            failed: 4,
        }),
        alarms: vec![AlarmStatus {
            kind: "stopped".into(),
            mirror: Some("web2".into()),
            seconds: 9,
            reason: "no key".into(),
        }],
    }
}

#[test]
fn json_and_back_is_the_same() {
    let status = full();
    assert_eq!(Status::from_json(&status.to_json()), Ok(status));
    let empty = Status {
        mirrors: vec![MirrorStatus::default()],
        ..Status::default()
    };
    assert_eq!(Status::from_json(&empty.to_json()), Ok(empty));
    let tasks = [
        Task::default(),
        Task {
            seq: 1,
            mirror: "web2".into(),
            verb: "rename".into(),
            path: "a".into(),
            second_path: Some("b".into()),
            bytes: 2,
            age_seconds: 3,
            error: Some("permission denied".into()),
        },
    ];
    assert_eq!(
        Task::list_from_json(&Task::list_to_json(&tasks)),
        Ok(tasks.to_vec())
    );
}

/// The names that scripts rely on: this list only grows.
#[test]
fn no_field_of_the_json_is_ever_renamed() {
    let json = full().to_json();
    let keys = |v: &Value| {
        let mut keys: Vec<String> = v.as_object().unwrap().keys().cloned().collect();
        keys.sort();
        keys.join(" ")
    };
    assert_eq!(
        keys(&json),
        "alarms log mail mirrors mount_point pid read_only read_only_reason scan source stopping"
    );
    assert_eq!(
        keys(&json["scan"]),
        "entries expected repairs running seconds"
    );
    assert_eq!(
        keys(&json["mail"]),
        "failed_total failing_seconds last_error sent_total waiting"
    );
    assert_eq!(keys(&json["alarms"][0]), "kind mirror reason seconds");
    assert_eq!(keys(&json["log"]), "bytes last_seq");
    assert_eq!(
        keys(&json["mirrors"][0]),
        "advice applied_seq bytes_per_second connections_total current eta_seconds failures_total held host \
         last_error name oldest_pending_seconds ops_per_second parked_ops path pending_bytes pending_ops port \
         progress_percent retry_in_seconds sent_bytes_total state sync unsupported user verify"
    );
    let names: Vec<&str> = MirrorState::ALL.iter().map(|s| s.name()).collect();
    assert_eq!(
        names.join(" "),
        "synced syncing retrying paused stopped needs-sync"
    );
}

#[test]
fn a_broken_answer_names_the_field() {
    for (pointer, value, field) in [
        ("/log/bytes", json!("many"), "bytes"),
        ("/log", json!(5), "log"),
        ("/pid", json!(-1), "pid"),
        ("/mirrors/0/state", json!("happy"), "state"),
        ("/mirrors/0/port", json!(65536), "port"),
        ("/mirrors/0/name", json!(null), "name"),
        ("/mirrors/0/unsupported", json!([1]), "unsupported"),
    ] {
        let mut json = full().to_json();
        *json.pointer_mut(pointer).unwrap() = value;
        assert_eq!(Status::from_json(&json), Err(bad(field)), "{pointer}");
    }
}

#[test]
fn fields_of_a_newer_daemon_are_passed_over() {
    let mut json = full().to_json();
    json["mood"] = json!("fine");
    json["mirrors"][0]["mood"] = json!({});
    assert_eq!(Status::from_json(&json), Ok(full()));
}
