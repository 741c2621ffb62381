// Opens a template that is an app by the mouse, gives it a picture and a video, presses Run and waits for the video; counts
// the clicks meanwhile. Takes one JSON argument, prints one line of JSON; tests/browser/test_app.py says what is expected.
import { join } from "node:path";
import { chooseRenderer, openBrowser, openPage } from "./page.mjs";

const task = JSON.parse(process.argv[2]);
const browser = await openBrowser(task.chromium);
const errors = [];

// The blueprint by way of the search box, put onto an empty canvas.
async function blueprint(page) {
  await page.evaluate(() => {
    app.graph.clear();
    return app.extensionManager.command.execute("Workspace.SearchBox.Toggle");
  });
  await page.waitForFunction(() => document.activeElement.tagName === "INPUT");
  await page.keyboard.type(task.query);
  const found = page.locator('[data-testid="result-item"], .p-autocomplete-option').filter({ hasText: task.title });
  await found.first().click();
  await page.mouse.click(700, 400); // newer front-ends let it hang at the mouse until then
  await page.waitForFunction(() => app.graph._nodes.some((node) => node.subgraph));
  return page.evaluate(() => {
    const [node] = app.graph._nodes;
    return {
      title: node.title,
      inputs: node.inputs.map(({ name, type }) => [name, type]),
      outputs: node.outputs.map(({ name, type }) => [name, type]),
      widgets: node.widgets.map(({ name, value }) => [name, value]),
      unknown: node.subgraph.nodes.filter(({ type }) => !(type in LiteGraph.registered_node_types)).map(({ type }) => type),
    };
  });
}

async function runApp(page) {
  await page.getByRole("button", { name: "Templates", exact: true }).click();
  await page.getByText(task.extension, { exact: true }).first().click();
  await page.getByTestId(`template-workflow-${task.name}`).click();
  await page.waitForFunction(() => app.graph._nodes.some((node) => node.subgraph));
  const panel = page.getByTestId("linear-widgets");
  await panel.waitFor();
  // the host's tour, which it offers once
  const skip = page.getByRole("button", { name: "Skip", exact: true });
  await skip.click({ timeout: 10_000 }).catch(() => {});
  const labels = await panel.innerText();
  const files = panel.locator("input[type=file]");
  for (const [at, file] of task.files.entries()) await files.nth(at).setInputFiles(file);
  await page.waitForFunction(
    (names) => {
      const values = app.graph._nodes.flatMap((node) => (node.widgets ?? []).map(({ value }) => value));
      return names.every((name) => values.includes(name));
    },
    task.files.map((file) => file.split("/").pop()),
  );
  await page.evaluate((timeout) => {
    window.clicks = [];
    addEventListener("click", ({ isTrusted, target }) => isTrusted && clicks.push(target.innerText.trim()), true);
    window.ended = new Promise((resolve) => {
      app.api.addEventListener("execution_success", () => resolve("execution_success"));
      app.api.addEventListener("execution_error", ({ detail }) => resolve(detail.exception_message));
      setTimeout(() => resolve("no end in time"), timeout);
    });
  }, task.timeout);
  await page.getByTestId("linear-run-button").getByText("Run", { exact: true }).first().click();
  const outcome = await page.evaluate(() => ended);
  const shown = (result) =>
    [...document.querySelectorAll("video")].some(({ src, videoWidth }) => src.includes(result) && videoWidth > 0);
  await page.waitForFunction(shown, task.result, { timeout: 120_000 }).catch(() => {});
  await page.screenshot({ path: join(task.folder, "app.png") });
  return page.evaluate(
    ([outcome, labels]) => ({
      outcome,
      labels,
      clicks,
      videos: [...document.querySelectorAll("video")].map(({ src, videoWidth, videoHeight, duration }) => ({
        file: new URL(src).searchParams.get("filename"),
        size: [videoWidth, videoHeight],
        seconds: duration,
      })),
    }),
    [outcome, labels],
  );
}

try {
  const page = await openPage(browser, task.address, errors);
  await chooseRenderer(page, task.vue);
  const found = task.name ? await runApp(page) : await blueprint(page);
  console.log(JSON.stringify({ ...found, errors }));
} finally {
  await browser.close();
}
