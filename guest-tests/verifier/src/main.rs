// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The verifier: two of these, on two machines, check every byte that SEND, SEND_WITH_IMM, RDMA
//! WRITE, WRITE_WITH_IMM and RDMA READ move between them. It uses libibverbs alone, so it is a
//! foreign program to every device it checks.

mod ffi;
mod plan;
mod roles;
mod verbs;

use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;

use crate::plan::plan;
use crate::roles::{Talk, Tally};
use crate::verbs::{Endpoint, Retries};

/// How often, and after which of IBA's times, a packet without an answer is sent again.
const PATIENT: Retries = Retries { timeout: 17, count: 7 };
/// Where frames get lost: soon, but no sooner than a busy host lets a guest run; and not seven times, which
/// is without end in rxe.
const LOSSY: Retries = Retries { timeout: 15, count: 6 };

/// Checks every byte that RDMA operations move between two machines, both ways.
///
/// Start one without ADDRESS on one machine, and one with its ADDRESS on the other. Each side
/// first fills the place of a message and its surroundings with other bytes, so that what is
/// missing, misplaced or too much is noticed. Ends with failure at the first wrong byte, which it
/// names.
#[derive(Debug, Parser)]
struct Cli {
    /// The RDMA device
    #[arg(long, short)]
    device: String,
    /// Wait for completions by events instead of polling
    #[arg(long, short)]
    events: bool,
    /// The GID to use; by default the first RoCEv2 one of an IPv4 address
    #[arg(long, short)]
    gid_index: Option<u8>,
    /// TCP port to meet at
    #[arg(long, short, default_value_t = 18_600)]
    port: u16,
    /// What all offsets and bytes are made from (the same on both sides is not needed)
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The longest message in bytes (must be the same on both sides)
    #[arg(long, default_value_t = 1 << 20)]
    max_length: usize,
    /// The largest path MTU to use, in bytes; by default what both devices can
    #[arg(long, value_parser = parse_path_mtu)]
    path_mtu: Option<PathMtu>,
    /// Frames get lost: shorter time-outs, and nobody may have heard of a refusal
    #[arg(long)]
    lossy: bool,
    /// Only every so-manieth of the operations
    #[arg(long, default_value_t = 1, value_parser = parse_every)]
    every: usize,
    /// The other machine; without it, wait for it to come
    address: Option<String>,
}

/// A path MTU as libibverbs numbers it.
#[derive(Debug, Clone, Copy)]
struct PathMtu(u32);

fn parse_path_mtu(text: &str) -> Result<PathMtu, String> {
    match text.parse::<u32>() {
        Ok(bytes @ 256..=4096) if bytes.is_power_of_two() => Ok(PathMtu(bytes.ilog2() - 7)),
        _ => Err("256, 512, 1024, 2048 or 4096".to_owned()),
    }
}

fn parse_every(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|every| *every > 0).ok_or_else(|| "1 or more".to_owned())
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match verify(&cli) {
        Ok(tally) => {
            println!(
                "verifier: {} operations, {} bytes, {}: all as they should be",
                tally.operations,
                tally.bytes,
                if cli.events { "with events" } else { "polled" }
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("verifier: FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn verify(cli: &Cli) -> Result<Tally> {
    let length = roles::memory_length(cli.max_length);
    let psn = (cli.seed as u32).wrapping_mul(77_777).wrapping_add(std::process::id());
    let mut endpoint = Endpoint::open(&cli.device, cli.gid_index, length, cli.events, psn)?;
    if let Some(PathMtu(code)) = cli.path_mtu {
        endpoint.address.path_mtu = endpoint.address.path_mtu.min(code);
    }
    let mut talk = Talk::over(match &cli.address {
        Some(address) => connect(address, cli.port)?,
        None => {
            let listener = TcpListener::bind(("0.0.0.0", cli.port))
                .with_context(|| format!("listening at port {}", cli.port))?;
            listener.accept()?.0
        }
    })?;
    let peer = talk.exchange(&endpoint.address)?;
    endpoint.connect(&peer, if cli.lossy { LOSSY } else { PATIENT })?;
    talk.meet()?;
    let inline = endpoint.max_inline as usize;
    let steps = |seed| {
        let all = plan(seed, cli.max_length, inline).into_iter();
        all.step_by(cli.every).collect::<Vec<_>>()
    };
    if cli.address.is_some() {
        let tally = roles::active(&mut endpoint, &mut talk, &peer, &steps(cli.seed))?;
        roles::passive(&mut endpoint, &mut talk, cli.max_length)?;
        roles::passive(&mut endpoint, &mut talk, cli.max_length)?;
        Ok(tally)
    } else {
        roles::passive(&mut endpoint, &mut talk, cli.max_length)?;
        let tally = roles::active(&mut endpoint, &mut talk, &peer, &steps(!cli.seed))?;
        roles::active_refused(&mut endpoint, &mut talk, &peer, cli.max_length, cli.lossy)?;
        Ok(tally)
    }
}

/// The other side may still be on its way to listening.
fn connect(address: &str, port: u16) -> Result<TcpStream> {
    let begun = Instant::now();
    loop {
        match TcpStream::connect((address, port)) {
            Ok(stream) => return Ok(stream),
            Err(error) if begun.elapsed() > Duration::from_secs(20) => {
                return Err(error).with_context(|| format!("connecting to {address}:{port}"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}
