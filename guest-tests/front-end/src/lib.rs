//! The driver side of the virtio-rdma device in a host process, for tests without a VM.
