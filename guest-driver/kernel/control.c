// SPDX-License-Identifier: GPL-2.0
/*
 * The control virtqueue: sends commands, many at a time, and waits for their answers. What a
 * command means is its caller's business.
 *
 * No verb that may not sleep needs a command, so everything here but the callback may sleep.
 * The rule that callers live by: when a command has returned, with whatever result, the device
 * does not touch the memory that was given to it for the time of the command. A command that is
 * not answered in time therefore ends with a reset of the device (vrdma_declare_broken).
 */
#include <linux/module.h>
#include <linux/scatterlist.h>

#include "vrdma.h"

/* Largest request and answer, with their headers. */
#define VRDMA_MESSAGE_MAX 256

static unsigned int command_timeout = 30;
module_param(command_timeout, uint, 0644);
MODULE_PARM_DESC(command_timeout,
		 "Seconds after which an unanswered command makes the device count as broken");

/* A command under way. Readable and writable parts lie in cache lines of their own. */
struct vrdma_message {
	struct completion done;
	u32 used; /* bytes of the answer; 0 when there is none */
	u8 request[VRDMA_MESSAGE_MAX] __aligned(ARCH_KMALLOC_MINALIGN);
	u8 answer[VRDMA_MESSAGE_MAX] __aligned(ARCH_KMALLOC_MINALIGN);
};

static int vrdma_exchange(struct vrdma_vdev *vd, struct vrdma_message *msg, u16 command,
			  const void *request, size_t request_len, void *answer, size_t answer_len,
			  u32 *status);
static int vrdma_submit(struct vrdma_control *control, struct vrdma_message *msg,
			size_t request_len, size_t answer_len);
static int vrdma_status_to_errno(struct vrdma_vdev *vd, u16 command, u32 status);

void vrdma_control_init(struct vrdma_control *control)
{
	spin_lock_init(&control->lock);
	init_waitqueue_head(&control->room);
}

/*
 * Executes one command. 0, or the error that the answer's status stands for; -ENODEV when the
 * device is gone or was declared broken. The answer is filled on success only. May sleep, for
 * command_timeout seconds at the most.
 */
int vrdma_command(struct vrdma_vdev *vd, u16 command, const void *request, size_t request_len,
		  void *answer, size_t answer_len)
{
	u32 status;
	int err;

	err = vrdma_exchange(vd, NULL, command, request, request_len, answer, answer_len, &status);
	if (err)
		return err;
	return vrdma_status_to_errno(vd, command, status);
}

/* For commands that are sent where nothing can be allocated, one at a time. */
struct vrdma_message *vrdma_message_alloc(void)
{
	return kzalloc(sizeof(struct vrdma_message), GFP_KERNEL_ACCOUNT);
}

void vrdma_message_free(struct vrdma_message *msg)
{
	kfree(msg);
}

/* As vrdma_command(), without an answer. Sleeps, but allocates nothing. */
int vrdma_command_reserved(struct vrdma_vdev *vd, struct vrdma_message *msg, u16 command,
			   const void *request, size_t request_len)
{
	u32 status;
	int err;

	err = vrdma_exchange(vd, msg, command, request, request_len, NULL, 0, &status);
	if (err)
		return err;
	return vrdma_status_to_errno(vd, command, status);
}

/* A command whose request is one number. */
int vrdma_command_number(struct vrdma_vdev *vd, u16 command, u32 number, void *answer,
			 size_t answer_len)
{
	struct virtio_rdma_number_request request = { .number = cpu_to_le32(number) };

	return vrdma_command(vd, command, &request, sizeof(request), answer, answer_len);
}

/*
 * Destroys an object. A device that is gone, or has forgotten the object, has destroyed it; one
 * that refuses for no good reason is reset. So -EBUSY (something still uses the object) and
 * -ENOMEM are the only errors, and after success the object's memory may be freed.
 */
int vrdma_destroy(struct vrdma_vdev *vd, u16 command, u32 number)
{
	struct virtio_rdma_number_request request = { .number = cpu_to_le32(number) };
	u32 status;
	int err;

	err = vrdma_exchange(vd, NULL, command, &request, sizeof(request), NULL, 0, &status);
	if (err == -ENOMEM)
		return err;
	if (err)
		return 0;

	switch (status) {
	case VIRTIO_RDMA_STATUS_OK:
	case VIRTIO_RDMA_STATUS_NO_OBJECT:
	case VIRTIO_RDMA_STATUS_NO_HCA:
		return 0;
	case VIRTIO_RDMA_STATUS_NOT_INITIALIZED:
		vrdma_resync(vd, true);
		return 0;
	case VIRTIO_RDMA_STATUS_BUSY:
		return -EBUSY;
	default:
		dev_err(&vd->vdev->dev, "command %#x for object %u failed with status %u\n",
			command, number, status);
		vrdma_declare_broken(vd, "it cannot destroy an object");
		return 0;
	}
}

/* The control virtqueue's interrupt. */
void vrdma_control_callback(struct virtqueue *vq)
{
	struct vrdma_vdev *vd = vq->vdev->priv;
	struct vrdma_control *control = &vd->control;
	struct vrdma_message *msg;
	unsigned long flags;
	unsigned int len;

	spin_lock_irqsave(&control->lock, flags);
	do {
		virtqueue_disable_cb(vq);
		while ((msg = virtqueue_get_buf(vq, &len))) {
			msg->used = len;
			complete(&msg->done);
		}
	} while (!virtqueue_enable_cb(vq));
	spin_unlock_irqrestore(&control->lock, flags);

	wake_up(&control->room);
}

/* Ends all commands under way without an answer. The device has been reset. */
void vrdma_control_fail_all(struct vrdma_vdev *vd)
{
	struct vrdma_control *control = &vd->control;
	struct vrdma_message *msg;
	unsigned long flags;

	spin_lock_irqsave(&control->lock, flags);
	while ((msg = virtqueue_detach_unused_buf(control->vq))) {
		msg->used = 0;
		complete(&msg->done);
	}
	spin_unlock_irqrestore(&control->lock, flags);

	wake_up_all(&control->room);
}

/*
 * 0 and the answer's status, or an error when there is no answer. `reserved` is the caller's message, or
 * NULL.
 */
static int vrdma_exchange(struct vrdma_vdev *vd, struct vrdma_message *reserved, u16 command,
			  const void *request, size_t request_len, void *answer, size_t answer_len,
			  u32 *status)
{
	struct vrdma_control *control = &vd->control;
	unsigned long deadline = jiffies + max(command_timeout, 1U) * HZ;
	struct virtio_rdma_control_header *header;
	struct virtio_rdma_control_status *head;
	struct vrdma_message *msg;
	int err;

	if (WARN_ON_ONCE(request_len > VRDMA_MESSAGE_MAX - sizeof(*header) ||
			 answer_len > VRDMA_MESSAGE_MAX - sizeof(*head)))
		return -EINVAL;

	msg = reserved ?: kzalloc(sizeof(*msg), GFP_KERNEL);
	if (!msg)
		return -ENOMEM;
	init_completion(&msg->done);
	header = (struct virtio_rdma_control_header *)msg->request;
	header->command = cpu_to_le16(command);
	memcpy(header + 1, request, request_len);

	while ((err = vrdma_submit(control, msg, sizeof(*header) + request_len,
				   sizeof(*head) + answer_len)) == -ENOSPC) {
		if (time_after(jiffies, deadline))
			break;
		wait_event_timeout(control->room,
				   READ_ONCE(control->vq->num_free) >= 2 || vrdma_is_gone(vd),
				   HZ);
	}
	if (err == -ENOSPC || err == -EIO) {
		vrdma_declare_broken(vd, err == -EIO ? "its control queue is broken" :
						       "it takes no more commands");
		err = -ENODEV;
	}
	if (err)
		goto out;

	while (!wait_for_completion_timeout(&msg->done, HZ)) {
		if (vrdma_is_gone(vd))
			vrdma_declare_broken(vd, "its control queue is broken");
		else if (time_after(jiffies, deadline))
			vrdma_declare_broken(vd, "it does not answer commands");
	}

	head = (struct virtio_rdma_control_status *)msg->answer;
	*status = le32_to_cpu(head->status);
	if (!msg->used) {
		err = -ENODEV;
	} else if (msg->used < sizeof(*head) ||
		   (*status == VIRTIO_RDMA_STATUS_OK && msg->used < sizeof(*head) + answer_len)) {
		dev_err_ratelimited(&vd->vdev->dev,
				    "answer to command %#x has %u bytes, %zu expected\n", command,
				    msg->used, sizeof(*head) + answer_len);
		vrdma_declare_broken(vd, "its answers are too short");
		err = -ENODEV;
	} else if (*status == VIRTIO_RDMA_STATUS_OK && answer_len) {
		memcpy(answer, head + 1, answer_len);
	}
out:
	if (!reserved)
		kfree(msg);
	return err;
}

/* 0, -ENOSPC when the queue is full, -EIO when it is broken, -ENOMEM. */
static int vrdma_submit(struct vrdma_control *control, struct vrdma_message *msg,
			size_t request_len, size_t answer_len)
{
	struct virtio_rdma_control_header *header = (void *)msg->request;
	struct scatterlist readable, writable, *sgs[] = { &readable, &writable };
	unsigned long flags;
	bool notify = false;
	int err;

	sg_init_one(&readable, msg->request, request_len);
	sg_init_one(&writable, msg->answer, answer_len);

	/* One lock for both, so that the numbers ascend in the order of the queue. */
	spin_lock_irqsave(&control->lock, flags);
	header->sequence = cpu_to_le32(control->sequence + 1);
	err = virtqueue_add_sgs(control->vq, sgs, 1, 1, msg, GFP_ATOMIC);
	if (!err) {
		control->sequence++;
		notify = virtqueue_kick_prepare(control->vq);
	}
	spin_unlock_irqrestore(&control->lock, flags);

	if (notify)
		virtqueue_notify(control->vq);
	return err;
}

static int vrdma_status_to_errno(struct vrdma_vdev *vd, u16 command, u32 status)
{
	if (status != VIRTIO_RDMA_STATUS_OK)
		dev_dbg(&vd->vdev->dev, "command %#x: status %u\n", command, status);

	switch (status) {
	case VIRTIO_RDMA_STATUS_OK:
		return 0;
	case VIRTIO_RDMA_STATUS_INVALID:
	case VIRTIO_RDMA_STATUS_BAD_STATE:
	case VIRTIO_RDMA_STATUS_NO_OBJECT:
		return -EINVAL;
	case VIRTIO_RDMA_STATUS_BUSY:
		return -EBUSY;
	case VIRTIO_RDMA_STATUS_NO_RESOURCES:
		return -ENOMEM;
	case VIRTIO_RDMA_STATUS_BAD_ADDRESS:
		return -EFAULT;
	case VIRTIO_RDMA_STATUS_NOT_PERMITTED:
		return -EPERM;
	case VIRTIO_RDMA_STATUS_UNKNOWN_COMMAND:
	case VIRTIO_RDMA_STATUS_UNSUPPORTED:
		return -EOPNOTSUPP;
	case VIRTIO_RDMA_STATUS_NO_HCA:
		return -ENODEV;
	case VIRTIO_RDMA_STATUS_NOT_INITIALIZED:
		vrdma_resync(vd, true);
		return -ENODEV;
	case VIRTIO_RDMA_STATUS_BAD_LENGTH:
		return -EPROTO;
	default:
		dev_err_ratelimited(&vd->vdev->dev,
				    "command %#x failed on the host (status %u): the log of vhost-rdma says why\n",
				    command, status);
		return -EIO;
	}
}
