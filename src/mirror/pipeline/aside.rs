//! Changes that are set aside, and tried again: see [`Held`].
//!
//! Whether a refusal is about one change or about the mirror is not told by SFTP v3, which says FAILURE
//! for a full disk as for a directory in the way. So a file is written into ProxyFS's own directory there: where
//! that is refused too (a full disk, a quota, a file system that is read-only by now), the mirror stops; else
//! only the change is parked. That is asked while what was half staged still lies there: it must not be what
//! was removed in between that makes room.
//!
//! A thousand changes may be refused at once, for the same reason. So what was asked holds for all that are dealt with
//! until something is sent again ([`Lull`]); and the log gets a line for the first of them, and one for how many they were.

use super::super::prepare;
use super::*;

/// So long the log gets no second line about what is refused.
const SELDOM: Duration = Duration::from_secs(10);

/// What is known of the mirror while changes are dealt with one after another and nothing becomes visible.
#[derive(Default)]
pub(super) struct Lull {
    /// Our own file can be written.
    takes: bool,
    /// Directories that shut nobody out.
    pub(super) open: HashSet<RelPath>,
    /// How often directories were opened in this session.
    pub(super) opened: u64,
    /// What the log is told of what is refused.
    pub(super) refusals: Seldom,
    /// And of what does not fit what is there.
    pub(super) surprises: Seldom,
}

/// Something of which the log gets no line for each.
#[derive(Default)]
pub(super) struct Seldom {
    /// When it was last told of one, and of how many it was not told since.
    told: Option<Instant>,
    untold: u64,
}

impl Lull {
    /// Something is sent.
    pub(super) fn is_over(&mut self) {
        self.takes = false;
        self.open.clear();
    }
}

impl Seldom {
    /// There is one more.
    pub(super) fn warn(&mut self, mirror: &str, text: &str) {
        if self.told.is_none_or(|at| at.elapsed() >= SELDOM) {
            self.told = Some(Instant::now());
            log::warn!("mirror {mirror}: {text}");
        } else {
            self.untold += 1;
            log::info!("mirror {mirror}: {text}");
        }
    }

    /// If it is time: of how many the log was not told.
    fn rest(&mut self) -> Option<u64> {
        let due = self.untold > 0 && self.told.is_none_or(|at| at.elapsed() >= SELDOM);
        due.then(|| std::mem::take(&mut self.untold))
    }
}

/// How long the trial file is, in bytes: more than the piece that no longer fitted.
const PROBE: usize = 64 * 1024;

impl<R: Remote> Pipeline<'_, R> {
    /// The mirror does not take a row, and nothing is in flight.
    ///
    /// # Errors
    /// It would not take any.
    pub(super) fn refused(&mut self, seq: Seq, status: Status) -> Result<(), MirrorError> {
        let Some(index) = self.index(seq) else {
            return Ok(());
        };
        let change = self.window[index].change().clone();
        let rules = self.setup.rules;
        if self.takes_nothing()? {
            return Err(MirrorError::refused(seq, &change, status));
        }
        if self.setup.rules != rules {
            self.goes_otherwise(seq);
            return Ok(());
        }
        let staged = !matches!(self.window[index].stage, Stage::Refused(_));
        let unexpected = matches!(status.code, code::NO_SUCH_FILE | code::FAILURE);
        if staged && (unexpected || self.is_of_another_kind(&change)?) {
            return self.leave_to_repair_all(index, &status);
        }
        let name = self.setup.name;
        let text = MirrorError::refused(seq, &change, status).to_string();
        let attempts = self.held.attempts(seq) + 1;
        if attempts.is_power_of_two() {
            let text = format!(
                "{text}; it is parked, with what depends on it (attempt {attempts}): `proxyfs try-again {name}` \
                 tries it at once"
            );
            self.lull.refusals.warn(name, &text);
        }
        self.discard_staged(seq);
        self.set_aside(index, Some(text))?;
        // What was sent behind it and depends on it has met a state that is not its own.
        let sent = self.behind_what_was_sent();
        for later in index + 1..sent {
            let job = &self.window[later];
            if !matches!(job.step, Step::Held(_)) && self.held.touches(&job.row.change) {
                self.set_aside(later, None)?;
            }
        }
        if let Some(first) = self.staging_refused.take() {
            self.stage_next = self.stage_next.min(first);
        }
        Ok(())
    }

    /// Tells the log of how many it was not told.
    pub(super) fn warn_of_the_rest(&mut self) {
        let name = self.setup.name;
        if let Some(many) = self.lull.refusals.rest() {
            log::warn!(
                "mirror {name}: refused since the last such line: {many}; `proxyfs tasks {name}` shows what is parked"
            );
        }
        if let Some(many) = self.lull.surprises.rest() {
            log::warn!(
                "mirror {name}: changes that did not fit what is there since the last such line: {many}"
            );
        }
    }

    /// Sets a row aside that has nothing under way.
    ///
    /// # Errors
    /// There are too many.
    pub(super) fn set_aside(
        &mut self,
        index: usize,
        error: Option<String>,
    ) -> Result<(), MirrorError> {
        let Some(mut job) = self.window.remove(index) else {
            return Ok(());
        };
        let seq = job.row.seq;
        if self.held.is_full(seq) {
            self.window.insert(index, job);
            let parked = self.setup.reader.parked(self.setup.name, 1)?;
            let first = parked.into_iter().find_map(|p| p.error);
            return Err(MirrorError::TooManyParked { first });
        }
        self.forget_in_flight(&mut job);
        let staged = matches!(job.stage, Stage::Ready) && !matches!(job.step, Step::Done);
        if staged && job.is_staged() {
            let path = self.setup.place.staged(job.staged());
            self.remote.send(Request::Remove { path });
        }
        let change = job.row.change.clone();
        job.step = Step::Held(error);
        self.window.insert(index, job);
        self.comes_to_nothing(seq);
        self.held.add(seq, &change);
        Ok(())
    }

    /// Puts what is set aside back into the window, in front, when it is to be tried again. All that was
    /// sent is noted as done first.
    pub(super) fn try_held_again(&mut self) -> Result<(), MirrorError> {
        if !self.held.is_due() || self.publishing > 0 || self.trouble.is_some() {
            return Ok(());
        }
        self.record()?;
        if !matches!(
            self.window.front().map(|job| &job.step),
            None | Some(Step::Waiting)
        ) {
            return Ok(());
        }
        // J3: some of them were never sent.
        self.announce()?;
        self.uncertain = self.uncertain.max(self.cursor);
        let rows = self.held.take_all(self.cursor);
        if let Some(first) = rows.first() {
            self.publish_next = first.seq;
            self.stage_next = first.seq;
        }
        for row in rows.into_iter().rev() {
            self.by_path.came(&row);
            let job = self.new_job(row);
            self.window.push_front(job);
        }
        Ok(())
    }

    /// How far the mirror is: it has every change up to here.
    pub(super) fn reached(&self) -> Seq {
        self.not_lacked(self.cursor).unwrap_or(0)
    }

    /// Writes the marker when it is time: see [`Renewal`].
    pub(super) fn renew_marker(&mut self) -> Result<(), MirrorError> {
        let (now, seq, drained) = (Instant::now(), self.reached(), self.is_drained());
        if self.is_halted() || !self.marker.is_due(seq, drained, now) {
            return Ok(());
        }
        self.setup.journal.is_marking(self.setup.name, seq)?;
        let marker = Marker {
            source: self.source_id.clone(),
            seq,
            time: now_ms() / 1000,
        };
        if let Some(request) = self
            .marker
            .begin(&marker, &self.setup.place, self.setup.rules, now)
        {
            let ticket = self.remote.send(request);
            self.tickets.insert(ticket, Purpose::Marker);
        }
        Ok(())
    }

    pub(super) fn take_marker(&mut self, reply: &Reply) -> Result<(), MirrorError> {
        match self.marker.take(reply) {
            Ok(request) => {
                let ticket = self.remote.send(request);
                self.tickets.insert(ticket, Purpose::Marker);
            }
            Err(Some(seq)) => self.setup.journal.has_marked(self.setup.name, seq)?,
            Err(None) => {}
        }
        Ok(())
    }

    /// Whether not even a file of our own can be written there.
    pub(super) fn takes_nothing(&mut self) -> Result<bool, MirrorError> {
        if self.lull.takes {
            return Ok(false);
        }
        let path = self.setup.place.probe();
        let attrs = Attrs {
            mode: Some(0o600),
            ..Attrs::default()
        };
        let open = Request::Open {
            path: path.clone(),
            mode: OpenMode::Create,
            attrs,
        };
        let Reply::Handle(handle) = self.ask(open)? else {
            return Ok(true);
        };
        // On a file that was just made these are denied by the server alone, not by its file system.
        let attrs = Attrs {
            mode: Some(0o600),
            ..Attrs::default()
        };
        let by_handle = Request::Fsetstat {
            handle: handle.clone(),
            attrs,
        };
        let by_path = Request::Setstat {
            path: path.clone(),
            attrs,
        };
        let is_denied = |reply| matches!(reply, Reply::Status(why) if is_denial(&why));
        let denied = [
            is_denied(self.ask(by_handle)?),
            is_denied(self.ask(by_path)?),
        ];
        self.learn_what_is_set(denied);
        let mut refused = false;
        for (offset, data) in (0..PROBE).step_by(CHUNK).map(|at| (at, vec![0x5a; CHUNK])) {
            let write = Request::Write {
                handle: handle.clone(),
                offset: offset as u64,
                data,
            };
            refused |= matches!(self.ask(write)?, Reply::Status(_));
        }
        // Some say only now that the disk is full.
        refused |= matches!(self.ask(Request::Close { handle })?, Reply::Status(_));
        self.ask(Request::Remove { path })?;
        self.lull.takes = !refused;
        Ok(refused)
    }

    /// Whether attributes can be set by handle and by path has been seen.
    fn learn_what_is_set(&mut self, [by_handle, by_path]: [bool; 2]) {
        let rules = &mut self.setup.rules;
        let known = *rules;
        rules.fsetstat &= !by_handle;
        rules.setstat &= !by_path;
        if *rules != known {
            let lacks = prepare::unsupported(rules);
            let name = self.setup.name;
            log::warn!("mirror {name}: it lacks {}", lacks.join(", "));
            self.setup.live.lacks(lacks);
        }
    }

    /// It was refused by a server that denies what can be done without: it is tried again without, and so is
    /// what was made ready meanwhile.
    fn goes_otherwise(&mut self, seq: Seq) {
        self.rewind(seq);
        for job in &mut self.window {
            if matches!(&job.stage, Stage::Refused(why) if is_denial(why)) {
                job.stage = Stage::Waiting;
                job.restaged += 1;
                self.stage_next = self.stage_next.min(job.row.seq);
            }
        }
        self.staging_refused = None;
    }
}

/// What a server says to a request that it does not carry out for anybody.
fn is_denial(why: &Status) -> bool {
    matches!(why.code, code::PERMISSION_DENIED | code::OP_UNSUPPORTED)
}
