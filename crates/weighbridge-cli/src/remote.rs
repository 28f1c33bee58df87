//! Addresses on a network, for verbs that need files on the disk.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use weighbridge_remote::{Address, Named, Place, Remote};

use crate::interrupt;
use crate::term::Term;

/// The address that a location is, if it is one.
pub(crate) fn address(location: &Path) -> Result<Option<Address>> {
    let text = location.to_string_lossy();
    Address::parse(&text).transpose().map_err(|error| match error.address() {
        // It is as it may be shown: without a password.
        Some(_) => error.into(),
        None => anyhow::Error::new(error).context(text.into_owned()),
    })
}

/// A place whose files are there, or are fetched.
pub(crate) struct Files {
    place: Place,
    /// Their paths in the place, and their sizes where these are known.
    pub(crate) files: Vec<Named>,
}

impl Files {
    /// The file that an address names, or the files in a place that are `wanted`.
    pub(crate) fn of(remote: &Remote, address: &Address, wanted: impl Fn(&str) -> bool) -> Result<Self> {
        let place = remote.locate(address)?;
        let named = |name: &str| -> Result<Named> {
            let listed = place.all_names()?.unwrap_or_default().into_iter().find(|named| named.name == name);
            Ok(match listed {
                Some(named) => named,
                None => Named { name: name.to_owned(), size: place.open(name)?.size() },
            })
        };
        let files = match place.file() {
            Some(name) => vec![named(name)?],
            None => match place.all_names()? {
                Some(files) => files.into_iter().filter(|named| wanted(&named.name)).collect(),
                None => bail!("{address}: a web server does not list its files; name one"),
            },
        };
        Ok(Self { place, files })
    }

    /// The bytes of all files.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// The pinned address of the place.
    pub(crate) fn address(&self) -> String {
        self.place.address()
    }

    /// The path of each file, fetched if it is not there yet.
    pub(crate) fn fetch(&self, term: &Term) -> Result<Vec<PathBuf>> {
        let all: Vec<_> = self.files.iter().collect();
        self.each(&all, term, |name, progress| self.place.fetch(name, progress))
    }

    /// Has files fetched into a directory, each under its name.
    pub(crate) fn fetch_into(&self, directory: &Path, files: &[&Named], term: &Term) -> Result<()> {
        let fetch = |name: &str, progress: &mut Progress<'_>| {
            let target = directory.join(name);
            self.place.fetch_to(name, &target, progress).map(|()| target)
        };
        self.each(files, term, fetch).map(drop)
    }

    fn each(
        &self,
        files: &[&Named],
        term: &Term,
        fetch: impl Fn(&str, &mut Progress<'_>) -> weighbridge_remote::Result<PathBuf>,
    ) -> Result<Vec<PathBuf>> {
        let bar = term.bar("fetching", files.iter().map(|file| file.size).sum());
        let mut paths = Vec::with_capacity(files.len());
        for file in files {
            interrupt::check()?;
            let mut told = 0;
            let mut progress = |done: u64, _: u64| {
                bar.add(done.saturating_sub(told));
                told = told.max(done);
                if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            let path = fetch(&file.name, &mut progress);
            paths.push(path.with_context(|| self.place.address_of(&file.name))?);
            bar.add(file.size.saturating_sub(told));
        }
        Ok(paths)
    }
}

type Progress<'p> = dyn FnMut(u64, u64) -> ControlFlow<()> + 'p;

/// Files of an address that lie on the disk while it exists.
pub(crate) struct Local {
    _files: Option<Files>,
    pub(crate) path: PathBuf,
}

/// Where a location is on the disk, its files fetched if it is an address: the file that it names, or the directory of
/// all that `wanted` says.
pub(crate) fn local(location: &Path, wanted: impl Fn(&str) -> bool, term: &Term) -> Result<Local> {
    let Some(address) = address(location)? else {
        return Ok(Local { _files: None, path: location.to_owned() });
    };
    let files = Files::of(&Remote::shared()?, &address, wanted)?;
    let paths = files.fetch(term)?;
    let (Some(path), Some(file)) = (paths.first(), files.files.first()) else {
        bail!("{address}: there is nothing in it");
    };
    if files.place.file().is_some() {
        return Ok(Local { path: path.clone(), _files: Some(files) });
    }
    // As many levels up as the file's name has.
    let depth = Path::new(&file.name).components().count();
    let directory = path.ancestors().nth(depth).unwrap_or(path).to_owned();
    Ok(Local { path: directory, _files: Some(files) })
}
