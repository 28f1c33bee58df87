//! Marked sections of a Markdown page, which a program writes, so that no number is typed by hand.
//!
//! ```text
//! <!-- begin peers:load -->
//! ... replaced as a whole ...
//! <!-- end peers:load -->
//! ```

use anyhow::{Context, Result};

/// The page with other text in the section of that name; `None` where it has no such section.
///
/// # Errors
///
/// Fails when the section has no end.
pub fn replace(page: &str, section: &str, text: &str) -> Result<Option<String>> {
    let begin = format!("<!-- begin {section} -->\n");
    let Some((before, rest)) = page.split_once(&begin) else { return Ok(None) };
    let end = format!("<!-- end {section} -->");
    let (_, after) = rest.split_once(&end).with_context(|| format!("section {section} has no end"))?;
    Ok(Some(format!("{before}{begin}\n{}\n\n{end}{after}", text.trim())))
}

#[cfg(test)]
mod tests {
    use super::replace;

    #[test]
    fn only_the_section_is_replaced() {
        let page = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n<!-- begin y -->\n<!-- end y -->\n";
        let new = replace(page, "x", "new\n").unwrap().unwrap();
        assert_eq!(
            new,
            "a\n<!-- begin x -->\n\nnew\n\n<!-- end x -->\nb\n<!-- begin y -->\n<!-- end y -->\n"
        );
        assert_eq!(replace(&new, "x", "new").unwrap().unwrap(), new);
        assert_eq!(replace(page, "z", "").unwrap(), None);
        assert!(replace("<!-- begin x -->\n", "x", "").is_err());
    }
}
