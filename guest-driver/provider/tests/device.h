/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The device of the ring test: a thread that does what docs/virtio-rdma.md asks of a device, with
 * the rings, UAR and status page in plain memory, and checks all that the driver's side writes.
 */
#ifndef VRDMA_TEST_DEVICE_H
#define VRDMA_TEST_DEVICE_H

#include <semaphore.h>
#include <stdlib.h>
#include <unistd.h>

#if defined(VRDMA_TEST_BREAK_GIVE_BACK)
/* Holds a window open that one instruction would hardly ever hit. */
static inline void test_hold_open(void)
{
	usleep(20);
}
#endif

#include "ring.h"

#define TEST_MAX_QPS 4
#define TEST_STRIDE_SHIFT 7
#define TEST_PAYLOAD ((1u << TEST_STRIDE_SHIFT) - VIRTIO_RDMA_WQE_SEND_DATA)
#if defined(VRDMA_TEST_BREAK_FENCE) || defined(VRDMA_TEST_BREAK_PENDING)
/* Here it is lost on purpose. */
#define TEST_PATIENCE_SECONDS 2
#else
/* Long for a wake-up, even where all the threads share a CPU with other programs. */
#define TEST_PATIENCE_SECONDS 20
#endif

/* A CQ, with both sides' state. */
struct test_cq {
	struct vrdma_ring_cq ring;
	/* The completion event: what an interrupt would bring. */
	sem_t event;
	/* The device's: CQEs written; whether one of the burst is a solicited one. */
	uint32_t producer;
	bool fresh, solicited;
};

/* A QP with a send queue only. */
struct test_qp {
	char *buf;
	struct vrdma_wq sq;
	struct vrdma_doorbell doorbell;
	struct test_cq *cq;
	uint32_t qpn, slot;
	/* The device's: WQEs taken; whether it polls; looks without work. */
	uint32_t taken;
	bool polled;
	uint32_t idle;
};

struct test_world {
	void *uar;
	struct virtio_rdma_vector_status *status;
	struct test_qp qps[TEST_MAX_QPS];
	int num_qps;
	/* The doorbell of the one vector there is. */
	sem_t kick;
	atomic_bool stop;
	/* What happened, to show that every path was taken. */
	unsigned long kicks, sleeps, rearms, wqes, cqes, events;
};

/* A small generator of random numbers, a state a thread (xorshift). */
static inline uint32_t test_random(uint32_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 17;
	*state ^= *state << 5;
	return *state;
}

/* The byte at `offset` of the payload of WQE number `n` of a QP. */
static inline uint8_t test_pattern(uint32_t qpn, uint32_t n, uint32_t offset)
{
	return (uint8_t)(qpn * 31 + n * 7 + offset);
}

/* Bytes of the payload of WQE number `n`: all lengths come up. */
static inline uint32_t test_length(uint32_t n)
{
	return n * 13 % (TEST_PAYLOAD + 1);
}

/* Spins a little: shifts the two sides against each other. */
static inline void test_delay(uint32_t *state)
{
	uint32_t r = test_random(state);

	if (r % 4 == 0)
		for (volatile uint32_t i = 0; i < r / 4 % 128; i++)
			;
}

/* Says what went wrong and ends the process with status 1. */
void test_fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
/* Waits for `sem` for TEST_PATIENCE_SECONDS; false: in vain. */
bool test_wait(sem_t *sem);
/* The device's thread; `arg` is a struct test_world. */
void *test_device(void *arg);

#endif
