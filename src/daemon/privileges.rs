//! What root's rights the daemon keeps: those that the mount and the source need, and no others.
//!
//! The danger is a fault in the daemon that becomes one of the whole host: loading modules, raw devices, the
//! network's configuration, the clock. So everything else is given up before the first thread starts (Linux keeps
//! capabilities a thread, and a new one gets its maker's). The bounding set stays: `on_event` and
//! `sendmail` are other programs, started with root's rights as far as the service manager allows.

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// What is kept, and for what.
const KEPT: [(CapabilitySet, &str); 14] = [
    (CapabilitySet::CHOWN, "chown on the mount"),
    (
        CapabilitySet::DAC_OVERRIDE,
        "the kernel has decided who may (default_permissions)",
    ),
    (
        CapabilitySet::DAC_READ_SEARCH,
        "open_by_handle_at: files are read by their handles",
    ),
    (
        CapabilitySet::FOWNER,
        "chmod, times and sticky directories of others' files",
    ),
    (CapabilitySet::FSETID, "set-id bits that stay"),
    (
        CapabilitySet::KILL,
        "an `on_event` program that does not end",
    ),
    (CapabilitySet::MKNOD, "device nodes on the mount"),
    (CapabilitySet::SETFCAP, "setcap on the mount"),
    (CapabilitySet::SETGID, "files belong to who makes them"),
    (
        CapabilitySet::SETPCAP,
        "a thread keeps its rights while it acts as somebody (securebits)",
    ),
    (CapabilitySet::SETUID, "files belong to who makes them"),
    (
        CapabilitySet::SYS_ADMIN,
        "mount, unmount, passthrough, trusted xattrs",
    ),
    (
        CapabilitySet::SYS_PTRACE,
        "groups of callers where /proc is mounted with hidepid",
    ),
    (
        CapabilitySet::SYS_RESOURCE,
        "open files, and blocks that are root's",
    ),
];

/// Gives up everything else, in this thread and those that it starts.
///
/// # Errors
/// The system's.
pub(super) fn drop_the_rest() -> rustix::io::Result<()> {
    let kept = KEPT
        .iter()
        .fold(CapabilitySet::empty(), |all, (one, _)| all | *one);
    let before = capabilities(None)?;
    // What a container has taken away stays away.
    let left = before.permitted & kept;
    let less = CapabilitySets {
        effective: left,
        permitted: left,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, less)
}
