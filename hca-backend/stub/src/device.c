// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* The devices and their contexts, their events, and what tests do to them. */
#include "stub.h"

static atomic_flag locked = ATOMIC_FLAG_INIT;
struct key *keys[MAX_KEYS];
struct qp *qps[MAX_QPS];
uint32_t next_key = 1, next_qp, handles;
struct context *contexts;
atomic_int waiting;
atomic_uint_fast64_t copied, posts, chains;
/* The next call of this name fails with this errno. */
static char fail_name[32];
static int fail_errno;

struct device devices[3];

void lock(void)
{
	for (int tries = 0; atomic_flag_test_and_set_explicit(&locked, memory_order_acquire);)
		if (++tries % 1000 == 0)
			sched_yield();
}

void unlock(void)
{
	atomic_flag_clear_explicit(&locked, memory_order_release);
}

static void gid_of(uint8_t *gid, const char *prefix, uint8_t last)
{
	memset(gid, 0, 16);
	if (!strcmp(prefix, "fe80")) {
		gid[0] = 0xfe;
		gid[1] = 0x80;
	} else {
		gid[10] = gid[11] = 0xff;
		gid[12] = 10;
	}
	gid[15] = last;
}

__attribute__((constructor)) static void start(void)
{
	static const char *names[3] = { "stub0", "stub1", "slow0" };

	for (int n = 0; n < 3; n++) {
		struct device *d = &devices[n];

		strcpy(d->base.name, names[n]);
		d->base.node_type = 1;
		d->slow = n == 2;
		/* As RoCE has it: the same address once for version 1 and once for version 2. */
		gid_of(d->gids[0], "fe80", n + 1);
		gid_of(d->gids[1], "fe80", n + 1);
		gid_of(d->gids[2], "10", n + 1);
		gid_of(d->gids[3], "10", n + 1);
	}
}

bool fails(const char *name)
{
	if (fail_errno && !strcmp(name, fail_name)) {
		errno = fail_errno;
		fail_errno = 0;
		return true;
	}
	return false;
}

struct device *device_of(struct ibv_context *c)
{
	return ((struct context *)c)->device;
}

/* A provider that enters the kernel, or does not. */
void enter_kernel(struct ibv_context *c)
{
	if (device_of(c)->slow)
		poll(NULL, 0, 0);
}

bool dead(struct ibv_context *c)
{
	if (device_of(c)->dead)
		errno = EIO;
	return device_of(c)->dead;
}

uint64_t pinned, pinned_limit;

API uint64_t stub_pinned(void)
{
	lock();
	uint64_t now = pinned;

	unlock();
	return now;
}

API void stub_limit_pinned(uint64_t bytes)
{
	lock();
	pinned_limit = bytes;
	unlock();
}

API uint64_t stub_copied(void) { return copied; }
API uint64_t stub_posts(void) { return posts; }
API uint64_t stub_chains(void) { return chains; }

API void stub_fail(const char *name, int error)
{
	lock();
	strncpy(fail_name, name, sizeof(fail_name) - 1);
	fail_errno = error;
	unlock();
}

void tell(struct context *c, int type, void *object)
{
	struct ibv_async_event event = { .event_type = type };

	event.element.object = object;
	if (write(c->events[1], &event, sizeof(event)) < 0)
		return;
}

/* An event of port 1, to everybody who has the device open. */
API void stub_port_event(const char *name, int type)
{
	lock();
	for (struct context *c = contexts; c; c = c->next)
		if (!strcmp(c->device->base.name, name))
			tell(c, type, (void *)1);
	unlock();
}

/* The device goes, as when its driver is unloaded, or comes back. */
API void stub_kill(const char *name, bool gone)
{
	lock();
	for (int n = 0; n < 3; n++)
		if (!strcmp(devices[n].base.name, name))
			devices[n].dead = gone;
	for (struct context *c = contexts; gone && c; c = c->next)
		if (!strcmp(c->device->base.name, name))
			tell(c, EV_DEVICE_FATAL, (void *)1);
	unlock();
}

/* How many objects of the library there are: none when everything was ended. */
atomic_int objects;
API int stub_objects(void) { return objects; }

API struct ibv_device **ibv_get_device_list(int *count)
{
	struct ibv_device **list = calloc(4, sizeof(*list));
	int n = 0;

	for (int i = 0; i < 3; i++)
		if (!devices[i].dead)
			list[n++] = &devices[i].base;
	if (count)
		*count = n;
	return list;
}

API void ibv_free_device_list(struct ibv_device **list) { free(list); }
API const char *ibv_get_device_name(struct ibv_device *d) { return d->name; }

API struct ibv_context *ibv_open_device(struct ibv_device *base)
{
	struct context *c = calloc(1, sizeof(*c));

	c->device = (struct device *)base;
	if (c->device->dead || pipe2(c->events, O_CLOEXEC)) {
		free(c);
		errno = ENODEV;
		return NULL;
	}
	c->base.device = base;
	c->base.cmd_fd = -1;
	c->base.async_fd = c->events[0];
	c->base.num_comp_vectors = 2;
	c->base.ops.alloc_mw = alloc_mw;
	c->base.ops.bind_mw = bind_mw;
	c->base.ops.dealloc_mw = dealloc_mw;
	c->base.ops.poll_cq = poll_cq;
	c->base.ops.req_notify_cq = req_notify_cq;
	c->base.ops.post_srq_recv = post_srq_recv;
	c->base.ops.post_send = post_send;
	c->base.ops.post_recv = post_recv;
	lock();
	c->next = contexts;
	contexts = c;
	objects++;
	unlock();
	return &c->base;
}

API int ibv_close_device(struct ibv_context *base)
{
	struct context *c = (struct context *)base;

	lock();
	for (struct context **at = &contexts; *at; at = &(*at)->next)
		if (*at == c) {
			*at = c->next;
			break;
		}
	objects--;
	unlock();
	close(c->events[0]);
	close(c->events[1]);
	free(c);
	return 0;
}

API int ibv_query_device(struct ibv_context *c, struct ibv_device_attr *a)
{
	memset(a, 0, sizeof(*a));
	strcpy(a->fw_ver, "12.34.56");
	memcpy(a->node_guid, "\x02\x01\x02\x03\x04\x05\x06\x07", 8);
	a->max_mr_size = 1ull << 40;
	a->page_size_cap = ~0xfffull;
	a->vendor_id = device_of(c)->slow ? 0xffffff : 0x02c9;
	a->vendor_part_id = 0x1017;
	a->max_qp = 4096;
	a->max_qp_wr = MAX_WR;
	a->device_cap_flags = 1 << 17 | 1 << 24;
	a->max_sge = a->max_sge_rd = a->max_srq_sge = MAX_SGE;
	a->max_cq = 4096;
	a->max_cqe = MAX_CQE;
	a->max_mr = a->max_mw = MAX_KEYS;
	a->max_pd = 4096;
	a->max_qp_rd_atom = a->max_qp_init_rd_atom = 16;
	a->atomic_cap = 1;
	a->max_ah = 4096;
	a->max_srq = 4096;
	a->max_srq_wr = MAX_WR;
	a->max_pkeys = 1;
	a->local_ca_ack_delay = 15;
	a->phys_port_cnt = 1;
	return 0;
}

API int ibv_query_port(struct ibv_context *c, uint8_t port, struct ibv_port_attr *a)
{
	if (port != 1)
		return EINVAL;
	a->state = device_of(c)->dead ? 1 : 4;
	a->max_mtu = 5;
	a->active_mtu = 5;
	a->gid_tbl_len = GIDS;
	a->max_msg_sz = MAX_MSG;
	a->pkey_tbl_len = 1;
	a->active_width = 2;
	a->active_speed = 32;
	a->link_layer = 2;
	return 0;
}

API int ibv_query_gid(struct ibv_context *c, uint8_t port, int index, uint8_t *gid)
{
	if (port != 1 || index < 0 || index >= GIDS)
		return EINVAL;
	memcpy(gid, device_of(c)->gids[index], 16);
	return 0;
}

API ssize_t _ibv_query_gid_table(struct ibv_context *c, struct ibv_gid_entry *e, size_t max, uint32_t flags, size_t size)
{
	if (flags || size != sizeof(*e) || max < GIDS)
		return -EINVAL;
	for (uint32_t n = 0; n < GIDS; n++) {
		memcpy(e[n].gid, device_of(c)->gids[n], 16);
		e[n].gid_index = n;
		e[n].port_num = 1;
		e[n].gid_type = n & 1 ? 2 : 1;
		e[n].ndev_ifindex = 1;
	}
	return GIDS;
}

API int ibv_get_async_event(struct ibv_context *base, struct ibv_async_event *event)
{
	return read(((struct context *)base)->events[0], event, sizeof(*event)) == sizeof(*event) ? 0 : -1;
}

API void ibv_ack_async_event(struct ibv_async_event *event)
{
	(void)event;
}
