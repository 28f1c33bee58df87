//! Initialising a slice step by step.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use crate::error::{Error, ErrorKind};

/// An error of this crate in a step of [`fill`], which has input and output errors of its own.
pub(crate) struct Fault(pub(crate) Error);

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Self(Error::new(ErrorKind::Internal, format!("a tile was not filled: {error}")).with_source(error))
    }
}

/// Zeroes `buf` and returns it as bytes.
pub(crate) fn zeroed(buf: &mut [MaybeUninit<u8>]) -> &mut [u8] {
    buf.fill(MaybeUninit::new(0));
    // SAFETY: the line above initialised every byte.
    unsafe { initialised(buf) }
}

/// Copies `bytes` to `buf`, which is as long, and returns it as bytes.
///
/// # Panics
///
/// Panics when the two are not of one length.
pub fn copied<'b>(buf: &'b mut [MaybeUninit<u8>], bytes: &[u8]) -> &'b mut [u8] {
    assert_eq!(buf.len(), bytes.len(), "lengths differ");
    buf.iter_mut().zip(bytes).for_each(|(to, &from)| *to = MaybeUninit::new(from));
    // SAFETY: the line above initialised every byte, since there are as many of both.
    unsafe { initialised(buf) }
}

/// `assume_init_mut` of slices, which Rust has had since 1.93.
///
/// # Safety
///
/// Every byte is initialised.
pub(crate) unsafe fn initialised(buf: &mut [MaybeUninit<u8>]) -> &mut [u8] {
    // SAFETY: a byte that is initialised and one that may be have the same layout, the caller promises that all are, and
    // the exclusive borrow goes over to the result.
    unsafe { &mut *(std::ptr::from_mut(buf) as *mut [u8]) }
}

/// A slice that is initialised step by step, from its start to its end.
pub(crate) struct Filler<'m> {
    memory: &'m mut [MaybeUninit<u8>],
    filled: usize,
}

impl<'m> Filler<'m> {
    /// Nothing of it is initialised yet.
    pub(crate) fn of(memory: &'m mut [MaybeUninit<u8>]) -> Self {
        Self { memory, filled: 0 }
    }

    /// How many bytes are initialised.
    pub(crate) fn filled(&self) -> usize {
        self.filled
    }

    /// Whether all are.
    pub(crate) fn is_full(&self) -> bool {
        self.filled == self.memory.len()
    }

    /// Hands out the rest of the slice, a part at whose start `step` initialises and returns. `None` means that it was
    /// interrupted.
    ///
    /// # Errors
    ///
    /// Passes on the error of `step`, and fails with `UnexpectedEof` when a step returns an empty part.
    pub(crate) fn step<E: From<std::io::Error>>(
        &mut self,
        step: impl for<'a> FnOnce(&'a mut [MaybeUninit<u8>]) -> Result<Option<&'a [u8]>, E>,
    ) -> Result<(), E> {
        let rest = &mut self.memory[self.filled..];
        let (address, most) = (rest.as_ptr().cast::<u8>(), rest.len());
        let Some(part) = step(rest)? else {
            return Ok(());
        };
        if part.is_empty() {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        if !std::ptr::eq(part.as_ptr(), address) || part.len() > most {
            return Err(std::io::Error::other("a reader returned memory that it was not given").into());
        }
        self.filled += part.len();
        Ok(())
    }

    /// The slice, if all of it is initialised.
    pub(crate) fn done(self) -> Option<&'m mut [u8]> {
        if !self.is_full() {
            return None;
        }
        // SAFETY: each step returned an initialised slice that starts where the last one ended (the argument of
        // module `buffer`; a shared slice of that address is as good a proof as an exclusive one, since the
        // step's exclusive borrow left no other path to the memory), and together they cover `memory`.
        Some(unsafe { initialised(self.memory) })
    }
}

/// Initialises `buf` step by step. `step` is handed the number of bytes done and the rest of the slice; it
/// initialises a part at the start of the rest and returns that part. An empty part means that there is no
/// more to read, `None` that it was interrupted and wants to be called again.
///
/// # Errors
///
/// Passes on the error of `step`, and fails with `UnexpectedEof` when a step returns nothing.
pub(crate) fn fill<E: From<std::io::Error>>(
    buf: &mut [MaybeUninit<u8>],
    mut step: impl for<'a> FnMut(usize, &'a mut [MaybeUninit<u8>]) -> Result<Option<&'a [u8]>, E>,
) -> Result<&mut [u8], E> {
    let mut filler = Filler::of(buf);
    while !filler.is_full() {
        let filled = filler.filled();
        filler.step(|rest| step(filled, rest))?;
    }
    filler.done().ok_or_else(|| std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_go_on_where_the_last_one_ended() {
        let mut memory = [MaybeUninit::uninit(); 10];
        let mut interrupted = false;
        let filled = fill::<std::io::Error>(&mut memory, |done, rest| {
            interrupted = !interrupted;
            if interrupted {
                return Ok(None);
            }
            let len = rest.len().min(4);
            Ok(Some(copied(&mut rest[..len], &[done as u8; 4][..len])))
        });
        assert_eq!(filled.unwrap(), [0, 0, 0, 0, 4, 4, 4, 4, 8, 8]);
        assert_eq!(zeroed(&mut memory), [0; 10]);
    }

    #[test]
    fn other_memory_and_none_are_refused() {
        let mut memory = [MaybeUninit::uninit(); 4];
        assert!(fill::<std::io::Error>(&mut memory, |_, _| Ok(Some(&[1; 4]))).is_err());
        assert!(fill::<std::io::Error>(&mut memory, |_, _| Ok(Some(&[]))).is_err());
    }
}
