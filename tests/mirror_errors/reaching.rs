//! Hosts, host keys, logins and connections.

use super::*;

#[test]
fn a_host_key_that_is_not_to_be_trusted_stops_its_mirror_until_it_is() {
    let sshd = Sshd::start();
    let right = fs::read_to_string(sshd.known_hosts_path()).unwrap();
    let stranger = sshd.file("stranger");
    keygen(&stranger, "ed25519", "");
    let host = format!("[127.0.0.1]:{}", sshd.port());
    let files = [
        ("unknown", String::new()),
        ("changed", format!("{host} {}\n", public_of(&stranger))),
        ("revoked", format!("{right}@revoked {right}")),
    ];
    let mut daemon = Daemon::new();
    add(&mut daemon, "good", &sshd, &[]);
    let file = |name: &str| sshd.file(&format!("known_{name}"));
    for (name, text) in &files {
        fs::write(file(name), text).unwrap();
        let path = file(name).display().to_string();
        let changes = never_by_itself(&[("known_hosts", &path)]);
        add(&mut daemon, name, &sshd, &changes);
    }
    daemon.start();
    let at = |name: &str, line| format!("at {}:{line}", file(name).display());
    told(
        &daemon,
        "unknown",
        "stopped",
        "is unknown and shows the ssh-ed25519 key SHA256:",
    );
    // The line that makes it known.
    let line = format!("\"{host} {}\"", public_of(&sshd.file("host_ed25519")));
    told(&daemon, "unknown", "stopped", &line);
    told(&daemon, "changed", "stopped", &at("changed", 1));
    told(
        &daemon,
        "revoked",
        "stopped",
        &format!("which is revoked {}", at("revoked", 2)),
    );
    nobody_else_is_disturbed(&daemon, &sshd);
    waiting_is_vain(&daemon, "changed", "somebody may be in between");
    let names = ["unknown", "changed", "revoked"];
    for name in names {
        fs::write(file(name), &right).unwrap();
    }
    resume(&daemon, &names);
    everything_arrives(&daemon, &sshd, &["good", "unknown", "changed", "revoked"]);
    daemon.stop();
}

#[test]
fn a_key_that_does_not_open_stops_its_mirror_until_it_does() {
    let sshd = Sshd::start();
    let wrong = sshd.file("wrong_key");
    keygen(&wrong, "ed25519", "");
    let wrong = wrong.display().to_string();
    let missing = sshd.file("missing_key").display().to_string();
    let mut daemon = Daemon::new();
    add(&mut daemon, "good", &sshd, &[]);
    // This one is tried again by itself.
    add(&mut daemon, "wrong", &sshd, &[("key", &wrong)]);
    let changes = never_by_itself(&[("key", &missing)]);
    add(&mut daemon, "missing", &sshd, &changes);
    let open = sshd.file("open_key");
    fs::copy(sshd.key_path(), &open).unwrap();
    fs::set_permissions(&open, Permissions::from_mode(0o644)).unwrap();
    let open = open.display().to_string();
    let changes = never_by_itself(&[("key", &open)]);
    add(&mut daemon, "open", &sshd, &changes);
    daemon.start();
    let refused = format!("refuses the login of root with {wrong}: add the public key to");
    told(&daemon, "wrong", "stopped", &refused);
    told(
        &daemon,
        "missing",
        "stopped",
        "missing_key does not exist: make one",
    );
    told(&daemon, "open", "stopped", &format!("chmod 600 {open}"));
    nobody_else_is_disturbed(&daemon, &sshd);
    waiting_is_vain(&daemon, "missing", "does not exist");

    let mut allowed = fs::read_to_string(sshd.file("authorized_keys")).unwrap();
    writeln!(allowed, "{}", public_of(Path::new(&wrong))).unwrap();
    fs::write(sshd.file("authorized_keys"), allowed).unwrap();
    fs::copy(sshd.key_path(), &missing).unwrap();
    fs::set_permissions(&open, Permissions::from_mode(0o600)).unwrap();
    resume(&daemon, &["missing", "open"]);
    daemon.wait_for_mirror("wrong", |m| m["state"] == "synced");
    everything_arrives(&daemon, &sshd, &["good", "wrong", "missing", "open"]);
    daemon.stop();
}

#[test]
fn a_host_that_cannot_be_reached_is_tried_until_it_can() {
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), Duration::ZERO);
    relay.refuse(true);
    let known = known_anywhere(&sshd);
    let mut daemon = Daemon::new();
    add(&mut daemon, "good", &sshd, &[]);
    let port = relay.port().to_string();
    let changes = [("port", port.as_str()), ("known_hosts", &known)];
    add(&mut daemon, "refused", &sshd, &changes);
    add(
        &mut daemon,
        "nowhere",
        &sshd,
        &[("host", "web2.invalid"), ("known_hosts", &known)],
    );
    daemon.start();
    told(
        &daemon,
        "refused",
        "retrying",
        "refuses the connection: check that sshd runs there",
    );
    told(
        &daemon,
        "nowhere",
        "retrying",
        "the name cannot be resolved (",
    );
    nobody_else_is_disturbed(&daemon, &sshd);
    let waited = daemon.run(&["wait", "refused", "--timeout", "0"]);
    assert_eq!(waited.status.code(), Some(1));

    relay.refuse(false);
    daemon.wait_for_mirror("refused", |m| m["state"] == "synced");
    let log = daemon.log();
    assert!(
        log.contains("mirror refused: connected to 127.0.0.1, recovered after "),
        "{log}"
    );
    *daemon.ini_mut() = daemon.ini_mut().replace("web2.invalid", "127.0.0.1");
    daemon.write_ini();
    assert_eq!(daemon.ok(&["reload"]), "mirror nowhere changed\n");
    everything_arrives(&daemon, &sshd, &["good", "refused", "nowhere"]);
    daemon.stop();
}

#[test]
fn a_server_without_sftp_stops_its_mirror_until_it_has_it() {
    let good = Sshd::start();
    let mut bare = Sshd::builder()
        .no_sftp()
        .line("Subsystem none /bin/false")
        .start();
    let mut garbage = Sshd::builder()
        .sftp_script("echo Welcome to web2; sleep 1")
        .start();
    let mut daemon = Daemon::new();
    add(&mut daemon, "good", &good, &[]);
    add(&mut daemon, "bare", &bare, &NEVER);
    add(&mut daemon, "garbage", &garbage, &[]);
    daemon.start();
    told(&daemon, "bare", "stopped", "offers root no SFTP (");
    told(
        &daemon,
        "garbage",
        "stopped",
        "offers root no SFTP (it says \"Welcome to web2\")",
    );
    nobody_else_is_disturbed(&daemon, &good);
    reconfigure(
        &mut bare,
        "Subsystem none /bin/false",
        "Subsystem sftp internal-sftp",
    );
    let script = format!("Subsystem sftp {}", garbage.file("server").display());
    reconfigure(&mut garbage, &script, "Subsystem sftp internal-sftp");
    resume(&daemon, &["bare"]);
    daemon.wait_for_mirror("garbage", |m| m["state"] == "synced");
    daemon.wait();
    assert_same(&daemon.source(), &base(&good, "good"));
    assert_same(&daemon.source(), &base(&bare, "bare"));
    assert_same(&daemon.source(), &base(&garbage, "garbage"));
    daemon.stop();
}

#[test]
fn a_port_that_is_no_ssh_server_is_told_from_a_broken_one() {
    let sshd = Sshd::start();
    let port = Port::reserve();
    let listener = port.listen();
    let web_server = std::thread::spawn(move || {
        use std::io::Write;
        let (mut client, _) = listener.accept().unwrap();
        client
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .unwrap();
    });
    let mut daemon = Daemon::new();
    add(&mut daemon, "good", &sshd, &[]);
    let number = port.number().to_string();
    add(
        &mut daemon,
        "web",
        &sshd,
        &never_by_itself(&[("port", &number)]),
    );
    daemon.start();
    let words = "is no SSH server (it says \"HTTP/1.1 400 Bad Request\"): correct the setting port";
    told(&daemon, "web", "stopped", words);
    web_server.join().unwrap();
    nobody_else_is_disturbed(&daemon, &sshd);
    let ini = daemon.ini_mut();
    *ini = ini.replace(
        &format!("port = {number}"),
        &format!("port = {}", sshd.port()),
    );
    daemon.write_ini();
    daemon.ok(&["reload"]);
    everything_arrives(&daemon, &sshd, &["good", "web"]);
    daemon.stop();
}

#[test]
fn a_server_that_goes_away_is_said_to_have_closed_the_connection() {
    let mut sshd = Sshd::start();
    let mut daemon = Daemon::new();
    add(&mut daemon, "m", &sshd, &[]);
    daemon.start();
    fs::write(daemon.source().join("first"), "all is well").unwrap();
    everything_arrives(&daemon, &sshd, &["m"]);
    sshd.stop();
    daemon.wait_for_mirror("m", |m| m["state"] == "retrying");
    fs::write(daemon.source().join("file"), "meanwhile").unwrap();
    told(&daemon, "m", "retrying", "refuses the connection");
    let log = daemon.log();
    assert!(
        log.contains("mirror m: connection lost: the server closed the connection"),
        "{log}"
    );
    sshd.restart();
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.stop();
}

#[test]
fn a_line_that_falls_silent_is_noticed_and_what_it_held_up_arrives() {
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), Duration::ZERO);
    let known = known_anywhere(&sshd);
    let port = relay.port().to_string();
    let mut daemon = Daemon::new();
    add(&mut daemon, "good", &sshd, &[]);
    let changes = [
        ("port", port.as_str()),
        ("known_hosts", &known),
        ("io_timeout", "1s"),
        ("connect_timeout", "1s"),
    ];
    add(&mut daemon, "m", &sshd, &changes);
    daemon.start();
    fs::write(daemon.source().join("first"), "all is well").unwrap();
    everything_arrives(&daemon, &sshd, &["m"]);
    relay.hold();
    nobody_else_is_disturbed(&daemon, &sshd);
    daemon.wait_for_mirror("m", |m| m["state"] == "retrying");
    let log = daemon.log();
    assert!(
        log.contains("mirror m: the server did not answer for 1 s"),
        "{log}"
    );
    told(&daemon, "m", "retrying", "did not answer within 1 s while");
    relay.resume();
    everything_arrives(&daemon, &sshd, &["good", "m"]);
    daemon.stop();
}

#[test]
fn a_daemon_ends_in_time_though_a_line_is_silent() {
    let sshd = Sshd::start();
    let known = known_anywhere(&sshd);
    let mut daemon = Daemon::new();
    // One falls silent in the middle of its work, one is so from the beginning.
    let relays = ["m", "late"].map(|name| {
        let relay = Relay::start(sshd.port(), Duration::ZERO);
        let port = relay.port().to_string();
        let changes = [
            ("port", port.as_str()),
            ("known_hosts", &known),
            ("io_timeout", "10m"),
            ("connect_timeout", "10m"),
        ];
        add(&mut daemon, name, &sshd, &changes);
        relay
    });
    relays[1].hold();
    daemon.start();
    daemon.wait_for_mirror("m", |m| m["state"] == "synced");
    wait_until("the other one connects", || relays[1].connections() > 0);
    relays[0].hold();
    for n in 0..100 {
        fs::write(daemon.source().join(n.to_string()), vec![0; 10_000]).unwrap();
    }
    let asked = Instant::now();
    daemon.stop();
    // Ten seconds are promised; the rest is for a busy machine.
    assert!(
        asked.elapsed() < Duration::from_secs(30),
        "{:?}",
        asked.elapsed()
    );
    relays.iter().for_each(Relay::resume);
    daemon.start();
    everything_arrives(&daemon, &sshd, &["m", "late"]);
    daemon.stop();
}

#[test]
fn a_key_that_others_may_read_is_refused_as_ssh_does() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    let key = daemon.file("key");
    fs::copy(sshd.key_path(), &key).unwrap();
    fs::set_permissions(&key, Permissions::from_mode(0o640)).unwrap();
    let secret = daemon.file("passphrase");
    fs::write(&secret, "none").unwrap();
    let (key_text, secret_text) = (key.display().to_string(), secret.display().to_string());
    let changes = [
        ("key", key_text.as_str()),
        ("passphrase_file", &secret_text),
    ];
    add(&mut daemon, "m", &sshd, &never_by_itself(&changes));
    // Of what only ought to be otherwise the configuration is told.
    let checked = daemon.run(&["check-config"]);
    let said = String::from_utf8(checked.stderr).unwrap();
    assert!(checked.status.success(), "{said}");
    let words = format!(
        "warning: passphrase_file {secret_text} may be read by others than its owner: chmod 600 {secret_text}"
    );
    assert!(said.contains(&words), "{said}");
    daemon.start();
    let m = daemon.wait_for_mirror("m", |m| m["state"] == "stopped");
    let words = format!(
        "the private key {key_text} is not used, since others may read or change it (mode 0640): chmod 600 {key_text}"
    );
    assert_eq!(m["last_error"], words);
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    daemon.ok(&["try-again", "m"]);
    daemon.wait_for_mirror("m", |m| m["state"] == "synced");
    daemon.stop();
}
