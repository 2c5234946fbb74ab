//! The InfiniBand midlayer of the Linux kernel, with its locking rules, as a Rust library.
