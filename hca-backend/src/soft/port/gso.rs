// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Segmentation offload with virtio's network header, which TAP devices and packet sockets know:
//! frames of one flow leave the process as one long frame, and a long one that comes in is cut.
//!
//! RoCE's ICRC covers the IPv4 identification: only frames whose identifications count up, as the
//! kernel makes them when it cuts, are put together.

use std::io::IoSlice;

use super::FrameBatch;
use super::headers::{
    Layout, TCP, UDP, fold, get16, is_roce, layout, pseudo_sum, put16, set_ip_length, sum,
};

/// Bytes of the header in front of each frame.
pub(super) const HEADER: usize = 10;
/// Bytes of the longest frame, with headers.
pub(super) const MAX_SUPER: usize = 65_535 + 18;
/// What frames put together may have in bytes and number: IP's length field, and the kernel's limit.
const MAX_JOINED: usize = 65_000;
const MAX_SEGMENTS: usize = 64;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Header of a frame that goes as it is.
pub(super) const PLAIN: [u8; HEADER] = [0; HEADER];

/// How many frames from index `first` on, before `end`, can go as one, and their layout; (1, None) if it is on its own.
pub(super) fn run(frames: &FrameBatch, first: usize, end: usize) -> (usize, Option<Layout>) {
    let head = frames.frame(first);
    let Some(at) = layout(head).filter(|at| at.protocol == UDP) else { return (1, None) };
    let size = head.len() - at.l4 - 8;
    let (mut count, mut total) = (1, head.len());
    while count < MAX_SEGMENTS && first + count < end && size > 0 {
        let next = frames.frame(first + count);
        let fits = next.len() > at.l4 + 8
            && next.len() <= head.len()
            && total + next.len() - at.l4 - 8 <= MAX_JOINED
            && same_flow(head, next, at, count);
        if !fits {
            break;
        }
        count += 1;
        total += next.len() - at.l4 - 8;
        if next.len() < head.len() {
            break;
        }
    }
    if count == 1 { (1, None) } else { (count, Some(at)) }
}

/// Whether the headers are the same but for what the kernel sets when it cuts.
fn same_flow(head: &[u8], next: &[u8], at: Layout, distance: usize) -> bool {
    let same = |from: usize, to: usize| head.get(from..to) == next.get(from..to);
    let ip = if at.v6 {
        same(0, at.l3 + 4) && same(at.l3 + 6, at.l4)
    } else {
        let id = get16(head, at.l3 + 4).wrapping_add(distance as u16);
        same(0, at.l3 + 2)
            && get16(next, at.l3 + 4) == id
            && same(at.l3 + 6, at.l3 + 10)
            && same(at.l3 + 12, at.l4)
    };
    ip && same(at.l4, at.l4 + 4)
}

/// Virtio's header and the frame's headers for `count` frames as one.
pub(super) fn joined_headers(
    frames: &FrameBatch,
    first: usize,
    count: usize,
    at: Layout,
) -> Vec<u8> {
    let head = frames.frame(first);
    let start = at.l4 + 8;
    let size = head.len().saturating_sub(start);
    let all: usize = (first..first + count).map(|i| frames.frame(i).len() - start).sum();
    let mut bytes = Vec::with_capacity(HEADER + start);
    bytes.extend([NEEDS_CSUM, GSO_UDP_L4]);
    for field in [start, size, at.l4, 6] {
        bytes.extend((field as u16).to_ne_bytes());
    }
    bytes.extend_from_slice(&head[..start]);
    let frame = &mut bytes[HEADER..];
    set_ip_length(frame, at, 8 + all);
    put16(frame, at.l4 + 4, (8 + all) as u16);
    // The kernel goes on from the sum of the pseudo header.
    let partial = fold(pseudo_sum(frame, at, 8 + all));
    put16(frame, at.l4 + 6, partial);
    bytes
}

/// The payloads of `count` frames.
pub(super) fn payloads(
    frames: &FrameBatch,
    first: usize,
    count: usize,
    at: Layout,
) -> impl Iterator<Item = IoSlice<'_>> {
    (first..first + count).map(move |i| IoSlice::new(&frames.frame(i)[at.l4 + 8..]))
}

/// Hands a frame that came with `header` to `sink`, cut if it is a long one, with the checksum made that
/// the kernel left out. Returns how many frames that were; None if it is of a kind that can't be cut.
pub(super) fn deliver(
    header: &[u8],
    frame: &mut [u8],
    sink: &mut dyn FnMut(&[u8]),
) -> Option<usize> {
    let (flags, kind) = (*header.first()?, *header.get(1)?);
    let field = |at: usize| {
        header.get(at..at + 2).map_or(0, |b| usize::from(u16::from_ne_bytes([b[0], b[1]])))
    };
    let size = field(4);
    match kind & !GSO_ECN {
        GSO_NONE => {
            // Nobody looks at the UDP checksum of RoCE, which has its own.
            if flags & NEEDS_CSUM != 0 && !is_roce(frame) {
                complete_checksum(frame, field(6), field(8));
            }
            sink(frame);
            Some(1)
        }
        GSO_UDP_L4 => cut(frame, size, UDP, sink),
        GSO_TCPV4 | GSO_TCPV6 => cut(frame, size, TCP, sink),
        _ => None,
    }
}

fn complete_checksum(frame: &mut [u8], start: usize, offset: usize) {
    let Some(covered) = frame.get(start..) else { return };
    let checksum = match !fold(sum(covered)) {
        0 => 0xffff,
        checksum => checksum,
    };
    put16(frame, start + offset, checksum);
}

/// Cuts a long frame where it lies: the headers of each piece are written over the end of the piece
/// before, which `sink` has done with.
fn cut(frame: &mut [u8], size: usize, protocol: u8, sink: &mut dyn FnMut(&[u8])) -> Option<usize> {
    let at = layout(frame).filter(|at| at.protocol == protocol && size > 0)?;
    let l4_header = match protocol {
        TCP => usize::from(frame[at.l4 + 12] >> 4) * 4,
        _ => 8,
    };
    let start = at.l4 + l4_header;
    if l4_header < 8 || frame.len() < start {
        return None;
    }
    let headers = frame[..start].to_vec();
    let (id, end) = (get16(&headers, at.l3 + 4), frame.len());
    let sequence = u32::from_be_bytes(headers[at.l4 + 4..at.l4 + 8].try_into().ok()?);
    let (mut from, mut pieces) = (start, 0);
    loop {
        let length = size.min(end - from);
        let piece = &mut frame[from - start..from + length];
        piece[..start].copy_from_slice(&headers);
        if !at.v6 {
            put16(piece, at.l3 + 4, id.wrapping_add(pieces as u16));
        }
        set_ip_length(piece, at, l4_header + length);
        if protocol == UDP {
            put16(piece, at.l4 + 4, (8 + length) as u16);
        } else {
            let passed = (from - start) as u32;
            piece[at.l4 + 4..at.l4 + 8]
                .copy_from_slice(&sequence.wrapping_add(passed).to_be_bytes());
            if from + length < end {
                // FIN and PSH belong to the last.
                piece[at.l4 + 13] &= !0x09;
            }
            if pieces > 0 {
                piece[at.l4 + 13] &= !0x80;
            }
        }
        let checksum_at = at.l4 + if protocol == TCP { 16 } else { 6 };
        put16(piece, checksum_at, 0);
        if protocol == TCP || at.v6 {
            let partial = fold(pseudo_sum(piece, at, l4_header + length));
            put16(piece, checksum_at, partial);
            complete_checksum(piece, at.l4, checksum_at - at.l4);
        }
        sink(piece);
        pieces += 1;
        from += length;
        if from >= end {
            return Some(pieces);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::headers::tests::{udp4, udp6};
    use super::*;

    fn batch(frames: &[Vec<u8>]) -> FrameBatch {
        let mut batch = FrameBatch::new(64);
        frames.iter().for_each(|f| batch.push(f));
        batch
    }

    fn joined(frames: &FrameBatch, count: usize, at: Layout) -> (Vec<u8>, Vec<u8>) {
        let mut bytes = joined_headers(frames, 0, count, at);
        payloads(frames, 0, count, at).for_each(|p| bytes.extend_from_slice(&p));
        let frame = bytes.split_off(HEADER);
        (bytes, frame)
    }

    #[test]
    fn what_is_joined_and_cut_again_is_what_it_was() {
        let four: Vec<Vec<u8>> = (0..5u16)
            .map(|i| udp4(1, 2, 4791, 0xfffe_u16.wrapping_add(i), &[i as u8; 300]))
            .chain([udp4(1, 2, 4791, 3, b"short")])
            .collect();
        let six: Vec<Vec<u8>> = (0..3).map(|i| udp6(1, 2, Some(9), 4791, &[i; 64])).collect();
        for originals in [four, six] {
            let frames = batch(&originals);
            let (count, at) = run(&frames, 0, frames.len());
            assert_eq!(count, originals.len());
            let (header, mut frame) = joined(&frames, count, at.unwrap());
            let mut seen = Vec::new();
            let pieces = deliver(&header, &mut frame, &mut |f| seen.push(f.to_vec())).unwrap();
            assert_eq!(pieces, originals.len());
            for (mut piece, original) in seen.into_iter().zip(originals) {
                let at = layout(&piece).unwrap();
                if at.v6 {
                    let length = piece.len() - at.l4;
                    let all = pseudo_sum(&piece, at, length) + sum(&piece[at.l4..]);
                    assert_eq!(fold(all), 0xffff, "IPv6 wants a UDP checksum");
                    put16(&mut piece, at.l4 + 6, 0);
                }
                assert_eq!(piece, original);
            }
        }
    }

    #[test]
    fn frames_that_the_kernel_would_not_cut_the_same_way_are_not_joined() {
        let first = udp4(1, 2, 4791, 7, &[1; 100]);
        let apart = [
            udp4(1, 2, 4791, 9, &[1; 100]),
            udp4(1, 2, 4792, 8, &[1; 100]),
            udp4(1, 3, 4791, 8, &[1; 100]),
            udp4(1, 2, 4791, 8, &[1; 101]),
            udp4(1, 2, 4791, 8, &[]),
            udp6(1, 2, None, 4791, &[1; 100]),
            vec![0; 10],
        ];
        for other in apart {
            assert_eq!(run(&batch(&[first.clone(), other]), 0, 2), (1, None));
        }
        // A short one is the last.
        let frames = [first, udp4(1, 2, 4791, 8, &[1; 9]), udp4(1, 2, 4791, 9, &[1; 9])];
        assert_eq!(run(&batch(&frames), 0, 3).0, 2);
        let many: Vec<Vec<u8>> = (0..40).map(|i| udp4(1, 2, 4791, i, &[0; 4096])).collect();
        assert_eq!(run(&batch(&many), 0, 40).0, 15);
    }

    #[test]
    fn a_long_tcp_frame_is_cut_into_segments_with_sequence_numbers_and_checksums() {
        let mut frame = udp4(1, 2, 80, 5, &[0; 12 + 250]);
        frame[14 + 9] = TCP;
        frame[34..38].copy_from_slice(&[0x12, 0x34, 0x56, 0x78]);
        frame[38..42].copy_from_slice(&u32::MAX.to_be_bytes());
        frame[46] = 5 << 4;
        frame[47] = 0x18;
        for (i, byte) in frame[54..].iter_mut().enumerate() {
            *byte = i as u8;
        }
        let header = [NEEDS_CSUM, GSO_TCPV4, 54, 0, 100, 0, 34, 0, 16, 0];
        let mut seen = Vec::new();
        let pieces = deliver(&header, &mut frame, &mut |f| seen.push(f.to_vec()));
        assert_eq!(pieces, Some(3));
        for (i, piece) in seen.iter().enumerate() {
            let at = layout(piece).unwrap();
            let all = pseudo_sum(piece, at, piece.len() - at.l4) + sum(&piece[at.l4..]);
            assert_eq!(fold(all), 0xffff);
            assert_eq!(fold(sum(&piece[at.l3..at.l4])), 0xffff);
            assert_eq!(get16(piece, at.l3 + 4), 5 + i as u16);
            let sequence = u32::from_be_bytes(piece[38..42].try_into().unwrap());
            assert_eq!(sequence, u32::MAX.wrapping_add(100 * i as u32));
            assert_eq!(piece[47], if i == 2 { 0x18 } else { 0x10 });
            assert_eq!(piece[54], (100 * i) as u8);
        }
    }

    #[test]
    fn bad_headers_cut_nothing() {
        let mut sink = |_: &[u8]| panic!("nothing to deliver");
        let udp = [NEEDS_CSUM, GSO_UDP_L4, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(deliver(&udp, &mut udp4(1, 2, 3, 4, &[0; 10]), &mut sink), None);
        let udp = [NEEDS_CSUM, GSO_UDP_L4, 0, 0, 5, 0, 0, 0, 0, 0];
        assert_eq!(deliver(&udp, &mut [0; 60], &mut sink), None);
        let tcp = [NEEDS_CSUM, GSO_TCPV4, 0, 0, 5, 0, 0, 0, 0, 0];
        assert_eq!(deliver(&tcp, &mut udp4(1, 2, 3, 4, &[0; 10]), &mut sink), None);
        assert_eq!(deliver(&[0, 3, 0, 0, 5, 0, 0, 0, 0, 0], &mut [0; 60], &mut sink), None);
        assert_eq!(deliver(&[], &mut [0; 60], &mut sink), None);
    }

    #[test]
    fn a_checksum_that_the_kernel_left_out_is_made() {
        let mut frame = udp4(1, 2, 53, 4, b"hello");
        let at = layout(&frame).unwrap();
        let partial = fold(pseudo_sum(&frame, at, 13));
        put16(&mut frame, at.l4 + 6, partial);
        let header = [NEEDS_CSUM, GSO_NONE, 0, 0, 0, 0, 34, 0, 6, 0];
        let mut seen = Vec::new();
        deliver(&header, &mut frame, &mut |f| seen.extend_from_slice(f)).unwrap();
        assert_eq!(fold(pseudo_sum(&seen, at, 13) + sum(&seen[at.l4..])), 0xffff);
    }
}
