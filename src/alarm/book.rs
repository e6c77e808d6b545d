//! What is wrong, and what of it is still to be told: pure data, its rules, and its form in the journal.
//!
//! A *trouble* is a state (a mirror is stopped), not an event: whoever looks says for each topic that it
//! stands, that it is over, or nothing, which leaves it as it was (a worker that is just connecting knows
//! neither). So a trouble that nobody saw begin is seen all the same, and one that comes up a thousand
//! times is one. *News* is what a person is told of it.
//!
//! What can go wrong between two lines, and what answers it:
//!
//! * *Killed before a mail was sent.* The book is in the journal before it is ([`Book::is_saved`] of the caller),
//!   with what is told and what is not.
//! * *Killed after a mail was sent, before that was noted.* It is sent again, under the same Message-ID: twice
//!   is better than never.
//! * *A storm.* One trouble a topic; its reason is told again only if it is another one (digits do not
//!   count); refusals are told when they have not grown for a moment, and further ones once a `digest`; at
//!   most [`BURST`] mails are sent within that time, also across restarts; and of news that cannot be sent for
//!   long only the last [`MOST_NEWS`] are kept.

use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::time::Duration;

/// So many mails are sent within the time of `digest`.
pub const BURST: usize = 3;
/// So many pieces of news are kept; the oldest go first.
pub const MOST_NEWS: usize = 200;
/// So many of what was refused are named in one piece of news.
pub const MOST_ITEMS: usize = 10;
/// So many reasons of one trouble are remembered as told.
const MOST_REASONS: usize = 8;
/// News waits so long (ms) for more of it, which goes into the same mail.
const GATHER: i64 = 3_000;
/// Refusals are told when there were no further ones for so long (ms),
const QUIET: i64 = 3_000;
/// or at the latest so long after the first (ms).
const LATEST: i64 = 60_000;

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal,)*) => {
        /// What can be wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind { $($(#[$doc])* $kind,)* }

        impl Kind {
            /// All of them.
            pub const ALL: &[Kind] = &[$(Kind::$kind,)*];

            /// The word for it in JSON and for hooks.
            pub fn name(self) -> &'static str {
                match self { $(Kind::$kind => $name,)* }
            }
        }
    };
}

kinds! {
    /// Changes cannot be recorded: the mount refuses them (J6).
    ReadOnly = "read-only",
    /// The journal cannot be tidied up.
    Journal = "journal",
    /// The daemon does not start.
    NotStarted = "not-started",
    /// The mount was taken away under the running daemon.
    Unmounted = "unmounted",
    /// A mirror waits for a person.
    Stopped = "stopped",
    /// A mirror lacks more than what is in the log.
    NeedsSync = "needs-sync",
    /// A mirror got too many deletions at once: it is paused.
    MassDeletion = "mass-deletion",
    /// A mirror refuses changes, and everything else goes on.
    Parked = "parked",
    /// A mirror has been out of reach for `alert_after`.
    Unreachable = "unreachable",
    /// A mirror is reached, and behind by `alert_after`.
    Lag = "lag",
    /// A worker ended by a bug, and was started again.
    WorkerDied = "worker-died",
}

impl Kind {
    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.iter().copied().find(|k| k.name() == name)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a trouble is about: its kind, and the mirror (empty: none).
pub type Topic = (Kind, String);

/// What was refused: a path, and why.
pub type Item = (String, String);

/// What a mirror refuses at the moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Refusals {
    /// How many changes.
    pub count: u64,
    /// The newest of them.
    pub upto: u64,
    /// Some of those that were not told yet, at most [`MOST_ITEMS`].
    pub items: Vec<Item>,
}

/// What was seen of one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// It is wrong: why, in words that say what to do.
    Standing(String),
    /// Changes are refused.
    Refused(Refusals),
    /// It is as it should be.
    Over,
}

/// A mirror, as a mail tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MirrorLine {
    /// Its name.
    pub name: String,
    /// Where it is: account, host and directory.
    pub place: String,
    /// Its host.
    pub host: String,
    /// How it is doing, in a few words.
    pub state: String,
}

/// What there is to see at one moment.
#[derive(Debug, Clone, Default)]
pub struct Sight {
    /// What is known of each topic; what is missing is not known.
    pub seen: Vec<(Topic, Seen)>,
    /// All mirrors that are configured.
    pub mirrors: Vec<MirrorLine>,
}

/// How far the refusals of mirrors have been told: their newest change.
pub type Told = HashMap<String, u64>;

/// What is told about a trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// It has come up, or has another reason.
    Raised,
    /// It has grown.
    More,
    /// It is over.
    Recovered,
    /// It happened, and that was that.
    Happened,
}

impl What {
    const ALL: [What; 4] = [What::Raised, What::More, What::Recovered, What::Happened];

    /// The word for it in JSON and for hooks.
    pub fn name(self) -> &'static str {
        match self {
            What::Raised => "raised",
            What::More => "more",
            What::Recovered => "recovered",
            What::Happened => "happened",
        }
    }
}

/// One thing that a person is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    /// Counts up.
    pub id: u64,
    /// When it was noticed: milliseconds since 1970.
    pub at: i64,
    /// What of it.
    pub what: What,
    /// What it is about.
    pub kind: Kind,
    /// The mirror; empty: none.
    pub mirror: String,
    /// Since when that is so: milliseconds since 1970.
    pub since: i64,
    /// Why, in words that say what to do.
    pub reason: String,
    /// How often, or how many changes.
    pub count: u64,
    /// The first of them.
    pub items: Vec<Item>,
    /// No mail has to tell it any more.
    mailed: bool,
    /// No hook has to be run for it any more.
    hooked: bool,
}

/// What is wrong at the moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Trouble {
    /// Since when: milliseconds since 1970.
    pub since: i64,
    /// Why.
    pub reason: String,
    /// Whether it has been told.
    pub told: bool,
    /// Reasons that were told, without their digits.
    reasons: Vec<String>,
    refused: Refusals,
    told_count: u64,
    told_upto: u64,
    told_at: i64,
    /// When refusals last grew, and when the first of those came that are not told.
    grown_at: i64,
    untold_since: i64,
}

/// What the rules depend on.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// How long a mirror may be out of reach untold.
    pub alert_after: Duration,
    /// Within this time [`BURST`] mails are sent at most.
    pub digest: Duration,
    /// There is somebody to be mailed.
    pub mails: bool,
    /// There is a program to be run.
    pub hooks: bool,
}

/// Why mails do not get away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Why the last one did not.
    pub reason: String,
    /// Since when: milliseconds since 1970.
    pub since: i64,
    tried_at: i64,
    /// How long (ms) after that it is tried again.
    pause: i64,
    attempts: u32,
}

/// All of it.
#[derive(Debug, Default)]
pub struct Book {
    troubles: BTreeMap<Topic, Trouble>,
    news: VecDeque<News>,
    next_id: u64,
    /// When the last [`BURST`] mails were sent.
    mails: Vec<i64>,
    /// News that nobody was told, since there was no room.
    left_out: u64,
    /// How often something that happened was left untold since it was told last, and when that was.
    happened: BTreeMap<Topic, (i64, u64)>,
    failure: Option<Failure>,
    /// Mails that were sent, and tries that failed.
    counts: (u64, u64),
    mirrors: Vec<MirrorLine>,
    changed: bool,
}

impl Book {
    /// Takes in what there is to see.
    pub fn look(&mut self, sight: Sight, now: i64, rules: &Rules) {
        for (topic, seen) in sight.seen {
            match seen {
                Seen::Over => self.over(topic, now, rules),
                Seen::Standing(reason) => self.stands(topic, reason, None, now, rules),
                Seen::Refused(refused) => {
                    let reason = refused.items.first().map(|item| item.1.clone());
                    self.stands(topic, reason.unwrap_or_default(), Some(refused), now, rules);
                }
            }
        }
        self.mirrors = sight.mirrors;
        let known = |name: &str| name.is_empty() || self.mirrors.iter().any(|m| m.name == name);
        let before = self.troubles.len();
        self.troubles.retain(|topic, _| known(&topic.1));
        self.changed |= self.troubles.len() != before;
    }

    fn over(&mut self, topic: Topic, now: i64, rules: &Rules) {
        let Some(trouble) = self.troubles.remove(&topic) else {
            return;
        };
        self.changed = true;
        if trouble.told {
            self.is_over(topic, trouble.since, trouble.reason, now, rules);
        }
    }

    /// Tells that something is over that was told.
    pub fn is_over(&mut self, topic: Topic, since: i64, reason: String, now: i64, rules: &Rules) {
        let news = News {
            since,
            ..self.blank(topic, What::Recovered, reason, now, rules)
        };
        self.tell(news);
    }

    fn stands(
        &mut self,
        topic: Topic,
        reason: String,
        refused: Option<Refusals>,
        now: i64,
        rules: &Rules,
    ) {
        let ms = |d: Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX);
        let (alert_after, digest) = (ms(rules.alert_after), ms(rules.digest));
        self.changed |= !self.troubles.contains_key(&topic);
        let trouble = self.troubles.entry(topic.clone()).or_insert(Trouble {
            since: now,
            untold_since: now,
            ..Trouble::default()
        });
        let refuses = refused.is_some();
        if let Some(refused) = refused {
            let fresh = |t: &Trouble, r: &Refusals| r.count > t.told_count || r.upto > t.told_upto;
            if trouble.told && !fresh(trouble, &trouble.refused) && fresh(trouble, &refused) {
                trouble.untold_since = now;
            }
            if refused.count > trouble.refused.count || refused.upto > trouble.refused.upto {
                trouble.grown_at = now;
            }
            trouble.told_count = trouble.told_count.min(refused.count);
            let untold = !trouble.told || fresh(trouble, &refused);
            trouble.refused = refused;
            let quiet = now - trouble.grown_at >= QUIET || now - trouble.untold_since >= LATEST;
            let rested = !trouble.told || now - trouble.told_at >= digest;
            if !(untold && quiet && rested) {
                return;
            }
        } else {
            self.changed |= trouble.reason != reason;
            let ripe = topic.0 != Kind::Unreachable || now - trouble.since >= alert_after;
            let another = topic.0 != Kind::Unreachable
                && topic.0 != Kind::Lag
                && !trouble.reasons.contains(&without_digits(&reason));
            trouble.reason = reason.clone();
            if !(if trouble.told { another } else { ripe }) {
                return;
            }
        }
        let what = if trouble.told && refuses {
            What::More
        } else {
            What::Raised
        };
        let fresh = trouble.refused.count - trouble.told_count;
        trouble.told = true;
        trouble.told_at = now;
        trouble.reason = reason.clone();
        trouble.told_count = trouble.refused.count;
        trouble.told_upto = trouble.refused.upto;
        trouble.reasons.push(without_digits(&reason));
        if trouble.reasons.len() > MOST_REASONS {
            trouble.reasons.remove(0);
        }
        let (since, items) = (trouble.since, trouble.refused.items.clone());
        let news = News {
            since,
            items,
            count: fresh.max(1),
            ..self.blank(topic, what, reason, now, rules)
        };
        self.tell(news);
    }

    /// Takes in what happened once.
    pub fn happens(&mut self, topic: Topic, reason: String, now: i64, rules: &Rules) {
        let (told_at, untold) = self.happened.entry(topic.clone()).or_insert((i64::MIN, 0));
        *untold += 1;
        if now.saturating_sub(*told_at)
            < i64::try_from(rules.digest.as_millis()).unwrap_or(i64::MAX)
        {
            return;
        }
        let count = std::mem::take(untold);
        *told_at = now;
        let news = News {
            count,
            ..self.blank(topic, What::Happened, reason, now, rules)
        };
        self.tell(news);
    }

    fn blank(&self, topic: Topic, what: What, reason: String, now: i64, rules: &Rules) -> News {
        News {
            id: 0,
            at: now,
            what,
            kind: topic.0,
            mirror: topic.1,
            since: now,
            reason,
            count: 1,
            items: Vec::new(),
            mailed: !rules.mails,
            hooked: !rules.hooks,
        }
    }

    fn tell(&mut self, news: News) {
        self.next_id += 1;
        let id = self.next_id;
        self.news.push_back(News { id, ..news });
        if self.news.len() > MOST_NEWS {
            self.news.pop_front();
            self.left_out += 1;
        }
        self.tidy();
    }

    fn tidy(&mut self) {
        self.news.retain(|n| !n.mailed || !n.hooked);
        self.changed = true;
    }

    /// What is wrong at the moment and has been told, or is about to be.
    pub fn troubles(&self) -> impl Iterator<Item = (&Topic, &Trouble)> {
        self.troubles.iter().filter(|(_, t)| t.told)
    }

    /// How far refusals have been told.
    pub fn told(&self) -> Told {
        let all = self.troubles.iter();
        let of = all.filter(|(topic, t)| topic.0 == Kind::Parked && t.told);
        of.map(|(topic, t)| (topic.1.clone(), t.told_upto))
            .collect()
    }

    /// The mirrors, as they were seen last.
    pub fn mirrors(&self) -> &[MirrorLine] {
        &self.mirrors
    }

    /// What the next mail tells, if it is time for one; and how much older news is not in it. With `hurry`
    /// no more news is waited for.
    pub fn due_mail(&self, now: i64, rules: &Rules, hurry: bool) -> Option<(Vec<News>, u64)> {
        let news: Vec<News> = self.news.iter().filter(|n| !n.mailed).cloned().collect();
        let first = news.first()?;
        let digest = i64::try_from(rules.digest.as_millis()).unwrap_or(i64::MAX);
        // A clock that was set back does not keep mails for ever.
        let lately = |at: i64, ms: i64| now >= at && now - at < ms;
        let failed = self.failure.as_ref();
        let pauses = failed.is_some_and(|f| lately(f.tried_at, f.pause));
        let young = lately(first.at, GATHER) && !hurry;
        let enough = self.mails.iter().filter(|at| lately(**at, digest)).count() >= BURST;
        (!pauses && !young && !enough).then_some((news, self.left_out))
    }

    /// A mail with news up to `id` was taken.
    pub fn mailed(&mut self, id: u64, left_out: u64, now: i64) {
        self.failure = None;
        self.counts.0 += 1;
        self.left_out -= left_out.min(self.left_out);
        self.mails.push(now);
        if self.mails.len() > BURST {
            self.mails.remove(0);
        }
        self.news
            .iter_mut()
            .filter(|n| n.id <= id)
            .for_each(|n| n.mailed = true);
        self.tidy();
    }

    /// A mail was not taken; it is tried again after a pause that doubles from `first` to `longest`. True when
    /// that is worth a line in the log: at first, and when the reason is another one.
    pub fn not_mailed(&mut self, reason: String, now: i64, first: i64, longest: i64) -> bool {
        self.counts.1 += 1;
        let before = self.failure.take();
        let attempts = before.as_ref().map_or(0, |f| f.attempts);
        let pause = first.saturating_mul(1 << attempts.min(30)).min(longest);
        let told = before.as_ref().is_some_and(|f| f.reason == reason);
        self.failure = Some(Failure {
            since: before.map_or(now, |f| f.since),
            reason,
            tried_at: now,
            pause,
            attempts: attempts + 1,
        });
        self.changed |= !told;
        !told
    }

    /// Mails are tried again at once.
    pub fn try_mails(&mut self) {
        if let Some(failure) = &mut self.failure {
            failure.pause = 0;
        }
    }

    /// How many mails were sent so far, and how many tries failed.
    pub fn counts(&self) -> (u64, u64) {
        self.counts
    }

    /// How many pieces of news wait for a mail, and why they do if they should not.
    pub fn waiting(&self) -> (usize, Option<&Failure>) {
        let news = self.news.iter().filter(|n| !n.mailed).count();
        (news, self.failure.as_ref())
    }

    /// What a hook has to be run for next.
    pub fn due_hook(&self) -> Option<News> {
        self.news.iter().find(|n| !n.hooked).cloned()
    }

    /// A hook has been run.
    pub fn hooked(&mut self, id: u64) {
        self.news
            .iter_mut()
            .filter(|n| n.id == id)
            .for_each(|n| n.hooked = true);
        self.tidy();
    }

    /// Nobody is mailed, or nothing is run, any more: that is not waited for.
    pub fn apply(&mut self, rules: &Rules) {
        for news in &mut self.news {
            news.mailed |= !rules.mails;
            news.hooked |= !rules.hooks;
        }
        self.tidy();
    }

    /// The form in the journal, if that is another one than when this was last asked.
    pub fn save(&mut self) -> Option<String> {
        std::mem::take(&mut self.changed).then(|| self.to_json().to_string())
    }

    /// What [`Book::save`] gave could not be saved.
    pub fn unsaved(&mut self) {
        self.changed = true;
    }

    fn to_json(&self) -> Value {
        let troubles = self.troubles.iter().map(|(topic, t)| {
            json!({
                "kind": topic.0.name(), "mirror": topic.1, "since": t.since, "told": t.told,
                "reason": t.reason, "reasons": t.reasons, "told_count": t.told_count,
                "told_upto": t.told_upto, "told_at": t.told_at,
            })
        });
        let news = self.news.iter().map(|n| {
            json!({
                "id": n.id, "at": n.at, "what": n.what.name(), "kind": n.kind.name(),
                "mirror": n.mirror, "since": n.since, "reason": n.reason, "count": n.count,
                "items": n.items, "mailed": n.mailed, "hooked": n.hooked,
            })
        });
        json!({
            "troubles": troubles.collect::<Vec<_>>(), "news": news.collect::<Vec<_>>(),
            "next_id": self.next_id, "mails": self.mails, "left_out": self.left_out,
            "counts": self.counts,
            "failing": self.failure.as_ref().map(|f| json!({"reason": f.reason, "since": f.since})),
        })
    }

    /// Reads what [`Book::save`] gave. What cannot be read is left out: it is seen again.
    pub fn load(text: &str) -> Book {
        let all: Value = serde_json::from_str(text).unwrap_or_default();
        let list = |name: &str| all[name].as_array().cloned().unwrap_or_default();
        let failing = &all["failing"];
        Book {
            troubles: list("troubles").iter().filter_map(trouble_of).collect(),
            news: list("news").iter().filter_map(news_of).collect(),
            next_id: number(&all["next_id"]),
            mails: list("mails").iter().filter_map(Value::as_i64).collect(),
            left_out: number(&all["left_out"]),
            counts: (number(&all["counts"][0]), number(&all["counts"][1])),
            failure: failing.is_object().then(|| Failure {
                reason: string(&failing["reason"]),
                since: time(&failing["since"]),
                tried_at: 0,
                pause: 0,
                attempts: 0,
            }),
            ..Book::default()
        }
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn time(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

fn string(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_string()
}

fn trouble_of(value: &Value) -> Option<(Topic, Trouble)> {
    let reasons = value["reasons"].as_array()?;
    let trouble = Trouble {
        since: time(&value["since"]),
        reason: string(&value["reason"]),
        told: value["told"].as_bool()?,
        reasons: reasons.iter().map(string).collect(),
        told_count: number(&value["told_count"]),
        told_upto: number(&value["told_upto"]),
        told_at: time(&value["told_at"]),
        untold_since: time(&value["since"]),
        ..Trouble::default()
    };
    let kind = Kind::from_name(value["kind"].as_str()?)?;
    Some(((kind, string(&value["mirror"])), trouble))
}

fn news_of(value: &Value) -> Option<News> {
    let what = value["what"].as_str()?;
    let items = value["items"].as_array()?;
    Some(News {
        id: number(&value["id"]),
        at: time(&value["at"]),
        what: What::ALL.into_iter().find(|w| w.name() == what)?,
        kind: Kind::from_name(value["kind"].as_str()?)?,
        mirror: string(&value["mirror"]),
        since: time(&value["since"]),
        reason: string(&value["reason"]),
        count: number(&value["count"]),
        items: items
            .iter()
            .map(|i| (string(&i[0]), string(&i[1])))
            .collect(),
        mailed: value["mailed"].as_bool()?,
        hooked: value["hooked"].as_bool()?,
    })
}

/// A reason in which only numbers differ is no other reason.
pub fn without_digits(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_digit()).collect()
}
