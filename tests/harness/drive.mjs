// Opens ComfyUI's front-end in headless Chromium and loads each workflow from its template list; queues those that
// shall run and waits for their end. Takes one JSON argument, prints one line of JSON; tests/harness/browser.py says
// what is in it.
import { join } from "node:path";
import { chromium } from "playwright-core";

const task = JSON.parse(process.argv[2]);
const browser = await chromium.launch({
  executablePath: task.chromium,
  headless: true,
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});

async function inspect(page, name, errors) {
  const found = await page.evaluate(
    async ([extension, name]) => {
      const template = await fetch(`/api/workflow_templates/${extension}/${name}.json`);
      if (!template.ok) throw new Error(`the host does not list the template ${name}`);
      await window.app.loadGraphData(await template.json(), true, true, name);
      const nodes = window.app.graph.nodes ?? window.app.graph._nodes;
      const { output } = await window.app.graphToPrompt();
      return { unknown: nodes.filter((node) => node.has_errors === true).map((node) => node.type), graph: output };
    },
    [task.extension, name],
  );
  const outcome = task.running.includes(name) ? await run(page) : "not queued";
  const screenshot = join(task.screenshots, `${name}.png`);
  await page.evaluate(() => {
    window.app.canvas.pause_rendering = false;
    return window.app.extensionManager.command.execute("Comfy.Canvas.FitView");
  });
  await page.waitForTimeout(1000);
  await page.screenshot({ path: screenshot });
  return { ...found, outcome, errors: errors.splice(0), screenshot };
}

function run(page) {
  return page.evaluate(async (timeout) => {
    const ended = new Promise((resolve) => {
      const api = window.app.api;
      api.addEventListener("execution_success", () => resolve("execution_success"));
      api.addEventListener("execution_error", ({ detail }) => resolve(`${detail.node_type}: ${detail.exception_message}`));
      api.addEventListener("execution_interrupted", () => resolve("interrupted"));
      setTimeout(() => resolve("no end in time"), timeout);
    });
    // Drawing the graph in software would take the time that the host needs.
    window.app.canvas.pause_rendering = true;
    await window.app.queuePrompt(0, 1);
    const refused = window.app.lastNodeErrors ?? {};
    return Object.keys(refused).length ? `refused: ${JSON.stringify(refused)}` : await ended;
  }, task.timeout);
}

try {
  const results = {};
  for (const name of task.names) {
    const page = await browser.newPage({ viewport: { width: 1920, height: 1080 } });
    const errors = [];
    page.on("pageerror", (error) => errors.push(String(error.message)));
    await page.goto(task.address);
    await page.waitForFunction(
      () => window.app?.extensionManager && Object.keys(window.LiteGraph?.registered_node_types ?? {}).length > 100,
      undefined,
      { timeout: 120_000 },
    );
    results[name] = await inspect(page, name, errors);
    await page.close();
  }
  console.log(JSON.stringify(results));
} finally {
  await browser.close();
}
