//! The sums that examples learn: which there are, and which are held out.

/// Numbers that are added are below it.
pub const LIMIT: u64 = 1000;

/// Two numbers to add. Most are any two, the rest are as many short numbers as long ones.
pub fn drawn(random: &mut Random) -> [u64; 2] {
    let even = random.below(5) < 3;
    let mut number = || match (even, random.below(3)) {
        (true, _) => random.below(LIMIT),
        (false, 0) => random.below(10),
        (false, 1) => 10 + random.below(90),
        (false, _) => 100 + random.below(900),
    };
    [number(), number()]
}

/// Whether a sum is kept away from training, together with its twin: one of 64 is.
pub fn is_held_out([a, b]: [u64; 2]) -> bool {
    mixed(a.min(b) * LIMIT + a.max(b)).is_multiple_of(64)
}

/// Random numbers that are the same everywhere: SplitMix64 (G. Steele and others, 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Another stream for each number.
    pub fn new(seed: u64, stream: u64) -> Self {
        Self(mixed(mixed(seed) ^ stream))
    }

    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(self.0)
    }

    /// From 0 to the limit, which is not one of them.
    pub fn below(&mut self, limit: u64) -> u64 {
        // The remainder favours small numbers by less than one in 10^16.
        self.draw() % limit
    }

    /// From 0 to 1, which is not one of them.
    pub fn unit(&mut self) -> f32 {
        (self.draw() >> 40) as f32 / (1 << 24) as f32
    }
}

fn mixed(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
