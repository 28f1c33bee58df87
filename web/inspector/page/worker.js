// The worker: it has the files, and Rust, which reads them where it needs them.

let files = [];
let opened = null;
let stopped = false;
const reader = new FileReaderSync();
self.readSlice = (file, start, end) => new Uint8Array(reader.readAsArrayBuffer(files[file].slice(start, end)));

const tell = (what, data) => self.postMessage({ what, data });
const later = () => new Promise((done) => { setTimeout(done, 0); });

// What went wrong, as a line. Rust's errors are lines; anything else is a fault of ours or a lack of memory.
const line = (error) => (typeof error === "string" ? error : `It cannot be looked at: ${error?.message ?? error}`);

self.onmessage = ({ data }) => {
  if (data.what === "open") open(data).catch((error) => tell("failed", line(error)));
  if (data.what === "read") read().catch((error) => tell("unread", line(error)));
  if (data.what === "stop") stopped = true;
};

async function open({ module, given }) {
  await wasm_bindgen({ module_or_path: module });
  files = given;
  const names = files.map((file) => file.name);
  const sizes = files.map((file) => file.size);
  let failure = null;
  try {
    opened = wasm_bindgen.open(names, sizes);
    tell("document", opened.document());
    tell("checks", { checks: opened.checks(), values: opened.values() });
  } catch (error) {
    failure = line(error);
    tell("faults", { failure, checks: wasm_bindgen.faults(names, sizes) });
  }
  await later();
  tell("doing", "scanning");
  try {
    const scan = wasm_bindgen.scan(names, sizes);
    if (scan) tell("scan", scan);
  } catch (error) {
    if (!failure) throw error;
  }
  tell("done", null);
}

async function read() {
  stopped = false;
  for (;;) {
    const done = opened.read();
    if (done === undefined) break;
    tell("progress", done);
    await later();
    if (stopped) {
      tell("stopped", null);
      return;
    }
  }
  tell("document", opened.document());
  tell("read", null);
}
