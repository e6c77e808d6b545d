//! The man pages and the completion, read by the programs that they are for. `mandoc`, zsh and fish are asked
//! where they are installed; `man` and bash always.
#![allow(clippy::unwrap_used)]

use clap::CommandFactory;
use proxyfs::cli::Arguments;
use std::path::Path;
use std::process::{Command, Output};

fn pages() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_proxyfs"))
        .arg("pages")
        .arg(dir.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(
        output.stdout.is_empty() && output.stderr.is_empty(),
        "{output:?}"
    );
    dir
}

/// Runs a program to its end; none where it is not installed.
fn ask(program: &str, arguments: &[&str], path: &Path) -> Option<Output> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("MANWIDTH", "80")
        .env("LC_ALL", "C.UTF-8");
    // The program whose completion is asked is the one that is tested.
    let own = Path::new(env!("CARGO_BIN_EXE_proxyfs")).parent().unwrap();
    let others = std::env::var("PATH").unwrap();
    command.env("PATH", format!("{}:{others}", own.display()));
    command.env("PROXYFS_CONFIG", path.join("proxyfs.ini"));
    match command.output() {
        Ok(output) => Some(output),
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => None,
        Err(why) => panic!("{program}: {why}"),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn the_man_pages_are_read_without_a_complaint() {
    let dir = pages();
    for page in ["proxyfs.8", "proxyfs.ini.5"].map(|p| dir.path().join(p)) {
        let page = page.to_str().unwrap();
        let shown = ask("man", &["--warnings", "-l", page], dir.path()).expect("man-db is needed");
        assert!(
            shown.status.success() && shown.stderr.is_empty(),
            "{shown:?}"
        );
        let shown = text(&shown.stdout);
        assert!(shown.lines().all(|l| l.chars().count() <= 80), "{shown}");
        assert!(shown.contains("SEE ALSO"), "{shown}");
        if let Some(lint) = ask("mandoc", &["-T", "lint", "-W", "style", page], dir.path()) {
            assert!(lint.status.success(), "{}", text(&lint.stdout));
        }
    }
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/mount.proxyfs.8");
    if let (true, Some(lint)) = (
        page.exists(),
        ask(
            "mandoc",
            &["-T", "lint", "-W", "style", page.to_str().unwrap()],
            dir.path(),
        ),
    ) {
        assert!(lint.status.success(), "{}", text(&lint.stdout));
    }
}

/// A configuration with two mirrors, and a journal that no daemon uses.
fn configured() -> tempfile::TempDir {
    let dir = pages();
    let d = dir.path().display();
    std::fs::create_dir(dir.path().join("www")).unwrap();
    let mirror = |name: &str| {
        format!("[mirror {name}]\nhost = {name}.example.com\nuser = u\npath = /{name}\n")
    };
    let ini = format!(
        "[proxyfs]\nsource = {d}/www\nmount_point = {d}/www\nstate_dir = {d}/state\nrun_dir = {d}/run\n{}{}",
        mirror("web2"),
        mirror("web3")
    );
    std::fs::write(dir.path().join("proxyfs.ini"), ini).unwrap();
    std::fs::create_dir(dir.path().join("state")).unwrap();
    drop(proxyfs::journal::Journal::open(&dir.path().join("state")).unwrap());
    dir
}

/// What is offered behind the words, of which the last is incomplete.
type Shell = fn(&Path, &[&str]) -> Option<Vec<String>>;

fn bash(dir: &Path, words: &[&str]) -> Option<Vec<String>> {
    let script = ". \"$0\"; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); _proxyfs; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let file = dir.join("proxyfs.bash");
    let mut arguments = vec!["--norc", "-c", script, file.to_str().unwrap()];
    arguments.extend(words);
    let output = ask("bash", &arguments, dir).expect("bash is needed");
    assert!(output.stderr.is_empty(), "{words:?} {output:?}");
    Some(text(&output.stdout).lines().map(str::to_string).collect())
}

fn fish(dir: &Path, words: &[&str]) -> Option<Vec<String>> {
    let script = format!(
        "source {}/proxyfs.fish; complete -C '{}'",
        dir.display(),
        words.join(" ")
    );
    let output = ask("fish", &["--no-config", "-c", &script], dir)?;
    assert!(output.stderr.is_empty(), "{words:?} {output:?}");
    let offers = text(&output.stdout);
    let word = |l: &str| l.split('\t').next().unwrap().to_string();
    Some(offers.lines().map(word).collect())
}

#[test]
fn shells_complete_commands_options_and_the_names_of_mirrors() {
    let dir = configured();
    let program = Arguments::command();
    let commands: Vec<&str> = program
        .get_subcommands()
        .filter(|c| !c.is_hide_set())
        .map(clap::Command::get_name)
        .collect();
    for shell in [bash as Shell, fish] {
        let Some(all) = shell(dir.path(), &["proxyfs", ""]) else {
            continue;
        };
        for command in &commands {
            assert!(all.iter().any(|o| o == command), "{command}: {all:?}");
        }
        assert!(!all.iter().any(|o| o == "pages"), "{all:?}");
        for (words, wanted) in [
            (&["proxyfs", "pause", ""][..], &["web2", "web3"][..]),
            (
                &["proxyfs", "tasks", "--limit", "3", "we"],
                &["web2", "web3"],
            ),
            (&["proxyfs", "wait", "web2", "--ti"], &["--timeout"]),
            (
                &["proxyfs", "status", "--"],
                &["--json", "--config", "--help"],
            ),
        ] {
            let offers = shell(dir.path(), words).unwrap();
            for wanted in wanted {
                assert!(
                    offers.iter().any(|o| o.starts_with(wanted)),
                    "{words:?}: {offers:?}"
                );
            }
        }
    }
    // zsh completes only for who sits at a terminal; here it says whether it can read it.
    let file = dir.path().join("_proxyfs");
    if let Some(read) = ask("zsh", &["-n", file.to_str().unwrap()], dir.path()) {
        assert!(read.status.success() && read.stderr.is_empty(), "{read:?}");
    }
    // A number is not completed, a file is.
    let offers = bash(dir.path(), &["proxyfs", "tasks", "--limit", ""]).unwrap();
    assert_eq!(offers.concat(), "");
    let file = dir.path().join("proxyfs.i");
    for command in [
        &["proxyfs", "--config"][..],
        &["proxyfs", "status", "--config"],
    ] {
        let words = [command, &[file.to_str().unwrap()]].concat();
        let offers = bash(dir.path(), &words).unwrap();
        assert!(offers.concat().ends_with("proxyfs.ini"), "{offers:?}");
    }
}
