// ComfyUI's front-end in headless Chromium, for the drivers beside this file.
import { chromium } from "playwright-core";

export function openBrowser(executablePath) {
  const args = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ];
  return chromium.launch({ executablePath, headless: true, args });
}

// A page that has loaded all nodes and opened a workflow; its uncaught errors, and scripts of ours that do not load, go to `errors`.
export async function openPage(browser, address, errors, viewport = { width: 1920, height: 1080 }) {
  const page = await browser.newPage({ viewport });
  page.setDefaultTimeout(300_000); // a busy machine is no failure
  page.on("pageerror", (error) => errors.push(String(error.message)));
  page.on("console", (message) => {
    if (/^Error loading extension .*anifacediff/i.test(message.text())) errors.push(message.text());
  });
  await page.goto(address);
  await page.waitForFunction(
    () =>
      window.app?.extensionManager?.workflow?.activeWorkflow &&
      Object.keys(window.LiteGraph?.registered_node_types ?? {}).length > 100,
  );
  return page;
}

// Draw nodes by Vue or on the canvas. Where the front-end offers only the canvas, the driver ends with a code of its own;
// browser.py knows it.
export async function chooseRenderer(page, vue) {
  const offered = await page.evaluate(async (vue) => {
    const name = "Comfy.VueNodes.Enabled";
    const { settings, set } = app.extensionManager.setting;
    if (vue && settings[name].type === "hidden") return false;
    await set(name, vue);
    return true;
  }, vue);
  if (offered) return;
  await page.context().browser().close();
  process.exit(77);
}

// Queue the graph and wait for its end: "execution_success", or what went wrong. Some front-ends show widgets only once the
// graph is drawn; drawing it in software takes the time that the host needs.
export function run(page, timeout, { drawn = false } = {}) {
  return page.evaluate(async ({ timeout, drawn }) => {
    const ended = new Promise((resolve) => {
      const api = window.app.api;
      api.addEventListener("execution_success", () => resolve("execution_success"));
      api.addEventListener("execution_error", ({ detail }) => resolve(`${detail.node_type}: ${detail.exception_message}`));
      api.addEventListener("execution_interrupted", () => resolve("interrupted"));
      setTimeout(() => resolve("no end in time"), timeout);
    });
    window.app.canvas.pause_rendering = !drawn;
    await window.app.queuePrompt(0, 1);
    const refused = window.app.lastNodeErrors ?? {};
    return Object.keys(refused).length ? `refused: ${JSON.stringify(refused)}` : await ended;
  }, { timeout, drawn });
}
