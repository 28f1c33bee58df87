//! What a file is that was taken for safetensors.

/// What the first bytes of a file say it is, and what to do about it, as the end of a sentence: `this is …`. `None` for safetensors and
/// for what is not known.
///
/// 512 bytes are enough; with fewer, some kinds are not told.
///
/// ```
/// let what = weighbridge::header::disguise(b"version https://git-lfs.github.com/spec/v1\n");
/// assert_eq!(what, Some("a Git LFS pointer: `git lfs pull` downloads the file that it stands for"));
/// ```
pub fn disguise(head: &[u8]) -> Option<&'static str> {
    if is_header(head) {
        return None;
    }
    // Of eight bytes or more those that there are must agree.
    let begins = |magic: &[u8]| head.starts_with(magic) || head.len() >= 8 && magic.starts_with(head);
    let by_magic = MAGIC.iter().find(|(magic, _)| begins(magic)).map(|known| known.1);
    by_magic.or_else(|| {
        if head.get(TAR.0..).is_some_and(|rest| rest.starts_with(TAR.1)) {
            return Some("a tar archive: unpack it");
        }
        if head.len() >= 8 && head.iter().all(|&byte| byte == 0) {
            return Some("zeros, as a download or a copy leaves them that broke off: fetch the file again");
        }
        text(head)
    })
}

/// What files begin with that may be here by mistake.
const MAGIC: [(&[u8], &str); 21] = [
    (b"version https://git-lfs", "a Git LFS pointer: `git lfs pull` downloads the file that it stands for"),
    (b"PK\x03\x04", "a zip archive, such as PyTorch's own (pickle) checkpoints are"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x80\x02", "a pickle, such as PyTorch's own checkpoints are"),
    (b"\x80\x03", "a pickle"),
    (b"\x80\x04", "a pickle"),
    (b"\x80\x05", "a pickle"),
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x1f\x8b\x08", "compressed with gzip: unpack it"),
    (b"BZh", "compressed with bzip2: unpack it"),
    (b"\xfd7zXZ\0", "compressed with xz: unpack it"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it"),
    (b"Rar!\x1a\x07", "a RAR archive: unpack it"),
    (b"\x89PNG\r\n", "a picture (PNG)"),
    (b"\xff\xd8\xff", "a picture (JPEG)"),
    (b"GIF8", "a picture (GIF)"),
    (b"%PDF-", "a PDF document"),
    (b"\x7fELF", "a program (ELF)"),
];

/// Where the entry of a tar archive has its magic.
const TAR: (usize, &[u8]) = (257, b"ustar");

/// Whether it begins as safetensors do: a length, whose upper bytes are zero, and a JSON object.
pub(super) fn is_header(head: &[u8]) -> bool {
    head.len() >= 9 && head[4..8] == [0; 4] && matches!(head[8..].trim_ascii_start(), [] | [b'{', ..])
}

/// Of texts, what they are.
fn text(head: &[u8]) -> Option<&'static str> {
    let start = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    match start.first()? {
        b'<' => Some("a web page, perhaps what a server sent instead of the file: log in, or fetch it again"),
        b'{' if is_error(start) => {
            Some("a JSON answer, perhaps what a server sent instead of the file: log in, or fetch it again")
        }
        b'{' | b'[' => Some("JSON without the length that comes before it in safetensors"),
        _ => {
            let is_plain = |byte: &u8| matches!(byte, b'\t' | b'\n' | b'\r' | b' '..=b'~');
            (head.len() >= 8 && head.iter().all(is_plain)).then_some("a plain text")
        }
    }
}

/// Whether an object begins as servers' messages of errors do.
fn is_error(object: &[u8]) -> bool {
    let key = object[1..].trim_ascii_start();
    [&b"\"error\""[..], b"\"message\"", b"\"detail\"", b"\"status\"", b"\"code\""]
        .iter()
        .any(|known| key.starts_with(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_other_kinds_are_named() {
        let mut tar = [0; 512];
        tar[..5].copy_from_slice(b"a.bin");
        tar[257..262].copy_from_slice(b"ustar");
        for (head, said) in [
            (&b"version https://git-lfs.github.com/spec/v1\noid sha256:ab"[..], "`git lfs pull`"),
            (b"version ", "`git lfs pull`"),
            (b"PK\x03\x04\x14\0\0\0", "zip archive"),
            (b"\x80\x02\x8a\x0al\xfc\x9c\x46\xf9\x20", "pickle"),
            (b"GGUF\x03\0\0\0\0", "GGUF"),
            (b"\x1f\x8b\x08\0\0\0\0\0\0\x03", "gzip"),
            (b"\x89PNG\r\n\x1a\n\0\0", "PNG"),
            (&tar, "tar archive"),
            (&[0; 20], "zeros"),
            (b"<!DOCTYPE html><html>", "web page"),
            (b"\xef\xbb\xbf\r\n<html>", "web page"),
            (b"{\"error\":\"Repository not found\"}", "JSON answer"),
            (b"{ \"message\": 1}", "JSON answer"),
            (b"{\"a\":{\"dtype\":\"F32\"", "JSON without"),
            (b"Access denied, see the site\n", "plain text"),
            (b"Entry not found", "plain text"),
        ] {
            let what = disguise(head);
            assert!(what.is_some_and(|what| what.contains(said)), "{said}: {what:?}");
        }
    }

    #[test]
    fn safetensors_are_no_others() {
        // A length may have the bytes of a magic number.
        for head in [
            &b"\x20\0\0\0\0\0\0\0{\"a\":{}}"[..],
            b"\x1f\x8b\x08\0\0\0\0\0{\"a\":{\"dtype\"",
            b"\x80\x02\0\0\0\0\0\0  {}",
            b"",
            b"\x01\x02\x03",
            b"\xde\xad\xbe\xef\xde\xad\xbe\xef\xde",
        ] {
            assert_eq!(disguise(head), None, "{head:?}");
        }
    }
}
