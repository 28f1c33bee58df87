//! What attention remembers of a text.

use burn::tensor::Tensor;

/// Room is made for so many tokens at a time.
const BLOCK: usize = 256;

/// The keys and values of the tokens so far, for each layer.
#[derive(Debug, Default)]
pub struct Cache {
    length: usize,
    layers: Vec<Memory>,
}

/// Those of one layer: `[rows, heads, room, head_dim]`.
#[derive(Debug)]
struct Memory {
    keys: Tensor<4>,
    values: Tensor<4>,
}

impl Cache {
    /// The number of tokens that it knows of.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// All layers have seen so many more tokens.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.length += tokens;
    }

    /// Adds keys and values of a layer, and returns all of them. Layers come in their order.
    pub(crate) fn append(
        &mut self,
        layer: usize,
        keys: Tensor<4>,
        values: Tensor<4>,
    ) -> (Tensor<4>, Tensor<4>) {
        let [rows, heads, new, width] = keys.dims();
        let length = self.length + new;
        if layer >= self.layers.len() {
            let nothing = || Tensor::zeros([rows, heads, 0, width], (&keys.device(), keys.dtype()));
            self.layers.push(Memory { keys: nothing(), values: nothing() });
        }
        let memory = &mut self.layers[layer];
        let put = |place: &mut Tensor<4>, more: Tensor<4>| {
            let room = place.dims()[2];
            // Taken out, so that the memory is nobody else's and is written in place.
            let mut all = std::mem::replace(place, Tensor::empty([1, 1, 1, 1], &more.device()));
            if room < length {
                let missing = length.next_multiple_of(BLOCK) - room;
                let zeros = Tensor::zeros([rows, heads, missing, width], (&more.device(), more.dtype()));
                all = if room == 0 { zeros } else { Tensor::cat(vec![all, zeros], 2) };
            }
            all = all.slice_assign([0..rows, 0..heads, self.length..length, 0..width], more);
            *place = all.clone();
            all.narrow(2, 0, length)
        };
        (put(&mut memory.keys, keys), put(&mut memory.values, values))
    }
}
