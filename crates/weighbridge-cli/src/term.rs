//! What goes to the terminal: data to standard output, all else to standard error.

use std::io::{self, BufWriter, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use weighbridge::Progress;

use crate::global::Global;

/// How much to say, and where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Term {
    quiet: bool,
    verbose: bool,
    bars: bool,
}

impl Term {
    pub(crate) fn new(global: &Global) -> Self {
        let bars = !global.quiet && !global.no_progress && io::stderr().is_terminal();
        Self { quiet: global.quiet, verbose: global.verbose, bars }
    }

    /// Standard output for text: styles are removed where nobody would see them. Flush it, and pass on its
    /// errors.
    pub(crate) fn text(self) -> impl Write {
        BufWriter::with_capacity(64 << 10, anstream::stdout().lock())
    }

    /// Standard output for bytes, which pass as they are: JSON, arrays.
    pub(crate) fn raw(self) -> impl Write {
        BufWriter::with_capacity(64 << 10, io::stdout().lock())
    }

    /// Something that the user should know.
    pub(crate) fn warn(self, message: impl std::fmt::Display) {
        if !self.quiet {
            let style = anstyle::AnsiColor::Yellow.on_default().bold();
            let _ = writeln!(anstream::stderr(), "{style}warning{style:#}: {message}");
        }
    }

    /// What failed, where the rest goes on; it is said even with --quiet.
    pub(crate) fn error(self, message: impl std::fmt::Display) {
        let style = anstyle::AnsiColor::Red.on_default().bold();
        let _ = writeln!(anstream::stderr(), "{style}error{style:#}: {message}");
    }

    /// What was done.
    pub(crate) fn note(self, message: impl std::fmt::Display) {
        if !self.quiet {
            let _ = writeln!(anstream::stderr(), "{message}");
        }
    }

    /// What is done, for those who want to know more.
    pub(crate) fn detail(self, message: impl std::fmt::Display) {
        if self.verbose {
            let _ = writeln!(anstream::stderr(), "{message}");
        }
    }

    /// Whether somebody wants to know more.
    pub(crate) fn is_verbose(self) -> bool {
        self.verbose
    }

    /// A bar for work on a number of bytes; it is removed when it is dropped.
    pub(crate) fn bar(self, doing: &'static str, bytes: u64) -> Bar {
        let bar = match self.bars {
            true => ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr()),
            false => ProgressBar::hidden(),
        };
        // It fits into 80 columns.
        let form = "{msg:>10} {bar:20} {decimal_bytes} of {decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(form) {
            bar.set_style(style);
        }
        bar.set_message(doing);
        bar.enable_steady_tick(Duration::from_millis(200));
        Bar(bar)
    }
}

/// A progress bar.
#[derive(Clone)]
pub(crate) struct Bar(ProgressBar);

impl Bar {
    /// So many bytes more are done.
    pub(crate) fn add(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// A save or a load has come so far.
    pub(crate) fn show(&self, progress: Progress) {
        self.0.set_length(progress.bytes_total);
        self.0.set_position(progress.bytes_done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
