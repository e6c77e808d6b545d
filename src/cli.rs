//! The commands and their help. Parsing only: nothing here acts, so that help, completion and tests
//! need no daemon and no file.
//!
//! Exit codes of all commands: 0 done; 1 it could not be done, or what was asked is not so; 2 the
//! command line or the configuration is wrong.

use crate::config::DEFAULT_FILE;
use crate::control::DEFAULT_TASKS;
use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;

/// The environment variable that names the configuration file.
pub const CONFIG_VARIABLE: &str = "PROXYFS_CONFIG";

/// The command line.
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(
    name = "proxyfs",
    version,
    about = "Mirrors a directory live, in order, to any number of hosts over SFTP",
    after_help = "Begin with /etc/proxyfs/proxyfs.ini (see proxyfs.ini.example), then `proxyfs run`.\n\
                  Exit codes: 0 done, 1 failed, 2 wrong command line or configuration.",
    disable_help_subcommand = true,
    max_term_width = 80
)]
pub struct Arguments {
    /// The configuration file [default: $PROXYFS_CONFIG, or /etc/proxyfs/proxyfs.ini]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Run the daemon in the foreground: mount the source and keep the mirrors up to date
    ///
    /// SIGTERM and SIGINT stop it gracefully; SIGHUP reads the configuration again and reopens the
    /// log file. What the mirrors have not got by then is in the log, and is sent after the next
    /// start.
    #[command(
        after_help = "Example: proxyfs run\n         proxyfs run /srv/www /srv/www --config ./proxyfs.ini\n\
                      Exit codes: 0 stopped as asked, 1 cannot run, 2 wrong configuration."
    )]
    Run {
        /// The directory to mirror, instead of `source`
        #[arg(requires = "mount_point")]
        source: Option<PathBuf>,
        /// Where to mount it, instead of `mount_point`; may be SOURCE itself
        mount_point: Option<PathBuf>,
    },

    /// Show the mount, the log and how each mirror is doing
    ///
    /// Works with the daemon down too: then it tells what the journal knows. Colours are for terminals
    /// only, and not where NO_COLOR is set.
    #[command(
        after_help = "Example: proxyfs status --watch\n         proxyfs status --json | jq '.mirrors[].state'\n\
                      Exit codes: 0 shown, 1 neither daemon nor journal can be read."
    )]
    Status {
        /// Again every second, in place on a terminal, until q or Ctrl-C
        #[arg(long, short)]
        watch: bool,
        /// As JSON, for scripts
        #[arg(long)]
        json: bool,
    },

    /// List the changes that mirrors have not got yet, oldest first
    ///
    /// Parked ones come with their error. Works with the daemon down too.
    #[command(after_help = "Example: proxyfs tasks web2 --limit 20")]
    Tasks {
        /// Of this mirror only
        mirror: Option<String>,
        /// As JSON, for scripts
        #[arg(long)]
        json: bool,
        /// List at most so many
        #[arg(long, value_name = "N", default_value_t = DEFAULT_TASKS)]
        limit: u64,
    },

    /// Wait until everything that was changed before is on the mirrors
    ///
    /// Fails on time-out, and when changes wait for a mirror that is stopped or paused, or are parked.
    #[command(
        after_help = "Example: tar xf site.tar -C /srv/www && proxyfs wait web2 --timeout 60\n\
                      Exit codes: 0 it is all there, 1 time-out, or a mirror is stopped."
    )]
    Wait {
        /// On this mirror only
        name: Option<String>,
        /// Give up after so many seconds [default: never]
        #[arg(long, value_name = "S")]
        timeout: Option<u64>,
    },

    /// Send a mirror nothing until it is resumed; its changes are kept
    ///
    /// Also after a restart.
    #[command(after_help = "Example: proxyfs pause web2")]
    Pause {
        /// The mirror
        name: String,
    },

    /// Let a paused mirror go on
    ///
    /// What failed is tried again at once.
    #[command(after_help = "Example: proxyfs resume web2")]
    Resume {
        /// The mirror
        name: String,
    },

    /// Make all of a mirror like the source, and show how far it is
    ///
    /// Every entry is compared, by type, size, time and mode; what differs is sent. The log goes on meanwhile. Files
    /// that only the mirror has are kept and counted. Ends with the sync; if it is interrupted, the daemon goes
    /// on with it, also after a restart.
    #[command(
        after_help = "Example: proxyfs sync web2\n         proxyfs sync web2 --delete\n\
                      Exit codes: 0 it is like the source, 1 something was refused, or the mirror cannot be reached."
    )]
    Sync {
        /// The mirror
        name: String,
        /// Remove what only the mirror has
        #[arg(long)]
        delete: bool,
        /// Take no file for the same because its size and time are: send it if its bytes differ
        #[arg(long)]
        checksum: bool,
    },

    /// Compare a mirror with the source, and list in what they differ
    ///
    /// Nothing is changed. What is just being sent is looked at again when it is there. `proxyfs sync` puts
    /// right what differs. If it is interrupted, it ends.
    #[command(
        after_help = "Example: proxyfs verify web2\n         proxyfs verify web2 --checksum --json | jq '.differences[].path'\n\
                      Exit codes: 0 they are the same, 1 they differ, or could not be compared."
    )]
    Verify {
        /// The mirror
        name: String,
        /// Compare every byte, not only type, size, time, mode and owner
        #[arg(long)]
        checksum: bool,
        /// As JSON, for scripts
        #[arg(long)]
        json: bool,
    },

    /// Try again at once what failed: parked changes, and mirrors that wait for their next try
    ///
    /// Without a name, on all mirrors. What is paused stays paused.
    #[command(after_help = "Example: proxyfs try-again web2")]
    TryAgain {
        /// On this mirror only
        name: Option<String>,
    },

    /// End the daemon gracefully; returns when it is gone
    ///
    /// Where a daemon that was killed has left its mount ("Transport endpoint is not connected"), that is taken away.
    #[command(
        after_help = "Example: proxyfs stop\nExit codes: 0 it has ended, 1 it was not running or did not end."
    )]
    Stop {
        /// Only take away what a killed daemon left; one that runs goes on
        #[arg(long)]
        stale: bool,
    },

    /// Have the daemon read its configuration again
    ///
    /// A wrong configuration changes nothing. What cannot change in a running daemon is said.
    #[command(after_help = "Example: proxyfs check-config && proxyfs reload")]
    Reload,

    /// Tell how it is as a monitoring plugin does (Nagios, Icinga, Zabbix, checkmk)
    ///
    /// One line that begins PROXYFS OK, WARNING, CRITICAL or UNKNOWN, what is wrong with the worst first, and
    /// behind a bar the performance data. A daemon that is down, a read-only mount and a mirror that
    /// is stopped or needs a sync are critical; a mirror that is paused, cannot be reached or refuses changes, and
    /// mails that cannot be sent, are a warning.
    #[command(
        after_help = "Example: proxyfs check --lag-warning 600\n         proxyfs check web2 --pending-critical 100000\n\
                      Exit codes: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN (also where the command line or the configuration is wrong)."
    )]
    Check {
        /// Of this mirror only
        name: Option<String>,
        /// Warn where a mirror is behind by more seconds
        #[arg(long, value_name = "S", default_value_t = 300)]
        lag_warning: u64,
        /// Critical from there on
        #[arg(long, value_name = "S", default_value_t = 3600)]
        lag_critical: u64,
        /// Warn where a mirror lacks more changes [default: any number is fine]
        #[arg(long, value_name = "N")]
        pending_warning: Option<u64>,
        /// Critical from there on [default: any number is fine]
        #[arg(long, value_name = "N")]
        pending_critical: Option<u64>,
    },

    /// Show the status as Prometheus reads it
    ///
    /// For the textfile collector of node_exporter: run it every minute and move the output into its directory under
    /// a name that ends in .prom. Counters only grow, also over restarts. Works with the daemon down too.
    #[command(
        after_help = "Example: proxyfs metrics > /var/lib/prometheus/node-exporter/proxyfs.prom.new\n\
                      Exit codes: 0 shown, 1 neither daemon nor journal can be read."
    )]
    Metrics,

    /// Send a test mail as [mail] in the configuration says, and show what the mail server said
    ///
    /// The running daemon sends it, with the configuration that it uses; without a daemon this
    /// command does. What could not be mailed so far is tried again at once if it succeeds.
    #[command(after_help = "Example: proxyfs test-mail\n\
                      Exit codes: 0 the mail was taken, 1 it was not.")]
    TestMail,

    /// Try a new mirror out, add it, and start its first sync
    ///
    /// Reaches the host, shows its key and asks whether it is the right one, logs in, and tries all that
    /// the daemon will do there: the directory, writing, renaming, times, free space, speed. Only if all
    /// of that works, the mirror's section is written to `mirrors.d/NAME.ini` beside the configuration
    /// and the daemon reads it. The host's key is kept in `known_hosts` there.
    #[command(
        after_help = "Example: proxyfs add-mirror web3.example.com mirror /www\n         \
                      proxyfs add-mirror 192.0.2.7 mirror /www --name paris --port 2222 --accept-key\n\
                      Exit codes: 0 added, 1 something does not work there and nothing was added."
    )]
    AddMirror {
        /// Its name or address
        host: String,
        /// The account there
        user: String,
        /// The directory there that becomes like the source
        path: String,
        /// Its name in commands and messages [default: the first part of HOST]
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// The port of its SSH server [default: 22]
        #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
        port: Option<u16>,
        /// The private key to log in with [default: `id_ed25519` beside the configuration, or root's own]
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        /// It holds a copy of the source already, made by other means
        #[arg(long, conflicts_with = "delete")]
        assume_synced: bool,
        /// Delete what only the mirror has when it is made like the source
        #[arg(long)]
        delete: bool,
        /// Take the host's key for the right one without asking
        #[arg(long)]
        accept_key: bool,
    },

    /// Take a mirror out of the configuration; its files stay as they are
    ///
    /// Asks first if changes are pending for it, which it does not get any more then.
    #[command(after_help = "Example: proxyfs remove-mirror web3\n\
                      Exit codes: 0 removed, 1 not removed.")]
    RemoveMirror {
        /// The mirror
        name: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },

    /// Begin a new journal in place of one that is damaged or lost, and compare every mirror
    ///
    /// The daemon must be stopped, and the source be there. The present journal is kept under another name in
    /// `state_dir`. When the daemon is started again, each mirror is compared with the whole source, and what differs
    /// is sent. What only a mirror has stays there: also what was deleted here and had not yet been deleted there.
    /// `proxyfs sync NAME --delete` removes it. A mirror that is paused stays paused.
    #[command(after_help = "Example: proxyfs stop; proxyfs rebuild && proxyfs run\n\
                      Exit codes: 0 a new journal is there, 1 nothing was changed.")]
    Rebuild {
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },

    /// Try out all that is needed: on this host, and on each mirror
    ///
    /// On a mirror a file is written, renamed and removed again below `.proxyfs`, which the tree does
    /// not show. The daemon is not disturbed.
    #[command(after_help = "Example: proxyfs doctor web2\n\
                      Exit codes: 0 all works, 1 something does not: its line begins with FAIL.")]
    Doctor {
        /// This mirror only
        name: Option<String>,
    },

    /// All commands at a prompt, with history and completion
    ///
    /// Also under the names and quoting of the first ProxyFS: `show_help` lists them. Without a terminal
    /// it reads a command a line.
    #[command(
        after_help = "Example: proxyfs console\n         echo \"show_tasks 'web2.example.com'\" | proxyfs console\n\
                      Exit codes: 0 all went well, 1 a command failed."
    )]
    Console,

    /// Check the configuration without acting on it
    #[command(after_help = "Example: proxyfs check-config --config ./new.ini\n\
                      Exit codes: 0 it is good, 2 it is not; every problem is a line with file and line number.")]
    CheckConfig,

    /// Write the man pages and the completion of shells into a directory
    ///
    /// For `make install`: proxyfs.8, proxyfs.ini.5, proxyfs.bash, _proxyfs (zsh), proxyfs.fish.
    #[command(hide = true, after_help = "Example: proxyfs pages ./pages")]
    Pages {
        /// Where to; it is made
        directory: PathBuf,
    },
}

impl Arguments {
    /// The configuration file: `--config`, else what `environment` says ([`CONFIG_VARIABLE`]; empty
    /// counts as not set), else the usual place.
    pub fn config_file(&self, environment: Option<OsString>) -> PathBuf {
        let named = environment.filter(|v| !v.is_empty()).map(PathBuf::from);
        let given = self.config.clone().or(named);
        given.unwrap_or_else(|| PathBuf::from(DEFAULT_FILE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split(' '))
    }

    fn command(line: &str) -> Command {
        parse(line).unwrap_or_else(|e| panic!("{e}")).command
    }

    #[test]
    fn the_commands_take_what_their_help_says() {
        assert_eq!(
            command("proxyfs run"),
            Command::Run {
                source: None,
                mount_point: None
            }
        );
        assert_eq!(
            command("proxyfs run a b"),
            Command::Run {
                source: Some("a".into()),
                mount_point: Some("b".into())
            }
        );
        assert_eq!(
            command("proxyfs status --json"),
            Command::Status {
                json: true,
                watch: false
            }
        );
        assert_eq!(
            command("proxyfs tasks web2 --limit 3"),
            Command::Tasks {
                mirror: Some("web2".into()),
                json: false,
                limit: 3
            }
        );
        assert_eq!(
            command("proxyfs wait --timeout 5"),
            Command::Wait {
                name: None,
                timeout: Some(5)
            }
        );
        let name = "web2".to_string();
        assert_eq!(
            command("proxyfs pause web2"),
            Command::Pause { name: name.clone() }
        );
        let (delete, checksum) = (true, false);
        let sync = Command::Sync {
            name: name.clone(),
            delete,
            checksum,
        };
        assert_eq!(command("proxyfs sync web2 --delete"), sync);
        let verify = Command::Verify {
            name: name.clone(),
            checksum: true,
            json: false,
        };
        assert_eq!(command("proxyfs verify web2 --checksum"), verify);
        assert_eq!(command("proxyfs resume web2"), Command::Resume { name });
        let all = Command::TryAgain { name: None };
        assert_eq!(command("proxyfs try-again"), all);
        assert_eq!(command("proxyfs stop"), Command::Stop { stale: false });
        assert_eq!(command("proxyfs reload"), Command::Reload);
        assert_eq!(command("proxyfs test-mail"), Command::TestMail);
        assert_eq!(
            command("proxyfs check web2 --lag-warning 5 --pending-critical 9"),
            Command::Check {
                name: Some("web2".into()),
                lag_warning: 5,
                lag_critical: 3600,
                pending_warning: None,
                pending_critical: Some(9),
            }
        );
        assert_eq!(command("proxyfs metrics"), Command::Metrics);
        let rebuild = Command::Rebuild { yes: true };
        assert_eq!(command("proxyfs rebuild --yes"), rebuild);
        assert_eq!(command("proxyfs check-config"), Command::CheckConfig);
    }

    #[test]
    fn a_wrong_command_line_is_refused_with_a_suggestion() {
        for line in [
            "proxyfs run only-a-source",
            "proxyfs pause",
            "proxyfs wait --timeout soon",
            "proxyfs stop now",
        ] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
        let error = parse("proxyfs statsu").unwrap_err().to_string();
        assert!(error.contains("status"), "{error}");
    }

    #[test]
    fn the_configuration_file_is_named_by_option_variable_or_habit() {
        let before = parse("proxyfs --config a.ini status").unwrap();
        let behind = parse("proxyfs status --config a.ini").unwrap();
        assert_eq!(before, behind);
        let variable = || Some(OsString::from("b.ini"));
        assert_eq!(before.config_file(variable()), PathBuf::from("a.ini"));
        let plain = parse("proxyfs status").unwrap();
        assert_eq!(plain.config_file(variable()), PathBuf::from("b.ini"));
        let usual = PathBuf::from("/etc/proxyfs/proxyfs.ini");
        assert_eq!(plain.config_file(None), usual);
        assert_eq!(plain.config_file(Some("".into())), usual);
    }

    #[test]
    fn every_command_has_help_with_an_example_that_fits_the_screen() {
        let mut root = Arguments::command();
        root.build();
        for sub in root.get_subcommands_mut() {
            let name = sub.get_name().to_string();
            let help = sub.render_long_help().to_string();
            assert!(help.contains("Example: "), "{name} has no example");
            let example = help.split("Example: ").nth(1).unwrap();
            assert!(example.contains(&format!("proxyfs {name}")), "{example}");
            let wide = help.lines().find(|l| l.chars().count() > 80);
            assert_eq!(wide, None, "in the help of {name}");
        }
    }

    #[test]
    fn version_and_help_are_no_errors() {
        assert_eq!(
            parse("proxyfs --version").unwrap_err().kind(),
            ErrorKind::DisplayVersion
        );
        let help = parse("proxyfs --help").unwrap_err();
        assert_eq!((help.kind(), help.exit_code()), (ErrorKind::DisplayHelp, 0));
        let help = parse("proxyfs wait --help").unwrap_err().to_string();
        assert!(help.contains("Exit codes: 0 it is all there"), "{help}");
    }
}
