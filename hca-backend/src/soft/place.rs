// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the bytes of a message come from or go to: a list of SGEs, a peer's address range, or bytes
//! at hand; and the copy between two such places.

use rdma_midlayer::memory::UserMemory;
use rdma_midlayer::rcu::Guard;
use rdma_midlayer::work::{SendData, Sge};

use super::faults::{Asked, Faults, Waiter};
use super::keys::{Held, Mrs, Use};

/// An SGE names memory that may not be used so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProtectionFault;

/// Whose keys count, and what they must allow.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) mrs: &'a Mrs,
    pub(crate) of: Use,
    pub(crate) guard: &'a Guard,
}

impl<'a> View<'a> {
    /// The memory of an SGE, if `len` bytes of it may be used.
    #[inline]
    fn memory(&self, sge: &Sge, len: u64) -> Result<Held<'a>, ProtectionFault> {
        self.mrs.local(sge, len, &self.of, self.guard).ok_or(ProtectionFault)
    }
}

/// Where a message's bytes are, checked.
pub(crate) enum Place<'a> {
    /// At hand; a source only.
    Bytes(&'a [u8]),
    /// In one range.
    One { memory: Held<'a>, addr: u64 },
    /// In several.
    Many { sges: &'a [Sge], view: View<'a> },
}

/// The memory of a piece.
enum Piece<'p, 'a> {
    /// The place's own.
    Of(&'p Held<'a>),
    /// Of one of its SGEs.
    Own(Held<'a>),
}

impl std::ops::Deref for Piece<'_, '_> {
    type Target = UserMemory;

    fn deref(&self) -> &UserMemory {
        match self {
            Self::Of(memory) => memory,
            Self::Own(memory) => memory,
        }
    }
}

/// Which side of a copy failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CopyFault {
    /// Where it goes.
    To,
    /// Where it comes from.
    From,
}

impl<'a> Place<'a> {
    /// The place of the first `len` bytes of a work request's data, all of it checked.
    #[inline]
    pub(crate) fn of_data(
        data: SendData<'a>,
        len: u64,
        view: View<'a>,
    ) -> Result<Self, ProtectionFault> {
        match data {
            SendData::Inline(bytes) => Ok(Self::Bytes(bytes)),
            SendData::Sges(sges) => Self::of_sges(sges, len, view),
            SendData::Flush(_) => Ok(Self::Bytes(&[])),
            SendData::Reg(_) | SendData::Bind(_) => Err(ProtectionFault),
        }
    }

    /// The place of the first `len` bytes of an SGE list; only SGEs that these bytes touch are
    /// checked.
    #[inline]
    pub(crate) fn of_sges(
        sges: &'a [Sge],
        len: u64,
        view: View<'a>,
    ) -> Result<Self, ProtectionFault> {
        if len == 0 {
            return Ok(Self::Bytes(&[]));
        }
        if let [sge] = sges {
            return Ok(Self::One { memory: view.memory(sge, len)?, addr: sge.addr });
        }
        let mut left = len;
        for sge in sges {
            let part = left.min(u64::from(sge.length));
            if part > 0 {
                view.memory(sge, part)?;
            }
            left -= part;
        }
        if left > 0 { Err(ProtectionFault) } else { Ok(Self::Many { sges, view }) }
    }

    /// Reads all of the first bytes of the place.
    pub(crate) fn read(&self, to: &mut [u8]) -> Result<(), ProtectionFault> {
        self.read_at(0, to)
    }

    /// Reads bytes that lie `offset` into the message.
    pub(crate) fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<(), ProtectionFault> {
        let mut done = 0;
        while done < to.len() {
            let left = &mut to[done..];
            if let Self::Bytes(bytes) = self {
                let from = part(bytes, offset + done as u64, left.len() as u64);
                let part = from.ok_or(ProtectionFault)?;
                left.copy_from_slice(part);
                return Ok(());
            }
            let (memory, addr, together) = self.at(offset + done as u64)?;
            let piece = together.min(left.len() as u64) as usize;
            memory.read(addr, &mut left[..piece]).map_err(|_| ProtectionFault)?;
            done += piece;
        }
        Ok(())
    }

    /// Writes bytes that lie `offset` into the message.
    pub(crate) fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), ProtectionFault> {
        let mut done = 0;
        while done < from.len() {
            let left = &from[done..];
            let (memory, addr, together) = self.at(offset + done as u64)?;
            let piece = together.min(left.len() as u64) as usize;
            memory.write(addr, &left[..piece]).map_err(|_| ProtectionFault)?;
            done += piece;
        }
        Ok(())
    }

    /// Whether pages of some of the message's bytes are missing.
    pub(crate) fn lacks(&self, offset: u64, len: u64, write: bool) -> bool {
        self.first_lack(offset, len, write).is_some()
    }

    /// Asks for the pages of some of the message's bytes that lie together in an MR, the first of which
    /// any are missing: the number of its table, and what came of it. `None` if all are there.
    pub(crate) fn ask(
        &self,
        offset: u64,
        len: u64,
        write: bool,
        faults: &Faults,
        waiter: Option<Waiter>,
    ) -> Option<(u32, Asked)> {
        let (memory, addr, len) = self.first_lack(offset, len, write)?;
        let number = memory.paging()?.number();
        let asked = faults.ask(&memory, (addr, len, write), waiter);
        (asked != Asked::Here).then_some((number, asked))
    }

    /// The first of the MRs under some of the message's bytes in which pages are missing, and which
    /// bytes of it are meant.
    fn first_lack(&self, offset: u64, len: u64, write: bool) -> Option<(Piece<'_, 'a>, u64, u64)> {
        if let Self::Bytes(_) = self {
            return None;
        }
        let mut done = 0;
        while done < len {
            let (memory, addr, together) = self.at(offset + done).ok()?;
            let piece = together.min(len - done);
            if memory.missing(addr, piece, write).is_some() {
                return Some((memory, addr, piece));
            }
            done += piece;
        }
        None
    }

    /// The memory at an offset into the message, and how many bytes from there lie together.
    fn at(&self, offset: u64) -> Result<(Piece<'_, 'a>, u64, u64), ProtectionFault> {
        match self {
            Self::Bytes(_) => Err(ProtectionFault),
            Self::One { memory, addr } => {
                let addr = addr.checked_add(offset).ok_or(ProtectionFault)?;
                Ok((Piece::Of(memory), addr, u64::MAX))
            }
            Self::Many { sges, view } => {
                let mut skip = offset;
                for sge in *sges {
                    let length = u64::from(sge.length);
                    if skip < length {
                        let addr = sge.addr.checked_add(skip).ok_or(ProtectionFault)?;
                        let memory = view.memory(sge, 0)?;
                        return Ok((Piece::Own(memory), addr, length - skip));
                    }
                    skip -= length;
                }
                Err(ProtectionFault)
            }
        }
    }
}

/// Copies `len` bytes that lie `offset` bytes into the message. The last bytes become visible last.
/// Never sleeps; the caller bounds `len`.
#[inline]
pub(crate) fn copy(
    to: &Place<'_>,
    from: &Place<'_>,
    offset: u64,
    len: u64,
) -> Result<(), CopyFault> {
    match (to, from) {
        _ if len == 0 => Ok(()),
        (Place::One { memory: to, addr: to_addr }, Place::One { memory: from, addr }) => {
            to.copy_from(to_addr + offset, from, addr + offset, len).map_err(|_| CopyFault::To)
        }
        (Place::One { memory, addr }, Place::Bytes(bytes)) => {
            let bytes = part(bytes, offset, len).ok_or(CopyFault::From)?;
            memory.write(addr + offset, bytes).map_err(|_| CopyFault::To)
        }
        _ => copy_scattered(to, from, offset, len),
    }
}

fn part(bytes: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    bytes.get(offset as usize..)?.get(..len as usize)
}

fn copy_scattered(
    to: &Place<'_>,
    from: &Place<'_>,
    offset: u64,
    len: u64,
) -> Result<(), CopyFault> {
    let mut done = 0;
    while done < len {
        let at = offset + done;
        let (to, to_addr, to_len) = to.at(at).map_err(|_| CopyFault::To)?;
        let mut piece = to_len.min(len - done);
        if let Place::Bytes(bytes) = from {
            let bytes = part(bytes, at, piece).ok_or(CopyFault::From)?;
            to.write(to_addr, bytes).map_err(|_| CopyFault::To)?;
        } else {
            let (from, addr, from_len) = from.at(at).map_err(|_| CopyFault::From)?;
            piece = piece.min(from_len);
            if !from.contains(addr, piece) {
                return Err(CopyFault::From);
            }
            to.copy_from(to_addr, &from, addr, piece).map_err(|_| CopyFault::To)?;
        }
        done += piece;
    }
    Ok(())
}
