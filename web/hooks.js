// What this extension's scripts do with the front-end's own hooks.

import { app } from "../../scripts/app.js";

// Do something after a hook of an object, which it may have or not.
export function after(target, hook, action) {
  const before = target[hook];
  target[hook] = function (...values) {
    before?.apply(this, values);
    action(...values);
  };
}

// The front-end's side panel draws widgets too, and leaves its own width in them, which the node would then take over.
export function asWideAsItsNode(widget) {
  Object.defineProperty(widget, "width", { get: () => undefined, set: () => {}, configurable: true });
}

// A node by its number, behind those of the subgraphs that it is in: 12:7.
export function nodeOf(path) {
  let graph = app.rootGraph ?? app.graph;
  let node;
  for (const number of path.split(":")) {
    node = graph?.getNodeById(number);
    graph = node?.subgraph;
  }
  return node;
}
