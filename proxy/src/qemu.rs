//! QEMU's own tools as supervised processes: they alone understand and write qcow2. What `qemu-img map` finds in an
//! image's file as it is may be read from there, under `qemu-nbd`'s lock.
//!
//! Which process may be ended when: `qemu-img info` at any time; `qemu-nbd` at any time when it only reads, and it
//! ends by itself when we die; `qemu-img bitmap` never, because an image whose bitmaps are half written loses them
//! (T4), so it runs in a process group of its own and its outcome is waited for without a limit.

mod bitmap;
mod image;
mod map;
mod server;
mod tool;

pub use bitmap::{TrackingName, add_bitmap, remove_bitmap};
pub use image::{Bitmap, ImageLayer, image_chain};
pub use map::{ClusterMap, cluster_map};
pub use server::{Access, NbdServerProcess, ServeError, ServeOptions};
pub use tool::{ToolError, busy, create_qcow2};
