//! Puts the pages together: `pages WASM OUT`, where `WASM` has what was compiled, and `OUT` gets `inspector.html` and the
//! directory `adder`, for a web server.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use flate2::Compression;
use flate2::write::GzEncoder;
use wasm_bindgen_cli_support::Bindgen;
use weighbridge_page::{Page, STYLE, inspect};

/// What the inspector may have, packed as a web server sends it.
const MOST: usize = 600_000;

/// The files of the model that the adder page fetches.
const MODEL: [&str; 3] = ["config.json", "tokenizer.json", "model.safetensors.index.json"];

fn main() -> Result<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [wasm, out] = &*arguments else { bail!("pages WASM OUT") };
    fs::create_dir_all(out)?;
    inspector(wasm, out)?;
    adder(wasm, &out.join("adder"))
}

fn inspector(wasm: &Path, out: &Path) -> Result<()> {
    let (before, shown) = inspect::BODY.split_once("<main").context("the body of the page has no <main>")?;
    let page = Page {
        title: "What is in a checkpoint?",
        body: &format!("{before}{}<main{shown}", include_str!("../../inspector/page/drop.html")),
        style: &format!("{STYLE}{}", include_str!("../../inspector/page/drop.css")),
        script: &format!("{}{}", inspect::SCRIPT, include_str!("../../inspector/page/drop.js")),
        data: compiled(&wasm.join("inspector.wasm"), include_str!("../../inspector/page/worker.js"))?,
        allow: "'wasm-unsafe-eval'",
        policy: "worker-src blob:",
    };
    let size = write(&page, &out.join("inspector.html"))?;
    if size > MOST {
        bail!("inspector.html has {size} bytes when it is packed, and may have {MOST}");
    }
    Ok(())
}

fn adder(wasm: &Path, out: &Path) -> Result<()> {
    let page = Page {
        title: "A model that adds",
        body: include_str!("../../adder/page/adder.html"),
        style: &format!("{STYLE}{}", include_str!("../../adder/page/adder.css")),
        script: include_str!("../../adder/page/adder.js"),
        data: compiled(&wasm.join("adder.wasm"), include_str!("../../adder/page/worker.js"))?,
        allow: "'wasm-unsafe-eval'",
        policy: "worker-src blob:; connect-src 'self'",
    };
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../samples/adder");
    fs::create_dir_all(out.join("model"))?;
    write(&page, &out.join("index.html"))?;
    for file in fs::read_dir(&model)? {
        let name = file?.file_name();
        let is_wanted =
            name.to_str().is_some_and(|name| MODEL.contains(&name) || name.ends_with(".safetensors"));
        if is_wanted {
            fs::copy(model.join(&name), out.join("model").join(&name))?;
        }
    }
    Ok(())
}

/// What was compiled, and the worker that runs it.
fn compiled(wasm: &Path, worker: &str) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let bound = Bindgen::new()
        .input_path(wasm)
        .no_modules(true)?
        .typescript(false)
        .omit_default_module_path(true)
        .remove_name_section(true)
        .remove_producers_section(true)
        .generate_output();
    let mut bound = bound.with_context(|| format!("{}: no page can be made of it", wasm.display()))?;
    let script = format!("{}\n{worker}", bound.js());
    let code = bound.wasm_mut().emit_wasm();
    Ok(vec![("wasm", packed(&code)?), ("worker", packed(script.as_bytes())?)])
}

/// Writes a page, and says what it has when it is packed.
fn write(page: &Page<'_>, path: &Path) -> Result<usize> {
    let mut html = Vec::new();
    page.write(&mut html)?;
    let mut file = BufWriter::new(fs::File::create(path).with_context(|| path.display().to_string())?);
    file.write_all(&html)?;
    file.flush()?;
    let size = packed(&html)?.len();
    println!("{}: {} bytes, {size} packed", path.display(), html.len());
    Ok(size)
}

fn packed(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::best());
    packer.write_all(bytes)?;
    Ok(packer.finish()?)
}
