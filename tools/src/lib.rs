//! The windlass command line and developer commands.
