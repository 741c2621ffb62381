// What this extension's scripts do with the front-end's own hooks.

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
