#!/usr/bin/env bash
# ProxyFS on one machine: a source, two mirrors (private SSH servers on loopback ports), one of which
# goes away for a while and catches up. Run as root: `make demo`. Everything happens in a temporary
# directory, and nothing stays behind, also after Ctrl-C.
#
# PROXYFS=FILE takes that program instead of building one.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' off=$'\e[0m'; else bold='' dim='' off=''; fi
step=0
say() {
    step=$((step + 1))
    printf '\n%s%d. %s%s\n' "$bold" "$step" "$*" "$off"
}
note() { printf '   %s\n' "$*"; }
# Shows a command, then runs it.
run() {
    printf '%s$ %s%s\n' "$dim" "$(printf '%q ' "$@")" "$off"
    "$@"
}
fail() {
    printf 'demo: %s\n' "$*" >&2
    exit 1
}

[ "$(id -u)" -eq 0 ] || fail "mounting needs root: sudo make demo"
[ -c /dev/fuse ] || fail "there is no /dev/fuse: modprobe fuse (in a container: give it the device)"
packaging/install-build-deps
sshd=$(command -v sshd || echo /usr/sbin/sshd)

# Overlay file systems (as in containers) offer no file handles; a tmpfs does.
base=${TMPDIR:-/tmp}
case $(stat -f -c %T "$base") in overlay*) base=/dev/shm ;; esac
dir=$(mktemp -d "$base/proxyfs-demo.XXXXXX")
declare -A server=() port=()
daemon=''

# All processes below one. Since OpenSSH 9.8 a session is not the server's child, but its grandchild.
descendants() {
    local child
    for child in $(pgrep -P "$1" || true); do
        echo "$child"
        descendants "$child"
    done
}

# Kills an SSH server and the sessions it serves, as if its machine were gone.
stop_server() {
    local pid=${server[$1]:-}
    [ -n "$pid" ] || return 0
    kill -STOP "$pid" 2>/dev/null || true
    local sessions
    sessions=$(descendants "$pid")
    # shellcheck disable=SC2086
    kill -KILL "$pid" $sessions 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
    unset "server[$1]"
}

cleanup() {
    local status=$?
    trap - EXIT
    trap '' INT TERM
    if [ -n "$daemon" ] && kill -TERM "$daemon" 2>/dev/null; then
        for _ in $(seq 100); do
            kill -0 "$daemon" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL "$daemon" 2>/dev/null || true
        wait "$daemon" 2>/dev/null || true
    fi
    # Only where the daemon did not end by itself.
    umount -l "$dir/www" 2>/dev/null || true
    for name in "${!server[@]}"; do stop_server "$name"; done
    if [ "$status" -ne 0 ] && [ -s "$dir/daemon.log" ]; then
        echo "demo: the daemon's last words:" >&2
        tail -n 20 "$dir/daemon.log" >&2
    fi
    # Never through a mount that is still there.
    rm -rf --one-file-system "$dir"
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Waits until a command succeeds, at most 30 seconds.
until_true() {
    local what=$1
    shift
    for _ in $(seq 300); do
        if "$@" >/dev/null 2>&1; then return 0; fi
        sleep 0.1
    done
    fail "waited 30 s in vain until $what"
}

listens() { (exec 3<>"/dev/tcp/127.0.0.1/$1"); }

# Starts the SSH server of a mirror, on its port or, the first time, on a free one.
start_server() {
    local name=$1 tries candidate
    mkdir -p /run/sshd "$dir/$name"
    for tries in $(seq 50); do
        candidate=${port[$name]:-$((20000 + RANDOM % 30000))}
        if listens "$candidate" 2>/dev/null; then continue; fi
        "$sshd" -D -e -f /dev/null -p "$candidate" -h "$dir/host_key" \
            -o ListenAddress=127.0.0.1 -o PidFile=none -o AuthorizedKeysFile="$dir/key.pub" \
            -o StrictModes=no -o UsePAM=no -o PermitRootLogin=prohibit-password \
            -o Subsystem='sftp internal-sftp' 2>"$dir/$name.sshd.log" &
        server[$name]=$!
        for _ in $(seq 100); do
            if ! kill -0 "${server[$name]}" 2>/dev/null; then break; fi
            if listens "$candidate" 2>/dev/null; then
                port[$name]=$candidate
                return 0
            fi
            sleep 0.05
        done
        stop_server "$name"
    done
    cat "$dir/$name.sshd.log" >&2
    fail "no SSH server for $name after $tries tries"
}

# Prints what differs between the mount and a mirror: content, names, modes, owners, times.
compare() {
    rsync --dry-run --itemize-changes --archive --checksum --omit-dir-times --delete \
        --exclude=/.proxyfs "$dir/www/" "$dir/$1/"
}
same() {
    local difference
    printf '%s$ rsync --dry-run --archive --checksum --delete %s/www/ %s/%s/%s\n' \
        "$dim" "$dir" "$dir" "$1" "$off"
    difference=$(compare "$1")
    if [ -n "$difference" ]; then
        printf '%s\n' "$difference"
        fail "$1 differs from the source"
    fi
    note "$1 is the same as the source: content, names, modes, owners, times."
}

say "Build ProxyFS"
if [ -n "${PROXYFS:-}" ]; then
    proxyfs=$(realpath "$PROXYFS")
    note "Taking $proxyfs as it is."
else
    run cargo build --release --locked
    proxyfs=$(realpath "${CARGO_TARGET_DIR:-target}/release/proxyfs")
fi

say "Start two mirrors"
note "Any account with SFTP is a mirror; nothing is installed there. These are two private SSH"
note "servers on this machine, with a key of their own to log in."
ssh-keygen -q -t ed25519 -N '' -C demo -f "$dir/host_key"
ssh-keygen -q -t ed25519 -N '' -C demo -f "$dir/key"
for name in berlin tokyo; do
    start_server "$name"
    printf '[127.0.0.1]:%s %s\n' "${port[$name]}" "$(cut -d' ' -f1,2 "$dir/host_key.pub")" \
        >>"$dir/known_hosts"
    note "$name: 127.0.0.1 port ${port[$name]}, directory $dir/$name"
done

say "Configure"
note "The source is mounted over itself: applications go on using the same path."
mkdir "$dir/www"
{
    printf '[proxyfs]\nsource = %s\nmount_point = %s\n' "$dir/www" "$dir/www"
    printf 'state_dir = %s\nrun_dir = %s\nlog_file = %s\n' "$dir/state" "$dir/run" "$dir/daemon.log"
    for name in berlin tokyo; do
        printf '\n[mirror %s]\nhost = 127.0.0.1\nport = %s\nuser = root\npath = %s\n' \
            "$name" "${port[$name]}" "$dir/$name"
        printf 'key = %s\nknown_hosts = %s\nbackoff_max = 2s\n' "$dir/key" "$dir/known_hosts"
    done
} >"$dir/proxyfs.ini"
run cat "$dir/proxyfs.ini"
export PROXYFS_CONFIG=$dir/proxyfs.ini
run "$proxyfs" check-config

say "Start the daemon"
printf '%s$ %s run &%s\n' "$dim" "$proxyfs" "$off"
"$proxyfs" run &
daemon=$!
ready() { mountpoint -q "$dir/www" && "$proxyfs" status >/dev/null; }
for _ in $(seq 300); do
    if ready 2>/dev/null; then break; fi
    kill -0 "$daemon" 2>/dev/null || fail "the daemon ended"
    sleep 0.1
done
run "$proxyfs" wait --timeout 30
run "$proxyfs" status

say "Copy 200 files into the source: they appear on both mirrors at once"
mkdir "$dir/site"
for i in $(seq 200); do echo "<h1>Page $i</h1>" >"$dir/site/page$i.html"; done
run cp -r "$dir/site" "$dir/www/"
copied=$(date +%s%N)
run "$proxyfs" wait --timeout 60
note "Everything was on both mirrors $((($(date +%s%N) - copied) / 1000000)) ms after the copy ended."
same berlin
same tokyo

say "Tokyo goes away"
note "Its SSH server and the open connection are killed."
stop_server tokyo

say "Go on working: the application notices nothing, berlin gets everything"
run mv "$dir/www/site" "$dir/www/site-2026"
run rm "$dir/www/site-2026/page7.html"
run cp "$dir/site/page8.html" "$dir/www/index.html"
run chmod 600 "$dir/www/site-2026/page9.html"
run dd if=/dev/urandom of="$dir/www/video.mp4" bs=1M count=20 status=none
run "$proxyfs" wait berlin --timeout 60
same berlin
retrying() { "$proxyfs" status --json | grep -Eq '"state": ?"retrying"'; }
until_true "tokyo is seen to be away" retrying
run "$proxyfs" status
run "$proxyfs" tasks tokyo

say "Tokyo comes back, and catches up by itself"
start_server tokyo
run "$proxyfs" wait tokyo --timeout 60
same tokyo
run "$proxyfs" status

say "Stop"
run "$proxyfs" stop
wait "$daemon" || fail "the daemon ended with status $?"
daemon=''
if mountpoint -q "$dir/www"; then fail "the mount is still there"; fi
note "The source is an ordinary directory again, with everything in it."
same berlin
same tokyo

printf '\n%sThat was ProxyFS. Everything of the demo is removed now.%s\n' "$bold" "$off"
