//! The pickles of a rank: what the weights are called, and the flat groups that hold them.

use std::collections::HashSet;
use std::path::Path;

use weighbridge::{Error, ErrorKind, Result};

use super::join::Found;
use crate::input::Input;
use crate::options::Options;
use crate::pickle::{Id, Opened, Reader, Single, Value};

/// A group's parameters: names, shapes.
pub(super) type Shapes = Vec<(String, Vec<usize>)>;

/// What `*_model_states.pt` says.
pub(super) struct ModelStates {
    pub(super) buffers: Vec<Found>,
    /// For each parameter group of the optimizer.
    pub(super) groups: Vec<Shapes>,
    pub(super) frozen: Shapes,
    /// What the rank has of the frozen parameters, in their order.
    pub(super) fragments: Vec<Single>,
    /// Names, and what they are other names of.
    pub(super) shared: Vec<(String, String)>,
    /// What the module has beside all of these: in stages 1 and 2 parameters that are not trained, in stage 3 nothing.
    pub(super) others: Vec<Found>,
}

/// What `*_optim_states.pt` says.
pub(super) struct OptimStates {
    pub(super) stage: u64,
    /// How many ranks there are.
    pub(super) partitions: u64,
    /// The F32 weights of the rank, one after the other.
    pub(super) groups: Vec<Single>,
    /// Elements behind each parameter, for each group, where there are any.
    pub(super) paddings: Option<Vec<Vec<u64>>>,
}

impl ModelStates {
    pub(super) fn read(path: &Path, options: &Options) -> Result<Self> {
        let read = || {
            let opened = Opened::of_known(Input::open(path)?.whole(), options)?;
            let states = States { opened: &opened, reader: Reader { pickle: &opened.pickle } };
            states.model()
        };
        read().map_err(|error: Error| error.in_file(path))
    }
}

impl OptimStates {
    pub(super) fn read(path: &Path, options: &Options) -> Result<Self> {
        let read = || {
            let opened = Opened::of_known(Input::open(path)?.whole(), options)?;
            let states = States { opened: &opened, reader: Reader { pickle: &opened.pickle } };
            states.optim()
        };
        read().map_err(|error: Error| error.in_file(path))
    }
}

struct States<'p> {
    opened: &'p Opened,
    reader: Reader<'p>,
}

impl States<'_> {
    fn model(&self) -> Result<ModelStates> {
        let (reader, root) = (self.reader, self.opened.pickle.root);
        let groups = self.entry(root, "param_shapes").map_err(|_| {
            malformed("it has no param_shapes: it is of a run without ZeRO, whose weights `weighbridge convert` takes")
        })?;
        let groups = reader.items(groups)?.iter().map(|&group| self.shapes(group)).collect::<Result<_>>()?;
        let mut buffers = Vec::new();
        if let Some(module) = reader.entry(root, "module") {
            let named =
                reader.entry(root, "buffer_names").map_or(Ok(&[][..]), |names| reader.items(names))?;
            for &name in named {
                let name = reader.name(name)?;
                // Those that are not persistent are not in it.
                let Some(buffer) = reader.entry(module, name) else { continue };
                buffers.push(Found::of(name.to_owned(), self.tensor(name, buffer)?));
            }
        }
        let frozen =
            reader.entry(root, "frozen_param_shapes").map_or(Ok(Vec::new()), |it| self.shapes(it))?;
        let fragments = frozen.iter().map(|(name, _)| {
            let fragments = self.entry(root, "frozen_param_fragments")?;
            let fragment = self.entry(fragments, name).map_err(|error| error.in_tensor(name))?;
            self.tensor(name, fragment)
        });
        let fragments = fragments.collect::<Result<_>>()?;
        let mut shared = Vec::new();
        if let Some(pairs) = reader.entry(root, "shared_params") {
            for (alias, of) in reader.pairs(pairs)? {
                shared.push((reader.name(alias)?.to_owned(), reader.name(of)?.to_owned()));
            }
        }
        let mut states = ModelStates { buffers, groups, frozen, fragments, shared, others: Vec::new() };
        if let Some(module) = reader.entry(root, "module") {
            states.others = self.others(module, &states)?;
        }
        Ok(states)
    }

    /// The tensors of the module that nothing else names.
    fn others(&self, module: Id, states: &ModelStates) -> Result<Vec<Found>> {
        let of_groups = states.groups.iter().chain([&states.frozen]).flatten().map(|(name, _)| &**name);
        let aliases = states.shared.iter().map(|(alias, _)| &**alias);
        let buffers = states.buffers.iter().map(|buffer| &*buffer.name);
        let known: HashSet<&str> = of_groups.chain(aliases).chain(buffers).collect();
        let mut others = Vec::new();
        for (name, value) in self.reader.pairs(module)? {
            let name = self.reader.name(name)?;
            // Values that are no tensors are extra states of modules.
            if !known.contains(name)
                && let Ok(tensor) = self.opened.tensor(value)
            {
                others.push(Found::of(name.to_owned(), tensor));
            }
        }
        Ok(others)
    }

    fn optim(&self) -> Result<OptimStates> {
        let reader = self.reader;
        let state = self.entry(self.opened.pickle.root, "optimizer_state_dict")?;
        let stage =
            self.entry(state, "zero_stage").map_err(|_| malformed("it is of no ZeRO run: no zero_stage"))?;
        let stage = self.stage(stage)?;
        let key = match stage {
            1 | 2 => "single_partition_of_fp32_groups",
            3 => "fp32_flat_groups",
            _ => return Err(malformed(&format!("it is of ZeRO stage {stage}; 1 to 3 are read"))),
        };
        let groups = reader.items(self.entry(state, key)?)?.iter().enumerate();
        let groups = groups.map(|(number, &group)| {
            let named = format!("{key}[{number}]");
            let tensor = self.tensor(&named, group)?;
            if tensor.shape.len() != 1 || !is_float(&tensor) {
                let message = format!(
                    "it is {} of shape {:?}, no flat group of weights",
                    tensor.element.name, tensor.shape
                );
                return Err(malformed(&message).in_tensor(&named));
            }
            Ok(tensor)
        });
        let groups = groups.collect::<Result<Vec<_>>>()?;
        let count = self.entry(state, "partition_count")?;
        // Of several groups, the one of the experts may have fewer.
        let partitions = match self.opened.pickle.at(count) {
            Value::Sequence(counts) => {
                let counts = counts.iter().map(|&count| reader.number(count)).collect::<Result<Vec<_>>>()?;
                counts.into_iter().max().unwrap_or(0)
            }
            _ => reader.number(count)?,
        };
        let paddings = reader.entry(state, "param_alignment_paddings").map(|of_groups| {
            let numbers = |&group: &Id| reader.items(group)?.iter().map(|&it| reader.number(it)).collect();
            reader.items(of_groups)?.iter().map(numbers).collect::<Result<Vec<Vec<u64>>>>()
        });
        Ok(OptimStates { stage, partitions, groups, paddings: paddings.transpose()? })
    }

    /// A number, or a member of an enumeration, made of one.
    fn stage(&self, id: Id) -> Result<u64> {
        match self.opened.pickle.at(id) {
            Value::Object(object) if object.args.len() == 1 => self.reader.number(object.args[0]),
            _ => self.reader.number(id),
        }
    }

    fn shapes(&self, id: Id) -> Result<Shapes> {
        let shape = |(name, shape): (Id, Id)| {
            let name = self.reader.name(name)?.to_owned();
            let shape = self.reader.sizes(shape).map_err(|error| error.in_tensor(&name))?;
            Ok((name, shape))
        };
        self.reader.pairs(id)?.map(shape).collect()
    }

    fn entry(&self, dict: Id, key: &str) -> Result<Id> {
        self.reader.entry(dict, key).ok_or_else(|| malformed(&format!("it has no {key}")))
    }

    fn tensor(&self, name: &str, id: Id) -> Result<Single> {
        self.opened.tensor(id).map_err(|error| error.in_tensor(name))
    }
}

/// Whether its elements can be weights.
pub(super) fn is_float(tensor: &Single) -> bool {
    matches!(tensor.element.name, "float32" | "float16" | "bfloat16" | "float64")
}

fn malformed(what: &str) -> Error {
    Error::new(ErrorKind::Malformed, what)
}
