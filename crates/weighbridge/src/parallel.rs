//! One model on several ranks: what each of them has of every tensor.
//!
//! A [`ParallelPlan`] has rules, which say how tensors of given names are cut. With a checkpoint, it makes [`Ranks`]:
//! the parts of each rank, and how many bytes they are, before anything is read. [`Ranks::checkpoint`] is the checkpoint
//! of one rank: it has the parts under the names of the tensors, reads their bytes and no others, and goes wherever a
//! checkpoint goes, into a loader or to the disk.
//!
//! ```
//! use weighbridge::Checkpoint;
//! use weighbridge::parallel::ParallelPlan;
//!
//! # fn main() -> weighbridge::Result<()> {
//! # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/adder");
//! let ckpt = Checkpoint::open(dir)?;
//! let ranks = ParallelPlan::of(&ckpt)?.tensor_parallel(2).ranks(&ckpt)?;
//! for rank in 0..ranks.len() {
//!     println!("rank {rank} reads {} bytes", ranks.byte_len(rank));
//! }
//! let of_rank = ranks.checkpoint(1)?;
//! let whole = ckpt.tensor("model.layers.0.mlp.up_proj.weight").unwrap();
//! let part = of_rank.tensor("model.layers.0.mlp.up_proj.weight").unwrap();
//! assert_eq!(part.shape()[0], whole.shape()[0] / 2);
//! # Ok(())
//! # }
//! ```
//!
//! # Ranks
//!
//! There are as many ranks as tensor parallelism times pipeline parallelism. Those of one pipeline stage follow each
//! other: rank `stage * tensor_parallel + n` is the `n`th of its stage.
//!
//! # Rules
//!
//! A file of rules has one on each line: a [glob](crate::Names::glob) of names, a colon, and how these tensors are cut.
//! The first rule that a name matches counts. Lines that are empty or begin with `#` are passed over.
//!
//! ```text
//! *.{gate,up}_proj.weight: column
//! *.down_proj.weight: row
//! *.q_proj.weight: column by heads
//! *.{k,v}_proj.weight: column by kv_heads
//! *.o_proj.weight: row by heads
//! {lm_head,model.embed_tokens}.weight: vocab
//! *norm.weight: replicated
//! @heads 32 8
//! @tensor_parallel 4
//! ```
//!
//! | | what a rank has |
//! |---|---|
//! | `column` | a part of the outputs: of dimension 0 of a matrix or a bias, of the last but one of experts in one tensor |
//! | `row` | a part of the inputs: of the last dimension. A tensor of one dimension, the bias, is in all ranks: it is to be added once |
//! | `0`, `1`, ... | a part of this dimension |
//! | `... packed N` | a part of each of N equal pieces that lie one after the other: gate and up as one |
//! | `... by heads` | whole attention heads |
//! | `... by kv_heads` | the key and value heads that the rank's heads need. Where there are fewer than ranks, several ranks have the same |
//! | `... by qkv` | the same of queries, keys and values that lie one after the other |
//! | `... by groups` | whole groups of a key and value head and its query heads, as GPT-NeoX, BLOOM and Falcon store them |
//! | `... by N` | whole multiples of N |
//! | `vocab` or `vocab N` | equal numbers of rows; rows of zeros are added until their number divides, by N, too |
//! | `experts` | whole experts: those of a part of the numbers behind `experts.`, or a part of dimension 0 |
//! | `replicated` | all |
//!
//! Parts need not be equal. The first ranks have one unit (row, head, expert) more than the others; no rank has nothing.
//!
//! Behind the cut, and a comma, `first` or `last` may say in which pipeline stages tensors are that belong to no layer:
//! `lm_head.weight: vocab, last`, `model.embed_tokens.weight: vocab, first, last` where it is tied. Layers are recognised by
//! their numbers. Lines with an `@` set what a [`ParallelPlan`] has beside its rules: `@heads 32 8` (attention heads, and
//! those of keys and values), `@layers model.layers` (where the layers are), `@stages 10 12 10` (how many each stage has),
//! `@tensor_parallel 4` and `@pipeline_parallel 2`.

mod config;
mod cut;
mod device_map;
mod families;
mod heads;
mod join;
mod parse;
mod plan;
mod ranks;
mod share;
mod stages;
mod tp_plan;
mod zeros;

pub use device_map::{DeviceMap, Placed};
pub use join::{MODEL_KEY, RANK_KEY, has_record, join};
pub use plan::ParallelPlan;
pub use ranks::{Held, RankedTensor, Ranks};
pub use share::{Cut, Share, Unit};
