//! `weighbridge scan` and `weighbridge convert` on pickles: what they print, and how they end.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

mod support;

use std::path::{Path, PathBuf};

use support::weighbridge;
use weighbridge::Checkpoint;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../weighbridge-convert/tests/pickle").join(name)
}

fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_str().unwrap().to_owned()
}

#[test]
fn scan_tells_harmless_from_dangerous() {
    let dir = tempfile::tempdir().unwrap();
    let evil = dir.path().join("evil.bin");
    std::fs::write(&evil, b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R.").unwrap();
    std::fs::write(dir.path().join("other.bin"), b"\x80\x02csklearn.svm\nSVC\n)R.").unwrap();
    std::fs::write(dir.path().join("text.txt"), b"words").unwrap();

    let harmless = weighbridge(["scan", &text(fixture("tied.bin"))]);
    let expected =
        "harmless, 3 globals in 1 pickle\n  tied/data.pkl\n    harmless   collections.OrderedDict\n";
    assert!(harmless.stdout.contains(expected), "{harmless:?}");
    assert_eq!(harmless.status, 0);

    let dangerous = weighbridge(["scan", &text(&evil)]);
    assert_eq!(dangerous.status, 1);
    let expected = "[dir]/evil.bin: dangerous, 1 global in 1 pickle\n  at byte 0\n    dangerous  os.system\n";
    assert_eq!(dangerous.without(dir.path()), expected);

    // A directory: what is harmless and no pickle is only counted.
    let all = weighbridge(["scan", &text(dir.path())]);
    assert_eq!((all.status, all.stdout.contains("text.txt")), (1, false));
    assert!(all.stdout.ends_with("3 files: 1 dangerous, 1 unknown, 1 harmless\n"), "{all:?}");
    let unknown = text(dir.path().join("other.bin"));
    assert_eq!(weighbridge(["scan", &unknown]).status, 1);
    for allow in ["--allow=sklearn.svm.SVC", "--allow=sklearn.*", "--allow-unknown"] {
        let allowed = weighbridge(["scan", &unknown, allow]);
        assert_eq!(allowed.status, 0, "{allowed:?}");
        assert!(allowed.stdout.contains("allowed    sklearn.svm.SVC"), "{allowed:?}");
        // What is dangerous stays so.
        assert_eq!(weighbridge(["scan", &text(&evil), allow, "--allow=os.system"]).status, 1);
    }
    assert_eq!(weighbridge(["scan", &unknown, "--allow=sklearn"]).status, 1);
    assert_eq!(weighbridge(["scan", &text(dir.path().join("text.txt"))]).status, 0);
    assert_eq!(weighbridge(["scan", "not-there"]).status, 2);
}

#[test]
fn scan_has_json() {
    let json = weighbridge(["scan", "--format", "json", &text(fixture("numpy4.pkl"))]).clean();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["schema"], "weighbridge.scan/1");
    assert_eq!(json["verdict"], "harmless");
    assert_eq!(json["files"][0]["complete"], true);
    assert_eq!(json["files"][0]["pickles"][0]["globals"][0]["verdict"], "harmless");
}

#[test]
fn convert_converts_and_reports() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("model.safetensors");
    let ran = weighbridge(["convert", &text(fixture("training.pth")), "-o", &text(&out)]);
    assert_eq!(ran.status, 0, "{ran:?}");
    assert!(ran.stdout.is_empty());
    for line in [
        "renamed \"model.*\": left out of the names of 7 tensors\n",
        "renamed \"module.*\": left out of the names of 7 tensors\n",
        " kept in the metadata; --verbose lists them\n",
        "19 tensors from PyTorch zip\n",
    ] {
        assert!(ran.stderr.contains(line), "{line} {ran:?}");
    }
    assert_eq!(std::fs::metadata(&out).unwrap().len(), {
        let checkpoint = Checkpoint::open(&out).unwrap();
        checkpoint.shards()[0].source().size()
    });

    // Chosen, renamed, cast; never over what is there.
    let again = weighbridge(["convert", &text(fixture("training.pth")), "-o", &text(&out)]);
    assert_eq!(again.status, 2);
    let arguments = ["--force", "--only", "0.*", "--rename-prefix", "0.=linear.", "--to", "bf16"];
    let chosen = ["convert", &text(fixture("training.pth")), "-o", &text(&out)];
    let ran = weighbridge(chosen.into_iter().chain(arguments));
    assert!(ran.stderr.contains("2 tensors from PyTorch zip, 17 not chosen"), "{ran:?}");
    let checkpoint = Checkpoint::open(&out).unwrap();
    let tensors: Vec<_> = checkpoint.tensors().map(|tensor| (tensor.name(), tensor.dtype().name())).collect();
    assert_eq!(tensors, [("linear.bias", "BF16"), ("linear.weight", "BF16")]);
}

#[test]
fn convert_refuses_code() {
    let dir = tempfile::tempdir().unwrap();
    let evil = dir.path().join("evil.bin");
    std::fs::write(&evil, b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R.").unwrap();
    let ran = weighbridge(["convert", &text(&evil), "-o", &text(dir.path().join("out.safetensors"))]);
    assert_eq!(ran.status, 2);
    let expected = "error: [dir]/evil.bin: the pickle imports \"os.system\", which is dangerous";
    assert!(ran.without(dir.path()).starts_with(expected), "{ran:?}");
    assert!(!dir.path().join("out.safetensors").exists());
}

#[test]
fn foreign_files_can_be_looked_at() {
    let (pickle, converted) = (text(fixture("tied.bin")), text(fixture("tied.safetensors")));
    let list = |path: &str| weighbridge(["inspect", "--flat", path]).clean();
    let tensors = |list: &str| list.lines().filter(|line| line.contains("F32")).count();
    assert!(tensors(&list(&pickle)) > 0);
    assert_eq!(tensors(&list(&pickle)), tensors(&list(&converted)));
    let same = weighbridge(["diff", &pickle, &converted, "--data"]);
    assert_eq!(same.status, 0, "{same:?}");

    // What writes safetensors from safetensors does not guess.
    let dir = tempfile::tempdir().unwrap();
    let refused =
        weighbridge(["filter", &pickle, "--only", "*", "-o", &text(dir.path().join("a.safetensors"))]);
    assert_eq!(refused.status, 2);
    assert!(refused.stderr.contains("tied.bin: PyTorch zip; `weighbridge convert` makes"), "{refused:?}");

    // What is of no format, or named like ours, is an error of ours.
    let other = dir.path().join("words.bin");
    std::fs::write(&other, "words, and no more than that").unwrap();
    assert!(
        weighbridge(["inspect", &text(&other)])
            .stderr
            .contains("it is not safetensors; this is a plain text")
    );
    let broken = dir.path().join("broken.bin");
    std::fs::write(&broken, &std::fs::read(&pickle).unwrap()[..200]).unwrap();
    let said = weighbridge(["inspect", &text(&broken)]).stderr;
    assert!(said.contains("broken.bin: it has no directory at its end: it was cut off"), "{said}");
    let named = dir.path().join("named.safetensors");
    std::fs::copy(&pickle, &named).unwrap();
    let said = weighbridge(["inspect", &text(&named)]).stderr;
    assert!(said.contains("named.safetensors: it is not safetensors; this is a zip archive"), "{said}");
    assert!(said.contains("PyTorch zip: `weighbridge convert` makes safetensors of it"), "{said}");
}

#[test]
fn convert_warns_where_nothing_is_converted() {
    let dir = tempfile::tempdir().unwrap();
    let (empty, out) = (dir.path().join("empty.pkl"), dir.path().join("out.safetensors"));
    std::fs::write(&empty, b"\x80\x02}.").unwrap();
    let training = fixture("training.pth");
    let strict = weighbridge(["convert", &text(&empty), "--strict", "-o", &text(&out)]);
    assert_eq!(strict.status, 1, "{strict:?}");
    assert!(!out.exists());
    let chosen = weighbridge(["convert", &text(&training), "--strict", "--only", "x", "-o", &text(&out)]);
    assert_eq!(chosen.status, 2, "{chosen:?}");
    assert!(chosen.stderr.contains("no tensor has a name that matches --only \"x\""), "{chosen:?}");
    assert!(!out.exists());
    // Without it there is a warning, and what was asked for.
    let ran = weighbridge(["convert", &text(&empty), "-o", &text(&out)]);
    assert_eq!(ran.status, 0, "{ran:?}");
    assert!(ran.stderr.contains("empty.pkl: no tensor is converted: it contains no tensors"), "{ran:?}");
    assert!(Checkpoint::open(&out).unwrap().is_empty());
    // The other way, too; and where there are tensors, nothing changes.
    let npz = dir.path().join("out.npz");
    let exported = weighbridge(["convert", &text(&out), "--strict", "-o", &text(&npz)]);
    assert_eq!((exported.status, npz.exists()), (1, false), "{exported:?}");
    let good = weighbridge(["convert", &text(&training), "--strict", "--force", "-o", &text(&out)]);
    assert_eq!(good.status, 0, "{good:?}");
    assert!(!good.stderr.contains("warning"), "{good:?}");
}
