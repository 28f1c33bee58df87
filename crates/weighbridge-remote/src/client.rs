//! The face of the crate: places that hold files, and files that are read by ranges.

mod builder;
mod fetch;
mod file;
mod keep;
#[cfg(feature = "stores")]
mod objects;

use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

pub use self::builder::{CacheMode, RemoteBuilder};
pub use self::file::RemoteFile;

use self::builder::Settings;
use self::fetch::TemporaryDirectory;
use self::keep::{Kept, KeptFile};
use crate::address::{Address, HubAddress, WebAddress, check_name};
use crate::cache::{Cache, Hold};
use crate::http::Http;
use crate::http::origin::Origin;
use crate::http::read::Reader;
use crate::http::stop::Stop;
use crate::hub::file::HubFile;
use crate::hub::nearest::nearest;
use crate::hub::tree::Entry;
use crate::hub::{Hub, Repo, Revision, is_commit};
use crate::web::WebFile;
use crate::{Error, ErrorKind, Result};

/// How many bytes the first request of a file asks for: enough for most headers of shards.
const HEAD: u64 = 256 << 10;

/// What all remote files of a process share: limits, tokens, the cache, what is known of servers. Clones are
/// the same one.
#[derive(Clone)]
pub struct Remote {
    settings: Arc<Settings>,
}

/// A place that holds files, pinned: a commit of a repository or a folder in it, or a folder of a web server.
pub struct Place {
    settings: Arc<Settings>,
    http: Http,
    what: What,
    file: Option<String>,
    temporary: Mutex<Option<TemporaryDirectory>>,
}

enum What {
    Hub(Box<HubPlace>),
    Web(WebAddress),
    #[cfg(feature = "stores")]
    Objects(objects::ObjectPlace),
}

struct HubPlace {
    repo: Repo,
    /// A commit, unless the server does not tell which.
    revision: String,
    /// Without a slash at its ends.
    folder: String,
    entries: OnceLock<Option<Vec<Entry>>>,
    cache: Option<Kept>,
    /// Keeps the commit from being pruned.
    _hold: Option<Hold>,
    /// Whoever asks for the listing; others wait, and find it.
    asking: Mutex<()>,
    /// The revision as it was asked for: the commit, a branch or a tag.
    asked: String,
}

/// A file of a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its name in the place.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
}

impl Remote {
    /// The process's own, made once from its environment: `HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`,
    /// `HTTPS_PROXY` and others.
    pub fn shared() -> Result<Self> {
        static SHARED: OnceLock<Result<Remote>> = OnceLock::new();
        SHARED.get_or_init(|| Self::of_environment()?.build()).clone()
    }

    /// The settings that the environment gives, to be changed.
    pub fn of_environment() -> Result<RemoteBuilder> {
        RemoteBuilder::from_environment()
    }

    /// The directory of the cache, if there is one.
    pub fn cache(&self) -> Option<Cache> {
        self.settings.cache()
    }

    /// One of its own, which reads nothing from the environment.
    pub fn builder() -> RemoteBuilder {
        RemoteBuilder::default()
    }

    /// Finds out what an address means now. A repository's revision is asked for, and what is in it if the
    /// address has a path; a web server is asked nothing yet.
    pub fn locate(&self, address: &Address) -> Result<Place> {
        let http = self.settings.http();
        let (what, file) = match address {
            Address::Hub(address) => self.locate_hub(&http, address)?,
            Address::Web(address) => {
                self.settings.allow(address)?;
                let file = address.file();
                (What::Web(address.clone()), file)
            }
            #[cfg(feature = "stores")]
            Address::Store(address) => self
                .locate_object(&http, address)
                .map_err(|error| error.at(&Address::Store(address.clone()).to_string()))?,
            #[cfg(not(feature = "stores"))]
            Address::Store(_) => {
                let message = "object stores are not supported by this build";
                return Err(Error::new(ErrorKind::Unsupported, message).at(&address.to_string()));
            }
        };
        Ok(Place { settings: self.settings.clone(), http, what, file, temporary: Mutex::default() })
    }

    fn locate_hub(&self, http: &Http, address: &HubAddress) -> Result<(What, Option<String>)> {
        let hub = Hub::new(http.clone(), self.settings.endpoint(), self.settings.token.clone())?;
        let repo = hub.repo(address);
        let cache = self.settings.repo_cache(address);
        let asked = address.revision();
        let kept = || cache.as_ref().and_then(|cache| cache.commit(asked));
        let revision = match http.is_offline() {
            true if is_commit(asked) => asked.to_owned(),
            true => kept().ok_or_else(|| offline("the revision").at(&address.to_string()))?,
            false => match (repo.commit(asked, &Stop::never()), kept()) {
                (Ok(Revision::Commit(commit)), _) => commit,
                (Ok(Revision::Unknown), _) => asked.to_owned(),
                // Nobody answers: what it was when it was last asked for.
                (Err(error), Some(commit)) if error.kind() == ErrorKind::Io => commit,
                (Err(error), _) if error.kind() == ErrorKind::Io && cache.is_some() => {
                    return Err(error.advised("the cache has nothing of it"));
                }
                (Err(error), _) => return Err(error),
            },
        };
        let hold = cache.as_ref().filter(|_| is_commit(&revision)).map(|cache| cache.hold(&revision));
        let mut place = HubPlace {
            repo,
            revision,
            folder: String::new(),
            entries: OnceLock::new(),
            asking: Mutex::default(),
            asked: asked.to_owned(),
            cache,
            _hold: hold,
        };
        let file = place.enter(&address.path).map_err(|error| error.at(&address.to_string()))?;
        Ok((What::Hub(Box::new(place)), file))
    }
}

fn offline(what: &str) -> Error {
    Error::new(ErrorKind::Offline, format!("HF_HUB_OFFLINE is set, and the cache lacks {what}"))
}

impl HubPlace {
    /// All that is in the repository; `None`: the server has no listing.
    fn entries(&self) -> Result<Option<&[Entry]>> {
        let _asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        if self.entries.get().is_none() {
            let kept = self.cache.as_ref().and_then(|cache| cache.tree(&self.revision));
            let entries = match kept {
                Some(entries) => Some(entries),
                None => {
                    let entries = self.repo.tree(&self.revision, &Stop::never())?;
                    if let (Some(cache), Some(entries)) = (&self.cache, &entries) {
                        cache.set_tree(&self.revision, entries);
                    }
                    entries
                }
            };
            // A branch names a commit only when its list is there.
            if let Some(cache) = self.cache.as_ref().filter(|_| is_commit(&self.revision)) {
                cache.set_commit(&self.asked, &self.revision);
            }
            let _ = self.entries.set(entries);
        }
        Ok(self.entries.get().and_then(Option::as_deref))
    }

    /// The files of the folder, by name; `flat`: those directly in it. `None`: the server has no listing.
    fn names(&self, flat: bool) -> Result<Option<Vec<Named>>> {
        let inside = if self.folder.is_empty() { String::new() } else { format!("{}/", self.folder) };
        let named = |entry: &Entry| {
            let name = entry.path.strip_prefix(&inside).filter(|name| !flat || !name.contains('/'))?;
            Some(Named { name: name.to_owned(), size: entry.size })
        };
        let Some(entries) = self.entries()? else { return Ok(None) };
        let mut names: Vec<_> = entries.iter().filter_map(named).collect();
        names.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Some(names))
    }

    /// Goes to a path: a folder, or the folder of a file, whose name is returned.
    fn enter(&mut self, path: &str) -> Result<Option<String>> {
        if path.is_empty() {
            return Ok(None);
        }
        let split = || path.rsplit_once('/').unwrap_or(("", path));
        let is_file = match self.entries()? {
            // Without a listing, what looks like a file is one.
            None => split().1.contains('.'),
            Some(entries) if entries.iter().any(|entry| entry.path == path) => true,
            Some(entries) => {
                let inside = format!("{path}/");
                if !entries.iter().any(|entry| entry.path.starts_with(&inside)) {
                    return Err(self.absent(path));
                }
                false
            }
        };
        let (folder, file) = if is_file { (split().0, Some(split().1.to_owned())) } else { (path, None) };
        self.folder = folder.to_owned();
        Ok(file)
    }

    fn path(&self, name: &str) -> Result<String> {
        check_name(name)?;
        Ok(if self.folder.is_empty() { name.to_owned() } else { format!("{}/{name}", self.folder) })
    }

    /// What is kept of a file.
    fn kept(&self, reader: &Reader, name: &str) -> Result<Option<KeptFile>> {
        let Some((cache, tag)) = self.cache.as_ref().zip(reader.checksum()) else { return Ok(None) };
        Ok(cache.file_ranges(&self.revision, &self.path(name)?, &tag, reader.size()))
    }

    /// The error of a file that is not listed.
    fn absent(&self, path: &str) -> Error {
        let entries = self.entries.get().and_then(Option::as_deref).unwrap_or_default();
        let near = nearest(path, entries.iter().map(|entry| entry.path.as_str()));
        let hint = if near.is_empty() { String::new() } else { format!("; nearest: {}", near.join(", ")) };
        Error::new(ErrorKind::NotFound, format!("no such file: {path}{hint}"))
    }

    /// What is listed of a file; an error if it is absent, `None` if there is no listing.
    fn entry(&self, path: &str) -> Result<Option<Entry>> {
        match self.entries()? {
            None => Ok(None),
            Some(entries) => match entries.iter().find(|entry| entry.path == path) {
                Some(entry) => Ok(Some(entry.clone())),
                None => Err(self.absent(path)),
            },
        }
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Remote")
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Place({})", self.address())
    }
}

impl Place {
    /// The pinned form, for people: `hf://owner/name@<commit>`.
    pub fn address(&self) -> String {
        match &self.what {
            What::Hub(place) if place.folder.is_empty() => {
                format!("{}@{}", place.repo.name(), place.revision)
            }
            What::Hub(place) => format!("{}@{}/{}", place.repo.name(), place.revision, place.folder),
            What::Web(address) => address.to_string(),
            #[cfg(feature = "stores")]
            What::Objects(place) => place.address(),
        }
    }

    /// What to call a file of it, for people.
    pub fn address_of(&self, name: &str) -> String {
        match &self.what {
            // Such an address names a file.
            What::Web(address) => {
                address.beside(name).map_or_else(|_| address.to_string(), |file| file.to_string())
            }
            _ => format!("{}/{name}", self.address().trim_end_matches('/')),
        }
    }

    /// The file that the address named, if it named one.
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }

    /// The files directly in the place, by name; `None`: the server has no listing.
    pub fn names(&self) -> Result<Option<Vec<Named>>> {
        self.listed(true)
    }

    /// All files in the place and in its folders, by their paths from here; `None`: the server has no listing.
    pub fn all_names(&self) -> Result<Option<Vec<Named>>> {
        self.listed(false)
    }

    /// `flat`: only those directly in the place.
    fn listed(&self, flat: bool) -> Result<Option<Vec<Named>>> {
        match &self.what {
            What::Hub(place) => place.names(flat),
            What::Web(_) => Ok(None),
            #[cfg(feature = "stores")]
            What::Objects(place) => place.names(flat).map(Some).map_err(|error| error.at(&self.address())),
        }
    }

    /// What asks for a file.
    fn origin(&self, name: &str) -> Result<Box<dyn Origin>> {
        match &self.what {
            What::Hub(place) => {
                let path = place.path(name)?;
                let entry = place.entry(&path)?;
                Ok(Box::new(HubFile::new(&place.repo, &place.revision, &path, entry)?))
            }
            What::Web(address) => Ok(Box::new(WebFile::new(self.http.clone(), &address.beside(name)?)?)),
            #[cfg(feature = "stores")]
            What::Objects(place) => Ok(Box::new(place.file(name)?)),
        }
    }

    fn reader(&self, name: &str, head: u64) -> Result<Reader> {
        let opened = self.origin(name).and_then(|origin| match self.http.is_offline() {
            true => Err(offline(name)),
            false => Reader::open(self.http.clone(), origin, head),
        });
        opened.map_err(|error| error.at(&self.address())).inspect_err(|error| {
            if let (ErrorKind::NotFound, What::Hub(place)) = (error.kind(), &self.what)
                && let (Some(cache), Ok(path)) = (&place.cache, place.path(name))
            {
                cache.set_absent(&place.revision, &path);
            }
        })
    }

    /// Opens a file. The first request brings its first 256 KiB, with which reads are served without another one.
    pub fn open(&self, name: &str) -> Result<RemoteFile> {
        let reader = self.reader(name, HEAD)?;
        let ranges = match &self.what {
            What::Hub(place) => place.kept(&reader, name)?,
            _ => None,
        };
        Ok(RemoteFile::new(reader, ranges))
    }

    /// A small file, whole; `None`: it is absent. One of more than `most` bytes is an error.
    pub fn read(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>> {
        if let Some(path) = self.local(name) {
            let failed = |error: std::io::Error| {
                Error::new(ErrorKind::Io, format!("{}: {error}", path.display())).at(&self.address())
            };
            let too_long = std::fs::metadata(&path).map_err(failed)?.len() > most;
            return if too_long {
                Err(self.too_long(name, most))
            } else {
                std::fs::read(&path).map(Some).map_err(failed)
            };
        }
        let head = match &self.what {
            // Its size is known, so that one request brings all of it.
            What::Hub(_) => most,
            _ => most.min(HEAD),
        };
        let reader = match self.reader(name, head.clamp(1, 64 << 20)) {
            Ok(reader) => reader,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if reader.size() > most {
            return Err(self.too_long(name, most));
        }
        let mut bytes = reader.take_head();
        let had = bytes.len();
        let size = usize::try_from(reader.size()).map_err(|_| self.too_long(name, most))?;
        bytes.resize(size, 0);
        if had < size {
            reader.read_at(had as u64, &mut bytes[had..])?;
        }
        if let What::Hub(place) = &self.what
            && let (Some(cache), Some(tag), Ok(path)) = (&place.cache, reader.tag(), place.path(name))
        {
            cache.put(&place.revision, &path, &tag, &bytes);
        }
        Ok(Some(bytes))
    }

    fn too_long(&self, name: &str, most: u64) -> Error {
        Error::new(ErrorKind::Malformed, format!("{name} is longer than {most} bytes")).at(&self.address())
    }

    /// The whole file on the disk, verified where its checksum is known: in the cache, or in a temporary
    /// directory that is removed with this place. `progress` gets the bytes that are there and how many there
    /// will be.
    pub fn fetch(
        &self,
        name: &str,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<PathBuf> {
        if let Some(path) = self.local(name) {
            return Ok(path);
        }
        check_name(name).map_err(|error| error.at(&self.address()))?;
        let file = self.open(name)?;
        if let Some(fetched) = file.fetch(self.settings.concurrency, progress) {
            return fetched.map_err(|error| error.at(file.address()));
        }
        let directory = {
            let mut temporary = self.temporary.lock().unwrap_or_else(PoisonError::into_inner);
            let directory = match temporary.take() {
                Some(directory) => directory,
                None => TemporaryDirectory::new()?,
            };
            let path = directory.path().to_path_buf();
            *temporary = Some(directory);
            path
        };
        fetch::fetch(&file, &directory.join(name), self.settings.concurrency, progress)
    }

    /// The same into a file of this path, in whose place there must be none. Until it is whole it has another name beside it, or
    /// is in the cache; it leaves the cache if that is on the same file system.
    pub fn fetch_to(
        &self,
        name: &str,
        target: &Path,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<()> {
        let failed =
            |error: std::io::Error| Error::new(ErrorKind::Io, format!("{}: {error}", target.display()));
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        if matches!(self.what, What::Hub(_)) {
            // What it is a link to.
            let content = self.fetch(name, progress)?.canonicalize().map_err(failed)?;
            let moved = std::fs::rename(&content, target);
            return moved.or_else(|_| std::fs::copy(&content, target).map(drop)).map_err(failed);
        }
        check_name(name).map_err(|error| error.at(&self.address()))?;
        let mut unfinished = target.as_os_str().to_owned();
        unfinished.push(".unfinished");
        let unfinished = PathBuf::from(unfinished);
        let fetched = fetch::fetch(&self.open(name)?, &unfinished, self.settings.concurrency, progress);
        let moved = fetched.and_then(|path| std::fs::rename(path, target).map_err(failed));
        moved.inspect_err(|_| drop(std::fs::remove_file(&unfinished)))
    }

    /// The file in the cache, where it is complete.
    pub fn local(&self, name: &str) -> Option<PathBuf> {
        let What::Hub(place) = &self.what else { return None };
        let (cache, path) = (place.cache.as_ref()?, place.path(name).ok()?);
        let of_another_commit = || {
            let entry = place.entries.get()?.as_ref()?.iter().find(|entry| entry.path == path)?;
            cache.adopt(&place.revision, &path, entry.tag(), entry.size)
        };
        cache.file(&place.revision, &path).or_else(of_another_commit)
    }
}
