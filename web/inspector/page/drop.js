"use strict";
(() => {
const byId = (id) => document.getElementById(id);
const { show, say } = globalThis.weighbridge;

let worker = null;
let all = 0;

// Bytes that the page carries: gzip, in base64.
async function carried(id) {
  if (typeof DecompressionStream === "undefined" || typeof Worker === "undefined") {
    throw new Error("This browser is too old for this page: Chrome 80, Firefox 113 and Safari 16.4 can, and later ones.");
  }
  const packed = Uint8Array.from(atob(byId(id).textContent), (c) => c.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

const ready = Promise.all([carried("wasm").then((bytes) => WebAssembly.compile(bytes)),
  carried("worker").then((bytes) => URL.createObjectURL(new Blob([bytes], { type: "text/javascript" })))]);
ready.catch((error) => say(error.message));

// Each time a worker of its own: what went before leaves no memory, and is not waited for.
async function look(given) {
  if (given.length === 0) return;
  worker?.terminate();
  worker = null;
  say("");
  byId("empty").hidden = true;
  byId("looked").hidden = false;
  byId("shown").hidden = true;
  byId("verdicts").replaceChildren();
  byId("what").textContent = given.length === 1 ? given[0].name : `${given[0].name} and ${given.length - 1} more`;
  byId("title").textContent = byId("what").textContent;
  waiting(false);
  byId("values").hidden = true;
  doing("reading");
  try {
    const [module, url] = await ready;
    const mine = new Worker(url);
    worker = mine;
    mine.onmessage = ({ data }) => worker === mine && hear[data.what](data.data);
    mine.onerror = (event) => { event.preventDefault(); hear.failed(`It cannot be looked at: ${event.message}`); };
    mine.postMessage({ what: "open", module, given });
  } catch (error) {
    hear.failed(error.message);
  }
}

const hear = {
  document(text) {
    const shown = JSON.parse(text);
    show(shown);
    if (shown.columns.figures) showValues(shown.columns.figures);
    doing("");
  },
  checks({ checks, values }) {
    all = values;
    byId("values").hidden = values === 0;
    showChecks(JSON.parse(checks));
  },
  faults({ failure, checks }) {
    say(failure);
    const { errors } = JSON.parse(checks);
    if (errors.count > 1) verdict("evil", `${errors.count} things are wrong with it`, errors);
  },
  scan(text) { showScan(JSON.parse(text)); },
  doing,
  done() { doing(""); },
  progress(done) { byId("progress").value = all ? done / all : 1; doing(`${Math.floor((100 * done) / all)}% of the values read`); },
  read() { waiting(false); byId("values").hidden = true; doing("all values read"); },
  stopped() { waiting(false); doing("stopped; press again to go on"); },
  unread(text) { waiting(false); doing(""); say(text); },
  failed(text) { waiting(false); doing(""); say(text); },
};

function doing(text) { byId("doing").textContent = text; }

function waiting(is) {
  byId("progress").hidden = !is;
  byId("cancel").hidden = !is;
  byId("values").hidden = is;
}

// A line: how good it is, what it says, and a list.
function verdict(kind, text, list) {
  const item = document.createElement("li");
  item.className = kind;
  const mark = document.createElement("span");
  mark.className = "mark";
  mark.textContent = { good: "✓", odd: "!", evil: "✕", plain: "·" }[kind];
  const body = document.createElement("div");
  body.append(text);
  if (list && list.lines.length > 0) {
    const lines = document.createElement("ul");
    for (const line of list.lines) {
      const row = document.createElement("li");
      row.append(line);
      lines.append(row);
    }
    if (list.count > list.lines.length) lines.append(Object.assign(document.createElement("li"), { textContent: `and ${list.count - list.lines.length} more` }));
    body.append(lines);
  }
  item.append(mark, body);
  byId("verdicts").append(item);
}

function showChecks({ format, warnings, notes }) {
  const rules = format === "safetensors" ? "Every rule of the format holds for the headers" : `Read as ${format}`;
  if (warnings.count === 0) verdict("good", `${rules}.`);
  else verdict("odd", `${rules}, with ${warnings.count === 1 ? "a warning" : `${warnings.count} warnings`}:`, warnings);
  if (notes.count > 0) verdict("plain", "To show it as tensors, this was changed or left out:", notes);
}

function showScan({ verdict: found, pickles, imports, more, problems }) {
  const says = {
    dangerous: ["evil", "Dangerous: whoever loads it with pickle runs code that it brings along."],
    unknown: ["odd", "It imports what is not known to be harmless; loading it with pickle may run anything."],
    incomplete: ["odd", "There is more in it than was understood; what that is for is not known."],
    harmless: ["good", pickles ? "Scanned: its pickles import only what makes data." : "Scanned: there is no pickle in it."],
  };
  const [kind, text] = says[found];
  const bold = document.createElement("b");
  bold.textContent = text;
  verdict(kind, bold, { count: problems.length, lines: problems });
  if (imports.length === 0) return;
  const lines = imports.map(({ name, verdict: of }) => {
    const code = document.createElement("code");
    code.textContent = `${name} (${of})`;
    if (of === "dangerous") code.className = "evil";
    return code;
  });
  verdict("plain", "It imports:", { count: lines.length + more, lines });
}

function showValues(figures) {
  const odd = figures.filter((of) => of && of.nans + of.positive_infinities + of.negative_infinities > 0).length;
  if (odd === 0) verdict("good", "All values that can be read are finite.");
  else verdict("odd", `${odd === 1 ? "1 tensor has" : `${odd} tensors have`} values that are not finite.`);
}

const choose = () => byId("files").click();
byId("choose").addEventListener("click", choose);
byId("another").addEventListener("click", choose);
byId("files").addEventListener("change", (event) => {
  look([...event.target.files]);
  event.target.value = "";
});
byId("values").addEventListener("click", () => {
  waiting(true);
  byId("progress").value = 0;
  worker.postMessage({ what: "read" });
});
byId("cancel").addEventListener("click", () => worker.postMessage({ what: "stop" }));
document.addEventListener("keydown", (event) => {
  if (event.key === "o" && !event.ctrlKey && !event.metaKey && !event.altKey && !(event.target instanceof HTMLInputElement)) choose();
});

// Files may be dropped anywhere.
let inside = 0;
const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
const over = (event, change) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  inside = Math.max(0, inside + change);
  byId("over").hidden = inside === 0;
};
document.addEventListener("dragenter", (event) => over(event, 1));
document.addEventListener("dragleave", (event) => over(event, -1));
document.addEventListener("dragover", (event) => over(event, 0));
document.addEventListener("drop", (event) => {
  over(event, -inside);
  if (hasFiles(event)) look([...event.dataTransfer.files]);
});
byId("title").textContent = "What is in a checkpoint?";
})();
