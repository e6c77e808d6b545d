//! What time it is here, where people write timetables: local time, with whatever its zone does twice a year.

use std::time::{SystemTime, UNIX_EPOCH};

/// The minute of the day, local time.
pub fn minute_of_day() -> u16 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |now| now.as_secs() as libc::time_t);
    let mut parts = std::mem::MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both pointers are good for the call, which writes a whole `tm` or says that it did not. It reads
    // the environment (TZ), which nothing in this program writes.
    let known = unsafe { !libc::localtime_r(&now, parts.as_mut_ptr()).is_null() };
    if !known {
        return 0;
    }
    // SAFETY: it was written; and zeros are a `tm` as well.
    let parts = unsafe { parts.assume_init() };
    (parts.tm_hour * 60 + parts.tm_min).clamp(0, 24 * 60 - 1) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_minute_is_that_of_the_clock_on_the_wall() {
        let told = || {
            let date = std::process::Command::new("date").arg("+%H:%M").output();
            let text = String::from_utf8(date.unwrap().stdout).unwrap();
            let (hours, minutes) = text.trim().split_once(':').unwrap();
            hours.parse::<u16>().unwrap() * 60 + minutes.parse::<u16>().unwrap()
        };
        let (before, ours, after) = (told(), minute_of_day(), told());
        assert!(ours == before || ours == after, "{before} {ours} {after}");
    }
}
