//! Mounts the source, serves the kernel's requests, and unmounts.
//!
//! Dangers, and what answers them:
//!
//! - *A mount left by a crash* answers everything with "Transport endpoint is not connected" and keeps
//!   the next one from being made. [`clear_stale`] finds it in `/proc/self/mountinfo`, makes sure that
//!   it is dead, and detaches it.
//! - *Unmounting what is not ours*: somebody mounted something over us, or the mount point is a mounted
//!   disk itself and we were unmounted already. So the mount is made and taken away here, not by
//!   `fuser` (which in 0.18 unmounts by path once more when its session ends), and only what has the
//!   device number of our mount is unmounted.
//! - *Users inside* make an unmount fail: then it is detached, and lives on for them until they leave or
//!   the daemon ends.
//! - *The mount point inside the source* would show the mount in itself, and a request that waits for
//!   itself. That is refused; the source itself as mount point is fine (its root was opened before).

mod answers;
mod filesystem;
pub mod mountinfo;
mod notices;
mod passthrough;

use crate::local::Local;
use filesystem::ProxyFs;
use fuser::{Config, Session, SessionACL};
use mountinfo::MountEntry;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The file system type that `mount` and `/proc/self/mountinfo` show.
pub const FS_TYPE: &str = "fuse.proxyfs";

/// How it is mounted.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Threads that serve requests. Two are faster than one; more are not on two cores, and each has a
    /// buffer of 16 MiB.
    pub threads: usize,
    /// How long [`Mounted::unmount`] waits for the last requests.
    pub unmount_timeout: Duration,
    /// Whether the kernel may read and write the source's files itself, where it can. Off for tests of
    /// what older kernels do.
    pub passthrough: bool,
}

impl Default for MountOptions {
    fn default() -> MountOptions {
        MountOptions {
            threads: 2,
            unmount_timeout: Duration::from_secs(10),
            passthrough: true,
        }
    }
}

/// Why it cannot be mounted or unmounted.
#[derive(Debug)]
pub enum MountError {
    /// The mount point is not there, or no directory.
    MountPoint(PathBuf, io::Error),
    /// The mount point lies inside the source.
    InsideSource(PathBuf, PathBuf),
    /// `/dev/fuse` cannot be opened.
    Device(io::Error),
    /// The kernel refuses the mount.
    Mount(PathBuf, io::Error),
    /// Kernel and daemon could not agree on how to talk, or threads cannot be started.
    Session(PathBuf, io::Error),
    /// What is mounted there now is not this mount.
    NotOurs(PathBuf),
    /// The kernel refuses to unmount.
    Unmount(PathBuf, io::Error),
    /// The list of mounts cannot be read.
    List(io::Error),
}

impl fmt::Display for MountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MountError::MountPoint(path, e) => write!(
                f,
                "the mount point {} cannot be used: {e}; make the directory, or correct `mount_point`",
                path.display()
            ),
            MountError::InsideSource(path, source) => write!(
                f,
                "the mount point {} lies inside the source {}; use the source itself, or a directory \
                 outside of it",
                path.display(),
                source.display()
            ),
            MountError::Device(e) => write!(
                f,
                "/dev/fuse cannot be opened: {e}; load the kernel module (modprobe fuse) and run as root"
            ),
            MountError::Mount(path, e) => write!(
                f,
                "cannot mount at {}: {e}; proxyfs has to run as root",
                path.display()
            ),
            MountError::Session(path, e) => {
                write!(f, "the mount at {} cannot be served: {e}", path.display())
            }
            MountError::NotOurs(path) => write!(
                f,
                "what is mounted at {} is not this daemon's mount; unmount it by hand (umount {0})",
                path.display()
            ),
            MountError::Unmount(path, e) => write!(
                f,
                "cannot unmount {}: {e}; find who uses it (fuser -vm {0}) and unmount it by hand",
                path.display()
            ),
            MountError::List(e) => {
                write!(f, "/proc/self/mountinfo cannot be read: {e}; mount /proc")
            }
        }
    }
}

impl std::error::Error for MountError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            MountError::MountPoint(_, e)
            | MountError::Device(e)
            | MountError::Mount(_, e)
            | MountError::Session(_, e)
            | MountError::Unmount(_, e)
            | MountError::List(e) => Some(e),
            MountError::InsideSource(..) | MountError::NotOurs(_) => None,
        }
    }
}

/// Whether the threads that serve the mount have ended.
#[derive(Default)]
struct Ended {
    ended: Mutex<bool>,
    changed: Condvar,
}

impl Ended {
    fn set(&self) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits so long at most; true if they have.
    fn wait(&self, timeout: Duration) -> bool {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .changed
            .wait_timeout_while(ended, timeout, |ended| !*ended);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// How an unmount ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmounted {
    /// Nothing uses it any more, and all requests are answered.
    Completely,
    /// The path is free, but somebody still uses files or directories of it; their requests are served
    /// until the process ends.
    StillInUse,
}

/// A mount that is served. Dropped, it is detached.
pub struct Mounted {
    mount_point: PathBuf,
    /// Device number of the mount, as mountinfo shows it.
    device: String,
    ended: Arc<Ended>,
    server: Option<JoinHandle<()>>,
    timeout: Duration,
    taken_away: bool,
    watch: mountinfo::Watch,
}

/// Mounts `local` at `mount_point`, which may be the source itself, and serves it.
///
/// # Errors
/// See [`MountError`]; nothing is mounted then.
pub fn mount(
    local: Arc<Local>,
    mount_point: &Path,
    options: MountOptions,
) -> Result<Mounted, MountError> {
    let unusable = |e| MountError::MountPoint(mount_point.to_owned(), e);
    let mount_point = mount_point.canonicalize().map_err(unusable)?;
    if mount_point != local.source() && mount_point.starts_with(local.source()) {
        return Err(MountError::InsideSource(
            mount_point,
            local.source().to_owned(),
        ));
    }
    if !mount_point.is_dir() {
        let not_a_directory = io::Error::from_raw_os_error(libc::ENOTDIR);
        return Err(MountError::MountPoint(mount_point, not_a_directory));
    }
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| MountError::Device(e.into()))?;
    let watch = mountinfo::Watch::new().map_err(MountError::List)?;
    let number = mount_device(&device, &mount_point)?;
    let mut mounted = Mounted {
        watch,
        mount_point,
        device: number,
        ended: Arc::default(),
        server: None,
        timeout: options.unmount_timeout,
        taken_away: false,
    };
    // From here on dropping `mounted` takes the mount away.
    let path = mounted.mount_point.clone();
    let failed = |e| MountError::Session(path, e);
    mounted.server = Some(serve(local, device, &options, &mounted.ended).map_err(failed)?);
    Ok(mounted)
}

/// Makes the mount, and returns its device number.
fn mount_device(device: &OwnedFd, mount_point: &Path) -> Result<String, MountError> {
    let failed = |e| MountError::Mount(mount_point.to_owned(), e);
    let data = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
        device.as_raw_fd()
    );
    let data = CString::new(data).map_err(|e| failed(e.into()))?;
    // No flags: device nodes and set-id files work as they do in the source.
    rustix::mount::mount(
        "proxyfs",
        mount_point,
        FS_TYPE,
        MountFlags::empty(),
        data.as_c_str(),
    )
    .map_err(|e| failed(e.into()))?;
    let top = mountinfo::topmost(mount_point).map_err(MountError::List)?;
    match top {
        Some(MountEntry { device, .. }) => Ok(device),
        None => Err(MountError::NotOurs(mount_point.to_owned())),
    }
}

/// Starts the threads.
fn serve(
    local: Arc<Local>,
    device: OwnedFd,
    options: &MountOptions,
    ended: &Arc<Ended>,
) -> io::Result<JoinHandle<()>> {
    let notifier = Arc::new(OnceLock::new());
    let threads = options.threads.max(1);
    let filesystem = ProxyFs::new(local, notifier.clone(), options.passthrough);
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(threads);
    config.clone_fd = true;
    let session = Session::from_fd(filesystem, device, SessionACL::All, config)?;
    // The cell is new, so that this is the first value.
    let _ = notifier.set(session.notifier());
    let ended = ended.clone();
    std::thread::Builder::new()
        .name("fuse".into())
        .spawn(move || {
            if let Err(e) = session.run() {
                log::error!("a thread that served the mount has ended: {e}");
            }
            ended.set();
        })
}

impl Mounted {
    /// Where it is mounted, without symbolic links.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// Whether it is where it was mounted. False after `umount` by somebody else, also when it lives on, detached, for who
    /// was inside: whoever comes by the path finds the bare source, and what he changes is not recorded.
    pub fn is_mounted(&self) -> bool {
        self.is_served() && !self.watch.is_gone(&self.device, &self.mount_point)
    }

    /// Whether the kernel still sends requests.
    fn is_served(&self) -> bool {
        !self.ended.wait(Duration::ZERO)
    }

    /// Waits until it is unmounted by somebody else; at most so long. True if it is.
    pub fn wait_unmounted(&self, timeout: Duration) -> bool {
        self.ended.wait(timeout)
    }

    /// Unmounts; if somebody uses it, detaches it, so that the path is free. Waits for the last
    /// requests, as long as the options say. What was written and not closed is not logged by this: call
    /// [`Local::flush_all`] afterwards.
    ///
    /// # Errors
    /// [`MountError::NotOurs`], [`MountError::Unmount`].
    pub fn unmount(mut self) -> Result<Unmounted, MountError> {
        self.take_away()?;
        if !self.ended.wait(self.timeout) {
            // The threads sleep in the kernel until the last user is gone or the process ends.
            return Ok(Unmounted::StillInUse);
        }
        if let Some(server) = self.server.take() {
            // A panic in it was reported by the thread itself.
            let _ = server.join();
        }
        Ok(Unmounted::Completely)
    }

    fn take_away(&mut self) -> Result<(), MountError> {
        if self.taken_away || (self.server.is_some() && !self.is_served()) {
            return Ok(());
        }
        let deadline = Instant::now() + Duration::from_secs(1);
        loop {
            let top = mountinfo::topmost(&self.mount_point).map_err(MountError::List)?;
            match top {
                Some(top) if top.device == self.device => {}
                // Detached by somebody else, and still in use: the path is free already.
                _ if !mountinfo::has_device(&self.device).map_err(MountError::List)? => break,
                _ => return Err(MountError::NotOurs(self.mount_point.clone())),
            }
            let done = rustix::mount::unmount(&self.mount_point, UnmountFlags::NOFOLLOW);
            match done {
                Ok(()) => break,
                // Descriptors closed a moment ago: their release may still be under way.
                Err(rustix::io::Errno::BUSY) if Instant::now() < deadline => {
                    self.ended.wait(Duration::from_millis(20));
                }
                Err(rustix::io::Errno::BUSY) => {
                    detach(&self.mount_point)?;
                    break;
                }
                Err(e) => return Err(MountError::Unmount(self.mount_point.clone(), e.into())),
            }
        }
        self.taken_away = true;
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.taken_away || (self.server.is_some() && !self.is_served()) {
            return;
        }
        let ours = mountinfo::topmost(&self.mount_point)
            .is_ok_and(|top| top.is_some_and(|top| top.device == self.device));
        if ours && let Err(e) = detach(&self.mount_point) {
            log::error!("{e}");
        }
    }
}

fn detach(mount_point: &Path) -> Result<(), MountError> {
    rustix::mount::unmount(mount_point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
        .map_err(|e| MountError::Unmount(mount_point.to_owned(), e.into()))
}

/// Detaches dead mounts of this program at `mount_point`, as a crash leaves them. True if there was one.
/// A mount that is alive stays.
///
/// # Errors
/// [`MountError::List`], [`MountError::Unmount`].
pub fn clear_stale(mount_point: &Path) -> Result<bool, MountError> {
    // The last part cannot be looked up while it is dead.
    let (Some(parent), Some(name)) = (mount_point.parent(), mount_point.file_name()) else {
        return Ok(false);
    };
    let parent = if parent.as_os_str().is_empty() {
        Path::new(".")
    } else {
        parent
    };
    let Ok(parent) = parent.canonicalize() else {
        return Ok(false);
    };
    let mount_point = parent.join(name);
    let mut cleared = false;
    loop {
        let top = mountinfo::topmost(&mount_point).map_err(MountError::List)?;
        if top.is_none_or(|top| top.fs_type != FS_TYPE) {
            return Ok(cleared);
        }
        // The kernel may still know the attributes; an opendir() asks the daemon.
        let asked = std::fs::read_dir(&mount_point);
        match asked.err().and_then(|e| e.raw_os_error()) {
            Some(libc::ENOTCONN) => {}
            // It died while it was asked.
            Some(libc::ECONNABORTED) => continue,
            _ => return Ok(cleared),
        }
        detach(&mount_point)?;
        cleared = true;
    }
}
