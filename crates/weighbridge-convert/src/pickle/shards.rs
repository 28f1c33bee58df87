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
    let listed: HashMap<&str, &str> = index.weights().collect();
    let mut found: HashSet<String> = HashSet::new();
    let mut passed_over = Vec::new();
    for name in index.shards() {
        let path = directory.join(name);
        let shard = input.another(&path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                let message = format!("the shard {name:?} that it names is not there");
                Error::new(ErrorKind::MissingShard, message).in_file(input.path())
            }
            _ => error,
        })?;
        let contents = super::read_single(&shard, &options).map_err(|error| error.in_file(&path))?;
        for tensor in contents.tensors {
            if let Some(used) = listed.get(&*tensor.name).filter(|used| **used != name) {
                passed_over.push((tensor.name, name, *used));
                continue;
            }
            if !found.insert(tensor.name.clone()) && options.wants(&tensor.name) {
                let message =
                    "another shard holds a tensor of this name, too, and the index does not list it";
                let error = Error::new(ErrorKind::DuplicateTensor, message);
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
        if !found.contains(name) && !all.metadata.contains_key(name) {
            let message = format!("the index places it in {shard:?}, which does not hold it");
            return Err(Error::new(ErrorKind::MissingTensor, message).in_tensor(name));
        }
    }
    let unlisted = all.tensors.iter().filter(|it| !listed.contains_key(&*it.name) && options.wants(&it.name));
    let notes =
        unlisted.map(|tensor| Note::new(NoteKind::Changed, &*tensor.name, "the index does not list it"));
    let notes: Vec<_> = notes.collect();
    all.notes.extend(notes);
    let duplicates = passed_over.into_iter().filter(|(tensor, ..)| options.wants(tensor));
    all.notes.extend(duplicates.map(|(tensor, shard, used)| {
        let why = format!("the copy in {shard:?} is not used, because the index says that {used:?} holds it");
        Note::new(NoteKind::Dropped, tensor, why)
    }));
    Ok(all)
}
