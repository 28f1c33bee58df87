// The worker: it may wait for what it fetches, and the page stays awake.

let base = "";
let adder = null;
let requests = 0;
let bytes = 0;
let ranges = true;
// Of each file its length and, if the host ignores ranges, the file.
const known = new Map();

const tell = (what, data) => self.postMessage({ what, data });
const line = (error) => (typeof error === "string" ? error : `It cannot be loaded: ${error?.message ?? error}`);

function request(name, range) {
  const request = new XMLHttpRequest();
  request.open("GET", base + name, false);
  request.responseType = "arraybuffer";
  if (range) request.setRequestHeader("Range", `bytes=${range[0]}-${range[1] - 1}`);
  try {
    request.send();
  } catch {
    throw `${name}: it cannot be fetched; is the host reachable?`;
  }
  if (request.status !== 200 && request.status !== 206) throw `${name}: it cannot be fetched: the host answers ${request.status}`;
  requests += 1;
  bytes += request.response.byteLength;
  return request;
}

function textOf(name) {
  return new TextDecoder().decode(request(name).response);
}

self.sizeOf = (name) => {
  const first = request(name, [0, 8]);
  const total = /\/(\d+)$/.exec(first.getResponseHeader("Content-Range") ?? "");
  if (first.status === 206 && total) {
    known.set(name, { size: Number(total[1]), whole: null });
  } else {
    ranges = false;
    const whole = first.status === 200 ? first.response : request(name).response;
    known.set(name, { size: whole.byteLength, whole });
  }
  return known.get(name).size;
};

self.readRange = (name, start, end) => {
  const { whole } = known.get(name);
  if (whole) return new Uint8Array(whole, start, end - start);
  const got = new Uint8Array(request(name, [start, end]).response);
  if (got.length !== end - start) throw `${name}: the host sends ${got.length} bytes where ${end - start} were asked for`;
  return got;
};

self.told = (done, total) => tell("progress", [done, total]);

self.onmessage = async ({ data }) => {
  try {
    if (data.what === "load") {
      base = data.base;
      await wasm_bindgen({ module_or_path: data.module });
      adder = new wasm_bindgen.Adder(textOf("config.json"), textOf("tokenizer.json"), textOf("model.safetensors.index.json"));
      tell("ready", { bytes, requests, ranges });
    } else {
      tell("answer", adder.add(data.sum));
    }
  } catch (error) {
    tell("failed", line(error));
  }
};
