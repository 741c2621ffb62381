// Runs a workflow that makes a video in ComfyUI's front-end, in one renderer of nodes, and tells what its node shows
// meanwhile and in the end; takes one JSON argument, prints one line of JSON. tests/browser/test_video_preview.py says
// what is expected.
import { join } from "node:path";
import { chooseRenderer, openBrowser, openPage, run } from "./page.mjs";

const task = JSON.parse(process.argv[2]);
const browser = await openBrowser(task.chromium);
const errors = [];

try {
  const page = await openPage(browser, task.address, errors);
  await chooseRenderer(page, task.vue);
  await page.evaluate(async ({ extension, name, type, values }) => {
    const template = await fetch(`/api/workflow_templates/${extension}/${name}.json`);
    await app.loadGraphData(await template.json(), true, true, name);
    const node = app.graph._nodes.find((node) => node.type === type);
    for (const [name, value] of Object.entries(values)) node.widgets.find((each) => each.name === name).value = value;
    window.pictures = new Set(); // sizes of what was shown while the node ran
    window.watching = setInterval(() => {
      for (const image of document.querySelectorAll("img[src^='blob:']"))
        if (image.naturalWidth && image.clientWidth) pictures.add(`${image.naturalWidth}×${image.naturalHeight}`);
    }, 20);
    window.addresses = new Set(); // of pictures that are kept in memory
    const { createObjectURL, revokeObjectURL } = URL;
    URL.createObjectURL = (blob) => {
      const address = createObjectURL(blob);
      addresses.add(address);
      return address;
    };
    URL.revokeObjectURL = (address) => {
      addresses.delete(address);
      revokeObjectURL(address);
    };
    window.shown = () =>
      [...document.querySelectorAll("video")].map(({ src, videoWidth, videoHeight, clientWidth }) => ({
        query: Object.fromEntries(new URL(src).searchParams),
        size: [videoWidth, videoHeight],
        visible: clientWidth > 0,
      }));
  }, task);
  const outcome = await run(page, task.timeout, { drawn: true });
  await page.evaluate(() => {
    clearInterval(watching);
    return app.extensionManager.command.execute("Comfy.Canvas.FitView");
  });
  // a video that does not come is for the test to tell
  const finished = () => shown().some(({ query }) => query.type === "output");
  await page.waitForFunction(finished, null, { timeout: 60_000 }).catch(() => {});
  await page.waitForTimeout(1000);
  const screenshot = join(task.folder, "video_preview.png");
  await page.screenshot({ path: screenshot });
  const found = await page.evaluate(() => ({
    pictures: [...pictures],
    left: document.querySelectorAll("img[src^='blob:']").length,
    videos: shown(),
  }));
  // a picture for a node that is deleted then
  const kept = await page.evaluate(async (type) => {
    addresses.clear();
    const node = app.graph._nodes.find((node) => node.type === type);
    const canvas = document.createElement("canvas");
    const blob = await new Promise((resolve) => canvas.toBlob(resolve));
    app.api.dispatchCustomEvent("b_preview_with_metadata", { blob, displayNodeId: String(node.id) });
    const given = addresses.size;
    await new Promise((resolve) => setTimeout(resolve, 1000));
    app.graph.remove(node);
    await new Promise((resolve) => setTimeout(resolve, 1000));
    return [given, addresses.size];
  }, task.type);
  console.log(JSON.stringify({ ...found, kept, outcome, errors, screenshot }));
} finally {
  await browser.close();
}
