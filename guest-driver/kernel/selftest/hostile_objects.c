// SPDX-License-Identifier: GPL-2.0
/*
 * The part of uverbs_hostile that names SRQs, memory, windows and device memory as they can't be,
 * asks the kernel for what is the process's own to do, and races itself.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hostile.h"

/* The handle of the SRQ, or -1. */
static int create_srq(uint32_t pd, uint32_t max_wr, uint32_t max_sge,
		      struct virtio_rdma_ureq_create_srq driver, size_t driver_len)
{
	struct {
		struct ib_uverbs_create_srq core;
		struct virtio_rdma_ureq_create_srq driver;
	} request = {
		.core = { .pd_handle = pd, .max_wr = max_wr, .max_sge = max_sge },
		.driver = driver,
	};
	struct {
		struct ib_uverbs_create_srq_resp core;
		struct virtio_rdma_uresp_create_srq driver;
	} answer = {};

	if (command(IB_USER_VERBS_CMD_CREATE_SRQ, &request, sizeof(request.core) + driver_len, &answer,
		    sizeof(answer)))
		return -1;
	return answer.core.srq_handle;
}

#define REFUSE_SRQ(member, value)                                                                \
	do {                                                                                     \
		struct virtio_rdma_ureq_create_srq bad = good;                                   \
		bad.member = value;                                                              \
		check(create_srq(pd, 16, 1, bad, sizeof(bad)) < 0,                               \
		      "an SRQ with " #member " = " #value);                                      \
	} while (0)

void refuses_bad_srqs(uint32_t pd, uint64_t buf, uint32_t bytes)
{
	const struct virtio_rdma_ureq_create_srq good = {
		.buf_addr = buf, .buf_bytes = bytes, .entries = 16, .offset = 64, .stride_shift = 6,
	};
	struct ib_uverbs_modify_srq modify = { .attr_mask = 2, .srq_limit = 17 };
	int srq;

	REFUSE_SRQ(buf_addr, 0);
	REFUSE_SRQ(buf_addr, buf + 64);
	REFUSE_SRQ(buf_addr, 0xffff888000000000);
	REFUSE_SRQ(buf_bytes, 64 + 16 * 64 - 1);
	REFUSE_SRQ(entries, 0);
	REFUSE_SRQ(entries, 8);
	REFUSE_SRQ(entries, 17);
	REFUSE_SRQ(entries, 1u << 31);
	REFUSE_SRQ(offset, 0);
	REFUSE_SRQ(offset, 65);
	REFUSE_SRQ(offset, 0xffffffc0);
	REFUSE_SRQ(stride_shift, 5);
	REFUSE_SRQ(stride_shift, 12);
	REFUSE_SRQ(stride_shift, 255);
	check(create_srq(pd, 0, 1, good, sizeof(good)) < 0, "an SRQ for no requests");
	check(create_srq(pd, UINT32_MAX, 1, good, sizeof(good)) < 0, "an SRQ for all requests");
	check(create_srq(pd, 16, 4, good, sizeof(good)) < 0, "an SRQ whose stride has no room");
	check(create_srq(pd, 16, UINT32_MAX, good, sizeof(good)) < 0, "an SRQ of 2^32 - 1 SGEs");
	check(create_srq(pd, 16, 1, good, sizeof(good) - 8) < 0, "an SRQ with a short request");
	check(create_srq(pd, 16, 1, good, 0) < 0, "an SRQ without the driver's request");
	srq = create_srq(pd, 16, 1, good, sizeof(good));
	if (!check(srq >= 0, "a good SRQ"))
		return;
	modify.srq_handle = srq;
	check(command_without_answer(IB_USER_VERBS_CMD_MODIFY_SRQ, &modify, sizeof(modify)),
	      "a limit beyond the SRQ");
	modify = (struct ib_uverbs_modify_srq){ .srq_handle = srq, .attr_mask = 1, .max_wr = 32 };
	check(command_without_answer(IB_USER_VERBS_CMD_MODIFY_SRQ, &modify, sizeof(modify)),
	      "an SRQ that grows");
}

static int resize_cq(uint32_t cq, uint32_t cqe, uint64_t buf, uint32_t bytes, uint32_t entries,
		     size_t driver_len)
{
	struct {
		struct ib_uverbs_resize_cq core;
		struct virtio_rdma_ureq_resize_cq driver;
	} request = {
		.core = { .cq_handle = cq, .cqe = cqe },
		.driver = { .buf_addr = buf, .buf_bytes = bytes, .entries = entries },
	};
	/* The kernel's structure ends in an empty array for the driver's. */
	struct {
		uint32_t cqe, reserved;
		struct virtio_rdma_uresp_resize_cq driver;
	} answer = {};

	return command(IB_USER_VERBS_CMD_RESIZE_CQ, &request, sizeof(request.core) + driver_len,
		       &answer, sizeof(answer));
}

void refuses_bad_resizing(uint32_t cq, uint64_t buf, uint32_t bytes)
{
	const size_t whole = sizeof(struct virtio_rdma_ureq_resize_cq);

	check(resize_cq(cq, 1, buf, bytes, 0, whole), "resizing to no slots");
	check(resize_cq(cq, 0, buf, bytes, 16, whole), "resizing for no completions");
	check(resize_cq(cq, 3, buf, bytes, 3, whole), "resizing to 3 slots");
	check(resize_cq(cq, 17, buf, bytes, 16, whole), "resizing to fewer slots than asked for");
	check(resize_cq(cq, 1, buf, bytes, 1u << 31, whole), "resizing to 2^31 slots");
	check(resize_cq(cq, UINT32_MAX, buf, bytes, 16, whole), "resizing for 2^32 - 1");
	check(resize_cq(cq, 16, buf, 128 + 64 * 16 - 1, 16, whole), "resizing to a short buffer");
	check(resize_cq(cq, 16, buf + 64, bytes - 64, 16, whole), "resizing to unaligned memory");
	check(resize_cq(cq, 16, 0xffff888000000000, bytes, 16, whole), "resizing to kernel memory");
	check(resize_cq(cq, 16, buf, bytes, 16, whole - 8), "resizing with a short request");
	check(resize_cq(cq, 16, buf, bytes, 16, 0), "resizing without the driver's request");
	check(resize_cq(cq + 1000, 16, buf, bytes, 16, whole), "resizing nothing");
	if (context.capabilities & VIRTIO_RDMA_CAP_CQ_RESIZE)
		check(!resize_cq(cq, 16, buf, bytes, 16, whole), "a good resizing");
}

static int reg_mr(uint32_t pd, uint64_t start, uint64_t length, uint32_t access)
{
	struct ib_uverbs_reg_mr request = {
		.start = start, .length = length, .hca_va = start, .pd_handle = pd,
		.access_flags = access,
	};
	struct ib_uverbs_reg_mr_resp answer = {};

	if (command(IB_USER_VERBS_CMD_REG_MR, &request, sizeof(request), &answer, sizeof(answer)))
		return -1;
	return answer.mr_handle;
}

static int rereg_mr(uint32_t mr, uint32_t pd, uint32_t flags, uint64_t start, uint64_t length,
		    uint32_t access)
{
	struct ib_uverbs_rereg_mr request = {
		.mr_handle = mr, .flags = flags, .start = start, .length = length, .hca_va = start,
		.pd_handle = pd, .access_flags = access,
	};
	struct ib_uverbs_rereg_mr_resp answer = {};

	return command(IB_USER_VERBS_CMD_REREG_MR, &request, sizeof(request), &answer,
		       sizeof(answer));
}

/* The handle of a good MR. */
int refuses_bad_memory(uint32_t pd, uint64_t buf, uint32_t bytes)
{
	const uint32_t on_demand = IB_UVERBS_ACCESS_ON_DEMAND;
	int mr;

	check(reg_mr(pd, buf, 0, 1) < 0, "an MR of nothing");
	check(reg_mr(pd, buf, UINT64_MAX, 1) < 0, "an MR of everything");
	check(reg_mr(pd, -PAGE, 2 * PAGE, 1) < 0, "an MR round the end");
	check(reg_mr(pd, 0xffff888000000000, PAGE, 1) < 0, "an MR of kernel memory");
	check(reg_mr(pd, buf, bytes, 2) < 0, "an MR with remote but no local write");
	check(reg_mr(pd, buf, 0, on_demand | 1) < 0, "an MR on demand of nothing");
	check(reg_mr(pd, -PAGE, 2 * PAGE, on_demand | 1) < 0, "an MR on demand round the end");
	check(reg_mr(pd, buf, bytes, on_demand | 2) < 0, "remote but no local write on demand");
	check(reg_mr(pd, buf, bytes, 1u << 31) < 0, "an MR with unknown rights");
	mr = reg_mr(pd, buf, bytes, 0);
	if (!check(mr >= 0, "a good MR"))
		return mr;
	check(rereg_mr(mr, pd, 0, buf, bytes, 1), "re-registering nothing of an MR");
	check(rereg_mr(mr, pd, 8, buf, bytes, 1), "re-registering what there is not");
	check(rereg_mr(mr, pd, 1, buf, 0, 1), "re-registering an MR of nothing");
	check(rereg_mr(mr, pd, 1, buf, UINT64_MAX, 1), "re-registering an MR of everything");
	check(rereg_mr(mr, pd, 1, 0xffff888000000000, PAGE, 1), "re-registering kernel memory");
	check(rereg_mr(mr, pd, 4, 0, 0, 2), "re-registering remote but no local write");
	check(rereg_mr(mr, pd, 4, 0, 0, 1u << 31), "re-registering unknown rights");
	check(rereg_mr(mr + 1000, pd, 4, 0, 0, 1), "re-registering no MR");
	check(rereg_mr(mr, pd + 1000, 2, 0, 0, 1), "re-registering for no PD");
	if (!(context.capabilities & VIRTIO_RDMA_CAP_REREG_MR))
		return mr;
	/* The memory was pinned for reading. */
	check(!rereg_mr(mr, pd, 4, 0, 0, 3), "re-registering to be written");
	check(!rereg_mr(mr, pd, 7, buf + 100, bytes - 200, 7), "re-registering all of an MR");
	return mr;
}

void refuses_other_windows_groups_and_domains(uint32_t pd, uint32_t qp)
{
	struct ib_uverbs_alloc_mw mw = { .pd_handle = pd, .mw_type = 3 };
	struct ib_uverbs_alloc_mw_resp mw_answer = {};
	struct ib_uverbs_attach_mcast group = { .gid = { 0xff, 0x0e, [15] = 1 }, .qp_handle = qp };
	struct ib_uverbs_open_xrcd domain = { .fd = -1, .oflags = O_CREAT };
	struct ib_uverbs_open_xrcd_resp domain_answer = {};
	struct ib_uverbs_create_xsrq srq = {
		.srq_type = 1, .pd_handle = pd, .max_wr = 16, .max_sge = 1, .xrcd_handle = 1000,
		.cq_handle = 1000,
	};
	struct ib_uverbs_create_srq_resp srq_answer = {};

	check(command(IB_USER_VERBS_CMD_ALLOC_MW, &mw, sizeof(mw), &mw_answer, sizeof(mw_answer)),
	      "a window of type 3");
	mw.mw_type = 0;
	check(command(IB_USER_VERBS_CMD_ALLOC_MW, &mw, sizeof(mw), &mw_answer, sizeof(mw_answer)),
	      "a window of type 0");
	mw = (struct ib_uverbs_alloc_mw){ .pd_handle = pd + 1000, .mw_type = 1 };
	check(command(IB_USER_VERBS_CMD_ALLOC_MW, &mw, sizeof(mw), &mw_answer, sizeof(mw_answer)),
	      "a window of no PD");
	mw.pd_handle = pd;
	if (context.capabilities & VIRTIO_RDMA_CAP_MW)
		check(!command(IB_USER_VERBS_CMD_ALLOC_MW, &mw, sizeof(mw), &mw_answer,
			       sizeof(mw_answer)), "a good window");
	check(command_without_answer(IB_USER_VERBS_CMD_ATTACH_MCAST, &group, sizeof(group)),
	      "an RC QP in a multicast group");
	check(command_without_answer(IB_USER_VERBS_CMD_DETACH_MCAST, &group, sizeof(group)),
	      "an RC QP out of a multicast group");
	check(command(IB_USER_VERBS_CMD_CREATE_XSRQ, &srq, sizeof(srq), &srq_answer,
		      sizeof(srq_answer)), "an SRQ of no XRC domain");
	if (context.capabilities & VIRTIO_RDMA_CAP_XRC)
		check(!command(IB_USER_VERBS_CMD_OPEN_XRCD, &domain, sizeof(domain),
			       &domain_answer, sizeof(domain_answer)), "a good XRC domain");
}

/* An ioctl of attributes; those whose flag says so are optional. */
static int method(uint16_t object, uint16_t number, struct ib_uverbs_attr *attrs, uint16_t num)
{
	struct {
		struct ib_uverbs_ioctl_hdr header;
		struct ib_uverbs_attr attrs[4];
	} request = {
		.header = {
			.length = sizeof(request.header) + num * sizeof(*attrs),
			.object_id = object,
			.method_id = number,
			.num_attrs = num,
		},
	};
	int err;

	memcpy(request.attrs, attrs, num * sizeof(*attrs));
	err = ioctl(fd, RDMA_VERBS_IOCTL, &request);
	memcpy(attrs, request.attrs, num * sizeof(*attrs));
	return err;
}

static struct ib_uverbs_attr number_attr(uint16_t id, uint16_t bytes, uint64_t value)
{
	return (struct ib_uverbs_attr){
		.attr_id = id, .len = bytes, .flags = UVERBS_ATTR_F_MANDATORY, .data = value,
	};
}

/* The handle, or -1. */
static int64_t alloc_dm(uint64_t length, uint32_t align)
{
	struct ib_uverbs_attr attrs[] = {
		number_attr(UVERBS_ATTR_ALLOC_DM_HANDLE, 0, 0),
		number_attr(UVERBS_ATTR_ALLOC_DM_LENGTH, 8, length),
		number_attr(UVERBS_ATTR_ALLOC_DM_ALIGNMENT, 4, align),
	};

	return method(UVERBS_OBJECT_DM, UVERBS_METHOD_DM_ALLOC, attrs, 3) ? -1 :
	       (int64_t)attrs[0].data;
}

static int copy_dm(uint64_t handle, struct virtio_rdma_ureq_copy_dm copy, uint16_t bytes)
{
	struct ib_uverbs_attr attrs[] = {
		number_attr(VIRTIO_RDMA_ATTR_COPY_DM_HANDLE, 0, handle),
		number_attr(VIRTIO_RDMA_ATTR_COPY_DM_REQUEST, bytes, (uintptr_t)&copy),
	};

	return method(UVERBS_OBJECT_DM, VIRTIO_RDMA_METHOD_COPY_DM, attrs, 2);
}

#define REFUSE_COPY(member, value)                                                               \
	do {                                                                                     \
		struct virtio_rdma_ureq_copy_dm bad = good;                                      \
		bad.member = value;                                                              \
		check(copy_dm(dm, bad, sizeof(bad)), "a copy with " #member " = " #value);       \
	} while (0)

void refuses_bad_device_memory(uint64_t buf, uint32_t bytes)
{
	const struct virtio_rdma_ureq_copy_dm good = { .addr = buf, .length = 8192 };
	int64_t dm;

	check(bytes >= good.length, "the caller's buffer");
	check(alloc_dm(0, 0) < 0, "device memory of nothing");
	check(alloc_dm(UINT64_MAX, 0) < 0, "device memory without end");
	check(alloc_dm(1ull << 40, 0) < 0, "device memory of 2^40");
	check(alloc_dm(4096, 63) < 0, "device memory aligned to 2^63");
	check(alloc_dm(4096, UINT32_MAX) < 0, "device memory aligned to anything");
	check(copy_dm(1000, good, sizeof(good)), "a copy of none");
	if (!(context.capabilities & VIRTIO_RDMA_CAP_DEVICE_MEMORY))
		return;
	dm = alloc_dm(8192, 0);
	if (!check(dm >= 0, "good device memory"))
		return;
	REFUSE_COPY(addr, 0);
	REFUSE_COPY(addr, 0xffff888000000000);
	REFUSE_COPY(addr, -PAGE);
	REFUSE_COPY(offset, 4);
	REFUSE_COPY(offset, 1);
	REFUSE_COPY(offset, UINT64_MAX - 3);
	REFUSE_COPY(length, 8196);
	REFUSE_COPY(length, 3);
	REFUSE_COPY(length, UINT64_MAX - 3);
	REFUSE_COPY(write, 2);
	REFUSE_COPY(reserved, 1);
	check(copy_dm(dm, good, sizeof(good) - 8), "a copy with a short request");
	check(!copy_dm(dm, good, sizeof(good)), "a good copy");
}

/* What processes do by themselves, the kernel does not do for them. */
void posts_and_polls_nothing(uint32_t qp, uint32_t cq)
{
	struct ib_uverbs_poll_cq poll = { .cq_handle = cq, .ne = 1 };
	struct ib_uverbs_req_notify_cq notify = { .cq_handle = cq };
	char answer[256] = {};
	struct {
		struct ib_uverbs_post_send core;
		struct ib_uverbs_send_wr wr;
	} send = {
		.core = { .qp_handle = qp, .wr_count = 1, .wqe_size = sizeof(send.wr) },
		.wr = { .opcode = 32 },
	};
	struct {
		struct ib_uverbs_post_recv core;
		struct ib_uverbs_recv_wr wr;
	} recv = { .core = { .qp_handle = qp, .wr_count = 1, .wqe_size = sizeof(recv.wr) } };

	check(command(IB_USER_VERBS_CMD_POLL_CQ, &poll, sizeof(poll), answer, sizeof(answer)),
	      "polling by the kernel");
	check(command_without_answer(IB_USER_VERBS_CMD_REQ_NOTIFY_CQ, &notify, sizeof(notify)),
	      "arming by the kernel");
	check(command(IB_USER_VERBS_CMD_POST_SEND, &send, sizeof(send), answer, 4),
	      "posting by the kernel");
	check(command(IB_USER_VERBS_CMD_POST_RECV, &recv, sizeof(recv), answer, 4),
	      "posting a receive by the kernel");
	check(command(IB_USER_VERBS_CMD_POST_SRQ_RECV, &recv, sizeof(recv), answer, 4),
	      "posting to no SRQ by the kernel");
}

/* Two processes with the same objects, at the same time: whatever comes of it, none is hurt. */
void races_itself(uint32_t cq, uint32_t pd, uint32_t mr, uint64_t buf, uint32_t bytes)
{
	pid_t child = fork();
	int round, status;

	if (!check(child >= 0, "fork"))
		return;
	for (round = 0; round < 50; round++) {
		resize_cq(cq, 16, buf, bytes, 16 << (round & 1),
			  sizeof(struct virtio_rdma_ureq_resize_cq));
		rereg_mr(mr, pd, 1 + 4 * (round & 1), buf + 64 * (round % 7), bytes - 4096, 7);
		rereg_mr(mr, pd, 4, 0, 0, round & 1 ? 0 : 7);
	}
	if (!child)
		_exit(0);
	check(waitpid(child, &status, 0) == child && !status, "the other process");
}
