//! How NumPy writes numbers: as short as they can be told from their neighbours, all of an array in one way.

use half::{bf16, f16};
use weighbridge::Dtype;

/// One element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value {
    Bool(bool),
    Integer(i128),
    Real(f64),
    Complex(f64, f64),
}

/// How the elements of an array are written, found out by looking at all of them.
#[derive(Clone, Debug)]
pub(super) struct Style {
    /// Of integers and booleans the width.
    width: usize,
    real: Floats,
    imaginary: Floats,
}

impl Style {
    /// That of no elements.
    pub(super) fn of(dtype: Dtype) -> Self {
        Self { width: 0, real: Floats::of(dtype), imaginary: Floats::of(dtype) }
    }

    /// First all elements are shown to it, twice: how they are written depends on their size, and how wide on
    /// that.
    pub(super) fn see(&mut self, value: Value, pass: Pass) {
        match value {
            Value::Real(value) => self.real.see(value, pass),
            Value::Complex(real, imaginary) => {
                self.real.see(real, pass);
                self.imaginary.see(imaginary, pass);
            }
            Value::Bool(_) | Value::Integer(_) => self.width = self.width.max(plain(value).len()),
        }
    }

    pub(super) fn write(&self, value: Value) -> String {
        match value {
            Value::Bool(_) | Value::Integer(_) => format!("{:>1$}", plain(value), self.width),
            Value::Real(value) => self.real.write(value),
            Value::Complex(real, imaginary) => {
                let sign = if imaginary.is_sign_negative() { '-' } else { '+' };
                let imaginary = self.imaginary.write(imaginary.abs());
                // The unit stands behind the digits, and the blanks behind that.
                let digits = imaginary.trim_end();
                let blanks = &imaginary[digits.len()..];
                format!("{}{sign}{}j{blanks}", self.real.write(real), digits.trim_start())
            }
        }
    }
}

fn plain(value: Value) -> String {
    match value {
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Integer(value) => value.to_string(),
        Value::Real(_) | Value::Complex(..) => String::new(),
    }
}

/// What elements are looked at for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    Size,
    Width,
}

/// NumPy's digits behind the point.
const PRECISION: usize = 8;

#[derive(Clone, Debug)]
struct Floats {
    dtype: Dtype,
    least: f64,
    most: f64,
    /// Whether there are values that are not finite: the longest of them.
    special: usize,
    left: usize,
    right: usize,
    exponent: usize,
}

impl Floats {
    fn of(dtype: Dtype) -> Self {
        Self { dtype, least: f64::INFINITY, most: 0.0, special: 0, left: 0, right: 0, exponent: 0 }
    }

    fn see(&mut self, value: f64, pass: Pass) {
        if pass == Pass::Size {
            let size = value.abs();
            if size > 0.0 && size.is_finite() {
                (self.least, self.most) = (self.least.min(size), self.most.max(size));
            }
        } else if value.is_finite() {
            let (left, right, exponent) = self.parts(value);
            self.left = self.left.max(left.len());
            self.right = self.right.max(right.len());
            self.exponent = self.exponent.max(exponent.map_or(0, |exponent| exponent.len()));
        } else {
            self.special = self.special.max(special(value).len());
        }
    }

    /// With exponents where some values are very large, very small, or far apart.
    fn has_exponents(&self) -> bool {
        let large = match self.dtype {
            Dtype::F64 => 1e8,
            Dtype::F32 | Dtype::C64 => 1e6,
            _ => 1e3,
        };
        self.most > 0.0 && (self.most >= large || self.least < 1e-4 || self.most / self.least > 1000.0)
    }

    /// What is before the point, behind it, and in the exponent.
    fn parts(&self, value: f64) -> (String, String, Option<String>) {
        let short = shortest(self.dtype, value);
        if self.has_exponents() {
            let fits = mantissa_digits(&short) <= PRECISION;
            let text = if fits { short } else { format!("{value:.PRECISION$e}") };
            let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let (left, right) = mantissa.split_once('.').unwrap_or((mantissa, ""));
            let (sign, digits) = match exponent.strip_prefix('-') {
                Some(digits) => ('-', digits),
                None => ('+', exponent),
            };
            let right = right.trim_end_matches('0').to_owned();
            return (left.to_owned(), right, Some(format!("{sign}{digits:0>2}")));
        }
        // The same digits with the point in its place.
        let exponent: i32 = short.split_once('e').and_then(|parts| parts.1.parse().ok()).unwrap_or(0);
        let digits = mantissa_digits(&short).saturating_add_signed(-exponent as isize);
        let text = match digits > PRECISION {
            true => format!("{value:.PRECISION$}"),
            false => format!("{:.digits$}", short.parse().unwrap_or(value)),
        };
        let (left, right) = text.split_once('.').unwrap_or((&text, ""));
        (left.to_owned(), right.trim_end_matches('0').to_owned(), None)
    }

    fn width(&self) -> usize {
        let exponent = if self.exponent > 0 { 1 + self.exponent } else { 0 };
        let width = if self.left > 0 { self.left + 1 + self.right + exponent } else { 0 };
        width.max(self.special)
    }

    fn write(&self, value: f64) -> String {
        let width = self.width();
        if !value.is_finite() {
            return format!("{:>width$}", special(value));
        }
        let text = match self.parts(value) {
            (left, right, None) => format!("{left}.{right:<0$}", self.right),
            // What is shorter gets further digits of its own.
            (_, _, Some(exponent)) => {
                let text = format!("{value:.0$e}", self.right);
                let mantissa = text.split_once('e').map_or(&*text, |parts| parts.0);
                let point = if self.right == 0 { "." } else { "" };
                format!("{mantissa}{point}e{exponent}")
            }
        };
        format!("{text:>width$}")
    }
}

fn special(value: f64) -> &'static str {
    match value {
        f64::INFINITY => "inf",
        f64::NEG_INFINITY => "-inf",
        _ => "nan",
    }
}

/// The digits behind the point of `1.25e-3`.
fn mantissa_digits(text: &str) -> usize {
    let mantissa = text.split_once('e').map_or(text, |parts| parts.0);
    mantissa.split_once('.').map_or(0, |parts| parts.1.len())
}

/// The least number of digits that no other value of the dtype is nearer to, with an exponent.
fn shortest(dtype: Dtype, value: f64) -> String {
    /// Digits behind the point that tell any two values of 16 bits apart.
    const ENOUGH: usize = 5;
    let rounds_to = |text: &str| {
        let near: f64 = text.parse().unwrap_or(f64::NAN);
        match dtype {
            Dtype::F16 => f16::from_f64(near).to_f64() == value,
            _ => bf16::from_f64(near).to_f64() == value,
        }
    };
    match dtype {
        Dtype::F64 => format!("{value:e}"),
        Dtype::F16 | Dtype::BF16 => {
            let mut texts = (0..ENOUGH).map(|digits| format!("{value:.digits$e}"));
            texts.find(|text| rounds_to(text)).unwrap_or_else(|| format!("{:e}", value as f32))
        }
        // Values of 8 bits are few; each is written as it is.
        _ => format!("{:e}", value as f32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(dtype: Dtype, values: &[Value]) -> Vec<String> {
        let mut style = Style::of(dtype);
        for pass in [Pass::Size, Pass::Width] {
            values.iter().for_each(|&value| style.see(value, pass));
        }
        values.iter().map(|&value| style.write(value)).collect()
    }

    #[test]
    fn numbers_look_as_in_numpy() {
        let reals = |values: &[f64]| values.iter().map(|&value| Value::Real(value)).collect::<Vec<_>>();
        let tenth = f64::from(f16::from_f64(0.1));
        let cases = [
            (Dtype::F32, reals(&[1.0, 2.5, -3.25]), vec![" 1.  ", " 2.5 ", "-3.25"]),
            (Dtype::F16, reals(&[tenth, 1.0]), vec!["0.1", "1. "]),
            (Dtype::F64, reals(&[1e-5, 1.0]), vec!["1.e-05", "1.e+00"]),
            (Dtype::F32, reals(&[f64::NAN, f64::NEG_INFINITY, 1.0]), vec![" nan", "-inf", "  1."]),
            (Dtype::F64, reals(&[1.0 / 3.0, 0.0]), vec!["0.33333333", "0.        "]),
            (Dtype::F32, reals(&[1.5e10, -2.0]), vec![" 1.5e+10", "-2.0e+00"]),
        ];
        for (dtype, values, texts) in cases {
            assert_eq!(written(dtype, &values), texts);
        }
        let complex = [Value::Complex(1.0, -2.5), Value::Complex(0.5, 1.0)];
        assert_eq!(written(Dtype::C64, &complex), ["1. -2.5j", "0.5+1.j "]);
        assert_eq!(written(Dtype::I8, &[Value::Integer(-5), Value::Integer(10)]), ["-5", "10"]);
        assert_eq!(written(Dtype::Bool, &[Value::Bool(true), Value::Bool(false)]), [" True", "False"]);
    }
}
