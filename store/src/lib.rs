//! Keeping: a repository as packs, commit log and index on a directory.
