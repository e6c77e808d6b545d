//! The main job: what is done at the mount arrives on real mirrors.
#![allow(clippy::unwrap_used)]

use super::support::daemon::Daemon;
use super::support::sshd::Sshd;
use super::support::tree::assert_same;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

#[test]
fn every_kind_of_change_arrives() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    daemon.add_mirror("m", &sshd);
    daemon.start();
    let www = daemon.source();
    fs::create_dir_all(www.join("a/b/c")).unwrap();
    fs::write(www.join("a/one"), "one").unwrap();
    fs::write(www.join("a/b/two"), vec![7; 300_000]).unwrap();
    fs::write(www.join("a/empty"), "").unwrap();
    symlink("../nowhere", www.join("a/b/link")).unwrap();
    fs::hard_link(www.join("a/one"), www.join("a/uno")).unwrap();
    fs::rename(www.join("a/b"), www.join("moved")).unwrap();
    fs::set_permissions(www.join("a/empty"), fs::Permissions::from_mode(0o4710)).unwrap();
    fs::write(www.join("a/uno"), "written through its other name").unwrap();
    fs::remove_dir(www.join("moved/c")).unwrap();
    daemon.wait();
    assert_same(&www, &sshd.base());
    fs::remove_dir_all(www.join("moved")).unwrap();
    daemon.wait();
    assert_same(&www, &sshd.base());
    daemon.stop();
    assert_same(&www, &sshd.base());
}
