//! Arguments -> one command -> exit code.

mod asking;
mod syncing;

use asking::{ANSWER_WITHIN, Daemon, ask, checked, status, status_of, tell};
use clap::Parser;
use proxyfs::cli::{Arguments, Command};
use proxyfs::config::{Config, ConfigError, FirstSync, Login, MirrorConfig, Overrides};
use proxyfs::console;
use proxyfs::control::{ControlError, ControlRequest};
use proxyfs::daemon;
use proxyfs::doctor::{self, Check, Report};
use proxyfs::journal;
use proxyfs::mount;
use proxyfs::pages;
use proxyfs::screen::{self, Look};
use proxyfs::setup::{self, Wish};
use proxyfs::sftp::session::HostKey;
use proxyfs::status::check::{self, Level, Thresholds};
use proxyfs::status::{Task, metrics, show, table};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::Value;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// It could not be done, or what was asked is not so.
const FAILED: u8 = 1;
/// The command line or the configuration is wrong. (clap exits with the same.)
const WRONG: u8 = 2;

/// The longest wait for a mail server: it has a time for each step of the conversation.
const MAILED_WITHIN: Duration = Duration::from_secs(180);

/// How long `stop` waits for the daemon to be gone: a little longer than that takes at most.
const GONE_WITHIN: Duration = Duration::from_secs(20);

/// Why a command failed, and the exit code that says so.
struct Failure(u8, String);

impl Failure {
    fn new(why: impl Display) -> Failure {
        Failure(FAILED, why.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(why: std::io::Error) -> Failure {
        Failure::new(why)
    }
}

impl From<ConfigError> for Failure {
    fn from(why: ConfigError) -> Failure {
        Failure(WRONG, why.to_string())
    }
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        // To who runs plugins, 2 is "critical".
        Err(why) if why.exit_code() == i32::from(WRONG) && is_check() => {
            let words = why.to_string();
            let first = words.lines().next().unwrap_or_default();
            let line = check::line(Level::Unknown, first);
            let _ = print(&format!("{line}\n")); // nobody reads it
            return ExitCode::from(Level::Unknown as u8);
        }
        Err(why) => why.exit(),
    };
    ExitCode::from(done(command(arguments)))
}

/// The exit code of a command that has ended; why it failed is told.
fn done(result: Result<(), Failure>) -> u8 {
    match result {
        Ok(()) => 0,
        Err(Failure(code, why)) => {
            // Who has told all himself leaves nothing to tell.
            if !why.is_empty() {
                eprintln!("proxyfs: {}", why.trim_end());
            }
            code
        }
    }
}

/// The prompt; each line is a command line of this program, with the same configuration.
fn console(file: &Path) -> Result<(), Failure> {
    let load = || Config::load(file, Overrides::default());
    // What is in the way is better known before the first command.
    let config = load()?;
    let history = config.state_dir.join(console::HISTORY_FILE);
    let history = config.state_dir.is_dir().then_some(history);
    let mut mirrors = || {
        let configured = load().map(|c| c.mirrors).unwrap_or_default();
        let known = |m: MirrorConfig| console::Known {
            name: m.name,
            host: m.host,
        };
        configured.into_iter().map(known).collect()
    };
    let mut act = |words: &[String]| {
        let line = ["proxyfs", "--config"].map(OsString::from);
        let line = line.into_iter().chain([file.into()]);
        match Arguments::try_parse_from(line.chain(words.iter().map(OsString::from))) {
            Ok(arguments) => done(command(arguments)) == 0,
            Err(why) => {
                // Help and version come this way too; a terminal that has gone is no matter here.
                let _ = why.print();
                why.exit_code() == 0
            }
        }
    };
    match console::run(history.as_deref(), &mut mirrors, &mut act)? {
        true => Ok(()),
        // What failed has been told.
        false => Err(Failure(FAILED, String::new())),
    }
}

/// Whether the command line, which may be wrong, is of `check`.
fn is_check() -> bool {
    let mut words = std::env::args_os().skip(1);
    while let Some(word) = words.next() {
        match word.to_string_lossy().as_ref() {
            "--config" => drop(words.next()),
            option if option.starts_with('-') => {}
            command => return command == "check",
        }
    }
    false
}

fn command(arguments: Arguments) -> Result<(), Failure> {
    let file = arguments.config_file(daemon::config_from_environment());
    let load = || Config::load(&file, Overrides::default());
    match arguments.command {
        Command::Run {
            source,
            mount_point,
        } => {
            let overrides = Overrides {
                source,
                mount_point,
            };
            let config = Config::load(&file, overrides.clone())?;
            daemon::run(config, overrides).map_err(Failure::new)
        }
        Command::CheckConfig => {
            let config = load()?;
            config
                .warnings
                .iter()
                .for_each(|w| eprintln!("proxyfs: warning: {w}"));
            print(&format!("{}: no problem found\n", file.display()))
        }
        Command::Status { json, watch } => {
            let daemon = Daemon::of(&file)?;
            let first = status(&daemon)?;
            daemon.warn();
            match (json, watch) {
                (true, false) => print_json(&first.to_json()),
                (false, false) => print(&table::screen(&first, &Look::of_stdout())),
                (true, true) => screen::watch(|_| Ok(format!("{}\n", status(&daemon)?.to_json()))),
                (false, true) => screen::watch(|look| Ok(table::screen(&status(&daemon)?, look))),
            }
        }
        Command::Tasks {
            mirror,
            json,
            limit,
        } => {
            let daemon = Daemon::of(&file)?;
            // One more than wanted tells whether there are more.
            let request = ControlRequest::Tasks {
                mirror: mirror.clone(),
                limit: limit.saturating_add(1),
            };
            let asked = daemon.ask(&request, Some(ANSWER_WITHIN))?;
            let mut tasks = match (asked, &daemon.config) {
                (Ok(answer), _) => Task::list_from_json(&answer).map_err(Failure::new)?,
                (Err(ControlError::NotRunning { .. }), Ok(config)) => {
                    let limit = limit.saturating_add(1);
                    daemon::tasks_from_journal(config, mirror.as_deref(), limit)
                        .map_err(Failure::new)?
                }
                (Err(why), _) => return Err(Failure::new(why)),
            };
            daemon.warn();
            let mut more = (tasks.len() as u64).saturating_sub(limit);
            tasks.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
            if more > 0 && !json {
                let all = status(&daemon)?.mirrors.into_iter();
                let asked = all.filter(|m| mirror.as_ref().is_none_or(|name| *name == m.name));
                let pending: u64 = asked.map(|m| m.pending_ops).sum();
                more = more.max(pending.saturating_sub(tasks.len() as u64));
            }
            if json {
                print_json(&Task::list_to_json(&tasks))
            } else {
                print(&show::tasks_table(&tasks, more))
            }
        }
        Command::Wait { name, timeout } => {
            let request = ControlRequest::Wait {
                mirror: name,
                timeout_seconds: timeout,
            };
            // The daemon keeps the time; should it hang, this does.
            let limit = timeout.map(|s| Duration::from_secs(s).saturating_add(ANSWER_WITHIN));
            let daemon = Daemon::of(&file)?;
            let asked = daemon.ask(&request, limit)?;
            daemon.warn();
            asked.map(drop).map_err(Failure::new)
        }
        Command::Pause { name } => tell(&load()?, &ControlRequest::Pause { mirror: name }),
        Command::Resume { name } => tell(&load()?, &ControlRequest::Resume { mirror: name }),
        Command::Sync {
            name,
            delete,
            checksum,
        } => syncing::sync(&load()?, name, delete, checksum),
        Command::Verify {
            name,
            checksum,
            json,
        } => syncing::verify(&load()?, name, checksum, json),
        Command::TryAgain { name } => tell(&load()?, &ControlRequest::TryAgain { mirror: name }),
        Command::Reload => {
            let answer = ask(&load()?, &ControlRequest::Reload, Some(ANSWER_WITHIN));
            let answer = answer.map_err(Failure::new)?;
            print(&format!("{}\n", answer.as_str().unwrap_or_default()))
        }
        Command::Check {
            name,
            lag_warning,
            lag_critical,
            pending_warning,
            pending_critical,
        } => {
            let bad = Thresholds {
                lag: (lag_warning, lag_critical),
                pending: (pending_warning, pending_critical),
            };
            checked(&file, name.as_deref(), &bad)
        }
        Command::Metrics => {
            let daemon = Daemon::of(&file)?;
            let status = status(&daemon)?;
            daemon.warn();
            print(&metrics::text(&status))
        }
        Command::TestMail => {
            let config = load()?;
            let said = match ask(&config, &ControlRequest::TestMail, Some(MAILED_WITHIN)) {
                Ok(answer) => answer.as_str().unwrap_or_default().to_string(),
                Err(ControlError::NotRunning { .. }) => {
                    let said = daemon::test_mail(&config).map_err(Failure::new)?;
                    format!("the daemon is not running; sent by this command: {said}")
                }
                Err(why) => return Err(Failure::new(why)),
            };
            print(&format!("{said}\n"))
        }
        Command::Stop { stale } => stop(&load()?, stale),
        Command::Pages { directory } => pages::write(&directory).map_err(Failure::new),
        Command::Console => console(&file),
        Command::AddMirror {
            host,
            user,
            path,
            name,
            port,
            key,
            assume_synced,
            delete,
            accept_key,
        } => {
            let first_sync = match (assume_synced, delete) {
                (true, _) => FirstSync::None,
                (false, true) => FirstSync::Delete,
                (false, false) => FirstSync::Keep,
            };
            let wish = Wish {
                name,
                host,
                user,
                path,
                port,
                key,
                first_sync,
            };
            add_mirror(&load()?, &wish, accept_key)
        }
        Command::RemoveMirror { name, yes } => remove_mirror(&load()?, &name, yes),
        Command::Rebuild { yes } => rebuild(&load()?, yes),
        Command::Doctor { name } => doctor(&load()?, name.as_deref()),
    }
}

/// Tries a mirror out and adds it.
fn add_mirror(config: &Config, wish: &Wish, accept_key: bool) -> Result<(), Failure> {
    let plan = setup::plan(config, wish).map_err(Failure::new)?;
    let MirrorConfig {
        name, user, path, ..
    } = &plan.mirror;
    print(&format!("trying {user}@{}:{path}\n", wish.host))?;
    let mut tell = tell_checks();
    let mut report = Report::new(&mut tell);
    let mut ask = |host: &str, key: &HostKey| {
        let shown = format!("{host} shows the {} key {}", key.kind(), key.fingerprint());
        if accept_key {
            println!("  {shown}: accepted as --accept-key says");
            return true;
        }
        println!(
            "  {shown}.\n  Compare it with what `ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub` says there, at its \
             console or by a way you trust."
        );
        confirm("  Is it the right one?", "--accept-key")
    };
    let session = setup::reach(&plan, &mut report, &mut ask).map_err(Failure::new)?;
    let reached =
        session.map(|mut session| doctor::examine(&mut session, &plan.mirror, &mut report));
    if !report.well {
        if reached.is_none() && report.login_failed {
            print(&public_keys(&plan.mirror))?;
        }
        return Err(Failure::new(
            "nothing was added: put right what failed, then do this again",
        ));
    }
    let all = setup::save(&plan, config).map_err(Failure::new)?;
    print(&format!("mirror {name} is in {}\n", plan.file.display()))?;
    let then = match wish.first_sync {
        FirstSync::None => "what changes from here on is sent",
        FirstSync::Keep | FirstSync::Delete => "it is being made like the source",
    };
    let took = ask_daemon_to_reload(&all)?;
    if took && status_of(&all)?.mirrors.iter().all(|m| m.name != *name) {
        return Err(Failure::new(
            "the daemon does not have it: it uses another configuration; see `proxyfs status`",
        ));
    }
    match took {
        true => print(&format!(
            "{then}: `proxyfs status --watch` shows it, `proxyfs wait {name}` waits for it\n"
        )),
        false => print("the daemon is not running: it begins with `proxyfs run` or its service\n"),
    }
}

/// The public halves of the keys that were tried, for the mirror's authorized_keys.
fn public_keys(mirror: &MirrorConfig) -> String {
    let files = match &mirror.login {
        Login::Keys(files) | Login::UsualKeys(files) => files.as_slice(),
        Login::Agent => &[],
    };
    let mut text = String::new();
    for file in files {
        let mut public = file.clone().into_os_string();
        public.push(".pub");
        if let Ok(line) = std::fs::read_to_string(public) {
            text += &format!(
                "the public key of {}:\n{}\n",
                file.display(),
                line.trim_end()
            );
        }
    }
    text
}

/// Has the daemon read its configuration; false: it is not running.
fn ask_daemon_to_reload(config: &Config) -> Result<bool, Failure> {
    match ask(config, &ControlRequest::Reload, Some(ANSWER_WITHIN)) {
        Ok(answer) => print(&format!("{}\n", answer.as_str().unwrap_or_default())).map(|()| true),
        Err(ControlError::NotRunning { .. }) => Ok(false),
        Err(why) => Err(Failure::new(format!(
            "the daemon could not take it over: {why}"
        ))),
    }
}

fn remove_mirror(config: &Config, name: &str, yes: bool) -> Result<(), Failure> {
    let file = setup::own_file(config, name).map_err(Failure::new)?;
    // Without a journal nothing can be pending.
    let pending = match config.state_dir.join(journal::FILE_NAME).exists() {
        true => {
            let mirrors = status_of(config)?.mirrors.into_iter();
            mirrors
                .filter(|m| m.name == name)
                .map(|m| m.pending_ops)
                .next()
        }
        false => None,
    };
    if let Some(pending @ 1..) = pending
        && !yes
    {
        println!(
            "{name} lacks {}, and will not get them.",
            show::changes(pending)
        );
        if !confirm("Remove it all the same?", "--yes") {
            return Err(Failure::new("nothing was removed"));
        }
    }
    setup::forget(&file).map_err(Failure::new)?;
    if ask_daemon_to_reload(config)? {
        let mirror = name.to_string();
        tell(config, &ControlRequest::Forget { mirror })?;
    } else {
        daemon::forget_mirror(config, name).map_err(Failure::new)?;
        print(&format!("mirror {name} removed\n"))?;
    }
    print("what is on it stays as it is\n")
}

fn rebuild(config: &Config, yes: bool) -> Result<(), Failure> {
    let rebuild = daemon::Rebuild::prepare(config).map_err(Failure::new)?;
    let names: Vec<&str> = config.mirrors.iter().map(|m| m.name.as_str()).collect();
    let mirrors = match &names[..] {
        [] => "There are no mirrors that it would forget anything of.".to_string(),
        names => format!(
            "What it knows of the mirrors is forgotten: each ({}) is compared with the whole source, and what differs \
             is sent. What only a mirror has stays there, also what was deleted here and not yet there.",
            names.join(", ")
        ),
    };
    print(&format!(
        "A new journal takes the place of the one in {}, which is kept under another name.\n{mirrors}\n",
        config.state_dir.display()
    ))?;
    if !yes && !confirm("Begin a new journal?", "--yes") {
        return Err(Failure::new("nothing was changed"));
    }
    let kept = rebuild.carry_out().map_err(Failure::new)?;
    if let Some(kept) = kept {
        let kept = kept.display();
        print(&format!("the journal that was there is {kept} now\n"))?;
    }
    print(
        "start the daemon: `proxyfs run` or its service; `proxyfs status` tells how far each mirror is\n",
    )
}

/// Checks this host and the mirrors, or one mirror.
fn doctor(config: &Config, name: Option<&str>) -> Result<(), Failure> {
    let mirrors: Vec<&MirrorConfig> = match name {
        Some(name) => vec![config.mirror(name).ok_or_else(|| {
            let known: Vec<&str> = config.mirrors.iter().map(|m| m.name.as_str()).collect();
            Failure::new(format!(
                "there is no mirror {name:?}; configured: {}",
                known.join(", ")
            ))
        })?],
        None => config.mirrors.iter().collect(),
    };
    let mut tell = tell_checks();
    let mut report = Report::new(&mut tell);
    if name.is_none() {
        print("this host\n")?;
        let daemon = ask(config, &ControlRequest::Status, Some(ANSWER_WITHIN));
        let pid = daemon.ok().and_then(|s| s.get("pid")?.as_u64());
        doctor::examine_host(config, pid.and_then(|p| p.try_into().ok()), &mut report);
    }
    for mirror in mirrors {
        print(&format!(
            "{}: {}@{}:{}\n",
            mirror.name, mirror.user, mirror.host, mirror.path
        ))?;
        match doctor::connect(mirror, &mut report) {
            Ok(Some(mut session)) => doctor::examine(&mut session, mirror, &mut report),
            Ok(None) => {}
            Err(why) => report.bad("host key", why.to_string()),
        }
    }
    match report.well {
        true => Ok(()),
        false => Err(Failure::new(
            "something does not work: see the lines with FAIL",
        )),
    }
}

/// Shows checks as they are made.
fn tell_checks() -> impl FnMut(&Check) {
    let look = Look::of_stdout();
    move |check: &Check| drop(print(&check.show(&look)))
}

/// Asks a person; without one (no terminal) the answer is no, and it is said which option says yes.
fn confirm(question: &str, option: &str) -> bool {
    if !std::io::stdin().is_terminal() {
        eprintln!("proxyfs: there is nobody to ask: give {option} if it is");
        return false;
    }
    loop {
        let _ = print(&format!("{question} [yes/no] "));
        let mut answer = String::new();
        match std::io::stdin().read_line(&mut answer) {
            Ok(0) | Err(_) => return false,
            Ok(_) => match answer.trim() {
                "yes" => return true,
                "no" | "n" => return false,
                _ => {}
            },
        }
    }
}

/// Tells the daemon to stop and waits until it is gone: its process has ended, and with it its mount. The mount of a
/// daemon that was killed is taken away; `stale`: only that.
fn stop(config: &Config, stale: bool) -> Result<(), Failure> {
    let cleared = || mount::clear_stale(&config.mount_point).map_err(Failure::new);
    if stale {
        return cleared().map(drop);
    }
    let status = match ask(config, &ControlRequest::Status, Some(ANSWER_WITHIN)) {
        Err(ControlError::NotRunning { .. }) if cleared()? => {
            return print(&format!(
                "the daemon was not running; what it had left at {} is taken away\n",
                config.mount_point.display()
            ));
        }
        status => status.map_err(Failure::new)?,
    };
    let pid = status
        .get("pid")
        .and_then(Value::as_i64)
        .and_then(|pid| i32::try_from(pid).ok());
    // Held from before the end, so that it can't be taken for another process's.
    let process = pid
        .and_then(Pid::from_raw)
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    tell(config, &ControlRequest::Stop)?;
    let Some(process) = process else {
        return Ok(());
    };
    let limit = Timespec {
        tv_sec: GONE_WITHIN.as_secs() as i64,
        tv_nsec: 0,
    };
    match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit)) {
        Ok(0) => Err(Failure::new(format!(
            "the daemon did not end within {} s: see its log",
            GONE_WITHIN.as_secs()
        ))),
        Ok(_) => Ok(()),
        Err(why) => Err(Failure::new(why)),
    }
}

fn print_json(value: &Value) -> Result<(), Failure> {
    print(&format!("{value:#}\n"))
}

/// Writes to standard output. A reader that has gone (`| head`) is no error.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(why) if why.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::new(why)),
        _ => Ok(()),
    }
}
