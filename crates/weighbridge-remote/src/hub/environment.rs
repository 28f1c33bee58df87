//! What the hub's variables say, read as its Python client reads them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::http::redirect::Token;

/// The official hub.
pub(crate) const ENDPOINT: &str = "https://huggingface.co";

/// The settings of the hub's clients.
#[derive(Clone, Debug, Default)]
pub(crate) struct Environment {
    pub(crate) endpoint: Option<String>,
    pub(crate) token: Option<Token>,
    pub(crate) offline: bool,
    /// `HF_HUB_DOWNLOAD_TIMEOUT`: how long a server may be silent.
    pub(crate) stall: Option<Duration>,
    /// `HF_HUB_CACHE`, or `hub` in `HF_HOME`; `None`: there is no home directory.
    pub(crate) cache: Option<PathBuf>,
}

impl Environment {
    /// Of a process whose variables are read by `read`. An empty variable is none.
    pub(crate) fn read(read: &dyn Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| read(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let truth = |name: &str| {
            get(name)
                .is_some_and(|text| ["1", "ON", "YES", "TRUE"].contains(&text.to_ascii_uppercase().as_str()))
        };
        let user = get("HOME").or_else(|| get("USERPROFILE")).map(PathBuf::from);
        let path = |name: &str| get(name).map(|text| expand(&text, user.as_deref()));
        let caches = path("XDG_CACHE_HOME").or_else(|| Some(user.as_ref()?.join(".cache")));
        let home = path("HF_HOME").or_else(|| Some(caches?.join("huggingface")));
        let cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| Some(home.as_ref()?.join("hub")));
        let token_file = path("HF_TOKEN_PATH").or_else(|| Some(home.as_ref()?.join("token")));
        let from_file = || Token::new(&std::fs::read_to_string(token_file?).ok()?);
        let given = get("HF_TOKEN").or_else(|| get("HUGGING_FACE_HUB_TOKEN"));
        let token = match truth("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            true => None,
            false => given.as_deref().and_then(Token::new).or_else(from_file),
        };
        let seconds =
            |text: String| text.parse().ok().filter(|n| (1..=86_400).contains(n)).map(Duration::from_secs);
        Self {
            stall: get("HF_HUB_DOWNLOAD_TIMEOUT").and_then(seconds),
            endpoint: get("HF_ENDPOINT"),
            token,
            offline: truth("HF_HUB_OFFLINE") || truth("TRANSFORMERS_OFFLINE"),
            cache,
        }
    }
}

/// A path that may begin with `~`.
fn expand(text: &str, user: Option<&Path>) -> PathBuf {
    match (text.strip_prefix("~/"), user) {
        (Some(rest), Some(user)) => user.join(rest),
        _ if text == "~" => user.map_or_else(|| text.into(), Path::to_path_buf),
        _ => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Environment {
        Environment::read(&|name| {
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn directories_and_truth() {
        let cache = |pairs: &[(&str, &str)]| of(pairs).cache.map(|path| path.to_string_lossy().into_owned());
        assert_eq!(cache(&[("HOME", "/h")]).as_deref(), Some("/h/.cache/huggingface/hub"));
        assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]).as_deref(), Some("/x/huggingface/hub"));
        assert_eq!(cache(&[("HOME", "/h"), ("HF_HOME", "~/hf")]).as_deref(), Some("/h/hf/hub"));
        assert_eq!(cache(&[("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/c")]).as_deref(), Some("/c"));
        assert_eq!(cache(&[("HF_HUB_CACHE", "/d"), ("HUGGINGFACE_HUB_CACHE", "/c")]).as_deref(), Some("/d"));
        assert_eq!(cache(&[]), None);
        assert!(of(&[("HF_HUB_OFFLINE", "yes")]).offline && of(&[("TRANSFORMERS_OFFLINE", "1")]).offline);
        assert_eq!(of(&[("HF_HUB_DOWNLOAD_TIMEOUT", "30")]).stall, Some(Duration::from_secs(30)));
        assert_eq!(of(&[("HF_HUB_DOWNLOAD_TIMEOUT", "soon")]).stall, None);
        assert!(!of(&[("HF_HUB_OFFLINE", "0")]).offline && !of(&[("HF_HUB_OFFLINE", "")]).offline);
    }

    #[test]
    fn tokens() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        assert!(of(&[("HF_HOME", home)]).token.is_none());
        std::fs::write(dir.path().join("token"), "hf_file\n").unwrap();
        assert!(of(&[("HF_HOME", home)]).token.is_some());
        assert!(of(&[("HF_TOKEN", " hf_a\n")]).token.is_some());
        assert!(of(&[("HF_TOKEN", "hf_a"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).token.is_none());
        assert!(!format!("{:?}", of(&[("HF_TOKEN", "hf_a")])).contains("hf_a"));
    }
}
