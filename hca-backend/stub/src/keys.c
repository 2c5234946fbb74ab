// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* What a key names: MRs and windows, and the pages behind an MR. */
#include "stub.h"

struct key *key_of(uint32_t k)
{
	struct key *key = keys[(k >> 8) % MAX_KEYS];

	return key && key->used && key->tag == (k & 0xff) ? key : NULL;
}

/* Where a range under a key is; NULL if it may not be touched so. */
uint8_t *reach(struct ibv_pd *pd, struct qp *qp, uint32_t k, uint64_t addr, uint64_t len, unsigned int need)
{
	struct key *key = key_of(k);
	struct key *mr;

	if (!key || !((key->access & need) == need))
		return NULL;
	if (key->is_window) {
		if (!key->of || key->mw.pd != pd || (key->mw.type == 2 && key->qp != qp))
			return NULL;
		mr = key->of;
		if (key->access & A_ZERO_BASED)
			addr += key->iova;
	} else {
		if (key->mr.pd != pd)
			return NULL;
		mr = key;
	}
	if (addr < key->iova || addr - key->iova > key->len || len > key->len - (addr - key->iova))
		return NULL;
	return mr->base + (addr - mr->iova);
}

static struct key *new_key(void)
{
	for (int tries = 0; tries < MAX_KEYS; tries++) {
		uint32_t n = next_key++ % MAX_KEYS;

		if (n && !keys[n]) {
			keys[n] = calloc(1, sizeof(struct key));
			keys[n]->used = true;
			keys[n]->tag = (uint8_t)(next_key * 7);
			keys[n]->mr.lkey = keys[n]->mr.rkey = n << 8 | keys[n]->tag;
			objects++;
			return keys[n];
		}
	}
	errno = ENOMEM;
	return NULL;
}

static void end_key(struct key *key)
{
	keys[key->mr.lkey >> 8] = NULL;
	pinned -= key->pinned;
	if (key->shadow)
		munmap(key->shadow, key->shadow_len);
	free(key);
	objects--;
}

/* Maps what is mapped at `start` once more; 0, or an errno. *shadow is NULL for private memory. */
static int pin(uint8_t *start, size_t len, void **shadow)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	unsigned long from, to;
	char flags[5], line[512];
	uint8_t *at = start, *end = start + len;
	int error = 0;

	*shadow = NULL;
	if (!maps)
		return ENOMEM;
	while (at < end && fgets(line, sizeof(line), maps)) {
		if (sscanf(line, "%lx-%lx %4s", &from, &to, flags) != 3)
			continue;
		if (to <= (unsigned long)at)
			continue;
		if (from > (unsigned long)at) {
			error = EFAULT;
			break;
		}
		size_t part = (to < (unsigned long)end ? to : (unsigned long)end) - (unsigned long)at;

		if (flags[3] == 's') {
			if (!*shadow) {
				if (at != start) {
					error = EFAULT;
					break;
				}
				*shadow = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
			}
			if (mremap(at, 0, part, MREMAP_MAYMOVE | MREMAP_FIXED, (uint8_t *)*shadow + (at - start)) == MAP_FAILED) {
				error = errno;
				break;
			}
		} else if (*shadow) {
			error = EFAULT;
			break;
		}
		at += part;
	}
	fclose(maps);
	if (!error && at < end)
		error = EFAULT;
	if (error && *shadow)
		munmap(*shadow, len);
	return error;
}

API struct ibv_mr *ibv_reg_mr_iova(struct ibv_pd *pd, void *addr, size_t len, uint64_t iova, int access)
{
	uintptr_t first = (uintptr_t)addr & ~4095ul, last = ((uintptr_t)addr + len + 4095) & ~4095ul;
	struct key *key;
	void *shadow;
	int error;

	if (dead(pd->context))
		return NULL;
	lock();
	if (fails("reg_mr")) {
		unlock();
		return NULL;
	}
	/* As the kernel's pinning of pages has it, with the limit of locked memory. */
	if (pinned_limit && pinned + (last - first) > pinned_limit) {
		unlock();
		errno = ENOMEM;
		return NULL;
	}
	error = ((uintptr_t)addr ^ iova) & 4095 || !len ? EINVAL : pin((uint8_t *)first, last - first, &shadow);
	if (error) {
		unlock();
		errno = error;
		return NULL;
	}
	key = new_key();
	if (key) {
		key->shadow = shadow;
		key->shadow_len = last - first;
		key->base = shadow ? (uint8_t *)shadow + ((uintptr_t)addr - first) : addr;
		key->iova = iova;
		key->len = len;
		key->access = (unsigned int)access;
		key->mr.context = pd->context;
		key->mr.pd = pd;
		pinned += last - first;
		key->pinned = last - first;
		key->mr.addr = addr;
		key->mr.length = len;
	}
	unlock();
	return key ? &key->mr : NULL;
}

API int ibv_dereg_mr(struct ibv_mr *mr)
{
	int error = 0;

	lock();
	if (((struct key *)mr)->bound)
		error = EBUSY;
	else
		end_key((struct key *)mr);
	unlock();
	return error;
}

void unbind(struct key *w)
{
	if (w->of)
		w->of->bound--;
	w->of = NULL;
	w->qp = NULL;
}

int bind_window(struct qp *qp, struct key *w, uint32_t rkey, const struct ibv_mw_bind_info *b)
{
	struct key *mr = (struct key *)b->mr;
	unsigned int stores = A_REMOTE_WRITE | A_REMOTE_ATOMIC;

	if (w->mw.pd != qp->base.pd)
		return MW_BIND_ERR;
	if (w->mw.type == 2 ? w->of || !b->length : !!(b->mw_access_flags & A_ZERO_BASED))
		return MW_BIND_ERR;
	if (b->length && b->mw_access_flags & stores && !(mr->access & A_LOCAL_WRITE))
		return MW_BIND_ERR;
	if (b->length && (!(mr->access & A_MW_BIND) || mr->mr.pd != w->mw.pd || b->addr < mr->iova ||
			  b->addr - mr->iova > mr->len || b->length > mr->len - (b->addr - mr->iova)))
		return MW_BIND_ERR;
	unbind(w);
	w->tag = (uint8_t)rkey;
	w->mw.rkey = (w->mw.rkey & ~0xffu) | w->tag;
	if (b->length) {
		w->of = mr;
		mr->bound++;
		w->iova = b->addr;
		w->len = b->length;
		w->access = b->mw_access_flags;
		w->qp = w->mw.type == 2 ? qp : NULL;
	}
	return OK;
}

struct ibv_mw *alloc_mw(struct ibv_pd *pd, int type)
{
	struct key *key;

	if (dead(pd->context))
		return NULL;
	lock();
	key = new_key();
	if (key) {
		key->is_window = true;
		key->mw = (struct ibv_mw){ pd->context, pd, key->mr.lkey, 0, type };
	}
	unlock();
	return key ? &key->mw : NULL;
}

int dealloc_mw(struct ibv_mw *mw)
{
	struct key *key = (struct key *)((char *)mw - offsetof(struct key, mw));

	lock();
	unbind(key);
	end_key(key);
	unlock();
	return 0;
}
