// SPDX-License-Identifier: GPL-2.0
/*
 * Speaks to the driver's uverbs device as a hostile process would, without libibverbs: maps what
 * it may not, names buffers that are none, scribbles over its user access region. Everything must
 * be refused, and a well-formed request still succeed afterwards.
 *
 *   cc -I../include uverbs_hostile.c && ./a.out /dev/infiniband/uverbs0
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <rdma/ib_user_verbs.h>
#include <rdma/rdma_user_ioctl_cmds.h>

#include "virtio_rdma_abi.h"
#include "virtio_rdma_uapi.h"

#define PAGE 4096ul

static int fd;
static unsigned int checks, failed;
static struct virtio_rdma_uresp_alloc_ucontext context;

static bool check(bool ok, const char *format, ...)
{
	va_list args;

	checks++;
	if (ok)
		return true;
	failed++;
	printf("FAILED: ");
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf(" (%s)\n", strerror(errno));
	return false;
}

/* One command of the write() interface. The request starts with the address of the answer. */
static int command(uint32_t number, void *request, size_t request_len, void *answer,
		   size_t answer_len)
{
	struct ib_uverbs_cmd_hdr header = {
		.command = number,
		.in_words = (sizeof(header) + request_len) / 4,
		.out_words = answer_len / 4,
	};
	char message[512];

	*(uint64_t *)request = (uintptr_t)answer;
	memcpy(message, &header, sizeof(header));
	memcpy(message + sizeof(header), request, request_len);
	return write(fd, message, sizeof(header) + request_len) < 0 ? -1 : 0;
}

static void get_context(void)
{
	struct ib_uverbs_get_context request = {};
	struct {
		struct ib_uverbs_get_context_resp core;
		struct virtio_rdma_uresp_alloc_ucontext driver;
	} answer = {};

	if (command(IB_USER_VERBS_CMD_GET_CONTEXT, &request, sizeof(request), &answer,
		    sizeof(answer))) {
		perror("GET_CONTEXT");
		exit(1);
	}
	context = answer.driver;
}

static void *map(uint64_t offset, size_t bytes, int prot, int flags)
{
	return mmap(NULL, bytes, prot, flags, fd, offset);
}

static void refuse_map(uint64_t offset, size_t bytes, int prot, int flags, const char *what)
{
	void *at = map(offset, bytes, prot, flags);

	check(at == MAP_FAILED, "%s could be mapped", what);
	if (at != MAP_FAILED)
		munmap(at, bytes);
}

static void maps_only_what_is_its_own(void)
{
	const int rw = PROT_READ | PROT_WRITE;
	uint64_t page;
	void *at;

	refuse_map(context.status_offset, PAGE, rw, MAP_SHARED, "the status page, writable,");
	refuse_map(context.status_offset, PAGE, PROT_READ, MAP_PRIVATE, "the status page, private,");
	refuse_map(context.status_offset, 2 * PAGE, PROT_READ, MAP_SHARED, "more than the status page");
	refuse_map(context.uar_offset, context.uar_bytes + PAGE, rw, MAP_SHARED, "more than the UAR");
	refuse_map(context.uar_offset, context.uar_bytes, rw | PROT_EXEC, MAP_SHARED,
		   "the UAR, executable,");
	refuse_map(context.uar_offset + PAGE, PAGE, rw, MAP_SHARED, "the inside of the UAR");

	at = map(context.status_offset, PAGE, PROT_READ, MAP_SHARED);
	check(at != MAP_FAILED, "the status page");
	if (at != MAP_FAILED) {
		check(mprotect(at, PAGE, rw) && errno == EACCES, "the status page became writable");
		munmap(at, PAGE);
	}
	/* Every page of the file's first 4 MiB that is not one of ours. */
	for (page = 0; page < 1024; page++) {
		uint64_t offset = page * PAGE;

		if (offset == context.status_offset ||
		    (context.doorbell_offset && offset >= context.doorbell_offset &&
		     offset < context.doorbell_offset + context.num_comp_vectors * PAGE) ||
		    (offset == context.uar_offset && context.uar_bytes == PAGE))
			continue;
		refuse_map(offset, PAGE, rw, MAP_SHARED, "an offset without meaning");
	}
}

static int ring(uint32_t vector)
{
	struct {
		struct ib_uverbs_ioctl_hdr header;
		struct ib_uverbs_attr attr;
	} request = {
		.header = {
			.length = sizeof(request),
			.object_id = VIRTIO_RDMA_OBJECT_DOORBELL,
			.method_id = VIRTIO_RDMA_METHOD_RING,
			.num_attrs = 1,
		},
		.attr = {
			.attr_id = VIRTIO_RDMA_ATTR_RING_VECTOR,
			.len = sizeof(vector),
			.flags = UVERBS_ATTR_F_MANDATORY,
			.data = vector,
		},
	};

	return ioctl(fd, RDMA_VERBS_IOCTL, &request);
}

static void rings_only_doorbells_that_there_are(void)
{
	uint32_t v;

	for (v = 0; v < context.num_comp_vectors; v++)
		check(!ring(v), "ring %u", v);
	check(ring(context.num_comp_vectors) && errno == EINVAL, "ring of a vector that is none");
	check(ring(UINT32_MAX) && errno == EINVAL, "ring of the last number");
}

static void scribbles_over_its_region(void)
{
	uint64_t *uar = map(context.uar_offset, context.uar_bytes, PROT_READ | PROT_WRITE, MAP_SHARED);
	uint32_t i, v;

	check(uar != MAP_FAILED, "the UAR");
	if (uar == MAP_FAILED)
		return;
	for (i = 0; i < 100; i++) {
		memset(uar, 0xff, context.uar_bytes);
		for (v = 0; v < context.num_comp_vectors; v++)
			ring(v);
	}
	munmap(uar, context.uar_bytes);
	if (!context.doorbell_offset)
		return;
	for (v = 0; v < context.num_comp_vectors; v++) {
		volatile uint16_t *door = map(context.doorbell_offset + v * PAGE, PAGE, PROT_WRITE,
					      MAP_SHARED);

		check(door != MAP_FAILED, "doorbell %u", v);
		if (door == MAP_FAILED)
			continue;
		for (i = 0; i < PAGE / 2; i++)
			door[i] = 0xffff - i;
		munmap((void *)door, PAGE);
	}
}

/* The handle of the CQ, or -1. */
static int create_cq(uint64_t buf, uint32_t bytes, uint32_t entries, uint32_t cqe, size_t driver_len)
{
	struct {
		struct ib_uverbs_create_cq core;
		struct virtio_rdma_ureq_create_cq driver;
	} request = {
		.core = { .cqe = cqe, .comp_channel = -1 },
		.driver = { .buf_addr = buf, .buf_bytes = bytes, .entries = entries },
	};
	struct {
		struct ib_uverbs_create_cq_resp core;
		struct virtio_rdma_uresp_create_cq driver;
	} answer = {};

	if (command(IB_USER_VERBS_CMD_CREATE_CQ, &request, sizeof(request.core) + driver_len, &answer,
		    sizeof(answer)))
		return -1;
	return answer.core.cq_handle;
}

static void refuses_bad_cqs(uint64_t buf, uint32_t bytes)
{
	const size_t whole = sizeof(struct virtio_rdma_ureq_create_cq);

	check(create_cq(buf, bytes, 0, 1, whole) < 0, "a CQ without slots");
	check(create_cq(buf, bytes, 3, 3, whole) < 0, "a CQ of 3 slots");
	check(create_cq(buf, bytes, 1u << 31, 1, whole) < 0, "a CQ of 2^31 slots");
	check(create_cq(buf, bytes, 16, 17, whole) < 0, "a CQ with fewer slots than asked for");
	check(create_cq(buf, 128 + 64 * 16 - 1, 16, 16, whole) < 0, "a CQ that is not all in its buffer");
	check(create_cq(buf, 0, 16, 16, whole) < 0, "a CQ in an empty buffer");
	check(create_cq(buf + 64, bytes - 64, 16, 16, whole) < 0, "a CQ that is not page aligned");
	check(create_cq(0, bytes, 16, 16, whole) < 0, "a CQ at 0");
	check(create_cq(0xffff888000000000, bytes, 16, 16, whole) < 0, "a CQ in kernel memory");
	check(create_cq(-PAGE, bytes, 16, 16, whole) < 0, "a CQ at the end of memory");
	check(create_cq(buf, bytes, 16, 16, whole - 8) < 0, "a CQ with a short request");
	check(create_cq(buf, bytes, 16, 16, 0) < 0, "a CQ without the driver's request");
}

static struct virtio_rdma_ureq_create_qp good_qp(uint64_t buf, uint32_t bytes)
{
	return (struct virtio_rdma_ureq_create_qp){
		.buf_addr = buf, .buf_bytes = bytes, .sq_entries = 16, .rq_entries = 16,
		.sq_offset = 64, .rq_offset = 64 + 16 * 64, .max_inline = 32,
		.sq_stride_shift = 6, .rq_stride_shift = 6,
	};
}

static int create_qp(uint32_t pd, uint32_t cq, struct virtio_rdma_ureq_create_qp driver)
{
	struct {
		struct ib_uverbs_create_qp core;
		struct virtio_rdma_ureq_create_qp driver;
	} request = {
		.core = {
			.pd_handle = pd, .send_cq_handle = cq, .recv_cq_handle = cq,
			.max_send_wr = 16, .max_recv_wr = 16, .max_send_sge = 1, .max_recv_sge = 1,
			.max_inline_data = 32, .qp_type = 2,
		},
		.driver = driver,
	};
	struct {
		struct ib_uverbs_create_qp_resp core;
		struct virtio_rdma_uresp_create_qp driver;
	} answer = {};

	if (command(IB_USER_VERBS_CMD_CREATE_QP, &request, sizeof(request), &answer, sizeof(answer)))
		return -1;
	return answer.core.qp_handle;
}

#define REFUSE_QP(member, value)                                                                 \
	do {                                                                                     \
		struct virtio_rdma_ureq_create_qp bad = good_qp(buf, bytes);                     \
		bad.member = value;                                                              \
		check(create_qp(pd, cq, bad) < 0, "a QP with " #member " = " #value);            \
	} while (0)

static void refuses_bad_qps(uint32_t pd, uint32_t cq, uint64_t buf, uint32_t bytes)
{
	REFUSE_QP(buf_addr, 0);
	REFUSE_QP(buf_addr, buf + 64);
	REFUSE_QP(buf_addr, 0xffff888000000000);
	REFUSE_QP(buf_bytes, 64 + 2 * 16 * 64 - 1);
	REFUSE_QP(buf_bytes, 0);
	REFUSE_QP(sq_entries, 8);
	REFUSE_QP(sq_entries, 17);
	REFUSE_QP(sq_entries, 1u << 31);
	REFUSE_QP(rq_entries, 0);
	REFUSE_QP(rq_entries, UINT32_MAX);
	REFUSE_QP(sq_offset, 0);
	REFUSE_QP(sq_offset, 65);
	REFUSE_QP(sq_offset, 0xffffffc0);
	REFUSE_QP(rq_offset, 64); /* over the send queue */
	REFUSE_QP(rq_offset, 0xffffffc0);
	REFUSE_QP(sq_stride_shift, 5);
	REFUSE_QP(sq_stride_shift, 12);
	REFUSE_QP(sq_stride_shift, 255);
	REFUSE_QP(rq_stride_shift, 32);
	REFUSE_QP(max_inline, 33); /* 32 + 33 bytes are more than the stride */
	REFUSE_QP(max_inline, 31);
	REFUSE_QP(max_inline, UINT32_MAX);
}

/* A command whose request does not begin with the address of an answer. */
static int command_without_answer(uint32_t number, const void *request, size_t request_len)
{
	struct ib_uverbs_cmd_hdr header = {
		.command = number,
		.in_words = (sizeof(header) + request_len) / 4,
	};
	char message[512];

	memcpy(message, &header, sizeof(header));
	memcpy(message + sizeof(header), request, request_len);
	return write(fd, message, sizeof(header) + request_len) < 0 ? -1 : 0;
}

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

static void refuses_bad_srqs(uint32_t pd, uint64_t buf, uint32_t bytes)
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

static void refuses_bad_resizing(uint32_t cq, uint64_t buf, uint32_t bytes)
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
static int refuses_bad_memory(uint32_t pd, uint64_t buf, uint32_t bytes)
{
	int mr;

	check(reg_mr(pd, buf, 0, 1) < 0, "an MR of nothing");
	check(reg_mr(pd, buf, UINT64_MAX, 1) < 0, "an MR of everything");
	check(reg_mr(pd, -PAGE, 2 * PAGE, 1) < 0, "an MR round the end");
	check(reg_mr(pd, 0xffff888000000000, PAGE, 1) < 0, "an MR of kernel memory");
	check(reg_mr(pd, buf, bytes, 2) < 0, "an MR with remote but no local write");
	check(reg_mr(pd, buf, bytes, 64) < 0, "an MR that is not there (on demand)");
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

static void refuses_other_windows_groups_and_domains(uint32_t pd, uint32_t qp)
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

/* What processes do by themselves, the kernel does not do for them. */
static void posts_and_polls_nothing(uint32_t qp, uint32_t cq)
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
static void races_itself(uint32_t cq, uint32_t pd, uint32_t mr, uint64_t buf, uint32_t bytes)
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

int main(int argc, char **argv)
{
	struct ib_uverbs_alloc_pd pd_request = {};
	struct {
		struct ib_uverbs_alloc_pd_resp core;
		struct virtio_rdma_uresp_alloc_pd driver;
	} pd = {};
	const uint32_t bytes = 4 * PAGE;
	uint8_t *memory;
	int cq, qp, mr;

	if (argc != 2 || (fd = open(argv[1], O_RDWR | O_CLOEXEC)) < 0) {
		fprintf(stderr, "usage: %s /dev/infiniband/uverbsN\n", argv[0]);
		return 2;
	}
	memory = mmap(NULL, 6 * bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED) {
		perror("mmap");
		return 2;
	}
	get_context();
	maps_only_what_is_its_own();
	rings_only_doorbells_that_there_are();
	scribbles_over_its_region();

	check(!command(IB_USER_VERBS_CMD_ALLOC_PD, &pd_request, sizeof(pd_request), &pd, sizeof(pd)),
	      "ALLOC_PD");
	refuses_bad_cqs((uintptr_t)memory, bytes);
	cq = create_cq((uintptr_t)memory, bytes, 16, 16, sizeof(struct virtio_rdma_ureq_create_cq));
	check(cq >= 0, "a good CQ");
	refuses_bad_qps(pd.core.pd_handle, cq, (uintptr_t)memory + bytes, bytes);
	qp = create_qp(pd.core.pd_handle, cq, good_qp((uintptr_t)memory + bytes, bytes));
	check(qp >= 0, "a good QP");
	refuses_bad_srqs(pd.core.pd_handle, (uintptr_t)memory + 2 * bytes, bytes);
	refuses_bad_resizing(cq, (uintptr_t)memory + 3 * bytes, bytes);
	mr = refuses_bad_memory(pd.core.pd_handle, (uintptr_t)memory + 4 * bytes, bytes);
	refuses_other_windows_groups_and_domains(pd.core.pd_handle, qp);
	posts_and_polls_nothing(qp, cq);
	races_itself(cq, pd.core.pd_handle, mr, (uintptr_t)memory + 5 * bytes, bytes);
	scribbles_over_its_region();

	printf("uverbs_hostile: %s, %u checks, %u failed\n", failed ? "FAIL" : "PASS", checks, failed);
	return failed ? 1 : 0;
}
