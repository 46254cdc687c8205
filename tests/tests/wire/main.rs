//! Clients and storage nodes across QUIC: what they promise each other, over long links and under attack.

mod apart;
mod attackers;
mod conformance_remote;
mod far;
mod hostile;
mod links;
mod node_memory;
mod owners;
mod remote;
mod silence;
