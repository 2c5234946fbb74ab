// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The two sides of a verification. The active side posts the operations; the passive side lays
//! its memory out before each and checks it after. They speak over TCP, one line a message:
//! `step …`, `done`, `refused …`, `end` from the active side, `ready` and `ok` from the passive.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, bail};

use crate::ffi::{SendWr, WorkCompletion};
use crate::plan::{GUARD, MAX_OFFSET, Step, check, fill, split};
use crate::verbs::{
    Address, Endpoint, INLINE, Opcode, SIGNALED, STATUS_REMOTE_ACCESS_ERROR,
    STATUS_RETRIES_EXCEEDED, STATUS_SUCCESS, WITH_IMM,
};

/// Bytes of memory for messages of up to `max_length`.
pub fn memory_length(max_length: usize) -> usize {
    GUARD + MAX_OFFSET + max_length + GUARD
}

/// The connection to the other side.
pub struct Talk {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
}

impl Talk {
    /// Speaks over `stream`.
    ///
    /// # Errors
    /// When the stream can't be set up.
    pub fn over(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(std::time::Duration::from_secs(120)))?;
        Ok(Self { reader: BufReader::new(stream.try_clone()?), writer: stream })
    }

    fn say(&mut self, line: &str) -> Result<()> {
        self.writer.write_all(format!("{line}\n").as_bytes()).context("the other side is gone")
    }

    fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        let length = self.reader.read_line(&mut line).context("waiting for the other side")?;
        if length == 0 {
            bail!("the other side is gone");
        }
        Ok(line.trim().to_owned())
    }

    fn expect(&mut self, wanted: &str) -> Result<()> {
        let heard = self.hear()?;
        if heard != wanted {
            bail!("the other side says: {heard}");
        }
        Ok(())
    }

    /// Exchanges addresses.
    ///
    /// # Errors
    /// When the other side is gone or speaks another language.
    pub fn exchange(&mut self, ours: &Address) -> Result<Address> {
        let gid = u128::from_be_bytes(ours.gid);
        let Address { qp_number, psn, path_mtu, memory, rkey, .. } = ours;
        self.say(&format!("{qp_number} {psn} {gid} {path_mtu} {memory} {rkey}"))?;
        let heard = self.hear()?;
        let words: Vec<u128> = heard
            .split(' ')
            .map(|word| word.parse().with_context(|| format!("the other side says: {heard}")))
            .collect::<Result<_>>()?;
        let &[qp_number, psn, gid, path_mtu, memory, rkey] = words.as_slice() else {
            bail!("the other side says: {heard}");
        };
        Ok(Address {
            qp_number: u32::try_from(qp_number)?,
            psn: u32::try_from(psn)?,
            gid: gid.to_be_bytes(),
            path_mtu: u32::try_from(path_mtu)?,
            memory: u64::try_from(memory)?,
            rkey: u32::try_from(rkey)?,
        })
    }

    /// Waits until the other side has come as far as this one.
    ///
    /// # Errors
    /// When it is gone.
    pub fn meet(&mut self) -> Result<()> {
        self.say("here")?;
        self.expect("here")
    }
}

/// What was checked.
#[derive(Default, Debug)]
pub struct Tally {
    pub operations: usize,
    pub bytes: u64,
}

/// The active side: does all operations of the plan.
///
/// # Errors
/// At the first operation that fails, and at the first wrong byte on either side.
pub fn active(
    endpoint: &mut Endpoint,
    talk: &mut Talk,
    peer: &Address,
    steps: &[Step],
) -> Result<Tally> {
    let mut tally = Tally::default();
    for (number, step) in steps.iter().enumerate() {
        perform(endpoint, talk, peer, step)
            .with_context(|| format!("operation {number}, {step:?}"))?;
        tally.operations += 1;
        tally.bytes += step.length as u64;
    }
    talk.say("end")?;
    talk.expect("ok")?;
    Ok(tally)
}

fn perform(endpoint: &mut Endpoint, talk: &mut Talk, peer: &Address, step: &Step) -> Result<()> {
    let reads = step.opcode == Opcode::Read;
    let place = place(step.local_offset, step.length);
    fill(&mut endpoint.memory()[place.clone()], step.seed, !reads);
    talk.say(&step.to_line())?;
    talk.expect("ready")?;
    post(endpoint, peer, step)?;
    let completion = endpoint.completion()?;
    expect_success(&completion, "send queue")?;
    let last = step.chain as u64 - 1;
    if completion.wr_id != step.seed.wrapping_add(last) {
        bail!("a completion of work request {:#x}, not of the last one", completion.wr_id);
    }
    // The message is at this side now in both cases: read into it, or sent from it and untouched.
    check(&endpoint.memory()[place], step.seed, true).context("the active side's memory")?;
    talk.say("done")?;
    talk.expect("ok")
}

fn post(endpoint: &mut Endpoint, peer: &Address, step: &Step) -> Result<()> {
    let links = match step.chain {
        1 => vec![(0, step.length)],
        chain => split(step.length, chain),
    };
    let mut lists: Vec<Vec<_>> = links
        .iter()
        .map(|(from, length)| {
            split(*length, step.pieces)
                .into_iter()
                .map(|(at, piece)| endpoint.sge(GUARD + step.local_offset + from + at, piece))
                .collect()
        })
        .collect();
    let count = links.len();
    let mut requests: Vec<SendWr> = links
        .iter()
        .zip(&mut lists)
        .enumerate()
        .map(|(number, ((from, _), list))| {
            let mut request = SendWr::new(step.seed.wrapping_add(number as u64));
            request.sg_list = list.as_mut_ptr();
            request.num_sge = list.len() as i32;
            request.opcode = step.opcode as u32;
            request.flags = if number + 1 == count { SIGNALED } else { 0 };
            if step.inline {
                request.flags |= INLINE;
            }
            request.immediate = step.immediate;
            request.remote_address = peer.memory + (GUARD + step.remote_offset + from) as u64;
            request.rkey = peer.rkey;
            request
        })
        .collect();
    endpoint.post_send(&mut requests)
}

/// The active side's last operation: a WRITE that ends outside of the peer's memory region must
/// come back with a remote access error, and change nothing. The QP is in error after it. Where frames
/// get lost (`lossy`) the error may be that nobody answers.
///
/// # Errors
/// When it is not refused, or bytes were changed.
pub fn active_refused(
    endpoint: &mut Endpoint,
    talk: &mut Talk,
    peer: &Address,
    max_length: usize,
    lossy: bool,
) -> Result<()> {
    talk.say("refused")?;
    talk.expect("ready")?;
    let mut list = [endpoint.sge(GUARD, 64)];
    let mut request = SendWr::new(1);
    request.sg_list = list.as_mut_ptr();
    request.num_sge = 1;
    request.opcode = Opcode::Write as u32;
    request.flags = SIGNALED;
    request.remote_address = peer.memory + memory_length(max_length) as u64 - 32;
    request.rkey = peer.rkey;
    endpoint.post_send(std::slice::from_mut(&mut request))?;
    let completion = endpoint.completion()?;
    // A responder that has refused answers nothing any more: its NAK comes, or does not.
    let unheard = lossy && completion.status == STATUS_RETRIES_EXCEEDED;
    if completion.status != STATUS_REMOTE_ACCESS_ERROR && !unheard {
        bail!("a WRITE past the end of a region ended with status {}", completion.status);
    }
    talk.say("done")?;
    talk.expect("ok")
}

/// The passive side: serves operations until the active side is at its end.
///
/// # Errors
/// At the first completion or byte that isn't as it should be; the other side hears of it.
pub fn passive(endpoint: &mut Endpoint, talk: &mut Talk, max_length: usize) -> Result<()> {
    loop {
        let heard = talk.hear()?;
        let result = match heard.split_once(' ') {
            None if heard == "end" => return talk.say("ok"),
            None if heard == "refused" => serve_refused(endpoint, talk),
            Some(("step", rest)) => Step::from_line(rest, max_length)
                .and_then(|step| serve(endpoint, talk, &step).with_context(|| format!("{step:?}"))),
            _ => bail!("the other side says: {heard}"),
        };
        if let Err(error) = result {
            let _ = talk.say(&format!("{error:#}"));
            return Err(error);
        }
        talk.say("ok")?;
        if heard == "refused" {
            return Ok(());
        }
    }
}

fn serve(endpoint: &mut Endpoint, talk: &mut Talk, step: &Step) -> Result<()> {
    let reads = step.opcode == Opcode::Read;
    let place = place(step.remote_offset, step.length);
    fill(&mut endpoint.memory()[place.clone()], step.seed, reads);
    if step.opcode.consumes_receive() {
        // A WRITE takes a receive only for its immediate data; the receive needs no memory.
        let pieces = if step.opcode == Opcode::WriteWithImm { 0 } else { step.pieces };
        let mut list: Vec<_> = split(step.length, pieces)
            .into_iter()
            .map(|(at, piece)| endpoint.sge(GUARD + step.remote_offset + at, piece))
            .collect();
        endpoint.post_recv(!step.seed, &mut list)?;
    }
    talk.say("ready")?;
    if step.opcode.consumes_receive() {
        let completion = endpoint.completion()?;
        expect_receive(&completion, step)?;
        // Not before this side has seen the completion must the bytes be there, but then.
        check(&endpoint.memory()[place.clone()], step.seed, true).context("at the completion")?;
    }
    talk.expect("done")?;
    check(&endpoint.memory()[place], step.seed, true).context("the passive side's memory")
}

fn serve_refused(endpoint: &mut Endpoint, talk: &mut Talk) -> Result<()> {
    let memory = endpoint.memory();
    let from = memory.len() - 2 * GUARD - 64;
    fill(&mut memory[from..], 5, false);
    talk.say("ready")?;
    talk.expect("done")?;
    check(&endpoint.memory()[from..], 5, false).context("memory that a refused WRITE was aimed at")
}

fn place(offset: usize, length: usize) -> std::ops::Range<usize> {
    offset..offset + GUARD + length + GUARD
}

fn expect_receive(completion: &WorkCompletion, step: &Step) -> Result<()> {
    expect_success(completion, "receive queue")?;
    if completion.wr_id != !step.seed {
        bail!("a completion of another receive: {completion:?}");
    }
    if completion.byte_length as usize != step.length {
        bail!("byte_len is {} instead of {}", completion.byte_length, step.length);
    }
    let has_immediate = completion.flags & WITH_IMM != 0;
    if has_immediate != step.opcode.has_immediate() {
        bail!("wc_flags are {:#x}", completion.flags);
    }
    if has_immediate && completion.immediate != step.immediate {
        bail!("the immediate data is {:#x}, not {:#x}", completion.immediate, step.immediate);
    }
    Ok(())
}

fn expect_success(completion: &WorkCompletion, queue: &str) -> Result<()> {
    if completion.status != STATUS_SUCCESS {
        bail!("a completion of the {queue} has status {}", completion.status);
    }
    Ok(())
}
