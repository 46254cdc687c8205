//! The proxy against QEMU's and nbdkit's real programs. Each test works in a temporary folder of its own and ends only
//! the processes it started.

mod tools;

mod formats;
mod histories;
mod kill;
mod nbd;
mod silence;
mod sources;
mod targets;
mod tracking;
mod walk;
