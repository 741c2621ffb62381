// Uses Live Reenactment in ComfyUI's front-end with a fake camera, in one renderer of nodes; takes one JSON argument, prints
// one line of JSON. tests/browser/test_live_panel.py says what is expected.
import { join } from "node:path";
import { chromium } from "playwright-core";
import { chooseRenderer, openPage } from "./page.mjs";

const task = JSON.parse(process.argv[2]);
const browser = await chromium.launch({
  executablePath: task.chromium,
  headless: true,
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    `--use-file-for-fake-video-capture=${task.camera}`,
  ],
});
const errors = [];

// The workflow, small, in a page of its own; how its runs end is noted.
async function open() {
  const page = await openPage(browser, task.address, errors, { width: 1400, height: 1200 });
  await chooseRenderer(page, task.vue);
  await page.evaluate(async ({ extension, prefix, size, locale }) => {
    await app.extensionManager.setting.set("Comfy.Locale", locale);
    const template = await fetch(`/api/workflow_templates/${extension}/live.json`);
    await app.loadGraphData(await template.json(), true, true, "live");
    const set = (type, name, value) => {
      for (const node of app.graph._nodes.filter((node) => node.type === type))
        node.widgets.find((widget) => widget.name === name).value = value;
    };
    set("AniFaceDiffDECAExtract", "size", size);
    set("AniFaceDiffReferenceNetEncode", "size", size);
    set("AniFaceDiffSaveVideo", "filename_prefix", prefix);
    window.ends = [];
    for (const end of ["execution_success", "execution_error", "execution_interrupted"])
      app.api.addEventListener(end, () => ends.push(end));
    const node = app.graph._nodes.find((node) => node.type === "AniFaceDiffLive");
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [60 - node.pos[0], 60 - node.pos[1]];
    app.graph.setDirtyCanvas(true, true);
  }, task);
  const panel = page.locator(".afd-live");
  const button = (text) => panel.getByRole("button", { name: text, exact: true });
  await button("Start").waitFor();
  return { page, panel, button };
}

// Pictures that were shown, until there are some that differ.
async function different(panel, count) {
  const seen = new Set();
  const image = panel.locator("img");
  while (seen.size < count) {
    const before = await image.getAttribute("src");
    await panel.page().waitForFunction(
      (before) => {
        const { src, complete, naturalWidth } = document.querySelector(".afd-live img");
        return src !== (before ?? "") && complete && naturalWidth;
      },
      before,
    );
    seen.add(
      await image.evaluate((picture) => {
        const canvas = Object.assign(document.createElement("canvas"), { width: 64, height: 64 });
        canvas.getContext("2d").drawImage(picture, 0, 0, 64, 64);
        return canvas.toDataURL();
      }),
    );
  }
  return seen.size;
}

try {
  const first = await open();
  // by the keyboard
  await first.button("Start").focus();
  await first.page.keyboard.press("Enter");
  const moving = await different(first.panel, 3);
  await first.button("Neutral").click();
  await first.button("Record").focus();
  await first.page.keyboard.press("Space");
  await first.button("End recording").waitFor();
  await first.page.waitForFunction(() => /: [2-9]\d*\//.test(document.querySelector(".afd-live [role=status]").textContent));
  const status = await first.panel.getByRole("status").textContent();
  const screenshot = join(task.folder, "live.png");
  await first.page.screenshot({ path: screenshot });
  await first.button("Stop").click();
  await first.page.waitForFunction(() => ends.length);
  const ended = await first.page.evaluate(() => ends);
  await first.button("Start").waitFor(); // the panel is as before
  const camera = await first.panel.locator("video").evaluate((video) => video.srcObject === null);

  // a page that is closed in the middle
  const second = await open();
  await second.button("Start").click();
  await different(second.panel, 1);
  await second.page.close();
  await first.page.waitForFunction(async () => (await (await fetch("/api/queue")).json()).queue_running.length === 0);
  console.log(JSON.stringify({ moving, status, ended, camera, screenshot, errors }));
} finally {
  await browser.close();
}
