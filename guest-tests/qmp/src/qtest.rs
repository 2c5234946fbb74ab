// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A client of qtest, the protocol by which a test takes the place of QEMU's CPUs.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::Error;
use crate::qmp::connect;

/// QEMU's main loop answers each access; it may wait for the daemon first.
const ANSWER_TIME: Duration = Duration::from_secs(60);

/// One qtest session.
#[derive(Debug)]
pub struct Qtest {
    lines: BufReader<UnixStream>,
}

impl Qtest {
    /// Connects to the socket of `-qtest unix:PATH,server=on,wait=off`. Waits up to `patience` for
    /// QEMU to make it.
    ///
    /// # Errors
    /// [`Error::Io`] when there is no such socket by then.
    pub fn connect(path: &Path, patience: Duration) -> Result<Self, Error> {
        let stream = connect(path, patience)?;
        stream.set_read_timeout(Some(ANSWER_TIME)).map_err(Error::io("qtest"))?;
        Ok(Self { lines: BufReader::new(stream) })
    }

    /// Writes 32 bits to an I/O port.
    ///
    /// # Errors
    /// As every access: [`Error::Io`] when QEMU is gone, [`Error::Protocol`] when it refuses.
    pub fn outl(&mut self, port: u16, value: u32) -> Result<(), Error> {
        self.command(&format!("outl {port:#x} {value:#x}")).map(drop)
    }

    /// Reads 32 bits from an I/O port.
    ///
    /// # Errors
    /// As [`Self::outl`].
    pub fn inl(&mut self, port: u16) -> Result<u32, Error> {
        let value = self.number(&format!("inl {port:#x}"))?;
        Ok(value as u32)
    }

    /// Reads a guest-physical address with one access of `size` bytes: 1, 2, 4 or 8.
    ///
    /// # Errors
    /// As [`Self::outl`].
    pub fn load(&mut self, address: u64, size: u8) -> Result<u64, Error> {
        self.number(&format!("read{} {address:#x}", letter(size)?))
    }

    /// Writes a guest-physical address with one access of `size` bytes: 1, 2, 4 or 8.
    ///
    /// # Errors
    /// As [`Self::outl`].
    pub fn store(&mut self, address: u64, size: u8, value: u64) -> Result<(), Error> {
        self.command(&format!("write{} {address:#x} {value:#x}", letter(size)?)).map(drop)
    }

    /// Reads a range of guest-physical memory.
    ///
    /// # Errors
    /// As [`Self::outl`].
    pub fn read(&mut self, address: u64, length: usize) -> Result<Vec<u8>, Error> {
        if length == 0 {
            return Ok(Vec::new());
        }
        let answer = self.command(&format!("read {address:#x} {length:#x}"))?;
        let bad = || Error::Protocol(answer.clone());
        let digits = answer.trim().strip_prefix("0x").ok_or_else(bad)?;
        if digits.len() != 2 * length || !digits.is_ascii() {
            return Err(bad());
        }
        (0..length)
            .map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).map_err(|_| bad()))
            .collect()
    }

    /// Writes a range of guest-physical memory.
    ///
    /// # Errors
    /// As [`Self::outl`].
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut line = format!("write {address:#x} {:#x} 0x", bytes.len());
        for byte in bytes {
            // Writing to a String cannot fail.
            let _ = write!(line, "{byte:02x}");
        }
        self.command(&line).map(drop)
    }

    fn number(&mut self, command: &str) -> Result<u64, Error> {
        let answer = self.command(command)?;
        answer
            .trim()
            .strip_prefix("0x")
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .ok_or(Error::Protocol(answer))
    }

    /// Sends a command and returns what follows `OK`.
    fn command(&mut self, command: &str) -> Result<String, Error> {
        let failed = || Error::io(format!("qtest {command}"));
        self.lines.get_mut().write_all(format!("{command}\n").as_bytes()).map_err(failed())?;
        let mut answer = String::new();
        loop {
            answer.clear();
            if self.lines.read_line(&mut answer).map_err(failed())? == 0 {
                return Err(failed()(std::io::ErrorKind::UnexpectedEof.into()));
            }
            if answer.starts_with("IRQ ") {
                continue;
            }
            return match answer.strip_prefix("OK") {
                Some(rest) => Ok(rest.to_owned()),
                None => Err(Error::Protocol(answer)),
            };
        }
    }
}

fn letter(size: u8) -> Result<char, Error> {
    match size {
        1 => Ok('b'),
        2 => Ok('w'),
        4 => Ok('l'),
        8 => Ok('q'),
        _ => Err(Error::Protocol(format!("no access of {size} bytes"))),
    }
}
