//! What is done with foreign bytes, for each decoder: it must not panic, nor take more memory than its limits say.

mod blobs;
mod manifests;
mod messages;
mod nbd;
mod pages;
mod records;
mod words;

pub type Check = fn(&[u8]);

/// Names, and what they are.
pub const TARGETS: [(&str, Check); 7] = [
    ("blobs", blobs::check),
    ("manifests", manifests::check),
    ("messages", messages::check),
    ("nbd", nbd::check),
    ("pages", pages::check),
    ("records", records::check),
    ("words", words::check),
];
