#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# On-demand paging against the kernel's own ways with memory: while the device writes, pages are given
# back, unmapped and copied on fork, and what the kernel then does with them must not be written by the
# device. One guest, two QPs of it connected to each other; python3-pyverbs is Debian's.
"""Usage: odp.py [ROUNDS]"""

import ctypes
import os
import sys

import pyverbs.enums as e
from pyverbs.mr import MR

sys.path.insert(0, os.getcwd())  # The lab lays this one where scripts start.
from loopback import ACCESS, Loopback

SIZE = 1 << 20
WRITES = 8
PART = SIZE // WRITES
PROT, PRIVATE, FIXED, DONTNEED = 3, 0x22, 0x10, 4
SIZE_MAX = (1 << 64) - 1

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + 3 * [ctypes.c_int] + [ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def anonymous(size, at=None):
    """New memory, at an address if one is given."""
    address = libc.mmap(at, size, PROT, PRIVATE | (FIXED if at else 0), -1, 0)
    assert address not in (None, SIZE_MAX), os.strerror(ctypes.get_errno())
    return address


def gone(result):
    assert result == 0, os.strerror(ctypes.get_errno())


def fill(address, byte, size=SIZE):
    ctypes.memset(address, byte, size)


def is_all(address, byte, size=SIZE):
    return ctypes.string_at(address, size) == bytes([byte]) * size


class Loop(Loopback):
    """Memory to write from, and memory on demand to write to."""

    def __init__(self, implicit):
        super().__init__()
        self.source = anonymous(SIZE)
        self.source_mr = MR(self.pd, SIZE, e.IBV_ACCESS_LOCAL_WRITE, address=self.source)
        self.target = anonymous(SIZE)
        access = ACCESS | e.IBV_ACCESS_ON_DEMAND
        if implicit:
            self.mr = MR(self.pd, SIZE, access, implicit=True)
        else:
            self.mr = MR(self.pd, SIZE, access, address=self.target)

    def write(self, byte):
        """Has all of the target written with a byte; does not wait."""
        fill(self.source, byte)
        for n in range(WRITES):
            self.put(n * PART, self.target + n * PART, PART)

    def put(self, offset, to, length):
        """Has bytes at an offset of the source written to an address."""
        self.post(e.IBV_WR_RDMA_WRITE, self.source + offset, length, self.source_mr.lkey, to,
                  self.mr.rkey)

    def done(self):
        assert self.statuses(WRITES) == [e.IBV_WC_SUCCESS] * WRITES


def given_back(loop, rounds):
    """Pages are given back while they are written; others, who get them, find nothing of that."""
    for n in range(rounds):
        loop.write(n % 200)
        gone(libc.madvise(loop.target, SIZE, DONTNEED))
        victim = anonymous(SIZE)
        fill(victim, 0xEE)
        loop.done()
        assert is_all(victim, 0xEE), f"round {n}: a page was written that was given back"
        gone(libc.munmap(victim, SIZE))
        loop.write(n % 200 + 1)
        loop.done()
        assert is_all(loop.target, n % 200 + 1), f"round {n}: what was written is not there"


def copied(loop, rounds):
    """A child's memory is as it was when it was forked, whatever the device writes for its parent."""
    for n in range(rounds):
        loop.write(n)
        loop.done()
        loop.write(n + 1)
        (go, ready), (told, tell) = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            before = ctypes.string_at(loop.target, SIZE)
            os.write(tell, b".")
            os.read(go, 1)
            os._exit(0 if before == ctypes.string_at(loop.target, SIZE) else 1)
        os.read(told, 1)
        loop.done()
        loop.write(n + 2)
        loop.done()
        os.write(ready, b".")
        assert os.waitpid(child, 0)[1] == 0, f"round {n}: a child's memory has changed"
        assert is_all(loop.target, n + 2), f"round {n}: what was written is not the parent's"
        for end in (go, ready, told, tell):
            os.close(end)


def unmapped(loop, rounds):
    """Memory goes while it is written: its WRITEs fail or were done; what comes there is left alone."""
    for n in range(rounds):
        loop.write(n)
        gone(libc.munmap(loop.target, SIZE))
        allowed = {e.IBV_WC_SUCCESS, e.IBV_WC_REM_ACCESS_ERR, e.IBV_WC_WR_FLUSH_ERR}
        assert set(loop.statuses(WRITES)) <= allowed
        assert anonymous(SIZE, loop.target) == loop.target
        fill(loop.target, 0xDD)
        loop.reset()
        assert is_all(loop.target, 0xDD), f"round {n}: written behind the back of its owner"
        loop.write(n + 1)
        loop.done()
        assert is_all(loop.target, n + 1)


def scattered(loop, rounds):
    """Pages far from one another come and go; where none is left, nothing is kept of them."""
    step, places = 2 << 20, 100
    far = anonymous(step * places)
    for n in range(min(rounds, 4)):
        fill(loop.source, n + 1, 8)
        for place in range(places):
            loop.put(0, far + place * step, 8)
            assert loop.statuses(1) == [e.IBV_WC_SUCCESS]
        assert all(is_all(far + place * step, n + 1, 8) for place in range(places))
        gone(libc.madvise(far, step * places, DONTNEED))
    gone(libc.munmap(far, step * places))


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    for implicit in (False, True):
        loop = Loop(implicit)
        kind = "implicit" if implicit else "explicit"
        tests = [given_back, copied, unmapped]
        for test in tests + [scattered] if implicit else tests:
            test(loop, rounds)
            print(f"{kind} {test.__name__}: ok", flush=True)
    print("odp: ok")


if __name__ == "__main__":
    main()
