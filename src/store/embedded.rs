//! L2 on local disk.
