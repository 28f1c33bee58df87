//! What keeps a load from being done, said so that it can be put right.

use weighbridge::{Checkpoint, Error, ErrorKind, Names, Result, TensorRef, nearest_name};

use crate::metadata::in_shard;
use crate::naming::Named;
use crate::report::{LoadReport, Missing};
use crate::walk::Site;

/// Fails if there are problems: with the first one, and the number of others.
pub(crate) fn fail(report: &LoadReport, tolerant: bool, partial: bool, all_used: bool) -> Result<()> {
    let more = |count: usize| match count {
        0 => String::new(),
        1 => "; and one more problem".to_owned(),
        count => format!("; and {count} more problems"),
    };
    let missing: &[Missing] = if partial { &[] } else { &report.missing };
    let unused: &[String] = if all_used { &report.unused } else { &[] };
    let problems: &[Error] = if tolerant { &[] } else { &report.problems };
    let count = problems.len() + missing.len() + unused.len();
    if let Some(problem) = problems.first() {
        let mut error = Error::new(problem.kind(), problem.message().to_owned() + &more(count - 1));
        if let Some(tensor) = problem.tensor() {
            error = error.in_tensor(tensor);
        }
        if let Some(file) = problem.file() {
            error = error.in_file(file);
        }
        return Err(error);
    }
    if let Some(first) = missing.first() {
        let message = format!("it is missing{}{}", first.remark(), more(count - 1));
        return Err(Error::new(ErrorKind::MissingTensor, message).in_tensor(&first.name));
    }
    if let Some(first) = unused.first() {
        let message = format!("no parameter takes it{}", more(count - 1));
        return Err(Error::new(ErrorKind::MissingTensor, message).in_tensor(first));
    }
    Ok(())
}

/// The error about a parameter with the file, and with the stored names of its tensors where they differ from
/// its path.
pub(crate) fn located(error: Error, path: &str, tensors: &[TensorRef<'_>]) -> Error {
    let others: Vec<_> = tensors.iter().map(|tensor| format!("{:?}", tensor.name())).collect();
    let error = match tensors {
        [tensor] if tensor.name() == path => error,
        _ => Error::new(error.kind(), format!("stored as {}: {}", others.join(", "), error.message())),
    };
    let error = error.in_tensor(path);
    match tensors.first() {
        Some(tensor) => in_shard(error, tensor.shard()),
        None => error,
    }
}

pub(crate) fn selects_none(first: &Site) -> Error {
    let message = format!("`only` selects no parameter; their paths are like {:?}", first.path());
    Error::new(ErrorKind::MissingTensor, message)
}

/// The error for an operation that is meant for parameters which the module does not have.
pub(crate) fn no_such_path(names: &Names, first: &Site) -> Error {
    let path = first.path();
    let message = format!(
        "an operation is set for {names:?}, but no parameter has such a path; they are like {path:?}"
    );
    Error::new(ErrorKind::MissingTensor, message)
}

/// Finds the stored names that are most like missing ones, for as many as anyone reads.
pub(crate) struct Hints<'l> {
    checkpoint: &'l Checkpoint,
    named: &'l Named<'l>,
    /// All names, renamed and stored, in the order of the checkpoint. Collected when the first one is asked
    /// for.
    names: Vec<(String, &'l str)>,
    left: usize,
}

impl<'l> Hints<'l> {
    const MOST: usize = 10;

    pub(crate) fn new(checkpoint: &'l Checkpoint, named: &'l Named<'l>) -> Self {
        Self { checkpoint, named, names: Vec::new(), left: Self::MOST }
    }

    pub(crate) fn missing(&mut self, path: String, name: String) -> Missing {
        let mut missing = Missing { path, name, nearest: None, nearest_renamed: None };
        if self.left == 0 {
            return missing;
        }
        self.left -= 1;
        if self.names.is_empty() {
            let names = self.checkpoint.tensors().map(|tensor| tensor.name());
            self.names = names.map(|name| (self.named.apply(name), name)).collect();
        }
        let nearest = nearest_name(&missing.name, self.names.iter().map(|(renamed, _)| &**renamed));
        if let Some((renamed, name)) = self.names.iter().find(|(renamed, _)| Some(&**renamed) == nearest) {
            missing.nearest = Some((*name).to_owned());
            missing.nearest_renamed = (renamed != name).then(|| renamed.clone());
        }
        missing
    }
}
