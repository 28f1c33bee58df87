//! Numbers for people.

/// A number of things.
pub fn plural(count: usize, noun: &str) -> String {
    let ending = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{ending}")
}

/// A size.
#[expect(clippy::cast_precision_loss, reason = "for people to read")]
pub fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["bytes", "kB", "MB"] {
        if value < 1000.0 {
            return if unit == "bytes" { format!("{count} bytes") } else { format!("{value:.2} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.2} GB")
}

/// A speed.
#[expect(clippy::cast_precision_loss, reason = "for people to read")]
pub fn rate(bytes: u64, seconds: f64) -> String {
    format!("{:.2} GB/s", bytes as f64 / 1e9 / seconds.max(1e-9))
}

/// A frequency.
#[expect(clippy::cast_precision_loss, reason = "for people to read")]
pub fn per_second(count: usize, seconds: f64) -> f64 {
    count as f64 / seconds.max(1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(bytes(999), "999 bytes");
        assert_eq!(bytes(1_500), "1.50 kB");
        assert_eq!(bytes(2_200_000_000), "2.20 GB");
        assert_eq!(rate(500_000_000, 0.25), "2.00 GB/s");
    }
}
