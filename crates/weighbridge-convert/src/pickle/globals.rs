//! What a pickle may import: which names are known to be harmless, and which to be dangerous.

use std::fmt;

/// What is known of a global.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// It makes data and nothing else.
    Harmless,
    /// Nothing is known about it.
    Unknown,
    /// It runs code, or reaches what does.
    Dangerous,
}

impl Verdict {
    /// One word: `dangerous`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Harmless => "harmless",
            Self::Unknown => "unknown",
            Self::Dangerous => "dangerous",
        }
    }

    /// What is known of `module.name`.
    pub fn of(module: &str, name: &str) -> Self {
        if Callable::of(module, name).is_some() {
            return Self::Harmless;
        }
        let top = module.split('.').next().unwrap_or(module);
        // Since protocol 4 a name may have dots, and reach any module that its own imports.
        let reaches =
            |name: &str| name.split('.').rev().skip(1).any(|part| DANGEROUS_MODULES.contains(&part));
        let dangerous = reaches(name)
            || DANGEROUS_MODULES.contains(&top)
            || DANGEROUS_MODULES.contains(&module)
            || (matches!(top, "builtins" | "__builtin__") && !name.starts_with(char::is_uppercase))
            || DANGEROUS.contains(&(module, name))
            || name.split('.').any(|part| part.starts_with("__"))
            || DANGEROUS_NAMES.contains(&name.rsplit('.').next().unwrap_or(name));
        if dangerous { Self::Dangerous } else { Self::Unknown }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Modules of which nothing belongs into a pickle: they run code or programs, reach files, networks or other modules.
const DANGEROUS_MODULES: [&str; 64] = [
    "os",
    "posix",
    "nt",
    "posixpath",
    "ntpath",
    "subprocess",
    "_posixsubprocess",
    "sys",
    "shutil",
    "socket",
    "_socket",
    "ssl",
    "requests",
    "urllib",
    "urllib2",
    "httplib",
    "http",
    "aiohttp",
    "httpx",
    "ftplib",
    "smtplib",
    "telnetlib",
    "webbrowser",
    "runpy",
    "importlib",
    "imp",
    "pkgutil",
    "zipimport",
    "pty",
    "commands",
    "asyncio",
    "multiprocessing",
    "threading",
    "_thread",
    "signal",
    "ctypes",
    "_ctypes",
    "cffi",
    "code",
    "codeop",
    "pdb",
    "bdb",
    "cProfile",
    "profile",
    "trace",
    "timeit",
    "doctest",
    "unittest",
    "pydoc",
    "inspect",
    "types",
    "marshal",
    "pickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "tempfile",
    "pip",
    "setuptools",
    "venv",
    "ensurepip",
    "operator",
    "_operator",
];

/// Single ones in modules that are not dangerous as a whole.
const DANGEROUS: [(&str, &str); 14] = [
    ("functools", "partial"),
    ("functools", "reduce"),
    ("itertools", "starmap"),
    ("torch", "load"),
    ("torch.serialization", "load"),
    ("torch.hub", "load"),
    ("torch.storage", "_load_from_bytes"),
    ("torch.jit", "load"),
    ("torch.ops", "load_library"),
    ("numpy", "load"),
    ("numpy", "fromfile"),
    ("numpy.testing._private.utils", "runstring"),
    ("codecs", "open"),
    ("io", "open"),
];

/// Names that run what they are given, in whatever module.
const DANGEROUS_NAMES: [&str; 14] = [
    "system",
    "popen",
    "exec",
    "eval",
    "execfile",
    "compile",
    "getattr",
    "setattr",
    "open",
    "spawn",
    "run",
    "call",
    "check_output",
    "Popen",
];

/// A harmless global, and what the interpreter makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Callable {
    /// `OrderedDict`, `dict`: of pairs.
    Dict,
    /// `defaultdict`: the first argument is dropped.
    DefaultDict,
    /// `list`, `tuple`, `set`, `torch.Size`: of one sequence.
    Sequence,
    /// `_codecs.encode`: bytes that are written as text.
    Encode,
    /// `bytearray`, `bytes`: of bytes.
    Bytes,
    RebuildTensor,
    RebuildTensorV2,
    RebuildTensorV3,
    RebuildParameter,
    RebuildQuantised,
    /// `torch._tensor._rebuild_from_type_v2`: a call within a call.
    RebuildFromType,
    /// What safetensors cannot hold, and what it is.
    Refused(&'static str),
    /// `torch.FloatStorage` and the like.
    Storage,
    /// `torch.float32` and the like.
    Dtype,
    NumpyReconstruct,
    NumpyFromBuffer,
    NumpyScalar,
    NumpyDtype,
    /// `numpy.ndarray`, and whatever else is only an argument.
    Marker,
    /// An object with attributes: `argparse.Namespace`, modules of `torch.nn`.
    Record,
    /// A value without a place in a checkpoint: a device, a date.
    Opaque,
}

impl Callable {
    pub(crate) fn of(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict" | "Counter") => Self::Dict,
            ("builtins" | "__builtin__", "dict") => Self::Dict,
            ("collections", "defaultdict") => Self::DefaultDict,
            ("collections", "deque") | ("torch", "Size") => Self::Sequence,
            ("builtins" | "__builtin__", "list" | "tuple" | "set" | "frozenset") => Self::Sequence,
            ("_codecs", "encode") => Self::Encode,
            ("builtins" | "__builtin__", "bytes" | "bytearray") => Self::Bytes,
            (
                "builtins" | "__builtin__",
                "int" | "long" | "float" | "bool" | "str" | "unicode" | "complex" | "slice" | "range"
                | "object",
            ) => Self::Opaque,
            ("torch._utils", "_rebuild_tensor") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensorV2,
            ("torch._utils", "_rebuild_tensor_v3") => Self::RebuildTensorV3,
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
                Self::RebuildParameter
            }
            ("torch._utils", "_rebuild_qtensor") => Self::RebuildQuantised,
            ("torch._tensor", "_rebuild_from_type_v2") => Self::RebuildFromType,
            ("torch._utils", "_rebuild_sparse_tensor") => Self::Refused("a sparse tensor"),
            ("torch._utils", "_rebuild_sparse_csr_tensor") => Self::Refused("a sparse tensor"),
            ("torch._utils", "_rebuild_nested_tensor") => Self::Refused("a nested tensor"),
            ("torch._utils", "_rebuild_meta_tensor_no_storage") => {
                Self::Refused("a tensor on the meta device")
            }
            ("torch._utils", "_rebuild_wrapper_subclass") => Self::Refused("a tensor of a class of its own"),
            ("torch._utils", "_rebuild_device_tensor_from_numpy") => {
                Self::Refused("a tensor of another device")
            }
            ("torch.storage", "UntypedStorage" | "_UntypedStorage") => Self::Storage,
            ("torch" | "torch.cuda", name) if super::element::of_storage(name).is_some() => Self::Storage,
            ("torch", name) if super::element::of_torch(name).is_some() => Self::Dtype,
            (
                "numpy.core.multiarray" | "numpy._core.multiarray" | "numpy.core._multiarray_umath",
                "_reconstruct",
            ) => Self::NumpyReconstruct,
            ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Self::NumpyScalar,
            ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer") => Self::NumpyFromBuffer,
            ("numpy", "dtype") => Self::NumpyDtype,
            ("numpy", "ndarray") => Self::Marker,
            ("numpy.dtypes", name) if name.ends_with("DType") => Self::Opaque,
            ("torch.nn.parameter", "Parameter" | "Buffer") | ("torch", "Tensor") => Self::Marker,
            ("torch", "device" | "strided" | "sparse_coo" | "per_tensor_affine" | "per_channel_affine") => {
                Self::Opaque
            }
            (
                "torch",
                "per_channel_affine_float_qparams" | "per_tensor_symmetric" | "per_channel_symmetric",
            ) => Self::Opaque,
            ("torch", "preserve_format" | "contiguous_format" | "channels_last" | "channels_last_3d") => {
                Self::Opaque
            }
            ("torch.serialization", "_get_layout") | ("torch._C", "_get_layout" | "Generator") => {
                Self::Opaque
            }
            ("torch._utils", "_set_obj_state") => Self::Opaque,
            ("argparse", "Namespace") | ("types", "SimpleNamespace") => Self::Record,
            ("datetime", "datetime" | "date" | "time" | "timedelta" | "timezone") => Self::Opaque,
            (
                "pathlib" | "pathlib._local",
                "PosixPath" | "WindowsPath" | "PurePosixPath" | "PureWindowsPath",
            ) => Self::Opaque,
            ("decimal", "Decimal") | ("fractions", "Fraction") | ("uuid", "UUID") => Self::Opaque,
            (module, name)
                if module.starts_with("torch.nn.modules.")
                    && name.starts_with(char::is_uppercase)
                    && !name.contains('.') =>
            {
                Self::Record
            }
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        let cases = [
            ("os", "system", Verdict::Dangerous),
            ("posix", "system", Verdict::Dangerous),
            ("builtins", "eval", Verdict::Dangerous),
            ("__builtin__", "getattr", Verdict::Dangerous),
            ("torch.hub", "load", Verdict::Dangerous),
            ("importlib.util", "find_spec", Verdict::Dangerous),
            ("torch", "os.system", Verdict::Dangerous),
            ("torch.nn.modules.linear", "Linear.__init__.__globals__", Verdict::Dangerous),
            ("sklearn.svm", "SVC", Verdict::Unknown),
            ("builtins", "ValueError", Verdict::Unknown),
            ("builtins", "set", Verdict::Harmless),
            ("collections", "OrderedDict", Verdict::Harmless),
            ("torch", "BFloat16Storage", Verdict::Harmless),
            ("torch", "float8_e4m3fn", Verdict::Harmless),
            ("torch.nn.modules.linear", "Linear", Verdict::Harmless),
        ];
        for (module, name, verdict) in cases {
            assert_eq!(Verdict::of(module, name), verdict, "{module}.{name}");
        }
    }
}
