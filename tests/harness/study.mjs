// Takes part in a study without a network: opens its page, chooses, saves. Takes one JSON argument (page, folder), prints
// one line of JSON: the saved file, what was chosen by the videos' addresses, and what went wrong.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { openBrowser } from "./page.mjs";

const task = JSON.parse(process.argv[2]);
const browser = await openBrowser(task.chromium);
try {
  const context = await browser.newContext({ offline: true, acceptDownloads: true });
  const page = await context.newPage();
  page.setDefaultTimeout(300_000);
  const errors = [], asked = [], pages = [];
  page.on("pageerror", (error) => errors.push(error.message));
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  page.on("request", (request) => asked.push(request.url().slice(0, 10)));
  await page.goto(pathToFileURL(task.page).href);
  for (;;) {
    await page.waitForFunction(() => [...document.querySelectorAll("video")].every(({ videoWidth }) => videoWidth));
    const early = await page.locator("#save").isVisible();
    const blocked = await page.locator("#next").isDisabled();
    const fields = await page.locator("fieldset").all();
    const videos = await page.locator("#results video").evaluateAll((shown) => shown.map(({ src }) => src));
    for (const [number, field] of fields.entries()) await field.locator("input").nth(number % videos.length).check();
    pages.push({ early, blocked, chosen: fields.map((_, number) => videos[number % videos.length]) });
    if (await page.locator("#next").isDisabled()) break;
    await page.click("#next");
  }
  if (task.screenshot) await page.screenshot({ path: task.screenshot, fullPage: true });
  const [download] = await Promise.all([page.waitForEvent("download"), page.click("#save")]);
  const file = join(task.folder, download.suggestedFilename());
  await download.saveAs(file);
  console.log(JSON.stringify({ file, saved: JSON.parse(readFileSync(file, "utf8")), pages, errors, asked }));
} finally {
  await browser.close();
}
