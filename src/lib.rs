//! ProxyFS: a FUSE mount of a local directory whose changes are carried out on mirrors over SFTP.
//!
//! Data flows one way: kernel -> [`mount`] -> [`local`] -> [`journal`] -> [`mirror`] -> [`sftp`] ->
//! mirror host. The journal is the only wall between the file system side and the network side.
//! ARCHITECTURE.md has the promises, the invariants and where each is kept.

pub mod alarm;
pub mod change;
pub mod cli;
pub mod config;
pub mod console;
pub mod control;
pub mod daemon;
pub mod doctor;
pub mod exclude;
pub mod fault;
pub mod journal;
pub mod local;
pub mod logging;
pub mod mirror;
pub mod mount;
pub mod pages;
pub mod scan;
pub mod screen;
pub mod setup;
pub mod sftp;
pub mod status;
