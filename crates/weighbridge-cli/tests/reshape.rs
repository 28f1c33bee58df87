//! `cast`, `filter`, `rename`, `split`, `merge` and `meta`.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use half::bf16;
use insta::assert_snapshot;
use proptest::prelude::*;
#[cfg(target_os = "linux")]
use support::command;
use support::{llama, raw_file, weighbridge};
use weighbridge::write::{Save, Values};
use weighbridge::{Checkpoint, Dtype, Plan};

/// Every tensor's dtype, shape and bytes, by name.
fn tensors(location: &Path) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let checkpoint = Checkpoint::open(location).unwrap();
    let session = Plan::of(&checkpoint).build().unwrap().session().start().unwrap();
    let mut all = BTreeMap::new();
    for tensor in checkpoint.tensors() {
        let (_, values) = session.take(tensor.name(), None).unwrap();
        let value = (tensor.dtype(), tensor.shape().to_vec(), values.as_bytes().to_vec());
        all.insert(tensor.name().to_owned(), value);
    }
    all
}

fn metadata(location: &Path) -> Vec<(String, String)> {
    let checkpoint = Checkpoint::open(location).unwrap();
    let shards = checkpoint.shards().iter();
    let all = shards.flat_map(|shard| shard.header().metadata().into_iter().flatten());
    all.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// The arguments, with `{}` for the directory.
fn run(dir: &Path, arguments: &str) -> support::Ran {
    let dir = dir.to_str().unwrap();
    weighbridge(arguments.split_whitespace().map(|argument| argument.replace("{}", dir)))
}

#[test]
fn merge_of_a_split_is_what_was_split() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.safetensors");
    llama(&file, None);
    let ran = run(dir.path(), "split {}/model.safetensors --max-shard-size 4KB -o {}/split");
    assert_snapshot!(ran.without(dir.path()), @"[dir]/split: 63 tensors in 6 shards, 19.4 kB");
    assert_eq!(ran.status, 0);
    assert_eq!(Checkpoint::open(dir.path().join("split")).unwrap().shards().len(), 6);
    run(dir.path(), "merge {}/split -o {}/merged.safetensors").clean();
    assert_eq!(tensors(&file), tensors(&dir.path().join("merged.safetensors")));
    // The same tensors, order and metadata: the same file.
    assert!(fs::read(&file).unwrap() == fs::read(dir.path().join("merged.safetensors")).unwrap());
    // A directory that exists gets one file, too.
    run(dir.path(), "merge {}/split -o {}/one").clean();
    assert!(dir.path().join("one/model.safetensors").exists());
}

#[test]
fn merging_says_who_has_a_name_twice() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    Save::new().file(path("a.safetensors"), [("x", Values::new(&[1], &[1.0_f32]).unwrap())]).unwrap();
    Save::new()
        .metadata("from", "b")
        .file(path("b.safetensors"), [("x", Values::new(&[1], &[2.0_f32]).unwrap())])
        .unwrap();
    let ran = run(dir.path(), "merge {}/a.safetensors {}/b.safetensors -o {}/c.safetensors");
    assert_eq!(ran.status, 2);
    assert_snapshot!(ran.without(dir.path()), @r#"error: [dir]/b.safetensors: tensor "x": [dir]/a.safetensors has one of that name, too; --on-duplicate says which counts, `weighbridge blend` averages models"#);
    assert!(!path("c.safetensors").exists());
    // Parts of one tensor, and parts by the names of their files.
    Save::new().file(path("p.safetensors"), [("x", Values::new(&[2], &[1.0_f32; 2]).unwrap())]).unwrap();
    for rank in [0, 1] {
        fs::copy(path("a.safetensors"), path(&format!("rank_{rank}.safetensors"))).unwrap();
    }
    for parts in ["{}/a.safetensors {}/p.safetensors", "{}/rank_0.safetensors {}/rank_1.safetensors"] {
        let ran = run(dir.path(), &format!("merge {parts} -o {{}}/c.safetensors"));
        assert!(
            ran.stderr.ends_with("`weighbridge consolidate --rules FILE` joins shards of ranks\n"),
            "{}",
            ran.stderr
        );
    }
    for (how, value) in [("first", 1.0_f32), ("last", 2.0)] {
        let arguments = format!(
            "merge {{}}/a.safetensors {{}}/b.safetensors -o {{}}/c.safetensors --force --on-duplicate {how}"
        );
        run(dir.path(), &arguments).clean();
        assert_eq!(tensors(&path("c.safetensors"))["x"].2, value.to_le_bytes());
        assert_eq!(metadata(&path("c.safetensors")), [("from".to_owned(), "b".to_owned())]);
    }
}

#[test]
fn casts_by_glob_and_keeps_what_is_to_be_kept() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.safetensors");
    let (floats, ids) = ([1.0_f32, -2.5, 1.003_906_3, f32::NAN], [1_i64, 2, 3, 4]);
    let save = Save::new().metadata("format", "pt");
    let values = |name: &str| (name.to_owned(), Values::new(&[4], &floats).unwrap());
    save.file(&file, ["a.weight", "a.norm", "b.bias"].map(values)).unwrap();
    Save::new()
        .file(dir.path().join("ids.safetensors"), [("ids", Values::new(&[4], &ids).unwrap())])
        .unwrap();
    let ran = run(
        dir.path(),
        "cast {}/model.safetensors --to bf16 --to *.bias=float16 --keep *norm* -o {}/cast.safetensors",
    );
    assert_snapshot!(ran.without(dir.path()), @r"
    [dir]/cast.safetensors: 3 tensors, 32 B
    2 tensors cast, 1 as before
    ");
    let cast = tensors(&dir.path().join("cast.safetensors"));
    assert_eq!(cast["a.norm"].0, Dtype::F32);
    assert_eq!(cast["b.bias"].0, Dtype::F16);
    let expected: Vec<u8> = floats.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect();
    assert_eq!(cast["a.weight"].2, expected);
    assert_eq!(metadata(&dir.path().join("cast.safetensors")), [("format".to_owned(), "pt".to_owned())]);
    // Integers are cast only where a glob speaks of them.
    run(dir.path(), "cast {}/ids.safetensors --to f32 -o {}/same.safetensors").clean();
    assert_eq!(tensors(&dir.path().join("same.safetensors"))["ids"].0, Dtype::I64);
    run(dir.path(), "cast {}/ids.safetensors --to ids=i32 -o {}/narrow.safetensors").clean();
    assert_eq!(tensors(&dir.path().join("narrow.safetensors"))["ids"].0, Dtype::I32);
}

#[test]
fn values_of_four_bits_are_cast_and_those_of_six_stay() {
    let dir = tempfile::tempdir().unwrap();
    let header = r#"{"e":{"dtype":"F4","shape":[2,4],"data_offsets":[0,4]},
        "six":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[4,7]}}"#;
    support::raw_file(&dir.path().join("m.safetensors"), header, &[0x21, 0x43, 0x65, 0x87, 1, 2, 3]);
    let values = [0.5_f32, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0];
    for to in ["f32", "e=f32"] {
        run(dir.path(), &format!("cast {{}}/m.safetensors --to {to} --force -o {{}}/out.safetensors"))
            .clean();
        let cast = tensors(&dir.path().join("out.safetensors"));
        assert_eq!(
            cast["e"],
            (Dtype::F32, vec![2, 4], values.iter().flat_map(|v| v.to_le_bytes()).collect())
        );
        assert_eq!(cast["six"].0, Dtype::F6_E2M3);
    }
    run(dir.path(), "cast {}/m.safetensors --to f8_e4m3 --force -o {}/out.safetensors").clean();
    let expected = vec![0x30, 0x38, 0x3C, 0x40, 0x44, 0x48, 0x4C, 0x80];
    assert_eq!(tensors(&dir.path().join("out.safetensors"))["e"].2, expected);
    // What NumPy's writer advises works, and what cannot be done is not advised.
    let ran = run(dir.path(), "convert {}/m.safetensors --only e -o {}/x.npz");
    assert!(ran.stderr.contains("NumPy has no F4; cast it"), "{}", ran.stderr);
    run(dir.path(), "convert {}/m.safetensors --only e --to f32 -o {}/x.npz").clean();
    let zip = fs::read(dir.path().join("x.npz")).unwrap();
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    assert!(zip.windows(bytes.len()).any(|window| window == bytes));
    let ran = run(dir.path(), "convert {}/m.safetensors --to f32 -o {}/y.npz");
    let expected = "NumPy has no F6_E2M3, and values of it have no agreed packing; leave the tensor out";
    assert!(ran.status == 2 && ran.stderr.contains(expected), "{}", ran.stderr);
    run(dir.path(), "convert {}/m.safetensors --to f32 --except six -o {}/y.npz").clean();
    let ran = run(dir.path(), "cast {}/m.safetensors --to six=f32 -o {}/z.safetensors");
    let expected = "there is no cast from F6_E2M3 to F32: values of F6_E2M3 have no agreed packing";
    assert!(ran.status == 2 && ran.stderr.contains(expected), "{}", ran.stderr);
}

#[test]
fn infinities_stay_where_the_dtype_has_them() {
    let dir = tempfile::tempdir().unwrap();
    let values = [f32::NEG_INFINITY, f32::INFINITY, 1e6, f32::NAN];
    let save = Save::new();
    save.file(dir.path().join("m.safetensors"), [("w", Values::new(&[4], &values).unwrap())]).unwrap();
    for (to, expected) in [
        ("f16", vec![0x00, 0xfc, 0x00, 0x7c, 0xff, 0x7b, 0x00, 0x7e]),
        ("f8_e5m2", vec![0xfc, 0x7c, 0x7b, 0x7e]),
        ("f8_e4m3", vec![0xfe, 0x7e, 0x7e, 0x7f]),
    ] {
        let arguments =
            format!("cast {{}}/m.safetensors --to {to} --overflow saturate --force -o {{}}/out.safetensors");
        run(dir.path(), &arguments).clean();
        assert_eq!(tensors(&dir.path().join("out.safetensors"))["w"].2, expected, "{to}");
    }
}

#[test]
fn refuses_values_that_are_too_large_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.safetensors");
    Save::new().file(&file, [("w", Values::new(&[2], &[1.0_f32, 1e6]).unwrap())]).unwrap();
    let ran = run(dir.path(), "cast {}/m.safetensors --to f16 -o {}/out.safetensors");
    assert_eq!(ran.status, 2);
    assert!(ran.stderr.contains("tensor \"w\"") && ran.stderr.contains("--overflow"), "{}", ran.stderr);
    let ran = run(dir.path(), "convert {}/m.safetensors --to f16 -o {}/out.npz");
    assert!(
        ran.stderr.contains("--overflow saturate or --overflow infinity would take it"),
        "{}",
        ran.stderr
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    for (how, bits) in [("saturate", 0x7bff_u16), ("infinity", 0x7c00)] {
        let arguments =
            format!("cast {{}}/m.safetensors --to f16 --overflow {how} --force -o {{}}/out.safetensors");
        run(dir.path(), &arguments).clean();
        let expected = [0x3c00_u16.to_le_bytes(), bits.to_le_bytes()].concat();
        assert_eq!(tensors(&dir.path().join("out.safetensors"))["w"].2, expected);
    }
}

#[test]
fn filters_and_says_what_was_left_out() {
    let dir = tempfile::tempdir().unwrap();
    llama(&dir.path().join("m"), Some(5_000));
    let ran = run(
        dir.path(),
        "filter {}/m --only model.layers.* --except *.[2-9].* --except *mlp* -o {}/f.safetensors",
    );
    assert_snapshot!(ran.without(dir.path()), @r"
    [dir]/f.safetensors: 12 tensors, 1.66 kB
    51 tensors left out
    ");
    let (all, kept) = (tensors(&dir.path().join("m")), tensors(&dir.path().join("f.safetensors")));
    assert!(kept.iter().all(|(name, tensor)| all[name] == *tensor));
    assert!(kept.contains_key("model.layers.11.self_attn.q_proj.weight"));
    let none = run(dir.path(), "filter {}/m --only nothing -o {}/g.safetensors");
    assert_snapshot!(none.without(dir.path()), @r#"error: [dir]/m: no tensor has a name that matches --only "nothing""#);
}

#[test]
fn renames_in_the_order_of_the_options() {
    let dir = tempfile::tempdir().unwrap();
    llama(&dir.path().join("m.safetensors"), None);
    let map = r#"{"final.weight": "lm_head.weight", "lm_head.weight": "final.weight"}"#;
    fs::write(dir.path().join("map.json"), map).unwrap();
    let ran = run(
        dir.path(),
        "rename {}/m.safetensors --rename-prefix model.= --rename norm.weight=final.weight \
         --rename-regex ^layers\\.(\\d+)\\.=h.$1. --rename-map {}/map.json -o {}/r.safetensors",
    );
    assert_snapshot!(ran.without(dir.path()), @r"
    [dir]/r.safetensors: 63 tensors, 19.4 kB
    63 tensors renamed
    ");
    let (old, new) = (tensors(&dir.path().join("m.safetensors")), tensors(&dir.path().join("r.safetensors")));
    assert_eq!(old["model.layers.10.mlp.up_proj.weight"], new["h.10.mlp.up_proj.weight"]);
    assert_eq!(old["model.norm.weight"], new["lm_head.weight"]);
    assert_eq!(old["lm_head.weight"], new["final.weight"]);

    let ran = run(dir.path(), "rename {}/m.safetensors --rename *=same -o {}/x.safetensors");
    assert_eq!(ran.status, 2);
    assert!(ran.stderr.contains("would both be named \"same\""), "{}", ran.stderr);
    let dry = run(dir.path(), "rename {}/m.safetensors --rename-prefix model.= --dry-run").clean();
    assert!(dry.contains("layers.0.mlp.up_proj.weight\tF32\t[16, 8]\t512\n"), "{dry}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
}

#[test]
fn nothing_is_replaced_without_force() {
    let dir = tempfile::tempdir().unwrap();
    llama(&dir.path().join("m.safetensors"), None);
    fs::create_dir(dir.path().join("out")).unwrap();
    fs::write(dir.path().join("out/model-00001-of-00002.safetensors"), "precious").unwrap();
    fs::write(dir.path().join("out/config.json"), "{}").unwrap();
    fs::write(dir.path().join("old.safetensors"), "precious").unwrap();
    for output in ["{}/out", "{}/old.safetensors"] {
        let ran = run(dir.path(), &format!("split {{}}/m.safetensors -o {output}"));
        let ran = if output.ends_with("rs") {
            run(dir.path(), &format!("merge {{}}/m.safetensors -o {output}"))
        } else {
            ran
        };
        assert_eq!(ran.status, 2);
        assert!(ran.stderr.contains("--force replaces it"), "{}", ran.stderr);
    }
    assert_eq!(fs::read_to_string(dir.path().join("old.safetensors")).unwrap(), "precious");
    run(dir.path(), "split {}/m.safetensors --max-shard-size 8KB -o {}/out --force").clean();
    assert_eq!(tensors(&dir.path().join("out")), tensors(&dir.path().join("m.safetensors")));
    assert!(dir.path().join("out/config.json").exists());
    // In its own place.
    let before = tensors(&dir.path().join("m.safetensors"));
    run(dir.path(), "cast {}/m.safetensors --to f64 -o {}/m.safetensors --force").clean();
    let after = tensors(&dir.path().join("m.safetensors"));
    assert_eq!(after["model.norm.weight"].0, Dtype::F64);
    assert_eq!(before.len(), after.len());
}

#[test]
fn metadata_is_read_set_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.safetensors");
    llama(&file, None);
    let before = tensors(&file);
    let ran = weighbridge(["meta", "set", file.to_str().unwrap(), "note=a = b", "bell=\u{7}"]);
    assert_snapshot!(ran.without(dir.path()), @"1 file changed");
    assert_snapshot!(run(dir.path(), "meta get {}/m.safetensors").clean(), @r"
    bell = \u{7}
    format = pt
    note = a = b
    ");
    assert_snapshot!(run(dir.path(), "meta get {}/m.safetensors --format json").clean(), @r#"
    {
      "bell": "\u0007",
      "format": "pt",
      "note": "a = b"
    }
    "#);
    assert_eq!(run(dir.path(), "meta get {}/m.safetensors note").clean(), "a = b\n");
    let none = run(dir.path(), "meta get {}/m.safetensors nothing");
    assert_eq!((none.status, &*none.stdout), (1, ""));
    run(dir.path(), "meta unset {}/m.safetensors bell nothing").clean();
    run(dir.path(), "meta unset {}/m.safetensors --all -o {}/bare.safetensors").clean();
    assert_eq!(metadata(&dir.path().join("bare.safetensors")), []);
    assert_eq!(metadata(&file).len(), 2);
    // A shorter header has room where the old one is.
    run(dir.path(), "meta unset {}/m.safetensors note --in-place").clean();
    assert_eq!(metadata(&file).len(), 1);
    assert_eq!(tensors(&file), before);
    assert_eq!(tensors(&dir.path().join("bare.safetensors")), before);
}

#[test]
fn metadata_of_every_shard_is_changed() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("m");
    llama(&model, Some(5_000));
    run(dir.path(), "meta set {}/m license=MIT").clean();
    let checkpoint = Checkpoint::open(&model).unwrap();
    assert!(checkpoint.shards().len() > 2);
    assert!(checkpoint.shards().iter().all(|shard| shard.header().metadata_value("license") == Some("MIT")));
}

#[cfg(unix)]
#[test]
fn metadata_of_a_link_is_changed_only_when_forced() {
    let dir = tempfile::tempdir().unwrap();
    llama(&dir.path().join("blob.safetensors"), None);
    std::os::unix::fs::symlink("blob.safetensors", dir.path().join("m.safetensors")).unwrap();
    let ran = run(dir.path(), "meta set {}/m.safetensors a=b");
    assert_eq!(ran.status, 2);
    assert!(ran.stderr.contains("it is a link"), "{}", ran.stderr);
    assert_eq!(metadata(&dir.path().join("blob.safetensors")).len(), 1);
    run(dir.path(), "meta set {}/m.safetensors a=b --force").clean();
    assert_eq!(metadata(&dir.path().join("blob.safetensors")).len(), 2);
}

#[test]
fn wrong_arguments_are_refused_with_reasons() {
    let dir = tempfile::tempdir().unwrap();
    llama(&dir.path().join("m.safetensors"), None);
    for (arguments, reason) in [
        ("cast {}/m.safetensors -o {}/x.safetensors", "--to bf16"),
        ("cast {}/m.safetensors --to fp12 -o {}/x.safetensors", "known are"),
        ("cast {}/m.safetensors --to f4 -o {}/x.safetensors", "no cast from F32 to F4"),
        ("cast {}/m.safetensors --to bf16", "--output"),
        ("filter {}/m.safetensors -o {}/x.safetensors", "--only"),
        ("filter {}/m.safetensors --only [a -o {}/x.safetensors", "[a"),
        ("rename {}/m.safetensors -o {}/x.safetensors", "--rename"),
        ("rename {}/m.safetensors --rename a -o {}/x.safetensors", "`=`"),
        ("rename {}/m.safetensors --rename-regex (=b -o {}/x.safetensors", "regular expression"),
        ("rename {}/m.safetensors --rename a=* -o {}/x.safetensors", "wildcards"),
        ("rename {}/m.safetensors --rename-map {}/none.json -o {}/x.safetensors", "none.json"),
        ("split {}/m.safetensors -o {}/x.safetensors", "into a directory"),
        ("split {}/m.safetensors --max-shard-size 5XB -o {}/x", "5GiB"),
        ("split {}/nothing -o {}/x", "nothing"),
        ("merge {}/m.safetensors -o {}/no/such/dir/x.safetensors", "x.safetensors"),
        ("meta set {}/m.safetensors a", "`=`"),
        ("meta set {}/m.safetensors", "KEY=VALUE"),
    ] {
        let ran = run(dir.path(), arguments);
        assert_eq!(ran.status, 2, "{arguments}: {ran:?}");
        assert!(ran.stderr.contains(reason), "{arguments}: {}", ran.stderr);
        assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn hostile_files_are_errors_of_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.safetensors");
    for (header, data) in [
        ("{", &b""[..]),
        (r#"{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}"#, b"x"),
        (
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
            b"xxx",
        ),
        (r#"{"\u001b[2J":{"dtype":"F32","shape":[1],"data_offsets":[0,5]}}"#, b"xxxxx"),
    ] {
        raw_file(&file, header, data);
        for verb in ["cast --to bf16", "filter --only *", "rename --rename a=b", "merge", "meta get"] {
            let output = if verb == "meta get" { "" } else { "-o {}/out.safetensors" };
            let ran = run(dir.path(), &format!("{verb} {{}}/m.safetensors {output}"));
            assert_eq!(ran.status, 2, "{verb} {header}: {ran:?}");
            assert_eq!(ran.stderr.trim_end().lines().count(), 1, "{}", ran.stderr);
            assert!(!ran.stderr.trim_end().contains(char::is_control), "{:?}", ran.stderr);
        }
    }
}

/// Ctrl-C while a large file is written leaves neither output nor temporary file.
#[cfg(target_os = "linux")]
#[test]
fn an_interrupted_save_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.safetensors");
    // Much to cast, little to store: a sparse file.
    let bytes = 12_u64 << 30;
    let header = format!(r#"{{"w":{{"dtype":"F32","shape":[{}],"data_offsets":[0,{bytes}]}}}}"#, bytes / 4);
    raw_file(&file, &header, &[]);
    let whole = fs::File::options().write(true).open(&file).unwrap();
    whole.set_len(8 + header.len() as u64 + bytes).unwrap();
    let mut child = command()
        .args(["cast", "--to", "f8_e4m3", "-o"])
        .args([dir.path().join("out.safetensors"), file.clone()])
        .spawn()
        .unwrap();
    // Its temporary file is being written.
    let begun = || {
        let mut entries = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap());
        entries.any(|entry| {
            let name = entry.file_name().into_string().unwrap();
            name.starts_with(".out.safetensors.") && entry.metadata().is_ok_and(|data| data.len() > 0)
        })
    };
    while !begun() {
        assert_eq!(child.try_wait().unwrap(), None, "it ended by itself");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let kill = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["m.safetensors"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever the shards, reshaping changes no value.
    #[test]
    fn reshaping_keeps_every_value(
        shapes in prop::collection::vec(prop::collection::vec(0_usize..20, 0..4), 1..20),
        first in 1_u64..3000,
        second in 1_u64..3000,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("m.safetensors");
        let values: Vec<Vec<i16>> = shapes
            .iter()
            .enumerate()
            .map(|(number, shape)| (0..=i16::MAX).cycle().skip(number).take(shape.iter().product()).collect())
            .collect();
        let given = shapes.iter().zip(&values).enumerate();
        let given = given.map(|(n, (shape, values))| (format!("t{n}"), Values::new(shape, values).unwrap()));
        Save::new().file(&file, given).unwrap();
        run(dir.path(), &format!("split {{}}/m.safetensors --max-shard-size {first} -o {{}}/a")).clean();
        run(dir.path(), &format!("split {{}}/a --max-shard-size {second} -o {{}}/b")).clean();
        run(dir.path(), "rename {}/b --rename-prefix =x. -o {}/c").clean();
        run(dir.path(), "rename {}/c --rename x.*=* -o {}/d.safetensors").clean();
        run(dir.path(), "merge {}/d.safetensors -o {}/e.safetensors").clean();
        prop_assert_eq!(tensors(&file), tensors(&dir.path().join("b")));
        prop_assert!(fs::read(&file).unwrap() == fs::read(dir.path().join("e.safetensors")).unwrap());
    }
}
