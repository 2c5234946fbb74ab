// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is round a RoCEv2 packet (annex A17): Ethernet, 802.1Q, IPv4 or IPv6, UDP, and the ICRC; and
//! frames in a batch. What is in it is in `packet`.

use std::net::Ipv6Addr;

use rdma_midlayer::types::{Gid, Qpn};

/// UDP port of RoCEv2.
pub const UDP_PORT: u16 = 4791;
/// Bytes of a GRH.
pub const GRH_LEN: usize = 40;
/// Bytes of the ICRC.
pub const ICRC_LEN: usize = 4;
/// Bytes of the longest frame that is made here: tagged, IPv6, the longest headers and payload.
pub const MAX_FRAME: usize = 18 + 40 + 8 + 12 + 32 + 4096 + ICRC_LEN;

const PROTOCOL_UDP: u8 = 17;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const UDP_LEN: usize = 8;
/// Of eight bytes of ones, which stand for the LRH that RoCEv2 has not.
const ICRC_SEED: u32 = 0x2144_df1c;

/// A RoCEv2 packet with its addresses. Made by `parse`, so all its lengths are right.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// Whose.
    pub source: Gid,
    /// For whom.
    pub dest: Gid,
    /// VLAN, if it had a tag that names one.
    pub vlan: Option<u16>,
    /// Priority, which is the service level (annex A17.9.2.1), if it had a tag; else 0.
    pub priority: u8,
    /// It met congestion (ECN: CE).
    pub congested: bool,
    /// The IP header, 20 or 40 bytes.
    ip: &'a [u8],
    udp: &'a [u8; UDP_LEN],
    /// BTH to the end of the padding.
    pub transport: &'a [u8],
    icrc: [u8; ICRC_LEN],
}

/// Why a frame is no RoCEv2 packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotRoce {
    /// It is something else.
    Other,
    /// It is for port 4791 and its lengths or its header checksum are wrong.
    Malformed,
}

impl<'a> Datagram<'a> {
    /// Reads a frame's headers.
    ///
    /// # Errors
    /// What it is instead.
    pub fn parse(frame: &'a [u8]) -> Result<Self, NotRoce> {
        let (mut ethertype, mut rest) = frame
            .get(12..)
            .and_then(<[u8]>::split_first_chunk::<2>)
            .map(|(t, rest)| (u16::from_be_bytes(*t), rest))
            .ok_or(NotRoce::Other)?;
        let (mut vlan, mut priority) = (None, 0);
        if ethertype == ETHERTYPE_VLAN {
            let (tag, after) = rest.split_first_chunk::<4>().ok_or(NotRoce::Other)?;
            // A tag with VLAN 0 carries a priority only.
            vlan = Some(u16::from_be_bytes([tag[0], tag[1]]) & 0xfff).filter(|id| *id != 0);
            priority = tag[0] >> 5;
            ethertype = u16::from_be_bytes([tag[2], tag[3]]);
            rest = after;
        }
        let parsed = match ethertype {
            ETHERTYPE_IPV4 => ipv4(rest),
            ETHERTYPE_IPV6 => ipv6(rest),
            _ => Err(NotRoce::Other),
        };
        let (source, dest, congested, ip, payload) = parsed?;
        let (udp, rest) = payload.split_first_chunk::<UDP_LEN>().ok_or(NotRoce::Other)?;
        if u16::from_be_bytes([udp[2], udp[3]]) != UDP_PORT {
            return Err(NotRoce::Other);
        }
        let len = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
        if len != payload.len() || !rest.len().is_multiple_of(4) {
            return Err(NotRoce::Malformed);
        }
        let (transport, icrc) = rest.split_last_chunk::<ICRC_LEN>().ok_or(NotRoce::Malformed)?;
        if ip.len() == IPV4_LEN && checksum(ip) != 0 {
            return Err(NotRoce::Malformed);
        }
        Ok(Self { source, dest, vlan, priority, congested, ip, udp, transport, icrc: *icrc })
    }

    /// Whether the packet is as it was sent.
    pub fn icrc_is_right(&self) -> bool {
        icrc(self.ip, self.udp, self.transport) == u32::from_le_bytes(self.icrc)
    }

    /// What a datagram's receiver finds before the data: the IPv6 header, or zeros and the IPv4 one.
    pub fn grh(&self) -> [u8; GRH_LEN] {
        let mut grh = [0; GRH_LEN];
        grh[GRH_LEN - self.ip.len()..].copy_from_slice(self.ip);
        grh
    }
}

type Ip<'a> = (Gid, Gid, bool, &'a [u8], &'a [u8]);

fn ipv4(packet: &[u8]) -> Result<Ip<'_>, NotRoce> {
    let (ip, _) = packet.split_at_checked(IPV4_LEN).ok_or(NotRoce::Other)?;
    let fragment = u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff != 0;
    if ip[0] != 0x45 || ip[9] != PROTOCOL_UDP || fragment {
        return Err(NotRoce::Other);
    }
    // Ethernet pads short frames.
    let len = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
    let payload = packet.get(IPV4_LEN..len).ok_or(NotRoce::Other)?;
    let gid = |at: usize| {
        let mut gid = [0; 16];
        gid[10..12].fill(0xff);
        gid[12..].copy_from_slice(&ip[at..at + 4]);
        Gid(gid)
    };
    Ok((gid(12), gid(16), ip[1] & 3 == 3, ip, payload))
}

fn ipv6(packet: &[u8]) -> Result<Ip<'_>, NotRoce> {
    let (ip, rest) = packet.split_at_checked(IPV6_LEN).ok_or(NotRoce::Other)?;
    if ip[0] >> 4 != 6 || ip[6] != PROTOCOL_UDP {
        return Err(NotRoce::Other);
    }
    let len = usize::from(u16::from_be_bytes([ip[4], ip[5]]));
    let payload = rest.get(..len).ok_or(NotRoce::Other)?;
    let gid = |at: usize| {
        let mut gid = [0; 16];
        gid.copy_from_slice(&ip[at..at + 16]);
        Gid(gid)
    };
    Ok((gid(8), gid(24), ip[1] >> 4 & 3 == 3, ip, payload))
}

/// The checksum of an IPv4 header (RFC 1071).
pub(crate) fn checksum(header: &[u8]) -> u16 {
    let words = header.as_chunks::<2>().0;
    let mut sum: u32 = words.iter().map(|w| u32::from(u16::from_be_bytes(*w))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The ICRC over a packet (annex A17.3): what routers may change counts as ones.
fn icrc(ip: &[u8], udp: &[u8; UDP_LEN], transport: &[u8]) -> u32 {
    const BTH: usize = 12;
    let mut head = [0; IPV6_LEN + UDP_LEN + BTH];
    let (ip_len, bth_len) = (ip.len(), transport.len().min(BTH));
    let head = &mut head[..ip_len + UDP_LEN + bth_len];
    head[..ip_len].copy_from_slice(ip);
    if ip_len == IPV4_LEN {
        head[1] = 0xff;
        head[8] = 0xff;
        head[10..12].fill(0xff);
    } else {
        head[0] |= 0x0f;
        head[1..4].fill(0xff);
        head[7] = 0xff;
    }
    let (udp_at, bth_at) = (ip_len, ip_len + UDP_LEN);
    head[udp_at..bth_at].copy_from_slice(udp);
    head[udp_at + 6..bth_at].fill(0xff);
    head[bth_at..].copy_from_slice(&transport[..bth_len]);
    if bth_len > 4 {
        head[bth_at + 4] = 0xff;
    }
    let mut hasher = crc32fast::Hasher::new_with_initial(ICRC_SEED);
    hasher.update(head);
    hasher.update(&transport[bth_len..]);
    hasher.finalize()
}

/// Makes the ICRC of a frame right, for who has changed the frame. Whether it is a RoCEv2 packet.
pub fn seal(frame: &mut [u8]) -> bool {
    let Ok(datagram) = Datagram::parse(frame) else { return false };
    let right = icrc(datagram.ip, datagram.udp, datagram.transport).to_le_bytes();
    let end = datagram.icrc_end(frame);
    frame[end - ICRC_LEN..end].copy_from_slice(&right);
    true
}

impl Datagram<'_> {
    /// Where in its frame the ICRC ends.
    fn icrc_end(&self, frame: &[u8]) -> usize {
        self.transport.as_ptr().addr() - frame.as_ptr().addr() + self.transport.len() + ICRC_LEN
    }
}

/// The addresses of a way to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// MAC of the device that sends.
    pub smac: [u8; 6],
    /// MAC of the next hop.
    pub dmac: [u8; 6],
    /// VLAN, and what is before it in the tag.
    pub vlan: Option<u16>,
    /// Own GID.
    pub sgid: Gid,
    /// The peer's.
    pub dgid: Gid,
    /// Flow label, 20 bits.
    pub flow_label: u32,
    /// Traffic class, ECN bits included.
    pub traffic_class: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// UDP source port.
    pub source_port: u16,
    /// On which side of the link the peer is.
    pub reach: Reach,
}

/// Where from a link those are that a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Beyond the port.
    Outside,
    /// A device behind the same link.
    Inside,
    /// A group, of which there may be members on both sides.
    Both,
}

/// The Ethernet address of a multicast group (RFC 1112, RFC 2464); `None` for other GIDs.
pub fn group_mac(gid: Gid) -> Option<[u8; 6]> {
    let [.., a, b, c, d] = gid.0;
    match Ipv6Addr::from(gid.0).to_ipv4_mapped() {
        _ if !gid.is_multicast() => None,
        Some(_) => Some([0x01, 0, 0x5e, b & 0x7f, c, d]),
        None => Some([0x33, 0x33, a, b, c, d]),
    }
}

/// The UDP source port of a flow, for routers to spread flows by: of the flow label if there is one,
/// else of the two QPs. 49152 and up.
pub fn source_port(flow_label: u32, qpn: Qpn, peer: Qpn) -> u16 {
    let label = match flow_label & 0xf_ffff {
        0 => {
            let product = u64::from(qpn.0) * u64::from(peer.0);
            (product ^ product >> 20 ^ product >> 40) as u32 & 0xf_ffff
        }
        label => label,
    };
    0xc000 | ((label & 0x3fff) ^ (label >> 14)) as u16
}

/// Frames one behind the other in one buffer, which is kept when it is cleared.
#[derive(Debug, Default)]
pub struct FrameBatch {
    bytes: Vec<u8>,
    used: usize,
    ends: Vec<usize>,
    max: usize,
}

impl FrameBatch {
    /// For up to so many frames.
    pub fn new(max_frames: usize) -> Self {
        Self { bytes: Vec::new(), used: 0, ends: Vec::with_capacity(max_frames), max: max_frames }
    }

    /// Forgets the frames.
    pub fn clear(&mut self) {
        self.used = 0;
        self.ends.clear();
    }

    /// Frames.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Whether there is no room for one more.
    pub fn is_full(&self) -> bool {
        self.ends.len() >= self.max
    }

    /// The frames, each a whole Ethernet frame without FCS.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).map(|i| self.frame(i))
    }

    /// Frame `i`, empty if there is none.
    pub fn frame(&self, i: usize) -> &[u8] {
        let Some(end) = self.ends.get(i) else { return &[] };
        let start = i.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..*end]
    }

    /// All frames' bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.used]
    }

    /// Adds a frame, whatever is in it; for those who make other packets than RoCEv2's.
    pub fn push(&mut self, frame: &[u8]) {
        self.room(frame.len()).copy_from_slice(frame);
        self.end(frame.len());
    }

    /// Adds a RoCEv2 packet along a path: `head` is BTH and the headers behind it; `fill` writes
    /// `payload` bytes; padding is added. If `fill` fails nothing is added.
    pub(crate) fn push_packet<E>(
        &mut self,
        path: &Path,
        identification: u16,
        head: &[u8],
        payload: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let pad = payload.wrapping_neg() & 3;
        let v4 = Ipv6Addr::from(path.sgid.0)
            .to_ipv4_mapped()
            .zip(Ipv6Addr::from(path.dgid.0).to_ipv4_mapped());
        let ethernet = if path.vlan.is_some() { 18 } else { 14 };
        let ip_len = if v4.is_some() { IPV4_LEN } else { IPV6_LEN };
        let transport = head.len() + payload + pad;
        let udp_len = UDP_LEN + transport + ICRC_LEN;
        let total = ethernet + ip_len + udp_len;
        let frame = self.room(total);
        frame[..6].copy_from_slice(&path.dmac);
        frame[6..12].copy_from_slice(&path.smac);
        if let Some(tag) = path.vlan {
            frame[12..14].copy_from_slice(&ETHERTYPE_VLAN.to_be_bytes());
            frame[14..16].copy_from_slice(&tag.to_be_bytes());
        }
        let ethertype = if v4.is_some() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
        frame[ethernet - 2..ethernet].copy_from_slice(&ethertype.to_be_bytes());
        let (ip, rest) = frame[ethernet..].split_at_mut(ip_len);
        match v4 {
            Some((source, dest)) => {
                ip[..2].copy_from_slice(&[0x45, path.traffic_class]);
                ip[2..4].copy_from_slice(&((IPV4_LEN + udp_len) as u16).to_be_bytes());
                ip[4..6].copy_from_slice(&identification.to_be_bytes());
                ip[6..8].copy_from_slice(&[0x40, 0]); // Don't fragment.
                ip[8..12].copy_from_slice(&[path.hop_limit, PROTOCOL_UDP, 0, 0]);
                ip[12..16].copy_from_slice(&source.octets());
                ip[16..20].copy_from_slice(&dest.octets());
                let sum = checksum(ip);
                ip[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            None => {
                let first =
                    6 << 28 | u32::from(path.traffic_class) << 20 | path.flow_label & 0xf_ffff;
                ip[..4].copy_from_slice(&first.to_be_bytes());
                ip[4..6].copy_from_slice(&(udp_len as u16).to_be_bytes());
                ip[6..8].copy_from_slice(&[PROTOCOL_UDP, path.hop_limit]);
                ip[8..24].copy_from_slice(&path.sgid.0);
                ip[24..40].copy_from_slice(&path.dgid.0);
            }
        }
        let Some((udp, rest)) = rest.split_first_chunk_mut::<UDP_LEN>() else { return Ok(()) };
        udp[..2].copy_from_slice(&path.source_port.to_be_bytes());
        udp[2..4].copy_from_slice(&UDP_PORT.to_be_bytes());
        udp[4..6].copy_from_slice(&(udp_len as u16).to_be_bytes());
        udp[6..].fill(0);
        let (body, crc) = rest.split_at_mut(transport);
        body[..head.len()].copy_from_slice(head);
        fill(&mut body[head.len()..head.len() + payload])?;
        body[head.len() + payload..].fill(0);
        crc.copy_from_slice(&icrc(ip, udp, body).to_le_bytes());
        self.end(total);
        Ok(())
    }

    fn room(&mut self, len: usize) -> &mut [u8] {
        if self.bytes.len() < self.used + len {
            self.bytes.resize((self.used + len).max(2 * self.bytes.len()), 0);
        }
        &mut self.bytes[self.used..self.used + len]
    }

    fn end(&mut self, len: usize) {
        self.used += len;
        self.ends.push(self.used);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(v6: bool, vlan: Option<u16>) -> Path {
        let gid = |n: u8| match v6 {
            true => Gid([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n]),
            false => Gid(std::net::Ipv4Addr::new(10, 0, 0, n).to_ipv6_mapped().octets()),
        };
        Path {
            smac: [2, 0, 0, 0, 0, 1],
            dmac: [2, 0, 0, 0, 0, 2],
            vlan,
            sgid: gid(1),
            dgid: gid(2),
            flow_label: 0x12345,
            traffic_class: 0x6a,
            hop_limit: 64,
            source_port: 50_000,
            reach: Reach::Outside,
        }
    }

    fn batch(path: &Path, payload: usize) -> FrameBatch {
        let mut batch = FrameBatch::new(8);
        let fill = |to: &mut [u8]| {
            to.fill(0x5a);
            Ok::<(), ()>(())
        };
        batch.push_packet(path, 7, &[4; 12], payload, fill).unwrap();
        batch
    }

    #[test]
    fn the_seed_is_that_of_eight_bytes_of_ones() {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&[0xff; 8]);
        assert_eq!(hasher.finalize(), ICRC_SEED);
    }

    #[test]
    fn frames_of_every_kind_read_as_they_were_made() {
        for v6 in [false, true] {
            for vlan in [None, Some(5)] {
                for payload in [0, 1, 2, 3, 4, 4096] {
                    let path = path(v6, vlan);
                    let batch = batch(&path, payload);
                    assert_eq!(batch.len(), 1);
                    let frame = batch.frame(0);
                    assert!(frame.len() <= MAX_FRAME);
                    let datagram = Datagram::parse(frame).unwrap();
                    assert_eq!((datagram.source, datagram.dest), (path.sgid, path.dgid));
                    assert_eq!(datagram.vlan, vlan);
                    assert!(!datagram.congested);
                    assert!(datagram.icrc_is_right());
                    assert_eq!(datagram.transport.len(), 12 + payload.next_multiple_of(4));
                    assert!(datagram.transport[12..12 + payload].iter().all(|b| *b == 0x5a));
                }
            }
        }
    }

    #[test]
    fn what_a_router_may_change_leaves_the_icrc_right_and_all_else_does_not() {
        for v6 in [false, true] {
            let batch = batch(&path(v6, None), 16);
            let frame = batch.frame(0);
            let may_change = |at: usize| match (v6, at) {
                // TOS, TTL, checksum; or traffic class, flow label, hop limit.
                (false, 15 | 22 | 24 | 25) | (true, 15 | 16 | 17 | 21) => true,
                (true, 14) => true,
                // The UDP checksum, and the BTH's congestion bits with their reserved ones.
                (false, 40 | 41 | 46) | (true, 60 | 61 | 66) => true,
                _ => at < 14,
            };
            for at in 0..frame.len() {
                let mut changed = frame.to_vec();
                changed[at] ^= if v6 && at == 14 { 0x0f } else { 0x81 };
                if !v6 && (14..34).contains(&at) && !matches!(at, 24 | 25) {
                    changed[24..26].fill(0);
                    let sum = checksum(&changed[14..34]);
                    changed[24..26].copy_from_slice(&sum.to_be_bytes());
                }
                match Datagram::parse(&changed) {
                    Ok(datagram) => {
                        assert_eq!(datagram.icrc_is_right(), may_change(at), "v6 {v6}, byte {at}");
                    }
                    Err(_) => assert!(!may_change(at) || at >= 12, "v6 {v6}, byte {at}"),
                }
            }
        }
    }

    #[test]
    fn a_frame_that_is_cut_anywhere_is_no_packet() {
        for v6 in [false, true] {
            let batch = batch(&path(v6, Some(9)), 20);
            let frame = batch.frame(0);
            for len in 0..frame.len() {
                assert!(Datagram::parse(&frame[..len]).is_err(), "{len} bytes");
            }
            let mut padded = frame.to_vec();
            padded.extend([0; 10]);
            assert!(Datagram::parse(&padded).is_ok_and(|d| d.icrc_is_right()), "padding is none's");
        }
    }

    #[test]
    fn a_changed_frame_can_be_sealed_again() {
        let batch = batch(&path(false, Some(9)), 20);
        let mut frame = batch.frame(0).to_vec();
        frame[60] ^= 0xff;
        frame.extend([0; 3]);
        assert!(!Datagram::parse(&frame).unwrap().icrc_is_right());
        assert!(seal(&mut frame));
        assert!(Datagram::parse(&frame).unwrap().icrc_is_right());
    }

    #[test]
    fn what_fails_to_fill_adds_nothing() {
        let mut batch = batch(&path(false, None), 4);
        let before = batch.bytes().to_vec();
        assert_eq!(batch.push_packet(&path(false, None), 8, &[0; 12], 9, |_| Err(3)), Err(3));
        assert_eq!((batch.len(), batch.bytes()), (1, &before[..]));
    }

    #[test]
    fn groups_have_the_ethernet_addresses_of_ip() {
        let gid = |text: &str| Gid(text.parse::<Ipv6Addr>().unwrap().octets());
        let mac = |text: &str| group_mac(gid(text));
        assert_eq!(mac("ff0e::1:2345:6789"), Some([0x33, 0x33, 0x23, 0x45, 0x67, 0x89]));
        assert_eq!(mac("::ffff:230.129.2.3"), Some([0x01, 0, 0x5e, 1, 2, 3]));
        for other in ["::ffff:10.0.0.1", "fe80::1", "::ffff:240.0.0.1", "::230.1.2.3"] {
            assert_eq!(mac(other), None, "{other}");
        }
    }

    #[test]
    fn source_ports_are_of_the_dynamic_range_and_differ_from_flow_to_flow() {
        let ports: std::collections::HashSet<_> =
            (17..217).map(|qpn| source_port(0, Qpn(qpn), Qpn(4000 + qpn))).collect();
        assert!(ports.len() > 150);
        assert!(ports.iter().all(|port| *port >= 49_152));
        assert_eq!(source_port(0x12345, Qpn(1), Qpn(2)), source_port(0x12345, Qpn(3), Qpn(4)));
    }
}
