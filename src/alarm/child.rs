//! Running a program within a time: a hook, or sendmail.
//!
//! The dangers: a program that never ends (it is killed, with its whole process group); one that does not read
//! its input, or writes more than a pipe holds (both are served without waiting for either); one that leaves
//! a child behind that keeps the pipe open (its end is waited for, not the pipe's).

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, Signal, kill_process_group};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// So much of what a program says is kept.
const MOST_OUTPUT: usize = 4096;
/// How often it is looked after.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Runs `command` with `input` on its standard input, for at most `limit`.
///
/// # Errors
/// It could not be started, did not end in time, or failed; with what it said.
pub fn run(mut command: Command, input: &[u8], limit: Duration) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |why: &dyn std::fmt::Display| format!("{program}: {why}");
    let (mut said, says) = io::pipe().map_err(|e| failed(&e))?;
    let also_says = says.try_clone().map_err(|e| failed(&e))?;
    command
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(also_says)
        .stderr(says);
    let mut child = command.spawn().map_err(|e| failed(&e))?;
    drop(command); // and its ends of the pipe
    let mut stdin = child.stdin.take();
    let unblocked = do_not_wait(&said).and_then(|()| stdin.as_ref().map_or(Ok(()), do_not_wait));
    let deadline = Instant::now() + limit;
    let (mut output, mut written) = (Vec::new(), 0);
    let status = loop {
        if let Some(pipe) = &mut stdin {
            match pipe.write(&input[written..]) {
                Ok(n) => written += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => written = input.len(), // it does not want to know
            }
            if written == input.len() {
                stdin = None;
            }
        }
        let ended = child.try_wait().map_err(|e| failed(&e))?;
        let mut buffer = [0; 4096];
        while unblocked.is_ok()
            && let Ok(n @ 1..) = said.read(&mut buffer)
        {
            let room = MOST_OUTPUT.saturating_sub(output.len());
            output.extend_from_slice(&buffer[..n.min(room)]);
        }
        if let Some(status) = ended {
            break Some(status);
        }
        if Instant::now() >= deadline || unblocked.is_err() {
            break None;
        }
        std::thread::sleep(LOOK_EVERY);
    };
    let said = String::from_utf8_lossy(&output);
    let said = said.trim();
    let told = match said.is_empty() {
        true => String::new(),
        false => format!(": {said}"),
    };
    match status {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(failed(&format!("it failed ({status}){told}"))),
        None => {
            if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                // Gone already: nothing to kill.
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = child.wait();
            unblocked.map_err(|e| failed(&e))?;
            let seconds = limit.as_secs_f32();
            Err(failed(&format!(
                "it did not end within {seconds} s and was killed{told}"
            )))
        }
    }
}

fn do_not_wait(pipe: &impl AsFd) -> io::Result<()> {
    let flags = fcntl_getfl(pipe)?;
    Ok(fcntl_setfl(pipe, flags | OFlags::NONBLOCK)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn it_gets_its_input_and_what_it_says_is_told_when_it_fails() {
        let long = vec![b'x'; 300_000];
        assert_eq!(
            run(sh("test $(wc -c) = 300000"), &long, Duration::from_secs(60)),
            Ok(())
        );
        // It does not read, and says more than a pipe holds.
        let chatty = sh("seq 100000; echo so it is >&2; exit 3");
        let why = run(chatty, &long, Duration::from_secs(60)).unwrap_err();
        assert!(
            why.starts_with("/bin/sh: it failed (exit status: 3): 1\n2\n"),
            "{why}"
        );
        let why = run(Command::new("/no/such"), b"", Duration::from_secs(1)).unwrap_err();
        assert!(why.starts_with("/no/such: No such file"), "{why}");
    }

    #[test]
    fn one_that_does_not_end_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", pid.display());
        let why = run(sh(&script), b"", Duration::from_millis(500)).unwrap_err();
        assert!(
            why.ends_with("it did not end within 0.5 s and was killed"),
            "{why}"
        );
        let pid: i32 = std::fs::read_to_string(pid)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let deadline = Instant::now() + Duration::from_secs(30);
        while !(state().is_empty() || state().contains(") Z ")) {
            assert!(Instant::now() < deadline, "it lives: {}", state());
            std::thread::sleep(LOOK_EVERY);
        }
    }

    #[test]
    fn a_child_that_is_left_behind_is_not_waited_for_whatever_it_holds_open() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; exit 0", pid.display());
        assert_eq!(run(sh(&script), b"", Duration::from_secs(60)), Ok(()));
        let pid: i32 = std::fs::read_to_string(pid)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    }
}
