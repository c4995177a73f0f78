//! Real servers for tests: each on a free port of the loopback interface, with a directory of its own, and gone when the test is.

mod process;
mod redis;

pub use process::{Process, command, free_port, wait_until};
pub use redis::{RedisCluster, RedisServer, engine_program};
