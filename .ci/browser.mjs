// Opens the pages of `weighbridge inspect --html` and `diff --html` in Chromium and uses them as people do.
// browser.mjs CHECKPOINTS WEIGHBRIDGE PLAYWRIGHT SCREENSHOTS

import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [checkpoints, weighbridge, modules, screenshots] = process.argv.slice(2).map((path) => resolve(path));
const { chromium } = createRequire(join(modules, "x.js"))("playwright-core");
mkdirSync(screenshots, { recursive: true });
const profile = mkdtempSync(join(tmpdir(), "weighbridge-browser-"));
const context = await chromium.launchPersistentContext(profile, {
  executablePath: "/usr/bin/chromium",
  headless: true,
  args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync"],
  viewport: { width: 1400, height: 1000 },
  colorScheme: "light",
});

function pageOf(name, ...options) {
  const html = join(screenshots, `${name.replace(/\W/g, "-")}.html`);
  execFileSync(weighbridge, ["inspect", join(checkpoints, name), "--html", html, "--force", "--quiet", ...options]);
  return pathToFileURL(html).href;
}

// That of two checkpoints, which differ: the command says so.
function diffOf(a, b, name, ...options) {
  const html = join(screenshots, `${name}.html`);
  const paths = [join(checkpoints, a), join(checkpoints, b)];
  const ran = spawnSync(weighbridge, ["diff", ...paths, "--html", html, "--force", "--quiet", ...options], { encoding: "utf8" });
  assert.equal(ran.status, 1, ran.stderr);
  return pathToFileURL(html).href;
}

// Light, dark, and as wide as a telephone.
async function photograph(page, name) {
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme });
    await settle(page);
    await page.screenshot({ path: join(screenshots, `${name}-${colorScheme}.png`), fullPage: true });
  }
  await page.emulateMedia({ colorScheme: "light" });
  await page.setViewportSize({ width: 390, height: 844 });
  await settle(page);
  const overflow = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
  assert(overflow <= 0, `${name} is ${overflow} pixels too wide for a telephone`);
  await page.screenshot({ path: join(screenshots, `${name}-narrow.png`), fullPage: true });
  await page.setViewportSize({ width: 1400, height: 1000 });
  await settle(page);
}

// A page, which must not complain or ask for anything.
async function open(url, shown = "#rows .row") {
  const page = await context.newPage();
  const troubles = [];
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && troubles.push(message.text()));
  page.on("pageerror", (error) => troubles.push(String(error)));
  page.on("dialog", (dialog) => { troubles.push("a dialog"); dialog.dismiss(); });
  page.on("request", (request) => !/^(data:|file:)/.test(request.url()) && troubles.push(request.url()));
  page.on("request", (request) => request.url().startsWith("file:") && request.url() !== url && troubles.push(request.url()));
  const start = performance.now();
  await page.goto(url);
  await page.waitForSelector(shown, { state: "attached" });
  const took = performance.now() - start;
  return { page, took, calm: () => assert.deepEqual(troubles, []) };
}

const crumbs = (page) => page.locator("#crumbs button").allTextContents();
const found = (page) => page.locator("#found").textContent();
const rows = (page) => page.locator("#rows .row:visible");
const names = async (page) => {
  const texts = await rows(page).evaluateAll((all) => all
    .map((row) => [Number(row.getAttribute("aria-rowindex")), row.querySelector(".name").textContent])
    .sort((a, b) => a[0] - b[0]));
  return texts.map(([, name]) => name);
};
const settle = (page) => page.waitForTimeout(400);
// Colours at a grid of points of the map.
const picture = (page) => page.evaluate(() => {
  const canvas = document.getElementById("map");
  const copy = new OffscreenCanvas(canvas.width, canvas.height);
  const g = copy.getContext("2d", { willReadFrequently: true });
  g.drawImage(canvas, 0, 0);
  const found = [];
  for (let x = 1; x < 20; x += 1) for (let y = 1; y < 10; y += 1) {
    found.push([...g.getImageData((canvas.width * x) / 20, (canvas.height * y) / 10, 1, 1).data].join());
  }
  return found;
});

async function llama() {
  const { page, calm } = await open(pageOf("llama.safetensors", "--stats"));
  await settle(page);
  await page.screenshot({ path: join(screenshots, "light.png"), fullPage: true });
  assert.equal(await page.locator("#title").textContent(), "llama.safetensors");
  const before = await picture(page);
  assert(new Set(before).size > 3, "the map is drawn");

  // The map: in by a press, out by the path above it and by the keyboard.
  const box = await page.locator("#map").boundingBox();
  assert.deepEqual(await crumbs(page), ["all"]);
  await page.mouse.move(box.x + 60, box.y + 120);
  assert.match(await page.locator("#tip").textContent(), /model\.layers\.\d+.*of the whole/s);
  await page.mouse.click(box.x + 60, box.y + 120);
  await settle(page);
  assert.equal((await crumbs(page)).length, 2);
  assert.notDeepEqual(await picture(page), before);
  await page.mouse.click(box.x + 60, box.y + 120);
  await settle(page);
  assert.equal((await crumbs(page)).length, 3);
  await page.screenshot({ path: join(screenshots, "zoomed.png"), fullPage: true });
  await page.locator("#crumbs button").first().click();
  await settle(page);
  assert.deepEqual(await crumbs(page), ["all"]);
  await page.locator("#map").focus();
  await page.keyboard.press("ArrowRight");
  assert.match(await page.locator("#map-live").textContent(), /tensor/);
  await page.keyboard.press("Enter");
  await settle(page);
  assert.equal((await crumbs(page)).length, 2);
  await page.keyboard.press("Escape");
  await settle(page);
  assert.deepEqual(await crumbs(page), ["all"]);

  // The table: search, sort, a dtype, a tensor and its histogram.
  await page.keyboard.press("/");
  await page.keyboard.type("layers.3 q_proj");
  await settle(page);
  assert.equal(await found(page), "1 of 147");
  assert.deepEqual(await names(page), ["model.layers.3.self_attn.q_proj.weight"]);
  await rows(page).first().click();
  assert.equal(await page.locator(".tensor-name").textContent(), "model.layers.3.self_attn.q_proj.weight");
  assert(await page.locator(".histogram rect").count() > 10, "the histogram has bars");
  assert.match(await page.locator("#details").textContent(), /Min−0\.\d+Mean.*NaN0/s);
  await page.screenshot({ path: join(screenshots, "searched.png"), fullPage: true });
  await page.locator("#search").fill("");
  await settle(page);
  await page.locator("#heads button", { hasText: "Bytes" }).click();
  assert.deepEqual((await names(page)).slice(0, 2).sort(), ["lm_head.weight", "model.embed_tokens.weight"]);
  await page.locator("#heads button", { hasText: "Bytes" }).click();
  assert.match((await names(page))[0], /norm/);
  assert.equal(await page.locator('[aria-sort="ascending"]').textContent(), "Bytes");
  await page.locator(".chip", { hasText: "F32" }).first().click();
  assert.equal(await found(page), "33 of 147");
  await page.locator(".chip", { hasText: "F32" }).first().click();
  assert.equal(await found(page), "147");

  // Dark, by the button and by the system; narrow.
  const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const light = [await ground(), (await picture(page)).join()];
  await page.locator("#theme").click();
  const dark = [await ground(), (await picture(page)).join()];
  assert.notEqual(light[0], dark[0]);
  assert.notEqual(light[1], dark[1]);
  await page.screenshot({ path: join(screenshots, "dark.png"), fullPage: true });
  await page.locator("#theme").click();
  assert.equal(await ground(), light[0]);
  await page.setViewportSize({ width: 390, height: 844 });
  await settle(page);
  const overflow = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
  assert(overflow <= 0, `the page is ${overflow} pixels too wide for a telephone`);
  await page.screenshot({ path: join(screenshots, "narrow.png"), fullPage: true });
  calm();
  await page.close();
}

async function large() {
  const { page, took, calm } = await open(pageOf("large"));
  assert.equal(await found(page), "20,000");
  assert(await page.locator("#rows .row").count() < 100, "only rows in sight exist");
  await settle(page);
  await page.screenshot({ path: join(screenshots, "large.png"), fullPage: true });
  const timed = async (act) => page.evaluate(act);
  const searching = await timed(() => new Promise((done) => {
    const start = performance.now();
    const input = document.getElementById("search");
    input.value = "experts.137 down";
    input.dispatchEvent(new Event("input"));
    const wait = () => (document.getElementById("found").textContent === "48 of 20,000"
      ? done(performance.now() - start) : requestAnimationFrame(wait));
    wait();
  }));
  await page.locator("#search").fill("");
  await settle(page);
  const sorting = await timed(() => {
    const start = performance.now();
    document.querySelectorAll("#heads button")[3].click();
    return performance.now() - start;
  });
  const scrolling = await timed(() => new Promise((done) => {
    const start = performance.now();
    document.getElementById("rows").scrollTop = 1e9;
    requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - start)));
  }));
  const last = await page.locator("#rows .row:visible").evaluateAll((all) => Math.max(...all.map((row) => row.ariaRowIndex)));
  assert.equal(last, 20001);
  await page.emulateMedia({ colorScheme: "dark" });
  await settle(page);
  await page.screenshot({ path: join(screenshots, "large-dark.png"), fullPage: true });
  console.log(`20,000 tensors: open ${took.toFixed(0)} ms, search ${searching.toFixed(0)} ms, sort ${sorting.toFixed(0)} ms, `
    + `scroll ${scrolling.toFixed(0)} ms`);
  assert(took < 4000 && searching < 1000 && sorting < 1000 && scrolling < 500, "20,000 tensors stay usable");
  calm();
  await page.close();
}

async function hostile() {
  const { page, calm } = await open(pageOf("hostile.safetensors", "--stats"));
  await settle(page);
  assert.equal(await found(page), "9");
  assert.equal(await page.locator("img").count(), 0);
  assert((await names(page)).some((name) => name.includes("</script><img src=x onerror=alert(1)>")));
  assert.match(await page.locator("#metadata").textContent(), /<img src=x onerror=alert\(1\)>.*\\u\{2028\}/s);
  await page.locator("#search").fill("</script>");
  await settle(page);
  await rows(page).first().click();
  assert.match(await page.locator("#details").textContent(), /NaN4/);
  await page.screenshot({ path: join(screenshots, "hostile.png"), fullPage: true });
  // The policy holds: what a script adds is not loaded.
  const blocked = await page.evaluate(() => new Promise((done) => {
    document.addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective));
    const image = document.createElement("img");
    image.src = "https://example.invalid/x.png";
    document.body.append(image);
  }));
  assert.equal(blocked, "img-src");
  await page.close();
  const again = await open(pageOf("hostile.safetensors", "--stats"));
  await settle(again.page);
  again.calm();
  await again.page.close();
  const empty = await open(pageOf("empty.safetensors"), "#shown:not([hidden])");
  await settle(empty.page);
  assert.equal(await found(empty.page), "0");
  empty.calm();
  await empty.page.close();
}

// Layers in reading order, whatever else is in their module.
async function order() {
  const { page, calm } = await open(pageOf("llama.safetensors"));
  await settle(page);
  const places = await page.evaluate(() => {
    const at = [];
    const fill = CanvasRenderingContext2D.prototype.fillText;
    CanvasRenderingContext2D.prototype.fillText = function (text, x, y) { if (/^\d+$/.test(text)) at.push([Number(text), x, y]); return fill.call(this, text, x, y); };
    document.getElementById("theme").click();
    CanvasRenderingContext2D.prototype.fillText = fill;
    return at;
  });
  const read = [...places].sort((a, b) => a[2] - b[2] || a[1] - b[1]).map(([number]) => number);
  assert.deepEqual(read, [...Array(16).keys()]);
  calm();
  await page.close();
}

// 229,200 tensors: at most 10 MB, and shown in 3 s (median of 5).
async function vast() {
  const url = pageOf("vast");
  const size = statSync(new URL(url)).size;
  const times = [];
  for (let i = 0; i < 5; i += 1) {
    const { page, took, calm } = await open(url);
    times.push(took);
    assert.equal(await found(page), "229,200");
    if (i === 0) {
      await settle(page);
      await page.screenshot({ path: join(screenshots, "vast.png"), fullPage: true });
    }
    calm();
    await page.close();
  }
  const median = times.sort((a, b) => a - b)[2];
  console.log(`229,200 tensors: ${(size / 1e6).toFixed(1)} MB, open ${median.toFixed(0)} ms`);
  assert(size < 10e6 && median < 3000, "229,200 tensors are small and quick");
}

// A page without data, filled later, and again with others; and a browser that cannot unpack.
async function filled() {
  const whole = readFileSync(new URL(pageOf("hostile.safetensors")), "utf8");
  const html = join(screenshots, "filled.html");
  writeFileSync(html, whole.replace(/<script type="application\/octet-stream" id="data">[^<]*<\/script>/, ""));
  const { page, calm } = await open(pathToFileURL(html).href, "#shown[hidden]");
  const tensor = (name) => ({
    name, path: `dir/${name}`, tensors_in_all: 2, count: 2, elements: 6, bytes: 24, ranks: 0, stacks: [], metadata: {},
    dtypes: [{ dtype: "F32", tensors: 2, elements: 6, bytes: 24 }], shards: [{ file: name, tensors: 2, bytes: 24 }],
    forms: [{ dtype: "F32", shape: [3], elements: 3, bytes: 12 }],
    columns: { name: [`${name}.a`, `${name}.b`], form: [0, 0], shard: [0, 0], offset: [100, 2 ** 40], figures: null },
  });
  for (const name of ["first", "second"]) {
    await page.evaluate((document) => globalThis.weighbridge.show(document), tensor(name));
    await settle(page);
    assert.equal(await page.locator("#title").textContent(), name);
    assert.deepEqual(await names(page), [`${name}.a`, `${name}.b`]);
    await rows(page).nth(1).click();
    assert.match(await page.locator("#details").textContent(), /1,099,511,627,776/);
    assert.equal(await page.locator(".chip").count(), 1);
    assert.equal(await page.locator("#heads [role=columnheader]").count(), 5);
  }
  calm();
  await page.close();
  const old = await context.newPage();
  await old.addInitScript(() => { delete globalThis.DecompressionStream; });
  await old.goto(pageOf("hostile.safetensors"));
  await old.waitForSelector("#message:not([hidden])");
  assert.match(await old.locator("#message").textContent(), /cannot unpack/);
  await old.close();
}

async function diff() {
  const { page, calm } = await open(diffOf("llama.safetensors", "tuned.safetensors", "moved", "--data"));
  await settle(page);
  assert.equal(await page.locator("#title").textContent(), "llama.safetensors → tuned.safetensors");
  assert.match(await page.locator("#verdict").textContent(), /146 tensors in both .* 1 other shape .* 1 only in A · 1 only in B/);
  assert.match(await page.locator("#scale").textContent(), /Relative change, ‖B − A‖ \/ ‖A‖.*%/);
  assert(await page.locator(".cells .cell").count() >= 16 * 9, "a cell for each layer and module");
  const first = (await names(page))[0];
  assert.match(first, /layers\.15\..*q_proj/, "what moved most stands first");
  const colors = () => page.locator(".cells .cell").evaluateAll((all) => all.map((cell) => cell.getAttribute("fill")));
  const before = await colors();
  await page.locator(".measure", { hasText: "Largest difference" }).click();
  assert.match(await page.locator("#scale").textContent(), /Largest \|B − A\| of a value/);
  assert.notDeepEqual(await colors(), before);
  await page.locator(".measure", { hasText: "Relative change" }).click();
  assert.deepEqual(await colors(), before);
  // By the mouse and by keys.
  await page.locator(".cells .cell").nth(40).hover();
  assert.match(await page.locator("#tip").textContent(), /model\.layers\.\d+.*relative change/s);
  await page.locator(".cells").first().focus();
  await page.keyboard.press("ArrowDown");
  await page.keyboard.press("ArrowRight");
  await page.keyboard.press("ArrowDown");
  assert.match(await page.locator("#heat-live").textContent(), /model\.layers\.1 mlp.down_proj, .* relative change/);
  await page.keyboard.press("Enter");
  assert.equal(await page.locator(".tensor-name").textContent(), "model.layers.1.mlp.down_proj.weight");
  assert.match(await page.locator("#details").textContent(), /Cosine(1|0\.9\d+)Norm of A/);
  await page.locator(".chip", { hasText: "only in B" }).click();
  assert.deepEqual(await names(page), ["model.extra.weight"]);
  await page.locator(".chip", { hasText: "only in B" }).click();
  await page.locator("#search").fill("layers.3. up_proj");
  await settle(page);
  assert.deepEqual(await names(page), ["model.layers.3.mlp.up_proj.weight"]);
  await page.locator("#search").fill("");
  await settle(page);
  await photograph(page, "diff");
  calm();
  await page.close();
  const plain = await open(diffOf("llama.safetensors", "tuned.safetensors", "structure"));
  await settle(plain.page);
  assert.match(await plain.page.locator("#heat-title").textContent(), /What differs/);
  assert.equal(await plain.page.locator("#measures").isVisible(), false);
  await photograph(plain.page, "structure");
  plain.calm();
  await plain.page.close();
  const bad = await open(diffOf("hostile.safetensors", "llama.safetensors", "hostile-diff", "--data"));
  await settle(bad.page);
  assert.equal(await bad.page.locator("img").count(), 0);
  bad.calm();
  await bad.page.close();
}

async function run() {
  const { page, calm } = await open(pageOf("run"), "#checkpoints tbody tr");
  await settle(page);
  assert.equal(await page.locator("#title").textContent(), "run");
  assert.match(await page.locator("#totals").textContent(), /Checkpoints8Fromepoch 1Toepoch 8.*seed7/);
  const titles = await page.locator("#numbers h2").allTextContents();
  assert.deepEqual(titles, ["Loss", "rate"]);
  assert.equal(await page.locator("#numbers .card").first().locator("polyline").count(), 2);
  assert.equal(await page.locator("#checkpoints tbody tr").count(), 8);
  const lines = await page.locator("#weights polyline").count();
  assert(lines > 5, "a line for each module");
  const points = () => page.locator("#weights polyline").evaluateAll((all) => all.map((line) => line.getAttribute("points")).join());
  const norms = await points();
  await page.locator("#measures .measure", { hasText: "Change" }).click();
  assert.notEqual(await points(), norms);
  await page.locator("#groups .measure", { hasText: "By layer" }).click();
  assert.match(await page.locator("#modules-title").textContent(), /Change by layer/);
  assert.equal(await page.locator("#weights polyline").count(), 4);
  await page.locator("#measures .measure", { hasText: "Norm" }).click();
  await page.locator("#groups .measure", { hasText: "By module" }).click();
  await page.locator("#weights svg").focus();
  await page.keyboard.press("ArrowRight");
  await page.keyboard.press("ArrowRight");
  assert.match(await page.locator("#tip").textContent(), /epoch 2.*q_proj/s);
  await page.keyboard.press("Escape");
  assert.equal(await page.locator("#tip").isVisible(), false);
  await page.locator("#legend .chip", { hasText: "q_proj" }).click();
  assert.equal(await page.locator("#weights polyline[opacity='1']").count(), 1);
  await page.locator("#legend .chip", { hasText: "q_proj" }).click();
  await photograph(page, "run");
  calm();
  await page.close();
}

try {
  await llama();
  await order();
  await large();
  await vast();
  await hostile();
  await filled();
  await diff();
  await run();
  console.log("the pages work");
} finally {
  await context.close();
  rmSync(profile, { recursive: true, force: true });
}
