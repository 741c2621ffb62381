// The panel of Live Reenactment.

import { app } from "../../scripts/app.js";
import { after, asWideAsItsNode } from "./hooks.js";
import { LivePanel } from "./live/panel.js";
import { translator } from "./live/words.js";
import { follow } from "./session.js";

const NODE = "AniFaceDiffLive";
const WIDGET = "anifacediff_live";
const LEAST_HEIGHT = 340;
const SIZE = [380, 900];

const panels = new Map(); // by node

function addPanel(node) {
  const panel = new LivePanel({
    t: translator(app.extensionManager?.setting?.get("Comfy.Locale")),
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

follow(panels);

app.registerExtension({
  name: "anifacediff.Live",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    addPanel(node);
    node.setSize([Math.max(node.size[0], SIZE[0]), Math.max(node.size[1], SIZE[1])]);
  },
});
