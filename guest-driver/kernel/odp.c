// SPDX-License-Identifier: GPL-2.0
/*
 * On-demand paging: MRs of user memory that is not pinned. The device asks for pages when work needs
 * them (a page fault), and gives them up before the kernel moves or frees them (an MMU notifier).
 *
 * An MR is divided into chunks of 2 MiB of the process's addresses, made when something in them is
 * wanted first: that is what a notifier watches, and what one command can map. A chunk's lock is taken
 * in reclaim, so nothing is allocated under it: its command and its table are there beforehand.
 */
#include "vrdma.h"

#ifdef CONFIG_INFINIBAND_ON_DEMAND_PAGING

#include <linux/dma-mapping.h>
#include <linux/hmm.h>
#include <linux/mmu_notifier.h>
#include <linux/sched/mm.h>

#define VRDMA_CHUNK_PAGES 512
#define VRDMA_CHUNK_SIZE ((u64)VRDMA_CHUNK_PAGES << PAGE_SHIFT)

/* What a page is wanted for. */
enum vrdma_want {
	VRDMA_WANT_READ,
	VRDMA_WANT_WRITE,
	VRDMA_WANT_WHAT_IS_THERE,
};

struct vrdma_odp_chunk {
	struct mmu_interval_notifier notifier;
	struct vrdma_mr *mr;
	u64 first; /* its first page in the MR */
	u32 num_pages;

	struct mutex lock; /* of all below */
	struct vrdma_message *message;
	__le64 *table; /* of a MAP_PAGES */
	dma_addr_t table_dma;
	unsigned long pfns[VRDMA_CHUNK_PAGES]; /* what the device has; as hmm_range_fault gives them */
};

/* What an MR has if its memory is on demand. */
struct vrdma_odp {
	struct vrdma_mr *mr;
	struct mm_struct *mm;
	u64 start; /* the process's address of page 0 */
	u64 offset; /* of the first byte in page 0 */
	u64 end; /* behind the last byte */
	bool writable;
	bool ended;

	refcount_t users; /* who prefetches, and one for the MR's existence */
	struct completion unused;

	struct work_struct fault_work;
	struct mutex fault_lock; /* of `chunks` and `pfns` */
	struct xarray chunks; /* by address / VRDMA_CHUNK_SIZE */
	unsigned long num_chunks;
	unsigned long sweep_at; /* as many chunks: those without pages are given up */
	unsigned long pfns[VRDMA_CHUNK_PAGES]; /* of the fault that is being handled */
};

/* An advice that is followed later. */
struct vrdma_prefetch {
	struct work_struct work;
	enum vrdma_want want;
	u32 num_sge;
	struct {
		struct vrdma_mr *mr;
		u64 addr;
		u64 length;
	} ranges[];
};

static bool vrdma_odp_invalidate(struct mmu_interval_notifier *notifier,
				 const struct mmu_notifier_range *range, unsigned long seq);
static void vrdma_odp_fault_work(struct work_struct *work);
static int vrdma_odp_fault(struct vrdma_mr *mr, u64 addr, u64 end, enum vrdma_want want);
static int vrdma_chunk_fault(struct vrdma_odp_chunk *chunk, u64 addr, u64 end,
			     enum vrdma_want want);
static int vrdma_chunk_map(struct vrdma_odp_chunk *chunk, u32 from, u32 to,
			   const unsigned long *pfns);
static struct vrdma_odp_chunk *vrdma_chunk_of(struct vrdma_mr *mr, u64 addr);
static void vrdma_odp_sweep(struct vrdma_mr *mr);
static void vrdma_chunk_free(struct vrdma_vdev *vd, struct vrdma_odp_chunk *chunk);
static int vrdma_prefetch_find(struct vrdma_prefetch *prefetch, struct ib_pd *ibpd,
			       const struct ib_sge *sge);
static int vrdma_prefetch_run(struct vrdma_prefetch *prefetch);
static void vrdma_prefetch_work(struct work_struct *work);
static void vrdma_prefetch_free(struct vrdma_prefetch *prefetch);

static const struct mmu_interval_notifier_ops vrdma_odp_ops = {
	.invalidate = vrdma_odp_invalidate,
};

static struct vrdma_vdev *vrdma_mr_vdev(struct vrdma_mr *mr)
{
	return to_vhca(mr->ibmr.device)->vd;
}

/*
 * An MR of `length` bytes at `start`; of all of the process's addresses if `start` is 0 and `length`
 * U64_MAX. No page is there yet.
 */
struct ib_mr *vrdma_odp_reg_mr(struct ib_pd *ibpd, u64 start, u64 length, u64 iova, int access)
{
	struct vrdma_hca *hca = to_vhca(ibpd->device);
	struct virtio_rdma_reg_odp_mr_request request = {
		.pdn = cpu_to_le32(to_vpd(ibpd)->pdn),
		.access = cpu_to_le32(vrdma_access_to_wire(access)),
		.iova = cpu_to_le64(iova),
		.length = cpu_to_le64(length),
		.offset = cpu_to_le64(start & ~PAGE_MASK),
		.page_shift = PAGE_SHIFT,
	};
	bool all = !start && length == U64_MAX;
	struct virtio_rdma_mr_answer answer;
	struct vrdma_odp *odp;
	struct vrdma_mr *mr;
	int err;

	if (!(hca->capabilities & VIRTIO_RDMA_CAP_ON_DEMAND))
		return ERR_PTR(-EOPNOTSUPP);
	if (all ? iova : start + length < start || start + length > current->mm->task_size)
		return ERR_PTR(-EINVAL);

	mr = kzalloc(sizeof(*mr), GFP_KERNEL);
	odp = kzalloc(sizeof(*odp), GFP_KERNEL);
	err = -ENOMEM;
	if (!mr || !odp)
		goto err_free;
	odp->mr = mr;
	odp->start = start & PAGE_MASK;
	odp->offset = start & ~PAGE_MASK;
	odp->end = all ? current->mm->task_size : start + length;
	odp->writable = ib_access_writable(access);
	odp->mm = current->mm;
	refcount_set(&odp->users, 1);
	init_completion(&odp->unused);
	INIT_WORK(&odp->fault_work, vrdma_odp_fault_work);
	mutex_init(&odp->fault_lock);
	odp->sweep_at = 64;
	xa_init(&odp->chunks);
	mutex_init(&mr->lock);
	mr->odp = odp;
	mr->access = access;
	mr->ibmr.device = ibpd->device;
	mr->ibmr.length = length;
	mr->ibmr.iova = iova;

	err = vrdma_command(hca->vd, VIRTIO_RDMA_CMD_REG_ODP_MR, &request, sizeof(request),
			    &answer, sizeof(answer));
	if (err)
		goto err_free;
	mr->mrn = le32_to_cpu(answer.mrn);
	mr->ibmr.lkey = le32_to_cpu(answer.lkey);
	mr->ibmr.rkey = le32_to_cpu(answer.rkey);
	mmgrab(odp->mm);

	/* Nobody knows the keys yet, so nothing faults before this. */
	err = xa_err(xa_store_irq(&hca->vd->odp_mrs, mr->mrn, mr, GFP_KERNEL));
	if (!err)
		err = xa_err(xa_store_irq(&hca->vd->odp_keys, mr->ibmr.lkey, mr, GFP_KERNEL));
	if (!err)
		return &mr->ibmr;

	vrdma_destroy(hca->vd, VIRTIO_RDMA_CMD_DEREG_MR, mr->mrn);
	vrdma_odp_release(mr);
err_free:
	kfree(odp);
	kfree(mr);
	return ERR_PTR(err);
}

/* DEREG_MR is about to be sent: what the device says of the MR's pages from here on is no failure. */
void vrdma_odp_ending(struct vrdma_mr *mr, bool ending)
{
	WRITE_ONCE(mr->odp->ended, ending);
}

/* The device has forgotten the MR. Its memory is freed by the caller. May sleep. */
void vrdma_odp_release(struct vrdma_mr *mr)
{
	struct vrdma_vdev *vd = vrdma_mr_vdev(mr);
	struct vrdma_odp *odp = mr->odp;
	struct vrdma_odp_chunk *chunk;
	unsigned long index;

	/* The device may have given number and key to another MR by now. */
	xa_lock_irq(&vd->odp_mrs);
	if (xa_load(&vd->odp_mrs, mr->mrn) == mr)
		__xa_erase(&vd->odp_mrs, mr->mrn);
	xa_unlock_irq(&vd->odp_mrs);
	xa_lock_irq(&vd->odp_keys);
	if (xa_load(&vd->odp_keys, mr->ibmr.lkey) == mr)
		__xa_erase(&vd->odp_keys, mr->ibmr.lkey);
	xa_unlock_irq(&vd->odp_keys);

	if (!refcount_dec_and_test(&odp->users))
		wait_for_completion(&odp->unused);
	cancel_work_sync(&odp->fault_work);
	xa_for_each(&odp->chunks, index, chunk) {
		mmu_interval_notifier_remove(&chunk->notifier);
		vrdma_chunk_free(vd, chunk);
		cond_resched();
	}
	xa_destroy(&odp->chunks);
	mmdrop(odp->mm);
}

/* EVENT_PAGE_FAULT of an MR. Any context. */
void vrdma_odp_event(struct vrdma_vdev *vd, u32 mrn)
{
	struct vrdma_mr *mr;
	unsigned long flags;

	xa_lock_irqsave(&vd->odp_mrs, flags);
	mr = xa_load(&vd->odp_mrs, mrn);
	/* While it is in the table its release has not got to cancelling. */
	if (mr)
		queue_work(vd->wq, &mr->odp->fault_work);
	xa_unlock_irqrestore(&vd->odp_mrs, flags);
}

/* ibv_advise_mr(). */
int vrdma_advise_mr(struct ib_pd *ibpd, enum ib_uverbs_advise_mr_advice advice, u32 flags,
		    struct ib_sge *sg_list, u32 num_sge, struct uverbs_attr_bundle *attrs)
{
	struct vrdma_prefetch *prefetch;
	int err = 0;
	u32 i;

	if (!(to_vhca(ibpd->device)->capabilities & VIRTIO_RDMA_CAP_ON_DEMAND) ||
	    flags & ~IB_UVERBS_ADVISE_MR_FLAG_FLUSH)
		return -EOPNOTSUPP;
	prefetch = kvzalloc(struct_size(prefetch, ranges, num_sge), GFP_KERNEL);
	if (!prefetch)
		return -ENOMEM;
	switch (advice) {
	case IB_UVERBS_ADVISE_MR_ADVICE_PREFETCH:
		prefetch->want = VRDMA_WANT_READ;
		break;
	case IB_UVERBS_ADVISE_MR_ADVICE_PREFETCH_WRITE:
		prefetch->want = VRDMA_WANT_WRITE;
		break;
	case IB_UVERBS_ADVISE_MR_ADVICE_PREFETCH_NO_FAULT:
		prefetch->want = VRDMA_WANT_WHAT_IS_THERE;
		break;
	default:
		err = -EOPNOTSUPP;
	}
	for (i = 0; i < num_sge && !err; i++)
		err = vrdma_prefetch_find(prefetch, ibpd, &sg_list[i]);
	if (!err && !(flags & IB_UVERBS_ADVISE_MR_FLAG_FLUSH)) {
		INIT_WORK(&prefetch->work, vrdma_prefetch_work);
		queue_work(to_vhca(ibpd->device)->vd->wq, &prefetch->work);
		return 0;
	}
	if (!err)
		err = vrdma_prefetch_run(prefetch);
	vrdma_prefetch_free(prefetch);
	return err;
}

/* Holds the MR of an SGE, and notes what of it is meant. */
static int vrdma_prefetch_find(struct vrdma_prefetch *prefetch, struct ib_pd *ibpd,
			       const struct ib_sge *sge)
{
	struct vrdma_vdev *vd = to_vhca(ibpd->device)->vd;
	struct vrdma_mr *mr;
	u64 offset;

	xa_lock_irq(&vd->odp_keys);
	mr = xa_load(&vd->odp_keys, sge->lkey);
	if (mr && (mr->ibmr.pd != ibpd || !refcount_inc_not_zero(&mr->odp->users)))
		mr = NULL;
	xa_unlock_irq(&vd->odp_keys);
	if (!mr)
		return -EINVAL;
	prefetch->ranges[prefetch->num_sge++].mr = mr;

	if (prefetch->want == VRDMA_WANT_WRITE && !mr->odp->writable)
		return -EPERM;
	offset = sge->addr - mr->ibmr.iova;
	if (sge->addr < mr->ibmr.iova || offset > mr->ibmr.length ||
	    sge->length > mr->ibmr.length - offset)
		return -EFAULT;
	prefetch->ranges[prefetch->num_sge - 1].addr = mr->odp->start + mr->odp->offset + offset;
	prefetch->ranges[prefetch->num_sge - 1].length = sge->length;
	return 0;
}

static int vrdma_prefetch_run(struct vrdma_prefetch *prefetch)
{
	int err = 0;
	u32 i;

	for (i = 0; i < prefetch->num_sge && !err; i++)
		err = vrdma_odp_fault(prefetch->ranges[i].mr, prefetch->ranges[i].addr,
				      prefetch->ranges[i].addr + prefetch->ranges[i].length,
				      prefetch->want);
	return err;
}

static void vrdma_prefetch_work(struct work_struct *work)
{
	struct vrdma_prefetch *prefetch = container_of(work, struct vrdma_prefetch, work);

	/* It was an advice: what can't be had is found out by who needs it. */
	vrdma_prefetch_run(prefetch);
	vrdma_prefetch_free(prefetch);
}

static void vrdma_prefetch_free(struct vrdma_prefetch *prefetch)
{
	u32 i;

	for (i = 0; i < prefetch->num_sge; i++) {
		struct vrdma_odp *odp = prefetch->ranges[i].mr->odp;

		if (refcount_dec_and_test(&odp->users))
			complete(&odp->unused);
	}
	kvfree(prefetch);
}

/* Takes the device's faults until there are none, and answers each. */
static void vrdma_odp_fault_work(struct work_struct *work)
{
	struct vrdma_odp *odp = container_of(work, struct vrdma_odp, fault_work);
	struct virtio_rdma_page_fault_answer fault;
	struct virtio_rdma_pages_request refusal = {};
	struct vrdma_mr *mr = odp->mr;
	struct vrdma_vdev *vd = vrdma_mr_vdev(mr);
	u64 pages = (PAGE_ALIGN(odp->end) - odp->start) >> PAGE_SHIFT;
	enum vrdma_want want;
	u64 first, count;

	while (!READ_ONCE(odp->ended)) {
		if (vrdma_command_number(vd, VIRTIO_RDMA_CMD_TAKE_PAGE_FAULT, mr->mrn, &fault,
					 sizeof(fault)))
			return;
		first = le64_to_cpu(fault.first);
		count = le64_to_cpu(fault.count);
		if (!count)
			return;
		want = le32_to_cpu(fault.flags) & VIRTIO_RDMA_PAGES_WRITABLE ? VRDMA_WANT_WRITE :
									       VRDMA_WANT_READ;
		/* What the device says may be anything; of all addresses only the process's count. */
		if (first < pages && count <= pages - first &&
		    !vrdma_odp_fault(mr, odp->start + (first << PAGE_SHIFT),
				     odp->start + ((first + count) << PAGE_SHIFT), want))
			continue;
		refusal.mrn = cpu_to_le32(mr->mrn);
		refusal.first = fault.first;
		refusal.count = fault.count;
		if (vrdma_command(vd, VIRTIO_RDMA_CMD_REFUSE_PAGES, &refusal, sizeof(refusal), NULL,
				  0))
			return;
		cond_resched();
	}
}

/* Puts the pages from `addr` to `end`, addresses of the process in the MR, there. May sleep. */
static int vrdma_odp_fault(struct vrdma_mr *mr, u64 addr, u64 end, enum vrdma_want want)
{
	struct vrdma_odp *odp = mr->odp;
	struct vrdma_odp_chunk *chunk;
	int err = 0;

	addr &= PAGE_MASK;
	end = PAGE_ALIGN(end);
	if (!mmget_not_zero(odp->mm))
		return -EFAULT;
	mutex_lock(&odp->fault_lock);
	while (addr < end && !err) {
		u64 to = min(end, (addr | (VRDMA_CHUNK_SIZE - 1)) + 1);

		chunk = vrdma_chunk_of(mr, addr);
		if (IS_ERR(chunk))
			err = PTR_ERR(chunk);
		else
			err = vrdma_chunk_fault(chunk, addr, to, want);
		/*
		 * What was never written is the kernel's page of zeros, which may lie outside the
		 * memory that the device knows (in UML it does): a page of its own will do.
		 */
		if (err == -EFAULT && want == VRDMA_WANT_READ)
			err = vrdma_chunk_fault(chunk, addr, to, VRDMA_WANT_WRITE);
		if (err == -EFAULT && want == VRDMA_WANT_WHAT_IS_THERE)
			err = 0;
		addr = to;
		cond_resched();
	}
	mutex_unlock(&odp->fault_lock);
	/* Not here: the last one may have much to do, and it may be ours to be ended by that. */
	mmput_async(odp->mm);
	return err;
}

static int vrdma_chunk_fault(struct vrdma_odp_chunk *chunk, u64 addr, u64 end,
			     enum vrdma_want want)
{
	unsigned long deadline = jiffies + msecs_to_jiffies(HMM_RANGE_DEFAULT_TIMEOUT);
	struct vrdma_odp *odp = chunk->mr->odp;
	struct hmm_range range = {
		.notifier = &chunk->notifier,
		.start = addr,
		.end = end,
		.hmm_pfns = odp->pfns,
	};
	u32 from = (addr - chunk->notifier.interval_tree.start) >> PAGE_SHIFT;
	u32 count = (end - addr) >> PAGE_SHIFT;
	int err;

	if (want != VRDMA_WANT_WHAT_IS_THERE)
		range.default_flags = HMM_PFN_REQ_FAULT;
	if (want == VRDMA_WANT_WRITE)
		range.default_flags |= HMM_PFN_REQ_WRITE;

	for (;;) {
		memset(odp->pfns, 0, count * sizeof(*odp->pfns));
		range.notifier_seq = mmu_interval_read_begin(&chunk->notifier);
		mmap_read_lock(odp->mm);
		err = hmm_range_fault(&range);
		mmap_read_unlock(odp->mm);
		if (err == -EBUSY && time_before(jiffies, deadline))
			continue;
		if (err)
			return err;
		mutex_lock(&chunk->lock);
		if (!mmu_interval_read_retry(&chunk->notifier, range.notifier_seq))
			break;
		mutex_unlock(&chunk->lock);
	}
	err = vrdma_chunk_map(chunk, from, from + count, odp->pfns);
	mutex_unlock(&chunk->lock);
	return err;
}

/* Tells the device of the pages that are valid among some, run by run. The chunk is locked. */
static int vrdma_chunk_map(struct vrdma_odp_chunk *chunk, u32 from, u32 to,
			   const unsigned long *pfns)
{
	struct vrdma_mr *mr = chunk->mr;
	struct virtio_rdma_map_pages_request request = {
		.mrn = cpu_to_le32(mr->mrn),
		.pages.page_shift = PAGE_SHIFT,
	};
	u32 i = from, n;
	int err;

	while (i < to) {
		bool writable = mr->odp->writable && pfns[i - from] & HMM_PFN_WRITE;

		if (!(pfns[i - from] & HMM_PFN_VALID)) {
			i++;
			continue;
		}
		for (n = 0; i + n < to; n++) {
			unsigned long pfn = pfns[i + n - from];

			if (!(pfn & HMM_PFN_VALID) ||
			    (mr->odp->writable && pfn & HMM_PFN_WRITE) != writable)
				break;
			chunk->table[n] = cpu_to_le64(page_to_phys(hmm_pfn_to_page(pfn)));
		}
		dma_sync_single_for_device(vrdma_mr_vdev(mr)->dma_dev, chunk->table_dma,
					   VRDMA_PAGE_SIZE, DMA_TO_DEVICE);
		request.flags = cpu_to_le32(writable ? VIRTIO_RDMA_PAGES_WRITABLE : 0);
		request.first = cpu_to_le64(chunk->first + i);
		request.pages.num_pages = cpu_to_le32(n);
		request.pages.depth = n > 1;
		request.pages.root = n > 1 ? cpu_to_le64(chunk->table_dma) : chunk->table[0];
		err = vrdma_command_reserved(vrdma_mr_vdev(mr), chunk->message,
					     VIRTIO_RDMA_CMD_MAP_PAGES, &request, sizeof(request));
		if (err)
			return err;
		/* Without the right to write nothing has to be marked as written. */
		for (; n; n--, i++)
			chunk->pfns[i] = writable ? pfns[i - from] :
						    pfns[i - from] & ~HMM_PFN_WRITE;
	}
	return 0;
}

/*
 * The kernel is about to take pages away. When this returns the device does not touch them any more.
 * Called in reclaim, too.
 */
static bool vrdma_odp_invalidate(struct mmu_interval_notifier *notifier,
				 const struct mmu_notifier_range *range, unsigned long seq)
{
	struct vrdma_odp_chunk *chunk = container_of(notifier, struct vrdma_odp_chunk, notifier);
	u64 start = notifier->interval_tree.start;
	u64 end = (u64)notifier->interval_tree.last + 1;
	struct virtio_rdma_pages_request request = {};
	struct vrdma_mr *mr = chunk->mr;
	u32 i, from, to;
	int err;

	if (!mmu_notifier_range_blockable(range))
		return false;

	mutex_lock(&chunk->lock);
	mmu_interval_set_seq(notifier, seq);
	from = (max_t(u64, range->start, start) - start) >> PAGE_SHIFT;
	to = (min_t(u64, range->end, end) - start + PAGE_SIZE - 1) >> PAGE_SHIFT;
	while (from < to && !(chunk->pfns[from] & HMM_PFN_VALID))
		from++;
	while (from < to && !(chunk->pfns[to - 1] & HMM_PFN_VALID))
		to--;
	if (from == to)
		goto out;

	request.mrn = cpu_to_le32(mr->mrn);
	request.first = cpu_to_le64(chunk->first + from);
	request.count = cpu_to_le64(to - from);
	err = vrdma_command_reserved(vrdma_mr_vdev(mr), chunk->message,
				     VIRTIO_RDMA_CMD_UNMAP_PAGES, &request, sizeof(request));
	/* An answer of whatever kind after the MR's end comes after its end in the device, too. */
	if (err && err != -ENODEV && !READ_ONCE(mr->odp->ended))
		vrdma_declare_broken(vrdma_mr_vdev(mr), "it does not give up pages");
	for (i = from; i < to; i++) {
		/* By the device, of which the page tables know nothing. */
		if (chunk->pfns[i] & HMM_PFN_VALID && chunk->pfns[i] & HMM_PFN_WRITE)
			set_page_dirty(compound_head(hmm_pfn_to_page(chunk->pfns[i])));
		chunk->pfns[i] = 0;
	}
out:
	mutex_unlock(&chunk->lock);
	return true;
}

/* The chunk that holds an address, made if need be. The MR's fault_lock is taken, and its mm held. */
static struct vrdma_odp_chunk *vrdma_chunk_of(struct vrdma_mr *mr, u64 addr)
{
	struct vrdma_vdev *vd = vrdma_mr_vdev(mr);
	struct vrdma_odp *odp = mr->odp;
	unsigned long index = addr / VRDMA_CHUNK_SIZE;
	u64 start = max(odp->start, addr & ~(VRDMA_CHUNK_SIZE - 1));
	u64 end = min(PAGE_ALIGN(odp->end), (addr | (VRDMA_CHUNK_SIZE - 1)) + 1);
	struct vrdma_odp_chunk *chunk = xa_load(&odp->chunks, index);
	int err = -ENOMEM;

	if (chunk)
		return chunk;
	if (odp->num_chunks >= odp->sweep_at)
		vrdma_odp_sweep(mr);
	chunk = kzalloc(sizeof(*chunk), GFP_KERNEL_ACCOUNT);
	if (!chunk)
		return ERR_PTR(-ENOMEM);
	mutex_init(&chunk->lock);
	chunk->mr = mr;
	chunk->first = (start - odp->start) >> PAGE_SHIFT;
	chunk->num_pages = (end - start) >> PAGE_SHIFT;
	chunk->message = vrdma_message_alloc();
	/* A kmalloc of a power of two is aligned to it. */
	chunk->table = kzalloc(VRDMA_PAGE_SIZE, GFP_KERNEL_ACCOUNT);
	if (!chunk->message || !chunk->table)
		goto err_free;
	chunk->table_dma = dma_map_page(vd->dma_dev, virt_to_page(chunk->table),
					offset_in_page(chunk->table), VRDMA_PAGE_SIZE,
					DMA_TO_DEVICE);
	if (dma_mapping_error(vd->dma_dev, chunk->table_dma)) {
		chunk->table_dma = 0;
		goto err_free;
	}
	err = mmu_interval_notifier_insert(&chunk->notifier, odp->mm, start, end - start,
					   &vrdma_odp_ops);
	if (err)
		goto err_free;
	err = xa_err(xa_store(&odp->chunks, index, chunk, GFP_KERNEL));
	if (!err) {
		odp->num_chunks++;
		return chunk;
	}
	mmu_interval_notifier_remove(&chunk->notifier);
err_free:
	vrdma_chunk_free(vd, chunk);
	return ERR_PTR(err);
}

/*
 * Gives up the chunks that have no pages (any more): a process may fault in ever new places of all its
 * addresses, and is to cost no more than the pages that it has. The MR's fault_lock is taken.
 */
static void vrdma_odp_sweep(struct vrdma_mr *mr)
{
	struct vrdma_odp *odp = mr->odp;
	struct vrdma_odp_chunk *chunk;
	unsigned long index;
	u32 i;

	xa_for_each(&odp->chunks, index, chunk) {
		mutex_lock(&chunk->lock);
		for (i = 0; i < chunk->num_pages; i++)
			if (chunk->pfns[i] & HMM_PFN_VALID)
				break;
		mutex_unlock(&chunk->lock);
		cond_resched();
		if (i < chunk->num_pages)
			continue;
		/* Pages come under fault_lock only, so it stays empty. */
		xa_erase(&odp->chunks, index);
		odp->num_chunks--;
		mmu_interval_notifier_remove(&chunk->notifier);
		vrdma_chunk_free(vrdma_mr_vdev(mr), chunk);
	}
	odp->sweep_at = 2 * odp->num_chunks + 64;
}

/* No notifier is left that could use it. What the device had of it, it has no longer. */
static void vrdma_chunk_free(struct vrdma_vdev *vd, struct vrdma_odp_chunk *chunk)
{
	u32 i;

	for (i = 0; i < chunk->num_pages; i++)
		if (chunk->pfns[i] & HMM_PFN_VALID && chunk->pfns[i] & HMM_PFN_WRITE)
			set_page_dirty(compound_head(hmm_pfn_to_page(chunk->pfns[i])));
	if (chunk->table_dma)
		dma_unmap_page(vd->dma_dev, chunk->table_dma, VRDMA_PAGE_SIZE, DMA_TO_DEVICE);
	kfree(chunk->table);
	vrdma_message_free(chunk->message);
	kfree(chunk);
}

#endif
