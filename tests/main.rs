//! All integration tests, one file a topic, in one program: they run in parallel, and link once.
//!
//! They use the real things: a kernel mount, OpenSSH servers of their own on free loopback ports,
//! SQLite on a disk. They need root and /dev/fuse, and fail where those are missing.

mod support;

mod adding;
mod architecture;
mod bandwidth;
mod coalescing;
mod commands;
mod config;
mod console;
mod cuts;
mod excluded;
mod full_disks;
mod hostile;
mod journal_trouble;
mod kills;
mod late;
mod mails;
mod markers;
mod mass_deletion;
mod mirror_copies;
mod mirror_errors;
mod monitoring;
mod mount;
mod offline;
mod order;
mod package;
mod pages;
mod parked;
mod parts;
mod power;
mod random_user;
mod readme;
mod relaxed;
mod repairs;
mod replay;
mod resume;
mod rights;
mod round_trips;
mod scan;
mod screens;
mod servers;
mod service;
mod sftp;
mod simulation;
mod syncs;
mod wide;
