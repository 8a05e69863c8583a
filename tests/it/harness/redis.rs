//! A real redis-server.
