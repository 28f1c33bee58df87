//! How a verb ended.

/// What a verb found, where nothing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// What was asked for was done, or nothing speaks against it.
    Clean,
    /// Something was found that a script should know of: a broken file, a difference.
    Findings,
    /// Something could not be read; it was said, and the rest was done.
    Unread,
}
