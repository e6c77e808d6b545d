//! The rules of what is told, each with the clock in hand.

use super::book::{BURST, Book, MOST_NEWS, News, Rules, What};
use super::letter::{self, Origin, utc};
use super::*;

const RULES: Rules = Rules {
    alert_after: Duration::from_secs(900),
    digest: Duration::from_secs(3600),
    mails: true,
    hooks: true,
};

fn sight(seen: Vec<(Kind, Seen)>) -> Sight {
    let mirrors = vec![MirrorLine {
        name: "web2".to_string(),
        place: "www@web2:/srv".to_string(),
        host: "web2".to_string(),
        state: "stopped".to_string(),
    }];
    let named = |(kind, seen)| ((kind, "web2".to_string()), seen);
    Sight {
        seen: seen.into_iter().map(named).collect(),
        mirrors,
    }
}

fn stands(kind: Kind, why: &str) -> Vec<(Kind, Seen)> {
    vec![(kind, Seen::Standing(why.to_string()))]
}

fn over(kind: Kind) -> Vec<(Kind, Seen)> {
    vec![(kind, Seen::Over)]
}

fn refuses(count: u64, upto: u64) -> Vec<(Kind, Seen)> {
    let items = vec![(format!("f{upto}"), "denied".to_string())];
    vec![(Kind::Parked, Seen::Refused(Refusals { count, upto, items }))]
}

/// Takes all news that is due, as one mail.
fn mail(book: &mut Book, now: i64) -> Vec<News> {
    let Some((news, left_out)) = book.due_mail(now, &RULES, false) else {
        return Vec::new();
    };
    book.mailed(news.last().unwrap().id, left_out, now);
    news
}

fn whats(news: &[News]) -> Vec<(What, Kind)> {
    news.iter().map(|n| (n.what, n.kind)).collect()
}

#[test]
fn a_trouble_is_told_once_however_often_it_is_seen_and_once_when_it_is_over() {
    let mut book = Book::default();
    for second in 0..100 {
        book.look(
            sight(stands(Kind::Stopped, "no key")),
            second * 1000,
            &RULES,
        );
    }
    // Not known for a while: it stands.
    book.look(sight(vec![]), 100_000, &RULES);
    book.look(sight(stands(Kind::Stopped, "no key")), 101_000, &RULES);
    let told = mail(&mut book, 101_000);
    assert_eq!(whats(&told), [(What::Raised, Kind::Stopped)]);
    assert_eq!((told[0].since, told[0].reason.as_str()), (0, "no key"));
    book.look(sight(over(Kind::Stopped)), 110_000, &RULES);
    book.look(sight(over(Kind::Stopped)), 111_000, &RULES);
    let told = mail(&mut book, 120_000);
    assert_eq!(whats(&told), [(What::Recovered, Kind::Stopped)]);
    assert_eq!((told[0].since, told[0].at), (0, 110_000));
    assert_eq!(mail(&mut book, 1_000_000), []);
}

#[test]
fn another_reason_is_told_and_one_with_other_numbers_is_not() {
    let mut book = Book::default();
    let mut look = |at, why| book.look(sight(stands(Kind::Stopped, why)), at, &RULES);
    for (at, why) in [
        (0, "change 7: denied"),
        (1, "change 8: denied"),
        (2, "disk full"),
    ] {
        look(at, why);
    }
    for at in 3..50 {
        look(
            at,
            if at % 2 == 0 {
                "change 9: denied"
            } else {
                "disk full"
            },
        );
    }
    let told = mail(&mut book, 60_000);
    let reasons: Vec<&str> = told.iter().map(|n| n.reason.as_str()).collect();
    assert_eq!(reasons, ["change 7: denied", "disk full"]);
}

#[test]
fn a_mirror_out_of_reach_is_told_after_its_time_also_across_a_restart() {
    let mut book = Book::default();
    book.look(sight(stands(Kind::Unreachable, "refused")), 0, &RULES);
    book.look(
        sight(stands(Kind::Unreachable, "no route")),
        800_000,
        &RULES,
    );
    assert_eq!(book.due_mail(800_000, &RULES, true), None);
    let mut book = Book::load(&book.save().unwrap());
    book.look(sight(vec![]), 850_000, &RULES);
    book.look(
        sight(stands(Kind::Unreachable, "no route")),
        900_000,
        &RULES,
    );
    let told = mail(&mut book, 910_000);
    assert_eq!(whats(&told), [(What::Raised, Kind::Unreachable)]);
    assert_eq!(told[0].since, 0);
    // One that comes back sooner is no news at all.
    let mut book = Book::default();
    book.look(sight(stands(Kind::Unreachable, "refused")), 0, &RULES);
    book.look(sight(over(Kind::Unreachable)), 899_000, &RULES);
    assert_eq!(book.due_mail(1_000_000, &RULES, true), None);
}

#[test]
fn a_thousand_refusals_are_told_once_and_further_ones_once_a_digest() {
    let mut book = Book::default();
    for n in 1..=1000 {
        book.look(sight(refuses(n, n)), n as i64 * 20, &RULES);
    }
    assert_eq!(book.due_mail(20_000, &RULES, true), None, "they still grow");
    book.look(sight(refuses(1000, 1000)), 24_000, &RULES);
    let told = mail(&mut book, 30_000);
    assert_eq!(whats(&told), [(What::Raised, Kind::Parked)]);
    assert_eq!(told[0].count, 1000);
    // Tried again in vain; a further one; and one that takes the place of another.
    let mut book = Book::load(&book.save().unwrap());
    assert_eq!(book.told().get("web2"), Some(&1000));
    book.look(sight(refuses(1000, 1000)), 40_000, &RULES);
    book.look(sight(refuses(1000, 1001)), 50_000, &RULES);
    book.look(sight(refuses(1001, 1002)), 51_000, &RULES);
    book.look(sight(refuses(1001, 1002)), 3_600_000, &RULES);
    assert_eq!(mail(&mut book, 3_610_000), []);
    book.look(sight(refuses(1001, 1002)), 3_700_000, &RULES);
    let told = mail(&mut book, 3_710_000);
    assert_eq!(whats(&told), [(What::More, Kind::Parked)]);
    assert_eq!(told[0].count, 1);
    book.look(sight(over(Kind::Parked)), 3_720_000, &RULES);
    let told = mail(&mut book, 3_730_000);
    assert_eq!(whats(&told), [(What::Recovered, Kind::Parked)]);
}

#[test]
fn refusals_that_never_cease_are_told_all_the_same() {
    let mut book = Book::default();
    for n in 1..=100 {
        book.look(sight(refuses(n, n)), n as i64 * 1000, &RULES);
    }
    assert_eq!(mail(&mut book, 100_000)[0].count, 61);
}

#[test]
fn of_a_mirror_that_comes_and_goes_no_more_mails_are_sent_than_may_be() {
    let mut book = Book::default();
    let (mut mails, mut told) = (0, 0);
    for second in 0..3600 {
        let seen = match second % 60 {
            0..30 => stands(Kind::Stopped, "no key"),
            _ => over(Kind::Stopped),
        };
        book.look(sight(seen), second * 1000, &RULES);
        // Killed and started all the time: that makes no difference.
        if let Some(saved) = book.save() {
            book = Book::load(&saved);
        }
        let news = mail(&mut book, second * 1000);
        mails += usize::from(!news.is_empty());
        told += news.len();
    }
    assert_eq!(mails, BURST);
    let news = mail(&mut book, 3_700_000);
    assert_eq!(told + news.len(), 120, "and nothing is left out");
}

#[test]
fn of_news_that_cannot_be_mailed_for_long_the_last_is_kept_and_the_rest_counted() {
    let mut book = Book::default();
    for n in 0..500 {
        book.look(sight(stands(Kind::Stopped, "no key")), n * 2000, &RULES);
        book.look(sight(over(Kind::Stopped)), n * 2000 + 1000, &RULES);
        book.not_mailed("no route".to_string(), n * 2000, 5_000, 60_000);
    }
    assert_eq!(book.due_mail(1_000_000, &RULES, true), None, "it pauses");
    let mut book = Book::load(&book.save().unwrap());
    assert_eq!(
        book.waiting().1.map(|f| f.reason.as_str()),
        Some("no route")
    );
    let (news, left_out) = book.due_mail(1_100_000, &RULES, false).unwrap();
    assert_eq!((news.len(), left_out), (MOST_NEWS, 1000 - MOST_NEWS as u64));
    book.mailed(news.last().unwrap().id, left_out, 1_100_000);
    assert_eq!(book.waiting(), (0, None));
}

#[test]
fn what_happens_again_and_again_is_told_once_with_its_count() {
    let mut book = Book::default();
    let topic = || (Kind::WorkerDied, "web2".to_string());
    for n in 0..721 {
        book.happens(topic(), "a bug".to_string(), n * 5000, &RULES);
    }
    let told = mail(&mut book, 3_700_000);
    let counts: Vec<u64> = told.iter().map(|n| n.count).collect();
    assert_eq!(counts, [1, 720]);
}

#[test]
fn a_mail_goes_to_those_who_are_there_and_a_hook_is_run_once() {
    let mut book = Book::default();
    book.look(sight(stands(Kind::Stopped, "no key")), 0, &RULES);
    let due = book.due_hook().unwrap();
    book.hooked(due.id);
    assert_eq!(book.due_hook(), None);
    assert_eq!(book.waiting().0, 1);
    let nobody = Rules {
        mails: false,
        ..RULES
    };
    book.apply(&nobody);
    assert_eq!(book.waiting().0, 0);
    book.look(sight(over(Kind::Stopped)), 10, &nobody);
    assert_eq!(book.due_mail(10_000, &nobody, true), None);
    assert_eq!(book.due_hook().unwrap().what, What::Recovered);
    // A mirror that is not configured any more has no troubles.
    book.look(sight(stands(Kind::Stopped, "no key")), 20, &nobody);
    book.look(Sight::default(), 30, &nobody);
    assert_eq!(book.troubles().count(), 0);
}

#[test]
fn a_look_that_dies_of_a_bug_is_not_the_last() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path().display();
    let ini =
        format!("[proxyfs]\nsource = {d}/www\nmount_point = {d}/www\nstate_dir = {d}/state\n");
    std::fs::write(dir.path().join("p.ini"), ini).unwrap();
    for name in ["www", "state"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    let config = Config::load(&dir.path().join("p.ini"), Default::default()).unwrap();
    let journal = Arc::new(Journal::open(&config.state_dir).unwrap());
    let mut looks = 0;
    let look = move |_: &Told| {
        looks += 1;
        assert_ne!(looks, 1, "a bug");
        sight(stands(Kind::Stopped, "no key"))
    };
    let alarm = Alarm::start(&config, journal, Box::new(look)).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while alarm.report().troubles.is_empty() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(10));
    }
    alarm.stop(deadline);
}

#[test]
fn a_clock_that_is_set_back_keeps_no_mail() {
    let mut book = Book::default();
    let day = 86_400_000;
    book.look(sight(stands(Kind::Stopped, "no key")), 10 * day, &RULES);
    book.not_mailed("no route".to_string(), 10 * day, 5_000, 60_000);
    assert_eq!(mail(&mut book, day).len(), 1);
}

#[test]
fn a_mail_shows_nothing_that_plays_tricks_and_its_words_begin_large() {
    let mut book = Book::default();
    let bad = "x\u{1b}[2J\r\nBcc: all@example.com";
    book.look(sight(stands(Kind::Stopped, bad)), 0, &RULES);
    let items = vec![(bad.to_string(), bad.to_string())];
    let refused = Refusals {
        count: 3,
        upto: 9,
        items,
    };
    book.look(
        sight(vec![(Kind::Parked, Seen::Refused(refused))]),
        0,
        &RULES,
    );
    let (news, _) = book.due_mail(5000, &RULES, false).unwrap_or_default();
    let from = Origin {
        host: "web1".to_string(),
        source: "/srv/www\u{202e}".to_string(),
    };
    let mail = letter::tell(&news, 2, book.mirrors(), &from, 65_000);
    let mean = |c: char| c != '\n' && c.is_control() || c == '\u{202e}';
    assert!(!mail.body.contains(mean) && !mail.subject.contains(char::is_control));
    assert!(!mail.body.contains("\nBcc"), "{}", mail.body);
    assert!(
        mail.body.contains("\nMirror web2 is stopped\n"),
        "{}",
        mail.body
    );
    assert!(mail.body.contains("(1m05s ago)"), "{}", mail.body);
    assert!(mail.body.contains("(2 older pieces of news are left out.)"));
}

/// Every kind has its words for every way to be told, and its name comes back.
#[test]
fn everything_that_can_be_told_has_words() {
    let mut titles = std::collections::BTreeSet::new();
    for kind in Kind::ALL {
        assert_eq!(Kind::from_name(kind.name()), Some(*kind));
        let mut book = Book::default();
        book.happens((*kind, "web2".to_string()), "why".to_string(), 0, &RULES);
        let mut news = book.due_hook().unwrap();
        assert!(letter::advice(&news).len() > 20);
        assert!(titles.insert(letter::title(&news)), "{kind}");
        news.what = What::Recovered;
        let title = letter::title(&news);
        assert!(!title.is_empty() && title.is_ascii(), "{kind}");
    }
}

#[test]
fn times_are_those_of_the_calendar() {
    for (ms, text) in [
        (0, "1970-01-01 00:00:00 UTC"),
        (951_782_399_999, "2000-02-28 23:59:59 UTC"),
        (951_782_400_000, "2000-02-29 00:00:00 UTC"),
        (951_868_800_000, "2000-03-01 00:00:00 UTC"),
        (1_795_489_925_000, "2026-11-24 03:12:05 UTC"),
        (4_107_542_400_000, "2100-03-01 00:00:00 UTC"),
        (-1, "1969-12-31 23:59:59 UTC"),
    ] {
        assert_eq!(utc(ms), text);
    }
}
