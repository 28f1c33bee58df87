//! The classes of modules in `torch.nn`, of PyTorch 2 and what older versions had. Other names in its modules may be functions,
//! types or whole modules of Python that they import.

/// Modules below `torch.nn.modules`, and the classes that each defines.
const CLASSES: [(&str, &[&str]); 22] = [
    (
        "activation",
        &[
            "CELU",
            "ELU",
            "GELU",
            "GLU",
            "Hardshrink",
            "Hardsigmoid",
            "Hardswish",
            "Hardtanh",
            "LeakyReLU",
            "LogSigmoid",
            "LogSoftmax",
            "Mish",
            "MultiheadAttention",
            "PReLU",
            "RReLU",
            "ReLU",
            "ReLU6",
            "SELU",
            "SiLU",
            "Sigmoid",
            "Softmax",
            "Softmax2d",
            "Softmin",
            "Softplus",
            "Softshrink",
            "Softsign",
            "Tanh",
            "Tanhshrink",
            "Threshold",
        ],
    ),
    ("adaptive", &["AdaptiveLogSoftmaxWithLoss"]),
    (
        "batchnorm",
        &[
            "BatchNorm1d",
            "BatchNorm2d",
            "BatchNorm3d",
            "LazyBatchNorm1d",
            "LazyBatchNorm2d",
            "LazyBatchNorm3d",
            "SyncBatchNorm",
            "_BatchNorm",
            "_LazyNormBase",
            "_NormBase",
        ],
    ),
    ("channelshuffle", &["ChannelShuffle"]),
    ("container", &["Container", "ModuleDict", "ModuleList", "ParameterDict", "ParameterList", "Sequential"]),
    (
        "conv",
        &[
            "Conv1d",
            "Conv2d",
            "Conv3d",
            "ConvTranspose1d",
            "ConvTranspose2d",
            "ConvTranspose3d",
            "LazyConv1d",
            "LazyConv2d",
            "LazyConv3d",
            "LazyConvTranspose1d",
            "LazyConvTranspose2d",
            "LazyConvTranspose3d",
            "_ConvNd",
            "_ConvTransposeMixin",
            "_ConvTransposeNd",
        ],
    ),
    ("distance", &["CosineSimilarity", "PairwiseDistance"]),
    (
        "dropout",
        &[
            "AlphaDropout",
            "Dropout",
            "Dropout1d",
            "Dropout2d",
            "Dropout3d",
            "FeatureAlphaDropout",
            "_DropoutNd",
        ],
    ),
    ("flatten", &["Flatten", "Unflatten"]),
    ("fold", &["Fold", "Unfold"]),
    (
        "instancenorm",
        &[
            "InstanceNorm1d",
            "InstanceNorm2d",
            "InstanceNorm3d",
            "LazyInstanceNorm1d",
            "LazyInstanceNorm2d",
            "LazyInstanceNorm3d",
            "_InstanceNorm",
        ],
    ),
    (
        "linear",
        &[
            "Bilinear",
            "Identity",
            "LazyLinear",
            "Linear",
            "NonDynamicallyQuantizableLinear",
            "_LinearWithBias",
        ],
    ),
    (
        "loss",
        &[
            "BCELoss",
            "BCEWithLogitsLoss",
            "CTCLoss",
            "CosineEmbeddingLoss",
            "CrossEntropyLoss",
            "GaussianNLLLoss",
            "HingeEmbeddingLoss",
            "HuberLoss",
            "KLDivLoss",
            "L1Loss",
            "LinearCrossEntropyLoss",
            "MSELoss",
            "MarginRankingLoss",
            "MultiLabelMarginLoss",
            "MultiLabelSoftMarginLoss",
            "MultiMarginLoss",
            "NLLLoss",
            "NLLLoss2d",
            "PoissonNLLLoss",
            "SmoothL1Loss",
            "SoftMarginLoss",
            "TripletMarginLoss",
            "TripletMarginWithDistanceLoss",
            "_Loss",
            "_WeightedLoss",
        ],
    ),
    ("module", &["Module"]),
    ("normalization", &["CrossMapLRN2d", "GroupNorm", "LayerNorm", "LocalResponseNorm", "RMSNorm"]),
    (
        "padding",
        &[
            "CircularPad1d",
            "CircularPad2d",
            "CircularPad3d",
            "ConstantPad1d",
            "ConstantPad2d",
            "ConstantPad3d",
            "ReflectionPad1d",
            "ReflectionPad2d",
            "ReflectionPad3d",
            "ReplicationPad1d",
            "ReplicationPad2d",
            "ReplicationPad3d",
            "ZeroPad1d",
            "ZeroPad2d",
            "ZeroPad3d",
            "_CircularPadNd",
            "_ConstantPadNd",
            "_ReflectionPadNd",
            "_ReplicationPadNd",
        ],
    ),
    ("pixelshuffle", &["PixelShuffle", "PixelUnshuffle"]),
    (
        "pooling",
        &[
            "AdaptiveAvgPool1d",
            "AdaptiveAvgPool2d",
            "AdaptiveAvgPool3d",
            "AdaptiveMaxPool1d",
            "AdaptiveMaxPool2d",
            "AdaptiveMaxPool3d",
            "AvgPool1d",
            "AvgPool2d",
            "AvgPool3d",
            "FractionalMaxPool2d",
            "FractionalMaxPool3d",
            "LPPool1d",
            "LPPool2d",
            "LPPool3d",
            "MaxPool1d",
            "MaxPool2d",
            "MaxPool3d",
            "MaxUnpool1d",
            "MaxUnpool2d",
            "MaxUnpool3d",
            "_AdaptiveAvgPoolNd",
            "_AdaptiveMaxPoolNd",
            "_AvgPoolNd",
            "_LPPoolNd",
            "_MaxPoolNd",
            "_MaxUnpoolNd",
        ],
    ),
    ("rnn", &["GRU", "GRUCell", "LSTM", "LSTMCell", "RNN", "RNNBase", "RNNCell", "RNNCellBase"]),
    ("sparse", &["Embedding", "EmbeddingBag"]),
    (
        "transformer",
        &[
            "Transformer",
            "TransformerDecoder",
            "TransformerDecoderLayer",
            "TransformerEncoder",
            "TransformerEncoderLayer",
        ],
    ),
    ("upsampling", &["Upsample", "UpsamplingBilinear2d", "UpsamplingNearest2d"]),
];

/// Whether `module.name` is the class of a module.
pub(super) fn is_class(module: &str, name: &str) -> bool {
    if (module, name) == ("torch.nn.parallel.data_parallel", "DataParallel") {
        return true;
    }
    let Some(module) = module.strip_prefix("torch.nn.modules.") else { return false };
    CLASSES.iter().any(|(known, classes)| *known == module && classes.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_only() {
        assert!(is_class("torch.nn.modules.linear", "Linear"));
        assert!(is_class("torch.nn.modules.batchnorm", "_BatchNorm"));
        assert!(!is_class("torch.nn.modules.activation", "F"));
        assert!(!is_class("torch.nn.modules.activation", "Tensor"));
        assert!(!is_class("torch.nn.modules.linear", "LSTM"));
        assert!(!is_class("torch.nn.modules.module", "T"));
    }
}
