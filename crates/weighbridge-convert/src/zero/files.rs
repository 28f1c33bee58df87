//! The files of a directory that DeepSpeed wrote, by their names.

use std::fs;
use std::path::{Component, Path, PathBuf};

use weighbridge::{Error, ErrorKind, Result};

const OPTIM: &str = "_optim_states.pt";
const MODEL: &str = "_model_states.pt";
/// The longest tag that `latest` may hold.
const LONGEST_TAG: u64 = 4096;

/// The files of a step.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) directory: PathBuf,
    /// In the order of the ranks.
    pub(crate) optims: Vec<PathBuf>,
    /// In the order of the ranks; a single one in stages 1 and 2.
    pub(crate) models: Vec<PathBuf>,
    /// Why they are not read.
    pub(crate) refused: Option<String>,
}

/// The files of a step, in this directory or in the one that its `latest` names; `None` if DeepSpeed wrote
/// neither.
pub(crate) fn find(directory: &Path) -> Result<Option<Files>> {
    if let Some(files) = Files::of(directory)? {
        return Ok(Some(files));
    }
    let latest = directory.join("latest");
    let Ok(metadata) = fs::metadata(&latest) else { return Ok(None) };
    if !metadata.is_file() || metadata.len() > LONGEST_TAG {
        return Ok(None);
    }
    let Ok(tag) = fs::read_to_string(&latest) else { return Ok(None) };
    let tag = tag.trim();
    // A name and no path, not even one of another drive.
    let mut parts = Path::new(tag).components();
    let is_name = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
    if !is_name || tag.contains(['/', '\\', '\0']) {
        return Ok(None);
    }
    let step = directory.join(tag);
    if step.is_dir() { Files::of(&step) } else { Ok(None) }
}

impl Files {
    fn of(directory: &Path) -> Result<Option<Self>> {
        let unread = |error| Error::io("the directory cannot be read", error).in_file(directory);
        let mut names = Vec::new();
        for entry in directory.read_dir().map_err(unread)? {
            let name = entry.map_err(unread)?.file_name();
            names.extend(name.to_str().map(str::to_owned));
        }
        if !names.iter().any(|name| name.ends_with(OPTIM)) {
            return Ok(None);
        }
        if let Some(refused) = otherwise_cut(&names) {
            let directory = directory.to_owned();
            return Ok(Some(Self {
                directory,
                optims: Vec::new(),
                models: Vec::new(),
                refused: Some(refused),
            }));
        }
        let optims = in_order(directory, &names, OPTIM)?;
        let models = in_order(directory, &names, MODEL)?;
        if models.is_empty() {
            let message =
                "it has *_optim_states.pt, but no *_model_states.pt, which say what the weights are called";
            return Err(Error::new(ErrorKind::MissingShard, message).in_file(directory));
        }
        Ok(Some(Self { directory: directory.to_owned(), optims, models, refused: None }))
    }

    /// Bytes of all files.
    pub(crate) fn size(&self) -> Result<u64> {
        self.optims.iter().chain(&self.models).try_fold(0_u64, |sum, path| {
            let metadata = fs::metadata(path);
            let metadata = metadata.map_err(|error| Error::io("it cannot be read", error).in_file(path))?;
            Ok(sum.saturating_add(metadata.len()))
        })
    }
}

/// What else than ZeRO has cut the model, if anything has: an error to be told when it is read.
fn otherwise_cut(names: &[String]) -> Option<String> {
    let model_parallel = |name: &str| {
        let rank = name.split("mp_rank_").nth(1).and_then(|rest| rest.split('_').next());
        (name.ends_with(OPTIM) || name.ends_with(MODEL))
            && rank.is_some_and(|rank| rank.bytes().any(|digit| digit != b'0'))
    };
    names.iter().find_map(|name| {
        let what = if name.contains("_expert_") || name.starts_with("expp_rank_") {
            "a mixture of experts whose experts are on several ranks"
        } else if name.starts_with("layer_") && name.ends_with("model_states.pt") {
            "a model in pipeline stages"
        } else if model_parallel(name) {
            "a model-parallel run of several ranks"
        } else {
            return None;
        };
        Some(format!("{name:?} is of {what}, which is not read; DeepSpeed's ds_to_universal.py joins it"))
    })
}

/// The files of a kind, which must be those of ranks from 0 on without a gap.
fn in_order(directory: &Path, names: &[String], ending: &str) -> Result<Vec<PathBuf>> {
    let of_kind = names.iter().filter(|name| name.ends_with(ending));
    let mut ranks: Vec<(u64, &String)> = of_kind
        .map(|name| {
            let rank = name.split("zero_pp_rank_").nth(1).and_then(|rest| rest.split('_').next());
            // Without one, it is of all ranks.
            let rank = rank.map_or(Some(0), |rank| rank.parse().ok());
            let unknown = || {
                let message = "its name says no rank: zero_pp_rank_N_mp_rank_00 is read";
                Error::new(ErrorKind::Unsupported, message).in_file(&directory.join(name))
            };
            Ok((rank.ok_or_else(unknown)?, name))
        })
        .collect::<Result<_>>()?;
    ranks.sort();
    for (expected, &(rank, name)) in (0_u64..).zip(&ranks) {
        if rank > expected {
            let message = format!(
                "the {} of rank {expected} is missing: others such as {name:?} are there",
                &ending[1..]
            );
            return Err(Error::new(ErrorKind::MissingShard, message).in_file(directory));
        }
        if rank < expected {
            let message =
                format!("two files are of rank {rank}, one of them {name:?}; remove what an older run wrote");
            return Err(Error::new(ErrorKind::Ambiguous, message).in_file(directory));
        }
    }
    Ok(ranks.into_iter().map(|(_, name)| directory.join(name)).collect())
}
