//! Doubles of the outer world: machines whose disks are in memory, and targets.

mod image;
mod machine;
mod target;

pub use image::{Image, noise};
pub use machine::{Machine, Snapshot, Trouble};
pub use target::{Screen, Target};
