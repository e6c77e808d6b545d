//! A mail's way out: SMTP, or the host's own sendmail. The only user of `lettre`.
//!
//! The dangers: a server that never answers (every step has a time limit, and this runs on a thread of its
//! own); a password that gets about (it is read from its file for each mail, goes to the server only, and is
//! taken out of whatever the server says about it; with `tls = starttls` nothing is said before TLS is up).

use super::child;
use super::letter::Letter;
use crate::config::{MailConfig, Tls};
use lettre::address::Envelope;
use lettre::message::header::{ContentType, HeaderName, HeaderValue};
use lettre::message::{Mailbox, MessageBuilder};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls as Protection, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::transport::smtp::response::Response;
use lettre::{Message, SmtpTransport, Transport};
use std::fmt::Display;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// For each step of a conversation with a mail server.
const STEP_WITHIN: Duration = Duration::from_secs(20);
/// For sendmail, which may do the same.
const SENDMAIL_WITHIN: Duration = Duration::from_secs(60);

/// Whether this is a mail address.
pub fn is_address(text: &str) -> bool {
    text.parse::<Mailbox>().is_ok()
}

/// Where mails go, in words.
pub fn way(config: &MailConfig) -> String {
    match (&config.smtp, &config.sendmail) {
        (Some((host, port)), _) => {
            let port = port.unwrap_or(usual_port(config.tls));
            let tls = match config.tls {
                Tls::StartTls => "starttls",
                Tls::FromTheStart => "tls",
                Tls::None => "no tls",
            };
            match &config.user {
                Some(user) => format!("{host}, port {port}, {tls}, as {user}"),
                None => format!("{host}, port {port}, {tls}"),
            }
        }
        (None, Some(program)) => program.display().to_string(),
        (None, None) => "nowhere: there is no section [mail]".to_string(),
    }
}

fn usual_port(tls: Tls) -> u16 {
    match tls {
        Tls::StartTls => 587,
        Tls::FromTheStart => 465,
        Tls::None => 25,
    }
}

/// A mail that was taken.
#[derive(Debug, PartialEq, Eq)]
pub struct Taken {
    /// What was answered.
    pub answer: String,
    /// For whom it was not taken, and why: addresses that the server will never take.
    pub refused: Option<String>,
}

/// Sends a mail from `host`. It is taken when it is for one of its addresses at least: one that is wrong keeps nobody
/// else from being told.
///
/// # Errors
/// What went wrong, in the mail server's words where it has some.
pub fn send(config: &MailConfig, letter: &Letter, host: &str) -> Result<Taken, String> {
    let message = message(config, letter, host)?;
    match (&config.smtp, &config.sendmail) {
        (Some((server, port)), _) => by_smtp(config, server, *port, &message, host),
        (None, Some(program)) => by_sendmail(program, &message),
        (None, None) => Err("there is no section [mail] in the configuration: add it".to_string()),
    }
    .map_err(|why| one_line(&why))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn message(config: &MailConfig, letter: &Letter, host: &str) -> Result<Message, String> {
    let usual = format!("proxyfs@{host}");
    let from = config.from.as_deref().unwrap_or(&usual);
    let mailbox = |text: &str| {
        let read = text.parse::<Mailbox>();
        read.map_err(|why| format!("{text} is no mail address ({why}): set `from` in [mail]"))
    };
    let mut builder: MessageBuilder = Message::builder()
        .from(mailbox(from)?)
        .subject(letter.subject.clone())
        .message_id(Some(format!("<proxyfs.{}@{host}>", letter.id)))
        .header(ContentType::TEXT_PLAIN);
    for to in &config.to {
        builder = builder.to(mailbox(to)?);
    }
    // RFC 3834: no holiday notes in answer.
    let name = HeaderName::new_from_ascii_str("Auto-Submitted");
    let builder = builder.raw_header(HeaderValue::new(name, "auto-generated".to_string()));
    builder.body(letter.body.clone()).map_err(|e| e.to_string())
}

fn by_smtp(
    config: &MailConfig,
    server: &str,
    port: Option<u16>,
    message: &Message,
    host: &str,
) -> Result<Taken, String> {
    let protection = || -> Result<Protection, String> {
        let mut tls = TlsParameters::builder(server.to_string());
        if let Some(file) = &config.ca_file {
            let cant = |why: &dyn Display| format!("ca_file {}: {why}", file.display());
            let pem = std::fs::read(file).map_err(|e| cant(&e))?;
            tls = tls.add_root_certificate(Certificate::from_pem(&pem).map_err(|e| cant(&e))?);
        }
        let tls = tls.build().map_err(|e| e.to_string())?;
        Ok(match config.tls {
            Tls::StartTls => Protection::Required(tls),
            Tls::FromTheStart => Protection::Wrapper(tls),
            Tls::None => Protection::None,
        })
    };
    let port = port.unwrap_or(usual_port(config.tls));
    let mut transport = SmtpTransport::builder_dangerous(server)
        .port(port)
        .tls(protection()?)
        .timeout(Some(STEP_WITHIN))
        .hello_name(ClientId::Domain(host.to_string()));
    let password = match &config.password_file {
        Some(file) => Some(password(file)?),
        None => None,
    };
    if let (Some(user), Some(password)) = (&config.user, &password) {
        transport = transport.credentials(Credentials::new(user.clone(), password.clone()));
    }
    let transport = transport.build();
    let told = |why: &lettre::transport::smtp::Error| {
        let mut text = why.to_string();
        if let Some(password) = password.as_ref().filter(|p| !p.is_empty()) {
            text = text.replace(password, "(the password)");
        }
        let help = help(why, config);
        one_line(&format!("{server}, port {port}: {text}{help}"))
    };
    let answer = |answer: Response| {
        let lines: Vec<&str> = answer.message().collect();
        format!("{} {}", answer.code(), lines.join(" "))
    };
    let envelope = message.envelope();
    let why = match transport.send(message) {
        Ok(said) => {
            return Ok(Taken {
                answer: answer(said),
                refused: None,
            });
        }
        Err(why) if why.is_permanent() && envelope.to().len() > 1 => why,
        Err(why) => return Err(told(&why)),
    };
    // One address that is refused ends it for all of them. So each gets its own.
    let (mut taken, mut refused) = (None, Vec::new());
    for to in envelope.to() {
        let alone = Envelope::new(envelope.from().cloned(), vec![to.clone()]);
        let alone = alone.map_err(|e| e.to_string())?;
        match transport.send_raw(&alone, &message.formatted()) {
            Ok(said) => taken = Some(answer(said)),
            Err(why) => refused.push(format!("{to}: {}", told(&why))),
        }
    }
    match taken {
        Some(answer) => Ok(Taken {
            answer,
            refused: Some(refused.join("; ")).filter(|r| !r.is_empty()),
        }),
        None => Err(told(&why)),
    }
}

/// What to do about it, where that is plain.
fn help(why: &lettre::transport::smtp::Error, config: &MailConfig) -> &'static str {
    let text = why.to_string();
    match why.status().map(|code| code.to_string()).as_deref() {
        Some("535" | "534" | "538") => "; see that `user` and `password_file` in [mail] are right",
        Some("530") if config.user.is_none() => "; set `user` and `password_file` in [mail]",
        Some("550" | "551" | "553" | "554") => {
            "; see that the server takes mails from `from` to `to` in [mail]"
        }
        Some(_) => "",
        None if text.contains("certificate") => {
            "; if the server's certificate is right, name its CA's with `ca_file` in [mail]"
        }
        None if text.contains("STARTTLS") => "; see that `tls` in [mail] is what the server offers",
        None if text.contains("authentication mechanism") => {
            "; the server offers no login on this connection: see `tls`, `user` in [mail]"
        }
        None if why.is_tls() => "; see that `tls` and the port in [mail] go together",
        None => "; see that the mail server runs there, and `smtp` in [mail] is right",
    }
}

fn password(file: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(file)
        .map_err(|why| format!("password_file {}: {why}", file.display()))?;
    Ok(text.lines().next().unwrap_or_default().to_string())
}

fn by_sendmail(program: &Path, message: &Message) -> Result<Taken, String> {
    let mut command = Command::new(program);
    // As every sendmail takes it: a dot ends nothing; the sender; who gets it.
    command.arg("-i");
    let envelope = message.envelope();
    if let Some(from) = envelope.from() {
        let from: &str = from.as_ref();
        command.args(["-f", from]);
    }
    command.arg("--");
    command.args(envelope.to().iter().map(ToString::to_string));
    child::run(command, &message.formatted(), SENDMAIL_WITHIN)?;
    Ok(Taken {
        answer: format!("{} took it", program.display()),
        refused: None,
    })
}

/// This host's name.
pub fn host_name() -> String {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    // It stands in addresses and greetings.
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    match name.is_empty() || !name.chars().all(good) {
        true => "localhost".to_string(),
        false => name,
    }
}
