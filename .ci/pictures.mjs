// Pictures of pages, light and dark: pictures.mjs PAGES IMAGES PLAYWRIGHT

import { createRequire } from "node:module";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [pages, images, modules] = process.argv.slice(2).map((path) => resolve(path));
const { chromium } = createRequire(join(modules, "x.js"))("playwright-core");
const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
});
for (const colorScheme of ["light", "dark"]) {
  const context = await browser.newContext({ viewport: { width: 1100, height: 760 }, colorScheme });
  for (const [name, height] of [["map", 632], ["moved", 736]]) {
    const page = await context.newPage();
    await page.goto(pathToFileURL(join(pages, `${name}.html`)).href);
    await page.waitForFunction(() => document.querySelector("#rows .row"));
    await page.waitForTimeout(500);
    await page.screenshot({ path: join(images, `${name}-${colorScheme}.png`), clip: { x: 0, y: 0, width: 1100, height } });
    await page.close();
  }
  await context.close();
}
await browser.close();
