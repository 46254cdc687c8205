//! One file for each command.

pub mod annotate;
pub mod backup;
pub mod change_points;
pub mod copy;
pub mod diff;
pub mod doctor;
pub mod forget;
pub mod init;
pub mod job;
pub mod machine;
pub mod manual;
pub mod points;
pub mod proxy;
pub mod rebuild_index;
pub mod restore;
pub mod show;
pub mod stats;
pub mod sweep;
pub mod token;
pub mod tracking;
pub mod verify;
