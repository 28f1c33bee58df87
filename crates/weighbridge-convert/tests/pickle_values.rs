//! Values of Python in pickles: which names they get, what is refused, and that no tensor is lost without a word. The pickles
//! are put together here.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use support::code::{Code, dict, float, global, int, list, object, of, sparse, tensor, text, tuple};
use weighbridge::{Error, ErrorKind, Names, Result};
use weighbridge_convert::{Foreign, Format, Options};

fn open(value: &[u8], options: &Options) -> Result<Foreign> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file.pkl");
    std::fs::write(&path, [b"\x80\x04", value, b"."].concat()).unwrap();
    weighbridge_convert::open(path, options)
}

#[track_caller]
fn refused(value: &[u8], options: &Options) -> Error {
    open(value, options).unwrap_err()
}

/// Names and first bytes.
fn tensors(foreign: &Foreign) -> Vec<(String, u8)> {
    let read = |tensor: weighbridge::TensorRef<'_>| {
        let mut byte = [0];
        tensor.shard().source().read_at(tensor.info().file_range().start, &mut byte).unwrap();
        (tensor.name().to_owned(), byte[0])
    };
    foreign.checkpoint().tensors().map(read).collect()
}

fn named(expected: &[(&str, u8)]) -> Vec<(String, u8)> {
    expected.iter().map(|&(name, value)| (name.to_owned(), value)).collect()
}

fn notes(foreign: &Foreign) -> Vec<String> {
    foreign.notes().iter().map(ToString::to_string).collect()
}

fn only(glob: &str) -> Options {
    Options::new().only(Names::glob(glob).unwrap())
}

fn except(glob: &str) -> Options {
    Options::new().only(Names::all().except(Names::glob(glob).unwrap()))
}

#[test]
fn keys_of_one_text_are_refused() {
    let pair = tuple(&[int(1), int(2)]);
    let cases = [
        (int(1), text("1"), "1 and \"1\""),
        (b"N".to_vec(), text("null"), "None and \"null\""),
        (pair, text("[1,2]"), "(1, 2) and \"[1,2]\""),
        (float(2.5), text("2.5"), "2.5 and \"2.5\""),
        (b"\x88".to_vec(), text("true"), "True and \"true\""),
        (global("torch", "float32"), text("torch.float32"), "torch.float32 and \"torch.float32\""),
    ];
    for (first, second, names) in cases {
        for (value, other) in [(tensor(1), tensor(2)), (dict(&[(text("a"), tensor(1))]), int(5))] {
            let pairs = dict(&[(first.clone(), value), (text("x"), tensor(3)), (second.clone(), other)]);
            let error = refused(&pairs, &Options::new());
            assert_eq!(error.kind(), ErrorKind::DuplicateTensor, "{error}");
            assert!(error.to_string().ends_with(&format!("two keys have this name: {names}")), "{error}");
            let foreign = open(&pairs, &only("x")).unwrap();
            assert_eq!(tensors(&foreign), named(&[("x", 3)]));
        }
    }
}

#[test]
fn keys_that_are_one_to_python_are_one() {
    let pairs = [(int(1), tensor(1)), (b"\x88".to_vec(), tensor(2)), (float(1.0), tensor(3))];
    assert_eq!(tensors(&open(&dict(&pairs), &Options::new()).unwrap()), named(&[("1", 3)]));
    let pairs = [(text("a"), tensor(1)), (text("b"), tensor(2)), (text("a"), tensor(3))];
    assert_eq!(tensors(&open(&dict(&pairs), &Options::new()).unwrap()), named(&[("a", 3), ("b", 2)]));
    let key = || tuple(&[int(1), text("x")]);
    let pairs = [(key(), tensor(1)), (tuple(&[float(1.0), text("x")]), tensor(2))];
    assert_eq!(tensors(&open(&dict(&pairs), &Options::new()).unwrap()), named(&[("[1,\"x\"]", 2)]));
}

#[test]
fn names_that_join_to_one_are_refused_with_both_ways() {
    let inner = dict(&[(text("b"), tensor(1))]);
    let pairs = dict(&[(text("a.b"), tensor(2)), (text("a"), inner), (text("c"), tensor(3))]);
    let error = refused(&pairs, &Options::new());
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::DuplicateTensor, Some("a.b")));
    assert!(error.to_string().contains(r#"["a.b"] and ["a"]["b"]"#), "{error}");
    assert_eq!(tensors(&open(&pairs, &only("c")).unwrap()), named(&[("c", 3)]));
}

#[test]
fn keys_that_are_no_names_lose_nothing_silently() {
    let bytes = b"C\x01k".to_vec();
    let key = object("Key", &[int(1)], &[]);
    for (key, allowed) in [(bytes.clone(), ""), (key, "my.module.Key"), (tensor(9), "")] {
        let pairs = dict(&[(text("a"), tensor(1)), (key, dict(&[(text("b"), tensor(2))]))]);
        let options = Options::new().allow_global(allowed);
        let error = refused(&pairs, &options);
        assert!(error.to_string().contains("a key that cannot be a name"), "{error}");
        let foreign = open(&pairs, &options.clone().skip_unsupported()).unwrap();
        assert_eq!(tensors(&foreign), named(&[("a", 1)]));
        assert!(notes(&foreign).iter().any(|note| note.contains("cannot be a name")));
        assert_eq!(tensors(&open(&pairs, &options.only(Names::exact("a"))).unwrap()), named(&[("a", 1)]));
    }
    let foreign = open(&dict(&[(text("a"), tensor(1)), (bytes, int(2))]), &Options::new()).unwrap();
    assert!(notes(&foreign)[0].contains("key is not a name"));
}

#[test]
fn metadata_that_gives_way_is_told_of() {
    let value = dict(&[(text("w"), tensor(1)), (text("format"), text("mine"))]);
    let told = notes(&open(&value, &Options::new()).unwrap());
    assert_eq!(told[0], "dropped \"format\": the value \"mine\", replaced by \"pt\"");
    // The name of a tied tensor, which the metadata maps to the first.
    let tied = dict(&[
        (text("a"), [tensor(1), b"q\x01".to_vec()].concat()),
        (text("b.c"), text("mine")),
        (text("b"), dict(&[(text("c"), b"h\x01".to_vec())])),
    ]);
    let told = notes(&open(&tied, &Options::new()).unwrap());
    assert_eq!(told[0], "dropped \"b.c\": the value \"mine\", replaced by \"a\"");
}

#[test]
fn classes_of_torchscript_are_records() {
    let script = [global("__torch__.vad.___torch_mangle_1", "Model"), b")\x81".to_vec()].concat();
    let state = [dict(&[(text("w"), tensor(1))]), b"b".to_vec()].concat();
    let foreign = open(&[script, state].concat(), &Options::new()).unwrap();
    assert_eq!(tensors(&foreign), named(&[("w", 1)]));
    // A path through such a module is none of its classes.
    let other = [global("__torch__.a", "b.c"), b")\x81".to_vec()].concat();
    assert_eq!(refused(&other, &Options::new()).kind(), ErrorKind::Unsafe);
}

/// An archive of TorchScript.
fn script(root: &[u8], code: &str, constants: &[u8]) -> Result<Foreign> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("script.pt");
    let mut archive = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
    let pickle = |value: &[u8]| [b"\x80\x02", value, b"."].concat();
    for (name, bytes) in [
        ("m/data.pkl", pickle(root)),
        ("m/code/__torch__.py", code.as_bytes().to_vec()),
        ("m/constants.pkl", pickle(constants)),
    ] {
        let stored =
            zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        archive.start_file(name, stored).unwrap();
        std::io::Write::write_all(&mut archive, &bytes).unwrap();
    }
    archive.finish().unwrap();
    weighbridge_convert::open(&path, &Options::new())
}

fn script_object(attributes: &[(Code, Code)]) -> Code {
    [global("__torch__", "M"), b")\x81".to_vec(), dict(attributes), b"b".to_vec()].concat()
}

#[test]
fn parameters_of_torchscript_keep_their_names() {
    let code = "class M(Module):\n  __parameters__ = [\"weight\", ]\n  __buffers__ = []\n";
    // As an LSTM has it: the list comes first by name.
    let weight = || [tensor(1), b"q\x01".to_vec()].concat();
    let attributes = [
        (text("training"), b"\x89".to_vec()),
        (text("weight"), weight()),
        (text("_flat_weights"), list(&[b"h\x01".to_vec()])),
        (text("others"), list(&[tensor(2)])),
    ];
    let foreign = script(&script_object(&attributes), code, &tuple(&[tensor(3)])).unwrap();
    assert_eq!(tensors(&foreign), named(&[("weight", 1), ("others.0", 2)]));
    let told = notes(&foreign);
    let expected = [
        "dropped \"constants.pkl\": 1 tensor among the constants of the code, which its state_dict does not have",
        "kept \"others.0\": an attribute of a module, which its state_dict does not have",
    ];
    assert_eq!(told, expected);
    let foreign = script(&script_object(&attributes[..3]), code, &tuple(&[])).unwrap();
    assert_eq!((tensors(&foreign), notes(&foreign)), (named(&[("weight", 1)]), vec![]));
    // A frozen module has no attribute `training`: its constants are weights, beside those that stayed.
    let foreign = script(&script_object(&attributes[1..2]), code, &tuple(&[tensor(3)])).unwrap();
    assert_eq!(tensors(&foreign), named(&[("weight", 1), ("CONSTANTS.c0", 3)]));
}

#[test]
fn files_before_torch_1_6_may_be_of_protocol_1() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file.pt");
    let storage =
        of(b"(", &[text("storage"), global("torch", "FloatStorage"), text("0"), text("cpu"), int(1)], b"tQ");
    let args = tuple(&[
        storage,
        int(0),
        tuple(&[int(1)]),
        tuple(&[int(1)]),
        vec![b'I', b'0', b'0', b'\n'],
        dict(&[]),
    ]);
    let object =
        dict(&[(text("w"), [global("torch._utils", "_rebuild_tensor_v2"), args, b"R".to_vec()].concat())]);
    let file = [
        &b"L119547037146038801333356L\n.M\xe9\x03.}."[..],
        &object,
        b".](",
        &text("0"),
        b"e.",
        &1_u64.to_le_bytes(),
        &2.5_f32.to_le_bytes(),
    ];
    std::fs::write(&path, file.concat()).unwrap();
    let foreign = weighbridge_convert::open(&path, &Options::new()).unwrap();
    assert_eq!(foreign.format(), Format::TorchLegacy);
    assert_eq!(tensors(&foreign), named(&[("w", 2.5_f32.to_le_bytes()[0])]));
}

#[test]
fn the_empty_key_is_a_name() {
    let inner = dict(&[(text(""), tensor(1)), (text("a"), tensor(2))]);
    let pairs = dict(&[(text(""), tensor(3)), (text("x"), inner.clone())]);
    let foreign = open(&pairs, &Options::new()).unwrap();
    assert_eq!(tensors(&foreign), named(&[("", 3), ("x.", 1), ("x.a", 2)]));
    let foreign = open(&dict(&[(text(""), inner)]), &Options::new()).unwrap();
    assert_eq!(tensors(&foreign), named(&[(".", 1), (".a", 2)]));
    assert_eq!(tensors(&open(&tensor(7), &Options::new()).unwrap()), named(&[("tensor", 7)]));
}

#[test]
fn objects_keep_what_they_were_made_of() {
    let build = |state: Code| [state, b"b".to_vec()].concat();
    let attributes = |name: &str, value| dict(&[(text(name), tensor(value))]);
    let slots = tuple(&[b"N".to_vec(), attributes("s", 1)]);
    let both = tuple(&[attributes("a", 1), attributes("s", 2)]);
    let items = of(b"(", &[tensor(1), tensor(2)], b"e");
    let entries = of(b"(", &[text("k"), tensor(1)], b"u");
    let cases: Vec<(Code, Vec<(&str, u8)>)> = vec![
        (object("A", &[], &[build(attributes("w", 1))]), vec![("o.w", 1)]),
        (object("A", &[], &[build(slots)]), vec![("o.s", 1)]),
        (object("A", &[], &[build(both)]), vec![("o.a", 1), ("o.s", 2)]),
        (object("A", &[], &[build(tuple(&[int(1), tensor(2)]))]), vec![("o.1", 2)]),
        (object("A", &[], &[build(list(&[tensor(1), tensor(2)]))]), vec![("o.0", 1), ("o.1", 2)]),
        (object("A", &[], &[build(tensor(4))]), vec![("o.state", 4)]),
        (
            object("A", &[], &[build(attributes("x", 1)), build(attributes("y", 2))]),
            vec![("o.x", 1), ("o.y", 2)],
        ),
        // Named tuples.
        (object("A", &[tensor(1), int(5), tensor(2)], &[]), vec![("o.0", 1), ("o.2", 2)]),
        (object("A", &[], std::slice::from_ref(&items)), vec![("o.0", 1), ("o.1", 2)]),
        (object("A", &[tensor(9)], &[items]), vec![("o.0", 9), ("o.1", 1), ("o.2", 2)]),
        (object("A", &[], &[entries, build(attributes("w", 2))]), vec![("o.k", 1), ("o.w", 2)]),
        (object("A", &[list(&[tensor(1)])], &[]), vec![("o.0.0", 1)]),
    ];
    for (value, expected) in cases {
        let foreign =
            open(&dict(&[(text("o"), value)]), &Options::new().allow_global("my.module.A")).unwrap();
        assert_eq!(tensors(&foreign), named(&expected));
    }
    // As protocols 0 and 1 have them.
    let reconstructor = |base: &str, state: Code| {
        let args = tuple(&[global("my.module", "A"), global("__builtin__", base), state]);
        [global("copy_reg", "_reconstructor"), args, b"R".to_vec()].concat()
    };
    let cases = [
        ([reconstructor("object", b"N".to_vec()), build(attributes("w", 1))].concat(), named(&[("w", 1)])),
        (reconstructor("tuple", tuple(&[tensor(1), tensor(2)])), named(&[("0", 1), ("1", 2)])),
        (reconstructor("dict", attributes("k", 1)), named(&[("k", 1)])),
        (reconstructor("list", list(&[tensor(3)])), named(&[("0", 3)])),
    ];
    for (value, expected) in cases {
        assert_eq!(tensors(&open(&value, &Options::new().allow_global("my.*")).unwrap()), expected);
    }
}

#[test]
fn tensors_beside_the_content_are_told_of() {
    let state = dict(&[(text("extra"), tensor(1))]);
    let ordered = [global("collections", "OrderedDict"), b")R".to_vec()].concat();
    let with_attribute =
        [ordered.clone(), of(b"(", &[text("w"), tensor(2)], b"u"), state, b"b".to_vec()].concat();
    let foreign = open(&with_attribute, &Options::new()).unwrap();
    assert_eq!(tensors(&foreign), named(&[("w", 2)]));
    assert!(notes(&foreign)[0].contains("beside its content: 1 tensor"), "{:?}", notes(&foreign));
    // What `state_dict` makes for itself.
    let own = [ordered, dict(&[(text("_metadata"), dict(&[]))]), b"b".to_vec()].concat();
    assert!(
        notes(&open(&dict(&[(text("a"), own), (text("b"), tensor(1))]), &Options::new()).unwrap()).len() <= 1
    );
    let device = [global("torch", "device"), tuple(&[tensor(1)]), b"R".to_vec()].concat();
    let foreign = open(&dict(&[(text("d"), device), (text("w"), tensor(2))]), &Options::new()).unwrap();
    assert!(notes(&foreign).iter().any(|note| note.contains("arguments that it has beside")));
    // Tensors in sets have numbers.
    let set = of(b"\x8f(", &[tensor(1)], b"\x90");
    assert_eq!(tensors(&open(&dict(&[(text("s"), set)]), &Options::new()).unwrap()), named(&[("s.0", 1)]));
    // Arrays in an array of objects, too.
    let dtype = [global("numpy", "dtype"), text("O8"), b"\x85R".to_vec()].concat();
    let state = tuple(&[int(1), tuple(&[int(1)]), dtype, b"\x89".to_vec(), list(&[tensor(5)])]);
    let array =
        [global("numpy.core.multiarray", "_reconstruct"), b")R".to_vec(), state, b"b".to_vec()].concat();
    assert_eq!(tensors(&open(&dict(&[(text("o"), array)]), &Options::new()).unwrap()), named(&[("o.0", 5)]));
}

#[test]
fn values_that_hold_themselves_are_cut() {
    let node = |inner: &[u8]| [b"}\x94X\x02\0\0\0up".to_vec(), inner.to_vec(), b"s".to_vec()].concat();
    let foreign =
        open(&dict(&[(text("cfg"), node(b"h\0")), (text("w"), tensor(1))]), &Options::new()).unwrap();
    assert_eq!(tensors(&foreign), named(&[("w", 1)]));
    assert_eq!(notes(&foreign), [r#"dropped "cfg.up": it holds itself"#]);
    // Nested too deeply, without a tensor and with one.
    let deep = |inner: Code| [vec![b']'; 300], inner, vec![b'a'; 300]].concat();
    let foreign = open(&dict(&[(text("d"), deep(int(1))), (text("w"), tensor(1))]), &Options::new()).unwrap();
    assert!(notes(&foreign).iter().any(|note| note.ends_with("it is nested too deeply")));
    let pairs = dict(&[(text("d"), deep(tensor(2))), (text("w"), tensor(1))]);
    assert!(refused(&pairs, &Options::new()).to_string().contains("nested too deeply: 1 tensor"));
    assert_eq!(tensors(&open(&pairs, &only("w")).unwrap()), named(&[("w", 1)]));
}

#[test]
fn what_is_not_chosen_is_not_refused() {
    let pairs = dict(&[(text("w"), tensor(1)), (text("s"), sparse())]);
    assert_eq!(refused(&pairs, &Options::new()).tensor(), Some("s"));
    assert_eq!(tensors(&open(&pairs, &only("w")).unwrap()), named(&[("w", 1)]));
    assert_eq!(tensors(&open(&pairs, &except("s")).unwrap()), named(&[("w", 1)]));
    assert!(refused(&pairs, &only("s")).to_string().contains("sparse"));
    // Of two names of one tensor the other may be the chosen one.
    let tied = [b"}".to_vec(), text("a"), tensor(1), b"\x94s".to_vec(), text("b"), b"h\0s".to_vec()].concat();
    assert_eq!(tensors(&open(&tied, &only("b")).unwrap()), named(&[("b", 1)]));
}

#[test]
fn unknown_classes_matter_only_where_something_is_wanted() {
    let state = [dict(&[(text("lr"), int(1)), (text("t"), tensor(2))]), b"b".to_vec()].concat();
    let config = object("Config", &[], &[state]);
    let pairs = dict(&[(text("w"), tensor(1)), (text("hp"), config)]);
    let error = refused(&pairs, &Options::new());
    assert_eq!(error.kind(), ErrorKind::Unsafe);
    assert!(error.to_string().contains("my.module.Config"), "{error}");
    for options in [except("hp.*"), except("hp*"), only("w")] {
        let foreign = open(&pairs, &options).unwrap();
        assert_eq!(tensors(&foreign), named(&[("w", 1)]));
        assert_eq!(foreign.save().metadata_value("hp.lr"), None);
        assert!(notes(&foreign)[0].contains("an object of my.module.Config, which is not known"));
    }
    for options in [only("hp.t"), only("*t"), except("w")] {
        assert_eq!(refused(&pairs, &options).kind(), ErrorKind::Unsafe);
    }
    // What is called and thrown away is called for what it does.
    let thrown = [object("Effect", &[], &[]), b"0".to_vec(), pairs.clone()].concat();
    assert!(refused(&thrown, &only("w")).to_string().contains("Effect"));
    let evil = [global("os", "system"), text("true"), b"\x85R0".to_vec(), pairs].concat();
    assert!(refused(&evil, &only("w").skip_unsupported()).to_string().contains("os.system"));
    // The class of a tensor that is left out.
    let wrapper =
        [global("torch._utils", "_rebuild_wrapper_subclass"), tuple(&[global("my", "T")]), b"R".to_vec()];
    let pairs = dict(&[(text("w"), tensor(1)), (text("x"), wrapper.concat())]);
    let error = refused(&pairs, &Options::new());
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Unsupported, Some("x")));
    let foreign = open(&pairs, &Options::new().skip_unsupported()).unwrap();
    assert_eq!(tensors(&foreign), named(&[("w", 1)]));
}

#[test]
fn all_missing_globals_are_listed() {
    let of_class = |name: &str| object(name, &[], &[]);
    let value = list(&[of_class("A"), of_class("B"), of_class("A"), global("os", "system"), of_class("C")]);
    let error = refused(&value, &Options::new()).to_string();
    let dangerous = r#"imports "os.system", which is dangerous;"#;
    assert!(error.contains(dangerous), "{error}");
    assert!(
        error.contains(r#"and "my.module.A", "my.module.B" and "my.module.C", which are not known"#),
        "{error}"
    );
    let many: Vec<Code> = (0..25).map(|number| of_class(&format!("A{number}"))).collect();
    let error = refused(&list(&many), &Options::new()).to_string();
    assert!(error.contains(r#""my.module.A19" and 5 more, which are not known"#), "{error}");
}

#[test]
fn globs_allow_what_is_unknown_and_nothing_dangerous() {
    let value = list(&[object("A", &[], &[]), object("B", &[], &[]), tensor(1)]);
    for allowed in ["my.*", "my.module.?", "my.module.{A,B}", "*"] {
        let foreign = open(&value, &Options::new().allow_global(allowed)).unwrap();
        assert_eq!(tensors(&foreign), named(&[("2", 1)]));
    }
    assert!(
        refused(&value, &Options::new().allow_global("my.module.[B-Z]")).to_string().contains("module.A")
    );
    let evil = [global("os", "system"), text("true"), b"\x85R".to_vec()].concat();
    assert_eq!(refused(&evil, &Options::new().allow_global("*")).kind(), ErrorKind::Unsafe);
    assert_eq!(refused(&value, &Options::new().allow_global("[")).kind(), ErrorKind::Pattern);
}

#[test]
fn harmless_values_raise_no_alarm() {
    let call =
        |module: &str, name: &str, args: &[Code]| [global(module, name), tuple(args), b"R".to_vec()].concat();
    let generator =
        call("numpy.random._pickle", "__bit_generator_ctor", &[global("numpy.random._pcg64", "PCG64")]);
    let values = [
        call("__builtin__", "xrange", &[int(0), int(3), int(1)]),
        call("builtins", "range", &[int(0), int(3), int(1)]),
        call("__builtin__", "slice", &[int(0), int(3), b"N".to_vec()]),
        call("builtins", "complex", &[float(0.0), float(1.0)]),
        global("builtins", "Ellipsis"),
        global("numpy", "float32"),
        global("numpy", "bool_"),
        global("torch.nn.functional", "relu"),
        global("torch._C._nn", "gelu"),
        global("typing", "Any"),
        call("collections", "deque", &[list(&[int(1)]), int(5)]),
        call("collections", "Counter", &[dict(&[(text("a"), int(1))])]),
        [call("collections", "ChainMap", &[]), dict(&[(text("maps"), list(&[]))]), b"b".to_vec()].concat(),
        [call("numpy.random._pickle", "__generator_ctor", &[generator]), dict(&[]), b"b".to_vec()].concat(),
        call("datetime", "date", &[b"C\x04\x07\xea\x01\x01".to_vec()]),
    ];
    for value in values {
        let foreign = open(&dict(&[(text("w"), tensor(1)), (text("v"), value)]), &Options::new()).unwrap();
        assert_eq!(tensors(&foreign), named(&[("w", 1)]));
        assert_eq!(foreign.notes().len(), 1, "{:?}", notes(&foreign));
    }
    // Neither classes nor modules: what `torch.nn` imports for itself.
    for name in ["F", "T", "Any", "warnings"] {
        let value = [global("torch.nn.modules.activation", name), dict(&[]), b"b".to_vec()].concat();
        assert_eq!(refused(&value, &Options::new()).kind(), ErrorKind::Unsafe, "{name}");
    }
}

#[test]
fn protocols_0_and_1_are_recognised() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("old.pkl");
    let array = "cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I3\ntcnumpy\ndtype\n\
        (S'u1'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\nS'abc'\ntb";
    let protocol_0 = format!("(dp0\nS'w'\np1\n{array}s.");
    std::fs::write(&path, &protocol_0).unwrap();
    let foreign = weighbridge_convert::open(&path, &Options::new()).unwrap();
    assert_eq!((foreign.format(), tensors(&foreign)), (Format::Pickle, named(&[("w", b'a')])));
    // Protocol 1, which has no mark of its own either.
    std::fs::write(&path, [b"}q\0U\x01wq\x01", array.as_bytes(), b"s."].concat()).unwrap();
    assert_eq!(tensors(&weighbridge_convert::open(&path, &Options::new()).unwrap()), named(&[("w", b'a')]));
    // A refusal names what is imported.
    std::fs::write(&path, "(dp0\nS'w'\ncos\nsystem\n(S'true'\ntRs.").unwrap();
    let error = weighbridge_convert::open(&path, &Options::new()).unwrap_err();
    assert!(error.to_string().contains("os.system"), "{error}");
    // Other files are none.
    for other in ["N.B. text", "hello", "(((", "I1", &protocol_0[..50], &format!("{protocol_0}and more")] {
        std::fs::write(&path, other).unwrap();
        let error = weighbridge_convert::open(&path, &Options::new()).unwrap_err();
        assert!(error.to_string().contains("its format is not recognised"), "{other}: {error}");
    }
}

#[test]
fn types_of_ml_dtypes_are_read() {
    let array = |name: &str, swap: &str, bytes: &[u8]| {
        let dtype = [
            global("numpy", "dtype"),
            tuple(&[global("ml_dtypes", name), b"\x89".to_vec(), b"\x88".to_vec()]),
        ];
        let state =
            [vec![b'('], int(3), text(swap), b"NNN".to_vec(), int(2), int(2), int(64), b"tb".to_vec()];
        let dtype = [dtype.concat(), b"R".to_vec(), state.concat()].concat();
        let data = [&[b'C', bytes.len() as u8], bytes].concat();
        let args = tuple(&[data, dtype, [int(1), vec![0x85]].concat(), text("C")]);
        [global("numpy._core.numeric", "_frombuffer"), args, b"R".to_vec()].concat()
    };
    let foreign = open(&array("bfloat16", "<", b"\x80\x3f"), &Options::new()).unwrap();
    let tensor = foreign.checkpoint().tensor("tensor").unwrap();
    assert_eq!((tensor.dtype(), tensor.shape()), (weighbridge::Dtype::BF16, &[1][..]));
    assert_eq!(tensors(&foreign), named(&[("tensor", 0x80)]));
    assert_eq!(tensors(&open(&array("float8_e5m2", "|", b"\x3c"), &Options::new()).unwrap())[0].1, 0x3c);
    assert_eq!(refused(&array("int4", "|", b"\x07"), &Options::new()).kind(), ErrorKind::Unsupported);
}
