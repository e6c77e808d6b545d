//! Which bytes of a file are sent next.

use super::reading::read_full;
use super::*;

impl Upload {
    /// Finds what has to be sent to a file; `seen` is the regular file that is there.
    pub(super) fn fit(&mut self, parts: Parts, seen: Option<Attrs>) -> Result<(), Status> {
        let surprise = |code| Status {
            code,
            message: "it is not there as the log says".to_string(),
        };
        let Some(there) = seen.and_then(|attrs| attrs.size) else {
            return Err(surprise(code::NO_SUCH_FILE));
        };
        // What is not in the log yet stays for its row; but what is there already is not cut for that.
        let size = self.stamp.size.min(there.max(parts.logged));
        if self.attrs.is_empty() && size < there {
            return Err(surprise(code::FAILURE)); // it can't be cut
        }
        let linked = parts.linked;
        let mut ranges = parts.ranges;
        ranges.truncate(size);
        ranges.insert(parts.shortest.min(there), size);
        let most = self.stamp.size.min(self.allocated) / 2;
        if !linked && !self.is_at_most(most, &ranges, there) {
            return Err(surprise(code::FAILURE));
        }
        self.ranges = ranges.iter().collect();
        self.new_from = there;
        if let Some(last) = self.attrs.last_mut() {
            last.size = Some(size);
        }
        Ok(())
    }

    /// Whether ranges come to no more than `most` bytes, without the holes from `new_from` on.
    pub(super) fn is_at_most(&self, most: u64, ranges: &ByteRanges, new_from: u64) -> bool {
        let Body::Open(file) = &self.body else {
            return false;
        };
        let (mut bytes, mut new) = (0, Vec::new());
        for (start, end) in ranges.iter() {
            bytes += end.min(new_from).saturating_sub(start);
            new.push((start.max(new_from), end));
        }
        for (mut at, end) in new {
            while at < end && bytes <= most {
                let data = match seek(file, SeekFrom::Data(at)) {
                    Ok(data) => data.min(end),
                    Err(Errno::NXIO) => end,
                    Err(_) => at, // holes are not told here
                };
                let hole = seek(file, SeekFrom::Hole(data)).map_or(end, |hole| hole.min(end));
                bytes += hole.max(data) - data;
                at = hole.max(data).max(at + 1);
            }
        }
        bytes <= most
    }

    /// The next bytes that have to be sent; none at the end.
    pub(super) fn next_chunk(&mut self) -> io::Result<Option<(u64, Vec<u8>)>> {
        let file = match &mut self.body {
            Body::Read(bytes) if self.next == 0 && !bytes.is_empty() => {
                self.next = u64::MAX;
                return Ok(Some((0, std::mem::take(bytes))));
            }
            Body::Read(_) => return Ok(None),
            Body::Open(file) => file,
        };
        let next = self.next;
        for (start, end) in self.ranges.iter().copied().skip_while(|r| r.1 <= next) {
            let mut offset = start.max(next);
            if offset >= self.new_from {
                let data = match seek(&*file, SeekFrom::Data(offset)) {
                    Ok(data) => data,
                    Err(Errno::NXIO) => end, // only a hole is left, or it was cut
                    Err(Errno::INVAL | Errno::OPNOTSUPP) => offset, // holes are not told here
                    Err(why) => return Err(why.into()),
                };
                // Chunks stay aligned, so that a hole's end does not make every WRITE a crooked one.
                offset = (data - data % CHUNK as u64).max(offset);
            }
            if offset >= end {
                continue;
            }
            let wanted = (end - offset).min(CHUNK as u64) as usize;
            let mut data = vec![0; wanted];
            let got = read_full(file, &mut data, offset)?;
            data.truncate(got);
            self.next = offset + wanted as u64;
            if got == 0 {
                break; // it was cut meanwhile: its next content says so
            }
            return Ok(Some((offset, data)));
        }
        self.next = u64::MAX;
        Ok(None)
    }
}
