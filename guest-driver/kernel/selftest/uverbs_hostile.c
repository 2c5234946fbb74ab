// SPDX-License-Identifier: GPL-2.0
/*
 * Speaks to the driver's uverbs device as a hostile process would, without libibverbs: maps what
 * it may not, names buffers that are none, scribbles over its user access region. Here are contexts,
 * CQs and QPs; hostile_objects.c has what else there is. Everything must
 * be refused, and a well-formed request still succeed afterwards.
 *
 *   cc -I../include uverbs_hostile.c hostile_objects.c && ./a.out /dev/infiniband/uverbs0
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
#include <unistd.h>

#include "hostile.h"

int fd;
struct virtio_rdma_uresp_alloc_ucontext context;
static unsigned int checks, failed;

bool check(bool ok, const char *format, ...)
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
int command(uint32_t number, void *request, size_t request_len, void *answer,
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

/* A command whose request does not begin with the address of an answer. */
int command_without_answer(uint32_t number, const void *request, size_t request_len)
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
	refuses_bad_device_memory((uintptr_t)memory + 4 * bytes, bytes);
	posts_and_polls_nothing(qp, cq);
	races_itself(cq, pd.core.pd_handle, mr, (uintptr_t)memory + 5 * bytes, bytes);
	scribbles_over_its_region();

	printf("uverbs_hostile: %s, %u checks, %u failed\n", failed ? "FAIL" : "PASS", checks, failed);
	return failed ? 1 : 0;
}
