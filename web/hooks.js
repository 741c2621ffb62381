// What this extension's scripts do with the front-end's own hooks.

// Do something after a hook of an object, which it may have or not.
export function after(target, hook, action) {
  const before = target[hook];
  target[hook] = function (...values) {
    before?.apply(this, values);
    action(...values);
  };
}
