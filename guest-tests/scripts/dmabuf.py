#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# dma-bufs as memory regions: those of /dev/udmabuf (of a process's pages, one by one) and of
# /dev/dma_heap/system (which come in larger pieces), in one guest with two QPs connected to each other.
# What the device does is looked at through mappings of that memory.
"""Usage: dmabuf.py"""

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import struct
import subprocess
import sys

import pyverbs.enums as e
from pyverbs.mr import MR, DmaBufMR
from pyverbs.pyverbs_error import PyverbsRDMAError

sys.path.insert(0, os.getcwd())  # The lab lays this one where scripts start.
from loopback import ACCESS, Loopback

SIZE = 4 << 20
UDMABUF, UDMABUF_CREATE = "/dev/udmabuf", 0x40187542
HEAP, HEAP_ALLOC = "/dev/dma_heap/system", 0xC0184800
F_ADD_SEALS, F_SEAL_SHRINK = 1033, 2
BUFINFO = "/sys/kernel/debug/dma_buf/bufinfo"


def of_memfd():
    """A dma-buf, and a mapping of what it is made of."""
    memfd = os.memfd_create("dmabuf", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(memfd, SIZE)
    fcntl.fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK)
    memory = mmap.mmap(memfd, SIZE)
    device = os.open(UDMABUF, os.O_RDWR)
    # Of a bytearray rather than of bytes, for then the call's own value is returned.
    wanted = bytearray(struct.pack("IIQQ", memfd, 1, 0, SIZE))
    fd = fcntl.ioctl(device, UDMABUF_CREATE, wanted)
    os.close(device)
    os.close(memfd)
    return fd, memory


def of_heap():
    device = os.open(HEAP, os.O_RDWR)
    wanted = bytearray(struct.pack("QIIQ", SIZE, 0, os.O_RDWR | os.O_CLOEXEC, 0))
    fcntl.ioctl(device, HEAP_ALLOC, wanted)
    os.close(device)
    fd = struct.unpack("QIIQ", wanted)[1]
    return fd, mmap.mmap(fd, SIZE)


class Plain:
    """An ordinary MR."""

    def __init__(self, pd):
        self.memory = mmap.mmap(-1, SIZE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.mr = MR(pd, SIZE, ACCESS, address=self.address)


def done(loop, *work):
    loop.post(*work)
    assert loop.statuses(1) == [e.IBV_WC_SUCCESS]


def refused(number, register, *arguments, **named):
    try:
        register(*arguments, **named)
    except PyverbsRDMAError as error:
        assert error.error_code == number, error
    else:
        sys.exit(f"{arguments} {named} is not refused")


def both_ways(loop, plain, export):
    """All of a dma-buf is written to, read from and sent from, when its descriptor is long closed."""
    fd, memory = export()
    mr = DmaBufMR(loop.pd, SIZE, ACCESS, dmabuf=fd)
    os.close(fd)
    plain.memory[:] = os.urandom(SIZE)
    done(loop, e.IBV_WR_RDMA_WRITE, plain.address, SIZE, plain.mr.lkey, 0, mr.rkey)
    assert memory[:] == plain.memory[:], "the dma-buf has not what was written to it"
    memory[:] = os.urandom(SIZE)
    done(loop, e.IBV_WR_RDMA_WRITE, 0, SIZE, mr.lkey, plain.address, plain.mr.rkey)
    assert memory[:] == plain.memory[:], "what was written from the dma-buf is not there"
    memory[:] = os.urandom(SIZE)
    done(loop, e.IBV_WR_RDMA_READ, plain.address, SIZE, plain.mr.lkey, 0, mr.rkey)
    assert memory[:] == plain.memory[:], "what was read from the dma-buf is not there"
    mr.close()


def a_part(loop, plain, export):
    """Of a part of a dma-buf all of that is reached, and nothing else."""
    fd, memory = export()
    offset, length = 3 * 4096 + 100, (1 << 20) + 13
    mr = DmaBufMR(loop.pd, length, ACCESS, dmabuf=fd, offset=offset)
    os.close(fd)
    memory[:] = before = os.urandom(SIZE)
    plain.memory[:] = os.urandom(SIZE)
    write = (e.IBV_WR_RDMA_WRITE, plain.address, length, plain.mr.lkey)
    done(loop, *write, offset, mr.rkey)
    expected = before[:offset] + plain.memory[:length] + before[offset + length:]
    assert memory[:] == expected, "not exactly the part was written"
    for there in (offset - 1, offset + 1):
        loop.post(*write, there, mr.rkey)
        assert loop.statuses(1) == [e.IBV_WC_REM_ACCESS_ERR]
        loop.reset()
    assert memory[:] == expected, "something was written that should have been refused"
    key = mr.rkey
    mr.close()
    loop.post(*write, offset, key)
    assert loop.statuses(1) == [e.IBV_WC_REM_ACCESS_ERR]
    loop.reset()
    assert memory[:] == expected, "something was written when the MR was gone"


def reregister(loop, mr, flags, start=0, length=0, access=0):
    """The kernel's command (IB_USER_VERBS_CMD_REREG_MR), which libibverbs would not send for a dma-buf."""
    answer = ctypes.create_string_buffer(8)
    words = (11, 14, 2, ctypes.addressof(answer), mr.handle, flags, start, length, start, 0, access)
    try:
        os.write(loop.context.cmd_fd, struct.pack("=IHHQIIQQQII", *words))
    except OSError as error:
        return error.errno
    return 0


def bad_requests(loop, plain, export):
    """What is no dma-buf, or not in it, is refused; and so is a dma-buf's change into something else."""
    fd, memory = export()
    for number, wrong in [
        (errno.EBADF, {"dmabuf": 1000}),
        (errno.EINVAL, {"dmabuf": 0}),
        (errno.EINVAL, {"offset": 4096}),
        (errno.EINVAL, {"offset": SIZE}),
        (errno.EINVAL, {"offset": (1 << 64) - 4096}),
        (errno.EINVAL, {"length": 0}),
        (errno.EINVAL, {"length": SIZE + 1}),
        (errno.EINVAL, {"length": (1 << 64) - 1}),
        (errno.EINVAL, {"access": e.IBV_ACCESS_REMOTE_WRITE}),
    ]:
        request = {"length": SIZE, "access": ACCESS, "dmabuf": fd} | wrong
        refused(number, DmaBufMR, loop.pd, **request)
    reading = DmaBufMR(loop.pd, SIZE, e.IBV_ACCESS_REMOTE_READ, dmabuf=fd)
    os.close(fd)
    for flags, place in [(1, (plain.address, SIZE)), (4, ()), (5, (plain.address, SIZE))]:
        assert reregister(loop, reading, flags, *place, access=ACCESS) == errno.EINVAL
    # The command is right: it does this to another MR.
    other = MR(loop.pd, SIZE, ACCESS, address=plain.address)
    assert reregister(loop, other, 4, access=ACCESS) == 0
    other.close()
    memory[:], plain.memory[:] = b"\1" * SIZE, b"\2" * SIZE
    loop.post(e.IBV_WR_RDMA_WRITE, plain.address, SIZE, plain.mr.lkey, 0, reading.rkey)
    assert loop.statuses(1) == [e.IBV_WC_REM_ACCESS_ERR]
    loop.reset()
    assert memory[:] == b"\1" * SIZE, "a dma-buf was written that is only to be read"
    reading.close()


def exported():
    """How many dma-bufs the kernel has."""
    with open(BUFINFO, encoding="ascii") as lines:
        return int(next(line for line in lines if line.startswith("Total ")).split()[1])


def main():
    exporters = {UDMABUF: of_memfd, HEAP: of_heap}
    missing = [device for device in exporters if not os.path.exists(device)]
    if missing:
        # The kernels of UML guests and of Debian 12 are built without exporters.
        release = platform.release()
        if not release.endswith("-vrdma") and not release.startswith("6.1."):
            sys.exit(f"this kernel lacks {missing}")
        print(f"dmabuf: SKIPPED, this guest's kernel has no {' and no '.join(missing)}")
        return
    if not os.path.exists(BUFINFO):
        subprocess.run("mount -t debugfs none /sys/kernel/debug", shell=True, check=True)
    before = exported()
    loop = Loopback()
    plain = Plain(loop.pd)
    for device, export in exporters.items():
        for test in (both_ways, a_part, bad_requests):
            test(loop, plain, export)
            print(f"{device} {test.__name__}: ok", flush=True)
    assert exported() == before, "the kernel still has dma-bufs that nobody uses"
    print("dmabuf: ok")


if __name__ == "__main__":
    main()
