// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! As much of Ethernet, IP and UDP as ports need to tell frames apart. Frames are parsed in full where
//! packets are made and understood, not here.

/// UDP port of RoCEv2 (IBA annex A17).
const ROCE_PORT: [u8; 2] = 4791u16.to_be_bytes();

pub(super) const IPV4: u16 = 0x0800;
pub(super) const ARP: u16 = 0x0806;
pub(super) const VLAN: u16 = 0x8100;
pub(super) const IPV6: u16 = 0x86dd;

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;

/// A MAC address.
pub(super) type Mac = [u8; 6];

/// Where a frame's headers lie, in bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub l3: usize,
    pub l4: usize,
    pub v6: bool,
    pub protocol: u8,
}

pub(super) fn destination(frame: &[u8]) -> Option<Mac> {
    frame.get(..6)?.try_into().ok()
}

pub(super) fn source(frame: &[u8]) -> Option<Mac> {
    frame.get(6..12)?.try_into().ok()
}

/// Whether a MAC address names more than one station.
pub(super) fn is_group(mac: Mac) -> bool {
    mac[0] & 1 != 0
}

pub(super) fn get16(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]))
}

pub(super) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(place) = bytes.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

/// Type, VLAN identifier and start of what an Ethernet frame carries, below at most one tag.
pub(super) fn payload(frame: &[u8]) -> (u16, Option<u16>, usize) {
    match get16(frame, 12) {
        VLAN => (get16(frame, 16), Some(get16(frame, 14) & 0xfff), 18),
        kind => (kind, None, 14),
    }
}

/// The layout of a frame with IPv4 (whole datagrams only) or IPv6 (without extension headers), whose
/// headers are all there.
pub(super) fn layout(frame: &[u8]) -> Option<Layout> {
    let (kind, _, l3) = payload(frame);
    let found = match kind {
        IPV4 => {
            let first = *frame.get(l3)?;
            let fragment = get16(frame, l3 + 6) & 0x3fff;
            let length = usize::from(first & 0xf) * 4;
            if first >> 4 != 4 || length < 20 || fragment != 0 {
                return None;
            }
            Layout { l3, l4: l3 + length, v6: false, protocol: *frame.get(l3 + 9)? }
        }
        IPV6 => Layout { l3, l4: l3 + 40, v6: true, protocol: *frame.get(l3 + 6)? },
        _ => return None,
    };
    let header = if found.protocol == TCP { 20 } else { 8 };
    (frame.len() >= found.l4 + header).then_some(found)
}

/// Whether a frame is RoCEv2's: UDP to port 4791.
pub fn is_roce(frame: &[u8]) -> bool {
    layout(frame)
        .is_some_and(|at| at.protocol == UDP && frame.get(at.l4 + 2..at.l4 + 4) == Some(&ROCE_PORT))
}

/// The sum of the Internet checksum over some bytes, not folded.
pub(super) fn sum(bytes: &[u8]) -> u64 {
    let mut chunks = bytes.chunks_exact(2);
    let whole: u64 = chunks.by_ref().map(|c| u64::from(u16::from_be_bytes([c[0], c[1]]))).sum();
    whole + chunks.remainder().first().map_or(0, |b| u64::from(*b) << 8)
}

/// Folds a sum to 16 bits.
pub(super) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum of the pseudo header of TCP and UDP, for `length` bytes from the transport's header on.
pub(super) fn pseudo_sum(frame: &[u8], at: Layout, length: usize) -> u64 {
    let addresses = if at.v6 { at.l3 + 8..at.l3 + 40 } else { at.l3 + 12..at.l3 + 20 };
    let addresses = frame.get(addresses).unwrap_or_default();
    sum(addresses) + u64::from(at.protocol) + length as u64
}

/// Sets IP's length to that of the frame, and IPv4's checksum.
pub(super) fn set_ip_length(frame: &mut [u8], at: Layout, length_after_ip: usize) {
    if at.v6 {
        return put16(frame, at.l3 + 4, length_after_ip as u16);
    }
    put16(frame, at.l3 + 2, (at.l4 - at.l3 + length_after_ip) as u16);
    put16(frame, at.l3 + 10, 0);
    let checksum = !fold(sum(frame.get(at.l3..at.l4).unwrap_or_default()));
    put16(frame, at.l3 + 10, checksum);
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A frame with UDP of given addresses' last bytes, IPv4 identification and payload.
    pub(crate) fn udp4(from: u8, to: u8, port: u16, id: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from, 8, 0];
        frame.extend([0x45, 0, 0, 0]);
        frame.extend(id.to_be_bytes());
        frame.extend([0x40, 0, 64, UDP, 0, 0, 10, 0, 0, from, 10, 0, 0, to]);
        frame.extend(50_000u16.to_be_bytes());
        frame.extend(port.to_be_bytes());
        frame.extend((8 + payload.len() as u16).to_be_bytes());
        frame.extend([0, 0]);
        frame.extend(payload);
        let at = layout(&frame).unwrap();
        set_ip_length(&mut frame, at, 8 + payload.len());
        frame
    }

    /// The same with IPv6 and, if wanted, a VLAN tag.
    pub(crate) fn udp6(from: u8, to: u8, vlan: Option<u16>, port: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from];
        if let Some(vlan) = vlan {
            frame.extend([0x81, 0]);
            frame.extend(vlan.to_be_bytes());
        }
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, UDP, 64]);
        for last in [from, to] {
            frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
        frame.extend(50_000u16.to_be_bytes());
        frame.extend(port.to_be_bytes());
        frame.extend((8 + payload.len() as u16).to_be_bytes());
        frame.extend([0, 0]);
        frame.extend(payload);
        let at = layout(&frame).unwrap();
        set_ip_length(&mut frame, at, 8 + payload.len());
        frame
    }

    #[test]
    fn roce_is_udp_to_4791_over_either_ip_tagged_or_not() {
        assert!(is_roce(&udp4(1, 2, 4791, 7, b"x")));
        assert!(!is_roce(&udp4(1, 2, 4790, 7, b"x")));
        assert!(is_roce(&udp6(1, 2, None, 4791, b"")));
        assert!(is_roce(&udp6(1, 2, Some(5), 4791, b"")));
        let mut fragment = udp4(1, 2, 4791, 7, b"x");
        fragment[20] = 0x20;
        assert!(!is_roce(&fragment));
    }

    #[test]
    fn any_prefix_of_a_frame_is_looked_at_without_a_panic() {
        for frame in [udp4(1, 2, 4791, 7, b"abc"), udp6(1, 2, Some(5), 4791, b"abc")] {
            for length in 0..frame.len() {
                let whole = layout(&frame[..length]).is_some();
                assert_eq!(whole, length >= frame.len() - 3);
                is_roce(&frame[..length]);
                destination(&frame[..length]);
                payload(&frame[..length]);
            }
        }
    }

    #[test]
    fn the_checksum_is_that_of_rfc_1071() {
        assert_eq!(fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), 0xddf2);
        assert_eq!(fold(sum(&[0xff, 0xff, 0x01])), 0x0100);
    }
}
