//! The vhost-user daemon that gives each VM a virtio-rdma device.
