//! What a pickle may import without harm, and what the machine makes of it.

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
