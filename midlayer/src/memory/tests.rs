// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Unit tests of `memory`: every layout, bounds, holes, long copies.

use super::*;
use std::sync::atomic::Ordering;

struct Owned(Box<[AtomicU64]>);

// SAFETY: the box lives as long as the value; atomics allow writes through a shared pointer.
unsafe impl Mapping for Owned {
    fn base(&self) -> *mut u8 {
        let start = self.0.as_ptr().cast_mut().cast::<u8>();
        start.wrapping_add(start.align_offset(4096))
    }
    fn len(&self) -> usize {
        self.0.len() * 8 - 4096
    }
}

fn mapping(bytes: usize) -> Arc<dyn Mapping> {
    Arc::new(Owned((0..bytes / 8 + 512).map(|_| AtomicU64::new(0)).collect()))
}

fn run(mapping: &Arc<dyn Mapping>, offset: usize, len: usize) -> Run {
    Run { mapping: mapping.clone(), offset, len }
}

fn all_layouts() -> Vec<UserMemory> {
    let m = mapping(8 * 4096);
    let page = |n: usize| run(&m, n * 4096, 4096);
    let far = || [page(5), page(1), page(7), page(2)];
    vec![
        UserMemory::new(0x1000, 8200, 100, None, [page(1), page(2), page(3)]).unwrap(),
        UserMemory::new(0x1000, 8200, 100, Some(12), far()).unwrap(),
        UserMemory::new(0x1000, 8200, 100, None, far()).unwrap(),
        of_pages(&[(&m, 1), (&m, 2), (&m, 3)]).finish(0x1000, 8200, 100).unwrap(),
        of_pages(&[(&m, 5), (&m, 6), (&m, 2)]).finish(0x1000, 8200, 100).unwrap(),
        of_pages(&[(&m, 5), (&mapping(8 * 4096), 6), (&m, 2)]).finish(0x1000, 8200, 100).unwrap(),
    ]
}

fn of_pages(pages: &[(&Arc<dyn Mapping>, usize)]) -> PageBuilder {
    let mut builder = PageBuilder::new(12, pages.len());
    pages.iter().for_each(|(mapping, page)| builder.push(mapping, page * 4096).unwrap());
    builder
}

#[test]
fn pages_are_told_of_as_runs_that_are_as_long_as_they_can_be() {
    let (one, other) = (mapping(8 * 4096), mapping(8 * 4096));
    let runs = |pages: &[(&Arc<dyn Mapping>, usize)]| -> Vec<(bool, usize, usize)> {
        let length = pages.len() as u64 * 4096;
        let memory = of_pages(pages).finish(0, length, 0).unwrap();
        assert_eq!(memory.places().iter().map(|(_, run)| run.len as u64).sum::<u64>(), length);
        let is_one = |run: &Run| Arc::ptr_eq(&run.mapping, &one);
        memory.runs().map(|run| (is_one(&run), run.offset / 4096, run.len / 4096)).collect()
    };
    assert_eq!(runs(&[(&one, 2), (&one, 3), (&one, 4)]), [(true, 2, 3)]);
    assert_eq!(runs(&[(&one, 2), (&one, 3), (&one, 2)]), [(true, 2, 2), (true, 2, 1)]);
    // The same offsets in another mapping do not follow.
    let mixed = [(&one, 0), (&one, 1), (&other, 2), (&other, 3), (&one, 4)];
    assert_eq!(runs(&mixed), [(true, 0, 2), (false, 2, 2), (true, 4, 1)]);
}

#[test]
fn pages_beyond_their_mapping_and_too_few_of_them_are_refused() {
    let m = mapping(4 * 4096);
    let mut builder = PageBuilder::new(12, 2);
    assert_eq!(builder.push(&m, 3 * 4096 + 1), Err(OutOfRange));
    assert_eq!(builder.push(&m, usize::MAX), Err(OutOfRange));
    assert!(PageBuilder::new(12, 0).finish(0, 0, 0).is_err());
    builder.push(&m, 0).unwrap();
    builder.push(&m, 4096).unwrap();
    assert!(builder.finish(0, 8192, 1).is_err());
}

#[test]
fn every_layout_reads_back_what_was_written_at_any_offset_and_length() {
    for memory in all_layouts() {
        for (at, len) in [(0, 1), (0, 8200), (3990, 20), (4095, 2), (8199, 1), (17, 4099)] {
            let data: Vec<u8> = (0..len).map(|i| (i * 7 + at) as u8).collect();
            memory.write(0x1000 + at as u64, &data).unwrap();
            let mut back = vec![0; len];
            memory.read(0x1000 + at as u64, &mut back).unwrap();
            assert_eq!(back, data, "at {at}, {len} bytes");
        }
    }
}

#[test]
fn copies_between_layouts_keep_every_byte() {
    for to in all_layouts() {
        for from in all_layouts() {
            let data: Vec<u8> = (0..8000).map(|i| (i % 251) as u8).collect();
            from.write(0x1003, &data).unwrap();
            to.copy_from(0x1064, &from, 0x1003, 8000).unwrap();
            let mut back = vec![0; 8000];
            to.read(0x1064, &mut back).unwrap();
            assert_eq!(back, data);
        }
    }
}

#[test]
fn nothing_outside_the_range_is_reachable() {
    for memory in all_layouts() {
        let mut byte = [0];
        for addr in [0, 0xfff, 0x1000 + 8200, u64::MAX] {
            assert_eq!(memory.read(addr, &mut byte), Err(OutOfRange));
        }
        assert_eq!(memory.write(0x1000 + 8199, &[0, 0]), Err(OutOfRange));
        assert_eq!(memory.host_address(0x1000 + 8200, 0), None);
        assert_eq!(memory.write(0x1000 + 8200, &[]), Ok(()));
        assert_eq!(memory.copy_from(0x1000 + 8200, &memory, 0x1000 + 8200, 0), Ok(()));
        assert_eq!(memory.copy_from(0x1000, &memory, 0x1001, 8200), Err(OutOfRange));
        assert_eq!(memory.copy_from(0x1000, &memory, 0x1000, u64::MAX), Err(OutOfRange));
    }
}

#[test]
fn holes_of_sparse_memory_belong_to_nothing() {
    let m = mapping(4 * 4096);
    let memory = UserMemory::sparse([
        (0x1000, run(&m, 0, 4096)),
        (0x2000, run(&m, 8192, 4096)),
        (0x8000, run(&m, 4096, 4096)),
    ])
    .unwrap();
    let data: Vec<u8> = (0..100).collect();
    for addr in [0x1000, 0x1fc0, 0x8000 + 4096 - 100] {
        memory.write(addr, &data).unwrap();
        let mut back = vec![0; 100];
        memory.read(addr, &mut back).unwrap();
        assert_eq!(back, data);
    }
    for addr in [0xfff, 0x2fff, 0x3000, 0x7fff, 0x8fff, 0x9000] {
        assert_eq!(memory.write(addr, &[0, 0]), Err(OutOfRange), "{addr:#x}");
    }
    assert!(UserMemory::sparse([(0, run(&m, 0, 4096)), (4095, run(&m, 0, 1))]).is_err());
    assert!(UserMemory::sparse([]).is_err());
}

#[test]
fn memory_shorter_than_what_it_is_to_hold_is_refused() {
    let m = mapping(4096);
    assert!(UserMemory::new(0, 4097, 0, None, [run(&m, 0, 4096)]).is_err());
    assert!(UserMemory::new(0, 4096, 1, None, [run(&m, 0, 4096)]).is_err());
    assert!(UserMemory::new(0, 1, 0, None, [run(&m, 4096, 1)]).is_err());
    assert!(UserMemory::new(u64::MAX, 2, 0, None, [run(&m, 0, 4096)]).is_err());
    assert!(UserMemory::new(0, 1, u64::MAX, None, [run(&m, 0, 4096)]).is_err());
}

#[test]
fn a_span_is_checked_once_and_lies_together() {
    for memory in all_layouts() {
        assert!(memory.span(0x1000 + 3988, 8).is_some());
        assert!(memory.span(0x1000 + 8199, 2).is_none());
        assert!(memory.span(0xfff, 2).is_none());
        let data: Vec<u8> = (0..200).collect();
        let (Some(from), Some(to)) = (memory.span(0x1003, 200), memory.span(0x1208, 200)) else {
            panic!("both lie in one page");
        };
        from.write(&data);
        to.copy_from(&from);
        let mut back = vec![0; 200];
        memory.read(0x1208, &mut back).unwrap();
        assert_eq!(back, data);
    }
    let [whole, parted, ..] = <[_; 6]>::try_from(all_layouts()).ok().unwrap();
    assert!(whole.span(0x1000, 8200).is_some() && parted.span(0x1000, 8200).is_none());
}

#[test]
fn long_copies_between_layouts_keep_every_byte_and_no_other_is_touched() {
    let m = mapping(40 * 4096);
    let pages = |n: usize| (0..10).map(move |i| (n + i * 7) % 20);
    let layout = |first: usize, n, offset| {
        let runs = pages(n).map(|page| run(&m, (first + page) * 4096, 4096));
        UserMemory::new(0x1000, 36_000, offset, Some(12), runs).unwrap()
    };
    for (to_offset, from_offset) in [(0, 0), (5, 8), (64, 3), (4091, 1)] {
        let (to, from) = (layout(0, 3, to_offset), layout(20, 1, from_offset));
        for len in [16 << 10, 20_001, 35_999, 36_000] {
            let data: Vec<u8> = (0..36_000).map(|i| (i % 249) as u8 + 1).collect();
            from.write(0x1000, &data).unwrap();
            to.write(0x1000, &[0; 36_000]).unwrap();
            to.copy_from(0x1000, &from, 0x1000, len as u64).unwrap();
            let mut back = vec![0; 36_000];
            to.read(0x1000, &mut back).unwrap();
            assert_eq!(back[..len], data[..len]);
            assert!(back[len..].iter().all(|b| *b == 0));
        }
    }
}

#[test]
fn lines_are_aligned_and_inside() {
    let m = mapping(4 * 4096);
    let pages = || [run(&m, 8192, 4096), run(&m, 0, 4096)];
    let memory = UserMemory::new(0, 8192, 0, Some(12), pages()).unwrap();
    memory.line(4096).unwrap()[7].store(9, Ordering::Relaxed);
    let mut bytes = [0; 64];
    memory.read(4096, &mut bytes).unwrap();
    assert_eq!(bytes[56], 9);
    for at in [1, 32, 8160, 8192, u64::MAX - 63] {
        assert!(memory.line(at).is_none(), "{at}");
    }
    assert!(UserMemory::new(0, 8192, 0, None, pages()).unwrap().line(0).is_none());
    let shifted = UserMemory::new(0, 4096, 32, Some(12), pages()).unwrap();
    assert!(shifted.line(0).is_none() && shifted.line(32).is_some());
}

#[test]
fn the_lines_of_a_ring_are_those_of_its_memory() {
    let m = mapping(8 * 4096);
    let pages = || [run(&m, 8192, 4096), run(&m, 0, 4096), run(&m, 4 * 4096, 8192)];
    for (shift, offset) in [(12, 0), (12, 128), (12, 4032)] {
        let memory = Arc::new(UserMemory::new(0, 12_000, offset, Some(shift), pages()).unwrap());
        for (at, count) in [(0, 100), (128, 64), (64, 1), (4096, 100)] {
            let lines = Lines::new(&memory, at, count).unwrap();
            for n in 0..count {
                let line = memory.line(at + 64 * u64::from(n)).unwrap();
                assert!(std::ptr::eq(lines.get(n).unwrap(), line), "line {n} from {at}");
                let words = lines.get32(n).unwrap();
                assert!(std::ptr::addr_eq(words, line) && size_of_val(words) == size_of_val(line));
            }
            assert!(lines.get(count).is_none() && lines.get(u32::MAX).is_none());
        }
        assert!(Lines::new(&memory, 0, 188).is_none(), "out of range");
        assert!(Lines::new(&memory, 8, 1).is_none(), "not aligned");
    }
    let whole = Arc::new(UserMemory::new(0, 8192, 64, Some(12), [run(&m, 64, 12_000)]).unwrap());
    let lines = Lines::new(&whole, 64, 120).unwrap();
    assert!(std::ptr::eq(lines.get(119).unwrap(), whole.line(64 * 120).unwrap()));
    let small = (0..32).map(|n| run(&m, (n ^ 1) * 256, 256));
    let small = Arc::new(UserMemory::new(0, 8192, 0, Some(8), small).unwrap());
    assert!(Lines::new(&small, 0, 16).is_none(), "pages of less than 4 KiB");
    assert!(Lines::new(&Arc::new(all_layouts().remove(2)), 0, 1).is_none(), "runs");
}

#[test]
fn a_stretch_holds_what_lies_together_and_no_more() {
    let m = mapping(16 * 4096);
    let sparse = [(0x1000, run(&m, 0, 4096)), (0x3000, run(&m, 8192, 8192))];
    for memory in all_layouts().into_iter().chain([UserMemory::sparse(sparse).unwrap()]) {
        for addr in (0xfc0..0x1000 + memory.len() + 64).step_by(8) {
            let Some(stretch) = memory.stretch(addr) else {
                assert!(memory.span(addr, 1).is_none(), "{addr:#x}");
                continue;
            };
            for (start, len) in [(addr, 1), (addr, 64), (addr - 64, 128), (addr, 4096), (addr, 0)] {
                let found = stretch.span(start, len);
                let right = memory.span(start, len);
                // It may leave out what is as good: a page that happens to lie behind this one.
                assert!(found.is_none() || found.map(|s| s.at) == right.map(|s| s.at));
                assert!(found.is_some() || len != 1, "{addr:#x}");
            }
            assert!(stretch.span(addr, u64::MAX).is_none() && stretch.span(u64::MAX, 2).is_none());
        }
    }
    assert!(Stretch::EMPTY.span(0, 1).is_none() && Stretch::EMPTY.span(0, 0).is_none());
}

#[test]
fn atomics_want_alignment_and_bounds() {
    let m = mapping(4096);
    let memory = UserMemory::new(0x1000, 64, 0, None, [run(&m, 0, 4096)]).unwrap();
    assert_eq!(memory.with_atomic(0x1008, |w| w.fetch_add(3, Ordering::Relaxed)), Some(0));
    assert_eq!(memory.with_atomic(0x1008, |w| w.load(Ordering::Relaxed)), Some(3));
    assert_eq!(memory.with_atomic(0x1004, |_| ()), None);
    assert_eq!(memory.with_atomic(0x1040, |_| ()), None);
}

#[test]
fn memory_on_demand_is_where_its_pages_are_and_nowhere_else() {
    let cx = &crate::MaySleep::claim().unwrap();
    let m = mapping(8 * 4096);
    let paging = Paging::new(7, 12, 4 * 4096, [m.clone()]).unwrap();
    let memory = UserMemory::on_demand(0x1000, 8200, 100, paging.clone()).unwrap();
    let map = |first, page: usize, writable| {
        paging.map(cx, first, [run(&m, page * 4096, 4096)], writable, 8).unwrap()
    };
    let pages = |first, count| Some(PageRange { first, count });
    let mut byte = [0];
    assert_eq!(memory.missing(0x1000, 8200, false), pages(0, 3));
    assert_eq!(memory.read(0x1000, &mut byte), Err(OutOfRange));
    assert!(map(1, 5, true));
    assert_eq!(memory.missing(0x1000, 8200, false), pages(0, 3), "from the first to the last");
    assert_eq!(memory.missing(0x1000 + 4096, 4000, true), pages(2, 1));
    assert!(map(0, 2, false) && map(2, 3, true));
    assert_eq!(memory.missing(0x1000, 8200, false), None);
    assert_eq!(memory.missing(0x1000, 8200, true), pages(0, 1), "not to be written");
    assert_eq!(memory.write(0x1000, &[1; 4000]), Err(OutOfRange));

    // From its second page on, over a border.
    memory.write(0x1000 + 3996, &[9; 4200]).unwrap();
    let plain = UserMemory::new(0, 8 * 4096, 0, None, [run(&m, 0, 8 * 4096)]).unwrap();
    let mut found = [0; 4200];
    plain.read(5 * 4096, &mut found[..4096]).unwrap();
    plain.read(3 * 4096, &mut found[4096..]).unwrap();
    assert_eq!(found, [9; 4200]);
    let add = |word: &AtomicU64| word.fetch_add(1, Ordering::SeqCst);
    assert_eq!(memory.with_atomic(0x1000 + 3996 + 8, add), Some(0x0909_0909_0909_0909));
    assert_eq!(memory.with_atomic(0x1000 + 4, add), None, "its page may not be written");

    paging.unmap(cx, PageRange { first: 1, count: 1 });
    assert_eq!(memory.missing(0x1000, 8200, false), pages(1, 1));
    assert_eq!(memory.read(0x1000 + 3996, &mut byte), Err(OutOfRange));
    assert!(plain.copy_from(0, &memory, 0x1000, 3996).is_ok(), "the others are there");
    assert!(memory.copy_from(0x1000 + 3990, &plain, 0, 10).is_err());
    let other = mapping(4096);
    assert_eq!(paging.map(cx, 0, [run(&other, 0, 4096)], true, 8), Err(OutOfRange));
    assert_eq!(paging.map(cx, 3, [run(&m, 0, 8192)], true, 8), Err(OutOfRange));
    assert_eq!(paging.map(cx, 0, [run(&m, 8, 4096)], true, 8), Err(OutOfRange));
}

#[test]
fn a_table_of_pages_costs_what_is_there_and_not_what_ever_was() {
    let cx = &crate::MaySleep::claim().unwrap();
    let m = mapping(4096);
    let paging = Paging::new(1, 12, u64::MAX, [m.clone()]).unwrap();
    let memory = UserMemory::on_demand(0, u64::MAX, 0, paging.clone()).unwrap();
    let map = |page: u64, most| paging.map(cx, page, [run(&m, 0, 4096)], true, most).unwrap();
    assert!(!map(0, 5), "six levels are needed");
    for n in 0..40_u64 {
        let page = n * 0x0001_0000_0003;
        assert!(map(page, 6), "place {n}: what was given up serves again");
        memory.write(page << 12, &[n as u8; 4096]).unwrap();
        assert_eq!(memory.missing((page << 12) + 1, 4096, false).map(|p| p.first), Some(page + 1));
        paging.unmap(cx, PageRange { first: page, count: 1 });
        assert!(memory.missing(page << 12, 1, false).is_some());
    }
    assert!(paging.room() <= 11 * 512, "{}", paging.room());
    for n in 0..20 {
        assert!(map(n << 40, 6));
    }
    paging.unmap_all(cx);
    assert!((0..20_u64).all(|n| memory.missing(n << 52, 1, false).is_some()));
}
