//! Sets of files with an index, `pytorch_model.bin.index.json`, as transformers wrote them.

use std::collections::{HashMap, HashSet};

use weighbridge::index::Index;
use weighbridge::{Error, ErrorKind, Result};

use crate::contents::Contents;
use crate::input::Input;
use crate::note::{Note, NoteKind};
use crate::options::Options;

/// The longest index.
const LONGEST: u64 = 256 << 20;

pub(super) fn read(input: &Input, options: &Options) -> Result<Contents> {
    let len = input.size();
    if len > LONGEST {
        return Err(Error::new(ErrorKind::Index, "the index is too long"));
    }
    let text = String::from_utf8(input.head(0, len as usize)?);
    let text = text.map_err(|_| Error::new(ErrorKind::Index, "the index is not UTF-8"))?;
    let index = Index::parse(&text)?;
    let directory = input.path().parent().unwrap_or(input.path());
    // The index speaks of names as they are in the files.
    let options = Options { raw_names: true, ..options.clone() };
    let mut all = Contents::default();
    let mut found: HashMap<String, &str> = HashMap::new();
    for name in index.shards() {
        let path = directory.join(name);
        let shard = Input::open(&path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                let message = format!("the shard {name:?} that it names is not there");
                Error::new(ErrorKind::MissingShard, message).in_file(input.path())
            }
            _ => error,
        })?;
        let contents = super::read_single(&shard, &options).map_err(|error| error.in_file(&path))?;
        for tensor in contents.tensors {
            if found.insert(tensor.name.clone(), name).is_some() && options.wants(&tensor.name) {
                let error = Error::new(ErrorKind::DuplicateTensor, "it stands in two shards");
                return Err(error.in_tensor(&tensor.name).in_file(&path));
            }
            all.tensors.push(tensor);
        }
        contents.metadata.into_iter().for_each(|(key, value)| all.put(key, value));
        all.notes.extend(contents.notes);
        all.unchosen += contents.unchosen;
    }
    let left_out: HashSet<String> = all
        .notes
        .iter()
        .filter(|note| note.kind() == NoteKind::Dropped)
        .map(|note| note.name().to_owned())
        .collect();
    for (name, shard) in index.weights() {
        if left_out.contains(name) || !options.wants(name) {
            continue;
        }
        // Of tied tensors one stays, and the metadata has the others.
        let there = found.get(name) == Some(&shard);
        if !there && !all.metadata.contains_key(name) {
            let message = format!("the index places it in {shard:?}, which does not hold it");
            return Err(Error::new(ErrorKind::MissingTensor, message).in_tensor(name));
        }
    }
    let listed: HashSet<&str> = index.weights().map(|weight| weight.0).collect();
    let unlisted = all.tensors.iter().filter(|it| !listed.contains(&*it.name) && options.wants(&it.name));
    let notes =
        unlisted.map(|tensor| Note::new(NoteKind::Changed, &*tensor.name, "the index does not list it"));
    let notes: Vec<_> = notes.collect();
    all.notes.extend(notes);
    Ok(all)
}
