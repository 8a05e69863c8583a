//! L2 in MongoDB.
