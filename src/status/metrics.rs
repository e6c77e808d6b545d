//! `proxyfs metrics`: the status as Prometheus reads it, in its text format 0.0.4, for node_exporter's textfile
//! collector (<https://prometheus.io/docs/instrumenting/exposition_formats/>).
//!
//! Names are added, never changed. Counters only grow, also over restarts: they are kept in the journal, every
//! few seconds.

use super::{MirrorState, MirrorStatus, Status};
use std::fmt::{Display, Write};

/// A metric of a mirror: name, kind, help, and its value; none: not known.
type OfMirror = (
    &'static str,
    &'static str,
    &'static str,
    fn(&MirrorStatus) -> Option<u64>,
);

const OF_MIRROR: &[OfMirror] = &[
    (
        "pending_changes",
        "gauge",
        "Changes that the mirror has not got yet.",
        |m| Some(m.pending_ops),
    ),
    (
        "pending_bytes",
        "gauge",
        "Bytes of file data in them, at most.",
        |m| Some(m.pending_bytes),
    ),
    (
        "parked_changes",
        "gauge",
        "Changes that the mirror refuses.",
        |m| Some(m.parked_ops),
    ),
    (
        "lag_seconds",
        "gauge",
        "Age of the oldest change that the mirror has not got yet; 0: it has all.",
        |m| Some(m.oldest_pending_seconds.unwrap_or(0)),
    ),
    (
        "applied_seq",
        "gauge",
        "The mirror has every change up to this one.",
        |m| Some(m.applied_seq),
    ),
    (
        "bytes_per_second",
        "gauge",
        "File data that the mirror gets, lately.",
        |m| Some(m.bytes_per_second),
    ),
    (
        "sent_bytes_total",
        "counter",
        "Bytes sent to the mirror by SFTP, before they are encrypted.",
        |m| Some(m.totals.sent_bytes),
    ),
    (
        "connections_total",
        "counter",
        "Connections made to the mirror.",
        |m| Some(m.totals.connections),
    ),
    (
        "failures_total",
        "counter",
        "Connections that could not be made, or ended with an error.",
        |m| Some(m.totals.failures),
    ),
];

/// The text, one metric after the other.
pub fn text(status: &Status) -> String {
    let mut out = String::new();
    let version = env!("CARGO_PKG_VERSION");
    head(&mut out, "info", "gauge", "Which program this is.");
    sample(&mut out, "info", &[("version", version)], 1);
    let up = u8::from(status.pid.is_some());
    single(&mut out, "up", "gauge", "Whether the daemon runs.", up);
    let read_only = u8::from(status.read_only);
    let help = "Whether the mount refuses changes, since the log cannot be written.";
    single(&mut out, "read_only", "gauge", help, read_only);
    let help = "Changes recorded so far.";
    single(&mut out, "changes_total", "counter", help, status.last_seq);
    let help = "Size of the log on the disk.";
    single(&mut out, "log_bytes", "gauge", help, status.log_bytes);
    let help = "What is wrong at the moment and was told.";
    single(&mut out, "alarms", "gauge", help, status.alarms.len());
    if let Some(mail) = &status.mail {
        let help = "Pieces of news that wait to be mailed.";
        single(&mut out, "mail_waiting", "gauge", help, mail.waiting);
        let help = "Whether mails cannot be sent.";
        let failing = u8::from(mail.last_error.is_some());
        single(&mut out, "mail_failing", "gauge", help, failing);
        single(
            &mut out,
            "mails_sent_total",
            "counter",
            "Mails sent.",
            mail.sent,
        );
        let help = "Tries to send a mail that failed.";
        single(&mut out, "mails_failed_total", "counter", help, mail.failed);
    }
    if status.mirrors.is_empty() {
        return out;
    }
    head(
        &mut out,
        "mirror_state",
        "gauge",
        "How the mirror is doing: 1 for its state.",
    );
    for mirror in &status.mirrors {
        for state in MirrorState::ALL {
            let labels = [("mirror", mirror.name.as_str()), ("state", state.name())];
            sample(
                &mut out,
                "mirror_state",
                &labels,
                u8::from(state == mirror.state),
            );
        }
    }
    for (name, kind, help, value) in OF_MIRROR {
        let name = format!("mirror_{name}");
        head(&mut out, &name, kind, help);
        for mirror in &status.mirrors {
            if let Some(value) = value(mirror) {
                sample(&mut out, &name, &[("mirror", &mirror.name)], value);
            }
        }
    }
    out
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "# HELP proxyfs_{name} {help}\n# TYPE proxyfs_{name} {kind}"
    );
}

fn single(out: &mut String, name: &str, kind: &str, help: &str, value: impl Display) {
    head(out, name, kind, help);
    sample(out, name, &[], value);
}

fn sample(out: &mut String, name: &str, labels: &[(&str, &str)], value: impl Display) {
    let labels: Vec<String> = labels
        .iter()
        .map(|(label, value)| {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"");
            format!("{label}=\"{}\"", value.replace('\n', "\\n"))
        })
        .collect();
    let labels = match labels.is_empty() {
        true => String::new(),
        false => format!("{{{}}}", labels.join(",")),
    };
    let _ = writeln!(out, "proxyfs_{name}{labels} {value}");
}
