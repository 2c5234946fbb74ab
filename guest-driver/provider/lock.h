/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The lock of a queue. It is held for the time of one post or poll, so whoever waits spins; but the
 * holder may have lost its CPU (there may be one CPU only), or be resizing the CQ, so after a while
 * the waiter gives up its own. A lock of a queue that the program says only one thread uses (thread
 * domains, IBV_CREATE_CQ_ATTR_SINGLE_THREADED) does nothing.
 */
#ifndef VRDMA_LOCK_H
#define VRDMA_LOCK_H

#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>

struct vrdma_lock {
	atomic_uint taken;
	bool single_threaded;
};

static inline void vrdma_lock_init(struct vrdma_lock *lock, bool single_threaded)
{
	atomic_init(&lock->taken, 0);
	lock->single_threaded = single_threaded;
}

static inline void vrdma_cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield" ::: "memory");
#endif
}

static inline void vrdma_lock(struct vrdma_lock *lock)
{
	unsigned int spins = 0;

	if (lock->single_threaded)
		return;
	while (atomic_exchange_explicit(&lock->taken, 1, memory_order_acquire)) {
		while (atomic_load_explicit(&lock->taken, memory_order_relaxed)) {
			if (++spins % 256 == 0)
				sched_yield();
			else
				vrdma_cpu_relax();
		}
	}
}

static inline void vrdma_unlock(struct vrdma_lock *lock)
{
	if (!lock->single_threaded)
		atomic_store_explicit(&lock->taken, 0, memory_order_release);
}

#endif
