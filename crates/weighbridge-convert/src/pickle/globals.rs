//! What a pickle may import without harm, and what the machine makes of it.

/// A harmless global, and what the interpreter makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Callable {
    /// `OrderedDict`, `dict`: of pairs.
    Dict,
    /// `defaultdict`: the first argument makes missing values.
    DefaultDict,
    /// `list`, `tuple`, `torch.Size`: of one sequence.
    Sequence,
    /// `set`, `frozenset`: of one sequence.
    Set,
    /// `_codecs.encode`: bytes that are written as text.
    Encode,
    /// `bytearray`, `bytes`: of bytes.
    Bytes,
    /// What returns its first argument.
    Same,
    /// `copyreg._reconstructor`: an object of a class, as protocols 0 and 1 write it.
    Reconstructor,
    /// `copyreg.__newobj__`: an object of a class.
    NewObject,
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
    /// `ml_dtypes.bfloat16` and the like, which NumPy takes for types of elements.
    MlDtype,
    /// `numpy.ndarray`, and whatever else is only an argument.
    Marker,
    /// An object with attributes: `argparse.Namespace`, modules of `torch.nn` and of TorchScript.
    Record,
    /// A value without a place in a checkpoint: a device, a date.
    Opaque,
}

impl Callable {
    pub(crate) fn of(module: &str, name: &str) -> Option<Self> {
        // Python 2 calls it `__builtin__`, and so do protocols 0 to 2.
        let module = match module {
            "__builtin__" => "builtins",
            "copy_reg" => "copyreg",
            "numpy._core.multiarray" | "numpy.core._multiarray_umath" | "numpy._core._multiarray_umath" => {
                "numpy.core.multiarray"
            }
            module => module,
        };
        let parts = match module.split_once('.') {
            Some(("torch", _)) => Self::of_torch_part,
            Some(("numpy", _)) => Self::of_numpy,
            Some(("__torch__", _)) => Self::of_script,
            Some(_) => Self::of_python,
            None => match module {
                "torch" => Self::of_torch,
                "numpy" => Self::of_numpy,
                "__torch__" => Self::of_script,
                _ => Self::of_python,
            },
        };
        parts(module, name)
    }

    /// Constructors of the standard library that make a value of what they are given, and constants. The classes take attributes
    /// from `BUILD` for the one object.
    fn of_python(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict" | "Counter") | ("builtins", "dict") => Self::Dict,
            ("collections", "defaultdict") => Self::DefaultDict,
            ("collections", "deque") | ("builtins", "list" | "tuple") => Self::Sequence,
            ("builtins", "set" | "frozenset") => Self::Set,
            ("_codecs", "encode") => Self::Encode,
            ("builtins", "bytes" | "bytearray") => Self::Bytes,
            ("builtins", "int" | "long" | "float" | "bool" | "complex" | "str" | "unicode") => Self::Opaque,
            ("builtins", "slice" | "range" | "xrange" | "object") => Self::Opaque,
            ("builtins", "Ellipsis" | "NotImplemented") | ("typing", "Any") => Self::Opaque,
            // Both call the constructor of what they are given, which is a global, too.
            ("copyreg", "_reconstructor") => Self::Reconstructor,
            ("copyreg", "__newobj__") => Self::NewObject,
            ("argparse", "Namespace") | ("types", "SimpleNamespace") => Self::Record,
            ("collections", "ChainMap" | "UserDict" | "UserList") => Self::Record,
            ("datetime", "datetime" | "date" | "time" | "timedelta" | "timezone") => Self::Opaque,
            (
                "pathlib" | "pathlib._local",
                "PosixPath" | "WindowsPath" | "PurePosixPath" | "PureWindowsPath",
            ) => Self::Opaque,
            ("decimal", "Decimal") | ("fractions", "Fraction") | ("uuid", "UUID") => Self::Opaque,
            ("ml_dtypes", name) if ML_DTYPES.contains(&name) => Self::MlDtype,
            // Enumerations and scales in what DeepSpeed's ranks write.
            (module, name) if is_of_deepspeed(module, name) => Self::Record,
            _ => return None,
        })
    }

    fn of_torch(_: &str, name: &str) -> Option<Self> {
        Some(match name {
            "Size" => Self::Sequence,
            "Tensor" => Self::Marker,
            name if is_storage(name) => Self::Storage,
            name if is_dtype(name) => Self::Dtype,
            "device" | "strided" | "sparse_coo" | "per_tensor_affine" | "per_channel_affine" => Self::Opaque,
            "per_channel_affine_float_qparams" | "per_tensor_symmetric" | "per_channel_symmetric" => {
                Self::Opaque
            }
            "preserve_format" | "contiguous_format" | "channels_last" | "channels_last_3d" => Self::Opaque,
            _ => return None,
        })
    }

    fn of_torch_part(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("torch._utils", "_rebuild_tensor") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensorV2,
            ("torch._utils", "_rebuild_tensor_v3") => Self::RebuildTensorV3,
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
                Self::RebuildParameter
            }
            ("torch._utils", "_rebuild_qtensor") => Self::RebuildQuantised,
            ("torch._tensor", "_rebuild_from_type_v2") => Self::RebuildFromType,
            ("torch._utils", "_rebuild_sparse_tensor" | "_rebuild_sparse_csr_tensor") => {
                Self::Refused("a sparse tensor")
            }
            ("torch._utils", "_rebuild_nested_tensor")
            | ("torch.nested._internal.nested_tensor", "_rebuild_njt") => Self::Refused("a nested tensor"),
            ("torch._utils", "_rebuild_meta_tensor_no_storage") => {
                Self::Refused("a tensor on the meta device")
            }
            ("torch._utils", "_rebuild_wrapper_subclass") => Self::Refused("a tensor of a class of its own"),
            (
                "torch._utils",
                "_rebuild_device_tensor_from_numpy" | "_rebuild_device_tensor_from_cpu_tensor",
            ) => Self::Refused("a tensor of another device"),
            ("torch.nn.parameter", "UninitializedParameter" | "UninitializedBuffer") => {
                Self::Refused("a parameter without values yet")
            }
            ("torch.storage", "UntypedStorage" | "_UntypedStorage") => Self::Storage,
            ("torch.cuda", name) if is_storage(name) => Self::Storage,
            ("torch.nn.parameter", "Parameter" | "Buffer")
            | ("torch.nested._internal.nested_tensor", "NestedTensor") => Self::Marker,
            ("torch.serialization" | "torch._C", "_get_layout") => Self::Opaque,
            ("torch._C", "Generator") | ("torch._utils", "_set_obj_state") => Self::Opaque,
            // They return the value with a type for the interpreter of TorchScript.
            (
                "torch.jit._pickle",
                "restore_type_tag" | "build_intlist" | "build_tensorlist" | "build_doublelist"
                | "build_boollist",
            ) => Self::Same,
            // Activations, which modules keep as attributes.
            ("torch.nn.functional" | "torch._C._nn", name) if ACTIVATIONS.contains(&name) => Self::Opaque,
            (module, name) if super::torch_nn::is_class(module, name) => Self::Record,
            // Dataclasses and enumerations that say where the chunks of a distributed checkpoint are.
            (module, name) if crate::dcp::is_class(module, name) => Self::Record,
            _ => return None,
        })
    }

    /// Objects of TorchScript. No Python module has such a name; only the interpreter of the archive knows it.
    fn of_script(module: &str, name: &str) -> Option<Self> {
        match module {
            _ if name.contains('.') => None,
            module if module.starts_with("__torch__.torch.classes.") => {
                Some(Self::Refused("a packed object of torch.classes"))
            }
            _ => Some(Self::Record),
        }
    }

    fn of_numpy(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("numpy.core.multiarray", "_reconstruct") => Self::NumpyReconstruct,
            ("numpy.core.multiarray", "scalar") => Self::NumpyScalar,
            ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer") => Self::NumpyFromBuffer,
            ("numpy", "dtype") => Self::NumpyDtype,
            ("numpy", "ndarray" | "matrix") | ("numpy.matrixlib.defmatrix", "matrix") => Self::Marker,
            ("numpy.dtypes", name) if name.ends_with("DType") && !name.contains('.') => Self::Opaque,
            // The types of scalars.
            ("numpy", name) if SCALARS.contains(&name) => Self::Opaque,
            // States of generators. These call what they are given with a name or nothing, which is a global, too, and
            // could be called without them.
            ("numpy.random._pickle", "__randomstate_ctor" | "__bit_generator_ctor" | "__generator_ctor") => {
                Self::Opaque
            }
            (
                "numpy.random._mt19937"
                | "numpy.random._pcg64"
                | "numpy.random._philox"
                | "numpy.random._sfc64",
                "MT19937" | "PCG64" | "PCG64DXSM" | "Philox" | "SFC64",
            ) => Self::Opaque,
            ("numpy.random.bit_generator", "__pyx_unpickle_SeedSequence" | "SeedSequence") => Self::Opaque,
            _ => return None,
        })
    }
}

fn is_storage(name: &str) -> bool {
    super::element::of_storage(name).is_some() || super::element::unread_storage(name).is_some()
}

fn is_dtype(name: &str) -> bool {
    super::element::of_torch(name).is_some() || super::element::is_unread(name)
}

/// The functions of `torch.nn.functional` that layers take as activations.
const ACTIVATIONS: [&str; 35] = [
    "celu",
    "elu",
    "elu_",
    "gelu",
    "glu",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "hardtanh_",
    "leaky_relu",
    "leaky_relu_",
    "log_sigmoid",
    "log_softmax",
    "logsigmoid",
    "mish",
    "normalize",
    "prelu",
    "relu",
    "relu6",
    "relu_",
    "rrelu",
    "selu",
    "sigmoid",
    "silu",
    "softmax",
    "softmin",
    "softplus",
    "softshrink",
    "softsign",
    "swish",
    "tanh",
    "tanhshrink",
    "threshold",
    "gumbel_softmax",
];

const SCALARS: [&str; 28] = [
    "bool",
    "bool_",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "intc",
    "uintc",
    "intp",
    "uintp",
    "longlong",
    "ulonglong",
    "float16",
    "float32",
    "float64",
    "longdouble",
    "float128",
    "complex64",
    "complex128",
    "str_",
    "bytes_",
    "void",
    "datetime64",
    "timedelta64",
];

/// All that are, read or not.
const ML_DTYPES: [&str; 19] = [
    "bfloat16",
    "float8_e3m4",
    "float8_e4m3",
    "float8_e4m3b11fnuz",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "float6_e2m3fn",
    "float6_e3m2fn",
    "float4_e2m1fn",
    "int1",
    "int2",
    "int4",
    "uint1",
    "uint2",
    "uint4",
    "complex32",
];

/// Whether a class of DeepSpeed only holds values: what is read of its objects is a record of these.
fn is_of_deepspeed(module: &str, name: &str) -> bool {
    matches!(
        (module, name),
        ("deepspeed.runtime.zero.config", "ZeroStageEnum")
            | ("deepspeed.runtime.fp16.loss_scaler", "LossScaler" | "DynamicLossScaler" | "LossScalerBase")
            | ("deepspeed.utils.tensor_fragment", "fragment_address")
    )
}
