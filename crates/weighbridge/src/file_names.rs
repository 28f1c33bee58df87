//! The names of a checkpoint's files.
//!
//! | | |
//! |---|---|
//! | one file | `model.safetensors` |
//! | a shard | `model-00002-of-00005.safetensors` |
//! | the index | `model.safetensors.index.json` |
//! | a variant's | `model.fp16.safetensors`, `model.fp16-00002-of-00005.safetensors`, `model.safetensors.index.fp16.json` |
//!
//! They are those of `huggingface_hub` and `transformers`. What comes before `.safetensors` or the number is
//! called the stem here: `model.fp16`.

use std::path::Path;

/// The directory of a file, `.` where its path names none.
pub(crate) fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// `model.safetensors`.
pub(crate) fn single(stem: &str) -> String {
    format!("{stem}.safetensors")
}

/// `model-00002-of-00005.safetensors`.
pub(crate) fn shard(stem: &str, number: usize, total: usize) -> String {
    format!("{stem}-{number:05}-of-{total:05}.safetensors")
}

/// `model.safetensors.index.json`, of a variant `model.safetensors.index.fp16.json`.
pub(crate) fn index(name: &str, variant: Option<&str>) -> String {
    match variant {
        Some(variant) => format!("{name}.safetensors.index.{variant}.json"),
        None => format!("{name}.safetensors.index.json"),
    }
}

/// `model.safetensors.index.json` -> `model`, `model.safetensors.index.fp16.json` -> `model.fp16`.
pub(crate) fn index_stem(file: &str) -> Option<String> {
    let (stem, rest) = file.strip_suffix(".json")?.split_once(".safetensors.index")?;
    Some(match rest.strip_prefix('.') {
        Some(variant) => format!("{stem}.{variant}"),
        None if rest.is_empty() => stem.to_owned(),
        None => return None,
    })
}

/// `model-00002-of-00003` -> `model`, 2, 3.
pub(crate) fn shard_number(file_stem: &str) -> Option<(&str, u32, u32)> {
    let (rest, total) = file_stem.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let read = |digits: &str| {
        let plain = digits.len() >= 4 && digits.bytes().all(|digit| digit.is_ascii_digit());
        plain.then(|| digits.parse().ok()).flatten()
    };
    Some((stem, read(number)?, read(total)?))
}

/// The stem of the checkpoint that a file belongs to by its name, if it has the name of a checkpoint's file.
pub(crate) fn stem(file: &str) -> Option<String> {
    index_stem(file).or_else(|| {
        let rest = file.strip_suffix(".safetensors")?;
        Some(shard_number(rest).map_or(rest, |numbered| numbered.0).to_owned())
    })
}

/// The stem of a set whose shards in an object store have this stem: `model` of `model-0a1b2c3d`.
pub(crate) fn stem_of_fresh(shards: &str) -> Option<&str> {
    let (stem, digits) = shards.rsplit_once('-')?;
    let is_fresh = digits.len() == 8 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_fresh.then_some(stem)
}

/// Whether a name is that of a file in the directory at hand, on Unix and on Windows.
pub(crate) fn is_plain(file: &str) -> bool {
    !matches!(file, "" | "." | "..") && !file.contains(['/', '\\', ':', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_recognised() {
        assert_eq!(shard("m", 2, 5), "m-00002-of-00005.safetensors");
        for file in [single("a.b"), shard("a.b", 1, 100_000), index("a", Some("b")), index("a.b", None)] {
            assert_eq!(stem(&file).as_deref(), Some("a.b"), "{file}");
        }
        for file in ["config.json", "model.bin", "model.safetensors.tmp", "model.safetensors.index-x.json"] {
            assert_eq!(stem(file), None, "{file}");
        }
    }
}
