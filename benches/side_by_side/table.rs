//! What is printed: a Markdown table, as the README shows it.

use std::fmt;
use std::time::Duration;

/// What a measurement has to come to.
#[derive(Clone, Copy)]
pub enum Goal {
    /// None: for information.
    None,
    /// At most so much, in the unit of the line.
    AtMost(f64),
    /// At least so much.
    AtLeast(f64),
}

struct Line {
    what: String,
    ours: String,
    theirs: String,
    value: String,
    goal: String,
    reached: Option<bool>,
}

/// All that was measured.
pub struct Table(Vec<Line>);

impl Table {
    pub fn new() -> Table {
        Table(Vec::new())
    }

    /// A measurement beside another one: the goal is about their ratio.
    pub fn compare(&mut self, what: String, ours: Duration, theirs: (&str, Duration), goal: Goal) {
        let ratio = ours.as_secs_f64() / theirs.1.as_secs_f64();
        self.add(Line {
            what,
            ours: show(ours),
            theirs: format!("{} {}", theirs.0, show(theirs.1)),
            value: format!("{ratio:.2}"),
            goal: goal.show(|most| format!("{most:.2}")),
            reached: goal.reached(ratio),
        });
    }

    /// The same beside one that may have been ended because it took too long.
    pub fn beside(&mut self, what: String, ours: Duration, theirs: (&str, Option<Duration>)) {
        match theirs {
            (name, Some(time)) => self.compare(what, ours, (name, time), Goal::None),
            (name, None) => self.add(Line {
                what,
                ours: show(ours),
                theirs: format!("{name} over a minute, ended"),
                value: String::new(),
                goal: String::new(),
                reached: None,
            }),
        }
    }

    /// A share of what would be possible.
    pub fn share(&mut self, what: String, ours: Duration, ideal: (&str, Duration), goal: Goal) {
        let share = ideal.1.as_secs_f64() / ours.as_secs_f64();
        self.add(Line {
            what,
            ours: show(ours),
            theirs: format!("{} {}", ideal.0, show(ideal.1)),
            value: format!("{share:.2}"),
            goal: goal.show(|least| format!("{least:.2}")),
            reached: goal.reached(share),
        });
    }

    /// A time that has to stay below another.
    pub fn time(&mut self, what: String, ours: Duration, goal: Option<Duration>) {
        let most = goal.map_or(Goal::None, |g| Goal::AtMost(g.as_secs_f64()));
        self.add(Line {
            what,
            ours: show(ours),
            theirs: String::new(),
            value: String::new(),
            goal: goal.map_or(String::new(), |g| format!("≤ {}", show(g))),
            reached: most.reached(ours.as_secs_f64()),
        });
    }

    /// A number with its unit.
    pub fn number(&mut self, what: String, ours: f64, unit: &str, goal: Goal) {
        self.add(Line {
            what,
            ours: format!("{ours:.0} {unit}"),
            theirs: String::new(),
            value: String::new(),
            goal: goal.show(|most| format!("{most:.0} {unit}")),
            reached: goal.reached(ours),
        });
    }

    fn add(&mut self, line: Line) {
        eprintln!("  {}", line.told());
        self.0.push(line);
    }

    pub fn all_reached(&self) -> bool {
        self.0.iter().all(|l| l.reached != Some(false))
    }
}

impl Goal {
    fn reached(self, value: f64) -> Option<bool> {
        match self {
            Goal::None => None,
            Goal::AtMost(most) => Some(value <= most),
            Goal::AtLeast(least) => Some(value >= least),
        }
    }

    fn show(self, number: impl Fn(f64) -> String) -> String {
        match self {
            Goal::None => String::new(),
            Goal::AtMost(most) => format!("≤ {}", number(most)),
            Goal::AtLeast(least) => format!("≥ {}", number(least)),
        }
    }
}

impl Line {
    fn told(&self) -> String {
        let parts = [&self.what, &self.ours, &self.theirs, &self.value];
        let parts: Vec<&str> = parts
            .into_iter()
            .filter(|p| !p.is_empty())
            .map(String::as_str)
            .collect();
        format!("{}{}", parts.join(" | "), self.verdict())
    }

    fn verdict(&self) -> &'static str {
        match self.reached {
            None => "",
            Some(true) => " ✓",
            Some(false) => " ✗ missed",
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows: Vec<[String; 5]> = vec![
            ["", "ProxyFS", "beside", "ratio", "goal"].map(String::from),
            ["---", "--:", "--:", "--:", "---"].map(String::from),
        ];
        rows.extend(self.0.iter().map(|l| {
            let goal = format!("{}{}", l.goal, l.verdict());
            [
                l.what.clone(),
                l.ours.clone(),
                l.theirs.clone(),
                l.value.clone(),
                goal,
            ]
        }));
        let width = |i: usize| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0);
        let widths: [usize; 5] = std::array::from_fn(width);
        for row in &rows {
            for (cell, width) in row.iter().zip(widths) {
                write!(f, "| {cell:width$} ")?;
            }
            writeln!(f, "|")?;
        }
        Ok(())
    }
}

/// A time in the unit that suits it.
pub fn show(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 0.01 => format!("{:.0} ms", s * 1e3),
        s if s >= 0.001 => format!("{:.1} ms", s * 1e3),
        s => format!("{:.0} µs", s * 1e6),
    }
}

/// The one in the middle.
pub fn median(times: &[Duration]) -> Duration {
    percentile(times, 50)
}

/// The smallest that `percent` of them do not exceed.
pub fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted[rank - 1]
}
