// The panel of Live Reenactment. A run of the node opens a session, of which the host tells this page alone.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { after, asWideAsItsNode, nodeOf } from "./hooks.js";
import { LivePanel } from "./live/panel.js";
import { translator } from "./live/words.js";

const NODE = "AniFaceDiffLive";
const WIDGET = "anifacediff_live";
const EVENT = "anifacediff.live";
const LEAST_HEIGHT = 340;
const SIZE = [380, 900];

const panels = new Map(); // by node

function addPanel(node) {
  const panel = new LivePanel({
    t: translator(app.extensionManager?.setting?.get("Comfy.Locale")),
    send: (path, options) => api.fetchApi(path, options),
    queue: () => app.queuePrompt(0, 1),
  });
  const widget = node.addDOMWidget(WIDGET, WIDGET, panel.element, {
    getMinHeight: () => LEAST_HEIGHT,
    hideOnZoom: false,
    serialize: false,
  });
  widget.serialize = false;
  asWideAsItsNode(widget);
  panel.element.classList.add("widget-expands"); // the new node renderer gives such a widget all free height
  after(node, "onRemoved", () => {
    panel.stop();
    panels.delete(node);
  });
  panels.set(node, panel);
}

api.addEventListener(EVENT, ({ detail: { node: path, token } }) => {
  const node = nodeOf(String(path));
  const panel = node && panels.get(node);
  if (token) panel?.begin(token);
  else panel?.end();
});

// Whatever comes of a run, nobody waits for it any more.
for (const end of ["execution_success", "execution_error", "execution_interrupted"])
  api.addEventListener(end, () => {
    for (const panel of panels.values()) panel.end();
  });

// Without an answer from this page the session would end by itself, some seconds later.
addEventListener("pagehide", () => {
  for (const panel of panels.values()) panel.stop();
});

app.registerExtension({
  name: "anifacediff.Live",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    addPanel(node);
    node.setSize([Math.max(node.size[0], SIZE[0]), Math.max(node.size[1], SIZE[1])]);
  },
});
