//! A real mongod.
