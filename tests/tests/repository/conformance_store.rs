//! The conformance suite on a repository in a directory.

use windlass_tests::conformance::InDirectory;

windlass_tests::conformance!(InDirectory);
