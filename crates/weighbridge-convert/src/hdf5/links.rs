//! What a group's links are: the reader opens what they lead to, and passes over those that lead nowhere.

use std::collections::{BTreeMap, HashMap};

use hdf5_reader::btree_v1::collect_btree_v1_leaves_storage;
use hdf5_reader::btree_v2::{BTreeV2Header, BTreeV2Record, collect_btree_v2_records_storage};
use hdf5_reader::error::{Error, Result};
use hdf5_reader::fractal_heap::{FractalHeap, FractalHeapDirectBlockCache};
use hdf5_reader::group::Group;
use hdf5_reader::io::Cursor;
use hdf5_reader::local_heap::LocalHeap;
use hdf5_reader::messages::HdfMessage;
use hdf5_reader::messages::link::{self, LinkMessage, LinkTarget};
use hdf5_reader::messages::link_info::LinkInfoMessage;
use hdf5_reader::messages::symbol_table_msg::SymbolTableMessage;
use hdf5_reader::storage::Storage;
use hdf5_reader::symbol_table::SymbolTableNode;
use hdf5_reader::{Dataset, Hdf5File};

/// Where a link leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// An object of the file.
    Hard,
    /// A path in the file.
    Soft(String),
    /// A path in another file, the one of this name.
    External(String),
    /// The same name was found more than once.
    Twice,
}

/// What a link leads to in its own file.
pub(super) enum Child {
    Dataset(Box<Dataset>),
    Group(Group),
    Nothing,
}

/// What a group's links lead to.
pub(super) struct Children<'g> {
    group: &'g Group,
    /// Found at once, unless one of them cannot be read.
    known: Option<(HashMap<String, Group>, HashMap<String, Dataset>)>,
}

/// In groups of more links one that cannot be read is not looked for.
const MOST_SINGLY: usize = 1 << 14;

impl<'g> Children<'g> {
    pub(super) fn of(group: &'g Group, links: usize) -> Result<Self> {
        let known = match group.members() {
            Ok((groups, datasets)) => Some((
                groups.into_iter().map(|group| (group.name().to_owned(), group)).collect(),
                datasets.into_iter().map(|dataset| (dataset.name().to_owned(), dataset)).collect(),
            )),
            Err(error) if links > MOST_SINGLY => return Err(error),
            Err(_) => None,
        };
        Ok(Self { group, known })
    }

    pub(super) fn take(&mut self, name: &str) -> Result<Child> {
        if let Some((groups, datasets)) = &mut self.known {
            let dataset = datasets.remove(name).map(|dataset| Child::Dataset(Box::new(dataset)));
            let child = dataset.or_else(|| groups.remove(name).map(Child::Group));
            return Ok(child.unwrap_or(Child::Nothing));
        }
        match self.group.dataset(name) {
            Ok(dataset) => return Ok(Child::Dataset(Box::new(dataset))),
            Err(error) if is_missing(&error) => {}
            Err(error) => return Err(error),
        }
        match self.group.group(name) {
            Ok(group) => Ok(Child::Group(group)),
            Err(error) if is_missing(&error) => Ok(Child::Nothing),
            Err(error) => Err(error),
        }
    }
}

/// Whether nothing of the kind is there.
fn is_missing(error: &Error) -> bool {
    match error {
        Error::Context { source, .. } => is_missing(source),
        _ => matches!(error, Error::DatasetNotFound(_) | Error::GroupNotFound(_)),
    }
}

/// The kind of an entry of a symbol table that is a soft link.
const SOFT: u32 = 2;

/// The links of a group by name.
pub(super) fn links(reader: &Hdf5File, group: &Group) -> Result<BTreeMap<String, Link>> {
    let mut found = Found { reader, links: BTreeMap::new() };
    for message in &reader.get_or_parse_header(group.address())?.messages {
        match message {
            HdfMessage::Link(link) => found.message(link),
            HdfMessage::LinkInfo(info) => found.dense(info)?,
            HdfMessage::SymbolTable(table) => found.table(table)?,
            _ => {}
        }
    }
    Ok(found.links)
}

struct Found<'r> {
    reader: &'r Hdf5File,
    links: BTreeMap<String, Link>,
}

impl<'r> Found<'r> {
    fn put(&mut self, name: String, link: Link) {
        let twice = |known: &mut Link| *known = Link::Twice;
        self.links.entry(name).and_modify(twice).or_insert(link);
    }

    fn message(&mut self, message: &LinkMessage) {
        let link = match &message.target {
            LinkTarget::Hard { .. } => Link::Hard,
            LinkTarget::Soft { path } => Link::Soft(path.clone()),
            LinkTarget::External { filename, .. } => Link::External(filename.clone()),
        };
        self.put(message.name.clone(), link);
    }

    /// The links of a group that has many.
    fn dense(&mut self, info: &LinkInfoMessage) -> Result<()> {
        let (storage, offset, length) = self.sizes();
        if Cursor::is_undefined_offset(info.fractal_heap_address, offset) {
            return Ok(());
        }
        let heap = FractalHeap::parse_at_storage(storage, info.fractal_heap_address, offset, length)?;
        let tree = BTreeV2Header::parse_at_storage(storage, info.btree_name_index_address, offset, length)?;
        let mut blocks = FractalHeapDirectBlockCache::default();
        for record in collect_btree_v2_records_storage(storage, &tree, offset, length, None, &[], None)? {
            if let BTreeV2Record::LinkNameHash { heap_id, .. } = &record {
                let bytes = heap.get_object_storage_cached(heap_id, storage, offset, length, &mut blocks)?;
                let message = link::parse(&mut Cursor::new(&bytes), offset, length, bytes.len())?;
                self.message(&message);
            }
        }
        Ok(())
    }

    /// The links of a group as files had them first.
    fn table(&mut self, table: &SymbolTableMessage) -> Result<()> {
        let (storage, offset, length) = self.sizes();
        let heap = LocalHeap::parse_at_storage(storage, table.heap_address, offset, length)?;
        let segment = usize::try_from(heap.data_segment_size)
            .map_err(|_| Error::OffsetOutOfBounds(heap.data_segment_size))?;
        let texts = storage.read_range(heap.data_segment_address, segment)?;
        let text = |at: u64| {
            let rest = usize::try_from(at).ok().and_then(|at| texts.get(at..));
            let text = rest.and_then(|rest| rest.split(|&byte| byte == 0).next());
            let text = text.and_then(|text| std::str::from_utf8(text).ok());
            text.map(str::to_owned).ok_or(Error::OffsetOutOfBounds(at))
        };
        let leaves =
            collect_btree_v1_leaves_storage(storage, table.btree_address, offset, length, None, &[], None)?;
        for (_, address) in leaves {
            let head = storage.read_range(address, 8)?;
            let count = u16::from_le_bytes([head[6], head[7]]);
            let len = 8 + usize::from(count) * (2 * usize::from(offset) + 24);
            let node = storage.read_range(address, len)?;
            for entry in SymbolTableNode::parse(&mut Cursor::new(&node), offset, length)?.entries {
                let name = text(entry.link_name_offset)?;
                let [a, b, c, d, ..] = entry.scratch;
                let link = match entry.cache_type {
                    SOFT => Link::Soft(text(u64::from(u32::from_le_bytes([a, b, c, d])))?),
                    _ => Link::Hard,
                };
                self.put(name, link);
            }
        }
        Ok(())
    }

    /// The file, and how many bytes its offsets and its lengths have.
    fn sizes(&self) -> (&'r dyn Storage, u8, u8) {
        let superblock = self.reader.superblock();
        (self.reader.storage(), superblock.offset_size, superblock.length_size)
    }
}
