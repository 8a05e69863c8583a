//! The service's behaviour through gRPC.

mod reads;
