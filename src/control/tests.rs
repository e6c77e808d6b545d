//! The control socket with a made-up daemon behind it.

use super::*;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const LONG: Duration = Duration::from_secs(30);

/// Answers `status` with a number, lets `wait` wait for its cancellation, and panics on `reload`.
#[derive(Default)]
struct Fake {
    waiting: AtomicUsize,
    cancelled: AtomicUsize,
    /// Keeps `test-mail` under way.
    hangs: Mutex<()>,
}

impl Handler for Fake {
    fn handle(
        &self,
        request: ControlRequest,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Value, String> {
        match request {
            ControlRequest::Status => Ok(json!({"fine": true})),
            ControlRequest::Wait { .. } => {
                self.waiting.fetch_add(1, Ordering::SeqCst);
                until("the wait is cancelled", cancelled);
                self.cancelled.fetch_add(1, Ordering::SeqCst);
                Err("given up".to_string())
            }
            ControlRequest::Pause { mirror } => Err(format!("no mirror\nis called {mirror}")),
            ControlRequest::Reload => panic!("a handler that panics"),
            ControlRequest::TestMail => {
                self.waiting.fetch_add(1, Ordering::SeqCst);
                drop(self.hangs.lock().unwrap());
                Ok(json!(null))
            }
            other => Ok(other.to_json()),
        }
    }
}

fn until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < deadline, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

struct Stage {
    server: ControlServer,
    fake: Arc<Fake>,
    path: PathBuf,
    _dir: TempDir,
}

fn stage() -> Stage {
    let dir = tempfile::tempdir().unwrap();
    let path = socket_path(dir.path());
    let fake = Arc::new(Fake::default());
    let server = ControlServer::start(&path, fake.clone()).unwrap();
    Stage {
        server,
        fake,
        path,
        _dir: dir,
    }
}

fn ask(path: &Path, request: &ControlRequest) -> Result<Value, ControlError> {
    call(path, request, Some(LONG))
}

fn wait() -> ControlRequest {
    ControlRequest::Wait {
        mirror: None,
        timeout_seconds: None,
    }
}

/// Sends raw bytes and returns the answer to each line.
fn raw(path: &Path, bytes: &[u8], answers: usize) -> Vec<String> {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.write_all(bytes).unwrap();
    let lines = BufReader::new(stream).lines();
    lines.take(answers).map(|l| l.unwrap()).collect()
}

#[test]
fn every_request_survives_the_wire() {
    let name = || Some("web2".to_string());
    for request in [
        ControlRequest::Status,
        ControlRequest::Tasks {
            mirror: name(),
            limit: 7,
        },
        ControlRequest::Wait {
            mirror: name(),
            timeout_seconds: Some(3),
        },
        wait(),
        ControlRequest::Pause {
            mirror: "web2".into(),
        },
        ControlRequest::Resume {
            mirror: "web2".into(),
        },
        ControlRequest::TryAgain { mirror: name() },
        ControlRequest::TryAgain { mirror: None },
        ControlRequest::Forget {
            mirror: "web2".into(),
        },
        ControlRequest::Stop,
        ControlRequest::Reload,
    ] {
        let json = request.to_json();
        assert_eq!(ControlRequest::from_json(&json), Ok(request), "{json}");
    }
}

#[test]
fn a_request_is_answered() {
    let stage = stage();
    let answer = ask(&stage.path, &ControlRequest::Status).unwrap();
    assert_eq!(answer, json!({"fine": true}));
}

#[test]
fn an_error_comes_back_as_one_line() {
    let stage = stage();
    let request = ControlRequest::Pause {
        mirror: "x".to_string(),
    };
    let Err(ControlError::Refused(why)) = ask(&stage.path, &request) else {
        panic!("it was not refused");
    };
    assert_eq!(why, "no mirror is called x");
}

#[test]
fn the_socket_is_for_its_owner_alone() {
    let stage = stage();
    let mode = std::fs::metadata(&stage.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600, "{mode:o}");
}

#[test]
fn a_status_is_answered_while_others_wait() {
    let stage = stage();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| ask(&stage.path, &wait()).unwrap_err());
        }
        until("both wait", || {
            stage.fake.waiting.load(Ordering::SeqCst) == 2
        });
        ask(&stage.path, &ControlRequest::Status).unwrap();
        assert_eq!(stage.fake.cancelled.load(Ordering::SeqCst), 0);
        stage.server.stop();
    });
    assert_eq!(stage.fake.cancelled.load(Ordering::SeqCst), 2);
}

#[test]
fn a_command_learns_that_its_client_hung_up() {
    let stage = stage();
    let mut stream = UnixStream::connect(&stage.path).unwrap();
    stream.write_all(b"{\"command\":\"wait\"}\n").unwrap();
    until("it waits", || {
        stage.fake.waiting.load(Ordering::SeqCst) == 1
    });
    drop(stream);
    until("it is cancelled", || {
        stage.fake.cancelled.load(Ordering::SeqCst) == 1
    });
}

#[test]
fn a_client_without_further_requests_still_gets_its_answer() {
    let stage = stage();
    let mut stream = UnixStream::connect(&stage.path).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.write_all(b"{\"command\":\"wait\"}").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    until("it waits", || {
        stage.fake.waiting.load(Ordering::SeqCst) == 1
    });
    let asked = Instant::now();
    while asked.elapsed() < Duration::from_millis(50) {
        assert_eq!(stage.fake.cancelled.load(Ordering::SeqCst), 0);
    }
    stage.server.stop();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    assert_eq!(answer, "{\"error\":\"given up\"}\n");
}

#[test]
fn garbage_is_answered_with_an_error_and_the_connection_goes_on() {
    let stage = stage();
    let requests = b"hello\n\n[1]\n{\"command\":\"dance\"}\n{\"command\":\"pause\"}\n\
        {\"command\":\"tasks\",\"limit\":-1}\n\xff\xfe\n{\"command\":\"status\"}\n";
    let answers = raw(&stage.path, requests, 7);
    for (answer, expected) in answers.iter().zip([
        "{\"error\":\"the request is no JSON: ",
        "{\"error\":\"a request is an object with a command",
        "{\"error\":\"unknown command: known are status",
        "{\"error\":\"`pause` needs a `mirror`",
        "{\"error\":\"`limit` is not of the right kind",
        "{\"error\":\"the request is no JSON: ",
        "{\"ok\":{\"fine\":true}}",
    ]) {
        assert!(answer.starts_with(expected), "{answer}");
    }
    assert_eq!(answers.len(), 7);
}

#[test]
fn a_line_without_end_is_refused_at_its_limit() {
    let stage = stage();
    let mut request = vec![b' '; MAX_REQUEST];
    request.extend_from_slice(b"xx");
    let answers = raw(&stage.path, &request, 2);
    assert_eq!(
        answers,
        ["{\"error\":\"a request is at most 65536 bytes long\"}"],
        "one answer, then the end"
    );
}

#[test]
fn a_handler_that_panics_loses_one_client_and_no_slot() {
    let stage = stage();
    for _ in 0..MAX_CLIENTS + 1 {
        until("there is room", || stage.server.clients() < MAX_CLIENTS);
        let answer = ask(&stage.path, &ControlRequest::Reload);
        assert!(matches!(answer, Err(ControlError::HungUp)), "{answer:?}");
    }
    ask(&stage.path, &ControlRequest::Status).unwrap();
}

#[test]
fn one_client_too_many_is_told_so() {
    let stage = stage();
    let held: Vec<UnixStream> = (0..MAX_CLIENTS)
        .map(|_| UnixStream::connect(&stage.path).unwrap())
        .collect();
    until("all are in", || stage.server.clients() == MAX_CLIENTS);
    let Err(ControlError::Refused(why)) = ask(&stage.path, &ControlRequest::Status) else {
        panic!("it was not refused");
    };
    assert!(why.starts_with("32 commands are under way"), "{why}");
    drop(held);
    until("they left", || stage.server.clients() == 0);
    ask(&stage.path, &ControlRequest::Status).unwrap();
}

#[test]
fn a_daemon_that_is_not_running_is_told_from_one_that_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = socket_path(dir.path());
    let not_running = |path: &Path| {
        matches!(
            ask(path, &ControlRequest::Status),
            Err(ControlError::NotRunning { .. })
        )
    };
    assert!(not_running(&path), "there is no socket");
    assert!(not_running(&dir.path().join("no/such/directory")));
    drop(UnixListener::bind(&path).unwrap());
    assert!(not_running(&path), "the socket of a dead daemon");
}

#[test]
fn a_daemon_that_does_not_answer_is_given_up_in_time() {
    let stage = stage();
    let brief = Duration::from_millis(30);
    let answer = call(&stage.path, &wait(), Some(brief));
    assert!(
        matches!(answer, Err(ControlError::TimedOut { after }) if after == brief),
        "{answer:?}"
    );
}

#[test]
fn a_dead_daemons_socket_is_replaced_and_a_living_ones_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = socket_path(dir.path());
    drop(UnixListener::bind(&path).unwrap());
    let start = || ControlServer::start(&path, Arc::new(Fake::default()));
    let server = start().unwrap();
    let Err(error) = start() else {
        panic!("a second daemon took the socket");
    };
    assert!(matches!(error, StartError::InUse(_)), "{error}");
    ask(&path, &ControlRequest::Status).unwrap();
    server.stop();
    assert!(!path.exists(), "the socket file stays behind");
    std::fs::write(&path, "a file").unwrap();
    assert!(matches!(start(), Err(StartError::NoSocket(_))));
    assert_eq!(std::fs::read(&path).unwrap(), b"a file");
}

#[test]
fn of_daemons_that_start_together_one_gets_the_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = socket_path(dir.path());
    drop(UnixListener::bind(&path).unwrap());
    let started: Vec<_> = std::thread::scope(|scope| {
        let start = || ControlServer::start(&path, Arc::new(Fake::default()));
        let all: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(started.iter().filter(|s| s.is_ok()).count(), 1);
    ask(&path, &ControlRequest::Status).unwrap();
}

#[test]
fn stopping_leaves_another_daemons_socket_alone() {
    let stage = stage();
    std::fs::remove_file(&stage.path).unwrap();
    let other = UnixListener::bind(&stage.path).unwrap();
    stage.server.stop();
    assert!(stage.path.exists());
    drop(other);
}

#[test]
fn stopping_does_not_wait_for_idle_clients() {
    let stage = stage();
    let idle = UnixStream::connect(&stage.path).unwrap();
    until("it is in", || stage.server.clients() == 1);
    let asked = Instant::now();
    stage.server.stop();
    assert!(asked.elapsed() < LONG, "it waited for the idle time-out");
    drop(idle);
}

#[test]
fn a_path_that_no_socket_can_have_is_refused_clearly() {
    let path = Path::new("/tmp").join("x".repeat(120));
    let Err(error) = ControlServer::start(&path, Arc::new(Fake::default())) else {
        panic!("it started");
    };
    assert!(error.to_string().contains("set a run_dir"), "{error}");
}

/// As root: a thread becomes another user, and the file modes are opened for it.
#[test]
fn a_stranger_is_refused_even_where_the_file_mode_lets_him_in() {
    let stage = stage();
    let open = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(stage.path.parent().unwrap(), 0o755);
    open(&stage.path, 0o666);
    let as_nobody = || {
        let nobody = rustix::fs::Uid::from_raw(65_534);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).expect("these tests need root");
        ask(&stage.path, &ControlRequest::Status)
    };
    let answer = std::thread::scope(|scope| scope.spawn(as_nobody).join().unwrap());
    let Err(ControlError::Refused(why)) = answer else {
        panic!("{answer:?}");
    };
    assert!(why.starts_with("not allowed"), "{why}");
    ask(&stage.path, &ControlRequest::Status).unwrap();
}

#[test]
fn a_command_that_hangs_does_not_keep_the_daemon_from_ending() {
    let stage = stage();
    let hangs = stage.fake.hangs.lock().unwrap();
    let path = stage.path.clone();
    let asked = std::thread::spawn(move || ask(&path, &ControlRequest::TestMail));
    until("it is under way", || {
        stage.fake.waiting.load(Ordering::SeqCst) == 1
    });
    stage.server.stop();
    drop(hangs);
    assert!(asked.join().unwrap().is_ok());
}
