//! Files that are pages for browsers.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use weighbridge::write::OutputFile;

use crate::interrupt;
use crate::show;
use crate::term::Term;

/// Fails where something is there already, before any work is done.
pub(in crate::verb) fn check(path: &Path, force: bool) -> Result<()> {
    let taken = path.try_exists().with_context(|| format!("{}: it cannot be looked at", path.display()))?;
    if taken && !force {
        bail!("{}: it is there already; --force replaces it", path.display());
    }
    Ok(())
}

/// Writes a page; it appears when it is whole.
pub(in crate::verb) fn write(
    path: &Path,
    term: &Term,
    render: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    let mut file = OutputFile::atomic(path)?;
    let mut out = BufWriter::new(Counted { out: &mut file, bytes: 0 });
    let written = render(&mut out).and_then(|()| Ok(out.flush()?));
    let bytes = out.get_ref().bytes;
    written.with_context(|| format!("{}: it cannot be written", path.display()))?;
    drop(out);
    interrupt::check()?;
    file.commit()?;
    term.note(format_args!("{}: {}", path.display(), show::bytes(bytes)));
    Ok(())
}

struct Counted<W> {
    out: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
