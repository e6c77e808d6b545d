//! What is printed: a Markdown table, as the README shows it.

use crate::contestants::Kind;
use crate::work::Measured;
use std::fmt;
use std::time::Duration;

/// What ProxyFS's time may be at most, as a multiple of another's.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Goals {
    /// Of the directory's.
    pub directory: Option<f64>,
    /// Of bindfs's.
    pub bindfs: Option<f64>,
    /// Of mergerfs's.
    pub mergerfs: Option<f64>,
}

/// With ten mirrors or one as with none.
const MIRRORS: f64 = 1.05;

struct Line {
    what: String,
    goals: Goals,
    times: Vec<(Kind, Duration)>,
}

/// All that was measured.
#[derive(Default)]
pub struct Table(Vec<Line>);

impl Table {
    /// What one contestant did, round by round.
    pub fn add(&mut self, kind: Kind, rounds: Vec<Vec<Measured>>) {
        let Some(first) = rounds.first() else {
            return;
        };
        for (i, measured) in first.iter().enumerate() {
            let mut times: Vec<Duration> = rounds.iter().map(|r| r[i].took).collect();
            times.sort_unstable();
            let median = times[times.len() / 2];
            eprintln!("  {kind:?}: {} {}", measured.what, show(median));
            // A part that another contestant has begun goes on with its lines.
            let place = self.0.iter().rposition(|l| {
                l.what == measured.what
                    && l.goals == measured.goals
                    && l.times.iter().all(|t| t.0 != kind)
            });
            let place = place.unwrap_or_else(|| {
                self.0.push(Line {
                    what: measured.what.clone(),
                    goals: measured.goals,
                    times: Vec::new(),
                });
                self.0.len() - 1
            });
            self.0[place].times.push((kind, median));
        }
    }

    /// The goals that were missed, one line each.
    pub fn missed(&self) -> Vec<String> {
        self.0.iter().flat_map(Line::missed).collect()
    }
}

impl Line {
    fn of(&self, kind: Kind) -> Option<f64> {
        let time = self.times.iter().find(|t| t.0 == kind);
        time.map(|t| t.1.as_secs_f64())
    }

    fn is_by_mirrors(&self) -> bool {
        self.times.iter().any(|t| t.0 == Kind::ProxyFs(0))
    }

    /// Ours, whose it is compared with, and how often that it may be.
    fn goals(&self) -> Vec<(Kind, &'static str, Kind, f64)> {
        if self.is_by_mirrors() {
            return vec![
                (Kind::ProxyFs(1), "no mirror", Kind::ProxyFs(0), MIRRORS),
                (Kind::ProxyFs(10), "no mirror", Kind::ProxyFs(0), MIRRORS),
            ];
        }
        let one = Kind::ProxyFs(1);
        [
            ("directory", Kind::Directory, self.goals.directory),
            ("bindfs", Kind::Bindfs, self.goals.bindfs),
            ("mergerfs", Kind::Mergerfs, self.goals.mergerfs),
        ]
        .into_iter()
        .filter_map(|(name, kind, most)| Some((one, name, kind, most?)))
        .collect()
    }

    fn missed(&self) -> Vec<String> {
        let missed = |(ours, name, theirs, most): (Kind, &str, Kind, f64)| {
            let ratio = self.of(ours)? / self.of(theirs)?;
            (ratio > most).then(|| {
                format!(
                    "{}: {ratio:.2} times {name}, the goal is {most:.2}",
                    self.what
                )
            })
        };
        self.goals().into_iter().filter_map(missed).collect()
    }

    fn cells(&self) -> Vec<String> {
        let by_mirrors = self.is_by_mirrors();
        let (first, others): (Kind, &[Kind]) = if by_mirrors {
            (Kind::BY_MIRRORS[0], &Kind::BY_MIRRORS[1..])
        } else {
            (Kind::ALL[0], &Kind::ALL[1..])
        };
        let base = self.of(first);
        let mut cells = vec![
            self.what.clone(),
            base.map_or(String::new(), |t| show(Duration::from_secs_f64(t))),
        ];
        cells.extend(others.iter().map(|kind| {
            let ratio = self.of(*kind).zip(base).map(|(t, base)| t / base);
            ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"))
        }));
        if by_mirrors {
            cells.insert(3, String::new());
        }
        let goals: Vec<String> = self
            .goals()
            .iter()
            .map(|(_, name, _, most)| format!("≤ {most} {name}"))
            .collect();
        let mut goal = goals.join(", ");
        if by_mirrors {
            goal = format!("≤ {MIRRORS} no mirror");
        }
        if !goal.is_empty() {
            goal += if self.missed().is_empty() {
                " ✓"
            } else {
                " ✗"
            };
        }
        cells.push(goal);
        cells
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for by_mirrors in [false, true] {
            let lines: Vec<&Line> = self
                .0
                .iter()
                .filter(|l| l.is_by_mirrors() == by_mirrors)
                .collect();
            if lines.is_empty() {
                continue;
            }
            let head = if by_mirrors {
                ["", "no mirror", "one", "", "ten", "goal"]
            } else {
                ["", "directory", "bindfs", "mergerfs", "ProxyFS", "goal"]
            };
            let mut rows = vec![
                head.map(String::from).to_vec(),
                ["---", "--:", "--:", "--:", "--:", "---"]
                    .map(String::from)
                    .to_vec(),
            ];
            rows.extend(lines.iter().map(|l| l.cells()));
            if by_mirrors {
                // It has no opponents.
                rows.iter_mut().for_each(|r| drop(r.remove(3)));
            }
            let width = |i: usize| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0);
            let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
            for row in &rows {
                for (cell, width) in row.iter().zip(&widths) {
                    write!(f, "| {cell:width$} ")?;
                }
                writeln!(f, "|")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// A time in the unit that suits it.
fn show(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 0.01 => format!("{:.0} ms", s * 1e3),
        s if s >= 0.001 => format!("{:.1} ms", s * 1e3),
        s => format!("{:.0} µs", s * 1e6),
    }
}
