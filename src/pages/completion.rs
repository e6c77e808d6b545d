//! Completion for bash, zsh and fish: commands, options, and the names of mirrors, which are asked from
//! `proxyfs status --json` (which also works while the daemon is down; whoever may not ask gets no names).
//!
//! Danger: what runs at every press of TAB must be quick, must print nothing but answers, and must not take a
//! mirror's name for code: the names are only ever data, in arrays.

use super::{Offer, arguments, commands, offer, value_name};
use clap::{Arg, Command};
use std::fmt::Write;

/// Picks the mirrors' names out of `status --json`.
const NAMES: &str = r#"sed -n 's/^ *"name": "\([A-Za-z0-9._-]*\)",*$/\1/p'"#;

/// A text between single quotes of a shell. `'` becomes `’`, which needs no quoting in any of them.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "\u{2019}").replace('\\', ""))
}

fn help(argument: &Arg) -> String {
    first_line(argument.get_help().map(ToString::to_string))
}

fn about(command: &Command) -> String {
    first_line(command.get_about().map(ToString::to_string))
}

fn first_line(text: Option<String>) -> String {
    let text = text.unwrap_or_default();
    text.lines().next().unwrap_or_default().to_string()
}

fn takes_value(argument: &Arg) -> bool {
    argument.get_action().takes_values()
}

fn positional(command: &Command) -> Vec<&Arg> {
    arguments(command).filter(|a| a.is_positional()).collect()
}

/// For `/usr/share/bash-completion/completions/proxyfs`. It needs nothing of the package bash-completion.
pub(super) fn bash(program: &Command) -> String {
    let reply = |offer: &Offer| match offer {
        Offer::Mirrors => "words=$(_proxyfs_mirrors)".to_string(),
        Offer::Files => "COMPREPLY=($(compgen -f -- \"$cur\")); return".to_string(),
        Offer::Directories => "COMPREPLY=($(compgen -d -- \"$cur\")); return".to_string(),
        Offer::Hosts => "COMPREPLY=($(compgen -A hostname -- \"$cur\")); return".to_string(),
        Offer::Words(words) => format!("words={}", quote(&words.join(" "))),
        Offer::Nothing => "return".to_string(),
    };
    let mut with_value = vec!["--config".to_string()];
    let mut values =
        "        --config) COMPREPLY=($(compgen -f -- \"$cur\")); return ;;\n".to_string();
    let mut cases = String::new();
    for command in commands(program) {
        let name = command.get_name();
        let mut options = Vec::new();
        for argument in arguments(command) {
            let Some(long) = argument.get_long() else {
                continue;
            };
            options.push(format!("--{long}"));
            if takes_value(argument) {
                with_value.push(format!("--{long}"));
                let offer = reply(&offer(argument));
                let _ = writeln!(values, "        {name}--{long}) {offer} ;;");
            }
        }
        options.push("--config --help".to_string());
        let _ = writeln!(cases, "        {name})");
        let _ = writeln!(cases, "            options='{}'", options.join(" "));
        let places = positional(command);
        if !places.is_empty() {
            let _ = writeln!(cases, "            case $place in");
            for (i, argument) in places.iter().enumerate() {
                let _ = writeln!(
                    cases,
                    "                {i}) {} ;;",
                    reply(&offer(argument)).replace("return", ":")
                );
            }
            let _ = writeln!(cases, "            esac");
        }
        let _ = writeln!(cases, "            ;;");
    }
    with_value.sort();
    with_value.dedup();
    let names: Vec<&str> = commands(program).map(Command::get_name).collect();
    format!(
        r#"# Completion of proxyfs(8) for bash. Made by `proxyfs pages`.

_proxyfs_mirrors() {{
    proxyfs status --json ${{config:+--config "$config"}} 2>/dev/null | {NAMES}
}}

_proxyfs() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD - 1]}}
    local command='' config='' place=0 words='' options='' i IFS=$' \t\n'
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${{COMP_WORDS[i]}} in
        --config) ((i++)); config=${{COMP_WORDS[i]}} ;;
        {with_value}) ((i++)) ;;
        -*) ;;
        *) if [ -z "$command" ]; then command=${{COMP_WORDS[i]}}; else ((place++)); fi ;;
        esac
    done
    case $prev in --config) command='' ;; esac
    case ${{command:+$prev}} in
        --config) ;;
        --*) prev=$command$prev ;;
    esac
    case $prev in
{values}    esac
    if [ -z "$words" ]; then
        case $command in
        '') words='{names}' options='--config --help --version' ;;
{cases}        esac
    fi
    case $cur in
    -*) COMPREPLY=($(compgen -W "$options" -- "$cur")) ;;
    *) [ ${{#COMPREPLY[@]}} -gt 0 ] || COMPREPLY=($(compgen -W "$words" -- "$cur")) ;;
    esac
}}

complete -F _proxyfs proxyfs
"#,
        with_value = with_value.join("|"),
        names = names.join(" "),
    )
}

/// For zsh's function path, under the name `_proxyfs`.
pub(super) fn zsh(program: &Command) -> String {
    // Within brackets and before a colon.
    let text = |text: String| text.replace(['[', ']', ':'], " ").replace('\'', "\u{2019}");
    let action = |offer: &Offer| match offer {
        Offer::Mirrors => "_proxyfs_mirrors".to_string(),
        Offer::Files => "_files".to_string(),
        Offer::Directories => "_files -/".to_string(),
        Offer::Hosts => "_hosts".to_string(),
        Offer::Words(words) => format!("({})", words.join(" ")),
        Offer::Nothing => " ".to_string(),
    };
    let mut list = String::new();
    let mut cases = String::new();
    for command in commands(program) {
        let name = command.get_name();
        let _ = writeln!(list, "        '{name}:{}'", text(about(command)));
        let _ = write!(cases, "        {name}) _arguments $common");
        for argument in arguments(command) {
            let offer = action(&offer(argument));
            let help = text(help(argument));
            let _ = match argument.get_long() {
                None => write!(
                    cases,
                    " \\\n            ':{}:{offer}'",
                    value_name(argument).to_lowercase()
                ),
                Some(long) if takes_value(argument) => write!(
                    cases,
                    " \\\n            '--{long}[{help}]:{}:{offer}'",
                    value_name(argument).to_lowercase()
                ),
                Some(long) => write!(cases, " \\\n            '--{long}[{help}]'"),
            };
        }
        let _ = writeln!(cases, " ;;");
    }
    format!(
        r#"#compdef proxyfs
# Completion of proxyfs(8) for zsh. Made by `proxyfs pages`.

_proxyfs_mirrors() {{
    local -a names
    names=(${{(f)"$(_call_program mirrors proxyfs status --json | {NAMES})"}})
    _describe -t mirrors mirror names
}}

_proxyfs() {{
    local curcontext=$curcontext state line
    local -a common commands
    common=(
        '--config[The configuration file]:file:_files'
        '(-h --help)'{{-h,--help}}'[Print help]'
    )
    commands=(
{list}    )
    _arguments -C $common \
        '(-V --version)'{{-V,--version}}'[Print the version]' \
        '1: :->command' '*:: :->arguments' && return
    case $state in
    command) _describe -t commands command commands ;;
    arguments)
        case $words[1] in
{cases}        esac
        ;;
    esac
}}

_proxyfs "$@"
"#
    )
}

/// For `/usr/share/fish/vendor_completions.d/proxyfs.fish`.
pub(super) fn fish(program: &Command) -> String {
    let mut text = format!(
        "# Completion of proxyfs(8) for fish. Made by `proxyfs pages`.\n\n\
         function __proxyfs_mirrors\n    proxyfs status --json 2>/dev/null | {NAMES}\nend\n\n\
         complete -c proxyfs -f\n\
         complete -c proxyfs -l config -r -F -d 'The configuration file'\n\
         complete -c proxyfs -s h -l help -d 'Print help'\n\
         complete -c proxyfs -n __fish_use_subcommand -s V -l version -d 'Print the version'\n"
    );
    // With `-x`, a value is needed and no file is offered, with `-r` it may be one.
    let offered = |offer: &Offer| match offer {
        Offer::Mirrors => "-a '(__proxyfs_mirrors)'".to_string(),
        Offer::Files => "-F".to_string(),
        Offer::Directories => "-a '(__fish_complete_directories)'".to_string(),
        Offer::Hosts => "-a '(__fish_print_hostnames)'".to_string(),
        Offer::Words(words) => format!("-a {}", quote(&words.join(" "))),
        Offer::Nothing => String::new(),
    };
    for command in commands(program) {
        let name = command.get_name();
        let _ = writeln!(
            text,
            "complete -c proxyfs -n __fish_use_subcommand -a {name} -d {}",
            quote(&about(command))
        );
        let here = format!("complete -c proxyfs -n '__fish_seen_subcommand_from {name}'");
        for argument in arguments(command) {
            let offer = offered(&offer(argument));
            let help = quote(&help(argument));
            let _ = match argument.get_long() {
                None if offer.is_empty() => Ok(()),
                None => writeln!(text, "{here} {offer}"),
                Some(long) if takes_value(argument) => {
                    let value = if offer == "-F" { "-r" } else { "-x" };
                    writeln!(text, "{here} -l {long} {value} {offer} -d {help}")
                }
                Some(long) => writeln!(text, "{here} -l {long} -d {help}"),
            };
        }
    }
    text
}
