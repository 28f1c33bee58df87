//! Paths as systems write them: long ones, and those of Windows.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;

use support::{llama, weighbridge};

/// Windows takes 260 characters unless a program sees to it.
#[test]
fn paths_may_be_long() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("m.safetensors");
    llama(&model, None);
    let deep = (0..4).fold(dir.path().to_owned(), |path, part| path.join(part.to_string().repeat(100)));
    assert!(deep.as_os_str().len() > 400);
    let (model, deep) = (model.to_str().unwrap(), deep.to_str().unwrap());
    weighbridge(["split", model, "--max-shard-size", "8KB", "-o", deep]).clean();
    weighbridge(["diff", "--data", model, deep]).clean();
    weighbridge(["meta", "set", deep, "a=b"]).clean();
    weighbridge(["split", model, "--max-shard-size", "12KB", "-o", deep, "--force"]).clean();
    assert!(weighbridge(["verify", "--data", deep]).clean().contains(": clean: 63 tensors"));
    assert_eq!(weighbridge(["meta", "get", deep, "a"]).status, 1);
}

/// Each way to write a path leads to the file, and none of them is taken for an address.
#[cfg(windows)]
#[test]
fn paths_of_windows_lead_to_files() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("m.safetensors");
    llama(&model, None);
    let plain = model.to_str().unwrap().to_owned();
    assert_eq!(plain.as_bytes()[1], b':', "{plain}");
    let verbatim = model.canonicalize().unwrap().to_str().unwrap().to_owned();
    assert!(verbatim.starts_with(r"\\?\"), "{verbatim}");
    let digest = weighbridge(["hash", &plain]).clean();
    for path in [plain.replace('\\', "/"), plain.to_lowercase(), verbatim] {
        assert_eq!(weighbridge(["hash", &path]).clean().lines().last(), digest.lines().last(), "{path}");
        let to = path.replace("m.safetensors", "out");
        weighbridge(["split", &path, "--max-shard-size", "8KB", "-o", &to, "--force"]).clean();
        weighbridge(["diff", "--data", &to, &plain]).clean();
    }
}

/// Names that are devices on Windows are no files; nothing waits for their bytes.
#[cfg(windows)]
#[test]
fn devices_are_no_files() {
    let dir = tempfile::tempdir().unwrap();
    for device in ["NUL", "CON"] {
        let ran = weighbridge(["inspect", device]);
        assert!(ran.status == 2 && ran.stderr.lines().count() == 1, "{ran:?}");
        let index = format!(r#"{{"weight_map":{{"a":"{device}"}}}}"#);
        let path = dir.path().join("model.safetensors.index.json");
        fs::write(&path, index).unwrap();
        let ran = weighbridge(["inspect", path.to_str().unwrap()]);
        assert!(ran.status == 2 && ran.stderr.lines().count() == 1, "{ran:?}");
    }
}

/// What leads outside of a directory by the rules of Windows is refused everywhere.
#[test]
fn an_index_stays_in_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    fs::create_dir(&model).unwrap();
    llama(&dir.path().join("m.safetensors"), None);
    let path = model.join("model.safetensors.index.json");
    for name in [
        r"..\\m.safetensors",
        r"C:\\m.safetensors",
        "C:m.safetensors",
        r"\\\\host\\share\\m.safetensors",
        "../m.safetensors",
    ] {
        fs::write(&path, format!(r#"{{"weight_map":{{"lm_head.weight":"{name}"}}}}"#)).unwrap();
        let ran = weighbridge(["inspect", path.to_str().unwrap()]);
        assert!(ran.status == 2 && ran.stderr.contains("leads outside the directory"), "{name}: {ran:?}");
    }
}
