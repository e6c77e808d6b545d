//! How an upload begins: the file is opened here, and its destination there.

use super::reading::small_file;
use super::*;

impl Upload {
    /// Opens the file here and asks the mirror to open its destination.
    ///
    /// # Errors
    /// The file can't be read here.
    pub fn start<R: Remote>(
        source: &Source,
        node: &NodeId,
        wanted: Wanted,
        rules: Rules,
        via: (&mut R, usize),
    ) -> io::Result<Start> {
        let Wanted {
            dest,
            in_place,
            parts,
        } = wanted;
        let how = if in_place {
            How::InPlace(parts, 0)
        } else {
            How::Anew
        };
        Upload::begin(source, node, |_| (dest, how, None), rules, via)
    }

    /// The same for a file that is made ready out of sight, and may have been begun by an earlier session.
    /// `place_of` tells for its version where that is, and what there is of it.
    ///
    /// # Errors
    /// The file can't be read here.
    pub(in crate::mirror) fn make_ready<R: Remote>(
        source: &Source,
        node: &NodeId,
        place_of: impl FnOnce(u64) -> (Vec<u8>, Left),
        rules: Rules,
        via: (&mut R, usize),
    ) -> io::Result<Start> {
        let to = |stamp: Stamp| {
            let version = rules.span.version(node, stamp.size, stamp.mtime);
            let (dest, left) = place_of(version);
            (dest, How::Behind(left), Some(version))
        };
        Upload::begin(source, node, to, rules, via)
    }

    /// The same for a file that is written where it stands, and may have been begun by an earlier session. `known`
    /// tells of a version how much is there, in bytes: see `resume.rs`.
    ///
    /// # Errors
    /// The file can't be read here.
    pub(in crate::mirror) fn go_on_in_place<R: Remote>(
        source: &Source,
        node: &NodeId,
        wanted: Wanted,
        known: impl FnOnce(u64) -> u64,
        rules: Rules,
        via: (&mut R, usize),
    ) -> io::Result<Start> {
        let Wanted { dest, parts, .. } = wanted;
        let to = |stamp: Stamp| {
            let large = stamp.size >= rules.span.from && stamp.size > CHUNK as u64;
            let worth = large && rules.fsync != Wish::Yes;
            let version =
                rules
                    .span
                    .version_in_place(node, stamp.size, stamp.mtime, parts.as_ref());
            let known = if worth { known(version) } else { 0 };
            let version = Some(version).filter(|_| worth);
            (dest, How::InPlace(parts, known), version)
        };
        Upload::begin(source, node, to, rules, via)
    }

    fn begin<R: Remote>(
        source: &Source,
        node: &NodeId,
        to: impl FnOnce(Stamp) -> (Vec<u8>, How, Option<u64>),
        rules: Rules,
        (remote, lane): (&mut R, usize),
    ) -> io::Result<Start> {
        let Some((file, stat)) = open(source, node)? else {
            return Ok(Start::Gone);
        };
        let stamp = Stamp {
            size: stat.st_size as u64,
            mtime: mtime_of(&stat),
        };
        let (dest, how, version) = to(stamp);
        let in_place = matches!(how, How::InPlace(..));
        let is_staged = matches!(how, How::Behind(_));
        let sets = rules.fsetstat || rules.setstat;
        let mut attrs = attributes_in(&stat, rules);
        if !sets {
            attrs.clear();
        }
        let bytes = match how {
            How::Anew | How::InPlace(None, 0) | How::Behind(Left::Nothing) => {
                small_file(&file, stamp)?
            }
            How::InPlace(..) | How::Behind(_) => None,
        };
        // First whether it is written, then whether it has changed: what was whole in between, and is the same
        // now, is a version.
        let writing = source.writing(stat.st_ino);
        if writing == Writing::Anew && !has_links(&stat) {
            return Ok(Start::Rewritten);
        }
        let still = matches!(writing, Writing::No | Writing::Open) && stamp_of(&file)? == stamp;
        let body = match bytes {
            Some(bytes) if still => Body::Read(bytes),
            Some(_) | None => Body::Open(file),
        };
        // A hole at the end, or what an in-place update cuts off: no WRITE shows it.
        if (in_place || matches!(body, Body::Open(_)))
            && let Some(last) = attrs.last_mut()
        {
            last.size = Some(stamp.size);
        }
        // Nobody else is to see it before it is at its place; unless this is the one chance to give it its mode.
        let private = Attrs {
            mode: Some(if sets { 0o600 } else { stat.st_mode & 0o777 }),
            ..Attrs::default()
        };
        let (mode, attrs_at_open) = match how {
            // Nothing else can cut it.
            How::InPlace(None, 0) if !sets => (OpenMode::Create, Attrs::default()),
            How::Anew => (OpenMode::Create, private),
            How::Behind(_) => (OpenMode::Continue, private),
            How::InPlace(..) => (OpenMode::Update, Attrs::default()),
        };
        let mut tickets = Vec::new();
        if matches!(
            how,
            How::InPlace(Some(_), _)
                | How::InPlace(None, 1..)
                | How::Behind(Left::Something | Left::Bytes(_))
        ) {
            let path = dest.clone();
            tickets.push(remote.send_on(lane, Request::Lstat { path }));
        }
        let is_wide = !in_place && stamp.size >= remote.wide_from();
        let wide = is_wide.then(|| Wide::new(dest.clone(), lane));
        let set_at = Some(&dest).filter(|_| !rules.fsetstat).cloned();
        let open = Request::Open {
            path: dest,
            mode,
            attrs: attrs_at_open,
        };
        tickets.push(remote.send_on(lane, open));
        let upload = Upload {
            lane,
            wide,
            body,
            stamp,
            inode: stat.st_ino,
            attrs,
            phase: Phase::Opening(None, None),
            how,
            fsync: rules.fsync == Wish::Yes,
            set_at,
            version,
            is_staged,
            ranges: vec![(0, stamp.size)],
            // Where no size can be set, a hole at the end has to be written.
            new_from: if in_place || !sets { u64::MAX } else { 0 },
            allocated: allocated(&stat),
            next: 0,
            sent: 0,
            sent_to: 0,
            writes: BTreeMap::new(),
            span: match version {
                Some(_) if is_staged => rules.span.of(is_wide),
                Some(_) | None => u64::MAX,
            },
            held_back: None,
            goes_on: false,
            lost: false,
            waiting: tickets.len(),
            settle_first: !remote.features().openssh,
            failure: None,
        };
        Ok(Start::Begun(Box::new(upload), tickets))
    }
}
