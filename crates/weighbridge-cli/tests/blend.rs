//! `blend`: what is made of models, and what is refused. The formulas are proven in the library.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use half::bf16;
use support::{Ran, llama, weighbridge};
use weighbridge::write::{Save, TensorData, Values};
use weighbridge::{Checkpoint, Dtype, Plan};

/// Every tensor's dtype, shape and bytes, by name.
fn tensors(location: &Path) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let checkpoint = Checkpoint::open(location).unwrap();
    let session = Plan::of(&checkpoint).build().unwrap().session().start().unwrap();
    let one = |tensor: weighbridge::TensorRef<'_>| {
        let values = session.take(tensor.name(), None).unwrap().1;
        (tensor.name().to_owned(), (tensor.dtype(), tensor.shape().to_vec(), values.as_bytes().to_vec()))
    };
    checkpoint.tensors().map(one).collect()
}

fn floats(location: &Path, name: &str) -> Vec<f32> {
    let session = Plan::of(&Checkpoint::open(location).unwrap())
        .dtype(|_| Some(Dtype::F32))
        .build()
        .unwrap()
        .session()
        .start()
        .unwrap();
    let values = session.take(name, None).unwrap().1;
    values.as_bytes().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

/// The arguments, with `{}` for the directory.
fn run(dir: &Path, arguments: &str) -> Ran {
    let dir = dir.to_str().unwrap();
    weighbridge(arguments.split_whitespace().map(|argument| argument.replace("{}", dir)))
}

/// What it says when it refuses; nothing is written then.
fn refused(dir: &Path, arguments: &str) -> String {
    let ran = run(dir, &format!("blend {arguments} -o {{}}/out"));
    assert_eq!(ran.status, 2, "{arguments}: {}", ran.stderr);
    assert!(!dir.join("out").exists(), "{arguments}");
    ran.without(dir).trim_end().to_owned()
}

fn save<T: TensorData>(path: &Path, tensors: impl IntoIterator<Item = (&'static str, T)>) {
    fs::create_dir_all(path).unwrap();
    Save::new().metadata("format", "pt").file(path.join("model.safetensors"), tensors).unwrap();
}

/// A tensor that owns its values.
struct Owned(Vec<usize>, Vec<f32>);

impl TensorData for Owned {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.0
    }

    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        self.1.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))
    }
}

fn single(values: &[f32]) -> Owned {
    Owned(vec![values.len()], values.to_vec())
}

#[test]
fn weights_are_those_of_models_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    save(&dir.path().join("a"), [("x", single(&[1.0, 2.0, -3.0])), ("y", single(&[8.0]))]);
    save(&dir.path().join("b"), [("x", single(&[5.0, 2.0, 1.0])), ("y", single(&[0.0]))]);
    let ran = run(dir.path(), "blend {}/a {}/b -o {}/ab --method linear --weight 0.25,0.75");
    insta::assert_snapshot!(ran.without(dir.path()), @r"
    [dir]/ab: 2 tensors in 1 shard, 16 B
    2 tensors by linear blended, 0 as before
    ");
    assert_eq!(ran.status, 0);
    assert_eq!(floats(&dir.path().join("ab"), "x"), [4.0, 2.0, 0.0]);
    assert_eq!(floats(&dir.path().join("ab"), "y"), [2.0]);
    // One weight for all, and a base that is not one of the models.
    save(&dir.path().join("base"), [("x", single(&[1.0, 1.0, 1.0])), ("y", single(&[1.0]))]);
    run(
        dir.path(),
        "blend {}/a {}/b --base {}/base -o {}/task.safetensors --method task_arithmetic --weight 0.5 --lambda 2",
    )
    .clean();
    assert_eq!(floats(&dir.path().join("task.safetensors"), "x"), [5.0, 3.0, -3.0]);
    // What is listed is what would be written.
    let ran = run(dir.path(), "blend {}/a {}/b --method linear --weight 1 --to bf16 --dry-run");
    assert_eq!((ran.stdout.as_str(), ran.status), ("x\tBF16\t[3]\t6\ny\tBF16\t[1]\t2\n", 0));
    // Once more, it is there already.
    let ran = run(dir.path(), "blend {}/a {}/b -o {}/ab --method linear --weight 1");
    assert!(ran.stderr.contains("it is there already"), "{}", ran.stderr);
}

#[test]
fn the_dtype_is_the_one_that_holds_all_values_or_the_one_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let narrow: Vec<_> = [1.0, 3.0].map(bf16::from_f32).to_vec();
    let half: Vec<_> = [3.0, 0.5].map(half::f16::from_f32).to_vec();
    save(&dir.path().join("a"), [("x", Values::new(&[2], &narrow).unwrap())]);
    save(&dir.path().join("b"), [("x", Values::new(&[2], &half).unwrap())]);
    let made = |options: &str| {
        let out = dir.path().join("out.safetensors");
        run(dir.path(), &format!("blend {options} -o {} --force", out.display())).clean();
        tensors(&out)["x"].clone()
    };
    let both = "{}/a {}/b --method linear --weight 0.5";
    assert_eq!(made("{}/a {}/a --method linear --weight 1,2").0, Dtype::BF16);
    assert_eq!(made(both).0, Dtype::F32);
    let (dtype, _, bytes) = made(&format!("{both} --dtype f16"));
    assert_eq!(
        (dtype, bytes),
        (Dtype::F16, [2.0, 1.75].map(half::f16::from_f32).map(half::f16::to_le_bytes).concat())
    );
    let ran = run(dir.path(), "blend {}/a {}/b --method linear --weight 1 --to i32 -o {}/out");
    assert!(ran.stderr.contains("blended values are floats, not I32"), "{}", ran.stderr);
}

#[test]
fn a_recipe_says_which_tensors_are_blended_how() {
    let dir = tempfile::tempdir().unwrap();
    let model = |name: &str, value: f32| {
        let values = [value, 0.0, 2.0 * value];
        let names =
            ["embed.weight", "layers.0.mlp.up.weight", "layers.0.attn.q.weight", "layers.1.mlp.up.weight"];
        save(&dir.path().join(name), names.map(|name| (name, single(&values))));
    };
    model("a", 1.0);
    model("b", 3.0);
    model("base", 1.0);
    fs::write(
        dir.path().join("recipe.json"),
        r#"{"method": "linear", "weight": [1, 1], "rules": [
            {"names": "*.mlp.*", "weight": [0, 1]},
            {"names": ["layers.1.*"], "method": "task_arithmetic", "weight": 2.0, "lambda": 0.5},
            {"names": "embed.weight", "take": 1}]}"#,
    )
    .unwrap();
    let ran = run(dir.path(), "blend {}/a {}/b --base {}/base -o {}/out --recipe {}/recipe.json");
    assert!(
        ran.stderr.contains("2 tensors by linear, 1 tensor by task_arithmetic blended, 1 as before"),
        "{}",
        ran.stderr
    );
    let out = |name| floats(&dir.path().join("out"), name);
    assert_eq!(out("embed.weight"), [3.0, 0.0, 6.0]);
    assert_eq!(out("layers.0.mlp.up.weight"), [3.0, 0.0, 6.0]);
    assert_eq!(out("layers.0.attn.q.weight"), [2.0, 0.0, 4.0]);
    assert_eq!(out("layers.1.mlp.up.weight"), [3.0, 0.0, 6.0]);
    // Options overrule what the file says for all tensors, and --take every rule.
    run(
        dir.path(),
        "blend {}/a {}/b --base {}/base -o {}/out --recipe {}/recipe.json --weight 3,1 --take *.attn.* --force",
    )
    .clean();
    assert_eq!(out("layers.0.attn.q.weight"), [1.0, 0.0, 2.0]);
    assert_eq!(out("layers.0.mlp.up.weight"), [3.0, 0.0, 6.0]);
    for (text, why) in [
        ("[]", "it is not a JSON object of settings"),
        ("{", "it is not valid JSON"),
        (r#"{"method": "mean"}"#, r#"no method is named "mean""#),
        (r#"{"weigth": 1}"#, r#"there is no setting "weigth"; known are"#),
        (r#"{"rules": [{"names": "*", "lamda": 1}]}"#, r#"there is no setting "lamda""#),
        (r#"{"rules": [{"names": "*", "take": "all"}]}"#, r#""take" is "base" or the number of a model"#),
        (r#"{"method": "linear", "weight": "1"}"#, "expected a number or a list of numbers"),
        (
            r#"{"method": "linear", "weight": 1, "rules": [{"names": "*.norm"}]}"#,
            r#"a name that matches "*.norm""#,
        ),
        (r#"{"method": "linear", "weight": 1, "rules": [{"names": "*", "take": 2}]}"#, "there is no model 2"),
        (
            r#"{"method": "linear", "weight": 1, "rules": [{"names": "*", "take": "base"}]}"#,
            "there is no base",
        ),
        (r#"{"method": "linear", "weight": [1, 2, 3]}"#, "there are 3 weights of 2 models"),
    ] {
        fs::write(dir.path().join("bad.json"), text).unwrap();
        fs::remove_dir_all(dir.path().join("out")).unwrap_or_default();
        let told = refused(dir.path(), "{}/a {}/b --recipe {}/bad.json");
        assert!(told.contains(why) && told.lines().count() == 1, "{text}: {told}");
    }
}

#[test]
fn the_same_seed_gives_the_same_file_and_another_one_does_not() {
    let dir = tempfile::tempdir().unwrap();
    for (number, name) in ["a", "b", "base"].into_iter().enumerate() {
        let values: Vec<f32> =
            (0..300_000).map(|i| ((i * (7 + number) + number) % 1013) as f32 / 500.0 - 1.0).collect();
        save(&dir.path().join(name), [("x", Values::new(&[300, 1000], &values).unwrap())]);
    }
    let made = |method: &str, seed: &str| {
        let out = dir.path().join("out.safetensors");
        let options = format!("--base {{}}/base --method {method} --weight 0.5,0.3 --density 0.4 {seed}");
        run(dir.path(), &format!("blend {{}}/a {{}}/b -o {} {options} --force", out.display())).clean();
        fs::read(out).unwrap()
    };
    for method in ["dare_linear", "dare_ties"] {
        let first = made(method, "--seed 7");
        assert!(first == made(method, "--seed 7"), "{method}");
        assert!(first != made(method, "--seed 8"), "{method}");
        assert!(made(method, "") == made(method, "--seed 0"), "{method}");
    }
    assert!(made("ties", "") == made("ties", ""));
}

#[test]
fn models_that_differ_are_refused_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let matrix = |rows: usize, columns: usize| Owned(vec![rows, columns], vec![0.5; rows * columns]);
    let model = |name: &str, embeddings: Owned, up: Owned| {
        save(&dir.path().join(name), [("model.embed_tokens.weight", embeddings), ("up.weight", up)]);
    };
    model("a", matrix(8, 4), matrix(4, 4));
    model("tokens", matrix(10, 4), matrix(4, 4));
    model("wide", matrix(8, 4), matrix(4, 8));
    save(&dir.path().join("few"), [("up.weight", matrix(4, 4))]);
    let linear = "--method linear --weight 0.5,0.5";
    let is = |models: &str, told: &str| assert_eq!(refused(dir.path(), &format!("{models} {linear}")), told);
    is(
        "{}/a {}/tokens",
        "error: tensor \"model.embed_tokens.weight\": shape [8, 4] in [dir]/a, [10, 4] in [dir]/tokens; their vocabularies have \
         8 and 10 tokens: give the models one tokenizer first (transformers' resize_token_embeddings), or have --take \
         \"model.embed_tokens.weight\" take that of [dir]/a",
    );
    is(
        "{}/a {}/wide",
        "error: tensor \"up.weight\": shape [4, 4] in [dir]/a, [4, 8] in [dir]/wide; only models of one architecture and size \
         can be blended",
    );
    is(
        "{}/a {}/few",
        "error: [dir]/few: tensor \"model.embed_tokens.weight\" is missing, which [dir]/a has; --take \
         \"model.embed_tokens.weight\" takes that of [dir]/a, --except \"model.embed_tokens.weight\" leaves it out",
    );
    is(
        "{}/few {}/a",
        "error: [dir]/few: tensor \"model.embed_tokens.weight\" is missing, which [dir]/a has; --except \
         \"model.embed_tokens.weight\" leaves it out",
    );
    // What the messages say works.
    run(dir.path(), &format!("blend {{}}/a {{}}/tokens -o {{}}/t {linear} --take model.embed_tokens.weight"))
        .clean();
    run(dir.path(), &format!("blend {{}}/few {{}}/a -o {{}}/f {linear} --except model.embed_tokens.weight"))
        .clean();
    for (options, why) in [
        ("{}/a --method linear --weight 1", "one model has nothing to be blended with"),
        ("{}/a {}/a", "no method is given: --method names one of linear, slerp"),
        ("{}/a {}/a --method linear", "no weights are given"),
        ("{}/a {}/a --method slerp", "slerp needs --t"),
        ("{}/a {}/a {}/a --method slerp --t 0.5", "slerp blends two models, not 3"),
        ("{}/a {}/a --method ties --weight 1", "ties blends differences from a base: --base names it"),
        ("{}/a {}/a --method linear --weight 1,-1", "the weights have the sum zero"),
        ("{}/a {}/a --method linear --weight 1,2 --base {}/a", "--base: no method that is used has a base"),
        ("{}/a {}/a --method linear --weight 1 --density 0.5", "linear has no density"),
        ("{}/a {}/a --method linear --weight 1 --seed 1", "--seed is of dare_linear and dare_ties"),
        ("{}/a {}/a --method ties --weight 1 --density 2 --base {}/a", "a density is 2; it must be"),
        ("{}/a {}/a --method linear --weight 1 --only y", "no tensor has a name that matches --only \"y\""),
        (
            "{}/a {}/a --method linear --weight 1 --take y",
            "no tensor that is blended has a name that matches \"y\"",
        ),
        ("{}/a {}/no --method linear --weight 1", "[dir]/no"),
    ] {
        let told = refused(dir.path(), options);
        assert!(told.contains(why) && told.lines().count() == 1, "{options}: {told}");
    }
}

#[test]
fn integers_must_be_the_same_and_values_must_fit() {
    let dir = tempfile::tempdir().unwrap();
    let model = |name: &str, ids: &[i64], value: f32| {
        let (ids, x) = (Values::new(&[2], ids).unwrap(), single(&[value]));
        let tensors: [(_, &dyn TensorData); 2] = [("ids", &ids), ("x", &x)];
        save(&dir.path().join(name), tensors);
    };
    model("a", &[1, 2], 60_000.0);
    model("b", &[1, 2], 60_000.0);
    model("c", &[1, 3], f32::NAN);
    let ran = run(dir.path(), "blend {}/a {}/b -o {}/same --method linear --weight 1");
    assert!(ran.stderr.contains("1 tensor by linear blended, 1 as before"), "{}", ran.stderr);
    assert_eq!(tensors(&dir.path().join("same"))["ids"], tensors(&dir.path().join("a"))["ids"]);
    let sum = "--method linear --weight 1,1 --normalize false";
    assert_eq!(
        refused(dir.path(), &format!("{{}}/a {{}}/c {sum}")),
        "error: tensor \"ids\": I64 is not blended, and it differs between [dir]/a and [dir]/c; --take \"ids\" takes that of \
         [dir]/a"
    );
    let told = refused(dir.path(), &format!("{{}}/a {{}}/b {sum} --to f16"));
    assert!(told.contains("tensor \"x\": 120000 of F32 does not fit F16; --overflow saturate"), "{told}");
    run(dir.path(), &format!("blend {{}}/a {{}}/b -o {{}}/most {sum} --to f16 --overflow saturate")).clean();
    assert_eq!(floats(&dir.path().join("most"), "x"), [65504.0]);
    // NaN stays, and has no angle.
    run(dir.path(), &format!("blend {{}}/a {{}}/c -o {{}}/nan {sum} --take ids")).clean();
    assert!(floats(&dir.path().join("nan"), "x")[0].is_nan());
    let told = refused(dir.path(), "{}/a {}/c --method slerp --t 0.5 --take ids");
    assert!(told.contains("tensor \"x\": slerp has no angle between values that are not finite"), "{told}");
}

#[test]
fn the_other_files_are_those_of_the_base_or_the_first_model() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a", "b", "base"] {
        llama(&dir.path().join(name), Some(4000));
        let config = format!("{{\"from\": \"{name}\", \"torch_dtype\": \"float32\"}}\n");
        fs::write(dir.path().join(name).join("config.json"), config).unwrap();
        fs::write(dir.path().join(name).join("tokenizer_config.json"), name).unwrap();
    }
    let text = |file: &str| fs::read_to_string(dir.path().join(file)).unwrap();
    run(dir.path(), "blend {}/a {}/b -o {}/first --method linear --weight 1 --to bf16 --max-shard-size 4KB")
        .clean();
    assert_eq!(text("first/config.json"), "{\"from\": \"a\", \"torch_dtype\": \"bfloat16\"}\n");
    assert_eq!(text("first/tokenizer_config.json"), "a");
    assert!(Checkpoint::open(dir.path().join("first")).unwrap().shards().len() > 1);
    run(dir.path(), "blend {}/a {}/b --base {}/base -o {}/second --method ties --weight 1 --density 0.5")
        .clean();
    assert_eq!(text("second/config.json"), "{\"from\": \"base\", \"torch_dtype\": \"float32\"}\n");
    // A model blended with itself is itself.
    assert!(tensors(&dir.path().join("second")) == tensors(&dir.path().join("a")));
    let ran = run(dir.path(), "blend {}/a {}/b -o {}/a --method linear --weight 1 --force");
    assert!(ran.stderr.contains("the checkpoint that is read is there"), "{}", ran.stderr);
}

#[test]
fn tokens_of_one_number_must_be_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let model = |name: &str, tokenizer: &str| {
        save(&dir.path().join(name), [("x", single(&[1.0]))]);
        fs::write(dir.path().join(name).join("tokenizer.json"), tokenizer).unwrap();
    };
    model("a", r#"{"added_tokens":[{"id":2,"content":"<s>"}],"model":{"vocab":{"one":0,"two":1}}}"#);
    model(
        "more",
        r#"{"added_tokens":[{"id":3,"content":"<t>"}],"model":{"vocab":[["one",-1.5],["two",0]]}}"#,
    );
    model("other", r#"{"model":{"vocab":{"one":0,"three":1},"merges":[]}}"#);
    model("broken", "{");
    let linear = "--method linear --weight 1";
    assert_eq!(
        refused(dir.path(), &format!("{{}}/a {{}}/other {linear}")),
        "error: [dir]/other: its token 1 is \"three\", that of [dir]/a is \"two\": the embeddings of different tokens make no \
         sense blended; --any-tokenizer blends them anyway"
    );
    assert!(refused(dir.path(), &format!("{{}}/a {{}}/broken {linear}")).contains("it is no tokenizer"));
    run(dir.path(), &format!("blend {{}}/a {{}}/other -o {{}}/o {linear} --any-tokenizer")).clean();
    let ran = run(dir.path(), &format!("blend {{}}/a {{}}/more -o {{}}/m {linear}"));
    let told = ran.without(dir.path());
    assert!(told.contains("warning: [dir]/more: it has 1 token that [dir]/a lacks"), "{told}");
    assert!(told.contains("warning: [dir]/a: it has 1 token that [dir]/more lacks"), "{told}");
}

#[test]
fn heads_that_are_tied_to_embeddings_stay_so() {
    let dir = tempfile::tempdir().unwrap();
    let model = |name: &str, value: f32, head: Option<f32>, tied: bool| {
        let (values, head) = ([value; 4], head.map(|head| [head; 4]));
        let mut tensors = vec![("model.embed_tokens.weight", Values::new(&[2, 2], &values).unwrap())];
        tensors.extend(head.as_ref().map(|head| ("lm_head.weight", Values::new(&[2, 2], head).unwrap())));
        save(&dir.path().join(name), tensors);
        let config = format!("{{\"tie_word_embeddings\": {tied}}}");
        fs::write(dir.path().join(name).join("config.json"), config).unwrap();
    };
    model("tied", 1.0, None, true);
    model("full", 3.0, Some(3.0), true);
    model("own", 3.0, Some(5.0), false);
    let linear = "--method linear --weight 1";
    // Both are tied, one has the head in full.
    let ran = run(dir.path(), &format!("blend {{}}/tied {{}}/full -o {{}}/both {linear}"));
    assert!(ran.stderr.contains("lm_head.weight: left out, it is tied to the embeddings"), "{}", ran.stderr);
    assert_eq!(tensors(&dir.path().join("both")).len(), 1);
    // The output's is not tied: the embeddings stand for the head of a model whose head they are.
    run(dir.path(), &format!("blend {{}}/own {{}}/tied -o {{}}/untied {linear}")).clean();
    assert_eq!(floats(&dir.path().join("untied"), "lm_head.weight"), [3.0; 4]);
    assert_eq!(floats(&dir.path().join("untied"), "model.embed_tokens.weight"), [2.0; 4]);
    let told = refused(dir.path(), &format!("{{}}/tied {{}}/own {linear}"));
    assert!(told.contains("[dir]/own: tensor \"lm_head.weight\" is not its embeddings"), "{told}");
}

#[test]
fn quantised_modules_are_weights_first() {
    let dir = tempfile::tempdir().unwrap();
    let dense: Vec<f32> = (0..256 * 128).map(|i| ((i * 37) % 1000) as f32 / 500.0 - 1.0).collect();
    let dense: Vec<_> = dense.into_iter().map(bf16::from_f32).collect();
    let up = Values::new(&[256, 128], &dense).unwrap();
    save(&dir.path().join("a"), [("up.weight", up)]);
    run(dir.path(), "quantize {}/a --method fp8 -o {}/q").clean();
    run(dir.path(), "dequantize {}/q --to f32 -o {}/d").clean();
    run(dir.path(), "blend {}/a {}/q -o {}/out --method linear --weight 1,3").clean();
    let out = tensors(&dir.path().join("out"));
    assert_eq!(out.keys().collect::<Vec<_>>(), ["up.weight"]);
    let (first, second) =
        (floats(&dir.path().join("a"), "up.weight"), floats(&dir.path().join("d"), "up.weight"));
    let expected = first.iter().zip(&second).map(|(a, b)| bf16::from_f32((a + b * 3.0) / 4.0).to_le_bytes());
    assert_eq!(out["up.weight"].0, Dtype::BF16);
    assert!(out["up.weight"].2 == expected.collect::<Vec<_>>().concat());
}
