// Opens ComfyUI's front-end in headless Chromium and loads each workflow from its template list; queues those that
// shall run and waits for their end. Takes one JSON argument, prints one line of JSON; tests/harness/browser.py says
// what is in it.
import { join } from "node:path";
import { chooseRenderer, openBrowser, openPage, run } from "./page.mjs";

const task = JSON.parse(process.argv[2]);
const browser = await openBrowser(task.chromium);

async function inspect(page, name, errors) {
  const found = await page.evaluate(
    async ([extension, name]) => {
      const template = await fetch(`/api/workflow_templates/${extension}/${name}.json`);
      if (!template.ok) throw new Error(`the host does not list the template ${name}`);
      await window.app.loadGraphData(await template.json(), true, true, name);
      const nodes = window.app.graph.nodes ?? window.app.graph._nodes;
      const { output } = await window.app.graphToPrompt();
      // not by `has_errors`: newer front-ends set it for files that are missing, too
      const unknown = nodes.map(({ type }) => type).filter((type) => !(type in LiteGraph.registered_node_types));
      return { unknown, graph: output };
    },
    [task.extension, name],
  );
  const outcome = task.running.includes(name) ? await run(page, task.timeout) : "not queued";
  const screenshot = join(task.screenshots, `${name}.png`);
  await page.evaluate(() => {
    window.app.canvas.pause_rendering = false;
    return window.app.extensionManager.command.execute("Comfy.Canvas.FitView");
  });
  await page.waitForTimeout(1000);
  await page.screenshot({ path: screenshot });
  return { ...found, outcome, errors: errors.splice(0), screenshot };
}

try {
  const results = {};
  for (const name of task.names) {
    const errors = [];
    const page = await openPage(browser, task.address, errors);
    await chooseRenderer(page, task.vue);
    results[name] = await inspect(page, name, errors);
    await page.close();
  }
  console.log(JSON.stringify(results));
} finally {
  await browser.close();
}
