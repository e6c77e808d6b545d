//! Says when something needs a person: mails, and hooks.
//!
//! The worker threads and the mount know nothing of this room. A thread of its own *looks*, once a second, at
//! what they show anyway (a worker's state, what is parked in the journal, whether the log is closed), and
//! compares that with the [`book`] of what is known. Nothing that a worker does can wait for a mail, nothing
//! that fails a thousand times is told a thousand times, and what went wrong while nobody could be
//! told is seen as long as it lasts.
//!
//! What can go wrong between two lines, and what answers it:
//!
//! * *Killed, or the mail server is down*: what is to be told is in the journal before it is sent, and is
//!   taken out when the server took it. It is tried again for ever, with growing pauses.
//! * *The journal's disk is full* (which is what is to be told): a book that cannot be saved is mailed from
//!   all the same, and saved when it can be.
//! * *A mail server or a hook that hangs*: each has a thread of its own and a time limit.
//! * *A bug that ends one of these threads*: it goes on after a rest.
//! * *The daemon ends*: what is to be told gets one more try, for a short time; then it waits for the next start.

mod book;
mod child;
mod hook;
mod letter;
mod post;
mod start;

pub use book::{Failure, Item, Kind, MOST_ITEMS, MirrorLine, Refusals, Seen, Sight, Told, Topic};
pub use letter::utc;
pub use post::{host_name, is_address, way};
pub use start::{left, not_started};

use crate::config::{Config, MailConfig};
use crate::journal::{Journal, now_ms};
use book::{Book, Rules};
use letter::Origin;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The key of the journal's `meta` under which the book is.
pub const BOOK: &str = "alarms";

/// How often everything is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The pause before a mail is tried again: at first, and at most (ms).
const RETRY: (i64, i64) = (5_000, 15 * 60_000);

/// How long a thread that died of a bug rests before it goes on.
const AFTER_A_BUG: Duration = Duration::from_secs(2);

/// What there is to see: called once a second with what has been told of refusals.
pub type Look = Box<dyn FnMut(&Told) -> Sight + Send>;

/// Watches, and tells.
pub struct Alarm {
    shared: Arc<Shared>,
    threads: Mutex<Vec<(&'static str, JoinHandle<()>)>>,
}

struct Shared {
    journal: Arc<Journal>,
    book: Mutex<Book>,
    settings: Mutex<Settings>,
    /// Held while the book is saved, so that an older one is never saved over a newer one.
    saving: Mutex<bool>,
    stopping: Mutex<bool>,
    stopped: Condvar,
}

#[derive(Clone)]
struct Settings {
    mail: MailConfig,
    hook: Option<PathBuf>,
    from: Origin,
}

impl Settings {
    fn of(config: &Config) -> Settings {
        Settings {
            mail: config.mail.clone(),
            hook: config.on_event.clone(),
            from: Origin {
                host: host_name(),
                source: config.source.display().to_string(),
            },
        }
    }

    fn rules(&self) -> Rules {
        Rules {
            alert_after: self.mail.alert_after,
            digest: self.mail.digest,
            mails: !self.mail.to.is_empty(),
            hooks: self.hook.is_some(),
        }
    }
}

/// What `status` tells of this room.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Whether there is somebody to be mailed.
    pub mails: bool,
    /// How many pieces of news wait for a mail.
    pub waiting: u64,
    /// Why they cannot be sent, if so, and since when (milliseconds since 1970).
    pub failing: Option<(String, i64)>,
    /// How many mails were sent so far.
    pub sent: u64,
    /// How many tries failed.
    pub failed: u64,
    /// What is wrong and has been told: kind, mirror (or empty), since when, and why.
    pub troubles: Vec<(Kind, String, i64, String)>,
}

fn report(book: &Book, mails: bool) -> Report {
    let (waiting, failure) = book.waiting();
    let troubles = book.troubles();
    Report {
        mails,
        waiting: waiting as u64,
        sent: book.counts().0,
        failed: book.counts().1,
        failing: failure.map(|f| (f.reason.clone(), f.since)),
        troubles: troubles
            .map(|(topic, t)| (topic.0, topic.1.clone(), t.since, t.reason.clone()))
            .collect(),
    }
}

/// What a daemon that is not running has left: `saved` is what the journal has under [`BOOK`].
pub fn report_of(saved: Option<&str>, config: &Config) -> Report {
    let book = saved.map(Book::load).unwrap_or_default();
    report(&book, !config.mail.to.is_empty())
}

/// Sends a test mail at once; says how it went.
///
/// # Errors
/// What the mail server said, or what else went wrong.
pub fn send_test(
    config: &Config,
    report: &Report,
    mirrors: &[MirrorLine],
) -> Result<String, String> {
    if config.mail.to.is_empty() {
        return Err("there is no section [mail] in the configuration: add it".to_string());
    }
    let settings = Settings::of(config);
    let letter = letter::test(&report.troubles, mirrors, &settings.from, now_ms());
    let taken = post::send(&config.mail, &letter, &settings.from.host)?;
    let (to, way) = (config.mail.to.join(", "), way(&config.mail));
    let said = format!("a mail to {to} was taken ({way}): {}", taken.answer);
    match taken.refused {
        Some(refused) => Err(format!("{said}; but not for {refused}")),
        None => Ok(said),
    }
}

impl Alarm {
    /// Starts to watch.
    ///
    /// # Errors
    /// The journal's, or a thread cannot be started.
    pub fn start(config: &Config, journal: Arc<Journal>, look: Look) -> Result<Alarm, String> {
        let saved = journal.meta(BOOK).map_err(|e| e.to_string())?;
        let mut book = saved.as_deref().map(Book::load).unwrap_or_default();
        let settings = Settings::of(config);
        book.apply(&settings.rules());
        let told = start::started(&mut book, &config.state_dir, &settings.rules());
        let shared = Arc::new(Shared {
            journal,
            book: Mutex::new(book),
            settings: Mutex::new(settings),
            saving: Mutex::new(true),
            stopping: Mutex::new(false),
            stopped: Condvar::new(),
        });
        let alarm = Alarm {
            shared,
            threads: Mutex::default(),
        };
        alarm.shared.save();
        if let Some(told) = told {
            // Were it still there, it would be told again that it is over.
            let _ = std::fs::remove_file(told);
        }
        let mut look = look;
        alarm.spawn("alarm", move |shared| shared.watch(&mut look))?;
        alarm.spawn("mail", Shared::mail)?;
        alarm.spawn("hooks", Shared::run_hooks)?;
        Ok(alarm)
    }

    fn spawn(
        &self,
        name: &'static str,
        mut work: impl FnMut(&Shared) + Send + 'static,
    ) -> Result<(), String> {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name(name.to_string());
        // A bug here must not be what nobody is told of from then on.
        let again = move || {
            while catch_unwind(AssertUnwindSafe(|| work(&shared))).is_err() {
                if shared.rest(AFTER_A_BUG) {
                    return;
                }
            }
        };
        let thread = thread.spawn(again).map_err(|e| e.to_string())?;
        lock(&self.threads).push((name, thread));
        Ok(())
    }

    /// Takes changed settings, and tries again at once what could not be sent.
    pub fn reload(&self, config: &Config) {
        let settings = Settings::of(config);
        let rules = settings.rules();
        *lock(&self.shared.settings) = settings;
        let mut book = lock(&self.shared.book);
        book.apply(&rules);
        book.try_mails();
    }

    /// What `status` tells.
    pub fn report(&self) -> Report {
        let mails = !lock(&self.shared.settings).mail.to.is_empty();
        report(&lock(&self.shared.book), mails)
    }

    /// Tells what happened once (`mirror` empty: to none of them).
    pub fn happened(&self, kind: Kind, mirror: &str, reason: &str) {
        let rules = lock(&self.shared.settings).rules();
        let topic = (kind, mirror.to_string());
        lock(&self.shared.book).happens(topic, reason.to_string(), now_ms(), &rules);
        self.shared.save();
    }

    /// Sends a test mail at once; says how it went. If it was taken, what waits is tried again.
    ///
    /// # Errors
    /// As [`send_test`].
    pub fn test(&self, config: &Config) -> Result<String, String> {
        let mirrors = lock(&self.shared.book).mirrors().to_vec();
        let said = send_test(config, &self.report(), &mirrors)?;
        lock(&self.shared.book).try_mails();
        Ok(said)
    }

    /// Gives what is to be told one more try, and ends, by `deadline` at the latest.
    pub fn stop(&self, deadline: Instant) {
        *lock(&self.shared.stopping) = true;
        self.shared.stopped.notify_all();
        let threads = std::mem::take(&mut *lock(&self.threads));
        for (name, thread) in threads {
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
            if thread.is_finished() {
                // A panic has been reported by the panic hook; there is nothing else to learn.
                let _ = thread.join();
            } else {
                log::warn!(
                    "what is under way on thread {name} is left: it goes on at the next start"
                );
            }
        }
        self.shared.save();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Plain values, changed in one go: whatever a panic left is still one.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Waits for `pause`; says whether to end.
    fn rest(&self, pause: Duration) -> bool {
        let stopping = lock(&self.stopping);
        let waited = self
            .stopped
            .wait_timeout_while(stopping, pause, |stopping| !*stopping);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn watch(&self, look: &mut Look) {
        loop {
            let told = lock(&self.book).told();
            let sight = look(&told);
            let rules = lock(&self.settings).rules();
            lock(&self.book).look(sight, now_ms(), &rules);
            self.save();
            if self.rest(LOOK_EVERY) {
                return;
            }
        }
    }

    /// Brings the book into the journal. Where that fails it is tried again with the next look.
    fn save(&self) {
        let mut works = lock(&self.saving);
        let Some(text) = lock(&self.book).save() else {
            return;
        };
        match self.journal.set_meta(BOOK, &text) {
            Ok(()) => *works = true,
            Err(why) => {
                lock(&self.book).unsaved();
                if std::mem::take(&mut *works) {
                    log::error!("what is to be mailed cannot be kept: {why}");
                }
            }
        }
    }

    fn mail(&self) {
        loop {
            let ending = self.rest(LOOK_EVERY / 2);
            self.mail_what_is_due(ending);
            if ending {
                return;
            }
        }
    }

    fn mail_what_is_due(&self, hurry: bool) {
        let settings = lock(&self.settings).clone();
        let rules = settings.rules();
        let (news, left_out, mirrors) = {
            let book = lock(&self.book);
            let Some((news, left_out)) = book.due_mail(now_ms(), &rules, hurry) else {
                return;
            };
            (news, left_out, book.mirrors().to_vec())
        };
        self.save();
        let letter = letter::tell(&news, left_out, &mirrors, &settings.from, now_ms());
        let last = news.last().map_or(0, |n| n.id);
        let sent = post::send(&settings.mail, &letter, &settings.from.host);
        let now = now_ms();
        let mut book = lock(&self.book);
        match sent {
            Ok(taken) => {
                book.mailed(last, left_out, now);
                drop(book);
                log::info!("mailed: {}", letter.subject);
                if let Some(refused) = taken.refused {
                    log::error!("that mail was not taken for {refused}");
                }
            }
            Err(why) => {
                if book.not_mailed(why.clone(), now, RETRY.0, RETRY.1) {
                    drop(book);
                    log::error!("no mail could be sent (it is tried again): {why}");
                }
            }
        }
        self.save();
    }

    fn run_hooks(&self) {
        loop {
            let ending = self.rest(LOOK_EVERY / 4);
            loop {
                let settings = lock(&self.settings).clone();
                let (due, mirrors) = {
                    let book = lock(&self.book);
                    (book.due_hook(), book.mirrors().to_vec())
                };
                let (Some(program), Some(news)) = (settings.hook, due) else {
                    break;
                };
                // Once at most: a hook that fails would fail again, and the mail tells the same.
                lock(&self.book).hooked(news.id);
                self.save();
                if let Err(why) = hook::run(&program, &news, &mirrors, &settings.from) {
                    log::error!("on_event for {} ({}): {why}", news.kind, news.what.name());
                }
            }
            if ending {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests;
