#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Atomic write between guest 0 and guest 1, in both directions: a guest without our device takes rxe, so that
# both ends of the wire are somebody else's once; between two of our devices FLUSH too. rxe's FLUSH (Linux
# 7.3) can't be tried: the ICRC of such packets is not that of the bytes that it sends, so all others drop
# them, and it drops theirs. No ready-made program speaks either operation.

import os
import struct
import subprocess

import pyverbs.enums as e
from pyverbs.addr import AHAttr, GID, GlobalRoute
from pyverbs.cq import CQ
from pyverbs.device import Context
from pyverbs.mr import MR
from pyverbs.pd import PD
from pyverbs.qp import QPAttr, QPCap, QPEx, QPInitAttrEx
from pyverbs.wr import SGE

BYTES = 16384
ROUNDS = 50
RIGHTS = e.IBV_ACCESS_REMOTE_WRITE | e.IBV_ACCESS_REMOTE_READ
FLUSHES = e.IBV_ACCESS_FLUSH_GLOBAL | e.IBV_ACCESS_FLUSH_PERSISTENT
OPS = e.IBV_QP_EX_WITH_RDMA_WRITE | e.IBV_QP_EX_WITH_FLUSH | e.IBV_QP_EX_WITH_ATOMIC_WRITE


def shell(command):
    command = ["bash", "-c", "source ./rdma.sh && " + command]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def barrier(name, value=None):
    """What all guests said, in their order."""
    words = ["lab-barrier", name] + ([value] if value else [])
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.split()


class End:
    """A QP, its memory, and the peer's."""

    def __init__(self, context, gid_index):
        self.pd = PD(context)
        self.cq = CQ(context, 64)
        rights = e.IBV_ACCESS_LOCAL_WRITE | RIGHTS | e.IBV_ACCESS_FLUSH_GLOBAL
        self.mr = MR(self.pd, 2 * BYTES, rights)
        cap = QPCap(max_send_wr=16, max_recv_wr=1, max_recv_sge=1, max_send_sge=1)
        mask = e.IBV_QP_INIT_ATTR_PD | e.IBV_QP_INIT_ATTR_SEND_OPS_FLAGS
        init = QPInitAttrEx(cap=cap, qp_type=e.IBV_QPT_RC, scq=self.cq, rcq=self.cq, pd=self.pd,
                            send_ops_flags=OPS, comp_mask=mask)
        attr = QPAttr(port_num=1)
        attr.qp_access_flags = RIGHTS | FLUSHES
        self.qp = QPEx(context, init, attr)
        self.context, self.gid_index = context, gid_index
        self.peer = None

    def said(self):
        gid = str(self.context.query_gid(1, self.gid_index))
        return f"{self.qp.qp_num},{self.mr.rkey},{self.mr.buf},{gid}"

    def connect(self, said):
        qpn, rkey, addr, gid = said.split(",")
        self.peer = (int(rkey), int(addr))
        route = GlobalRoute(dgid=GID(gid), sgid_index=self.gid_index)
        attr = QPAttr(port_num=1, path_mtu=e.IBV_MTU_1024)
        attr.ah_attr = AHAttr(port_num=1, is_global=1, gr=route)
        attr.dest_qp_num = int(qpn)
        attr.rq_psn = attr.sq_psn = 0xFFFFF0
        attr.max_rd_atomic = attr.max_dest_rd_atomic = 1
        attr.min_rnr_timer, attr.timeout, attr.retry_cnt, attr.rnr_retry = 12, 16, 7, 7
        attr.qp_access_flags = RIGHTS | FLUSHES
        self.qp.to_rts(attr)

    def post(self, build):
        self.qp.wr_start()
        self.qp.wr_id = 1
        self.qp.wr_flags = e.IBV_SEND_SIGNALED
        build(self.qp)
        self.qp.wr_complete()

    def statuses(self, count):
        wcs = []
        while len(wcs) < count:
            wcs += self.cq.poll(count - len(wcs))[1]
        return [wc.status for wc in wcs]

    def flush(self, placement, level, length=BYTES):
        rkey, addr = self.peer
        self.post(lambda qp: qp.wr_flush(rkey, addr, length, placement, level))

    def write(self):
        rkey, addr = self.peer
        sge = SGE(self.mr.buf + BYTES, BYTES - 8, self.mr.lkey)

        def build(qp):
            qp.wr_rdma_write(rkey, addr)
            qp.wr_set_sge(sge)

        self.post(build)

    def atomic_write(self, value):
        rkey, addr = self.peer
        word = struct.pack("=Q", value)
        self.post(lambda qp: qp.wr_atomic_write(rkey, addr + BYTES - 8, word))


def main():
    index = int(os.environ["GUEST_INDEX"])
    device = os.environ["RDMA_DEVICE"]
    if not device:
        shell("add_rxe")
        device = "rxe0"
    flushes = "rxe0" not in barrier("devices", device)
    end = End(Context(name=device), int(shell(f"gid_index {device}")))
    barrier("up")
    shell('ping -q -c 1 -W 20 "$PEER_ADDR" > /dev/null')
    end.connect(barrier("ends", end.said())[1 - index])
    barrier("connected")

    pattern = [bytes((i * 7 + guest) % 251 for i in range(BYTES - 8)) for guest in (0, 1)]
    end.mr.write(pattern[index], BYTES - 8, BYTES)
    for n in range(ROUNDS):
        end.write()
        end.atomic_write(n << 32 | index)
        if flushes:
            end.flush(e.IBV_FLUSH_GLOBAL, e.IBV_FLUSH_RANGE)
            end.flush(e.IBV_FLUSH_GLOBAL, e.IBV_FLUSH_MR, 0)
        count = 4 if flushes else 2
        statuses = end.statuses(count)
        assert statuses == [e.IBV_WC_SUCCESS] * count, f"round {n}: {statuses}"
    barrier("written")
    peer = 1 - index
    assert end.mr.read(BYTES - 8, 0) == pattern[peer], "bytes differ"
    (word,) = struct.unpack("=Q", end.mr.read(8, BYTES - 8))
    assert word == (ROUNDS - 1) << 32 | peer, f"the last word is {word:#x}"
    barrier("read")
    # One after the other: who is refused takes the peer's QP along.
    if flushes and index == 0:
        end.flush(e.IBV_FLUSH_PERSISTENT, e.IBV_FLUSH_RANGE)
        assert end.statuses(1) == [e.IBV_WC_REM_ACCESS_ERR], "memory is not persistent"
    barrier("end")
    print(f"ok, {ROUNDS} rounds on {device}")


main()
