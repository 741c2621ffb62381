// Dials with the result in sight in ComfyUI's front-end, in one renderer of nodes; takes one JSON argument, prints one line of
// JSON. tests/browser/test_expression_result.py says what is expected.
import { join } from "node:path";
import { chooseRenderer, openBrowser, openPage } from "./page.mjs";

const task = JSON.parse(process.argv[2]);
const browser = await openBrowser(task.chromium);
const errors = [];
const page = await openPage(browser, task.address, errors, { width: 1280, height: 1200 });
await chooseRenderer(page, task.vue);
await page.evaluate(async ({ extension, size, prefix }) => {
  const template = await fetch(`/api/workflow_templates/${extension}/expression_editor.json`);
  await app.loadGraphData(await template.json(), true, true, "expression_editor");
  const set = (type, name, value) => {
    for (const node of app.graph._nodes.filter((node) => node.type === type))
      node.widgets.find((widget) => widget.name === name).value = value;
  };
  set("LoadVideo", "file", "short.mp4");
  for (const type of ["DECAExtract", "ReferenceNetEncode", "RenderNormals"]) set(`AniFaceDiff${type}`, "size", size);
  set("AniFaceDiffSaveVideo", "filename_prefix", prefix);
  window.ends = [];
  for (const end of ["execution_success", "execution_error", "execution_interrupted"])
    app.api.addEventListener(end, () => ends.push(end));
  window.editor = () => app.graph._nodes.find((node) => node.type === "AniFaceDiffExpressionEditor");
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [60 - editor().pos[0], 60 - editor().pos[1]];
  app.graph.setDirtyCanvas(true, true);
}, task);

const panel = page.locator(".afd-editor");
const eye = panel.locator("button:has(.pi-eye)");
const slider = (name) => panel.locator(`[data-name^="${name}"]`).first();
const value = () => page.evaluate(() => editor().widgets.find((widget) => widget.name === "expression").value);

// The picture that is shown once it is another than before.
async function another(before) {
  await page.waitForFunction((before) => {
    const { src, complete, naturalWidth } = document.querySelector(".afd-result img");
    return src && src !== before && complete && naturalWidth;
  }, before.src);
  return panel.locator(".afd-result img").evaluate((picture) => {
    const { naturalWidth: side, src } = picture;
    const canvas = Object.assign(document.createElement("canvas"), { width: side, height: side });
    canvas.getContext("2d").drawImage(picture, 0, 0);
    return { src, side, pixels: canvas.toDataURL() };
  });
}

// One that differs: the page also shows the same again, to say that it is there.
async function different(before) {
  let now = before;
  while (now.pixels === before.pixels) now = await another(now);
  return now;
}

try {
  await eye.waitFor();
  await page.waitForFunction(() => !document.querySelector(".afd-editor .pi-eye").parentElement.disabled);
  const found = { hidden: await panel.locator(".afd-result").isHidden() };
  await eye.focus();
  await page.keyboard.press("Enter");
  found.waiting = await panel.locator(".afd-wait").textContent();
  const first = await another({ src: "" });
  found.side = first.side;

  await slider("jawOpen").focus();
  await page.keyboard.press("End");
  const opened = await different(first);
  found.screenshot = join(task.folder, "result.png");
  await page.screenshot({ path: found.screenshot });

  // what is undone is made anew, and the session goes on
  await page.keyboard.press("Control+z");
  await page.waitForFunction(() => !editor()?.widgets[1].value.includes("jawOpen"));
  await different(opened);

  // another moment, and a keyframe at it
  await panel.locator("input[type=number]").fill("3");
  await slider("headYaw").focus();
  await page.keyboard.press("End");
  await different(await another({ src: "" }));
  found.text = await value();
  found.ended = await page.evaluate(() => [...ends]);
  await eye.click();
  await page.waitForFunction(() => ends.length);
  found.end = await page.evaluate(() => ends);
  await page.waitForFunction(() => document.querySelector(".afd-result").hidden);
  found.left = await panel.locator(".afd-result img").getAttribute("src");
  found.queued = await page.evaluate(async () => (await app.graphToPrompt()).output[editor().id].inputs.show_result);
  await page.evaluate(() => editor().disconnectInput("vae"));
  found.off = await eye.isDisabled();
  found.why = await eye.getAttribute("aria-label");
  console.log(JSON.stringify({ ...found, errors }));
} finally {
  await browser.close();
}
