//! Files of PyTorch since 1.6: a zip archive with the pickle `data.pkl` and a member for each storage.

use std::sync::Arc;

use weighbridge::{Error, ErrorKind, Result, Source};

use super::jit;
use super::machine::load;
use super::plain::inline;
use super::tensors::{Storages, contents};
use super::value::{Place, Storage};
use crate::archive::{Archive, Member};
use crate::contents::Contents;
use crate::input::{Input, unread};
use crate::options::Options;

/// The pickle of an archive that PyTorch wrote.
pub(crate) fn pickle_in(archive: &Archive) -> Option<&Member> {
    archive.members().iter().find(|member| member.name == "data.pkl" || member.name.ends_with("/data.pkl"))
}

pub(super) fn read(input: &Input, options: &Options) -> Result<Contents> {
    let archive = Archive::open(input.whole())?;
    let missing =
        || Error::new(ErrorKind::Unsupported, "it is a zip archive, but not PyTorch's: no data.pkl is in it");
    let member = pickle_in(&archive).ok_or_else(missing)?;
    let directory = member.name.strip_suffix("data.pkl").unwrap_or_default();
    let source: Arc<dyn Source> = Arc::new(archive.verified(member)?);
    let mut pickle = load(Arc::clone(&source), 0, options)?;
    jit::mark(&mut pickle, &archive, directory);
    let swap = match archive.member(&format!("{directory}byteorder")) {
        None => false,
        Some(member) => {
            let part = archive.bytes(member)?;
            let mut order = vec![0; part.size().min(8) as usize];
            part.read_at(0, &mut order).map_err(unread)?;
            match &*order {
                b"little" => false,
                b"big" => true,
                _ => {
                    return Err(Error::new(ErrorKind::Malformed, "its byte order is neither little nor big"));
                }
            }
        }
    };
    let data = format!("{directory}data/");
    let open = |found: &Storage| storage(&archive, &data, found, &source);
    let mut all = contents(&pickle, Storages { open, swap, file_len: input.size() }, options)?;
    jit::constants(&mut all, jit::is_frozen(&pickle), &archive, directory, (input, swap), options)?;
    Ok(all)
}

/// A storage in a directory of the archive.
pub(super) fn storage(
    archive: &Archive,
    directory: &str,
    storage: &Storage,
    pickle: &Arc<dyn Source>,
) -> Result<Arc<dyn Source>> {
    let Place::Key(key) = &storage.place else { return inline(storage, pickle) };
    let name = format!("{directory}{key}");
    let missing = || Error::new(ErrorKind::Malformed, format!("its storage {name:?} is not in the archive"));
    let member = archive.member(&name).ok_or_else(missing)?;
    super::of_size(Arc::new(archive.bytes(member)?), storage)
}
