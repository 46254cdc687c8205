//! Hypervisor side: NBD, sources and targets of disks.
