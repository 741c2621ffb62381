// Works with the Expression Editor in ComfyUI's front-end as an artist would, in one renderer of nodes; takes one JSON
// argument, prints one line of JSON. tests/browser/test_expression_editor.py says what is expected.
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { chooseRenderer, openBrowser, openPage, run } from "./page.mjs";

const task = JSON.parse(process.argv[2]);
const browser = await openBrowser(task.chromium);
const errors = [];
const page = await openPage(browser, task.address, errors, { width: 1280, height: 1000 });

async function prepare() {
  await chooseRenderer(page, task.vue);
  await page.evaluate(async ({ size, prefix }) => {
    window.editors = () =>
      app.graph._nodes.filter((node) => node.type === "AniFaceDiffExpressionEditor").sort((a, b) => a.id - b.id);
    app.graph.clear();
    const add = (type, x, values = {}) => {
      const node = LiteGraph.createNode(type);
      node.pos = [x, 40];
      app.graph.add(node);
      for (const [name, value] of Object.entries(values)) node.widgets.find((each) => each.name === name).value = value;
      return node;
    };
    const editor = add("AniFaceDiffExpressionEditor", 60);
    const normals = add("AniFaceDiffRenderNormals", 460, { size });
    const save = add("SaveImage", 780, { filename_prefix: prefix });
    editor.connect(0, normals, "parameters");
    normals.connect(0, save, "images");
    // the host marks a graph that it loads, and takes the mark for a change of one that it has not loaded
    await app.loadGraphData(JSON.parse(JSON.stringify(app.graph.serialize())));
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [20, 40];
    app.graph.setDirtyCanvas(true, true);
    app.extensionManager.workflow.activeWorkflow.changeTracker.checkState();
  }, task);
  await page.waitForFunction(() => document.querySelector(".afd-view canvas")?.width > 300);
  await settle();
}

// Until what is to be drawn has been drawn.
function settle() {
  return page.evaluate(async () => {
    for (let frame = 0; frame < 4; frame++) await new Promise(requestAnimationFrame);
  });
}

const panel = page.locator(".afd-editor").first();
const slider = (name) => panel.locator(`[data-name^="${name}"]`).first();
const view = panel.locator("canvas");
const button = (icon) => panel.locator(`button:has(.${icon})`);

function value(at = 0) {
  return page.evaluate((at) => editors().at(at).widgets.find((widget) => widget.name === "expression").value, at);
}

// The pixels of the head in the first panel, as a text to compare.
async function picture(at = 0) {
  await settle();
  return page.locator(".afd-view canvas").nth(at).evaluate((canvas) => canvas.toDataURL());
}

async function drag(locator, from, to) {
  const { x, y, width, height } = await locator.boundingBox();
  await page.mouse.move(x + from[0] * width, y + from[1] * height);
  await page.mouse.down();
  await page.mouse.move(x + to[0] * width, y + to[1] * height, { steps: 4 });
  await page.mouse.up();
}

async function press(...keys) {
  for (const key of keys) await page.keyboard.press(key);
}

async function mouseAndKeys() {
  const found = { positions: await positions(), rest: await picture() };
  await drag(slider("headYaw"), [0.5, 0.5], [0.25, 0.5]);
  found.dragged = { value: await value(), picture: await picture() };
  await slider("eyeBlinkLeft").focus();
  await press("End", "ArrowLeft", "ArrowDown", "Shift+ArrowLeft");
  found.arrows = await value();
  await press("Home");
  found.home = await value();
  await press("0", ".", "3", "Enter");
  found.typed = await value();
  await press("Tab");
  found.tabbed = await page.evaluate(() => document.activeElement.dataset.name);
  await press("End", "Escape");
  found.escaped = await value();
  await slider("eyeBlinkLeft").focus();
  await press("Delete");
  found.deleted = await value();
  await slider("headYaw").dblclick();
  found.reset = await value();
  found.positionsAfter = await positions();
  return found;
}

function positions() {
  return page.evaluate(() => Object.fromEntries(app.graph._nodes.map((node) => [node.id, [...node.pos]])));
}

async function presetsAndMirror() {
  const found = {};
  await panel.locator("select").first().selectOption("Wink");
  found.wink = { value: await value(), mirrored: await button("pi-link").getAttribute("aria-pressed") };
  await button("pi-link").click();
  found.mirrored = await value();
  await button("pi-link").click();
  await slider("browDownRight").focus();
  await press("End");
  found.oneSide = await value();
  found.limits = await panel.locator("[role=slider]").evaluateAll((all) =>
    all.map((each) => [each.dataset.name, Number(each.ariaValueMin), Number(each.ariaValueMax)]),
  );
  found.labels = await panel.locator("[role=slider]").evaluateAll((all) => all.map((each) => each.ariaLabel));
  await button("pi-refresh").click();
  found.reset = await value();
  await button("pi-link").click();
  return found;
}

// An expression is saved under a name, chosen again, and forgotten.
async function ownPresets() {
  await slider("jawOpen").focus();
  await press("End");
  await button("pi-save").click();
  await page.keyboard.type("Yawn of mine");
  await press("Enter");
  const choice = panel.locator("select").first();
  const own = panel.locator("option", { hasText: "Yawn of mine" });
  await own.waitFor({ state: "attached" });
  const found = { focused: await page.evaluate(() => document.activeElement.querySelector("i")?.className) };
  found.chosen = await choice.inputValue();
  await button("pi-refresh").click();
  await choice.selectOption("/Yawn of mine");
  found.value = await value();
  found.kept = await page.evaluate(async () => (await app.api.getUserData("anifacediff_presets.json")).json());
  await button("pi-trash").click();
  await own.waitFor({ state: "detached" });
  found.forgotten = await page.evaluate(async () => (await app.api.getUserData("anifacediff_presets.json")).json());
  found.off = await button("pi-trash").isDisabled();
  await button("pi-refresh").click();
  return found;
}

async function keyframes() {
  const shown = (name) => slider(name).getAttribute("aria-valuenow").then(Number);
  const number = panel.locator("input[type=number]");
  const [bar, easing] = [panel.locator("input[type=range]"), panel.locator(".afd-timeline select")];
  const found = { alone: await button("pi-key").isDisabled() && (await button("pi-play").isDisabled()) };
  await number.fill("10");
  await slider("headYaw").focus();
  await press("End");
  found.set = await value();
  await number.fill("0");
  await easing.selectOption("ease-in");
  await number.fill("5");
  found.between = await shown("headYaw");
  await bar.focus();
  await press("ArrowRight");
  found.stepped = [await number.inputValue(), await shown("headYaw")];
  await press("Delete"); // the graph's key, but not here
  found.text = await value();
  await button("pi-play").click();
  await page.waitForFunction(() => document.querySelector(".afd-timeline input[type=number]").value !== "6");
  await button("pi-play").click();
  await number.fill("10");
  await button("pi-key").click();
  found.removed = await value();
  await number.fill("0");
  found.exact = await page.evaluate(async ({ extension, keyframes }) => {
    const { fromText, valuesAt } = await import(`/extensions/${extension}/editor/keyframes.js`);
    const keys = fromText(JSON.stringify({ keyframes }));
    return Array.from({ length: 40 }, (_, frame) => valuesAt(keys, frame));
  }, task);
  await button("pi-refresh").click();
  return found;
}

async function orbit() {
  const front = await picture();
  const before = await value();
  await drag(view, [0.3, 0.5], [0.6, 0.4]);
  const found = { turned: (await picture()) !== front };
  await view.dblclick();
  found.back = (await picture()) === front;
  await view.focus();
  await press("ArrowLeft", "ArrowLeft");
  found.keys = (await picture()) !== front;
  await press("Home");
  found.home = (await picture()) === front;
  found.valueKept = (await value()) === before;
  return found;
}

// Undo or redo. The host goes on after the graph has changed: until it holds the new one as its state, other keys, even
// Control's release, would make it forget what can be redone.
async function change(key) {
  const before = await value();
  await page.keyboard.down("Control");
  await settle();
  await press(key);
  await page.waitForFunction((before) => {
    const now = editors()[0]?.widgets[1].value;
    const { activeState } = app.extensionManager.workflow.activeWorkflow.changeTracker;
    const held = activeState.nodes.find(({ type }) => type === "AniFaceDiffExpressionEditor");
    return now !== before && held?.widgets_values.includes(now);
  }, before);
  await page.keyboard.up("Control");
  await settle();
}

async function history() {
  await slider("jawOpen").focus();
  await press("End");
  await slider("mouthSmileLeft").focus();
  await press("End");
  const found = { done: await value() };
  await change("z");
  found.undone = await value();
  found.shown = await slider("mouthSmileLeft").getAttribute("aria-valuenow");
  await change("y");
  found.redone = await value();
  await button("pi-refresh").click(); // the panel that is shown is the one that counts
  found.reset = await value();
  return found;
}

// A node of another graph, such as a subgraph's, may have the same id: is the panel of the first one still in the page?
async function twin() {
  const found = await page.evaluate(async () => {
    const [node] = editors();
    const graph = new app.graph.constructor();
    const other = LiteGraph.createNode(node.type);
    other.id = node.id;
    graph.add(other);
    for (let frame = 0; frame < 4; frame++) await new Promise(requestAnimationFrame);
    graph.remove(other);
    return node.widgets.find((widget) => widget.name === "expression").element.isConnected;
  });
  await settle();
  return found;
}

// Newer front-ends draw the widget in their side panel too, and leave that panel's width in it.
async function drawnElsewhere() {
  const width = async () => (await panel.boundingBox()).width;
  const before = await width();
  await page.evaluate(() => {
    editors()[0].widgets[1].width = 120;
    app.graph.setDirtyCanvas(true, true);
  });
  await settle();
  return { before, after: await width() };
}

async function saveAndCopy() {
  await page.evaluate((text) => (editors()[0].widgets[1].value = text), task.expression);
  const found = await page.evaluate(async () => {
    const graph = JSON.parse(JSON.stringify(app.graph.serialize()));
    await app.loadGraphData({ ...graph, nodes: [], links: [] });
    await app.loadGraphData(graph);
    return { graph: (await app.graphToPrompt()).output };
  });
  await settle();
  found.loaded = await value();
  found.shown = await slider("headYaw").getAttribute("aria-valuenow");
  await page.evaluate(() => {
    app.canvas.selectItems([editors()[0]]);
    app.canvas.copyToClipboard();
    app.canvas.pasteFromClipboard();
    const copy = editors().at(-1);
    copy.pos = [800, 460];
    copy.size = [340, 520];
    // a selected node cuts its shape out of the panels below it, as it was when the canvas was last drawn
    app.canvas.deselectAll();
    app.graph.setDirtyCanvas(true, true);
  });
  await settle();
  found.pasted = await value(-1);
  return found;
}

// The pasted editor feeds the first one.
async function chain() {
  const alone = await picture();
  await page.evaluate(() => {
    const [first, second] = editors();
    second.widgets[1].value = '{"jawOpen":1}';
    second.connect(0, first, "parameters");
  });
  const least = () => slider("jawOpen").getAttribute("aria-valuemin");
  const found = { least: await least() };
  found.outcome = await run(page, task.timeout);
  await page.evaluate(() => (app.canvas.pause_rendering = false));
  found.follows = (await picture()) !== alone;
  const apply = (choice) =>
    page.evaluate((choice) => {
      const [widget] = editors()[0].widgets;
      widget.value = choice;
      widget.callback?.(choice);
    }, choice);
  await apply("replace");
  found.leastReplacing = await least();
  await apply("add");
  await page.evaluate(() => {
    const [first, second] = editors();
    first.disconnectInput("parameters");
    app.graph.remove(second);
  });
  found.alone = (await picture()) === alone;
  return found;
}

// A text that is no JSON stays until a slider is moved.
async function damaged() {
  const note = () => panel.locator(".afd-note").textContent();
  await page.evaluate(() => (editors()[0].widgets[1].value = '{"jawOpen": "wide"}'));
  const found = { kept: await value(), note: await note() };
  await slider("jawOpen").focus();
  await press("End");
  found.anew = await value();
  found.noteAfter = await note();
  return found;
}

// Words of the sliders that a language lacks.
function untranslated() {
  return page.evaluate(async ({ extension }) => {
    const { GROUPS, PRESETS } = await import(`/extensions/${extension}/editor/sliders.js`);
    const { translator } = await import(`/extensions/${extension}/editor/words.js`);
    const rows = GROUPS.flatMap((group) => group.rows);
    const words = [...GROUPS, ...rows].map(({ label }) => label).concat(Object.keys(PRESETS), "Custom", "Preset");
    const sides = rows.flatMap(({ targets }) => targets.flatMap(({ side }) => side ?? []));
    const lacking = (locale) => [...words, ...sides].filter((word) => translator(locale)(word) === word);
    return { ja: lacking("ja"), zh: lacking("zh") };
  }, task);
}

function vertices() {
  return page.evaluate(async ({ extension, edits, base }) => {
    const { Head } = await import(`/extensions/${extension}/editor/head.js`);
    const head = await Head.load(`/extensions/${extension}/editor/head.safetensors`);
    return [base, null].map((frame) => [...head.pose(head.edit(edits, frame))]);
  }, task);
}

// By the keyboard: the pasted node may lie over the button.
async function switchLook() {
  await button("pi-palette").focus();
  await press("Enter");
}

// What the panel shows as normals, and what the host draws of the same graph.
async function normals() {
  await switchLook();
  const data = (await picture()).split(",")[1];
  const file = join(task.folder, "normals.png");
  writeFileSync(file, Buffer.from(data, "base64"));
  await switchLook();
  return { outcome: await run(page, task.timeout), shown: file };
}

try {
  await prepare();
  const found = {
    hands: await mouseAndKeys(),
    presets: await presetsAndMirror(),
    ownPresets: await ownPresets(),
    keyframes: await keyframes(),
    orbit: await orbit(),
    history: await history(),
    twin: await twin(),
    widths: await drawnElsewhere(),
    damaged: await damaged(),
    saved: await saveAndCopy(),
    normals: await normals(),
    chain: await chain(),
    untranslated: await untranslated(),
    vertices: await vertices(),
  };
  await page.evaluate(() => (app.canvas.pause_rendering = false));
  await page.waitForTimeout(800);
  const screenshot = join(task.folder, "editor.png");
  await page.screenshot({ path: screenshot });
  console.log(JSON.stringify({ ...found, errors, screenshot }));
} finally {
  await browser.close();
}
