// The Expression Editor's widget: its input `expression` is a text of JSON, shown as sliders and a head.

import { app } from "../../scripts/app.js";
import { Head } from "./editor/head.js";
import { Panel } from "./editor/panel.js";
import { translator } from "./editor/words.js";
import { after, asWideAsItsNode } from "./hooks.js";
import { follow as followSessions } from "./session.js";

const NODE = "AniFaceDiffExpressionEditor";
const WIDGET = "ANIFACEDIFF_EXPRESSION";
const SIZE = [360, 800];
const LEAST_HEIGHT = 520;

const HEAD = new URL("editor/head.safetensors", import.meta.url).href;
const NETWORKS = ["model", "reference", "vae", "pose_encoder", "source"];

const TAKEN_OVER_WITHIN = 2000; // milliseconds that undoing takes at most

const panels = new Map(); // by node
const removed = new Map(); // panels of nodes that are gone, by the node's id
let head; // a promise: one head for all nodes, loaded when the first of them appears

function expressionWidget(node, name) {
  let widget;
  const panel = new Panel({
    t: translator(app.extensionManager?.setting?.get("Comfy.Locale")),
    queue: () => app.queuePrompt(0, 1),
    onInput: () => {
      widget?.callback?.(panel.value);
      node.graph?.setDirtyCanvas(true, true);
    },
    onCommit: () => app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState(),
  });
  widget = node.addDOMWidget(name, WIDGET, panel.element, {
    getValue: () => panel.value,
    setValue: (value) => (panel.value = value),
    getMinHeight: () => LEAST_HEIGHT,
    hideOnZoom: false,
  });
  asWideAsItsNode(widget);
  panel.element.classList.add("widget-expands"); // the new node renderer gives such a widget all free height
  head ??= Head.load(HEAD);
  head.then(
    (loaded) => (panel.head = loaded),
    (error) => (panel.note.textContent = String(error)),
  );
  panels.set(node, panel);
  after(node, "onAdded", () => {
    panels.set(node, panel);
    succeed(node.id, panel);
  });
  after(node, "onRemoved", () => {
    removed.set(node.id, panel);
    panels.delete(node);
    setTimeout(() => panels.has(node) || panel.close(), TAKEN_OVER_WITHIN);
  });
  return { widget };
}

// What is connected decides which head the sliders start from, whether they can take away, and whether there is a result.
function follow(node, panel) {
  const connected = (name) =>
    node.inputs?.some((input, slot) => input.name === name && node.isInputConnected(slot)) ?? false;
  const [apply, shown] = ["apply", "show_result"].map((name) => node.widgets.find((widget) => widget.name === name));
  const update = () => {
    panel.takesAway = connected("parameters") && apply.value === "add";
    if (!connected("parameters")) panel.frame = null;
    panel.result.available = NETWORKS.every(connected);
  };
  // for the run that the panel itself queues
  if (shown) shown.serializeValue = () => panel.result.wanted || shown.value;
  after(node, "onConnectionsChange", update);
  after(apply, "callback", update);
  after(node, "onConfigure", update);
  after(node, "onExecuted", ({ first_frame: frames }) => (panel.frame = frames?.[0] ?? null));
}

// Undoing makes the graph's nodes anew. The panel then goes on looking as it did, and takes the old one's place, which
// the new node renderer leaves in the page.
function succeed(id, panel) {
  const before = removed.get(id);
  removed.delete(id);
  if (!before || before === panel) return;
  panel.succeed(before);
  requestAnimationFrame(() => {
    if (before.element.isConnected && !panel.element.isConnected) before.element.replaceWith(panel.element);
  });
}

followSessions(panels);

app.registerExtension({
  name: "anifacediff.ExpressionEditor",
  getCustomWidgets: () => ({ [WIDGET]: expressionWidget }),
  beforeRegisterNodeDef(_type, definition) {
    // Without this file the input is a plain text, as it is for the API.
    if (definition.name === NODE) definition.input.required.expression[1].widgetType = WIDGET;
  },
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    follow(node, panels.get(node));
    node.setSize([Math.max(node.size[0], SIZE[0]), Math.max(node.size[1], SIZE[1])]);
  },
});
