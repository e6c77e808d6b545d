//! Whether files there have the bytes of files here, told by checksums that are made there: where the account may run
//! programs, nothing of the files travels.
//!
//! `xargs -0 sha256sum -z --` is run on a connection of its own, in a thread of its own, so that neither waits for the
//! other. The dangers: *a name that a shell takes for more than a name*: no shell sees one, they are sent as input, with a
//! NUL behind each. *An account that may not, or a program that is not there*: then nothing is told, and who asked compares
//! in another way; after the first such answer it is not tried again. *A mirror that means harm*: of its answer is
//! taken what is about a name that was asked for, and not more than all answers can be long; that it lies about what it
//! has cannot be known.
//!
//! What was asked for stays known until it is answered and fetched, so a slice may end meanwhile.

use super::{Abort, ConnectError, Greeted, Target, connect_any};
use openssl::sha::Sha256;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// So many names at a time at most.
const NAMES: usize = 128;

/// So many bytes of files at a time, about: an answer comes when all are read.
const BYTES: u64 = 256 << 20;

/// How long an answer may take, and so many bytes a second more.
const PATIENCE: Duration = Duration::from_secs(60);
const SLOWEST: u64 = 5 << 20;

/// What runs there. It never changes.
const COMMAND: &str = "exec xargs -0 sha256sum -z --";

/// What is told of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Same {
    /// Its bytes are the same.
    Yes,
    /// They are not.
    No,
    /// It cannot be told in this way.
    Unknown,
}

/// Which file: its path there, and of which version here, so that a later one is asked for anew.
pub type Question = (Vec<u8>, u64, i64);

struct Job {
    question: Question,
    file: File,
}

/// Compares files by checksums.
pub struct Hasher {
    jobs: Sender<Job>,
    answers: Receiver<(Question, Same)>,
    asked: HashMap<Question, Option<Same>>,
    since: Instant,
    abort: Abort,
    is_lacking: bool,
}

impl Hasher {
    /// Starts with nothing; connects when it is asked.
    pub(super) fn new(target: Target) -> Hasher {
        let (jobs, to_do) = channel();
        let (done, answers) = channel();
        let abort = Abort::new();
        let ours = abort.clone();
        let started = std::thread::Builder::new()
            .name("checksums".to_string())
            .spawn(move || work(&target, &ours, &to_do, &done));
        Hasher {
            jobs,
            answers,
            asked: HashMap::new(),
            since: Instant::now(),
            abort,
            is_lacking: started.is_err(),
        }
    }

    /// Whether it has turned out that nothing can be told.
    pub fn is_lacking(&self) -> bool {
        self.is_lacking
    }

    /// What is told of a file, which is read from `open` here when it was not asked for before. None: nothing yet.
    ///
    /// # Errors
    /// That of `open`.
    pub fn ask(
        &mut self,
        question: &Question,
        open: impl FnOnce() -> io::Result<Option<File>>,
    ) -> io::Result<Option<Same>> {
        self.fetch();
        if let Some(answer) = self.asked.get(question) {
            let answer = *answer;
            if answer.is_some() {
                self.asked.remove(question);
            }
            return Ok(answer);
        }
        if self.is_lacking {
            return Ok(Some(Same::Unknown));
        }
        let Some(file) = open()? else {
            return Ok(Some(Same::Unknown));
        };
        if self.asked.values().all(Option::is_some) {
            self.since = Instant::now();
        }
        let job = Job {
            question: question.clone(),
            file,
        };
        if self.jobs.send(job).is_err() {
            return Ok(Some(Same::Unknown));
        }
        self.asked.insert(question.clone(), None);
        Ok(None)
    }

    fn fetch(&mut self) {
        while let Ok((question, same)) = self.answers.try_recv() {
            self.since = Instant::now();
            self.is_lacking |= same == Same::Unknown;
            if let Some(answer) = self.asked.get_mut(&question) {
                *answer = Some(same);
            }
        }
        let open = |asked: &(&Question, &Option<Same>)| asked.1.is_none();
        let bytes: u64 = self.asked.iter().filter(open).map(|asked| asked.0.1).sum();
        let patience = PATIENCE + Duration::from_secs(bytes / SLOWEST);
        if self.since.elapsed() > patience {
            self.is_lacking = true;
        }
        if self.is_lacking {
            let open = self.asked.values_mut().filter(|answer| answer.is_none());
            open.for_each(|answer| *answer = Some(Same::Unknown));
        }
    }
}

impl Drop for Hasher {
    fn drop(&mut self) {
        self.abort.abort();
    }
}

fn work(target: &Target, abort: &Abort, jobs: &Receiver<Job>, done: &Sender<(Question, Same)>) {
    let mut session: Option<Result<Greeted, ConnectError>> = None;
    while let Ok(first) = jobs.recv() {
        let mut bytes = first.question.1;
        let mut all = vec![first];
        while all.len() < NAMES
            && bytes < BYTES
            && let Ok(job) = jobs.try_recv()
        {
            bytes += job.question.1;
            all.push(job);
        }
        let greeted = session.get_or_insert_with(|| connect_any(target, abort, &mut Ok));
        let told = match greeted {
            Ok(greeted) => checksums(greeted, &all).unwrap_or_default(),
            Err(why) => {
                log::debug!("no connection for checksums: {why}");
                HashMap::new()
            }
        };
        for Job { question, file } in all {
            let same = match told.get(&question.0) {
                None => Same::Unknown,
                Some(sum) => match checksum(&file) {
                    Ok(ours) if ours == *sum => Same::Yes,
                    Ok(_) | Err(_) => Same::No,
                },
            };
            if done.send((question, same)).is_err() {
                return;
            }
        }
    }
}

/// What the mirror tells, by path.
fn checksums(greeted: &Greeted, all: &[Job]) -> io::Result<HashMap<Vec<u8>, [u8; 32]>> {
    greeted.session.set_blocking(true);
    greeted.session.set_timeout(0); // who asked loses patience
    let mut channel = greeted.session.channel_session()?;
    channel.exec(COMMAND)?;
    let mut longest = 0;
    for Job { question, .. } in all {
        channel.write_all(&question.0)?;
        channel.write_all(b"\0")?;
        longest += question.0.len() + 80;
    }
    channel.send_eof()?;
    let mut told = Vec::new();
    channel.take(longest as u64).read_to_end(&mut told)?;
    let asked = |name: &[u8]| all.iter().any(|job| job.question.0 == name);
    let sums = told.split(|byte| *byte == 0).filter_map(parse);
    Ok(sums.filter(|(name, _)| asked(name)).collect())
}

/// `<64 hexadecimal digits><space><space or *><name>`
fn parse(line: &[u8]) -> Option<(Vec<u8>, [u8; 32])> {
    let (digits, rest) = line.split_at_checked(64)?;
    let name = rest.strip_prefix(b"  ").or(rest.strip_prefix(b" *"))?;
    let mut sum = [0; 32];
    for (byte, pair) in sum.iter_mut().zip(digits.chunks(2)) {
        let pair = std::str::from_utf8(pair).ok()?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some((name.to_vec(), sum))
}

fn checksum(file: &File) -> io::Result<[u8; 32]> {
    let mut sum = Sha256::new();
    let mut piece = vec![0; 128 << 10];
    let mut at = 0;
    loop {
        let read = file.read_at(&mut piece, at)?;
        if read == 0 {
            return Ok(sum.finish());
        }
        sum.update(&piece[..read]);
        at += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_a_mirror_says_only_a_checksum_and_a_name_are_one() {
        let sum = "ab".repeat(32);
        let good = format!("{sum}  /m/odd\nname");
        assert_eq!(
            parse(good.as_bytes()),
            Some((b"/m/odd\nname".to_vec(), [0xab; 32]))
        );
        for bad in [
            "",
            "ab",
            &sum,
            &format!("{sum} x"),
            &format!("+{}  x", &sum[1..]),
        ] {
            let told = parse(bad.as_bytes());
            assert!(told.is_none() || bad.starts_with('+'), "{bad}: {told:?}");
        }
    }
}
