// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Answers to ARP (RFC 826) and IPv6 neighbour solicitations (RFC 4861) for addresses of devices whose
//! guest has no network of its own on the wire.

use rdma_midlayer::attr::GidEntry;
use rdma_midlayer::types::Gid;

use super::headers::{ARP, IPV4, IPV6, VLAN, fold, payload, put16, source, sum};

const ICMPV6: u8 = 58;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// The address that a frame asks for, as a GID, and the VLAN in which it asks; None if it asks for none.
pub(super) fn question(frame: &[u8]) -> Option<(Gid, Option<u16>)> {
    let (kind, vlan, at) = payload(frame);
    let body = frame.get(at..)?;
    match kind {
        ARP => {
            let request = [0, 1, 8, 0, 6, 4, 0, 1];
            if body.len() < 28 || body[..8] != request || body[14..18] == body[24..28] {
                return None;
            }
            let mut gid = [0; 16];
            gid[10..12].fill(0xff);
            gid[12..].copy_from_slice(&body[24..28]);
            Some((Gid(gid), vlan))
        }
        IPV6 => {
            // From a neighbour (the hop limit says so), and no extension headers.
            let plain = body.len() >= 64 && body[6] == ICMPV6 && body[7] == 255;
            if !plain || body[40] != NEIGHBOUR_SOLICITATION || body[41] != 0 {
                return None;
            }
            Some((Gid(body[48..64].try_into().ok()?), vlan))
        }
        _ => None,
    }
}

/// The answer to `frame`, which asks for the address of `entry`.
pub(super) fn answer(frame: &[u8], entry: &GidEntry) -> Option<Vec<u8>> {
    let (kind, vlan, at) = payload(frame);
    let body = frame.get(at..)?;
    let mut reply = Vec::with_capacity(90);
    reply.extend(source(frame)?);
    reply.extend(entry.mac);
    if vlan.is_some() {
        reply.extend(VLAN.to_be_bytes());
        reply.extend(frame.get(14..16)?);
    }
    reply.extend(kind.to_be_bytes());
    match kind {
        ARP => {
            reply.extend(1u16.to_be_bytes());
            reply.extend(IPV4.to_be_bytes());
            reply.extend([6, 4, 0, 2]);
            reply.extend(entry.mac);
            reply.extend(body.get(24..28)?);
            reply.extend(body.get(8..18)?);
        }
        _ => advertise(&mut reply, body.get(8..24)?, entry),
    }
    // Ethernet's shortest frame.
    reply.resize(reply.len().max(60), 0);
    Some(reply)
}

fn advertise(reply: &mut Vec<u8>, asker: &[u8], entry: &GidEntry) {
    let start = reply.len();
    // Who has no address yet, and asks whether this one is free, listens as all nodes do.
    let duplicate_detection = asker.iter().all(|byte| *byte == 0);
    let to = if duplicate_detection { &ALL_NODES[..] } else { asker };
    let flags = if duplicate_detection { OVERRIDE } else { OVERRIDE | SOLICITED };
    reply.extend([0x60, 0, 0, 0, 0, 32, ICMPV6, 255]);
    reply.extend(entry.gid.0);
    reply.extend(to);
    reply.extend([NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0]);
    reply.extend(entry.gid.0);
    reply.extend([2, 1]);
    reply.extend(entry.mac);
    let addresses = sum(&reply[start + 8..start + 40]);
    let all = addresses + 32 + u64::from(ICMPV6) + sum(&reply[start + 40..]);
    put16(reply, start + 42, !fold(all));
}

/// Whether an entry is what a question is about.
pub(super) fn matches(entry: &GidEntry, gid: Gid, vlan: Option<u16>) -> bool {
    // A priority tag (VLAN 0) is no VLAN.
    entry.gid == gid && entry.vlan.filter(|v| *v != 0) == vlan.filter(|v| *v != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
    const ASKER: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn arp(vlan: Option<u16>, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
        let mut frame = vec![0xff; 6];
        frame.extend(ASKER);
        if let Some(vlan) = vlan {
            frame.extend([0x81, 0]);
            frame.extend(vlan.to_be_bytes());
        }
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(ASKER);
        frame.extend(sender);
        frame.extend([0; 6]);
        frame.extend(target);
        frame
    }

    fn entry(vlan: Option<u16>) -> GidEntry {
        let mut gid = [0; 16];
        gid[10..].copy_from_slice(&[0xff, 0xff, 10, 0, 0, 9]);
        GidEntry { gid: Gid(gid), mac: MAC, vlan }
    }

    #[test]
    fn arp_is_answered_with_the_devices_mac_in_the_same_vlan() {
        for vlan in [None, Some(7)] {
            let frame = arp(vlan, [10, 0, 0, 1], [10, 0, 0, 9]);
            let (gid, asked) = question(&frame).unwrap();
            assert!(matches(&entry(vlan), gid, asked));
            assert!(!matches(&entry(Some(8)), gid, asked));
            let reply = answer(&frame, &entry(vlan)).unwrap();
            assert_eq!(&reply[..6], ASKER);
            let (kind, tag, at) = payload(&reply);
            assert_eq!((kind, tag, reply.len()), (ARP, vlan, 60));
            assert_eq!(reply[at + 6..at + 8], [0, 2]);
            assert_eq!(reply[at + 8..at + 14], MAC);
            assert_eq!(reply[at + 14..at + 18], [10, 0, 0, 9]);
            assert_eq!(reply[at + 24..at + 28], [10, 0, 0, 1]);
        }
    }

    #[test]
    fn an_announcement_and_a_reply_are_no_questions() {
        assert_eq!(question(&arp(None, [10, 0, 0, 9], [10, 0, 0, 9])), None);
        let mut reply = arp(None, [10, 0, 0, 1], [10, 0, 0, 9]);
        reply[21] = 2;
        assert_eq!(question(&reply), None);
        for length in 0..42 {
            assert_eq!(question(&arp(None, [10, 0, 0, 1], [10, 0, 0, 9])[..length]), None);
        }
    }

    #[test]
    fn a_solicitation_is_answered_with_a_whole_advertisement() {
        let gid = Gid([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
        let entry = GidEntry { gid, mac: MAC, vlan: None };
        for asker in [[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], [0; 16]] {
            let mut frame = vec![0x33, 0x33, 0xff, 0, 0, 9];
            frame.extend(ASKER);
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 24, ICMPV6, 255]);
            frame.extend(asker);
            frame.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 9]);
            frame.extend([NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0]);
            frame.extend(gid.0);
            assert_eq!(question(&frame), Some((gid, None)));
            let reply = answer(&frame, &entry).unwrap();
            let ip = &reply[14..];
            let all = sum(&ip[8..40]) + 32 + 58 + sum(&ip[40..72]);
            assert_eq!(fold(all), 0xffff);
            assert_eq!(&ip[66..72], MAC);
            let solicited = asker != [0; 16];
            assert_eq!(ip[24..40] == asker, solicited);
            assert_eq!(ip[44] & SOLICITED != 0, solicited);
        }
    }
}
