# make check    what has to pass before a commit: lint and test
# make soak     SECONDS=n: kill, cut and pull the plug at random for so long (for ever if not told), to the first
#               failure, and say how to repeat it
# make bench    ProxyFS beside rsync and others, in a quarter of an hour; BENCH="--help" tells how to run less or more;
#               BENCH=mount: the mount beside a directory, bindfs and mergerfs (BENCH="mount --help")
# make demo     see it work: two mirrors on this machine, one of them goes away and comes back
# make install  DESTDIR= PREFIX=/usr/local SYSCONFDIR=/etc (with another PREFIX: PREFIX/etc); make uninstall
#               takes all of it away again but the configuration and the log
# make deb      a Debian source and binary package, in target/deb
# make test-package   installs, upgrades, removes and purges that package on overlays of this machine, with its init script
#               and under a systemd of its own

PREFIX = /usr/local
SYSCONFDIR = $(if $(filter /usr /usr/local,$(PREFIX)),/etc,$(PREFIX)/etc)
DESTDIR =
CARGO = cargo
TARGET = $(or $(CARGO_TARGET_DIR),target)

.PHONY: all build test lint check soak bench demo example tables install install-files uninstall deb test-package deps clean

all: build

build:
	$(CARGO) build --release --locked

# The tests mount file systems and start SSH servers of their own: they need root and /dev/fuse.
test:
	packaging/install-build-deps test
	$(CARGO) test --locked

lint: deps
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings

check: lint test

# What is left to chance in the tests, with other chances.
SECONDS =
soak:
	packaging/install-build-deps test
	end=$$(($$(date +%s) + $(or $(SECONDS),1000000000))); \
	while left=$$((end - $$(date +%s))); [ $$left -gt 0 ]; do \
		PROXYFS_SOAK_SECONDS=$$((left < 60 ? left : 60)) $(CARGO) test --locked --test suite -- \
			--ignored --nocapture --test-threads 1 soak_ || exit 1; \
	done

# Exit status 1 when a goal is missed. It mounts and starts SSH servers of its own, as the tests do.
BENCH =
bench:
	packaging/install-build-deps bench
	$(CARGO) bench --locked --bench $(or $(filter mount,$(BENCH)),side_by_side) -- $(filter-out mount,$(BENCH))

demo:
	packaging/demo.sh

# Writes the tables of commands and settings in README.md, from what --help and the man pages are made of.
tables:
	$(CARGO) test --locked --test suite readme::write_the_tables_of_the_readme -- --exact --ignored

# Writes proxyfs.ini.example from the table of settings.
example:
	$(CARGO) test --locked --test suite config::write_the_example_file -- --exact --ignored

# Where mount(8) looks for its helpers, and zsh for completion.
HELPERS = $(if $(filter /usr/local,$(PREFIX)),/sbin,$(PREFIX)/sbin)
ZSH = $(PREFIX)/share/zsh/$(if $(filter /usr,$(PREFIX)),vendor-completions,site-functions)
# The program that is installed, and how: stripped.
PROXYFS ?= $(TARGET)/release/proxyfs
STRIP = -s
# What starts the program; debhelper does this part itself.
SERVICES = yes
SERVICE_FILES = $(PREFIX)/lib/systemd/system/proxyfs.service $(PREFIX)/lib/systemd/system/proxyfs@.service \
	$(SYSCONFDIR)/init.d/proxyfs $(SYSCONFDIR)/logrotate.d/proxyfs
FILES = $(PREFIX)/bin/proxyfs $(HELPERS)/mount.proxyfs $(PREFIX)/share/man/man8/proxyfs.8 \
	$(PREFIX)/share/man/man8/mount.proxyfs.8 $(PREFIX)/share/man/man5/proxyfs.ini.5 \
	$(PREFIX)/share/bash-completion/completions/proxyfs $(PREFIX)/share/fish/vendor_completions.d/proxyfs.fish \
	$(ZSH)/_proxyfs $(SYSCONFDIR)/proxyfs/proxyfs.ini.example $(SERVICE_FILES)

install: build install-files

# All but the build: with PROXYFS=FILE, of that program.
install-files:
	$(PROXYFS) pages $(TARGET)/pages
	install -D -m 755 $(STRIP) $(PROXYFS) $(DESTDIR)$(PREFIX)/bin/proxyfs
	install -D -m 755 packaging/mount.proxyfs $(DESTDIR)$(HELPERS)/mount.proxyfs
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man8 $(TARGET)/pages/proxyfs.8 packaging/mount.proxyfs.8
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man5 $(TARGET)/pages/proxyfs.ini.5
	install -D -m 644 $(TARGET)/pages/proxyfs.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/proxyfs
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d $(TARGET)/pages/proxyfs.fish
	install -D -m 644 -t $(DESTDIR)$(ZSH) $(TARGET)/pages/_proxyfs
ifeq ($(SERVICES),yes)
	install -d -m 755 $(DESTDIR)$(SYSCONFDIR)/proxyfs/mirrors.d
	install -m 644 -t $(DESTDIR)$(SYSCONFDIR)/proxyfs proxyfs.ini.example
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/lib/systemd/system packaging/systemd/*.service
	install -D -m 755 packaging/proxyfs.init $(DESTDIR)$(SYSCONFDIR)/init.d/proxyfs
	install -D -m 644 packaging/proxyfs.logrotate $(DESTDIR)$(SYSCONFDIR)/logrotate.d/proxyfs
	sed -i 's,/usr/bin/proxyfs,$(PREFIX)/bin/proxyfs,; s,/etc/proxyfs/,$(SYSCONFDIR)/proxyfs/,' \
		$(DESTDIR)$(PREFIX)/lib/systemd/system/proxyfs.service $(DESTDIR)$(PREFIX)/lib/systemd/system/proxyfs@.service \
		$(DESTDIR)$(SYSCONFDIR)/init.d/proxyfs
endif

# The configuration and the log stay, and a daemon that runs goes on: stop it first.
uninstall:
	rm -f $(addprefix $(DESTDIR),$(FILES))
	-rmdir --ignore-fail-on-non-empty $(DESTDIR)$(SYSCONFDIR)/proxyfs/mirrors.d $(DESTDIR)$(SYSCONFDIR)/proxyfs

deb:
	packaging/build-deb

test-package:
	packaging/test-package
	packaging/test-systemd

# The Debian packages for building and for the demo, where they are missing.
deps:
	packaging/install-build-deps

clean:
	$(CARGO) clean
