# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Two RC QPs of this guest's device, connected to each other, for the Python scripts here; the lab lays
# this file into the guests' /root. What memory they use is the scripts' affair.

import os
import sys

import pyverbs.enums as e
from pyverbs.addr import AHAttr, GlobalRoute
from pyverbs.cq import CQ
from pyverbs.device import Context
from pyverbs.pd import PD
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
from pyverbs.wr import SGE, SendWR

ACCESS = e.IBV_ACCESS_LOCAL_WRITE | e.IBV_ACCESS_REMOTE_WRITE | e.IBV_ACCESS_REMOTE_READ


class Loopback:
    """The first QP posts, the second is its peer."""

    def __init__(self):
        self.context = Context(name=os.environ["RDMA_DEVICE"])
        self.pd = PD(self.context)
        self.cq = CQ(self.context, 256)
        self.connect()

    def connect(self):
        cap = QPCap(max_send_wr=64, max_recv_wr=1)
        init = QPInitAttr(qp_type=e.IBV_QPT_RC, scq=self.cq, rcq=self.cq, cap=cap)
        self.qps = [QP(self.pd, init, QPAttr(port_num=1)) for _ in range(2)]
        for qp, peer in zip(self.qps, reversed(self.qps)):
            attr = QPAttr(port_num=1)
            attr.qp_access_flags = ACCESS
            qp.to_init(attr)
            attr.dest_qp_num, attr.path_mtu = peer.qp_num, e.IBV_MTU_4096
            attr.max_rd_atomic = attr.max_dest_rd_atomic = 1
            attr.min_rnr_timer, attr.rnr_retry, attr.retry_cnt, attr.timeout = 12, 7, 7, 18
            route = GlobalRoute(dgid=self.context.query_gid(1, self.gid()), sgid_index=self.gid())
            attr.ah_attr = AHAttr(gr=route, is_global=1, port_num=1)
            qp.to_rts(attr)

    def gid(self):
        """The entry of an IPv4 address, which is there as soon as the network is."""
        for index in range(16):
            gid = self.context.query_gid(1, index)
            if gid.gid.startswith("0000:0000:0000:0000:0000:ffff:"):
                return index
        sys.exit("the device has no IPv4 GID")

    def post(self, opcode, here, length, lkey, there, rkey):
        """Has bytes at an address of this side written to one of the other, or read from there."""
        wr = SendWR(opcode=opcode, num_sge=1, sg=[SGE(here, length, lkey)],
                    send_flags=e.IBV_SEND_SIGNALED)
        wr.set_wr_rdma(rkey, there)
        self.qps[0].post_send(wr)

    def statuses(self, count):
        """Waits for so many completions."""
        found = []
        while len(found) < count:
            polled, wcs = self.cq.poll(count)
            found += [wc.status for wc in wcs[:polled]]
        return found

    def reset(self):
        for qp in self.qps:
            qp.close()
        self.connect()
