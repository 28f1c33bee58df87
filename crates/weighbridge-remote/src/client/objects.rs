//! Places in object stores: what is in them, and writing to them.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use super::{Named, Place, Remote, What};
use crate::address::{StoreAddress, check_name};
use crate::http::Http;
use crate::store::{Listed, Store, StoreFile, Tag, Upload, When};
use crate::{Error, ErrorKind, Result};

/// A prefix of a bucket.
pub(super) struct ObjectPlace {
    store: Arc<Store>,
    /// Empty, or with a slash at its end.
    folder: String,
    honours: OnceLock<bool>,
}

/// What ends so is taken for an object, without asking.
const FILES: [&str; 8] = [".safetensors", ".json", ".bin", ".gguf", ".pt", ".pth", ".txt", ".model"];

impl Remote {
    pub(super) fn locate_object(
        &self,
        http: &Http,
        address: &StoreAddress,
    ) -> Result<(What, Option<String>)> {
        let store = self.settings.store(http, address)?.shared();
        let key = address.key.as_str();
        let is_file = if key.is_empty() || key.ends_with('/') {
            false
        } else if FILES.iter().any(|end| key.ends_with(end)) {
            true
        } else {
            match store.tag(key) {
                Ok(tag) => tag.is_some(),
                // Who may read a prefix need not be allowed to know that there is no object of its name.
                Err(error) if error.kind() == ErrorKind::Denied => false,
                Err(error) => return Err(error),
            }
        };
        let (folder, file) = match is_file {
            true => {
                let at = key.rfind('/').map_or(0, |at| at + 1);
                (key[..at].to_owned(), Some(key[at..].to_owned()))
            }
            false if key.is_empty() || key.ends_with('/') => (key.to_owned(), None),
            false => (format!("{key}/"), None),
        };
        Ok((What::Objects(ObjectPlace { store, folder, honours: OnceLock::new() }), file))
    }
}

impl ObjectPlace {
    fn key(&self, name: &str) -> Result<String> {
        check_name(name)?;
        Ok(format!("{}{name}", self.folder))
    }

    pub(super) fn address(&self) -> String {
        self.store.address(self.folder.trim_end_matches('/'))
    }

    pub(super) fn file(&self, name: &str) -> Result<StoreFile> {
        StoreFile::new(&self.store, &self.key(name)?)
    }

    /// The objects of the place; `flat`: those directly in it.
    pub(super) fn names(&self, flat: bool) -> Result<Vec<Named>> {
        let objects = self.listed(&self.folder, flat)?;
        Ok(objects.into_iter().map(|object| Named { name: object.name, size: object.size }).collect())
    }

    /// Objects with these names: whatever no file could be called is left out, as the markers are that some
    /// programs make of folders.
    fn listed(&self, prefix: &str, flat: bool) -> Result<Vec<Listed>> {
        let mut objects = self.store.list(prefix, flat)?;
        objects.retain_mut(|object| match object.name.strip_prefix(&self.folder) {
            Some(name) if check_name(name).is_ok() => {
                object.name = name.to_owned();
                true
            }
            _ => false,
        });
        Ok(objects)
    }
}

/// Writing, to object stores alone.
impl Place {
    fn objects(&self) -> Result<&ObjectPlace> {
        let message = match &self.what {
            What::Objects(place) => return Ok(place),
            What::Hub(_) => {
                "the hub is only read from here; save to a directory, then run: hf upload REPO DIRECTORY"
            }
            What::Web(_) => "web servers are only read; save to a directory, or to s3://, gs:// or az://",
        };
        Err(Error::new(ErrorKind::Unsupported, message).at(&self.address()))
    }

    fn with<T>(&self, name: &str, work: impl FnOnce(&ObjectPlace, &str) -> Result<T>) -> Result<T> {
        let place = self.objects()?;
        let key = place.key(name).map_err(|error| error.at(&self.address()))?;
        work(place, &key).map_err(|error| error.at(&place.store.address(&key)))
    }

    /// Writes a small object with one request, if the precondition holds, and says which version it is. If it
    /// does not, the error is of kind [`ErrorKind::Changed`].
    ///
    /// Where the answer is lost, the store is asked whether the object is the one that was sent.
    pub fn put(&self, name: &str, bytes: &[u8], when: When) -> Result<Tag> {
        self.with(name, |place, key| place.store.put(key, bytes, &when, None))
    }

    /// Begins an object of this length that is written in parts.
    pub fn upload(&self, name: &str, size: u64) -> Result<Upload> {
        self.with(name, |place, key| Upload::start(&place.store, key, size))
    }

    /// Deletes an object. That there is none is no error.
    pub fn delete(&self, name: &str) -> Result<()> {
        self.with(name, |place, key| place.store.delete(key))
    }

    /// The version that an object has now; `None`: there is none.
    pub fn tag(&self, name: &str) -> Result<Option<Tag>> {
        self.with(name, |place, key| place.store.tag(key))
    }

    /// All objects of the place whose names begin so, those in folders below too, by name.
    pub fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        let place = self.objects()?;
        let key = format!("{}{prefix}", place.folder);
        place.listed(&key, false).map_err(|error| error.at(&self.address()))
    }

    /// Ends multipart uploads to names that begin so and that were begun so long ago, and says how many: what
    /// processes that were killed have left, which costs and is seen by nobody. Uploads of other programs to
    /// such names are ended too.
    ///
    /// Azure does not list them, and forgets them after a week: there it is none.
    pub fn abort_stale(&self, prefix: &str, older_than: Duration) -> Result<usize> {
        let place = self.objects()?;
        let before = SystemTime::now().checked_sub(older_than).unwrap_or(SystemTime::UNIX_EPOCH);
        let key = format!("{}{prefix}", place.folder);
        place.store.abort_stale(&key, before).map_err(|error| error.at(&self.address()))
    }

    /// Whether the store refuses writes whose precondition does not hold, as some that speak S3's protocol do
    /// not. It is tried once for the place, with a small object that is deleted again. Of uploads in parts it says
    /// nothing: there the precondition is looked at before the end, too.
    pub fn honours_preconditions(&self) -> Result<bool> {
        let place = self.objects()?;
        if let Some(known) = place.honours.get() {
            return Ok(*known);
        }
        let key = format!("{}.weighbridge-{:016x}", place.folder, crate::retry::random_bits());
        let found = place.store.honours_preconditions(&key).map_err(|error| error.at(&self.address()))?;
        Ok(*place.honours.get_or_init(|| found))
    }
}
