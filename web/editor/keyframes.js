// What is dialed over time: keyframes of { frame, easing, values }, in the order of their frames, at least one. The
// formulas are those of keyframes.py, checked against them by the tests.

import { isValues, ordered, restOf } from "./sliders.js";

export const LAST_FRAME = 9999;

// How far the way to the next keyframe is gone, at a share of the time.
export const EASINGS = {
  linear: (time) => time,
  "ease-in": (time) => time ** 2,
  "ease-out": (time) => 1 - (1 - time) ** 2,
  "ease-in-out": (time) => time ** 2 * (3 - 2 * time),
  hold: () => 0,
};

export function valuesAt(keys, frame) {
  const next = keys.findIndex((key) => key.frame > frame);
  if (next <= 0) return { ...keys.at(next).values };
  const [before, after] = [keys[next - 1], keys[next]];
  if (before.frame === frame) return { ...before.values };
  const way = EASINGS[before.easing]((frame - before.frame) / (after.frame - before.frame));
  const values = {};
  for (const name of new Set([...Object.keys(before.values), ...Object.keys(after.values)])) {
    const [start, end] = [before, after].map((key) => key.values[name] ?? restOf(name));
    const value = Number((start + way * (end - start)).toFixed(4));
    if (value !== restOf(name)) values[name] = value;
  }
  return values;
}

// With other values at a frame: that of a keyframe, or of a new one, which goes on as the one before it does.
export function withKey(keys, frame, values, easing = keyBefore(keys, frame)?.easing ?? "linear") {
  const others = keys.filter((key) => key.frame !== frame);
  return [...others, { frame, easing, values: { ...values } }].sort((a, b) => a.frame - b.frame);
}

export function withoutKey(keys, frame) {
  return keys.filter((key) => key.frame !== frame);
}

export function keyBefore(keys, frame) {
  return keys.findLast((key) => key.frame <= frame);
}

export function toText(keys) {
  if (keys.length === 1 && keys[0].frame === 0) return JSON.stringify(ordered(keys[0].values));
  const entry = ({ frame, easing, values }) => ({ frame, easing, expression: ordered(values) });
  return JSON.stringify({ keyframes: keys.map(entry) });
}

// The keyframes in a text, or null where it has none.
export function fromText(text) {
  try {
    const held = JSON.parse(text.trim() || "{}");
    if (isValues(held)) return [{ frame: 0, easing: "linear", values: held }];
    const keys = held.keyframes.map(({ frame, easing = "linear", expression = {} }) => ({ frame, easing, values: expression }));
    const inOrder = keys.every(({ frame }, i) => Number.isInteger(frame) && frame >= 0 && !(frame <= keys[i - 1]?.frame));
    return inOrder && keys.length && keys.every((key) => isValues(key.values) && Object.hasOwn(EASINGS, key.easing)) ? keys : null;
  } catch {
    return null;
  }
}
