// Pictures on the nodes that make a video, while they do. The front-end would keep the last of them in place of the
// finished video. So they are shown by a widget of their own, which goes when the video comes.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { after, asWideAsItsNode, nodeOf } from "./hooks.js";

const NODES = ["AniFaceDiffReenactLongVideo", "AniFaceDiffReenactMany"];
const WIDGET = "anifacediff_preview";
const LEAST_HEIGHT = 220;

function widgetOf(node) {
  return node.widgets.find((widget) => widget.name === WIDGET);
}

function addWidget(node) {
  const picture = document.createElement("img");
  picture.style.cssText = "width: 100%; height: 100%; object-fit: contain";
  picture.onload = () => URL.revokeObjectURL(picture.src); // it stays shown, whatever becomes of the node
  const widget = node.addDOMWidget(WIDGET, WIDGET, picture, {
    getMinHeight: () => LEAST_HEIGHT,
    hideOnZoom: false,
    serialize: false,
  });
  widget.serialize = false;
  asWideAsItsNode(widget);
  return widget;
}

function show(node, picture) {
  const { element } = widgetOf(node) ?? addWidget(node);
  URL.revokeObjectURL(element.src);
  element.src = URL.createObjectURL(picture);
}

function hide(node) {
  const widget = widgetOf(node);
  if (!widget) return;
  URL.revokeObjectURL(widget.element.src);
  node.removeWidget(widget);
  node.graph?.setDirtyCanvas(true, true);
}

// Here and not in an extension's hook, which would come after the front-end's own listener.
api.addEventListener("b_preview_with_metadata", (event) => {
  const node = nodeOf(String(event.detail.displayNodeId));
  if (!NODES.includes(node?.comfyClass)) return;
  event.stopImmediatePropagation();
  show(node, event.detail.blob);
});

app.registerExtension({
  name: "anifacediff.VideoPreview",
  nodeCreated(node) {
    if (NODES.includes(node.comfyClass)) after(node, "onExecuted", () => hide(node));
  },
});
