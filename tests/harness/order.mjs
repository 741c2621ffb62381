// Looks for nodes as an artist does, adds some and changes the theme, in one renderer of nodes; takes one JSON argument,
// prints one line of JSON. tests/browser/test_order.py says what is expected.
import { chooseRenderer, openBrowser, openPage } from "./page.mjs";

const task = JSON.parse(process.argv[2]);
const browser = await openBrowser(task.chromium);
const errors = [];
const page = await openPage(browser, task.address, errors);

const RESULTS = '[data-testid="result-item"], .p-autocomplete-option';

// The search box's first results, once `wanted` is among the first `within`, or in vain.
async function find(query, [wanted, within]) {
  const toggle = () => page.evaluate(() => app.extensionManager.command.execute("Workspace.SearchBox.Toggle"));
  await toggle();
  await page.waitForFunction(() => document.activeElement.tagName === "INPUT");
  await page.keyboard.type(query);
  const there = ([results, wanted, within]) =>
    [...document.querySelectorAll(results)].slice(0, within).some((item) => item.innerText.includes(wanted));
  await page.waitForFunction(there, [RESULTS, wanted, within], { timeout: 30_000 }).catch(() => {});
  const found = await page.locator(RESULTS).evaluateAll((items) => items.slice(0, 5).map((item) => item.innerText));
  await toggle();
  await page.waitForFunction(() => document.activeElement.tagName !== "INPUT");
  return found;
}

function colors() {
  return page.evaluate((types) => {
    const of = (type) => [
      app.canvas.constructor.link_type_colors[type],
      app.canvas.default_connection_color_byType[type],
      getComputedStyle(document.body).getPropertyValue(`--color-datatype-${type}`).trim(),
    ];
    return Object.fromEntries(types.map((type) => [type, of(type)]));
  }, task.types);
}

try {
  await chooseRenderer(page, task.vue);
  await page.evaluate(() => app.graph.clear());
  const found = {};
  for (const [query, wanted] of Object.entries(task.queries)) found[query] = await find(query, wanted);
  const folded = await page.evaluate((types) => {
    const nodes = types.map((type) => app.graph.add(LiteGraph.createNode(type)));
    return Object.fromEntries(
      nodes.map((node) => [
        node.type,
        node.widgets.filter((widget) => widget.advanced ?? widget.options?.advanced).map(({ name }) => name),
      ]),
    );
  }, task.nodes);
  const before = await colors();
  await page.evaluate(() => app.extensionManager.setting.set("Comfy.ColorPalette", "light"));
  await page.waitForFunction(() => getComputedStyle(document.body).getPropertyValue("--bg-color").trim() !== "#202020");
  const after = await colors();
  await page.evaluate(() => app.extensionManager.setting.set("Comfy.ColorPalette", "dark")); // the host keeps it
  await page.screenshot({ path: task.screenshot });
  console.log(JSON.stringify({ found, folded, before, after, errors }));
} finally {
  await browser.close();
}
