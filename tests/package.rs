//! The Debian package, installed on a machine of its own: what `make test-package` does, with the program of the other
//! tests packaged.

use std::process::Command;

#[test]
fn the_package_is_installed_used_upgraded_removed_and_purged() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/test-package");
    let output = Command::new(script)
        .env("PROXYFS", env!("CARGO_BIN_EXE_proxyfs"))
        .env_remove("ROOT")
        .output()
        .expect("it can be started");
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success() && out.ends_with("== all is well\n"),
        "{out}\n{err}"
    );
}
