"use strict";
(() => {
const byId = (id) => document.getElementById(id);
let started = 0;

async function carried(id) {
  if (typeof DecompressionStream === "undefined") throw new Error("This browser is too old for this page.");
  const packed = Uint8Array.from(atob(byId(id).textContent), (c) => c.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

function fail(text) {
  byId("message").textContent = text;
  byId("message").hidden = false;
  byId("progress").hidden = true;
  byId("state").textContent = "";
}

const hear = {
  progress: ([done, total]) => { byId("progress").value = total ? done / total : 0; },
  ready({ bytes, requests, ranges }) {
    byId("progress").hidden = true;
    const how = ranges ? `in ${requests} requests` : "whole, as this host ignores ranges";
    byId("state").textContent = `${(bytes / 1e6).toFixed(1)} MB fetched ${how}`;
    byId("go").disabled = false;
    add();
  },
  answer(text) {
    byId("answer").textContent = text;
    byId("answer").dataset.took = performance.now() - started;
    byId("go").disabled = false;
  },
  failed: fail,
};

let worker = null;
function add() {
  started = performance.now();
  byId("go").disabled = true;
  byId("answer").textContent = "…";
  // The model knows numbers without leading zeros.
  worker.postMessage({ what: "add", sum: `${Number(byId("one").value)}+${Number(byId("two").value)}` });
}
byId("sum").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!byId("go").disabled) add();
});

Promise.all([carried("wasm"), carried("worker")]).then(async ([wasm, script]) => {
  const module = await WebAssembly.compile(wasm);
  worker = new Worker(URL.createObjectURL(new Blob([script], { type: "text/javascript" })));
  worker.onmessage = ({ data }) => hear[data.what](data.data);
  worker.onerror = (event) => { event.preventDefault(); fail(`It cannot be loaded: ${event.message}`); };
  worker.postMessage({ what: "load", module, base: new URL("model/", location.href).href });
}).catch((error) => fail(error.message));
})();
