//! What the tests of all verbs share: running the command, and checkpoints to run it on.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)] // Each test file uses a part of it; helpers of tests are not tests to clippy.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use flate2::read::GzDecoder;
use weighbridge::write::{Save, Values};

/// What the command did.
#[derive(Debug)]
pub struct Ran {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
    pub raw: Vec<u8>,
}

/// The command, without what the environment might say about colours and caches.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weighbridge"));
    for variable in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "HF_HOME", "HF_HUB_CACHE"] {
        command.env_remove(variable);
    }
    command.stdin(Stdio::null());
    command
}

/// Runs it to its end.
pub fn weighbridge(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Ran {
    let output = command().args(arguments).output().unwrap();
    Ran {
        status: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        raw: output.stdout,
    }
}

impl Ran {
    /// The output of a run that must have gone well.
    #[track_caller]
    pub fn clean(self) -> String {
        assert_eq!(self.status, 0, "{self:?}");
        self.stdout
    }

    /// The same text with a path of this machine replaced, and with `/` in the paths that begin with it.
    pub fn without(&self, path: &Path) -> String {
        let said = format!("{}{}", self.stdout, self.stderr);
        let path = path.to_str().unwrap();
        if !cfg!(windows) {
            return said.replace(path, "[dir]");
        }
        let said = said.replace(&path.replace('\\', r"\\"), "[dir]").replace(path, "[dir]");
        let mut parts = said.split("[dir]");
        let mut text = parts.next().unwrap().to_owned();
        for part in parts {
            let end = part.find(|c: char| c.is_whitespace() || r#""`:;,"#.contains(c)).unwrap_or(part.len());
            let below = part[..end].replace(r"\\", "/").replace('\\', "/");
            text.extend(["[dir]", &below, &part[end..]]);
        }
        text
    }
}

/// A small Llama: two layers, embeddings, a norm; f32 values that differ from place to place, and metadata.
pub fn llama(path: &Path, max_shard_size: Option<u64>) {
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![32, 8])];
    for layer in 0..12 {
        for (name, shape) in [
            ("input_layernorm", vec![8]),
            ("self_attn.q_proj", vec![8, 8]),
            ("self_attn.k_proj", vec![4, 8]),
            ("mlp.up_proj", vec![16, 8]),
            ("mlp.down_proj", vec![8, 16]),
        ] {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    tensors.push(("model.norm.weight".to_owned(), vec![8]));
    tensors.push(("lm_head.weight".to_owned(), vec![32, 8]));
    let values: Vec<Vec<f32>> = tensors
        .iter()
        .enumerate()
        .map(|(number, (_, shape))| {
            let count = shape.iter().product::<usize>();
            (0..count).map(|i| ((i * 37 + number * 101) % 1000) as f32 / 250.0 - 2.0).collect()
        })
        .collect();
    let tensors = tensors.iter().zip(&values);
    let tensors = tensors.map(|((name, shape), values)| (name.clone(), Values::new(shape, values).unwrap()));
    let save = Save::new().metadata("format", "pt");
    match max_shard_size {
        None => save.file(path, tensors).unwrap(),
        Some(bytes) => drop(save.max_shard_size(bytes).directory(path, "model", tensors).unwrap()),
    }
}

/// The document that a page carries.
pub fn document(html: &str) -> serde_json::Value {
    let coded = html.split_once(r#"id="data">"#).unwrap().1.split_once("</script>").unwrap().0;
    let packed = BASE64_STANDARD.decode(coded).unwrap();
    serde_json::from_reader(GzDecoder::new(&*packed)).unwrap()
}

/// A file with that header and data, valid or not.
pub fn raw_file(path: &Path, header: &str, data: &[u8]) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    std::fs::write(path, bytes).unwrap();
}
