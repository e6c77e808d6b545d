# make check    what has to pass before a commit: lint and test
# make soak     SECONDS=n: kill, cut and pull the plug at random for so long (for ever if not told), to the first
#               failure, and say how to repeat it
# make bench    ProxyFS beside rsync and scp, in minutes; BENCH="--help" tells how to run less of it;
#               BENCH=mount: the mount beside a directory, bindfs and mergerfs (BENCH="mount --help")
# make demo     see it work: two mirrors on this machine, one of them goes away and comes back
# make install  DESTDIR= PREFIX=/usr/local SYSCONFDIR=/etc (with another PREFIX: PREFIX/etc)

PREFIX = /usr/local
SYSCONFDIR = $(if $(filter /usr /usr/local,$(PREFIX)),/etc,$(PREFIX)/etc)
DESTDIR =
CARGO = cargo
TARGET = $(or $(CARGO_TARGET_DIR),target)

.PHONY: all build test lint check soak bench demo example install deps clean

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

# Writes proxyfs.ini.example from the table of settings.
example:
	$(CARGO) test --locked --test suite config::write_the_example_file -- --exact --ignored

install: build
	install -D -m 755 $(TARGET)/release/proxyfs $(DESTDIR)$(PREFIX)/bin/proxyfs
	install -D -m 644 proxyfs.ini.example $(DESTDIR)$(SYSCONFDIR)/proxyfs/proxyfs.ini.example
	install -d -m 755 $(DESTDIR)$(SYSCONFDIR)/proxyfs/mirrors.d

# The Debian packages for building and for the demo, where they are missing.
deps:
	packaging/install-build-deps

clean:
	$(CARGO) clean
