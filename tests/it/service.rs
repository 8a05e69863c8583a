//! The service's behaviour through gRPC.

mod bad_input;
mod bulk;
mod busy;
mod cancels;
mod info;
mod matrix;
mod reads;
mod values;
mod writes;
