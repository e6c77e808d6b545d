//! The README held against the program: its settings, commands, configurations and messages are the
//! program's, and what it tells the reader to do works.
#![allow(clippy::unwrap_used)]

use super::support::daemon::Daemon;
use super::support::sshd::Sshd;
use super::support::tree::assert_same;
use clap::{CommandFactory, Parser};
use proxyfs::cli::Arguments;
use proxyfs::config::{Absent, Config, Overrides, SETTINGS, Setting};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// The blocks of a language (```` ```sh ````).
fn blocks(text: &str, language: &str) -> Vec<String> {
    let mut open: Option<(bool, String)> = None;
    let mut found = Vec::new();
    for line in text.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(of)) => open = Some((of == language, String::new())),
            (None, None) => {}
            (Some((wanted, block)), Some(_)) => {
                if *wanted {
                    found.push(std::mem::take(block));
                }
                open = None;
            }
            (Some((_, block)), None) => *block += &format!("{line}\n"),
        }
    }
    found
}

/// The rows of all tables whose head is `head`.
fn rows<'a>(text: &'a str, head: &str) -> Vec<&'a str> {
    let mut found = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line == head {
            found.extend(lines.by_ref().skip(1).take_while(|l| l.starts_with('|')));
        }
    }
    found
}

fn setting_row(setting: &Setting) -> String {
    let absent = match setting.absent {
        Absent::Required(_) => "required".to_string(),
        Absent::Default(value) => format!("`{value}`"),
        Absent::Unset(_) => "not set".to_string(),
    };
    format!("| `{}` | {absent} | {} |", setting.name, setting.help)
}

/// The rows of the table of commands, out of what `--help` is made of.
fn command_rows() -> Vec<String> {
    let program = Arguments::command();
    let shown = program.get_subcommands().filter(|c| !c.is_hide_set());
    shown
        .map(|command| {
            let mut row = format!("| `{}", command.get_name());
            let named = |a: &&clap::Arg| !matches!(a.get_id().as_str(), "config" | "help");
            let mut optional = Vec::new();
            for argument in command.get_arguments().filter(named) {
                let values = argument.get_value_names().unwrap_or_default().join(" ");
                match argument.get_long() {
                    None if argument.is_required_set() => row += &format!(" {values}"),
                    None => optional.push(values),
                    Some(long) if argument.get_action().takes_values() => {
                        row += &format!(" [--{long} {values}]");
                    }
                    Some(long) => row += &format!(" [--{long}]"),
                }
            }
            if !optional.is_empty() {
                let at = "| `".len() + command.get_name().len();
                row.insert_str(at, &format!(" [{}]", optional.join(" ")));
            }
            let about = command
                .get_about()
                .map(ToString::to_string)
                .unwrap_or_default();
            // Its first paragraph is the short help.
            let long = command.get_long_about().map(ToString::to_string);
            let long = long.unwrap_or_default();
            let more = long.strip_prefix(about.as_str()).unwrap_or_default();
            let more = more.split_whitespace().collect::<Vec<_>>().join(" ");
            let more = if more.is_empty() {
                more
            } else {
                format!(" {more}")
            };
            format!("{row}` | {about}.{more} |")
        })
        .collect()
}

const SETTINGS_HEAD: &str = "| setting | default | meaning |";
const COMMANDS_HEAD: &str = "| command | does |";

#[test]
fn the_readme_lists_the_settings_with_their_defaults() {
    let expected: Vec<String> = SETTINGS.iter().map(setting_row).collect();
    let readme = read("README.md");
    let found = rows(&readme, SETTINGS_HEAD);
    assert!(
        found == expected,
        "run `make tables`; it should be:\n{}",
        expected.join("\n")
    );
    assert!(SETTINGS.is_sorted_by_key(|s| s.section()));
}

#[test]
fn the_readme_lists_the_commands_with_their_options() {
    let expected = command_rows();
    let readme = read("README.md");
    let found = rows(&readme, COMMANDS_HEAD);
    assert!(
        found == expected,
        "run `make tables`; it should be:\n{}",
        expected.join("\n")
    );
}

/// Rewrites the tables of the README: `make tables`.
#[test]
#[ignore = "writes README.md; run by `make tables`"]
fn write_the_tables_of_the_readme() {
    let mut sections: Vec<Vec<String>> = Vec::new();
    for (i, setting) in SETTINGS.iter().enumerate() {
        if i == 0 || SETTINGS[i - 1].section() != setting.section() {
            sections.push(Vec::new());
        }
        sections.last_mut().unwrap().push(setting_row(setting));
    }
    let mut sections = sections.into_iter();
    let readme = read("README.md");
    let mut written = String::new();
    let mut lines = readme.lines();
    while let Some(line) = lines.next() {
        written += &format!("{line}\n");
        let rows = match line {
            COMMANDS_HEAD => command_rows(),
            SETTINGS_HEAD => sections.next().unwrap(),
            _ => continue,
        };
        written += &format!("{}\n{}\n", lines.next().unwrap(), rows.join("\n"));
        let behind = lines.by_ref().find(|l| !l.starts_with('|'));
        written += &format!("{}\n", behind.unwrap_or_default());
    }
    assert!(sections.next().is_none(), "a section has no table");
    fs::write(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"),
        written,
    )
    .unwrap();
}

#[test]
fn the_commands_in_the_readme_are_commands() {
    let mut checked = 0;
    for block in blocks(&read("README.md"), "sh") {
        for command in block.replace("\\\n", " ").lines() {
            for part in command.split("&&").map(str::trim) {
                if part.starts_with("proxyfs ") {
                    Arguments::try_parse_from(part.split_whitespace()).expect(part);
                    checked += 1;
                }
            }
        }
    }
    assert!(checked > 10, "{checked}");
}

#[test]
fn the_configurations_in_the_readme_are_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("proxyfs.ini");
    let [main, second, mail] = blocks(&read("README.md"), "ini").try_into().unwrap();
    fs::write(&file, main + &mail).unwrap();
    fs::create_dir(dir.path().join("mirrors.d")).unwrap();
    fs::write(dir.path().join("mirrors.d/web3.ini"), second).unwrap();
    let config = Config::load(&file, Overrides::default()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(config.mirrors.len(), 2);
    assert_eq!(config.mail.to, ["admin@example.com"]);
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

/// The sources as one text, as messages read: lines that a string continues are joined.
fn sources() -> String {
    let mut all = String::new();
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => open.push(path),
                false => all += &fs::read_to_string(path).unwrap(),
            }
        }
    }
    let mut joined = String::new();
    for (i, piece) in all.split("\\\n").enumerate() {
        joined += if i == 0 { piece } else { piece.trim_start() };
    }
    joined.replace("\\\"", "\"")
}

#[test]
fn the_messages_in_the_readme_are_the_programs() {
    let (readme, sources) = (read("README.md"), sources());
    let message = |line: &'_ str| -> Option<String> {
        let bold = line.strip_prefix("**`")?.strip_suffix("`**")?;
        Some(bold.to_string())
    };
    let messages: Vec<String> = readme.lines().filter_map(message).collect();
    assert!(messages.len() > 30, "{messages:#?}");
    for message in messages {
        for part in message.split("...") {
            assert!(
                sources.contains(part),
                "no message says {part:?}: {message}"
            );
        }
    }
}

#[test]
fn every_section_and_file_that_the_readme_links_to_is_there() {
    let readme = read("README.md");
    let sections: Vec<String> = readme
        .lines()
        .filter(|l| l.starts_with('#'))
        .map(|l| {
            let title = l.trim_start_matches('#').trim().to_lowercase();
            let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-');
            title
                .chars()
                .filter(kept)
                .collect::<String>()
                .replace(' ', "-")
        })
        .collect();
    let links = readme.split("](").skip(1);
    let links: Vec<&str> = links.filter_map(|l| l.split(')').next()).collect();
    assert!(links.len() > 5, "{links:?}");
    for link in links {
        match link.strip_prefix('#') {
            Some(section) => assert!(sections.iter().any(|s| s == section), "{link}"),
            None => drop(read(link)),
        }
    }
}

/// The account of step 3: a chroot that belongs to root, `internal-sftp` and nothing else.
#[test]
fn the_account_of_the_readme_is_a_mirror() {
    let readme = read("README.md");
    let block = blocks(&readme, "")
        .into_iter()
        .find_map(|b| b.strip_prefix("Match User mirror\n").map(str::to_string))
        .unwrap();
    // sshd wants every directory above a chroot to be root's: /tmp is everybody's.
    let outer = tempfile::tempdir_in("/run").unwrap();
    fs::set_permissions(outer.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut builder = Sshd::builder().ordinary_user();
    for line in block.lines() {
        builder = builder.line(&line.replace("/srv/mirror", outer.path().to_str().unwrap()));
    }
    let sshd = builder.start();
    let mirror = outer.path().join("www");
    let owner = fs::metadata(sshd.base()).unwrap();
    fs::create_dir(&mirror).unwrap();
    chown(&mirror, Some(owner.uid()), Some(owner.gid())).unwrap();

    let mut daemon = Daemon::new();
    daemon.add_mirror("web2", &sshd);
    let base = format!("path = {}\n", sshd.base().display());
    *daemon.ini_mut() = daemon.ini_mut().replace(&base, "path = /www\n");
    daemon.write_ini();
    daemon.start();
    let www = daemon.source();
    fs::create_dir(www.join("img")).unwrap();
    fs::write(www.join("img/a.jpg"), vec![7; 100_000]).unwrap();
    fs::hard_link(www.join("img/a.jpg"), www.join("b.jpg")).unwrap();
    fs::rename(www.join("img"), www.join("images")).unwrap();
    daemon.wait();
    assert_same(&www, &mirror);
    assert_eq!(
        fs::metadata(mirror.join("b.jpg")).unwrap().uid(),
        owner.uid()
    );
    daemon.stop();
}

/// The command of the README that begins like this, with the directories of a test; what it prints.
fn rsync(beginning: &str, www: &Path, mirror: &Path) -> String {
    let all = blocks(&read("README.md"), "sh").concat();
    let line = all.lines().find(|l| l.starts_with(beginning)).unwrap();
    let line = line
        .replace(
            "root@web2.example.com:/srv/mirror/www",
            mirror.to_str().unwrap(),
        )
        .replace("/srv/www", www.to_str().unwrap())
        .replace("=mirror:mirror", "=0:0");
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn what_the_readme_says_compares_and_repairs_a_mirror() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    daemon.add_mirror("m", &sshd);
    daemon.start();
    let (www, mirror) = (daemon.source(), sshd.base());
    fs::create_dir(www.join("d")).unwrap();
    fs::write(www.join("d/one"), "one").unwrap();
    fs::hard_link(www.join("d/one"), www.join("uno")).unwrap();
    symlink("d/one", www.join("link")).unwrap();
    daemon.wait();
    assert_eq!(rsync("rsync -rlptHn", &www, &mirror), "");
    fs::remove_file(mirror.join("d/one")).unwrap();
    fs::write(mirror.join("stranger"), "").unwrap();
    let told = rsync("rsync -rlptHn", &www, &mirror);
    assert!(told.contains("stranger") && told.contains("one"), "{told}");
    rsync("rsync -aH --delete --checksum", &www, &mirror);
    assert_eq!(rsync("rsync -rlptHn", &www, &mirror), "");
    fs::rename(www.join("d"), www.join("e")).unwrap();
    daemon.wait();
    assert_same(&www, &mirror);
    daemon.stop();
}

#[test]
fn a_mirror_that_was_just_resumed_can_be_waited_for() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    daemon.add_mirror("m", &sshd);
    daemon.start();
    daemon.wait();
    for round in 0..5 {
        daemon.ok(&["pause", "m"]);
        daemon.wait_for_mirror("m", |m| m["state"] == "paused");
        fs::write(daemon.source().join("file"), round.to_string()).unwrap();
        daemon.ok(&["resume", "m"]);
        daemon.wait();
        let there = fs::read_to_string(sshd.base().join("file")).unwrap();
        assert_eq!(there, round.to_string());
    }
    daemon.stop();
}

#[test]
fn a_mirror_that_needs_a_sync_is_not_said_to_have_everything() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    fs::write(daemon.source().join("old"), "from before").unwrap();
    daemon.add_mirror_at("m", &sshd, sshd.port(), "first_sync = none");
    daemon.start();
    daemon.wait_for_mirror("m", |m| m["state"] == "needs-sync");
    let waited = daemon.run(&["wait", "--timeout", "60"]);
    assert_eq!(waited.status.code(), Some(1));
    let said = String::from_utf8(waited.stderr).unwrap();
    assert!(
        said.starts_with("proxyfs: mirror m is needs-sync: "),
        "{said}"
    );
    fs::write(sshd.base().join("old"), "from before").unwrap();
    daemon.ok(&["resume", "m"]);
    daemon.wait();
    daemon.stop();
}

#[test]
fn a_copy_made_by_hand_is_taken_over() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    for place in [daemon.source(), sshd.base()] {
        fs::write(place.join("old"), "from before").unwrap();
    }
    daemon.add_mirror("m", &sshd);
    daemon.start();
    fs::rename(daemon.source().join("old"), daemon.source().join("new")).unwrap();
    daemon.wait();
    let there = fs::read_to_string(sshd.base().join("new")).unwrap();
    assert_eq!(there, "from before");
    assert!(!sshd.base().join("old").exists());
    daemon.stop();
}

/// "A new source": the tree and its mirrors go on under another daemon, one that knows neither.
#[test]
fn a_mirror_takes_over_as_the_source() {
    let (first, second) = (Sshd::start(), Sshd::start());
    let mut lost = Daemon::new();
    lost.add_mirror("first", &first);
    lost.add_mirror("second", &second);
    lost.start();
    fs::create_dir(lost.source().join("d")).unwrap();
    fs::write(lost.source().join("d/old"), "from before").unwrap();
    lost.wait();
    lost.kill();

    let mut next = Daemon::new();
    let own = next.source().display().to_string();
    let theirs = first.base().display().to_string();
    *next.ini_mut() = next.ini_mut().replace(&own, &theirs);
    next.add_mirror("second", &second);
    fs::remove_dir_all(first.base().join(".proxyfs")).unwrap();
    next.start();
    // It is another source's as long as nobody says otherwise.
    let stopped = next.wait_for_mirror("second", |m| m["last_error"].is_string());
    let why = stopped["last_error"].as_str().unwrap();
    assert!(why.contains("is the mirror of another source"), "{why}");
    fs::remove_dir_all(second.base().join(".proxyfs")).unwrap();
    next.ok(&["try-again"]);
    fs::rename(first.base().join("d/old"), first.base().join("d/new")).unwrap();
    next.wait();
    assert_same(&first.base(), &second.base());
    let there = fs::read_to_string(second.base().join("d/new"));
    assert_eq!(there.unwrap(), "from before");
    next.stop();
}

#[test]
fn the_package_that_the_readme_installs_is_this_version() {
    let version = env!("CARGO_PKG_VERSION");
    let name = format!("proxyfs_{version}_amd64.deb");
    assert!(read("README.md").contains(&name), "{name}");
    let changelog = read("packaging/debian/changelog");
    let first = format!("proxyfs ({version}) ");
    assert!(changelog.starts_with(&first), "{first}");
}
