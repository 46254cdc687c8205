//! QEMU's own tools as supervised processes. Only they understand and write qcow2. `qemu-img map` finds the clusters
//! that lie in an image's file as they are. These may be read directly from the file, under `qemu-nbd`'s lock.
//!
//! We name every file that the tools open (`graph`). For this we read first which files the headers name (`header`).
//!
//! Which process may be ended when: `qemu-img info`, `map` and `create` at any time; `qemu-nbd` at any time when it only
//! reads. These have a limit of time each, and end when we die. `qemu-img bitmap` never, because an image whose bitmaps
//! are half written loses them (T4): it runs in a process group of its own, to its own end.

mod bitmap;
mod graph;
mod header;
mod image;
mod map;
mod process;
mod server;
mod tool;
mod whole;
mod witness;

pub use bitmap::{TrackingName, TwinName, add_bitmap, remove_bitmap};
pub use graph::{FileKind, Graph};
pub use header::{DataFile, HeaderError, Qcow2Header, begins_like_qcow2};
pub use image::{Bitmap, ImageLayer, image_info};
pub use map::{ClusterMap, cluster_map};
pub use server::{Access, NbdServerProcess, ServeError, ServeOptions};
pub use tool::{ToolError, busy, create_qcow2};
pub use whole::cut_short_at;
pub use witness::{WitnessName, add_witness};
