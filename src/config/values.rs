//! The text of one value, checked and turned into what the program uses.
//!
//! Every function says in its error what is allowed, with an example: that text stands behind
//! "bad value" in the message that the administrator reads. Nothing here touches a file system;
//! only [`local_path`] asks for the home directory, to replace a leading `~`.

use super::{FirstSync, MaxDelete, Order};
use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// Why a value is refused: what is allowed, with an example.
pub type Refusal = String;

/// The longest duration that is accepted: 365 days. So sums of durations never overflow.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

/// A duration such as `500ms`, `5s`, `10m`, `2h` or `1d`: a whole number and its unit, between
/// `least` and 365 days.
pub fn duration(text: &str, least: Duration) -> Result<Duration, Refusal> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let allowed = "a duration is a whole number with its unit ms, s, m, h or d, such as 5s or 10m";
    let number: u64 = number.parse().map_err(|_| allowed.to_string())?;
    let milliseconds = match unit.trim_start() {
        "ms" => Some(number),
        "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        "d" => number.checked_mul(86_400_000),
        _ => return Err(allowed.to_string()),
    };
    let value = milliseconds.map_or(Duration::MAX, Duration::from_millis);
    if value < least {
        return Err(format!("it must be at least {}", show_duration(least)));
    }
    if value > LONGEST {
        return Err("it must be at most 365d".to_string());
    }
    Ok(value)
}

/// A duration as [`duration`] reads it, in the largest unit that needs no fraction.
pub fn show_duration(value: Duration) -> String {
    let ms = value.as_millis();
    for (unit, length) in [
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1_000),
    ] {
        if ms >= length && ms.is_multiple_of(length) {
            return format!("{}{unit}", ms / length);
        }
    }
    format!("{ms}ms")
}

/// A whole number from `least` to `most`.
pub fn number<T>(text: &str, least: T, most: T) -> Result<T, Refusal>
where
    T: FromStr + PartialOrd + std::fmt::Display,
{
    match text.parse::<T>() {
        Ok(value) if value >= least && value <= most => Ok(value),
        _ => Err(format!(
            "it must be a whole number from {least} to {most}, such as {least}"
        )),
    }
}

/// `off`, a number from 1 on, or `1%` to `99%`.
pub fn max_delete(text: &str) -> Result<MaxDelete, Refusal> {
    if text == "off" {
        return Ok(MaxDelete::Off);
    }
    let read = match text.strip_suffix('%') {
        Some(part) => number(part.trim_end(), 1, 99).map(MaxDelete::Percent),
        None => number(text, 1, u64::MAX).map(MaxDelete::Count),
    };
    read.map_err(|_| "it must be off, a number such as 1000, or a part from 1% to 99%".to_string())
}

/// A mail address: `admin@example.com`, or `Jane Doe <jane@example.com>`.
pub fn mail_address(text: &str) -> Result<String, Refusal> {
    match crate::alarm::is_address(text) {
        true => Ok(text.to_string()),
        false => Err("it must be a mail address, such as admin@example.com".to_string()),
    }
}

/// Mail addresses with commas between.
pub fn mail_addresses(text: &str) -> Result<Vec<String>, Refusal> {
    text.split(',').map(|t| mail_address(t.trim())).collect()
}

/// `HOST` or `HOST:PORT`; an IPv6 address with a port is in brackets.
pub fn host_and_port(text: &str) -> Result<(String, Option<u16>), Refusal> {
    let (name, rest) = match text.strip_prefix('[').and_then(|t| t.split_once(']')) {
        Some((name, "")) => (name, None),
        Some((name, rest)) => (name, rest.strip_prefix(':').or(Some(""))),
        None if text.matches(':').count() == 1 => text
            .split_once(':')
            .map_or((text, None), |(name, port)| (name, Some(port))),
        None => (text, None),
    };
    let port = rest.map(|port| number(port, 1, u16::MAX)).transpose();
    let port = port.map_err(|why| format!("the port behind the `:`: {why}"))?;
    Ok((host(name)?, port))
}

/// One word.
pub fn word(text: &str) -> Result<String, Refusal> {
    if text.is_empty() || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("it must be one word".to_string());
    }
    Ok(text.to_string())
}

/// A number of bytes with its unit, `512M` or `2G` (powers of 1024), at least `least`.
///
/// # Errors
/// It is none, or too small.
pub fn size(text: &str, least: u64) -> Result<u64, Refusal> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let shift = match unit {
        "k" | "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return Err("it needs a unit: k, M or G, such as 2G".into()),
    };
    let number: u64 = text[..text.len() - unit.len()]
        .parse()
        .map_err(|_| "it is no number with a unit, such as 2G".to_string())?;
    let bytes = number.saturating_mul(1 << shift);
    if bytes < least {
        return Err(format!("it is at least {} k", least >> 10));
    }
    Ok(bytes)
}

/// `yes` or `no`.
pub fn yes_or_no(text: &str) -> Result<bool, Refusal> {
    match text {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err("it must be yes or no".to_string()),
    }
}

/// What is done first with a new mirror.
pub fn first_sync(text: &str) -> Result<FirstSync, Refusal> {
    match text {
        "keep" => Ok(FirstSync::Keep),
        "delete" => Ok(FirstSync::Delete),
        "none" => Ok(FirstSync::None),
        _ => Err("it must be keep, delete or none".to_string()),
    }
}

/// In which order changes become visible.
pub fn order(text: &str) -> Result<Order, Refusal> {
    match text {
        "strict" => Ok(Order::Strict),
        "relaxed" => Ok(Order::Relaxed),
        _ => Err("it must be strict or relaxed".to_string()),
    }
}

/// How much is logged.
pub fn log_level(text: &str) -> Result<log::LevelFilter, Refusal> {
    Ok(match text {
        "error" => log::LevelFilter::Error,
        "warn" => log::LevelFilter::Warn,
        "info" => log::LevelFilter::Info,
        "debug" => log::LevelFilter::Debug,
        "trace" => log::LevelFilter::Trace,
        _ => return Err("it must be one of error, warn, info, debug, trace".to_string()),
    })
}

/// An absolute path on this machine, without `..`; a leading `~/` is the home directory of the user
/// that runs the program. Slashes too many, `.` parts and a slash at the end are dropped.
pub fn local_path(text: &str) -> Result<PathBuf, Refusal> {
    let given = match text.strip_prefix("~/") {
        Some(below) => std::env::home_dir()
            .filter(|home| home.is_absolute())
            .ok_or("there is no home directory for `~`: write the absolute path")?
            .join(below),
        None => PathBuf::from(text),
    };
    if has_control(text) {
        return Err("it must hold no control characters".to_string());
    }
    if !given.is_absolute() {
        return Err("it must be an absolute path, such as /srv/www".to_string());
    }
    if given.components().any(|part| part == Component::ParentDir) {
        return Err("it must hold no `..`: write the path it stands for".to_string());
    }
    Ok(tidy(&given))
}

/// The path without doubled slashes, `.` parts and a slash at the end.
pub fn tidy(path: &Path) -> PathBuf {
    path.components().collect()
}

/// One or more local paths with commas between.
pub fn local_paths(text: &str) -> Result<Vec<PathBuf>, Refusal> {
    text.split(',')
        .map(|one| local_path(one.trim()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|why| format!("{why} (several are separated by commas)"))
}

/// A host name or an IP address, an IPv6 one also in brackets (which are dropped).
pub fn host(text: &str) -> Result<String, Refusal> {
    let allowed = "a host is a name or an IP address, such as web2.example.com or 192.0.2.7";
    let bare = text
        .strip_prefix('[')
        .and_then(|t| t.strip_suffix(']'))
        .unwrap_or(text);
    if bare.contains(':') {
        return match IpAddr::from_str(bare.split('%').next().unwrap_or(bare)) {
            Ok(_) => Ok(bare.to_string()),
            Err(_) => Err(format!(
                "{allowed}; a port has a line of its own: port = 22"
            )),
        };
    }
    if bare.contains('@') {
        return Err(format!("{allowed}; the user has a line of its own: user"));
    }
    let good = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
    if bare.is_empty() || bare.len() > 253 || bare.starts_with('-') || !bare.chars().all(good) {
        return Err(allowed.to_string());
    }
    Ok(bare.to_string())
}

/// The account on the mirror.
pub fn user(text: &str) -> Result<String, Refusal> {
    let bad = |c: char| c.is_whitespace() || c.is_control() || c == ':';
    if text.is_empty() || text.len() > 255 || text.contains(bad) {
        return Err("it must be the name of an account, such as www-data".to_string());
    }
    Ok(text.to_string())
}

/// A directory on the mirror: absolute, or relative to the login directory (`.` is that itself).
/// Slashes too many, `.` parts and a slash at the end are dropped.
pub fn remote_path(text: &str) -> Result<String, Refusal> {
    if text.starts_with('~') {
        return Err(
            "SFTP knows no `~`: a path without a slash in front starts in the login directory, \
             such as htdocs"
                .to_string(),
        );
    }
    if has_control(text) {
        return Err("it must hold no control characters".to_string());
    }
    if text.split('/').any(|part| part == "..") {
        return Err("it must hold no `..`: write the path it stands for".to_string());
    }
    if text.is_empty() {
        return Err("it must be a directory, such as /srv/www or htdocs".to_string());
    }
    let parts: Vec<&str> = text
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    Ok(match (text.starts_with('/'), parts.is_empty()) {
        (true, _) => format!("/{}", parts.join("/")),
        (false, true) => ".".to_string(),
        (false, false) => parts.join("/"),
    })
}

/// A mirror's name: 1 to 64 letters, digits, `-`, `_` or `.` (ASCII), not beginning with `-` or `.`:
/// it is a file's name and an argument too.
pub fn mirror_name(text: &str) -> Result<String, Refusal> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || text.len() > 64 || text.starts_with(['-', '.']) || !text.chars().all(good)
    {
        return Err(
            "a mirror's name is made of up to 64 letters, digits, `-`, `_` and `.`, and begins \
             with none of `-` and `.`, such as [mirror web2]"
                .to_string(),
        );
    }
    Ok(text.to_string())
}

fn has_control(text: &str) -> bool {
    text.contains(|c: char| c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit_and_bounds() {
        let read = |text| duration(text, Duration::from_millis(1));
        assert_eq!(read("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(read("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(read("10 m"), Ok(Duration::from_secs(600)));
        assert_eq!(read("2h"), Ok(Duration::from_secs(7200)));
        assert_eq!(read("1d"), Ok(Duration::from_secs(86_400)));
        let huge = "99999999999999999999s";
        for bad in ["", "5", "s", "-5s", "1.5s", "5 parsecs", "0s", "366d", huge] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert!(read("18446744073709551615d").is_err());
        for text in ["500ms", "5s", "10m", "2h", "1d", "90s"] {
            assert_eq!(show_duration(read(text).unwrap()), text);
        }
    }

    #[test]
    fn a_path_on_a_mirror_is_tidied_and_never_climbs() {
        assert_eq!(remote_path("/srv//www/./").unwrap(), "/srv/www");
        assert_eq!(remote_path("/").unwrap(), "/");
        assert_eq!(remote_path("htdocs/").unwrap(), "htdocs");
        assert_eq!(remote_path("./").unwrap(), ".");
        assert_eq!(remote_path("a..b/..c").unwrap(), "a..b/..c");
        for bad in ["../x", "/srv/../etc", "~/www", "~bob", "a\tb"] {
            assert!(remote_path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_host_is_a_name_or_an_address_and_nothing_more() {
        for (good, kept) in [
            ("web2.example.com", "web2.example.com"),
            ("192.0.2.7", "192.0.2.7"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("fe80::1%eth0", "fe80::1%eth0"),
        ] {
            assert_eq!(host(good).unwrap(), kept);
        }
        for bad in ["", "-oProxyCommand=x", "a b", "root@web2", "web2:22", "a/b"] {
            assert!(host(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_local_path_is_absolute_and_tidy() {
        assert_eq!(local_path("/srv//www/").unwrap(), Path::new("/srv/www"));
        assert!(local_path("~/x").unwrap().is_absolute());
        for bad in ["srv/www", "", "./x", "/srv/../etc", "~bob/x", "/a\u{7}"] {
            assert!(local_path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_mirror_name_is_fit_for_a_file_name() {
        assert!(mirror_name("web-2_a.b").is_ok());
        assert!(mirror_name(&"a".repeat(64)).is_ok());
        let long = "a".repeat(65);
        for bad in ["", "-x", ".x", "a b", "a/b", "ä", "\"web\"", &long] {
            assert!(mirror_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_host_may_have_a_port_behind_it() {
        let of = |name: &str, port| Ok((name.to_string(), port));
        assert_eq!(host_and_port("mx"), of("mx", None));
        assert_eq!(
            host_and_port("mx.example.com:25"),
            of("mx.example.com", Some(25))
        );
        assert_eq!(host_and_port("[::1]:25"), of("::1", Some(25)));
        assert_eq!(host_and_port("[::1]"), of("::1", None));
        assert_eq!(host_and_port("::1"), of("::1", None));
        for bad in [
            "", "mx:", "mx:0", "mx:smtp", "[::1]25", "[::1", "m x", ":25",
        ] {
            assert!(host_and_port(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn how_much_may_be_deleted_is_a_number_or_a_part() {
        for (text, value) in [
            ("off", MaxDelete::Off),
            ("1000", MaxDelete::Count(1000)),
            ("20%", MaxDelete::Percent(20)),
        ] {
            assert_eq!(max_delete(text), Ok(value));
            assert_eq!(value.to_string(), text);
        }
        for bad in ["", "0", "-1", "0%", "100%", "%", "many", "1.5%"] {
            assert!(max_delete(bad).is_err(), "{bad}");
        }
    }
}
