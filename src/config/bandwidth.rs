//! How fast a mirror may be sent to: one rate, or a timetable of them.

use super::values::Refusal;

/// Minutes of a day.
const DAY: u16 = 24 * 60;

/// The slowest rate that is accepted, in bytes a second: slower than that, an answer takes as long as one that
/// never comes.
pub const SLOWEST: u64 = 16 << 10;

/// A rate for each time of the day.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bandwidth {
    /// From which minute of the day on (local time), how many bytes a second; none: no limit. Sorted. What
    /// holds before the first is what the last says.
    entries: Vec<(u16, Option<u64>)>,
}

impl Bandwidth {
    /// Reads `off`, a rate such as `2M`, or a timetable such as `08:00 2M, 19:00 off`.
    ///
    /// # Errors
    /// What is allowed.
    pub fn parse(text: &str) -> Result<Bandwidth, Refusal> {
        let text = text.trim();
        if !text.contains([':', ',']) {
            let entries = vec![(0, rate(text)?)];
            return Ok(Bandwidth { entries });
        }
        let mut entries = Vec::new();
        for entry in text.split(',') {
            let allowed = || {
                format!(
                    "`{}` is no time and rate: a timetable is such as 08:00 2M, 19:00 off",
                    entry.trim()
                )
            };
            let (time, value) = entry.trim().split_once(' ').ok_or_else(allowed)?;
            let minute = minute(time).ok_or_else(allowed)?;
            if entries.iter().any(|(other, _)| *other == minute) {
                return Err(format!("{time} stands there twice"));
            }
            entries.push((minute, rate(value.trim())?));
        }
        entries.sort_unstable();
        Ok(Bandwidth { entries })
    }

    /// Bytes a second at a minute of the day; none: as fast as it goes.
    pub fn at(&self, minute: u16) -> Option<u64> {
        let before = self.entries.iter().rfind(|(from, _)| *from <= minute);
        before.or(self.entries.last()).and_then(|(_, rate)| *rate)
    }

    /// The slowest rate of the day, if there is any.
    pub fn slowest(&self) -> Option<u64> {
        self.entries.iter().filter_map(|(_, rate)| *rate).min()
    }
}

/// `08:00`, in minutes.
fn minute(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |text: &str| match text.len() {
        1..=2 if text.bytes().all(|b| b.is_ascii_digit()) => text.parse::<u16>().ok(),
        _ => None,
    };
    let (hours, minutes) = (number(hours)?, number(minutes).filter(|m| *m < 60)?);
    Some(hours * 60 + minutes).filter(|minute| *minute < DAY)
}

/// `2M`, in bytes a second; none: `off`.
fn rate(text: &str) -> Result<Option<u64>, Refusal> {
    if text == "off" {
        return Ok(None);
    }
    let allowed = "a rate is a whole number of bytes a second with its unit k, M or G (of 1024), such as 500k \
                   or 2M, or off";
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| allowed.to_string())?;
    let unit: u64 = match unit.trim_start() {
        "k" | "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return Err(allowed.to_string()),
    };
    let rate = number.saturating_mul(unit);
    if rate < SLOWEST {
        return Err(format!(
            "it must be at least {}k; off is no limit",
            SLOWEST >> 10
        ));
    }
    Ok(Some(rate))
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: u64 = 1 << 20;

    #[test]
    fn one_rate_holds_all_day() {
        for (text, rate) in [
            ("off", None),
            ("2M", Some(2 * M)),
            ("500k", Some(500 << 10)),
            ("16 k", Some(16 << 10)),
            ("1G", Some(1 << 30)),
            ("99999999999999G", Some(u64::MAX)),
        ] {
            let all_day = Bandwidth::parse(text).unwrap();
            for minute in [0, 700, DAY - 1] {
                assert_eq!(all_day.at(minute), rate, "{text}");
            }
        }
        assert_eq!(Bandwidth::default().at(700), None);
    }

    #[test]
    fn a_timetable_goes_round_midnight_in_whatever_order_it_is_written() {
        for text in [
            "08:00 2M, 19:00 off, 12:30 500k",
            "19:00 off,8:00 2M,12:30  500k",
        ] {
            let table = Bandwidth::parse(text).unwrap();
            for (time, rate) in [
                ("0:00", None),
                ("7:59", None),
                ("8:00", Some(2 * M)),
                ("12:29", Some(2 * M)),
                ("12:30", Some(500 << 10)),
                ("18:59", Some(500 << 10)),
                ("19:00", None),
                ("23:59", None),
            ] {
                assert_eq!(table.at(minute(time).unwrap()), rate, "{time}");
            }
            assert_eq!(table.slowest(), Some(500 << 10));
        }
        // Before the first the last holds, from the day before.
        let night = Bandwidth::parse("22:00 1M, 6:00 2M").unwrap();
        assert_eq!(night.at(0), Some(M));
    }

    #[test]
    fn what_is_no_rate_is_refused_with_an_example() {
        for bad in [
            "",
            "fast",
            "2",
            "2m",
            "2 MB",
            "-2M",
            "1.5M",
            "0M",
            "1k",
            "08:00",
            "08:00 ",
            "24:00 2M",
            "08:60 2M",
            "8 2M, 19:00 off",
            "08:00 2M,",
            "08:00 2M, 8:00 off",
            "08:00 2M 19:00 off",
        ] {
            let why = Bandwidth::parse(bad).unwrap_err();
            assert!(!why.is_empty() && !why.contains('\n'), "{bad}: {why}");
        }
    }
}
