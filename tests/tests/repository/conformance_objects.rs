//! What a storage must do for a repository, on the two kinds of file systems on which several processes may write.

use store::io::Names;
use windlass_tests::objects::InDirectory;

mod by_links {
    use super::*;
    windlass_tests::objects!(tests InDirectory::on_disk());
}

mod by_renames {
    use super::*;
    windlass_tests::objects!(tests InDirectory::in_memory(Names::Renames));
}
