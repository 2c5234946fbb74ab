/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the files of uverbs_hostile share: the uverbs file, commands, and the count of checks.
 */
#ifndef HOSTILE_H
#define HOSTILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <rdma/ib_user_ioctl_cmds.h>
#include <rdma/ib_user_ioctl_verbs.h>
#include <rdma/ib_user_verbs.h>
#include <rdma/rdma_user_ioctl_cmds.h>

#include "virtio_rdma_abi.h"
#include "virtio_rdma_uapi.h"

#define PAGE 4096ul

extern int fd;
extern struct virtio_rdma_uresp_alloc_ucontext context;

/* uverbs_hostile.c: what must hold; and the write() interface. */
bool check(bool ok, const char *format, ...);
int command(uint32_t number, void *request, size_t request_len, void *answer, size_t answer_len);
int command_without_answer(uint32_t number, const void *request, size_t request_len);

/* hostile_objects.c: each with `bytes` of memory at `buf`. */
void refuses_bad_srqs(uint32_t pd, uint64_t buf, uint32_t bytes);
void refuses_bad_resizing(uint32_t cq, uint64_t buf, uint32_t bytes);
int refuses_bad_memory(uint32_t pd, uint64_t buf, uint32_t bytes);
void refuses_other_windows_groups_and_domains(uint32_t pd, uint32_t qp);
void refuses_bad_device_memory(uint64_t buf, uint32_t bytes);
void posts_and_polls_nothing(uint32_t qp, uint32_t cq);
void races_itself(uint32_t cq, uint32_t pd, uint32_t mr, uint64_t buf, uint32_t bytes);

#endif
