//! `consolidate`, and what `merge` says of rank shards.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use insta::assert_snapshot;
use support::{Ran, weighbridge};
use weighbridge::write::{Save, Values};
use weighbridge::{Checkpoint, Dtype};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../weighbridge-convert/tests/ranks").join(name)
}

/// The arguments, with `{}` for the directory and `dcp` and `hf` for what ranks wrote.
fn run(dir: &Path, arguments: &str) -> Ran {
    let path = |name: &str| fixture(name).to_str().unwrap().to_owned();
    let dir = dir.to_str().unwrap();
    weighbridge(arguments.split_whitespace().map(|argument| match argument {
        "dcp" | "hf" => path(argument),
        _ => argument.replace("{}", dir),
    }))
}

#[test]
fn both_layouts_are_the_same_model() {
    let dir = tempfile::tempdir().unwrap();
    let told = run(dir.path(), "consolidate dcp -o {}/dcp.safetensors");
    assert_snapshot!(told.without(dir.path()), @r#"
    [dir]/dcp.safetensors: 3 tensors, 94 B
    dropped "step": a value that is no tensor
    "#);
    run(dir.path(), "consolidate hf -o {}/hf --max-shard-size 50").clean();
    assert_eq!(Checkpoint::open(dir.path().join("hf")).unwrap().shards().len(), 2);
    run(dir.path(), "diff --data {}/dcp.safetensors {}/hf").clean();
    // What looks at checkpoints takes the directories themselves.
    run(dir.path(), "diff --data dcp hf").clean();
    assert_eq!(run(dir.path(), "cat dcp model.columns[1]").clean(), "[5. 6. 7. 8. 9.]\n");
}

#[test]
fn some_of_it_under_other_names() {
    let dir = tempfile::tempdir().unwrap();
    let options = "--only model.* --except *.scale --rename-prefix model.= -o {}/out.safetensors";
    run(dir.path(), &format!("consolidate dcp {options}")).clean();
    let checkpoint = Checkpoint::open(dir.path().join("out.safetensors")).unwrap();
    let names: Vec<_> = checkpoint.tensors().map(|tensor| tensor.name().to_owned()).collect();
    assert_eq!(names, ["rows", "columns"]);
    assert_eq!(checkpoint.tensor("columns").unwrap().dtype(), Dtype::BF16);
    let listed = run(dir.path(), "consolidate dcp --dry-run").clean();
    assert_eq!(listed.lines().count(), 3, "{listed}");
    let none = run(dir.path(), "consolidate dcp --only nothing -o {}/none.safetensors");
    assert!(
        none.status == 2 && none.stderr.contains("no tensor has a name that matches --only \"nothing\""),
        "{none:?}"
    );
}

#[test]
fn ranks_are_joined_by_rules() {
    let dir = tempfile::tempdir().unwrap();
    for (number, values) in [[1.0_f32, 2.0], [3.0, 4.0]].iter().enumerate() {
        let tensors = [("a".to_owned(), Values::new(&[2, 1], values).unwrap())];
        Save::new().file(dir.path().join(format!("rank{number}.safetensors")), tensors).unwrap();
    }
    fs::write(dir.path().join("rules"), "a: 1\n").unwrap();
    let ranks = "{}/rank0.safetensors {}/rank1.safetensors";
    run(dir.path(), &format!("consolidate {ranks} --rules {{}}/rules -o {{}}/out.safetensors")).clean();
    let checkpoint = Checkpoint::open(dir.path().join("out.safetensors")).unwrap();
    assert_eq!(checkpoint.tensor("a").unwrap().shape(), [2, 2]);
    let merged = run(dir.path(), &format!("merge {ranks} -o {{}}/merged.safetensors"));
    assert!(merged.stderr.contains("`weighbridge consolidate --rules FILE`"), "{merged:?}");
    fs::write(dir.path().join("rules"), "b: 1\n").unwrap();
    let refused =
        run(dir.path(), &format!("consolidate {ranks} --rules {{}}/rules -o {{}}/none.safetensors"));
    assert!(
        refused.status == 2 && refused.stderr.contains("tensor \"a\": no rule is about it"),
        "{refused:?}"
    );
    assert!(!dir.path().join("none.safetensors").exists());
    let refused = run(dir.path(), &format!("consolidate {ranks} -o {{}}/none.safetensors"));
    assert!(refused.status == 2 && refused.stderr.contains("--rules FILE"), "{refused:?}");
}

#[test]
fn merge_names_consolidate() {
    let dir = tempfile::tempdir().unwrap();
    let first = fixture("hf/shard-00001-model-00001-of-00001.safetensors");
    let second = fixture("hf/shard-00002-model-00001-of-00001.safetensors");
    let both = format!("{} {}", first.display(), second.display());
    for what in ["dcp", "hf", &both] {
        for how in ["", "--on-duplicate first"] {
            let ran = run(dir.path(), &format!("merge {what} {how} -o {{}}/out.safetensors"));
            assert!(ran.status == 2 && ran.stderr.contains("`weighbridge consolidate`"), "{ran:?}");
            assert!(!dir.path().join("out.safetensors").exists());
        }
    }
    for verb in ["merge", "blend", "consolidate"] {
        let help = run(dir.path(), &format!("help {verb}")).clean();
        for neighbour in ["`merge` joins the files", "`blend` averages models", "`consolidate` joins rank"] {
            let words = help.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(words.contains(neighbour), "{help}");
        }
    }
}

#[test]
fn what_no_rank_wrote_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |what: &str| {
        let ran = run(dir.path(), &format!("consolidate {what} -o {{}}/out.safetensors"));
        assert!(ran.status == 2 && !dir.path().join("out.safetensors").exists(), "{ran:?}");
        ran.without(dir.path())
    };
    assert_snapshot!(refused("{}"), @"error: [dir]: it is nothing that ranks write: .metadata, safetensors with DCP_SHARDING_INFO, *_optim_states.pt; the files of ranks are joined by --rules FILE");
    fs::write(dir.path().join("__0.metadata"), "").unwrap();
    assert!(refused("{}").contains("without coordination"));
    let zero = dir.path().join("zero");
    fs::create_dir(&zero).unwrap();
    fs::write(zero.join("zero_pp_rank_0_mp_rank_00_optim_states.pt"), "").unwrap();
    assert!(refused("{}/zero").contains("no *_model_states.pt"));
    fs::write(zero.join("layer_00-model_states.pt"), "").unwrap();
    assert!(refused("{}/zero").contains("pipeline stages"));
    let model = dir.path().join("model.safetensors");
    Save::new().file(&model, [("a".to_owned(), Values::new(&[1], &[1.0_f32]).unwrap())]).unwrap();
    assert!(refused("{}/model.safetensors").contains("one safetensors checkpoint already"));
}
