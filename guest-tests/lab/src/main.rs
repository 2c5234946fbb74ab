//! The lab: builds guests, starts them with the daemon, runs the whole-system tests.
fn main() {}
