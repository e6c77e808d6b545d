//! A server that breaks where it is told to: the mirror side's [`Remote`] on a local directory, in OpenSSH's
//! manner (one request after another, its status codes), which cuts the connection before a request,
//! or after its effect and before its reply. Real servers do not break at a chosen request.
#![allow(clippy::unwrap_used)]

use super::random::Random;
use proxyfs::fault;
use proxyfs::sftp::{
    Attrs, Features, Handle, Name, OpenMode, Remote, Reply, Request, SessionError, Status, Ticket,
    code,
};
use std::collections::{HashMap, VecDeque};
use std::ffi::{CString, OsStr};
use std::fs::{self, File, FileTimes, OpenOptions};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the connection breaks.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// After so many requests.
    pub after: u64,
    /// Whether the next request still has its effect.
    pub effect: bool,
}

/// The status code with which a request is refused, if it is.
type Refuse<'a> = Box<dyn FnMut(&Request) -> Option<u32> + 'a>;

pub struct FakeServer<'a> {
    /// What it says it can do.
    pub features: Features,
    /// One a lane.
    queued: Vec<VecDeque<(Ticket, Request)>>,
    /// Which lane is worked on next.
    random: Random,
    replies: VecDeque<(Ticket, Reply)>,
    /// Replies that come later, in any order; none: each comes when its request is done.
    late: Option<Vec<(Ticket, Reply)>>,
    next: u32,
    /// With the lane that each belongs to.
    handles: HashMap<Vec<u8>, (usize, File)>,
    listings: HashMap<Vec<u8>, Vec<Name>>,
    executed: u64,
    cut: Option<Cut>,
    /// How many requests it works on before it lets the client look at the replies.
    batch: usize,
    /// Called when it has nothing to do.
    idle: Box<dyn FnMut() + 'a>,
    /// Called before each request is carried out.
    watch: Box<dyn FnMut(&Request) + 'a>,
    /// Called when a request is sent, which may be long before it is carried out.
    pub sent: Box<dyn FnMut(&Request) + 'a>,
    /// How much a byte of a WRITE without a reply counts: with more than one, less fits on a lane.
    pub weight: usize,
    /// Says which requests are refused, and how.
    pub refuse: Refuse<'a>,
    /// Every request that changed something, in order, for a failing test's message.
    pub trace: Vec<String>,
}

impl<'a> FakeServer<'a> {
    pub fn new(
        cut: Option<Cut>,
        batch: usize,
        idle: impl FnMut() + 'a,
        watch: impl FnMut(&Request) + 'a,
    ) -> FakeServer<'a> {
        FakeServer {
            features: Features {
                posix_rename: true,
                hardlink: true,
                fsync: true,
                lsetstat: true,
                copy_data: false,
                statvfs: false,
                openssh: true,
                max_write: 32768,
                max_read: 32768,
                max_handles: Some(1000),
            },
            queued: vec![VecDeque::new()],
            random: Random(1),
            replies: VecDeque::new(),
            late: None,
            next: 0,
            handles: HashMap::new(),
            listings: HashMap::new(),
            executed: 0,
            cut,
            batch: batch.max(1),
            idle: Box::new(idle),
            watch: Box::new(watch),
            sent: Box::new(|_| {}),
            weight: 1,
            refuse: Box::new(|_| None),
            trace: Vec::new(),
        }
    }

    /// With so many lanes, of which it works on one or the other, as `seed` has it.
    pub fn lanes(mut self, lanes: usize, seed: u64) -> Self {
        self.queued = vec![VecDeque::new(); lanes.max(1)];
        self.random = Random(seed);
        self
    }

    /// Its replies may come late and in another order than the requests, as the draft lets them (section 3). It works
    /// on requests in their order all the same.
    pub fn late(mut self) -> Self {
        self.late = Some(Vec::new());
        self
    }

    /// Gives a reply back, or keeps it for later.
    fn answer(&mut self, ticket: Ticket, reply: Reply) {
        let Some(late) = &mut self.late else {
            self.replies.push_back((ticket, reply));
            return;
        };
        late.push((ticket, reply));
        while self.random.one_in(3) && !late.is_empty() {
            let which = self.random.below(late.len() as u64) as usize;
            self.replies.push_back(late.swap_remove(which));
        }
    }

    /// Nothing else is to be done: one that is late comes now.
    fn answer_late(&mut self) {
        if let Some(late) = &mut self.late
            && !late.is_empty()
            && self.replies.is_empty()
        {
            let which = self.random.below(late.len() as u64) as usize;
            self.replies.push_back(late.swap_remove(which));
        }
    }

    /// What goes on behind the back of who has lost the connection: a server that has all that was on its way to this
    /// one, and what this one has open.
    pub fn leave_behind(&mut self) -> FakeServer<'static> {
        let mut left = FakeServer::new(None, 1, || {}, |_| {});
        left.queued = std::mem::take(&mut self.queued);
        left.handles = std::mem::take(&mut self.handles);
        left.random = Random(u64::from(self.next));
        left
    }

    /// Carries one of them out; none: nothing is left. It writes into no file that has several names, nor sets
    /// anything of it by a handle, and a file's time stays: what that would do is told in `src/mirror/fence.rs`.
    pub fn haunt(&mut self) -> Option<String> {
        let (ticket, request) = self.next_request()?;
        let told = show(&request);
        let mut written = None;
        if let Request::Write { handle, .. } | Request::Fsetstat { handle, .. } = &request
            && let Ok(file) = self.file(ticket.lane.into(), handle)
        {
            let meta = file.metadata().unwrap();
            if meta.nlink() > 1 {
                return Some(format!("NEVER: {told}"));
            }
            let times = FileTimes::new().set_modified(meta.modified().unwrap());
            let is_write = matches!(request, Request::Write { .. });
            written = is_write.then(|| (file.try_clone().unwrap(), times));
        }
        let done = self.carry_out(ticket.lane.into(), request);
        if let Some((file, times)) = written {
            file.set_times(times).unwrap();
        }
        Some(format!("LATE: {told} => {done:?}"))
    }

    fn next_request(&mut self) -> Option<(Ticket, Request)> {
        let busy: Vec<usize> = (0..self.queued.len())
            .filter(|n| !self.queued[*n].is_empty())
            .collect();
        let which = match busy.len() {
            0 => return None,
            1 => 0,
            n => self.random.below(n as u64) as usize,
        };
        self.queued[busy[which]].pop_front()
    }

    fn execute(&mut self, lane: u8, request: Request) -> Reply {
        fault::point("mirror.request");
        (self.watch)(&request);
        let told = show(&request);
        let reply = match (self.refuse)(&request) {
            Some(code) => Reply::Status(Status {
                code,
                message: "refused by the test".to_string(),
            }),
            None => self
                .carry_out(lane.into(), request)
                .unwrap_or_else(|why| Reply::Status(status_of(&why))),
        };
        self.trace.push(format!(
            "{} => {reply:?}",
            told.chars().take(200).collect::<String>()
        ));
        fault::point("mirror.effect");
        reply
    }

    fn carry_out(&mut self, lane: usize, request: Request) -> io::Result<Reply> {
        match request {
            Request::Open { path, mode, attrs } => {
                let mut options = OpenOptions::new();
                match mode {
                    OpenMode::Read => options.read(true),
                    OpenMode::Update => options.write(true),
                    OpenMode::Create => options.write(true).create(true).truncate(true),
                    OpenMode::Continue => options.write(true).create(true),
                    OpenMode::CreateNew => options.write(true).create_new(true),
                };
                let file = options.open(local(&path))?;
                if let Some(mode) = attrs.mode.filter(|_| !matches!(mode, OpenMode::Update)) {
                    file.set_permissions(fs::Permissions::from_mode(mode))?;
                }
                let handle = self.new_handle();
                self.handles.insert(handle.clone(), (lane, file));
                return Ok(Reply::Handle(Handle(handle.into())));
            }
            Request::Close { handle } => {
                self.handles.remove(&handle.0[..]);
                self.listings.remove(&handle.0[..]);
            }
            Request::Write {
                handle,
                offset,
                data,
            } => self.file(lane, &handle)?.write_all_at(&data, offset)?,
            Request::Fsync { handle } => self.file(lane, &handle)?.sync_all()?,
            Request::Fsetstat { handle, attrs } => {
                let path = PathBuf::from(format!(
                    "/proc/self/fd/{}",
                    std::os::fd::AsRawFd::as_raw_fd(self.file(lane, &handle)?)
                ));
                set(&path, &attrs, true)?;
            }
            Request::Setstat { path, attrs } => set(&local(&path), &attrs, true)?,
            Request::Lsetstat { path, attrs } => set(&local(&path), &attrs, false)?,
            // It does not offer that, and nobody asks for it.
            Request::Statvfs { .. } => return Err(io::ErrorKind::Unsupported.into()),
            Request::Lstat { path } => {
                return Ok(Reply::Attrs(attrs_of(&fs::symlink_metadata(local(&path))?)));
            }
            Request::Stat { path } => {
                return Ok(Reply::Attrs(attrs_of(&fs::metadata(local(&path))?)));
            }
            Request::Fstat { handle } => {
                return Ok(Reply::Attrs(attrs_of(
                    &self.file(lane, &handle)?.metadata()?,
                )));
            }
            Request::Remove { path } => fs::remove_file(local(&path))?,
            Request::Mkdir { path, attrs } => {
                fs::create_dir(local(&path))?;
                set(
                    &local(&path),
                    &Attrs {
                        mode: attrs.mode,
                        ..Attrs::default()
                    },
                    true,
                )?;
            }
            Request::Rmdir { path } => fs::remove_dir(local(&path))?,
            Request::PosixRename { from, to } => fs::rename(local(&from), local(&to))?,
            // OpenSSH's does not replace.
            Request::Rename { from, to } => rustix::fs::renameat_with(
                rustix::fs::CWD,
                local(&from),
                rustix::fs::CWD,
                local(&to),
                rustix::fs::RenameFlags::NOREPLACE,
            )?,
            Request::Read {
                handle,
                offset,
                len,
            } => {
                let mut data = vec![0; len as usize];
                let got = self.file(lane, &handle)?.read_at(&mut data, offset)?;
                data.truncate(got);
                return Ok(Reply::Data(data));
            }
            Request::CopyData {
                from,
                to,
                offset,
                len,
            } => {
                let from = self.file(lane, &from)?;
                let there = from.metadata()?.len().saturating_sub(offset);
                let mut bytes = vec![0; if len == 0 { there } else { len } as usize];
                from.read_exact_at(&mut bytes, offset)?;
                self.file(lane, &to)?.write_all_at(&bytes, offset)?;
            }
            Request::Hardlink { from, to } => fs::hard_link(local(&from), local(&to))?,
            Request::Symlink { target, link } => {
                std::os::unix::fs::symlink(local(&target), local(&link))?
            }
            Request::Opendir { path } => {
                // As some servers do, it does not tell the attributes of all.
                let names = fs::read_dir(local(&path))?
                    .map(|e| {
                        let e = e?;
                        let tells = e.file_name() != "c";
                        let meta = e.metadata().ok().filter(|_| tells);
                        Ok(Name {
                            name: e.file_name().into_vec(),
                            links: meta.as_ref().map(|meta| meta.nlink() as u32),
                            attrs: meta.map_or(Attrs::default(), |meta| attrs_of(&meta)),
                        })
                    })
                    .collect::<io::Result<_>>()?;
                let handle = self.new_handle();
                self.listings.insert(handle.clone(), names);
                return Ok(Reply::Handle(Handle(handle.into())));
            }
            Request::Readdir { handle } => {
                let names = self
                    .listings
                    .get_mut(&handle.0[..])
                    .map(std::mem::take)
                    .unwrap_or_default();
                if names.is_empty() {
                    return Ok(Reply::Status(Status {
                        code: code::EOF,
                        message: String::new(),
                    }));
                }
                return Ok(Reply::Names(names));
            }
            Request::Readlink { path } => {
                let target = fs::read_link(local(&path))?;
                return Ok(Reply::Names(vec![Name {
                    name: target.into_os_string().into_vec(),
                    attrs: Attrs::default(),
                    links: None,
                }]));
            }
            other => panic!("the mirror side does not send {other:?}"),
        }
        Ok(Reply::Ok)
    }

    fn new_handle(&mut self) -> Vec<u8> {
        self.next += 1;
        self.next.to_be_bytes().to_vec()
    }

    fn file(&self, lane: usize, handle: &Handle) -> io::Result<&File> {
        match self.handles.get(&handle.0[..]) {
            Some((of, file)) if *of == lane => Ok(file),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

impl Remote for FakeServer<'_> {
    fn send_on(&mut self, lane: usize, request: Request) -> Ticket {
        (self.sent)(&request);
        self.next += 1;
        let ticket = Ticket {
            lane: lane as u8,
            id: self.next,
        };
        self.queued[lane].push_back((ticket, request));
        ticket
    }

    fn pump(&mut self, timeout: Duration, _: Option<BorrowedFd<'_>>) -> Result<(), SessionError> {
        if self.queued.iter().all(VecDeque::is_empty) {
            self.answer_late();
        }
        let idle = self.outstanding() == 0;
        if idle && !timeout.is_zero() {
            (self.idle)();
            std::thread::sleep(timeout.min(Duration::from_millis(1)));
            return Ok(());
        }
        for _ in 0..self.batch {
            let Some((ticket, request)) = self.next_request() else {
                break;
            };
            if let Some(cut) = self.cut.filter(|cut| self.executed >= cut.after) {
                if cut.effect {
                    self.execute(ticket.lane, request);
                }
                return Err(SessionError::Lost("cut by the test".to_string()));
            }
            self.executed += 1;
            let reply = self.execute(ticket.lane, request);
            self.answer(ticket, reply);
        }
        Ok(())
    }

    fn reply(&mut self) -> Option<(Ticket, Reply)> {
        self.replies.pop_front()
    }

    fn outstanding(&self) -> usize {
        let queued: usize = self.queued.iter().map(VecDeque::len).sum();
        queued + self.replies.len() + self.late.as_ref().map_or(0, Vec::len)
    }

    fn unacknowledged_on(&self, lane: usize) -> usize {
        let bytes = |(_, request): &(Ticket, Request)| match request {
            Request::Write { data, .. } => data.len(),
            _ => 0,
        };
        self.queued[lane].iter().map(bytes).sum::<usize>() * self.weight
    }

    fn lanes(&self) -> usize {
        self.queued.len()
    }

    fn line_has_room(&self) -> bool {
        true
    }

    /// The tests' files are small.
    fn wide_from(&self) -> u64 {
        40_000
    }

    fn features(&self) -> &Features {
        &self.features
    }

    fn traffic(&self) -> (u64, u64) {
        (0, 0)
    }
}

/// A request in one line, without the base of its paths.
fn show(request: &Request) -> String {
    let short = |path: &[u8]| {
        let path = String::from_utf8_lossy(path).into_owned();
        path.split_once("/mirror")
            .map_or(path.clone(), |(_, rest)| rest.to_string())
    };
    match request {
        Request::PosixRename { from, to } | Request::Rename { from, to } => {
            format!("rename {} -> {}", short(from), short(to))
        }
        Request::Hardlink { from, to } => format!("link {} -> {}", short(from), short(to)),
        Request::Open { path, mode, .. } => format!("open {mode:?} {}", short(path)),
        Request::Mkdir { path, .. } => format!("mkdir {}", short(path)),
        Request::Rmdir { path } => format!("rmdir {}", short(path)),
        Request::Remove { path } => format!("remove {}", short(path)),
        Request::Symlink { link, .. } => format!("symlink {}", short(link)),
        Request::Setstat { path, attrs } | Request::Lsetstat { path, attrs } => {
            format!("setstat {} {:o}", short(path), attrs.mode.unwrap_or(0))
        }
        Request::Lstat { path } | Request::Stat { path } => format!("look {}", short(path)),
        Request::Write { offset, data, .. } => format!("write {} at {offset}", data.len()),
        other => format!("{other:?}"),
    }
}

fn local(path: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(path))
}

fn attrs_of(meta: &fs::Metadata) -> Attrs {
    Attrs {
        size: Some(meta.len()),
        owner: Some((meta.uid(), meta.gid())),
        mode: Some(meta.mode()),
        times: Some((meta.atime() as u32, meta.mtime() as u32)),
    }
}

/// In the order in which OpenSSH sets them.
fn set(path: &Path, attrs: &Attrs, follow: bool) -> io::Result<()> {
    if let Some(size) = attrs.size {
        OpenOptions::new().write(true).open(path)?.set_len(size)?;
    }
    if let Some(mode) = attrs.mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777))?;
    }
    if let Some((atime, mtime)) = attrs.times {
        let name = CString::new(path.as_os_str().as_bytes())?;
        let time = |s: u32| rustix::fs::Timespec {
            tv_sec: i64::from(s),
            tv_nsec: 0,
        };
        let times = rustix::fs::Timestamps {
            last_access: time(atime),
            last_modification: time(mtime),
        };
        let flags = if follow {
            rustix::fs::AtFlags::empty()
        } else {
            rustix::fs::AtFlags::SYMLINK_NOFOLLOW
        };
        rustix::fs::utimensat(rustix::fs::CWD, &name, &times, flags)?;
    }
    if let Some((uid, gid)) = attrs.owner {
        std::os::unix::fs::lchown(path, Some(uid), Some(gid))?;
    }
    Ok(())
}

/// sftp-server.c, errno_to_portable().
fn status_of(why: &io::Error) -> Status {
    let code = match why.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR | libc::EBADF | libc::ELOOP) => code::NO_SUCH_FILE,
        Some(libc::EPERM | libc::EACCES | libc::EFAULT) => code::PERMISSION_DENIED,
        Some(libc::ENAMETOOLONG | libc::EINVAL) => code::BAD_MESSAGE,
        _ => code::FAILURE,
    };
    Status {
        code,
        message: why.to_string(),
    }
}
