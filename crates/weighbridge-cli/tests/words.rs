//! What is said where a name or a pattern is of nothing, where a file is of another kind, and whose fault an error is.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

mod support;

use std::fs;
use std::path::Path;

use support::{Ran, llama, weighbridge};
use weighbridge::write::{Save, Values};

/// Runs a command line in which `{}` is the directory.
fn run(dir: &Path, line: &str) -> Ran {
    weighbridge(line.split(' ').map(|word| word.replace("{}", dir.to_str().unwrap())))
}

/// What a command that must fail says, without the name of the directory; one line.
#[track_caller]
fn refused(dir: &Path, line: &str) -> String {
    let ran = run(dir, line);
    assert_eq!(ran.status, 2, "{line}: {ran:?}");
    assert!(ran.stdout.is_empty(), "{line}: {ran:?}");
    let said = ran.without(dir);
    assert_eq!(said.lines().count(), 1, "{line}: {said}");
    said.trim_end().to_owned()
}

/// A directory with the model `m.safetensors`.
fn model() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    llama(&dir.path().join("m.safetensors"), None);
    dir
}

#[test]
fn a_missing_tensor_is_not_far() {
    let dir = model();
    let said = |name: &str| refused(dir.path(), &format!("cat {{}}/m.safetensors {name}"));
    let three = "did you mean \"model.layers.0.mlp.up_proj.weight\", \"model.layers.1.mlp.up_proj.weight\", \
                 \"model.layers.2.mlp.up_proj.weight\" or 9 others?";
    for name in ["mlp.up_proj.weight", "up_proj", "mlp.up_proj.weight[0]"] {
        let asked = name.trim_end_matches("[0]");
        assert_eq!(said(name), format!("error: [dir]/m.safetensors: there is no tensor {asked:?}; {three}"));
    }
    assert!(said("base.model.lm_head.weight").ends_with("did you mean \"lm_head.weight\"?"));
    assert!(said("model.nrom.weight").ends_with("did you mean \"model.norm.weight\"?"));
    assert!(said("x").ends_with("`weighbridge inspect [dir]/m.safetensors` lists them"));
}

#[test]
fn a_pattern_that_chooses_nothing_is_an_error_everywhere() {
    let dir = model();
    let m = "{}/m.safetensors";
    for (line, option) in [
        (format!("inspect {m} --only norm.*"), "--only \"norm.*\""),
        (format!("stat {m} --only norm.*"), "--only \"norm.*\""),
        (format!("diff {m} {m} --only norm.*"), "--only \"norm.*\""),
        (format!("filter {m} --only norm.* -o {{}}/out"), "--only \"norm.*\""),
        // One that matches does not make up for one that does not.
        (format!("filter {m} --only lm_head.* --only norm.* -o {{}}/out"), "--only \"norm.*\""),
        (format!("cast {m} --to norm.*=bf16 -o {{}}/out"), "--to \"norm.*=BF16\""),
        (format!("cast {m} --to bf16 --to norm.*=f32 -o {{}}/out"), "--to \"norm.*=F32\""),
        (format!("quantize {m} --method fp8 --only norm.* -o {{}}/out"), "--only \"norm.*\""),
        (format!("dequantize {m} --only norm.* -o {{}}/out"), "--only \"norm.*\""),
        (format!("blend {m} {m} --method linear --weight 1 --only norm.* -o {{}}/out"), "--only \"norm.*\""),
        (format!("lora extract {m} {m} --rank 2 --only norm.* -o {{}}/out"), "--only \"norm.*\""),
        (format!("convert {m} --only norm.* -o {{}}/out.npz"), "--only \"norm.*\""),
        (format!("convert {m} --to norm.*=f16 -o {{}}/out.npz"), "--to \"norm.*=F16\""),
    ] {
        let expected = format!(
            "error: [dir]/m.safetensors: no tensor has a name that matches {option}; a glob is for whole names, and \
             \"*norm.*\" matches 13"
        );
        assert_eq!(refused(dir.path(), &line), expected, "{line}");
        assert!(!dir.path().join("out").exists() && !dir.path().join("out.npz").exists(), "{line}");
    }
    let said = refused(dir.path(), "filter {}/m.safetensors --regex ^norm -o {}/out");
    assert_eq!(said, "error: [dir]/m.safetensors: no tensor has a name that matches --regex \"^norm\"");
    let said = refused(dir.path(), "filter {}/m.safetensors --only norm.weight -o {}/out");
    assert!(said.ends_with("--only \"norm.weight\"; did you mean \"model.norm.weight\"?"), "{said}");
    let said = refused(dir.path(), "filter {}/m.safetensors --except * -o {}/out");
    let left = "none of its 63 tensors is chosen: --except leaves out what there is";
    assert_eq!(said, format!("error: [dir]/m.safetensors: {left}"));
}

#[test]
fn a_precaution_that_matches_nothing_is_a_warning() {
    let dir = model();
    let m = "{}/m.safetensors";
    for (line, option) in [
        (format!("cast {m} --to bf16 --keep norm -o {{}}/a.safetensors"), "--keep \"norm\""),
        (format!("filter {m} --except norm -o {{}}/b.safetensors"), "--except \"norm\""),
        (format!("quantize {m} --method int8 --keep norm -o {{}}/c.safetensors"), "--keep \"norm\""),
    ] {
        let ran = run(dir.path(), &line);
        assert_eq!(ran.status, 0, "{line}: {ran:?}");
        let warned = format!(
            "warning: [dir]/m.safetensors: no tensor has a name that matches {option}; did you mean \
             \"model.layers.0.input_layernorm.weight\", "
        );
        assert!(ran.without(dir.path()).contains(&warned), "{line}: {ran:?}");
    }
}

#[test]
fn rules_that_rename_nothing() {
    let dir = model();
    let said = refused(dir.path(), "rename {}/m.safetensors --rename norm.weight=n -o {}/out");
    let expected = "--rename \"norm.weight=n\" changes no name; did you mean \"model.norm.weight\"?";
    assert_eq!(said, format!("error: [dir]/m.safetensors: {expected}"));
    let said = refused(dir.path(), "rename {}/m.safetensors --rename-prefix module.= -o {}/out");
    assert!(said.ends_with("--rename-prefix \"module.=\" changes no name"), "{said}");
    assert!(!dir.path().join("out").exists());
    // Of a list of rules some may be for other checkpoints; each is asked about what the ones before it made.
    let rules = "--rename-prefix model.=m. --rename m.norm.*=n.* --rename-prefix model.=x.";
    let ran = run(dir.path(), &format!("rename {{}}/m.safetensors {rules} -o {{}}/out.safetensors"));
    assert_eq!(ran.status, 0, "{ran:?}");
    let warned = "warning: [dir]/m.safetensors: --rename-prefix \"model.=x.\" changes no name";
    assert_eq!(ran.without(dir.path()).matches("changes no name").count(), 1, "{ran:?}");
    assert!(ran.without(dir.path()).contains(warned), "{ran:?}");
}

#[test]
fn files_of_other_kinds_are_called_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let mut tar = vec![0; 1024];
    tar[..6].copy_from_slice(b"config");
    tar[257..262].copy_from_slice(b"ustar");
    let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12345\n";
    let files: [(&[u8], &str); 9] = [
        (lfs, "this is a Git LFS pointer: `git lfs pull` downloads the file that it stands for"),
        (
            b"<!DOCTYPE html><html>404</html>",
            "this is a web page, perhaps what a server sent instead of the file",
        ),
        (
            b"{\"error\": \"not found\"}",
            "this is a JSON answer, perhaps what a server sent instead of the file",
        ),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "this is a picture (PNG)"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\x03abc", "this is compressed with gzip: unpack it"),
        (&tar, "this is a tar archive: unpack it"),
        (&[0; 4096], "this is zeros, as a download or a copy leaves them that broke off"),
        (b"", "the file is empty, as a download or a copy leaves it that broke off: fetch it again"),
        (b"abc", "a file of 3 bytes is not a safetensors file: the header needs 8"),
    ];
    for (bytes, expected) in files {
        for name in ["m.safetensors", "m.ckpt"] {
            fs::write(dir.path().join(name), bytes).unwrap();
            if name == "m.ckpt" && bytes.starts_with(b"{") {
                // JSON may be an index, which is read as one.
                continue;
            }
            for line in ["inspect {}/NAME", "cast {}/NAME --to bf16 -o {}/out", "cat {}/NAME w"] {
                let said = refused(dir.path(), &line.replace("NAME", name));
                assert!(said.starts_with(&format!("error: [dir]/{name}: ")), "{said}");
                assert!(said.contains(expected), "{line}: {said}");
                assert!(!said.contains("claims"), "{said}");
            }
        }
    }
    // What `convert` reads is never safetensors.
    fs::write(dir.path().join("m.bin"), lfs).unwrap();
    let said = refused(dir.path(), "convert {}/m.bin -o {}/out.safetensors");
    assert!(said.contains("m.bin: its format is not recognised: this is a Git LFS pointer"), "{said}");
    // A header that is cut off is that of safetensors.
    llama(&dir.path().join("whole.safetensors"), None);
    let said = refused(dir.path(), "convert {}/whole.safetensors -o {}/out.safetensors");
    assert!(
        said.ends_with("whole.safetensors: it is safetensors already: there is nothing to convert"),
        "{said}"
    );
    let whole = fs::read(dir.path().join("whole.safetensors")).unwrap();
    fs::write(dir.path().join("m.safetensors"), &whole[..100]).unwrap();
    let said = refused(dir.path(), "inspect {}/m.safetensors");
    assert!(said.contains("but only 92 follow its length: the file is cut short"), "{said}");
}

#[test]
fn values_that_do_not_fit_are_those_of_the_input() {
    let dir = tempfile::tempdir().unwrap();
    let values = [vec![1.0_f32; 1024], vec![1e9; 1024]].concat();
    let tensors = [("ok.weight", &values[..1024]), ("up.weight", &values[1024..])];
    let tensors = tensors.map(|(name, values)| (name, Values::new(&[32, 32], values).unwrap()));
    Save::new().file(dir.path().join("in.safetensors"), tensors).unwrap();
    for line in [
        "cast {}/in.safetensors --to f16 -o {}/out.safetensors",
        "cast {}/in.safetensors --to f16 -o {}/out",
        "cast {}/in.safetensors --to up.*=i8 -o {}/out",
        "convert {}/in.safetensors --to f16 -o {}/out.npz",
        "cat {}/in.safetensors up.weight --to f16",
    ] {
        let said = refused(dir.path(), line);
        let start = "error: [dir]/in.safetensors: tensor \"up.weight\": 1000000000 of F32 does not fit";
        assert!(said.starts_with(start), "{line}: {said}");
    }
    let nan = Values::new(&[1, 32], &[f32::NAN; 32]).unwrap();
    Save::new().file(dir.path().join("nan.safetensors"), [("up.weight", nan)]).unwrap();
    for line in [
        "quantize {}/nan.safetensors --method int8 -o {}/out",
        "quantize {}/nan.safetensors --method fp8 -o {}/out.safetensors",
        "convert {}/nan.safetensors --type q8_0 -o {}/out.gguf",
    ] {
        let said = refused(dir.path(), line);
        assert!(
            said.starts_with("error: [dir]/nan.safetensors: tensor \"up.weight\": NaN"),
            "{line}: {said}"
        );
    }
}

#[test]
fn programs_beside_a_model_are_not_called_harmless() {
    let dir = model();
    fs::write(dir.path().join("modeling_x.py"), "import os\nos.system('id')\n").unwrap();
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    let ran = run(dir.path(), "scan {}");
    assert_eq!(ran.status, 0, "{ran:?}");
    let said = "not looked into, Python: transformers runs such a file beside a model where `trust_remote_code` is set; \
                read it first";
    let expected = format!("[dir]/modeling_x.py: {said}\n3 files: 2 harmless, 1 not looked into\n");
    assert_eq!(ran.without(dir.path()), expected);
    let ran = run(dir.path(), "scan {}/modeling_x.py");
    assert_eq!(ran.without(dir.path()), format!("[dir]/modeling_x.py: {said}\n"));
    let json: serde_json::Value =
        serde_json::from_str(&run(dir.path(), "scan {} --format json").clean()).unwrap();
    assert_eq!(json["verdict"], "harmless");
    let verdicts: Vec<_> = json["files"].as_array().unwrap().iter().map(|file| &file["verdict"]).collect();
    assert_eq!(verdicts, ["harmless", "harmless", "code"]);
    // A pickle that is called so is one.
    fs::write(dir.path().join("evil.py"), b"\x80\x02cos\nsystem\nq\0.").unwrap();
    let ran = run(dir.path(), "scan {}/evil.py");
    assert!(ran.status == 1 && ran.stdout.contains("dangerous"), "{ran:?}");
}

/// A GGUF is what its file has, unless its weights are asked for.
#[test]
fn the_blocks_of_a_gguf_are_seen() {
    let dir = tempfile::tempdir().unwrap();
    let values: Vec<f32> = (0..64 * 256).map(|at| (at % 97) as f32 / 50.0 - 1.0).collect();
    let tensors = [("blk.0.up.weight", &[64, 256][..], &values[..]), ("norm.weight", &[256], &values[..256])];
    let tensors = tensors.map(|(name, shape, values)| (name, Values::new(shape, values).unwrap()));
    Save::new().file(dir.path().join("in.safetensors"), tensors).unwrap();
    run(dir.path(), "convert {}/in.safetensors --type q8_0 -o {}/m.gguf").clean();
    // 64 rows of 8 blocks of 34 bytes.
    let inspected = |more: &str| {
        let text = run(dir.path(), &format!("inspect {{}}/m.gguf --format json{more}")).clean();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json["checkpoints"][0].clone()
    };
    let stored = inspected("");
    assert_eq!(stored["bytes"], 64 * 8 * 34 + 256 * 4);
    let totals = serde_json::json!([
        { "dtype": "Q8_0", "tensors": 1, "elements": 16384, "bytes": 17408 },
        { "dtype": "F32", "tensors": 1, "elements": 256, "bytes": 1024 },
    ]);
    assert_eq!(stored["dtypes"], totals);
    let up = &stored["tensors"][0];
    assert_eq!(
        (&up["name"], &up["dtype"], &up["bytes"]),
        (&"blk.0.up.weight".into(), &"Q8_0".into(), &17408.into())
    );
    assert_eq!((&up["shape"], up.get("offset")), (&serde_json::json!([64, 256]), None));
    assert!(stored["tree"].to_string().contains("\"dtype\":\"Q8_0\""), "{}", stored["tree"]);
    let dense = inspected(" --dense");
    assert_eq!(
        (&dense["bytes"], &dense["tensors"][0]["dtype"]),
        (&(64 * 256 * 4 + 1024).into(), &"F32".into())
    );
    // Statistics are of the weights.
    let read = inspected(" --stats");
    assert_eq!(read["tensors"][0]["dtype"], "Q8_0");
    assert_eq!(read["tensors"][0]["figures"]["values"], 16384);

    let text = run(dir.path(), "inspect {}/m.gguf").clean();
    assert!(text.contains("Q8_0   [64, 256]") || text.contains("Q8_0  [64, 256]"), "{text}");
    run(dir.path(), "inspect {}/m.gguf --html {}/m.html").clean();
    assert!(fs::metadata(dir.path().join("m.html")).unwrap().len() > 1000);
}
