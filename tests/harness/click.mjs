// Opens a template by the mouse, as a user does, presses Run and tells what the page says and shows; takes one JSON
// argument, prints one line of JSON. tests/browser/test_first_click.py says what is expected.
import { join } from "node:path";
import { chooseRenderer, openBrowser, openPage } from "./page.mjs";

const task = JSON.parse(process.argv[2]);
const browser = await openBrowser(task.chromium);
const errors = [];

try {
  const page = await openPage(browser, task.address, errors);
  await chooseRenderer(page, task.vue);
  await page.evaluate((timeout) => {
    window.uploads = [];
    const { fetchApi } = app.api;
    app.api.fetchApi = function (route, ...rest) {
      if (route.startsWith("/upload")) uploads.push(route);
      return fetchApi.call(this, route, ...rest);
    };
    window.ended = new Promise((resolve) => {
      app.api.addEventListener("execution_success", () => resolve("execution_success"));
      app.api.addEventListener("execution_error", ({ detail }) => resolve(detail.exception_message));
      setTimeout(() => resolve("no end in time"), timeout);
    });
  }, task.timeout);
  await page.getByRole("button", { name: "Templates", exact: true }).click();
  await page.getByText(task.extension, { exact: true }).first().click();
  await page.getByTestId(`template-workflow-${task.name}`).click();
  await page.waitForFunction((type) => app.graph._nodes.some((node) => node.type === type), task.type);
  await page.waitForTimeout(2000); // for what the page finds wrong with the workflow
  const opened = await page.evaluate(() => ({
    invalid: app.graph._nodes.filter((node) => node.has_errors).map((node) => node.title),
    missing: app.graph._nodes.flatMap((node) =>
      (node.widgets ?? [])
        .filter(({ type, value, options }) => type === "combo" && !(options.values ?? [value]).includes(value))
        .map(({ name, value }) => `${node.title}: ${name} ${value}`),
    ),
    issues: document.body.innerText.match(/\d+ (issue|error)s? found|Missing \w+/gi) ?? [],
  }));
  await page.getByTestId("queue-button").getByText("Run").first().click();
  const outcome = await page.evaluate(async () => {
    const refused = new Promise((resolve) => {
      const watch = setInterval(() => {
        if (!Object.keys(app.lastNodeErrors ?? {}).length) return;
        clearInterval(watch);
        resolve(`refused: ${JSON.stringify(app.lastNodeErrors)}`);
      }, 100);
    });
    return Promise.race([ended, refused]);
  });
  await page.evaluate(() => app.extensionManager.command.execute("Comfy.Canvas.FitView"));
  // a video that does not come is for the test to tell
  const shown = (result) =>
    [...document.querySelectorAll("video")].some(({ src, videoWidth }) => src.includes(result) && videoWidth > 0);
  await page.waitForFunction(shown, task.result, { timeout: 120_000 }).catch(() => {});
  const screenshot = join(task.folder, `${task.name}.png`);
  await page.screenshot({ path: screenshot });
  const ended = await page.evaluate(() => ({
    uploads,
    videos: [...document.querySelectorAll("video")].map(({ src, videoWidth, videoHeight, duration }) => ({
      file: new URL(src).searchParams.get("filename"),
      size: [videoWidth, videoHeight],
      seconds: duration,
    })),
  }));
  console.log(JSON.stringify({ ...opened, outcome, ...ended, errors, screenshot }));
} finally {
  await browser.close();
}
