//! Configuration files as an administrator writes them, and what is said about each mistake.
#![allow(clippy::unwrap_used)]

use proxyfs::config::{self, Absent, Config, FirstSync, Login, Order, Overrides, SETTINGS};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

const MIRROR: &str = "[mirror web2]\nhost = web2.example.com\nuser = www-data\npath = /srv/www\n";
const MAIN: &str = "[proxyfs]\nsource = /srv/www\nmount_point = /srv/www\n";

/// A directory with a `proxyfs.ini` of that text.
fn directory(text: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(file(&dir), text).unwrap();
    dir
}

fn file(dir: &TempDir) -> PathBuf {
    dir.path().join("proxyfs.ini")
}

fn add_mirror_file(dir: &TempDir, name: &str, text: &str) {
    std::fs::create_dir_all(dir.path().join("mirrors.d")).unwrap();
    std::fs::write(dir.path().join("mirrors.d").join(name), text).unwrap();
}

/// What is said about the configuration in `dir`, with file names below it.
fn complaint_in(dir: &TempDir) -> String {
    let error = Config::load(&file(dir), Overrides::default()).expect_err("it was accepted");
    let prefix = format!("{}/", dir.path().display());
    error.to_string().replace(&prefix, "")
}

fn complaint(text: &str) -> String {
    complaint_in(&directory(text))
}

fn load(text: &str) -> Config {
    let dir = directory(text);
    Config::load(&file(&dir), Overrides::default()).unwrap()
}

#[test]
fn a_small_file_is_enough_and_the_rest_has_defaults() {
    let config = load(&format!("{MAIN}{MIRROR}"));
    assert_eq!(config.source, Path::new("/srv/www"));
    assert_eq!(config.mount_point, Path::new("/srv/www"));
    assert_eq!(config.state_dir, Path::new("/var/lib/proxyfs"));
    assert_eq!(config.run_dir, Path::new("/run/proxyfs"));
    assert_eq!(config.log_file, None);
    assert_eq!(config.log_level, log::LevelFilter::Info);
    assert_eq!(config.threads, 2);
    assert_eq!(config.flush_after, Duration::from_secs(5));
    assert_eq!(config.flush_max, Duration::from_secs(600));
    assert!(config.exclude.is_empty());
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let mirror = config.mirror("web2").unwrap();
    assert_eq!(config.mirrors.len(), 1);
    assert_eq!(
        (mirror.host.as_str(), mirror.port),
        ("web2.example.com", 22)
    );
    assert_eq!(
        (mirror.user.as_str(), mirror.path.as_str()),
        ("www-data", "/srv/www")
    );
    let Login::UsualKeys(keys) = &mirror.login else {
        panic!("{:?}", mirror.login);
    };
    assert!(
        keys[0].ends_with(".ssh/id_ed25519") && keys[0].is_absolute(),
        "{keys:?}"
    );
    assert_eq!(mirror.passphrase_file, None);
    assert!(mirror.known_hosts[0].ends_with(".ssh/known_hosts"));
    assert_eq!(mirror.known_hosts[1], Path::new("/etc/ssh/ssh_known_hosts"));
    assert_eq!(mirror.first_sync, FirstSync::Keep);
    assert_eq!(mirror.order, Some(Order::Strict));
    assert!(!mirror.compression && !mirror.fsync && !mirror.atomic_updates);
    assert!(!mirror.preserve_owner);
    assert_eq!(mirror.connect_timeout, Duration::from_secs(15));
    assert_eq!(mirror.io_timeout, Duration::from_secs(30));
    assert_eq!(mirror.backoff_min, Duration::from_secs(1));
    assert_eq!(mirror.backoff_max, Duration::from_secs(300));
}

#[test]
fn every_setting_takes_another_value_than_its_default() {
    let config = load(
        "[proxyfs]\nsource = /data/a\nmount_point = /mnt/a\nstate_dir = /var/x\nrun_dir = /run/x\n\
         log_file = /var/log/x.log\nlog_level = debug\nthreads = 4\nflush_after = 500ms\nflush_max = 2h\n\
         exclude = *.bak, !keep.bak\norder = relaxed\n\
         [mirror a.b-c_1]\nhost = [2001:db8::1]\nport = 2222\nuser = u\npath = htdocs/\n\
         key = /k/one, /k/two\npassphrase_file = /k/pass\nknown_hosts = /k/hosts\npreserve_owner = yes\n\
         first_sync = delete\norder = strict\ncompression = yes\nfsync = yes\natomic_updates = yes\n\
         bandwidth_limit = 08:00 2M, 19:00 off\n\
         connect_timeout = 2s\nio_timeout = 1m\nbackoff_min = 50ms\nbackoff_max = 1d\n\
         [mirror other]\nhost = h\nuser = u\npath = .\nkey = agent\n",
    );
    assert_eq!(config.source, Path::new("/data/a"));
    assert_eq!(config.mount_point, Path::new("/mnt/a"));
    assert_eq!(config.state_dir, Path::new("/var/x"));
    assert_eq!(config.run_dir, Path::new("/run/x"));
    assert_eq!(
        config.log_file.as_deref(),
        Some(Path::new("/var/log/x.log"))
    );
    assert_eq!(config.log_level, log::LevelFilter::Debug);
    assert_eq!(config.threads, 4);
    assert_eq!(config.flush_after, Duration::from_millis(500));
    assert_eq!(config.flush_max, Duration::from_secs(7200));
    let excluded = |path: &[u8]| {
        let path = proxyfs::change::RelPath::new(path).unwrap();
        config.exclude.excludes(&path, false)
    };
    assert!(excluded(b"d/a.bak") && !excluded(b"keep.bak"));
    let mirror = &config.mirrors[0];
    assert_eq!(
        (mirror.name.as_str(), mirror.host.as_str()),
        ("a.b-c_1", "2001:db8::1")
    );
    assert_eq!((mirror.port, mirror.path.as_str()), (2222, "htdocs"));
    assert_eq!(
        mirror.login,
        Login::Keys(vec!["/k/one".into(), "/k/two".into()])
    );
    assert_eq!(
        mirror.passphrase_file.as_deref(),
        Some(Path::new("/k/pass"))
    );
    assert_eq!(mirror.known_hosts, [PathBuf::from("/k/hosts")]);
    assert_eq!(mirror.first_sync, FirstSync::Delete);
    assert_eq!(config.order, Order::Relaxed);
    assert_eq!(mirror.order, Some(Order::Strict));
    assert_eq!(config.mirrors[1].order, Some(Order::Relaxed));
    assert!(mirror.compression && mirror.fsync && mirror.atomic_updates);
    assert!(mirror.preserve_owner);
    let limit = &mirror.bandwidth_limit;
    assert_eq!((limit.at(12 * 60), limit.at(0)), (Some(2 << 20), None));
    assert_eq!(mirror.connect_timeout, Duration::from_secs(2));
    assert_eq!(mirror.io_timeout, Duration::from_secs(60));
    assert_eq!(mirror.backoff_min, Duration::from_millis(50));
    assert_eq!(mirror.backoff_max, Duration::from_secs(86_400));
    assert_eq!(config.mirrors[1].login, Login::Agent);
}

#[test]
fn each_mistake_is_one_line_that_says_where_and_what_to_do() {
    let after = |line: &str| format!("{MAIN}{line}\n{MIRROR}");
    let mirror = |line: &str| format!("{MAIN}{MIRROR}{line}\n");
    for (text, expected) in [
        (
            after("sorce = /x"),
            "proxyfs.ini:4: unknown key `sorce` in [proxyfs]: did you mean `source`?",
        ),
        (
            after("exclude = *.tmp, [a"),
            "proxyfs.ini:4: bad value `*.tmp, [a` for `exclude`: `[a`: a [ has no ]; write \\[ for a bracket \
             itself",
        ),
        (
            after("colour = red"),
            "proxyfs.ini:4: unknown key `colour` in [proxyfs]: known are source, mount_point, \
            state_dir, run_dir, log_file, log_level, threads, flush_after, flush_max, exclude, order, max_delete, \
            scan_on_start, log_limit, on_event",
        ),
        (
            after("port = 22"),
            "proxyfs.ini:4: unknown key `port` in [proxyfs]: it belongs into [mirror NAME]",
        ),
        (
            mirror("source = /x"),
            "proxyfs.ini:8: unknown key `source` in [mirror web2]: it belongs into [proxyfs]",
        ),
        (
            after("source = /x"),
            "proxyfs.ini:4: the key `source` is there twice, first at line 2: keep one of them",
        ),
        (
            after("threads = many"),
            "proxyfs.ini:4: bad value `many` for `threads`: it must be a whole number from 1 to 32, such as 1",
        ),
        (
            after("threads = 0"),
            "proxyfs.ini:4: bad value `0` for `threads`: it must be a whole number from 1 to 32, such as 1",
        ),
        (
            after("flush_after = 5"),
            "proxyfs.ini:4: bad value `5` for `flush_after`: a duration is a whole number with its \
            unit ms, s, m, h or d, such as 5s or 10m",
        ),
        (
            after("log_level = loud"),
            "proxyfs.ini:4: bad value `loud` for `log_level`: it must be one of error, warn, info, debug, trace",
        ),
        (
            after("flush_max = 1s"),
            "proxyfs.ini:4: flush_after (5s) must not be longer than flush_max (1s)",
        ),
        (
            mirror("backoff_min = 10m"),
            "proxyfs.ini:8: backoff_min (10m) must not be longer than backoff_max (5m)",
        ),
        (
            mirror("bandwidth_limit = 2"),
            "proxyfs.ini:8: bad value `2` for `bandwidth_limit`: a rate is a whole number of bytes a second with \
             its unit k, M or G (of 1024), such as 500k or 2M, or off",
        ),
        (
            mirror("bandwidth_limit = 8:00 16k, 19:00 off\nio_timeout = 10s"),
            "proxyfs.ini:8: at the slowest rate of bandwidth_limit an answer may take 16s: set io_timeout to that \
             at least",
        ),
        (
            mirror("preserve_owner = maybe"),
            "proxyfs.ini:8: bad value `maybe` for `preserve_owner`: it must be yes or no",
        ),
        (
            mirror("first_sync = yes"),
            "proxyfs.ini:8: bad value `yes` for `first_sync`: it must be keep, delete or none",
        ),
        (
            mirror("key = agent\npassphrase_file = /p"),
            "proxyfs.ini:9: passphrase_file is of no use with `key = agent`: remove it",
        ),
        (
            mirror("[proxyfs]"),
            "proxyfs.ini:8: the section `[proxyfs]` is there twice, first at line 1: keep one of them",
        ),
        (
            mirror("[miror web3]"),
            "proxyfs.ini:8: unknown section `[miror web3]`: did you mean [mirror web3]?",
        ),
        (
            mirror("[Proxyfs]"),
            "proxyfs.ini:8: unknown section `[Proxyfs]`: did you mean [proxyfs]?",
        ),
        (
            mirror("[maill]"),
            "proxyfs.ini:8: unknown section `[maill]`: did you mean [mail]?",
        ),
        (
            mirror("[backup]"),
            "proxyfs.ini:8: unknown section `[backup]`: known are [proxyfs], [mail] and [mirror NAME]",
        ),
        (
            mirror("[mail]"),
            "proxyfs.ini:8: `to` is missing in [mail]: add a line such as `to = admin@example.com`\n\
             proxyfs.ini:8: say how mails are sent: `smtp = HOST`, or `sendmail = /usr/sbin/sendmail` where \
             this host sends mails by itself",
        ),
        (
            mirror("[mail]\nto = a@b.c\nsmtp = mx:99999\nsendmail = /usr/sbin/sendmail\nuser = me"),
            "proxyfs.ini:10: bad value `mx:99999` for `smtp`: the port behind the `:`: it must be a whole number \
             from 1 to 65535, such as 1\n\
             proxyfs.ini:11: `smtp` and `sendmail` are two ways for the same mails: remove one of them\n\
             proxyfs.ini:12: `user` and `password_file` belong together: set both, or none where the mail server \
             wants no login",
        ),
        (
            mirror("[mail]\nto = a@b.c, nobody\nsmtp = mx\ntls = yes"),
            "proxyfs.ini:9: bad value `a@b.c, nobody` for `to`: it must be a mail address, such as \
             admin@example.com\n\
             proxyfs.ini:11: bad value `yes` for `tls`: it must be starttls, tls or none",
        ),
        (
            mirror(MIRROR),
            "proxyfs.ini:8: the section `[mirror web2]` is there twice, first at line 4: keep one of them",
        ),
        (
            format!("{MAIN}{MIRROR}{}", MIRROR.replace("web2]", "copy]")),
            "proxyfs.ini:11: the mirrors `web2` and `copy` are the \
            same directory (www-data@web2.example.com:/srv/www, port 22): remove one of them",
        ),
        (
            format!("{MAIN}[mirror a]\nuser = u\npath = /p\n"),
            "proxyfs.ini:4: `host` is missing in [mirror a]: add a line such as \
            `host = web2.example.com`",
        ),
        (
            format!("{MAIN}[mirror a]\nhost = h\npath = /p\n"),
            "proxyfs.ini:4: `user` is missing in [mirror a]: add a line such as `user = www-data`",
        ),
        (
            format!("{MAIN}[mirror a]\nhost = h\nuser = u\n"),
            "proxyfs.ini:4: `path` is missing in [mirror a]: add a line such as `path = /srv/www`",
        ),
        (
            format!("[proxyfs]\nmount_point = /m\n{MIRROR}"),
            "proxyfs.ini:1: `source` is missing in [proxyfs]: add a line such as `source = /srv/www`",
        ),
        (
            MAIN.replace("source = /", "source = "),
            "proxyfs.ini:2: bad value `srv/www` for `source`: it must be an absolute path, such as /srv/www",
        ),
        (
            mirror("hello"),
            "proxyfs.ini:8: `hello` is neither `key = value` nor `[section]` nor a comment (# in front)",
        ),
    ] {
        assert_eq!(complaint(&text), expected, "\n{text}");
    }
}

#[test]
fn bad_mirror_names_and_paths_are_refused() {
    for name in ["", "a b", "../x", "\"web\"", ".hidden"] {
        let text = format!("{MAIN}[mirror {name}]\nhost = h\nuser = u\npath = /p\n");
        let said = complaint(&text);
        assert!(
            said.starts_with("proxyfs.ini:4: bad mirror name `"),
            "{name}: {said}"
        );
        assert!(said.contains("such as [mirror web2]"), "{said}");
    }
    let said = complaint(&format!(
        "{MAIN}[mirror a]\nhost = h\nuser = u\npath = ../other\n"
    ));
    assert!(
        said.starts_with("proxyfs.ini:7: bad value `../other` for `path`"),
        "{said}"
    );
}

#[test]
fn all_mistakes_of_all_files_are_told_at_once_in_their_order() {
    let dir = directory(&format!(
        "[proxyfs]\nsorce = /srv/www\nmount_point = /srv/www\nthreads = 99\n{MIRROR}port = x\n"
    ));
    add_mirror_file(&dir, "b.ini", "[mirror b]\nhost = h\nuser = u\n");
    add_mirror_file(&dir, "a.ini", "what is this\n");
    let said = complaint_in(&dir);
    let places: Vec<&str> = said
        .lines()
        .map(|l| l.split(": ").next().unwrap())
        .collect();
    assert_eq!(
        places,
        [
            "proxyfs.ini:1",
            "proxyfs.ini:2",
            "proxyfs.ini:4",
            "proxyfs.ini:9",
            "mirrors.d/a.ini:1",
            "mirrors.d/b.ini:1"
        ],
        "{said}"
    );
}

#[test]
fn a_file_that_is_missing_unreadable_or_empty_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let said = complaint_in(&dir);
    assert!(
        said.starts_with("proxyfs.ini: there is no such file: create it from proxyfs.ini.example"),
        "{said}"
    );
    std::fs::create_dir(file(&dir)).unwrap();
    let said = complaint_in(&dir);
    assert!(
        said.starts_with("proxyfs.ini: cannot be read: Is a directory"),
        "{said}"
    );
    let said = complaint("");
    assert!(
        said.starts_with("proxyfs.ini: `source` is missing in [proxyfs]"),
        "{said}"
    );
}

#[test]
fn mirrors_of_their_own_files_join_those_of_the_main_file() {
    let dir = directory(&format!("{MAIN}{MIRROR}"));
    add_mirror_file(
        &dir,
        "web4.ini",
        "[mirror web4]\nhost = web4\nuser = u\npath = p\n",
    );
    add_mirror_file(
        &dir,
        "web3.ini",
        "[mirror web3]\nhost = web3\nuser = u\npath = p\n",
    );
    add_mirror_file(&dir, "web5.ini.bak", "nonsense");
    add_mirror_file(&dir, ".web6.ini.swp", "nonsense");
    let config = Config::load(&file(&dir), Overrides::default()).unwrap();
    let names: Vec<&str> = config.mirrors.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(names, ["web2", "web3", "web4"]);
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
    assert!(
        config.warnings[0].contains("web5.ini.bak: ignored"),
        "{:?}",
        config.warnings
    );
}

#[test]
fn a_mirror_file_holds_the_one_mirror_of_its_name() {
    let complaint_about = |name: &str, text: &str| {
        let dir = directory(&format!("{MAIN}{MIRROR}"));
        add_mirror_file(&dir, name, text);
        complaint_in(&dir)
    };
    for (name, text, expected) in [
        (
            "web3.ini",
            MIRROR,
            "mirrors.d/web3.ini:1: unknown section `[mirror web2]`: this file is for [mirror web3] only, as its name says",
        ),
        (
            "web3.ini",
            "[proxyfs]\n",
            "mirrors.d/web3.ini:1: unknown section `[proxyfs]`: this file is for [mirror web3] only, as its name says",
        ),
        (
            "web3.ini",
            "# later\n",
            "mirrors.d/web3.ini: there is no section [mirror web3]: add it, or remove the file",
        ),
    ] {
        assert_eq!(complaint_about(name, text), expected);
    }
    let said = complaint_about("web2.ini", MIRROR);
    assert!(
        said.starts_with(
            "mirrors.d/web2.ini:1: the section `[mirror web2]` is there twice, first at "
        ),
        "{said}"
    );
    assert!(said.ends_with("proxyfs.ini:4: keep one of them"), "{said}");
}

#[test]
fn places_that_would_swallow_themselves_are_refused() {
    for (source, mount, more, expected) in [
        (
            "/srv/www",
            "/srv/www/mnt",
            "",
            "proxyfs.ini:3: mount_point and source must be the same directory, or neither inside",
        ),
        (
            "/srv/www",
            "/srv",
            "",
            "proxyfs.ini:3: mount_point and source must be the same directory, or neither inside",
        ),
        (
            "/srv/www",
            "/srv/www",
            "state_dir = /srv/www/.state",
            "proxyfs.ini:4: state_dir (/srv/www/.state) is inside source",
        ),
        (
            "/srv/www",
            "/mnt/www",
            "state_dir = /mnt/www/x",
            "proxyfs.ini:4: state_dir (/mnt/www/x) is inside mount_point",
        ),
        (
            "/srv/www",
            "/srv/www",
            "run_dir = /srv/www",
            "proxyfs.ini:4: run_dir (/srv/www) is inside source",
        ),
        (
            "/srv/www",
            "/srv/www",
            "log_file = /srv/www/log",
            "proxyfs.ini:4: log_file (/srv/www/log) is inside source",
        ),
        (
            "/var",
            "/var",
            "run_dir = /tmp/r",
            "proxyfs.ini:2: state_dir (/var/lib/proxyfs) is inside source",
        ),
    ] {
        let text = format!("[proxyfs]\nsource = {source}\nmount_point = {mount}\n{more}\n{MIRROR}");
        let said = complaint(&text);
        assert!(said.starts_with(expected), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    // A name that only begins alike is another directory.
    load(&format!(
        "[proxyfs]\nsource = /srv/www\nmount_point = /srv/www2\nstate_dir = /srv/www3\n{MIRROR}"
    ));
}

#[test]
fn a_symbolic_link_does_not_hide_that_the_state_is_inside_the_source() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    std::os::unix::fs::symlink(&source, dir.path().join("link")).unwrap();
    let text = format!(
        "[proxyfs]\nsource = {0}/source\nmount_point = {0}/link\nstate_dir = {0}/link/not/yet/there\n{MIRROR}",
        dir.path().display()
    );
    std::fs::write(file(&dir), text).unwrap();
    let said = complaint_in(&dir);
    assert!(
        said.starts_with("proxyfs.ini:4: state_dir (link/not/yet/there) is inside source"),
        "{said}"
    );
}

#[test]
fn the_command_line_stands_in_for_source_and_mount_point() {
    let dir = directory(MIRROR);
    let both = Overrides {
        source: Some("/data/tree/".into()),
        mount_point: Some("relative/mnt".into()),
    };
    let config = Config::load(&file(&dir), both).unwrap();
    assert_eq!(config.source, Path::new("/data/tree"));
    assert_eq!(
        config.mount_point,
        std::env::current_dir().unwrap().join("relative/mnt")
    );
    let dir = directory(&format!("{MAIN}{MIRROR}"));
    let one = Overrides {
        source: Some("/data/tree".into()),
        mount_point: Some("/mnt/tree".into()),
    };
    let config = Config::load(&file(&dir), one).unwrap();
    assert_eq!(config.source, Path::new("/data/tree"));
    assert_eq!(config.mount_point, Path::new("/mnt/tree"));
}

#[test]
fn a_configuration_without_a_mirror_is_warned_about() {
    let config = load(MAIN);
    assert_eq!(config.warnings.len(), 1);
    assert!(
        config.warnings[0].contains("there is no mirror"),
        "{:?}",
        config.warnings
    );
}

#[test]
fn loading_twice_gives_equal_configurations_and_a_changed_mirror_shows() {
    let dir = directory(&format!("{MAIN}{MIRROR}"));
    let load = || Config::load(&file(&dir), Overrides::default()).unwrap();
    let first = load();
    assert_eq!(first, load());
    std::fs::write(file(&dir), format!("{MAIN}{MIRROR}port = 23\n")).unwrap();
    assert_ne!(first.mirrors, load().mirrors);
}

fn example_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("proxyfs.ini.example")
}

#[test]
fn the_example_file_is_what_the_table_of_settings_makes() {
    let written = std::fs::read_to_string(example_file()).unwrap();
    let made = config::example();
    for (i, (a, b)) in written.lines().zip(made.lines()).enumerate() {
        assert_eq!(
            a,
            b,
            "proxyfs.ini.example:{} differs: run `make example`",
            i + 1
        );
    }
    assert_eq!(
        written.lines().count(),
        made.lines().count(),
        "run `make example`"
    );
}

#[test]
fn the_trees_of_one_directory_do_not_share_their_mirrors() {
    let dir = tempfile::tempdir().unwrap();
    let names = [("proxyfs.ini", "mirrors.d"), ("shop.ini", "shop.mirrors.d")];
    for (file, directory) in names {
        std::fs::write(
            dir.path().join(file),
            "[proxyfs]\nsource = /srv/www\nmount_point = /srv/www\n",
        )
        .unwrap();
        let of = Config::mirrors_directory(&dir.path().join(file));
        assert_eq!(of, dir.path().join(directory));
        std::fs::create_dir(&of).unwrap();
        let name = file.trim_end_matches(".ini");
        let text = format!("[mirror {name}]\nhost = h\nuser = u\npath = /{name}\n");
        std::fs::write(of.join(format!("{name}.ini")), text).unwrap();
    }
    for (file, _) in names {
        let config = Config::load(&dir.path().join(file), Overrides::default()).unwrap();
        let mirrors: Vec<&str> = config.mirrors.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(mirrors, [file.trim_end_matches(".ini")]);
    }
}

/// Rewrites `proxyfs.ini.example`: `make example`.
#[test]
#[ignore = "writes proxyfs.ini.example; run by `make example`"]
fn write_the_example_file() {
    std::fs::write(example_file(), config::example()).unwrap();
}

#[test]
fn what_the_example_shows_as_defaults_are_the_defaults() {
    let whole = config::example();
    let short = load(&whole);
    // What it takes to have mails: its head, to whom, and how.
    let mut long = whole
        .replace("\n#[mail]\n", "\n[mail]\n")
        .replace("\n#to = ", "\nto = ")
        .replace("\n#smtp = ", "\nsmtp = ");
    let short = Config {
        mail: load(&long).mail,
        ..short
    };
    assert_eq!(short.mail.to, ["admin@example.com"]);
    for setting in SETTINGS {
        if let Absent::Default(value) = setting.absent {
            let line = format!("{} = {value}\n", setting.name);
            assert!(
                long.contains(&format!("\n#{line}")),
                "{line} is not in the example"
            );
            long = long.replace(&format!("\n#{line}"), &format!("\n{line}"));
        }
    }
    let mut long = load(&long);
    long.file = short.file.clone();
    assert_eq!(short, long);
    assert!(short.warnings.is_empty());
    assert_eq!(short.mirrors.len(), 1);
}

#[test]
fn a_program_that_cannot_be_run_or_that_others_may_change_is_told_of() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (file, program) = (dir.path().join("proxyfs.ini"), dir.path().join("page"));
    let shown = program.display();
    let text = format!(
        "[proxyfs]\nsource = /srv/www\nmount_point = /srv/www\non_event = {shown}\n{MIRROR}"
    );
    std::fs::write(&file, text).unwrap();
    let warnings = || Config::load(&file, Default::default()).unwrap().warnings;
    let missing = format!("on_event {shown} cannot be run: No such file or directory (os error 2)");
    assert_eq!(warnings(), [missing]);
    std::fs::write(&program, "#!/bin/sh\n").unwrap();
    for (mode, said) in [
        (
            0o644,
            Some(format!("on_event {shown} cannot be run: chmod +x {shown}")),
        ),
        (
            0o775,
            Some(format!(
                "on_event {shown} is run as root, and may be written by others than its owner: chmod go-w {shown}"
            )),
        ),
        (0o755, None),
    ] {
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(warnings(), Vec::from_iter(said), "{mode:o}");
    }
}
