// SPDX-License-Identifier: GPL-2.0
/*
 * Holds RDMA devices as a kernel consumer does: a QP with receives posted, until the device goes. Then
 * drains the QP, as consumers do, and reports whether all work came back flushed, and whether it was
 * told of a failed device before. Knows nothing of the driver.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/module.h>
#include <linux/slab.h>
#include <rdma/ib_verbs.h>

#define HOLD_RECVS 16

struct hold {
	struct ib_device *dev;
	struct ib_pd *pd;
	struct ib_cq *cq;
	struct ib_qp *qp;
	struct ib_cqe cqe;
	struct ib_event_handler events;
	atomic_t flushed;
	atomic_t others;
	bool fatal;
};

static struct ib_client hold_client;

static void hold_done(struct ib_cq *cq, struct ib_wc *wc)
{
	struct hold *hold = container_of(wc->wr_cqe, struct hold, cqe);

	atomic_inc(wc->status == IB_WC_WR_FLUSH_ERR ? &hold->flushed : &hold->others);
}

static void hold_event(struct ib_event_handler *handler, struct ib_event *event)
{
	struct hold *hold = container_of(handler, struct hold, events);

	if (event->event == IB_EVENT_DEVICE_FATAL)
		WRITE_ONCE(hold->fatal, true);
}

static int hold_set_up(struct hold *hold)
{
	struct ib_qp_init_attr init = {
		.cap = { .max_send_wr = 4, .max_recv_wr = HOLD_RECVS + 1, .max_send_sge = 1,
			 .max_recv_sge = 1 },
		.sq_sig_type = IB_SIGNAL_ALL_WR,
		.qp_type = IB_QPT_RC,
	};
	struct ib_qp_attr attr = { .qp_state = IB_QPS_INIT, .port_num = 1 };
	struct ib_recv_wr wr = { .wr_cqe = &hold->cqe };
	int i, err;

	hold->pd = ib_alloc_pd(hold->dev, 0);
	if (IS_ERR(hold->pd))
		return PTR_ERR(hold->pd);
	hold->cq = ib_alloc_cq(hold->dev, hold, 64, 0, IB_POLL_WORKQUEUE);
	if (IS_ERR(hold->cq)) {
		err = PTR_ERR(hold->cq);
		goto err_pd;
	}
	init.send_cq = hold->cq;
	init.recv_cq = hold->cq;
	hold->qp = ib_create_qp(hold->pd, &init);
	if (IS_ERR(hold->qp)) {
		err = PTR_ERR(hold->qp);
		goto err_cq;
	}
	err = ib_modify_qp(hold->qp, &attr,
			   IB_QP_STATE | IB_QP_PORT | IB_QP_PKEY_INDEX | IB_QP_ACCESS_FLAGS);
	hold->cqe.done = hold_done;
	for (i = 0; i < HOLD_RECVS && !err; i++)
		err = ib_post_recv(hold->qp, &wr, NULL);
	if (!err)
		return 0;
	ib_destroy_qp(hold->qp);
err_cq:
	ib_free_cq(hold->cq);
err_pd:
	ib_dealloc_pd(hold->pd);
	return err;
}

static int hold_add(struct ib_device *dev)
{
	struct hold *hold = kzalloc(sizeof(*hold), GFP_KERNEL);
	int err;

	if (!hold)
		return -ENOMEM;
	hold->dev = dev;
	err = hold_set_up(hold);
	if (err) {
		pr_err("%s: cannot be held: %d\n", dev_name(&dev->dev), err);
		kfree(hold);
		return err;
	}
	INIT_IB_EVENT_HANDLER(&hold->events, dev, hold_event);
	ib_register_event_handler(&hold->events);
	ib_set_client_data(dev, &hold_client, hold);
	pr_info("%s: held\n", dev_name(&dev->dev));
	return 0;
}

static void hold_remove(struct ib_device *dev, void *data)
{
	struct hold *hold = data;

	ib_unregister_event_handler(&hold->events);
	ib_drain_qp(hold->qp);
	ib_destroy_qp(hold->qp);
	ib_free_cq(hold->cq);
	ib_dealloc_pd(hold->pd);
	pr_info("%s: let go, %d of %d receives flushed, %d otherwise, %s\n", dev_name(&dev->dev),
		atomic_read(&hold->flushed), HOLD_RECVS, atomic_read(&hold->others),
		hold->fatal ? "told that it failed" : "not told that it failed");
	kfree(hold);
}

static struct ib_client hold_client = {
	.name = "rdma_hold",
	.add = hold_add,
	.remove = hold_remove,
};

static int __init hold_init(void)
{
	return ib_register_client(&hold_client);
}

static void __exit hold_exit(void)
{
	ib_unregister_client(&hold_client);
}

module_init(hold_init);
module_exit(hold_exit);
MODULE_DESCRIPTION("Holds RDMA devices as a kernel consumer does");
MODULE_LICENSE("GPL");
