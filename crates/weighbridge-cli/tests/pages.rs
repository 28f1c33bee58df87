//! Pages for browsers: `diff --html`, and `inspect --html` of a training run. `.ci/browser` uses them as people do.

#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::fs::read_to_string;
use std::path::{Path, PathBuf};

use serde_json::Value;
use support::{document, llama, weighbridge};
use weighbridge::epochs::{Epochs, Milestone, Scalar, Scalars};
use weighbridge::write::{Save, Values};

/// Files in a directory of their own.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.at(name).to_str().unwrap().to_owned()
    }

    /// Writes a file of tensors in `F32`.
    fn save(&self, name: &str, tensors: &[(&str, &[f32])]) {
        save(&self.at(name), tensors).unwrap();
    }

    /// The document of the page that the command writes.
    fn page(&self, arguments: &[&str], status: i32) -> Value {
        let html = self.text("page.html");
        let ran = weighbridge(arguments.iter().copied().chain(["--html", &html, "--force"]));
        assert_eq!((ran.status, ran.stdout.as_str()), (status, ""), "{ran:?}");
        let html = read_to_string(html).unwrap();
        assert!(html.contains("default-src 'none'; script-src 'sha256-") && !html.contains("{{"));
        document(&html)
    }
}

fn save(path: &Path, tensors: &[(&str, &[f32])]) -> weighbridge::Result<()> {
    let shapes: Vec<_> = tensors.iter().map(|(_, values)| [values.len()]).collect();
    let tensors = tensors.iter().zip(&shapes);
    let tensors = tensors.map(|((name, values), shape)| (*name, Values::new(shape, values).unwrap()));
    Save::new().file(path, tensors)
}

/// The place of a tensor in the columns.
fn place(columns: &Value, name: &str) -> usize {
    columns["name"].as_array().unwrap().iter().position(|other| other == name).unwrap()
}

fn near(value: &Value, expected: f64) {
    let value = value.as_f64().unwrap();
    assert!((value - expected).abs() < 1e-12, "{value} is not {expected}");
}

#[test]
fn a_page_says_how_far_tensors_moved() {
    let files = Place::new();
    files.save(
        "a.safetensors",
        &[("l.0.w", &[3.0, 4.0]), ("l.1.w", &[1.0, 0.0]), ("gone", &[1.0]), ("s", &[1.0])],
    );
    files.save(
        "b.safetensors",
        &[("l.0.w", &[3.0, 4.5]), ("l.1.w", &[1.0, 0.0]), ("new", &[2.0]), ("s", &[1.0, 2.0])],
    );
    let (a, b) = (files.text("a.safetensors"), files.text("b.safetensors"));
    let page = files.page(&["diff", &a, &b, "--data"], 1);
    assert_eq!(page["a"]["name"], "a.safetensors");
    assert_eq!((&page["b"]["tensors"], &page["b"]["bytes"]), (&4.into(), &28.into()));
    let columns = &page["columns"];
    assert_eq!(columns["name"], serde_json::json!(["gone", "l.0.w", "l.1.w", "new", "s"]));
    let change = |name: &str| &columns["changes"][place(columns, name)];
    near(&change("l.0.w")["distance"], 0.5);
    near(&change("l.0.w")["norm"], 5.0);
    near(&change("l.0.w")["cosine"], (9.0 + 18.0) / (5.0 * (9.0_f64 + 20.25).sqrt()));
    near(&change("l.0.w")["max_absolute"], 0.5);
    assert_eq!((&change("l.0.w")["differing"], &change("l.0.w")["values"]), (&1.into(), &2.into()));
    // What is the same is there, too, for the norms of layers.
    near(&change("l.1.w")["norm"], 1.0);
    near(&change("l.1.w")["distance"], 0.0);
    near(&change("l.1.w")["cosine"], 1.0);
    for name in ["gone", "new", "s"] {
        assert!(change(name).is_null(), "{name}");
    }
    assert!(columns["b"][place(columns, "gone")].is_null() && columns["a"][place(columns, "new")].is_null());
    let form = |side: &str| &page["forms"][columns[side][place(columns, "s")].as_u64().unwrap() as usize];
    assert_eq!((&form("a")["shape"][0], &form("b")["shape"][0]), (&1.into(), &2.into()));

    assert!(files.page(&["diff", &a, &b], 1)["columns"]["changes"].is_null());
    files.page(&["diff", &a, &a, "--data"], 0);
    let refused = weighbridge(["diff", &a, &b, "--html", &files.text("page.html")]);
    assert!(refused.status == 2 && refused.stderr.contains("--force"), "{refused:?}");
}

#[test]
fn cosines_are_in_json_and_only_what_differs() {
    let files = Place::new();
    files.save(
        "a.safetensors",
        &[("x", &[1.0, 0.0]), ("y", &[1.0]), ("n", &[f32::NAN, 2.0]), ("zero", &[0.0])],
    );
    files.save("b.safetensors", &[("x", &[0.0, 1.0]), ("y", &[1.0]), ("n", &[1.0, 4.0]), ("zero", &[1.0])]);
    let arguments =
        ["diff", &files.text("a.safetensors"), &files.text("b.safetensors"), "--data", "--format", "json"];
    let ran = weighbridge(arguments);
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    let values = document["values"].as_array().unwrap();
    let of = |name: &str| values.iter().find(|moved| moved["name"] == name);
    assert_eq!(values.len(), 3);
    near(&of("x").unwrap()["cosine"], 0.0);
    // Of values that are finite in both.
    near(&of("n").unwrap()["cosine"], 1.0);
    assert!(of("zero").unwrap()["cosine"].is_null() && of("y").is_none());
}

#[test]
fn large_checkpoints_of_shards_have_a_page() {
    let files = Place::new();
    llama(&files.at("a"), Some(9_000));
    llama(&files.at("b"), Some(5_000));
    let page = files.page(&["diff", &files.text("a"), &files.text("b"), "--only", "*.3.*"], 0);
    assert_eq!(page["columns"]["name"].as_array().unwrap().len(), 5);
    assert!(page["a"]["shards"].as_u64() < page["b"]["shards"].as_u64());

    for side in ["one", "two"] {
        std::fs::create_dir(files.at(side)).unwrap();
        files.save(&format!("{side}/model.safetensors"), &[("w", &[1.0])]);
    }
    let [one, two] = ["one", "two"].map(|side| files.text(&format!("{side}/model.safetensors")));
    let page = files.page(&["diff", &one, &two], 0);
    assert_eq!(
        (&page["a"]["name"], &page["b"]["name"]),
        (&"one/model.safetensors".into(), &"two/model.safetensors".into())
    );
}

/// A run of three epochs with a model of two tensors.
fn run(files: &Place) -> PathBuf {
    let directory = files.at("my run");
    let epochs = Epochs::new(&directory, ["model"]);
    for epoch in 1..=3_u8 {
        let mut numbers = Scalars::from([("seed".to_owned(), Scalar::from(7_u64))]);
        numbers.insert("loss".to_owned(), Scalar::from(1.0 / f64::from(epoch)));
        if epoch == 2 {
            numbers.insert("odd".to_owned(), Scalar::from(f64::NAN));
        }
        let long = f32::from(epoch);
        let tensors: [(&str, &[f32]); 2] = [("l.0.w", &[3.0 * long, 4.0 * long]), ("l.1.w", &[1.0])];
        epochs.save_with(Milestone::epoch(epoch.into()), &numbers, |_, file| save(file, &tensors)).unwrap();
    }
    directory
}

#[test]
fn a_run_has_a_page_of_its_numbers_and_norms() {
    let files = Place::new();
    let directory = run(&files);
    let page = files.page(&["inspect", directory.to_str().unwrap()], 0);
    assert_eq!((&page["name"], &page["elements"]), (&"my run".into(), &3.into()));
    let epochs: Vec<_> =
        page["checkpoints"].as_array().unwrap().iter().map(|saved| &saved["epoch"]).collect();
    assert_eq!(epochs, [1, 2, 3]);
    assert!(page["checkpoints"][0]["step"].is_null());
    let numbers = |name: &str| {
        let found = page["numbers"].as_array().unwrap().iter().find(|number| number["name"] == name);
        &found.unwrap()["values"]
    };
    assert_eq!(numbers("seed"), &serde_json::json!([7.0, 7.0, 7.0]));
    near(&numbers("loss")[2], 1.0 / 3.0);
    assert_eq!(numbers("odd"), &serde_json::json!([null, null, null]));
    let tensors = &page["tensors"];
    let of = |column: &str, name: &str| &tensors[column][place(tensors, name)];
    for (at, expected) in [5.0, 10.0, 15.0].into_iter().enumerate() {
        near(&of("norm", "l.0.w")[at], expected);
    }
    assert!(of("distance", "l.0.w")[0].is_null());
    near(&of("distance", "l.0.w")[1], 5.0);
    near(&of("distance", "l.1.w")[2], 0.0);
    let chosen = files.page(&["inspect", directory.to_str().unwrap(), "--only", "l.1.*"], 0);
    assert_eq!(chosen["tensors"]["name"], serde_json::json!(["l.1.w"]));
}

#[test]
fn a_run_that_is_not_whole_is_an_error() {
    let files = Place::new();
    let directory = run(&files);
    let page = files.text("page.html");
    let inspect = || weighbridge(["inspect", directory.to_str().unwrap(), "--html", &page]);
    std::fs::write(directory.join("epoch-00002/model.safetensors"), "short").unwrap();
    let ran = inspect();
    assert!(ran.status == 2 && ran.stderr.lines().count() == 1, "{ran:?}");
    assert!(ran.stderr.contains("epoch-00002"), "{ran:?}");
    std::fs::write(directory.join("checkpoints.json"), r#"{"version":2,"checkpoints":[]}"#).unwrap();
    let ran = inspect();
    assert!(ran.status == 2 && ran.stderr.contains("no checkpoint"), "{ran:?}");
    assert!(!Path::new(&page).exists());
}
