//! Files read back from a mirror and compared byte by byte with the source's.
//!
//! Many READs of many files are on their way; what comes is compared and forgotten at once, so memory does not grow
//! with the files. A file that changes here meanwhile differs, most likely: who asked looks again.

use super::*;
use crate::sftp::{Handle, OpenMode};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Files that are read at once.
const READING: usize = 64;

/// Length of a READ in bytes: what every server answers in one piece.
const PIECE: u64 = 32 * 1024;

/// READs without a reply, of all files together: less than the window for what the server sends.
const PIECES: usize = 192;

/// Bytes of files that are read before they are put right.
const FIXED: u64 = 4 << 20;

/// A file that is read.
pub(super) struct Reading {
    path: RelPath,
    file: File,
    size: u64,
    handle: Option<Handle>,
    next: u64,
    waiting: usize,
    differs: bool,
    /// What is known of it here and there, if it is put right.
    fixes: Option<(rustix::fs::Stat, Attrs)>,
}

/// What a request of it was.
#[derive(Clone, Copy)]
pub(super) enum Asked {
    Open,
    /// So many bytes from there.
    Piece(u64, u64),
}

impl<R: Remote> Repair<'_, R> {
    /// Begins to compare a file's bytes.
    pub(super) fn read_back(
        &mut self,
        path: RelPath,
        fixes: Option<(rustix::fs::Stat, Attrs)>,
    ) -> Result<(), MirrorError> {
        let much = |repair: &Repair<'_, R>| {
            let size: u64 = repair.reading.values().map(|reading| reading.size).sum();
            fixes.is_some() && size >= FIXED // a slice waits for them at its end
        };
        while self.reading.len() >= READING || much(self) {
            self.turn()?;
        }
        let Some(entry) = self.entry(&path)? else {
            return Ok(());
        };
        let Kind::File(node) = &entry.kind else {
            return Ok(());
        };
        let file = self.tools.source.open(node).map_err(source_error(&path))?;
        let Some(file) = file else { return Ok(()) };
        let number = self.next_number();
        let open = Request::Open {
            path: self.tools.place.path(&path),
            mode: OpenMode::Read,
            attrs: Attrs::default(),
        };
        let reading = Reading {
            path,
            file,
            size: entry.stat.st_size as u64,
            handle: None,
            next: 0,
            waiting: 1,
            differs: false,
            fixes,
        };
        self.reading.insert(number, reading);
        self.send_as(Purpose::Read(number, Asked::Open), open);
        self.read_on();
        Ok(())
    }

    /// Asks for more, as far as there is room.
    pub(super) fn read_on(&mut self) {
        let mut wanted = Vec::new();
        let mut under_way: usize = self.reading.values().map(|r| r.waiting).sum();
        for (number, reading) in &mut self.reading {
            let Some(handle) = &reading.handle else {
                continue;
            };
            while reading.next < reading.size && !reading.differs && under_way < PIECES {
                let (at, len) = (reading.next, PIECE.min(reading.size - reading.next));
                wanted.push((*number, handle.clone(), at, len));
                reading.next += len;
                reading.waiting += 1;
                under_way += 1;
            }
        }
        for (number, handle, offset, len) in wanted {
            self.ask_for(number, handle, offset, len);
        }
    }

    fn ask_for(&mut self, number: Seq, handle: Handle, offset: u64, len: u64) {
        let read = Request::Read {
            handle,
            offset,
            len: len as u32,
        };
        self.send_as(Purpose::Read(number, Asked::Piece(offset, len)), read);
    }

    pub(super) fn take_read(
        &mut self,
        number: Seq,
        asked: Asked,
        reply: Reply,
    ) -> Result<(), MirrorError> {
        let Some(reading) = self.reading.get_mut(&number) else {
            return Ok(());
        };
        reading.waiting -= 1;
        let mut rest = None;
        match (asked, reply) {
            (Asked::Open, Reply::Handle(handle)) => reading.handle = Some(handle),
            (Asked::Piece(offset, len), Reply::Data(data)) => {
                let mut ours = vec![0; data.len()];
                let read = reading.file.read_exact_at(&mut ours, offset);
                reading.differs |= read.is_err() || ours != data;
                let came = data.len() as u64;
                if came < len && !reading.differs {
                    reading.waiting += 1;
                    rest = reading
                        .handle
                        .clone()
                        .map(|h| (h, offset + came, len - came));
                }
            }
            // It is shorter there, or can't be read.
            (Asked::Open, Reply::Status(_)) => {
                let (path, fixes) = (reading.path.clone(), reading.fixes);
                self.reading.remove(&number);
                if fixes.is_some() {
                    return self.send_again(path);
                }
                self.differs(path, Difference::Unreadable);
                return Ok(());
            }
            (_, _) => reading.differs = true,
        }
        if let Some((handle, offset, len)) = rest {
            self.ask_for(number, handle, offset, len);
            return Ok(());
        }
        let over = reading.waiting == 0 && (reading.differs || reading.next >= reading.size);
        if over && let Some(reading) = self.reading.remove(&number) {
            if let Some(handle) = reading.handle {
                self.remote.send(Request::Close { handle }); // nobody waits for that
            }
            if let Some((here, there)) = reading.fixes {
                match reading.differs {
                    true => self.send_again(reading.path)?,
                    false => self.fix_attributes(reading.path, &here, &there),
                }
            } else {
                self.report.counts.bytes += reading.size;
                if reading.differs {
                    self.differs(reading.path, Difference::Bytes);
                }
            }
        }
        self.read_on();
        Ok(())
    }
}
