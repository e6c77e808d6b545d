//! One row of the log on its way: what is made ready for it, and how far it is.

use super::*;

pub(super) enum Stage {
    /// Nothing to stage, or it is staged.
    Ready,
    Waiting,
    Uploading(Box<Upload>),
    /// Requests without a reply, and what failed first.
    Symlink(usize, Option<Status>),
    /// The file is gone here, and so its content has nothing to do there. Or it is being written anew: its
    /// next content is to come.
    Gone,
    /// An earlier row's send has brought what this one is about: see [`Covers`].
    Covered(Seq),
    /// The mirror does not take it. That is dealt with when everything before it is done.
    Refused(Status),
}

pub(super) enum Step {
    Waiting,
    /// Replies to the publishing requests and the looks behind them; how many are missing.
    Sent(Vec<Option<Reply>>, usize),
    /// A file is being written where it stands.
    InPlace,
    /// It went wrong: to be dealt with when nothing is in flight.
    Trouble(Verdict),
    /// It is set aside: parked with an error, or waiting behind one that is.
    Held(Option<String>),
    Done,
}

pub(super) struct Job {
    pub(super) row: Row,
    pub(super) stage: Stage,
    pub(super) step: Step,
    pub(super) restaged: u32,
    /// Published from the stage though it has several names: its name is not there.
    pub(super) anew: bool,
    /// How often directories had been opened when it was denied last, or sent: see [`Lull`].
    pub(super) opened: u64,
    /// Denied where nothing was shut any more, and sent once more.
    pub(super) sent_again: bool,
    /// What it comes to on this mirror, where that is something else: see [`Ghosts`].
    pub(super) instead: Option<Change>,
    /// Its content is gone, and nothing stands at its path.
    pub(super) absent: bool,
    /// Its file is gone for good.
    pub(super) lost: bool,
    /// What that means for it.
    pub(super) fate: Fate,
    /// Nothing stands at its path there when its turn comes.
    pub(super) vacant: bool,
    /// No other row's send counts for it.
    pub(super) alone: bool,
    /// Its bytes are few: they are written where the file stands.
    pub(super) in_place: bool,
    /// A copy of what stands there is in the stage, and the bytes go into that.
    pub(super) copied: bool,
    /// That did not do.
    pub(super) whole: bool,
    /// It is not carried out: its paths are scars, or covered by a repair.
    pub(super) taken_up: bool,
    /// Its paths are among those in flight.
    pub(super) noted: bool,
    /// The lane that it is staged on. All that is about its staged file goes there, so that a removal comes
    /// before the next try.
    pub(super) lane: Option<usize>,
    /// Which version of its file is made ready: part of the name in the stage.
    pub(super) version: Option<u64>,
    /// How much of that is there without a hole, in bytes.
    pub(super) arrived: u64,
    /// How much of that the journal was told.
    pub(super) told: u64,
    /// What its upload is counted with in [`Pipeline::burden`].
    pub(super) weight: staging::Weight,
}

impl Job {
    pub(super) fn new(row: Row) -> Job {
        let stage = match plan::staging(&row.change) {
            Staging::None => Stage::Ready,
            Staging::File | Staging::Symlink => Stage::Waiting,
        };
        Job {
            row,
            stage,
            step: Step::Waiting,
            restaged: 0,
            opened: 0,
            sent_again: false,
            anew: false,
            instead: None,
            absent: false,
            lost: false,
            fate: Fate::Lives,
            vacant: false,
            alone: false,
            in_place: false,
            copied: false,
            whole: false,
            taken_up: false,
            noted: false,
            lane: None,
            version: None,
            arrived: 0,
            told: 0,
            weight: staging::Weight::default(),
        }
    }

    /// The change as it is carried out here.
    pub(super) fn change(&self) -> &Change {
        self.instead.as_ref().unwrap_or(&self.row.change)
    }

    /// Where it is made ready.
    pub(super) fn staged(&self) -> Staged {
        Staged {
            seq: self.row.seq,
            version: self.version,
        }
    }

    /// Whether looks are sent along with its requests.
    pub(super) fn looks(&self, uncertain: bool) -> bool {
        if matches!(self.stage, Stage::Covered(_)) {
            return false;
        }
        uncertain || self.change().is_pivot() || matches!(self.stage, Stage::Gone)
    }

    /// Whether something is made ready for it out of sight.
    pub(super) fn is_staged(&self) -> bool {
        let stages = self.anew || plan::staging(&self.row.change) != Staging::None;
        stages && !self.is_in_place() && !matches!(self.stage, Stage::Gone | Stage::Covered(_))
    }

    /// It has to bring its content itself.
    pub(super) fn uncover(&mut self) {
        self.in_place = false; // to be found anew
        self.stage = match plan::staging(&self.row.change) {
            Staging::None => Stage::Ready,
            Staging::File | Staging::Symlink => Stage::Waiting,
        };
    }

    /// Whether its path is there when it is done, and done twice it ends the same.
    pub(super) fn arrives(&self) -> bool {
        let lives = self.fate == Fate::Lives;
        lives && (self.is_staged() || matches!(self.stage, Stage::Covered(_)))
    }

    /// Which file it is about.
    pub(super) fn content(&self) -> Option<covers::Place<'_>> {
        match &self.row.change {
            Change::Content {
                path, node, linked, ..
            } => Some(covers::Place {
                seq: self.row.seq,
                node,
                path,
                linked: *linked,
            }),
            Change::Mkdir { .. }
            | Change::Rmdir { .. }
            | Change::Unlink { .. }
            | Change::Symlink { .. }
            | Change::Link { .. }
            | Change::Rename { .. }
            | Change::Exchange { .. }
            | Change::Attr { .. }
            | Change::Repair { .. } => None,
        }
    }
}
