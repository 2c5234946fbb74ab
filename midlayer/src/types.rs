// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The words of the verbs: numbers, keys, addresses, states, rights, codes.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u32);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

number!(
    /// Queue pair number: 24 bits, unique within a context.
    Qpn
);
number!(
    /// Completion queue number, unique within a context.
    Cqn
);
number!(
    /// Shared receive queue number, unique within a context.
    Srqn
);
number!(
    /// Local key of an MR.
    LKey
);
number!(
    /// Remote key of an MR or a memory window.
    RKey
);

/// Packet sequence number: 24 bits, in wrapping order (IBA 9.7.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Psn(u32);

impl Psn {
    /// The low 24 bits of a number.
    pub const fn new(value: u32) -> Self {
        Self(value & 0x00ff_ffff)
    }

    /// 0 to 2^24 - 1.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The PSN that comes `n` later.
    pub const fn plus(self, n: u32) -> Self {
        Self::new(self.0.wrapping_add(n))
    }

    /// How far `self` is ahead of `other`: -2^23 to 2^23 - 1.
    pub const fn since(self, other: Self) -> i32 {
        ((self.0.wrapping_sub(other.0) << 8) as i32) >> 8
    }
}

/// Global identifier: an IPv6 address, or an IPv4 one mapped into it (RoCEv2).
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Gid(pub [u8; 16]);

impl fmt::Debug for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = std::net::Ipv6Addr::from(self.0);
        match address.to_ipv4_mapped() {
            Some(v4) => v4.fmt(f),
            None => address.fmt(f),
        }
    }
}

impl Gid {
    /// Whether it names a multicast group: an IPv6 one, or an IPv4 one as a mapped address, as RoCEv2
    /// has it (the kernel's `rdma_is_multicast_addr`).
    pub fn is_multicast(&self) -> bool {
        let address = std::net::Ipv6Addr::from(self.0);
        address.is_multicast() || address.to_ipv4_mapped().is_some_and(|v4| v4.is_multicast())
    }
}

impl Qpn {
    /// Whom a datagram to a multicast group is for (IBA 10.5.1).
    pub const MULTICAST: Self = Self(0xff_ffff);
}

impl LKey {
    /// All memory that the consumer can use for DMA, in the work requests of privileged QPs
    /// (`local_dma_lkey`); what that is says `Context::set_dma_memory`.
    pub const LOCAL_DMA: Self = Self(1);
}

/// Access rights (IBA 10.6.3), as a set. Local read is always allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Access(pub u32);

impl Access {
    /// Nothing but local read.
    pub const NONE: Self = Self(0);
    /// Local write.
    pub const LOCAL_WRITE: Self = Self(1);
    /// Remote write; needs local write.
    pub const REMOTE_WRITE: Self = Self(2);
    /// Remote read.
    pub const REMOTE_READ: Self = Self(4);
    /// Remote atomics; needs local write.
    pub const REMOTE_ATOMIC: Self = Self(8);
    /// Memory windows may be bound.
    pub const MW_BIND: Self = Self(16);
    /// Addresses count from 0.
    pub const ZERO_BASED: Self = Self(32);
    /// FLUSH until what was written is visible to the consumer (IBA annex A19).
    pub const FLUSH_GLOBAL: Self = Self(1 << 8);
    /// FLUSH until what was written outlives a loss of power.
    pub const FLUSH_PERSISTENT: Self = Self(1 << 9);
    /// Relaxed ordering: accepted, without effect.
    pub const RELAXED_ORDERING: Self = Self(1 << 20);

    /// Whether all rights of `other` are in the set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The rights of both.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether any remote right is in the set.
    pub const fn is_remote(self) -> bool {
        self.0 & 0xe != 0
    }
}

impl std::ops::BitOr for Access {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        self.union(other)
    }
}

macro_rules! code {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $value:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$vdoc])* $variant = $value,)* }

        impl $name {
            /// The variant with this code.
            pub const fn from_code(code: u8) -> Option<Self> {
                match code {
                    $($value => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// The code, as the field numbers it.
            pub const fn code(self) -> u8 {
                self as u8
            }
        }
    };
}

code!(
    /// Transport of a QP, numbered as in libibverbs.
    QpType {
        /// General services interface: QP1.
        Gsi = 1,
        /// Reliable connection.
        Rc = 2,
        /// Unreliable connection.
        Uc = 3,
        /// Unreliable datagram.
        Ud = 4,
        /// Initiator of an extended reliable connection: sends only.
        XrcIni = 9,
        /// Target of an extended reliable connection: receives into SRQs only.
        XrcTgt = 10,
    }
);

code!(
    /// Kind of a memory window (IBA 10.6.7.2.1), numbered as in libibverbs.
    MwType {
        /// Bound by `bind_mw`, to any QP of the PD.
        Type1 = 1,
        /// Bound by a BIND_MW work request, to one QP, with a key whose tag the consumer chooses.
        Type2 = 2,
    }
);

code!(
    /// QP state (IBA 10.3.1).
    QpState {
        /// Reset.
        Reset = 0,
        /// Initialized.
        Init = 1,
        /// Ready to receive.
        Rtr = 2,
        /// Ready to send.
        Rts = 3,
        /// Send queue drained.
        Sqd = 4,
        /// Send queue error.
        Sqe = 5,
        /// Error.
        Err = 6,
    }
);

code!(
    /// Path MTU (IBA code).
    Mtu {
        /// 256 bytes.
        Mtu256 = 1,
        /// 512 bytes.
        Mtu512 = 2,
        /// 1024 bytes.
        Mtu1024 = 3,
        /// 2048 bytes.
        Mtu2048 = 4,
        /// 4096 bytes.
        Mtu4096 = 5,
    }
);

impl Mtu {
    /// Bytes of payload in a packet.
    pub const fn bytes(self) -> usize {
        128 << self as usize
    }
}

code!(
    /// Port state (IBA 14.2.5.6).
    PortState {
        /// Down.
        Down = 1,
        /// Initialize.
        Init = 2,
        /// Armed.
        Armed = 3,
        /// Active.
        Active = 4,
    }
);

code!(
    /// What a send work request asks for, numbered as in the device's WQEs and libibverbs.
    WrOpcode {
        /// RDMA WRITE.
        RdmaWrite = 0,
        /// RDMA WRITE with immediate data.
        RdmaWriteWithImm = 1,
        /// SEND.
        Send = 2,
        /// SEND with immediate data.
        SendWithImm = 3,
        /// RDMA READ.
        RdmaRead = 4,
        /// Compare and swap.
        AtomicCmpAndSwp = 5,
        /// Fetch and add.
        AtomicFetchAndAdd = 6,
        /// Local invalidate.
        LocalInv = 7,
        /// Bind a memory window of type 2.
        BindMw = 8,
        /// SEND with invalidate.
        SendWithInv = 9,
        /// RDMA FLUSH (IBA annex A19).
        Flush = 14,
        /// Atomic write of 8 bytes (IBA annex A19).
        AtomicWrite = 15,
        /// Fast registration.
        RegMr = 32,
    }
);

code!(
    /// What a completion is of, numbered as in libibverbs.
    WcOpcode {
        /// SEND of any kind.
        Send = 0,
        /// RDMA WRITE of any kind.
        RdmaWrite = 1,
        /// RDMA READ.
        RdmaRead = 2,
        /// Compare and swap.
        CompSwap = 3,
        /// Fetch and add.
        FetchAdd = 4,
        /// Bind of a memory window.
        BindMw = 5,
        /// Local invalidate.
        LocalInv = 6,
        /// Fast registration.
        RegMr = 7,
        /// RDMA FLUSH.
        Flush = 8,
        /// Atomic write.
        AtomicWrite = 9,
        /// A message received.
        Recv = 128,
        /// Immediate data received after an RDMA WRITE.
        RecvRdmaWithImm = 129,
    }
);

impl WcOpcode {
    /// Whether it is of a receive queue.
    pub const fn is_recv(self) -> bool {
        self as u8 & 128 != 0
    }
}

impl From<WrOpcode> for WcOpcode {
    fn from(op: WrOpcode) -> Self {
        match op {
            WrOpcode::RdmaWrite | WrOpcode::RdmaWriteWithImm => Self::RdmaWrite,
            WrOpcode::Send | WrOpcode::SendWithImm | WrOpcode::SendWithInv => Self::Send,
            WrOpcode::RdmaRead => Self::RdmaRead,
            WrOpcode::AtomicCmpAndSwp => Self::CompSwap,
            WrOpcode::AtomicFetchAndAdd => Self::FetchAdd,
            WrOpcode::LocalInv => Self::LocalInv,
            WrOpcode::BindMw => Self::BindMw,
            WrOpcode::RegMr => Self::RegMr,
            WrOpcode::Flush => Self::Flush,
            WrOpcode::AtomicWrite => Self::AtomicWrite,
        }
    }
}

code!(
    /// Status of a completion (IBA 10.10.3), numbered as in libibverbs.
    WcStatus {
        /// Success.
        Success = 0,
        /// Local length error.
        LocLenErr = 1,
        /// Local QP operation error.
        LocQpOpErr = 2,
        /// Local protection error.
        LocProtErr = 4,
        /// Flushed: the QP went to ERR first.
        WrFlushErr = 5,
        /// Memory window bind error.
        MwBindErr = 6,
        /// Bad response.
        BadRespErr = 7,
        /// Local access error.
        LocAccessErr = 8,
        /// Remote invalid request.
        RemInvReqErr = 9,
        /// Remote access error.
        RemAccessErr = 10,
        /// Remote operation error.
        RemOpErr = 11,
        /// Transport retries exceeded.
        RetryExcErr = 12,
        /// RNR retries exceeded.
        RnrRetryExcErr = 13,
        /// Aborted by the peer.
        RemAbortErr = 16,
        /// Fatal.
        FatalErr = 19,
        /// Any other.
        GeneralErr = 21,
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn psn_order_wraps_at_24_bits() {
        let last = Psn::new(0x00ff_ffff);
        assert_eq!(last.plus(1), Psn::new(0));
        assert_eq!(Psn::new(0).since(last), 1);
        assert_eq!(last.since(Psn::new(0)), -1);
        assert_eq!(Psn::new(0x80_0000).since(Psn::new(0)), -0x80_0000);
    }

    #[test]
    fn mtu_codes_are_powers_of_two_from_256() {
        let bytes: Vec<_> = (1..=5).map(|c| Mtu::from_code(c).unwrap().bytes()).collect();
        assert_eq!(bytes, [256, 512, 1024, 2048, 4096]);
        assert_eq!(Mtu::from_code(0), None);
    }

    #[test]
    fn a_mapped_ipv4_gid_prints_as_ipv4() {
        let gid = Gid(std::net::Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped().octets());
        assert_eq!(gid.to_string(), "10.0.0.1");
    }
}
