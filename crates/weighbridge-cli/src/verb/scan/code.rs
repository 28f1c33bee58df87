//! Programs among the files: no pickle is in them, and they are not harmless for that.

use weighbridge_convert::Verdict;
use weighbridge_convert::scan::Scan as Found;

/// The languages whose files run as they are, by the ends of their names.
const LANGUAGES: [(&str, &str); 9] = [
    ("py", "Python"),
    ("pyw", "Python"),
    ("ipynb", "a notebook"),
    ("sh", "a shell script"),
    ("bash", "a shell script"),
    ("js", "JavaScript"),
    ("mjs", "JavaScript"),
    ("bat", "a batch file"),
    ("ps1", "PowerShell"),
];

/// What a file is written in, if it is a program: a text that is called like one. What it would do is not looked into.
pub(super) fn language(found: &Found) -> Option<&'static str> {
    let is_text = found.format == "text" && found.verdict_without(|_| false) == Verdict::Harmless;
    let ending = found.path.extension().filter(|_| is_text)?;
    LANGUAGES.iter().find(|(known, _)| ending.eq_ignore_ascii_case(known)).map(|known| known.1)
}

/// What is said of it.
pub(super) fn said(language: &str) -> String {
    let runs = match language {
        "Python" => {
            "transformers runs such a file beside a model where `trust_remote_code` is set; read it first"
        }
        _ => "read it before it is run",
    };
    format!("not looked into, {language}: {runs}")
}
