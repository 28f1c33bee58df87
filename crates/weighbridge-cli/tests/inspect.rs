//! `weighbridge inspect`.

#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use support::{command, document, llama, raw_file, weighbridge};

fn at(directory: &tempfile::TempDir, name: &str) -> std::path::PathBuf {
    directory.path().join(name)
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&weighbridge(arguments).clean()).unwrap()
}

#[test]
fn layers_are_folded() {
    let directory = tempfile::tempdir().unwrap();
    let path = at(&directory, "llama.safetensors");
    llama(&path, None);
    let ran = weighbridge(["inspect", path.to_str().unwrap()]);
    assert_eq!(ran.status, 0);
    insta::assert_snapshot!(ran.without(directory.path()), @"
    [dir]/llama.safetensors  63 tensors, 4,840 parameters, 19.4 kB

    tensor                        dtype  shape    tensors    bytes  share
    lm_head.weight                F32    [32, 8]        1  1.02 kB   5.3%  ▌
    model                                              62  18.3 kB  94.7%  █████████▌
    ├─ embed_tokens.weight        F32    [32, 8]        1  1.02 kB   5.3%  ▌
    ├─ layers.[0-11]                                   60  17.3 kB  89.3%  ████████▉
    │  ├─ input_layernorm.weight  F32    [8]           12    384 B   2.0%  ▎
    │  ├─ mlp                                          24  12.3 kB  63.5%  ██████▍
    │  │  ├─ down_proj.weight     F32    [8, 16]       12  6.14 kB  31.7%  ███▏
    │  │  └─ up_proj.weight       F32    [16, 8]       12  6.14 kB  31.7%  ███▏
    │  └─ self_attn                                    24  4.61 kB  23.8%  ██▍
    │     ├─ k_proj.weight        F32    [4, 8]        12  1.54 kB   7.9%  ▊
    │     └─ q_proj.weight        F32    [8, 8]        12  3.07 kB  15.9%  █▋
    └─ norm.weight                F32    [8]            1     32 B   0.2%

    dtypes
      F32  63 tensors  19.4 kB  100.0%  4,840 parameters

    layers
      model.layers  12 layers  17.3 kB  89.3%  1.44 kB each

    metadata
      format  pt
    ");
}

#[test]
fn the_tree_ends_at_a_depth() {
    let directory = tempfile::tempdir().unwrap();
    let path = at(&directory, "llama.safetensors");
    llama(&path, None);
    let text = weighbridge(["inspect", path.to_str().unwrap(), "--depth", "1", "--sort", "size"]).clean();
    let names: Vec<_> =
        text.lines().skip(3).take_while(|line| !line.is_empty()).map(|line| line.split(' ').next()).collect();
    assert_eq!(names, [Some("model"), Some("lm_head.weight")]);
}

#[test]
fn lists_are_sorted_and_filtered() {
    let directory = tempfile::tempdir().unwrap();
    let path = at(&directory, "model");
    llama(&path, Some(9_000));
    let path = path.to_str().unwrap();
    let text = weighbridge(["inspect", path, "--flat", "--sort", "size", "--only", "*.1*.*_proj.*"]).clean();
    assert!(text.lines().next().unwrap().contains("12 of 63 tensors in "), "{text}");
    let names = |text: &str| -> Vec<String> {
        let rows = text.lines().skip(3).take_while(|line| !line.is_empty());
        rows.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
    };
    let sorted = names(&text);
    assert_eq!(sorted.len(), 12);
    // Equal sizes by name, numbers by value.
    assert_eq!(sorted[..2], ["model.layers.1.mlp.down_proj.weight", "model.layers.1.mlp.up_proj.weight"]);
    assert!(sorted[11].contains("11.self_attn.k_proj"), "{sorted:?}");

    let ran = weighbridge(["inspect", path, "--only", "nothing"]);
    assert_eq!(ran.status, 2);
    assert!(ran.stderr.contains("no tensor has a name that matches --only \"nothing\""), "{ran:?}");
}

#[test]
fn json_adds_up() {
    let directory = tempfile::tempdir().unwrap();
    let path = at(&directory, "model");
    llama(&path, Some(9_000));
    let document = json(&["inspect", path.to_str().unwrap(), "--format", "json", "--stats"]);
    assert_eq!(document["schema"], "weighbridge.inspect/1");
    let checkpoint = &document["checkpoints"][0];
    let sum =
        |list: &Value| list.as_array().unwrap().iter().map(|it| it["bytes"].as_u64().unwrap()).sum::<u64>();
    let bytes = checkpoint["bytes"].as_u64().unwrap();
    for list in ["tensors", "tree", "shards", "dtypes"] {
        assert_eq!(sum(&checkpoint[list]), bytes, "{list}");
    }
    assert_eq!(checkpoint["count"], 63);
    assert_eq!(checkpoint["metadata"]["format"][0], "pt");
    let stack = &checkpoint["stacks"][0];
    assert_eq!(stack["module"], "model.layers");
    assert_eq!(stack["layers"].as_array().unwrap().len(), 12);
    let layers = &checkpoint["tree"][1]["children"][1]["children"][0];
    assert_eq!(layers["name"], "[0-11]");
    assert_eq!(layers["numbers"][11], 11);
    assert_eq!(layers["count"], 60);
    assert_eq!(sum(&layers["children"]), layers["bytes"].as_u64().unwrap());
    let figures = &checkpoint["tensors"][0]["figures"];
    assert_eq!(figures["values"], checkpoint["tensors"][0]["elements"]);
    assert_eq!(figures["histogram"]["counts"].as_array().unwrap().len(), 64);
    let flat = json(&["inspect", path.to_str().unwrap(), "--format", "json", "--flat"]);
    assert!(flat["checkpoints"][0].get("tree").is_none());
    assert!(flat["checkpoints"][0]["tensors"][0].get("figures").is_none());
}

#[test]
fn values_that_are_no_numbers_show() {
    let directory = tempfile::tempdir().unwrap();
    let path = at(&directory, "nan.safetensors");
    let header = r#"{"l.0.w":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},
        "l.1.w":{"dtype":"F32","shape":[3],"data_offsets":[12,24]}}"#;
    let values = [1.0, f32::NAN, 3.0, f32::INFINITY, -5.0, f32::NAN];
    raw_file(&path, header, &values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>());
    let text = weighbridge(["inspect", path.to_str().unwrap(), "--stats"]).clean();
    let line = text.lines().find(|line| line.starts_with("l.[0-1].w")).unwrap();
    let cells: Vec<_> = line.split_whitespace().rev().take(5).collect();
    assert_eq!(cells, ["1", "2", "3.0000", "-0.3333", "-5.0000"]);
}

#[test]
fn odd_checkpoints_are_shown() {
    let directory = tempfile::tempdir().unwrap();
    let path = at(&directory, "odd.safetensors");
    let header = r#"{"scalar":{"dtype":"F64","shape":[],"data_offsets":[0,8]},
        "f4":{"dtype":"F4","shape":[2],"data_offsets":[8,9]},
        "scale":{"dtype":"F8_E8M0","shape":[1],"data_offsets":[9,10]},
        "f6":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[10,13]},
        "flag":{"dtype":"BOOL","shape":[1],"data_offsets":[13,14]},
        "c":{"dtype":"C64","shape":[1],"data_offsets":[14,22]},
        "c.d":{"dtype":"U8","shape":[0],"data_offsets":[22,22]},
        "\u001b[31m\u202e":{"dtype":"U8","shape":[1],"data_offsets":[22,23]}}"#;
    raw_file(&path, header, &[0; 23]);
    let text = weighbridge(["inspect", path.to_str().unwrap(), "--stats"]).clean();
    for dtype in ["F64", "F4", "F8_E8M0", "F6_E2M3", "BOOL", "C64"] {
        assert!(text.contains(dtype), "{text}");
    }
    assert!(text.contains("\\u{1b}[31m\\u{202e}") && !text.contains('\u{1b}'), "{text}");

    let empty = at(&directory, "empty.safetensors");
    raw_file(&empty, "{}", b"");
    let text = weighbridge(["inspect", empty.to_str().unwrap()]).clean();
    assert!(text.contains("0 tensors, 0 parameters, 0 B"), "{text}");
}

#[test]
fn a_page_asks_for_nothing_and_replaces_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (path, page) = (at(&directory, "a.safetensors"), at(&directory, "a.html"));
    let header = r#"{"__metadata__":{"</script>":"<img src=x>"},
        "</script><script>alert(1)":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    raw_file(&path, header, b"x");
    let write = |more: &[&str]| {
        let arguments = ["inspect", path.to_str().unwrap(), "--html", page.to_str().unwrap()];
        weighbridge(arguments.iter().chain(more))
    };
    assert_eq!(write(&[]).clean(), "");
    let html = std::fs::read_to_string(&page).unwrap();
    assert_eq!(html.matches("</script>").count(), 2);
    assert!(html.contains("<title>a.safetensors</title>"), "{html}");
    assert!(html.contains("default-src 'none'; script-src 'sha256-"));
    assert!(!html.contains("<img") && !html.contains("{{"));
    let data = document(&html);
    assert_eq!(data["columns"]["name"][0], "</script><script>alert(1)");
    assert_eq!(data["metadata"]["</script>"][0], "<img src=x>");

    std::fs::write(&page, "mine").unwrap();
    let refused = write(&[]);
    assert_eq!((refused.status, std::fs::read_to_string(&page).unwrap().as_str()), (2, "mine"));
    assert!(refused.stderr.contains("--force"), "{refused:?}");
    write(&["--force"]).clean();
    assert_eq!(std::fs::read_to_string(&page).unwrap(), html);
    let left: Vec<_> = directory.path().read_dir().unwrap().collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn a_page_has_a_tensor_in_each_column() {
    let directory = tempfile::tempdir().unwrap();
    let (path, page) = (at(&directory, "model"), at(&directory, "a.html"));
    llama(&path, Some(9_000));
    let path = path.to_str().unwrap();
    weighbridge(["inspect", path, "--html", page.to_str().unwrap(), "--stats"]).clean();
    let shown = document(&std::fs::read_to_string(&page).unwrap());
    let document = json(&["inspect", path, "--format", "json", "--stats"]);
    let tensors = document["checkpoints"][0]["tensors"].as_array().unwrap();
    let (columns, forms) = (&shown["columns"], &shown["forms"]);
    assert_eq!(forms.as_array().unwrap().len(), 6);
    for column in ["name", "form", "shard", "offset", "figures"] {
        assert_eq!(columns[column].as_array().unwrap().len(), tensors.len(), "{column}");
    }
    for (place, tensor) in tensors.iter().enumerate() {
        let form = &forms[columns["form"][place].as_u64().unwrap() as usize];
        for field in ["dtype", "shape", "elements", "bytes"] {
            assert_eq!(form[field], tensor[field]);
        }
        for field in ["name", "shard", "offset", "figures"] {
            assert_eq!(columns[field][place], tensor[field]);
        }
    }
}

#[test]
fn a_directory_has_a_name_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let (path, page) = (at(&directory, "my llama"), at(&directory, "a.html"));
    llama(&path, Some(9_000));
    std::fs::create_dir(path.join("inside")).unwrap();
    let run = |from: &Path, arguments: &[&str]| {
        let output = command().current_dir(from).args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for (from, given) in [(path.clone(), "."), (path.join("inside"), "..")] {
        let text = run(&from, &["inspect", given]);
        assert!(text.starts_with("my llama  63 tensors"), "{text}");
        let document: Value =
            serde_json::from_str(&run(&from, &["inspect", given, "--format", "json"])).unwrap();
        assert_eq!(document["checkpoints"][0]["name"], "my llama");
        assert_eq!(document["checkpoints"][0]["path"], given);
        run(&from, &["inspect", given, "--html", page.to_str().unwrap(), "--force"]);
        let html = std::fs::read_to_string(&page).unwrap();
        assert!(html.contains("<title>my llama</title>"), "{html}");
    }
}

#[test]
fn the_page_is_for_one_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    let path = at(&directory, "a.safetensors");
    raw_file(&path, "{}", b"");
    let path = path.to_str().unwrap();
    let page = at(&directory, "a.html");
    let ran = weighbridge(["inspect", path, path, "--html", page.to_str().unwrap()]);
    assert_eq!(ran.status, 2);
    assert!(!page.exists() && ran.stderr.contains("one checkpoint"), "{ran:?}");
}

#[test]
fn whoever_reads_may_stop() {
    let directory = tempfile::tempdir().unwrap();
    let path = at(&directory, "llama.safetensors");
    llama(&path, None);
    // Many times the same, so that it does not fit the pipe.
    for format in ["text", "json"] {
        let mut arguments = vec!["inspect", "--flat", "--format", format];
        arguments.extend(std::iter::repeat_n(path.to_str().unwrap(), 200));
        let mut child =
            command().args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    }
}

#[test]
fn errors_name_the_file() {
    let ran = weighbridge(["inspect", "/nowhere/model.safetensors"]);
    assert_eq!(ran.status, 2);
    assert_eq!(ran.stderr.lines().count(), 1);
    assert!(ran.stderr.contains("/nowhere/model.safetensors"), "{ran:?}");
    assert!(!Path::new("/nowhere").exists());
}
