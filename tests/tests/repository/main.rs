//! Repositories in a directory and in memory, in this process: what they promise, their formats, and every fault.
//! One program, because each would contain RocksDB and take as long to link as all of them.

mod audit;
mod conformance_mem;
mod conformance_objects;
mod conformance_store;
mod damage;
mod decoders;
mod delta;
mod faults_directory;
mod faults_mem;
mod files;
mod format_script;
mod golden;
mod holds;
mod index;
mod kill;
mod kill_points;
mod newer;
mod protocol_model;
mod sweep;
mod verify;
