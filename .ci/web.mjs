// Uses the pages of scripts/check-wasm in Chromium as people do: from files, and from web servers with and without ranges.
// web.mjs PAGES FILES PLAYWRIGHT SCREENSHOTS

import assert from "node:assert/strict";
import { createServer } from "node:http";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, existsSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [pages, files, modules, screenshots] = process.argv.slice(2).map((path) => resolve(path));
const { chromium } = createRequire(join(modules, "x.js"))("playwright-core");
mkdirSync(screenshots, { recursive: true });
const profile = mkdtempSync(join(tmpdir(), "weighbridge-web-"));
const context = await chromium.launchPersistentContext(profile, {
  executablePath: "/usr/bin/chromium",
  headless: true,
  args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync"],
  viewport: { width: 1400, height: 1000 },
  colorScheme: "light",
});

// A page, which must not complain, or ask for anything but what is said.
async function open(url, allowed = []) {
  const page = await context.newPage();
  const troubles = [];
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && troubles.push(message.text()));
  page.on("pageerror", (error) => troubles.push(String(error)));
  const asked = (request) => {
    const to = request.url();
    if (to !== url && !/^(data|blob):/.test(to) && !allowed.some((start) => to.startsWith(start))) troubles.push(to);
  };
  page.on("request", asked);
  await page.goto(url);
  return { page, calm: () => assert.deepEqual(troubles, []) };
}

const inspector = join(pages, "inspector.html");
const said = (page) => page.locator("#message").textContent();
const verdicts = (page) => page.locator("#verdicts").innerText();
const totals = (page) => page.locator("#totals").innerText();
const shot = (page, name) => page.screenshot({ path: join(screenshots, `${name}.png`), fullPage: true });

// Gives files to the page, and waits until it has nothing more to say. Returns the milliseconds until it said something.
async function give(page, ...names) {
  const start = performance.now();
  await page.locator("#files").setInputFiles(names.map((name) => join(files, name)));
  await page.waitForFunction(() => !document.getElementById("shown").hidden || !document.getElementById("message").hidden, null, { timeout: 60000 });
  const took = performance.now() - start;
  await page.waitForFunction(() => document.getElementById("doing").textContent === "", null, { timeout: 60000 });
  return took;
}

async function inspect(url) {
  const { page, calm } = await open(url);
  assert.equal(await page.locator("#title").textContent(), "What is in a checkpoint?");
  assert(await page.locator("#choose").isVisible());
  await shot(page, "empty");

  // Far beyond memory, and beyond 32 bits.
  const took = await give(page, "far.safetensors");
  assert.equal(await page.locator("#title").textContent(), "far.safetensors");
  assert.match(await totals(page), /20\.0 GB[^]*41/);
  assert(took < 5000, `20 GB were shown after ${took} ms`);
  assert.match(await verdicts(page), /Every rule of the format holds/);
  await page.locator("#search").fill("zz.last");
  await page.locator("#rows .row:visible").first().click();
  assert.match(await page.locator("#details").innerText(), /At byte\s+20,000,00\d,\d{3}/);
  await page.locator("#search").fill("");
  await shot(page, "far");
  // Reading 20 GB is begun, and given up.
  await page.locator("#values").click();
  await page.waitForFunction(() => /% of the values/.test(document.getElementById("doing").textContent));
  await page.locator("#cancel").click();
  await page.waitForFunction(() => /stopped/.test(document.getElementById("doing").textContent));
  assert(await page.locator("#values").isVisible());
  console.log(`20 GB: shown after ${took.toFixed(0)} ms`);

  // Values.
  await give(page, "near.safetensors");
  await page.locator("#values").click();
  await page.waitForFunction(() => /all values read/.test(document.getElementById("doing").textContent));
  await page.locator("#rows .row:visible").first().click();
  assert.match(await page.locator("#details").innerText(), /Max\s+3[^]*NaN\s+1/);
  assert(await page.locator(".histogram rect").count() > 1);
  assert.match(await verdicts(page), /2 tensors have values that are not finite/);
  await shot(page, "values");

  // Shards with their index; without one of them.
  await give(page, "part.safetensors.index.json", "part-1.safetensors", "part-2.safetensors");
  assert.match(await totals(page), /Tensors\s+2\s+Shards\s+2/);
  await give(page, "part.safetensors.index.json", "part-1.safetensors");
  assert.match(await said(page), /the shard "part-2\.safetensors" that it names is not there/);

  const far = await give(page, "far.gguf");
  assert.match(await totals(page), /4\.29 GB[^]*Tensors\s+2/);
  assert.match(await verdicts(page), /Read as GGUF[^]*no pickle/);
  assert(far < 5000);

  // What runs code.
  for (const name of ["hostile.pkl", "hostile.bin"]) {
    await give(page, name);
    assert.match(await verdicts(page), /Dangerous/);
    assert.match(await verdicts(page), /(posix|nt|os)\.system \(dangerous\)/);
    assert.match(await said(page), /^[^\n]*system[^\n]*$/);
    const red = await page.locator(".evil b").evaluate((it) => getComputedStyle(it).color);
    assert.match(red, /rgb\(194, 40, 29\)/);
  }
  await shot(page, "hostile");
  await give(page, "plain.pkl");
  assert.match(await verdicts(page), /Read as pickle[^]*its pickles import only what makes data/);

  // What is broken, and what is nothing.
  for (const [name, told] of [["short.safetensors", /short/], ["torn.safetensors", /torn/], ["faults.safetensors", /faults/],
    ["text.txt", /format is not recognised/], ["empty.bin", /format is not recognised|empty/], ["noise.bin", /not recognised/]]) {
    await give(page, name);
    const line = await said(page);
    assert.match(line, told);
    assert(!line.includes("\n"), line);
    assert(await page.locator("#shown").isHidden());
  }
  await give(page, "faults.safetensors");
  assert.match(await verdicts(page), /things are wrong with it/);
  await shot(page, "faults");

  // By the keyboard, and in the dark.
  await page.emulateMedia({ colorScheme: "dark" });
  await give(page, "near.safetensors");
  await shot(page, "dark");
  await page.bringToFront();
  await page.locator("#another").focus();
  // The browser is told to hand choosers over; a press before that opens one of its own.
  const choosing = page.waitForEvent("filechooser");
  await page.waitForTimeout(300);
  await page.keyboard.press("Enter");
  const chooser = await choosing;
  await chooser.setFiles(join(files, "hostile.pkl"));
  await page.waitForFunction(() => document.getElementById("verdicts").innerText.includes("Dangerous"));
  await shot(page, "hostile-dark");

  // By dropping.
  const bytes = readFileSync(join(files, "near.safetensors")).toString("base64");
  await page.evaluate((data) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], "dropped.safetensors"));
    document.dispatchEvent(new DragEvent("dragenter", { dataTransfer: transfer, bubbles: true, cancelable: true }));
    if (document.getElementById("over").hidden) throw new Error("the page does not say that it takes files");
    document.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
  }, bytes);
  await page.waitForFunction(() => document.getElementById("title").textContent === "dropped.safetensors");
  assert(await page.locator("#over").isHidden());
  await page.setViewportSize({ width: 390, height: 844 });
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
  assert(wide <= 0, `the page is ${wide} pixels too wide for a telephone`);
  await shot(page, "narrow");
  calm();

  // The policy holds.
  const blocked = await page.evaluate(() => fetch("https://example.invalid/").then(() => "asked", () => "blocked"));
  assert.equal(blocked, "blocked");
  await page.close();
}

// A static host, that knows ranges or does not.
async function host(ranges) {
  const asked = [];
  const server = createServer((request, response) => {
    const path = join(pages, decodeURIComponent(new URL(request.url, "http://x").pathname).replace(/\/$/, "/index.html"));
    if (path.includes("..") || !existsSync(path)) {
      response.writeHead(404).end();
      return;
    }
    const whole = readFileSync(path);
    const type = path.endsWith(".html") ? "text/html; charset=utf-8" : "application/octet-stream";
    const range = ranges && /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "");
    asked.push([path.slice(pages.length), request.headers.range]);
    if (!range) {
      response.writeHead(200, { "Content-Type": type, "Content-Length": whole.length }).end(whole);
      return;
    }
    const [start, end] = [Number(range[1]), Math.min(Number(range[2]), whole.length - 1)];
    response.writeHead(206, { "Content-Type": type, "Content-Length": end - start + 1,
      "Content-Range": `bytes ${start}-${end}/${whole.length}` }).end(whole.subarray(start, end + 1));
  });
  await new Promise((done) => { server.listen(0, "127.0.0.1", done); });
  return { server, asked, url: `http://127.0.0.1:${server.address().port}/` };
}

async function add(ranges) {
  const { server, asked, url } = await host(ranges);
  const { page, calm } = await open(`${url}adder/`, [url]);
  const answer = (text) => page.waitForFunction((text) => document.getElementById("answer").textContent === text, text, { timeout: 120000 });
  await answer("579");
  assert.match(await page.locator("#state").textContent(), ranges ? /1\.[56] MB fetched in \d+ requests/ : /whole, as this host ignores ranges/);
  assert.equal(asked.some(([, range]) => range), true);
  for (const [one, two] of [[7, 8], [999, 999], [120, 46]]) {
    await page.locator("#one").fill(String(one));
    await page.locator("#two").fill(String(two));
    await page.locator("#go").click();
    await answer(String(one + two));
  }
  const took = await page.locator("#answer").getAttribute("data-took");
  await shot(page, ranges ? "adder" : "adder-whole");
  await page.emulateMedia({ colorScheme: "dark" });
  await shot(page, "adder-dark");
  calm();
  await page.close();
  server.close();
  console.log(`adder ${ranges ? "by ranges" : "whole"}: ${asked.length} requests, an answer takes ${Number(took).toFixed(0)} ms`);
}

try {
  await inspect(pathToFileURL(inspector).href);
  const { server, url } = await host(false);
  await inspect(`${url}inspector.html`);
  server.close();
  await add(true);
  await add(false);
  console.log("the pages work");
} finally {
  await context.close();
  rmSync(profile, { recursive: true, force: true });
}
