//! A real server, and everything that can happen to it while a writer writes. Nothing may be lost, or the writer stops and says so.

#[path = "../support/mod.rs"]
mod support;

mod kill;
mod login;
mod lost;
mod network;
mod pages;
mod refusing;
mod replica;
mod tls;
mod wakes;
mod wrong;

/// Keeps whatever it acknowledged.
const DURABLE: [&str; 6] = ["--save", "", "--appendonly", "yes", "--appendfsync", "always"];
