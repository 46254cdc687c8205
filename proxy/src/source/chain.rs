//! The files that make a qcow2 disk up: layer by layer, as their headers name them and the administrator allows (T10).
//! Everything that QEMU's tools open is found here first, and handed to them by name.

use super::identity::{ImageFile, Seen, see};
use crate::address::ImageFormat;
use crate::qemu::{DataFile, FileKind, Graph, HeaderError, Qcow2Header, cut_short_at};
use mover::{Error, Result};
use rustix::fs::OFlags;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// The layers of a disk, top first; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    layers: Vec<Layer>,
}

/// One image of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Layer {
    format: ImageFormat,
    place: Place,
    data: Option<Place>,
    encrypted: bool,
    size: u64,
}

/// A file that holds bytes of the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Where it is; symbolic links are followed, but for those of the image itself.
    pub path: PathBuf,
    /// Regular file or block device.
    pub kind: FileKind,
}

/// What an image may name besides itself: files under its own folder, files and devices under the roots.
struct Allowed {
    own: Vec<PathBuf>,
    roots: Vec<PathBuf>,
}

impl Chain {
    /// Follows the headers from `image`, a qcow2 image. The files that they name must lie under the image's folder or
    /// under one of `roots`. The format of each backing file must be named in the header, or follow from the file's
    /// name.
    ///
    /// # Errors
    /// `Usage` for what may not be opened, `Source` for what cannot.
    pub fn walk(image: &ImageFile, roots: &[PathBuf]) -> Result<Self> {
        let allowed = Allowed::of(image, roots);
        let mut seen = BTreeSet::new();
        let mut layers = Vec::new();
        let mut next = Some((Place { path: image.path.clone(), kind: image.kind }, ImageFormat::Qcow2));
        while let Some((place, format)) = next.take() {
            if layers.len() >= LAYERS_MAX {
                return Err(Error::usage(format!("{} has more than {LAYERS_MAX} layers", image.path.display()))
                    .hint("flatten it with `qemu-img convert` or `qemu-img rebase`"));
            }
            // Only the image itself may be named by a link; what is below is named by what links lead to.
            let links = if layers.is_empty() { OFlags::empty() } else { OFlags::NOFOLLOW };
            let Seen { file, identity, .. } = see(&place.path, links)?;
            if !seen.insert(identity) {
                return Err(Error::usage(format!("{} is its own backing file", place.path.display())));
            }
            if format == ImageFormat::Raw {
                layers.push(Layer { format, place, data: None, encrypted: false, size: 0 });
                break;
            }
            let header = header(&file, &place.path)?;
            refuse_cut_short(&file, &place)?;
            let data = match &header.data_file {
                DataFile::Inside => None,
                DataFile::Named(name) => Some(allowed.named(&place.path, name, "data file")?.0),
                DataFile::Unnamed => {
                    return Err(Error::usage(format!(
                        "{} has its data in another file, and does not name that file",
                        place.path.display()
                    ))
                    .hint("serve it with qemu-nbd, and give its NBD URI"));
                }
            };
            if let Some(data) = &data
                && !seen.insert(see(&data.path, OFlags::NOFOLLOW)?.identity)
            {
                return Err(Error::usage(format!("{} is used twice in the image's chain", data.path.display())));
            }
            if let Some(name) = &header.backing {
                let (backing, file) = allowed.named(&place.path, name, "backing file")?;
                let format = backing_format(&place.path, &backing.path, header.backing_format.as_deref(), &file)?;
                next = Some((backing, format));
            }
            layers.push(Layer { format, place, data, encrypted: header.encrypted, size: header.size });
        }
        Ok(Self { layers })
    }

    /// How QEMU is to open all of it.
    ///
    /// # Errors
    /// `Usage` for a path that is no text.
    pub fn graph(&self) -> Result<Graph> {
        let made = self.layers.iter().rev().try_fold(None, |below, layer| layer.graph(below.as_ref()).map(Some));
        made.map(|graph| graph.expect("never empty"))
    }

    /// How QEMU is to open the top layer, without what lies below it.
    ///
    /// # Errors
    /// As [`Self::graph`].
    pub fn top_graph(&self) -> Result<Graph> {
        self.layers[0].graph(None)
    }

    /// All files: each layer, top first, and behind it its data file where it has one.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        self.layers.iter().flat_map(|layer| [Some(&layer.place), layer.data.as_ref()]).flatten()
    }

    /// The formats of the layers, top first, as text: `qcow2+data/raw`.
    pub fn formats(&self) -> String {
        let layers = self.layers.iter().map(|layer| {
            let data = if layer.data.is_some() { "+data" } else { "" };
            format!("{}{data}", layer.format.as_str())
        });
        layers.collect::<Vec<_>>().join("/")
    }

    /// True when some layer needs a secret.
    pub fn is_encrypted(&self) -> bool {
        self.layers.iter().any(|layer| layer.encrypted)
    }

    /// The data file of the top layer.
    pub fn data_file(&self) -> Option<&Path> {
        self.layers[0].data.as_ref().map(|place| place.path.as_path())
    }
}

impl Layer {
    fn graph(&self, below: Option<&Graph>) -> Result<Graph> {
        let data = self.data.as_ref().map(|data| (data.path.as_path(), data.kind));
        Graph::of(self.format, &self.place.path, self.place.kind, data, below)
    }
}

impl Allowed {
    fn of(image: &ImageFile, roots: &[PathBuf]) -> Self {
        let mut own = BTreeSet::new();
        // What lies beside a device is no image. A link's folder counts, and the one that it leads to.
        if image.kind == FileKind::Regular {
            let folders =
                [image.path.parent().and_then(real), real(&image.path).and_then(|it| Some(it.parent()?.into()))];
            // Everything lies under the root folder: that would allow all.
            own.extend(folders.into_iter().flatten().filter(|folder| folder.parent().is_some()));
        }
        let roots = roots.iter().filter_map(real).collect();
        Self { own: own.into_iter().collect(), roots }
    }

    /// Opens the file that the header of the image at `by` calls `name`, if it may be opened. Gives its place and the
    /// open file.
    fn named(&self, by: &Path, name: &str, what: &str) -> Result<(Place, File)> {
        let of = by.display();
        // As QEMU has it: a colon before any slash ends the name of a protocol.
        if name.find([':', '/']).is_some_and(|at| name[at..].starts_with(':')) {
            return Err(Error::usage(format!("the {what} of {of} is not a path: {name:?}")).hint(
                "only files of this host are opened; `qemu-img rebase -u -b PATH -F FORMAT` sets another backing file",
            ));
        }
        let path = by.parent().unwrap_or(Path::new("/")).join(name);
        let cannot =
            |error: io::Error| Error::source(format!("the {what} {name:?} of {of} cannot be opened")).because(error);
        let place = std::fs::canonicalize(&path).map_err(cannot)?;
        // A device has its name from a link: its folder counts, not where the link leads.
        let link = path.parent().and_then(real).zip(path.file_name()).map(|(folder, name)| folder.join(name));
        let inside = |roots: &[PathBuf], path: &Path| roots.iter().any(|root| path.starts_with(root));
        let by_root = inside(&self.roots, &place);
        let by_link = link.is_some_and(|link| inside(&self.roots, &link));
        // Nothing is opened that is not allowed: opening a device or pipe does something.
        if !by_root && !by_link && !inside(&self.own, &place) {
            return Err(Error::usage(format!("the {what} of {of} is {}, which is not in the image's own folder", place.display()))
                .hint("if that folder holds images that may be read, allow it with --image-root DIR (image_roots in windlass-proxy.toml)"));
        }
        let Seen { file, kind, .. } = see(&place, OFlags::NOFOLLOW)?;
        let allowed = match kind {
            FileKind::Regular => by_root || inside(&self.own, &place),
            FileKind::Device => by_root || by_link,
        };
        if !allowed {
            return Err(Error::usage(format!(
                "the {what} of {of} is {}, which is a device, or a link that leads out of its root",
                place.display()
            ))
            .hint("if it may be read, allow the device or its folder with --image-root (image_roots in windlass-proxy.toml)"));
        }
        Ok((Place { path: place, kind }, file))
    }
}

/// The format of a backing file, from the header or from the file's name, never from the content.
fn backing_format(by: &Path, path: &Path, said: Option<&str>, file: &File) -> Result<ImageFormat> {
    let format = match said {
        Some("raw") => ImageFormat::Raw,
        Some("qcow2") => ImageFormat::Qcow2,
        Some(other) => {
            return Err(Error::usage(format!("{} has a backing file of format {other:?}", by.display()))
                .hint("flatten it with `qemu-img convert`, or serve it with qemu-nbd and give its NBD URI"));
        }
        None => ImageFormat::of_name(path).ok_or_else(|| {
            Error::usage(format!("{} does not say which format its backing file {} has", by.display(), path.display()))
                .hint(format!(
                    "set it once: `qemu-img rebase -u -b {} -F raw {}`, or -F qcow2",
                    path.display(),
                    by.display()
                ))
        })?,
    };
    if format == ImageFormat::Qcow2 {
        header(file, path)?;
    }
    Ok(format)
}

/// The header of a file that has to be a qcow2 image.
pub fn header(file: &File, path: &Path) -> Result<Qcow2Header> {
    let read = Qcow2Header::read(file);
    let read =
        read.map_err(|error| Error::source("its header cannot be read").because(error).context(path.display()))?;
    read.map_err(|error| match error {
        HeaderError::Foreign => Error::usage(format!("{} should be a qcow2 image, and is not", path.display()))
            .hint("write ?format=raw behind it if it is a raw disk"),
        HeaderError::Version(_) => Error::usage(error.to_string())
            .hint("convert it with `qemu-img convert -O qcow2`; write ?format=raw behind it if it is a raw disk")
            .context(path.display()),
        HeaderError::Damaged(_) => {
            Error::source(error.to_string()).hint("run `qemu-img check`").context(path.display())
        }
    })
}

/// Refuses a file that lost its end, because QEMU would read zeros in the place of the lost data.
fn refuse_cut_short(file: &File, place: &Place) -> Result<()> {
    // A device is as long as it is.
    if place.kind == FileKind::Device {
        return Ok(());
    }
    let failed =
        |error: io::Error| Error::source("its tables cannot be read").because(error).context(place.path.display());
    let Some(at) = cut_short_at(file).map_err(failed)? else { return Ok(()) };
    let length = file.metadata().map_err(failed)?.len();
    let what = format!("{} is truncated: it has {length} bytes, and refers to data at {at}", place.path.display());
    Err(Error::source(what).hint("bring back the whole file; `qemu-img check` shows more"))
}

fn real(path: impl AsRef<Path>) -> Option<PathBuf> {
    std::fs::canonicalize(path).ok()
}

/// Most layers of a disk: more than anybody has. Each layer costs a process an open file, and a pass over the whole
/// chain.
const LAYERS_MAX: usize = 64;
