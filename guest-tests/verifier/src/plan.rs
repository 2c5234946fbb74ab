// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which operations are checked: every kind at many lengths and offsets, in one and in several
//! pieces; and what the bytes are. How they are done and checked is in `roles`.

use anyhow::{Context, Result, anyhow, bail};

use crate::verbs::Opcode;

/// Bytes around a message's place that must stay as they are.
pub const GUARD: usize = 256;
/// Offsets are below this.
pub const MAX_OFFSET: usize = 8192;

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub opcode: Opcode,
    /// Bytes of the message.
    pub length: usize,
    /// Where it is in the active side's memory, behind the first guard.
    pub local_offset: usize,
    /// Where it is in the passive side's memory, behind the first guard.
    pub remote_offset: usize,
    /// SGEs of the work request and of the receive.
    pub pieces: usize,
    /// Work requests that it is split into, of which only the last is signalled.
    pub chain: usize,
    /// Whether the data goes inline.
    pub inline: bool,
    /// Immediate data of the opcodes that have it.
    pub immediate: u32,
    /// What the bytes are made from.
    pub seed: u64,
}

impl Opcode {
    /// Whether the passive side needs a receive for it.
    pub fn consumes_receive(self) -> bool {
        matches!(self, Self::Send | Self::SendWithImm | Self::WriteWithImm)
    }

    /// Whether it carries immediate data.
    pub fn has_immediate(self) -> bool {
        matches!(self, Self::SendWithImm | Self::WriteWithImm)
    }

    fn from_number(number: u32) -> Option<Self> {
        ALL.into_iter().find(|opcode| *opcode as u32 == number)
    }
}

const ALL: [Opcode; 5] =
    [Opcode::Send, Opcode::SendWithImm, Opcode::Write, Opcode::WriteWithImm, Opcode::Read];

/// Lengths round what could go wrong: nothing, words, inline limits, cache lines, path MTUs,
/// pages, and some that are nothing round at all.
const LENGTHS: [usize; 34] = [
    0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 31, 32, 33, 63, 64, 65, 127, 255, 256, 257, 1000, 1023, 1024,
    1025, 2048, 4095, 4096, 4097, 8191, 12_345, 65_535, 65_536, 300_007, 1_048_576,
];

/// Longer messages are tried at fewer offsets: bytes are slow under emulation.
const LONG: usize = 65_000;

/// All operations for one direction, with lengths up to `max_length`.
pub fn plan(seed: u64, max_length: usize, max_inline: usize) -> Vec<Step> {
    let mut random = Random(seed);
    let mut steps = Vec::new();
    for length in LENGTHS.into_iter().filter(|length| *length <= max_length) {
        for opcode in ALL {
            let mut add = |local_offset, remote_offset, pieces: usize, chain, inline| {
                steps.push(Step {
                    opcode,
                    length,
                    local_offset,
                    remote_offset,
                    pieces: pieces.min(length.max(1)),
                    chain,
                    inline,
                    immediate: random.next() as u32,
                    seed: random.next(),
                });
            };
            add(0, 0, 1, 1, false);
            add(4095, 4093, 4, 1, false);
            if length > LONG {
                continue;
            }
            add(1, 0, 1, 1, false);
            add(0, 3, 2, 1, false);
            if length <= max_inline && length > 0 && opcode != Opcode::Read {
                add(5, 11, 1, 1, true);
            }
            if length >= 16 && matches!(opcode, Opcode::Write | Opcode::Read) {
                add(2, 63, 1, 16, false);
            }
        }
        for opcode in ALL {
            let mut below = |limit: usize| (random.next() % limit as u64) as usize;
            let (local_offset, remote_offset) = (below(MAX_OFFSET), below(MAX_OFFSET));
            let pieces = (1 + below(4)).min(length.max(1));
            steps.push(Step {
                opcode,
                length,
                local_offset,
                remote_offset,
                pieces,
                chain: 1,
                inline: false,
                immediate: random.next() as u32,
                seed: random.next(),
            });
        }
    }
    steps
}

/// Splits `length` bytes into `parts` pieces, none of them empty but where there is nothing:
/// (offset, length) of each.
pub fn split(length: usize, parts: usize) -> Vec<(usize, usize)> {
    (0..parts)
        .map(|part| {
            let (from, to) = (length * part / parts, length * (part + 1) / parts);
            (from, to - from)
        })
        .filter(|(_, piece)| *piece > 0)
        .collect()
}

impl Step {
    /// The step as one line for the passive side.
    pub fn to_line(&self) -> String {
        format!(
            "step {} {} {} {} {} {}",
            self.opcode as u32,
            self.length,
            self.remote_offset,
            self.pieces,
            self.immediate,
            self.seed
        )
    }

    /// The passive side's view of a step from its line, without the word `step`.
    ///
    /// # Errors
    /// When it is no such line, or names a place outside of `max_length`'s memory.
    pub fn from_line(rest: &str, max_length: usize) -> Result<Self> {
        let numbers: Vec<u64> = rest
            .split_whitespace()
            .map(|word| word.parse().context("a number in a step"))
            .collect::<Result<_>>()?;
        let &[opcode, length, remote_offset, pieces, immediate, seed] = numbers.as_slice() else {
            bail!("a step has 6 numbers, not {}", numbers.len());
        };
        let step = Self {
            opcode: Opcode::from_number(u32::try_from(opcode)?).context("no such opcode")?,
            length: usize::try_from(length)?,
            local_offset: 0,
            remote_offset: usize::try_from(remote_offset)?,
            pieces: usize::try_from(pieces)?,
            chain: 1,
            inline: false,
            immediate: u32::try_from(immediate)?,
            seed,
        };
        if step.length > max_length || step.remote_offset >= MAX_OFFSET || step.pieces > 4 {
            bail!("a step outside of the memory: {step:?}");
        }
        Ok(step)
    }
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }
}

fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Eight bytes of a message made from `seed`: bytes 8 × `index` and following.
fn word(seed: u64, index: usize) -> [u8; 8] {
    mix(seed.wrapping_add(index as u64)).to_le_bytes()
}

/// The same of what is round a message's place, and in it before the message came: in every byte
/// other than what the message will be.
fn background(seed: u64, index: usize) -> [u8; 8] {
    (!mix(seed.wrapping_add(index as u64))).to_le_bytes()
}

/// The three parts of a place: guard, message, guard.
const fn parts(length: usize) -> [(usize, usize); 3] {
    [(0, GUARD), (GUARD, length - GUARD), (length - GUARD, length)]
}

/// The eight bytes that part `part` of a place should have at its `index`-th word.
fn wanted(part: usize, seed: u64, index: usize, with_message: bool) -> [u8; 8] {
    match part {
        0 => background(!seed, index),
        1 if with_message => word(seed, index),
        1 => background(seed, index),
        _ => background(!seed ^ 1, index),
    }
}

/// Fills a message's place and its guards: with the message, or with what is there before it.
/// `place` begins with a guard and ends with one.
pub fn fill(place: &mut [u8], seed: u64, with_message: bool) {
    for (part, (from, to)) in parts(place.len()).into_iter().enumerate() {
        for (index, chunk) in place[from..to].chunks_mut(8).enumerate() {
            let bytes = wanted(part, seed, index, with_message);
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}

/// Checks a place that was filled, and then got its message or didn't.
///
/// # Errors
/// Names the first wrong byte.
pub fn check(place: &[u8], seed: u64, with_message: bool) -> Result<()> {
    for (part, (from, to)) in parts(place.len()).into_iter().enumerate() {
        for (index, chunk) in place[from..to].chunks(8).enumerate() {
            let bytes = wanted(part, seed, index, with_message);
            if *chunk != bytes[..chunk.len()] {
                let at = (0..chunk.len()).find(|at| chunk[*at] != bytes[*at]).unwrap_or(0);
                return Err(wrong(part, index * 8 + at, bytes[at], chunk[at], with_message));
            }
        }
    }
    Ok(())
}

fn wrong(part: usize, at: usize, wanted: u8, found: u8, with_message: bool) -> anyhow::Error {
    let place = match part {
        0 => format!("{} bytes before the message", GUARD - at),
        1 => format!("byte {at} of the message's place"),
        _ => format!("{at} bytes behind the message's end"),
    };
    let never = if part == 1 && with_message && found == !wanted { " (never written)" } else { "" };
    anyhow!("{place} there is {found:#04x} instead of {wanted:#04x}{never}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_names_the_first_wrong_byte_in_the_message_and_in_the_guards() {
        let mut place = vec![0; GUARD + 100 + GUARD];
        fill(&mut place, 7, true);
        check(&place, 7, true).unwrap();
        place[GUARD + 41] ^= 1;
        assert!(check(&place, 7, true).unwrap_err().to_string().contains("byte 41 of the message"));
        place[GUARD + 41] ^= 1;
        place[GUARD + 100] ^= 1;
        assert!(check(&place, 7, true).unwrap_err().to_string().contains("0 bytes behind"));
    }

    #[test]
    fn a_byte_that_was_never_written_is_always_noticed() {
        let mut place = vec![0; GUARD + 4096 + GUARD];
        fill(&mut place, 99, false);
        for index in 0..4096 {
            assert_ne!(place[GUARD + index], word(99, index / 8)[index % 8]);
        }
    }

    #[test]
    fn pieces_cover_a_length_without_holes() {
        for (length, parts) in [(0, 1), (1, 1), (5, 4), (4096, 3), (16, 16)] {
            let mut next = 0;
            for (from, piece) in split(length, parts) {
                assert_eq!(from, next);
                next += piece;
            }
            assert_eq!(next, length);
        }
    }

    #[test]
    fn a_plan_has_every_opcode_and_fits_the_memory() {
        let steps = plan(1, 1 << 20, 64);
        for opcode in ALL {
            assert!(steps.iter().filter(|step| step.opcode == opcode).count() > 100);
        }
        for step in &steps {
            assert!(step.remote_offset < MAX_OFFSET && step.local_offset < MAX_OFFSET);
            let line = step.to_line();
            let seen = Step::from_line(line.strip_prefix("step ").unwrap(), 1 << 20).unwrap();
            assert_eq!((seen.length, seen.seed), (step.length, step.seed));
        }
    }
}
