//! What is known of the globals that a pickle may import: which make data, and which run code or reach what does.
//!
//! Known to be harmless is what is listed as such, and nothing else. The tables of the dangerous are at least as wide as those
//! of picklescan and fickling, whose samples are tests; what is in no table is unknown.

use std::collections::HashSet;
use std::fmt;
use std::sync::LazyLock;

use super::globals::Callable;

/// What is known of a global.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
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
        if Callable::of(module, name).is_some() || lists(HARMLESS, module, name) {
            Self::Harmless
        } else if is_dangerous(module, name) {
            Self::Dangerous
        } else {
            Self::Unknown
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

fn is_dangerous(module: &str, name: &str) -> bool {
    static MODULES: LazyLock<HashSet<&str>> =
        LazyLock::new(|| STANDARD_LIBRARY.split_whitespace().chain(PACKAGES.split_whitespace()).collect());
    let top = module.split('.').next().unwrap_or(module);
    // Since protocol 4 a name may have dots, and reach any module that its own imports.
    let mut parts = name.split('.').rev();
    let last = parts.next().unwrap_or(name);
    MODULES.contains(top)
        || parts.any(|part| MODULES.contains(part) || is_builtins(part))
        || is_builtins(module) && !name.starts_with(char::is_uppercase)
        || name.split('.').any(|part| part.starts_with("__"))
        || NAMES.split_whitespace().any(|known| known == last)
        || within(module).any(|package| SUBPACKAGES.split_whitespace().any(|known| known == package))
        || lists(DANGEROUS, module, name)
}

fn is_builtins(module: &str) -> bool {
    matches!(module, "builtins" | "__builtin__" | "__builtins__")
}

/// A module and the packages that it is in: `a.b.c`, `a.b`, `a`.
fn within(module: &str) -> impl Iterator<Item = &str> {
    let dots = module.match_indices('.').map(|(dot, _)| dot).rev();
    std::iter::once(module).chain(dots.map(|dot| &module[..dot]))
}

/// Whether a table of modules and their names has one; `*` is every name, and `prefix*` those that begin so.
fn lists(table: &[(&str, &str)], module: &str, name: &str) -> bool {
    let takes = |known: &str| match known.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => known == name,
    };
    table.iter().any(|&(of, names)| of == module && names.split_whitespace().any(takes))
}

/// What makes data, and has no place in a checkpoint. Only whole names: what is reached through them is not listed.
const HARMLESS: &[(&str, &str)] = &[
    ("copyreg", "_reconstructor"),
    ("copy_reg", "_reconstructor"),
    ("_io", "BytesIO StringIO"),
    ("io", "BytesIO StringIO"),
    ("builtins", "Ellipsis NotImplemented"),
    ("__builtin__", "xrange Ellipsis NotImplemented"),
    // Distributed checkpoints say with these what lies where.
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    (
        "torch.distributed.checkpoint.metadata",
        "Metadata MetadataIndex TensorStorageMetadata BytesStorageMetadata ChunkStorageMetadata \
         TensorProperties StorageMeta _MEM_FORMAT_ENCODING",
    ),
    // joblib's arrays, whose bytes follow them.
    ("joblib.numpy_pickle", "NumpyArrayWrapper"),
];

/// Modules of Python's standard library, old names and new, but for those that hold data: they run code or programs, reach files,
/// networks or other modules.
const STANDARD_LIBRARY: &str = "\
BaseHTTPServer Bastion CGIHTTPServer ConfigParser Cookie DocXMLRPCServer Queue SimpleHTTPServer \
SimpleXMLRPCServer SocketServer StringIO _aix_support _android_support _apple_support _ast _asyncio \
_bootsubprocess _bz2 _codecs_cn _codecs_hk _codecs_iso2022 _codecs_jp _codecs_kr _codecs_tw _colorize \
_compat_pickle _compression _ctypes _curses _curses_panel _dbm _dummy_thread _elementtree _frozen_importlib \
_frozen_importlib_external _gdbm _imp _interpchannels _interpqueues _interpreters _ios_support _lsprof _lzma \
_markupbase _msi _multibytecodec _multiprocessing _operator _osx_support _overlapped _pickle _posixshmem \
_posixsubprocess _py_abc _pyrepl _queue _remote_debugging _scproxy _signal _sitebuiltins _socket _sqlite3 \
_ssl _strptime _suggestions _symtable _sysconfig _thread _threading_local _tkinter _tokenize _tracemalloc \
_warnings _winapi aifc annotationlib antigravity anydbm ast asynchat asyncio asyncore atexit bdb bz2 cPickle \
cProfile cStringIO ce cgi cgitb chunk cmd code codeop commands compileall compiler compression concurrent \
contextlib cookielib copy ctypes curses dbhash dbm difflib dis distutils doctest dumbdbm dummy_thread \
dummy_threading ensurepip execfile faulthandler fcntl filecmp fileinput fnmatch ftplib gc gdbm genericpath \
getpass gettext glob grp gzip hotshot htmllib http httplib idlelib imaplib imghdr imp importlib inspect \
lib2to3 linecache logging lzma mac mailbox mailcap marshal mimetypes mmap modulefinder msilib msvcrt \
multiprocessing netrc new nis nntplib nt ntpath nturl2path operator os os2 os2emxpath ossaudiodev pdb pickle \
pickletools pipes pkgutil platform popen2 poplib posix posixpath pprint profile pstats pty pwd py_compile \
pyclbr pydoc pydoc_data pyexpat pyrepl queue readline resource rexec riscos riscospath rlcompleter \
robotparser runpy sched select selectors shelve shlex shutil signal site smtpd smtplib sndhdr socket \
socketserver spwd sqlite3 ssl subprocess sunau symtable sys sysconfig syslog tabnanny tarfile telnetlib \
tempfile termios test thread threading timeit tkinter trace traceback tracemalloc tty turtle turtledemo \
types unittest urllib urllib2 urlparse user uu venv warnings wave webbrowser whichdb winreg winsound wsgiref \
xdrlib xmlrpc xmlrpclib zipapp zipfile zipimport zlib";

/// Packages that do the same.
const PACKAGES: &str = "\
Cython IPython _pytest aiofiles aiohttp anyio boto3 botocore celery cffi cloudpickle conda cupy dask \
deepspeed dill distributed distutils django docker eventlet execnet fabric fastapi flask fsspec gevent git \
google_auth_oauthlib gradio httpx huggingface_hub hypothesis invoke ipykernel jinja2 joblib jsonpickle \
jupyter_client jupyter_core keyring llvmlite mako mlflow nbconvert nbformat nose notebook numba numexpr \
paramiko pexpect pip pkg_resources playwright plumbum poetry psutil psycopg2 ptyprocess py pyautogui pycuda \
pycurl pymongo pymysql pyodbc pyperclip pytest pyximport ray redis requests restrictedpython rpyc selenium \
setuptools sh smart_open sqlalchemy streamlit sympy tblib tornado trio triton twisted urllib3 uv uvicorn \
virtualenv wandb websocket websockets werkzeug wget win32api win32com wmi yaml zmq";

/// Parts of packages that run what they are given.
const SUBPACKAGES: &str = "\
    torch.hub torch._dynamo torch._inductor torch._export torch.export torch.jit torch.fx torch.package torch.compiler \
    torch._higher_order_ops torch.library torch._library torch.ops torch._ops torch.classes torch._classes torch.testing \
    torch.multiprocessing torch.onnx torch.profiler torch.overrides torch._jit_internal torch._weights_only_unpickler \
    torch.distributed.elastic torch.distributed.run torch.distributed.launch torch.distributed.launcher \
    torch.distributed.rpc torch.distributed.nn torch.utils.cpp_extension torch.utils.bottleneck torch.utils.collect_env \
    torch.utils.data.datapipes torch.utils._config_module torch.utils.model_zoo torch.utils.hipify torch.utils.benchmark \
    torch.utils.tensorboard torch.utils.checkpoint torch.utils.show_pickle torch.utils.serialization \
    numpy.f2py numpy.distutils numpy.testing numpy.ctypeslib numpy.lib.npyio numpy.lib._npyio_impl numpy.lib.format \
    numpy.lib._format_impl numpy.lib._datasource numpy.lib.utils numpy.compat \
    pandas.io pandas.core.computation pandas.compat pandas.util \
    scipy.io scipy._lib scipy.weave keras.models keras.saving keras.src.saving keras.src.models keras.utils \
    keras.src.utils keras.src.layers.core.lambda_layer keras.export tf_keras tensorflow.keras tensorflow.io \
    tensorflow.python.lib.io tensorflow.python.keras tensorflow.python.saved_model tensorflow.saved_model \
    tensorflow.python.framework.load_library tensorflow.python.ops.script_ops \
    transformers.pipelines transformers.dynamic_module_utils transformers.utils.hub transformers.tools transformers.agents \
    sklearn.externals sklearn.datasets hydra._internal hydra.utils nltk.data nltk.downloader datasets.load \
    lightning.pytorch.core.saving lightning.fabric.utilities.cloud_io mmcv.fileio mmengine.fileio detectron2.config \
    spacy.util cvxpy.settings tvm.contrib jax.experimental.host_callback jax._src.callback optree.integration";

/// Single globals in modules that are not dangerous as a whole.
const DANGEROUS: &[(&str, &str)] = &[
    ("functools", "*"),
    ("_functools", "*"),
    ("io", "*"),
    ("_io", "*"),
    ("_pyio", "*"),
    ("uuid", "*"),
    ("itertools", "starmap accumulate filterfalse takewhile dropwhile groupby"),
    ("codecs", "open lookup decode register EncodedFile StreamReaderWriter get*"),
    ("_codecs", "lookup decode register"),
    ("collections", "namedtuple"),
    ("dataclasses", "make_dataclass"),
    ("typing", "get_type_hints ForwardRef _eval_type"),
    ("weakref", "finalize"),
    ("enum", "global_enum_repr _convert_ Enum._convert_"),
    ("tokenize", "open"),
    ("random", "_test*"),
    ("hashlib", "file_digest"),
    ("xml.sax", "*"),
    ("torch", "load save compile hub ops classes from_file vmap package jit"),
    ("torch._utils", "_import_dotted_name classproperty"),
    ("torch.serialization", "load save _load _legacy_load _save _legacy_save"),
    ("torch.storage", "_load_from_bytes"),
    ("torch.nn.modules.module", "register_module_*"),
    ("torch.utils.data.dataloader", "DataLoader"),
    ("torch.autograd.function", "_*"),
    (
        "torch.distributed",
        "broadcast_object_list all_gather_object gather_object scatter_object_list init_process_group",
    ),
    ("torch.distributed.checkpoint.default_planner", "*"),
    // It imports any module, and takes any name of it.
    ("numpy.core", "_ufunc_reconstruct"),
    ("numpy._core", "_ufunc_reconstruct"),
    (
        "numpy",
        "load loads loadtxt fromfile genfromtxt fromregex save savez savez_compressed savetxt memmap DataSource \
         frompyfunc vectorize apply_along_axis apply_over_axes piecewise fromfunction fromiter",
    ),
    ("numpy.lib", "load* save* DataSource apply_* vectorize piecewise"),
    ("pandas", "read_* eval ExcelFile HDFStore"),
    ("keras.layers", "Lambda deserialize"),
    ("keras", "Lambda"),
    ("tensorflow", "load_library load_op_library py_function numpy_function"),
    ("joblib.numpy_pickle", "*"),
    ("spacy", "load"),
    ("detectron2.utils.registry", "locate"),
];

/// Names that run what they are given, in whatever module.
const NAMES: &str = "\
    system popen exec eval execfile compile getattr setattr delattr open spawn run call check_call check_output Popen \
    getoutput getstatusoutput runctx runcode runcommand runsource runstring runpy run_module run_path import_module \
    load_module exec_module load_inline load_library load_model read_pickle dictConfig fileConfig FileHandler apply \
    _call_with_frames_removed reduce_graph_module _import_dotted_name exec_command execute shell_exec literal_eval \
    safe_eval instantiate from_pretrained load_from_checkpoint unpickle loads";

#[cfg(test)]
mod tests {
    use super::*;

    fn of(global: &str) -> Verdict {
        let (module, name) = global.split_once(' ').unwrap();
        Verdict::of(module, name)
    }

    #[test]
    fn what_runs_code_is_dangerous() {
        for global in [
            "os system",
            "posix system",
            "nt system",
            "builtins eval",
            "__builtin__ getattr",
            "__builtin__ apply",
            "torch.hub load",
            "importlib.util find_spec",
            "torch os.system",
            "torch.nn.modules.linear Linear.__init__.__globals__",
            "torch.fx.graph_module reduce_graph_module",
            "torch.utils.cpp_extension load_inline",
            "torch._inductor.codecache compile_file",
            "torch._utils _import_dotted_name",
            "torch.storage _load_from_bytes",
            "_frozen_importlib _call_with_frames_removed",
            "numpy.f2py.crackfortran getlincoef",
            "numpy.f2py.diagnose run_command",
            "numpy._core _ufunc_reconstruct",
            "pandas read_pickle",
            "pandas.io.pickle read_pickle",
            "keras.models load_model",
            "logging.config dictConfig",
            "logging FileHandler",
            "_io FileIO",
            "io open",
            "uuid _get_command_stdout",
            "imaplib IMAP4_stream",
            "functools partial",
            "operator attrgetter",
            "asyncio.unix_events _UnixSubprocessTransport._start",
            "idlelib.calltip Calltip.fetch_tip",
            "lib2to3.pgen2.grammar Grammar.loads",
            "test.support.script_helper assert_python_ok",
            "_pyrepl.pager pipe_pager",
            "cloudpickle.cloudpickle _make_function",
            "collections namedtuple",
            "somewhere.else system",
        ] {
            assert_eq!(of(global), Verdict::Dangerous, "{global}");
        }
    }

    #[test]
    fn what_makes_data_is_harmless_and_the_rest_is_unknown() {
        for global in [
            "builtins set",
            "builtins slice",
            "builtins complex",
            "builtins range",
            "__builtin__ xrange",
            "collections OrderedDict",
            "torch BFloat16Storage",
            "torch float8_e4m3fn",
            "torch.nn.modules.linear Linear",
            "uuid UUID",
            "_io BytesIO",
            "copyreg _reconstructor",
        ] {
            assert_eq!(of(global), Verdict::Harmless, "{global}");
        }
        for global in
            ["sklearn.svm SVC", "builtins ValueError", "mylib.code Block", "re _compile", "torch.nn Foo"]
        {
            assert_eq!(of(global), Verdict::Unknown, "{global}");
        }
    }
}
