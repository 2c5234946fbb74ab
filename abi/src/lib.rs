//! The layouts that the driver and the device of virtio-rdma share, and nothing else.
